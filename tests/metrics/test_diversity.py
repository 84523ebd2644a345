"""The diversity of the pictures of one prompt, against distances written out."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cosine, euclidean

from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.difference import difference
from pytest_sdbench.metrics.estimates import Undefined
from pytest_sdbench.metrics.registry import METRICS, metric_name
from tests.metrics.populations import Array, root_mean_square

DIVERSITY = METRICS["diversity"]
_RNG = np.random.default_rng(1)
PROMPTS, LONE = 24, 6
_SEVERAL = np.repeat(np.arange(PROMPTS), _RNG.integers(2, 5, PROMPTS))
GROUPS = _RNG.permutation(np.append(_SEVERAL, PROMPTS + np.arange(LONE)))
"""Of prompts with two to four pictures, and of some with one."""
ROWS = _RNG.normal(1, 1, (len(GROUPS), 5)).astype(np.float32)


def measured(rows: Array, groups: Array | None, **options: str) -> Any:
    sample = Sample(np.array_split(rows, 3), len(rows), groups)
    return DIVERSITY.estimate(sample, None, DIVERSITY.options(**options))


def of_prompt(prompt: int, distance: Any) -> float:
    members = np.flatnonzero(prompt == GROUPS)
    return float(np.mean([distance(ROWS[i].astype(float), ROWS[j]) for i, j in combinations(members, 2)]))


@pytest.mark.parametrize(("name", "distance"), [("cosine", cosine), ("euclidean", euclidean)])
def test_is_the_mean_over_prompts_of_the_distances_of_their_pictures(name: str, distance: Any) -> None:
    found = measured(ROWS, GROUPS, distance=name)
    each = [of_prompt(prompt, distance) for prompt in range(PROMPTS)]
    assert found.value == found.corrected == pytest.approx(np.mean(each), rel=1e-6)
    correction = np.sqrt((PROMPTS + LONE) / (PROMPTS + LONE - 1))
    assert found.standard_error == pytest.approx(np.std(each) / np.sqrt(PROMPTS) * correction, rel=1e-6)
    sums = np.bincount(GROUPS, weights=found.influence)
    np.testing.assert_allclose(
        sums[:PROMPTS], (np.array(each) - found.value) * len(GROUPS) / PROMPTS, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(sums[PROMPTS:], 0, atol=1e-12)


def test_falls_where_pictures_of_a_prompt_collapse_and_pairs_tell() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(60), 4)
    prompts = np.repeat(rng.normal(size=(60, 8)), 4, axis=0)
    noise = rng.normal(size=(240, 8))
    teacher, student = (measured(prompts + width * noise, groups) for width in (1.0, 0.5))
    assert student.value < 0.6 * teacher.value
    found = difference(student, teacher, groups=groups)
    assert found.value + 4 * found.standard_error < 0
    assert found.paired


def test_standard_error_is_the_spread_over_sets_of_prompts() -> None:
    rng = np.random.default_rng(3)
    groups = np.tile(np.arange(40), 3)
    found = []
    for _ in range(300):
        prompts = np.tile(rng.normal(size=(40, 6)), (3, 1))
        found.append(measured(prompts + 0.7 * rng.normal(size=(120, 6)), groups))
    spread = np.std([each.value for each in found], ddof=1)
    errors = root_mean_square(np.array([each.standard_error for each in found]))
    assert errors == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize("groups", [None, np.arange(len(GROUPS))])
def test_is_undefined_where_no_prompt_repeats(groups: Array | None) -> None:
    found = measured(ROWS, groups)
    assert isinstance(found, Undefined)
    assert "no prompt has two pictures" in found.reason


def test_one_prompt_alone_has_no_standard_error() -> None:
    found = measured(ROWS, np.zeros(len(GROUPS), int))
    assert found.value > 0
    assert found.standard_error is found.influence is None


def test_cards_may_call_it_by_what_it_is() -> None:
    assert metric_name("Mean pairwise distance") == "diversity"
    assert DIVERSITY.higher_is_better
