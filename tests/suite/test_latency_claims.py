"""``sdbench.speed.unet_seconds``: a latency in seconds holds on one device; nothing here asserts a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.environment import device_name
from pytest_sdbench.base.errors import CardError
from pytest_sdbench.cards.card import read_card
from tests.project import make_card, make_project

HERE = device_name("cpu")
TINY = 1e-4
"""Seconds in which no network of a hundred layers answers."""
RATIO = {"max": 9.0, "source": "own record"}

Speed = Callable[..., tuple[pytest.RunResult, dict[str, Any]]]


@pytest.fixture
def speed(pytester: pytest.Pytester, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Speed:
    """Time a card that makes these claims of its speed, beside a baseline of its own architecture."""
    # A run inside a worker of this run is none itself.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    make_project(pytester.path, pristine_checkpoint, claims={})
    words = ("--sdbench", "cards/student.md", "-m", "speed", "--sdbench-report=r.json")

    def run(baseline: bool = True, **claims: Any) -> tuple[pytest.RunResult, dict[str, Any]]:
        block: dict[str, Any] = {"speed": claims} | ({"baseline": "mini"} if baseline else {})
        make_card(pytester.path / "cards" / "student.md", claims={}, **block)
        result = pytester.runpytest(*words, "--sdbench-device=cpu")
        content = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))
        (row,) = content["results"]
        return result, row

    return run


@pytest.mark.slow
def test_a_claim_of_another_device_or_precision_is_shown_and_not_judged(speed: Speed) -> None:
    claim = {"max": TINY, "device": "Another Machine 9000"}
    result, row = speed(unet_ratio=RATIO, unet_seconds=claim)
    # The ratio is judged on any device.
    result.assert_outcomes(passed=1)
    assert "of the baseline" in row["reason"]
    result, row = speed(unet_seconds=claim)
    result.assert_outcomes(skipped=1)
    assert row["verdict"] == "uncalibrated"
    assert "Another Machine 9000" in row["reason"]
    assert HERE in row["reason"]
    result, row = speed(unet_seconds={"max": TINY, "device": HERE, "dtype": "bfloat16"})
    result.assert_outcomes(skipped=1)
    assert row["verdict"] == "uncalibrated"
    assert "bfloat16" in row["reason"]


@pytest.mark.slow
def test_a_claim_of_this_device_is_judged(speed: Speed) -> None:
    result, row = speed(baseline=False, unet_seconds={"max": TINY, "device": HERE, "dtype": "float32"})
    result.assert_outcomes(failed=1)
    # Inconclusive where a machine is too slow for ten rounds.
    assert row["verdict"] in ("fail", "inconclusive")
    result, row = speed(baseline=False, unet_seconds={"max": 1e6, "device": HERE})
    result.assert_outcomes(passed=1)
    assert row["verdict"] == "pass"


@pytest.mark.slow
def test_a_claim_of_this_device_is_judged_beside_a_baseline(speed: Speed) -> None:
    for dtype in ({}, {"dtype": "float32"}):
        result, row = speed(unet_ratio=RATIO, unet_seconds={"max": 1e6, "device": HERE} | dtype)
        result.assert_outcomes(passed=1)
        assert "claimed on this device" in row["reason"]
        assert "of the baseline" in row["reason"]
    result, row = speed(unet_ratio=RATIO, unet_seconds={"max": TINY, "device": HERE})
    result.assert_outcomes(failed=1)
    assert row["verdict"] in ("fail", "inconclusive")


def test_a_card_gives_back_what_it_claims(tmp_path: Path) -> None:
    claim = {"max": 0.5, "device": "NVIDIA H100", "dtype": "float16", "source": "own record"}
    card = {"claims": {}, "protocol": "scenes-quick"}
    latency = read_card(make_card(tmp_path / "mini.md", **card, speed={"unet_seconds": claim})).latency
    assert latency is not None
    assert (latency.max, latency.device, latency.dtype, latency.source) == tuple(claim.values())
    assert read_card(make_card(tmp_path / "none.md", **card)).latency is None


@pytest.mark.parametrize(
    ("claim", "key"),
    [
        ({"max": 0.5}, "device"),
        ({"device": "x"}, "max"),
        ({"max": 0, "device": "x"}, "max"),
        ({"max": -1.0, "device": "x"}, "max"),
        ({"max": "fast", "device": "x"}, "max"),
        ({"max": 0.5, "device": ""}, "device"),
        ({"max": 0.5, "device": "x", "precision": "float16"}, "precision"),
    ],
)
def test_a_mistake_in_it_is_named_by_its_key(tmp_path: Path, claim: dict[str, Any], key: str) -> None:
    path = make_card(tmp_path / "mini.md", protocol="scenes-quick", claims={}, speed={"unet_seconds": claim})
    with pytest.raises(CardError, match=rf"mini\.md.*sdbench\.speed\.unet_seconds\.{key}"):
        read_card(path)
