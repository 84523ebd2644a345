"""How a test ends by its verdict."""

from __future__ import annotations

import pytest

from pytest_sdbench.base.errors import CardError, Unavailable
from pytest_sdbench.gate.ending import Ending, compared, ending, outcome_of
from pytest_sdbench.gate.verdict import Outcome, Verdict


@pytest.mark.parametrize(
    ("outcome", "inconclusive", "end", "told"),
    [
        (Outcome.PASS, "fail", Ending.PASS, "pass: why"),
        (Outcome.FAIL, "xfail", Ending.FAIL, "why"),
        (Outcome.ERROR, "xfail", Ending.FAIL, "why"),
        (Outcome.INCONCLUSIVE, "fail", Ending.FAIL, "inconclusive: why"),
        (Outcome.INCONCLUSIVE, "xfail", Ending.XFAIL, "inconclusive: why"),
        (Outcome.MISMATCH, "fail", Ending.SKIP, "mismatch: why"),
        (Outcome.UNCALIBRATED, "fail", Ending.SKIP, "uncalibrated: why"),
        (Outcome.UNAVAILABLE, "xfail", Ending.SKIP, "unavailable: why"),
    ],
)
def test_only_a_pass_passes(outcome: Outcome, inconclusive: str, end: Ending, told: str) -> None:
    assert ending(Verdict(outcome, "why"), inconclusive) == (end, told)


@pytest.mark.parametrize(
    ("error", "skipped", "outcome"),
    [
        (Unavailable("no GPU"), False, Outcome.UNAVAILABLE),
        (ValueError("any"), True, Outcome.UNAVAILABLE),
        (CardError("broken"), False, Outcome.ERROR),
        (ValueError("any"), False, Outcome.ERROR),
    ],
)
def test_an_error_before_the_verdict_decides(error: Exception, skipped: bool, outcome: Outcome) -> None:
    assert outcome_of(error, skipped=skipped) is outcome


def test_what_was_skipped_compared_nothing() -> None:
    assert not compared(["mismatch", "uncalibrated", "unavailable"])
    for outcome in ("pass", "fail", "inconclusive", "error"):
        assert compared(["mismatch", outcome])
