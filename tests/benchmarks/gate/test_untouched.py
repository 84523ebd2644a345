"""A trial of an untouched checkpoint passes if every item does, and none is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gate import untouched
from benchmarks.gate.untouched import BATCHES, TRIALS, WORKERS, counted, passes, report
from benchmarks.report import load
from pytest_sdbench.cards.card import Card


def junit(*inside: str) -> str:
    cases = "".join(f'<testcase name="t{k}">{each}</testcase>' for k, each in enumerate(inside))
    return f'<testsuites><testsuite name="pytest">{cases}</testsuite></testsuites>'


@pytest.mark.parametrize(
    ("inside", "passed", "failed", "skipped"),
    [
        (("", "<properties/>"), 2, 0, 0),
        (("", '<failure message="m"/>'), 1, 1, 0),
        (("", '<error message="m"/>'), 1, 1, 0),
        (("", '<skipped type="pytest.skip"/>'), 1, 0, 1),
        ((), 0, 0, 0),
    ],
)
def test_items_are_counted(inside: tuple[str, ...], passed: int, failed: int, skipped: int) -> None:
    found = counted(junit(*inside))
    assert found == {"passed": passed, "failed": failed, "skipped": skipped}
    assert passes(found) == (failed == skipped == 0 and passed > 0)


def test_twenty_trials_differ_in_batches_and_workers_and_the_report_counts_them() -> None:
    assert len(set(TRIALS)) == len(BATCHES) * len(WORKERS) == 20
    rows = [
        {
            "card": "c",
            "protocol": "p",
            "batch": batch,
            "workers": workers,
            "passed": 7,
            "failed": int(batch == 4),
            "skipped": 0,
        }
        for batch, workers in TRIALS
    ]
    text = report({"machine": "m", "date": "d", "rows": rows})
    assert "| c      | p          | 20       | 16       |" in text


def test_trials_of_other_cards_and_protocols_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep, tried = tmp_path / "untouched", []

    def trial(card: Card, *about: object) -> dict[str, int]:
        tried.append(card.name)
        return {"passed": 1, "failed": 0, "skipped": 0}

    monkeypatch.setattr(untouched, "trial", trial)
    for name, protocol in (
        ("scenes-sd", "scenes-quick"),
        ("scenes-tiny", "scenes-5k"),
        ("scenes-sd", "scenes-5k"),
    ):
        untouched.measure([name], protocol, keep)
    assert len(tried) == len(load(keep)["rows"]) == 3 * len(TRIALS)
    untouched.measure(["scenes-tiny", "scenes-sd"], "scenes-5k", keep)
    assert len(tried) == len(load(keep)["rows"]) == 3 * len(TRIALS), "what was tried is not tried again"
