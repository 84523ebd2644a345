"""The share of objects that are read right: which objects a caption tells of, and how sure the share is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.family.reading import NAMES_RIGHT, NO_OBJECT, SLOTS, readings, right, share, told
from pytest_sdbench.features.classifier import COLOUR_LABELS, NAME_LABELS, object_hits
from pytest_sdbench.metrics.definition import NoOptions, Sample
from pytest_sdbench.metrics.difference import difference
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.scene_parts import Scene

Rows = np.ndarray[Any, np.dtype[np.float32]]


@pytest.mark.parametrize("domain", scenes.DOMAINS)
def test_a_caption_tells_of_the_objects_of_its_scene(domain: str) -> None:
    for index in range(800):
        one = scenes.scene(index, domain)
        assert told(one.caption) == [(thing.name, thing.colour) for thing in one.objects], one.caption


def test_another_text_tells_of_none() -> None:
    assert told("") == []
    assert told("a photo of a dog") == []


def drawn_and_read(count: int, seed: int, wrong: float) -> tuple[list[Scene], dict[str, torch.Tensor]]:
    """Return scenes, and the logits of a reader that is wrong so often, of names and of colours."""
    rng = np.random.default_rng(seed)
    drawn = [scenes.scene(index) for index in range(count)]
    logits = {}
    for what, labels in (("name", NAME_LABELS), ("colour", COLOUR_LABELS)):
        logits[what] = torch.zeros(count, SLOTS, len(labels))
        for row, one in enumerate(drawn):
            for slot, thing in enumerate(one.objects):
                said = labels.index(getattr(thing, what))
                if rng.random() < wrong:
                    said = (said + 1) % len(labels)
                logits[what][row, slot, said] = 1
    return drawn, logits


def test_readings_are_those_of_the_suite() -> None:
    drawn, logits = drawn_and_read(200, seed=0, wrong=0.3)
    rows = readings(logits["name"], logits["colour"], [one.caption for one in drawn])
    hit, there = right(rows, colour=True)
    reader: Any = lambda images: logits  # noqa: E731
    theirs = object_hits(reader, torch.empty(0), drawn)
    assert hit[there].tolist() == theirs.tolist()
    assert not hit[~there].any()
    names, _ = right(rows, colour=False)
    assert names.sum() > hit.sum(), "a wrong colour spoils no name"
    assert (rows[:, :SLOTS] == NO_OBJECT).sum() == sum(SLOTS - len(one.objects) for one in drawn)


def rows_of(count: int, seed: int, wrong: float) -> Rows:
    drawn, logits = drawn_and_read(count, seed, wrong)
    return readings(logits["name"], logits["colour"], [one.caption for one in drawn])


def estimated(rows: Rows) -> Estimate:
    found = share("names_right", False, Sample([rows], len(rows)), None, NoOptions())
    assert isinstance(found, Estimate)
    return found


def jackknife(rows: list[Rows], score: Callable[..., float]) -> float:
    """Return the standard error of a score by leaving out each image, all the same way."""
    n = len(rows[0])
    left = [score(*(np.delete(each, k, axis=0) for each in rows)) for k in range(n)]
    return float(np.sqrt((n - 1) / n * np.square(np.array(left) - np.mean(left)).sum()))


def plain(rows: Rows) -> float:
    named = rows[:, :SLOTS]
    return float((named == 1).sum() / (named != NO_OBJECT).sum())


def test_the_share_is_of_objects_and_its_error_that_of_leaving_images_out() -> None:
    rows = rows_of(300, seed=1, wrong=0.2)
    found = estimated(rows)
    assert found.value == pytest.approx(plain(rows))
    assert found.standard_error == pytest.approx(jackknife([rows], plain), rel=0.02)


def test_a_difference_of_shares_is_paired() -> None:
    first, second = rows_of(300, seed=1, wrong=0.2), rows_of(300, seed=1, wrong=0.2)
    second[:12, 0] = 0
    found = difference(estimated(first), estimated(second))
    assert found is not None
    assert found.value == pytest.approx(plain(first) - plain(second))
    expected = jackknife([first, second], lambda one, other: plain(one) - plain(other))
    assert found.standard_error == pytest.approx(expected, rel=0.02)
    assert found.gain is not None
    assert found.gain > 2


def test_no_object_is_no_share() -> None:
    nothing = np.full((4, 2 * SLOTS), NO_OBJECT, np.float32)
    found = share("names_right", False, Sample([nothing], 4), None, NoOptions())
    assert isinstance(found, Undefined)
    assert NAMES_RIGHT.higher_is_better
