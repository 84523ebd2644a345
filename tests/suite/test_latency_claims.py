"""``sdbench.speed.unet_seconds``: a latency in seconds holds on one device; nothing here asserts a time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.environment import device_name
from pytest_sdbench.base.errors import CardError
from pytest_sdbench.cards.card import read_card
from tests.conftest import Speed
from tests.project import make_card

HERE = device_name("cpu")
TINY = 1e-4
"""Seconds in which no network of a hundred layers answers."""
FAST, SLOW = ({"max": seconds, "device": HERE} for seconds in (TINY, 1e6))
ELSEWHERE = FAST | {"device": "Another Machine 9000"}
RATIO = {"max": 9.0, "source": "own record"}
BOTH = ["claimed on this device", "of the baseline"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("baseline", "speed_claims", "outcome", "told"),
    [
        # The ratio is judged on any device.
        (True, {"unet_ratio": RATIO, "unet_seconds": ELSEWHERE}, "pass", ["of the baseline"]),
        (True, {"unet_seconds": ELSEWHERE}, "uncalibrated", ["Another Machine 9000", HERE]),
        (True, {"unet_seconds": FAST | {"dtype": "bfloat16"}}, "uncalibrated", ["bfloat16"]),
        (False, {"unet_seconds": FAST | {"dtype": "float32"}}, "fail", []),
        (False, {"unet_seconds": SLOW}, "pass", []),
        (True, {"unet_ratio": RATIO, "unet_seconds": SLOW}, "pass", BOTH),
        (True, {"unet_ratio": RATIO, "unet_seconds": SLOW | {"dtype": "float32"}}, "pass", BOTH),
        (True, {"unet_ratio": RATIO, "unet_seconds": FAST}, "fail", []),
    ],
)
def test_a_claim_is_judged_on_its_own_device_and_in_its_own_precision_alone(
    speed: Speed, baseline: bool, speed_claims: dict[str, Any], outcome: str, told: list[str]
) -> None:
    block = {"speed": speed_claims} | ({"baseline": "mini"} if baseline else {})
    result, row = speed("--sdbench-device=cpu", **block)
    result.assert_outcomes(**{{"pass": "passed", "fail": "failed"}.get(outcome, "skipped"): 1})
    # Inconclusive where a machine is too slow for ten rounds.
    assert row["verdict"] in ({"fail", "inconclusive"} if outcome == "fail" else {outcome})
    assert [words for words in told if words not in row["reason"]] == []


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "plain"])
def test_the_table_of_times_names_the_card_and_the_end_says_where_the_report_lies(
    colour: bool, speed: Speed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    result, _ = speed("--sdbench-device=cpu", "--color=yes" if colour else "--color=no", speed={})
    assert ("\x1b[33mCannot tell: " in result.stdout.str()) is colour
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in result.outlines]
    assert [line for line in lines if line.startswith("student  ")]
    assert not [line for line in lines if line.startswith("test_speed")]
    headline = next(at for at, line in enumerate(lines) if "sdbench: claimed and measured" in line)
    assert all("benchmark" not in line for line in lines[headline + 1 :])
    assert lines[-2] == "sdbench: results written to r.json"


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
