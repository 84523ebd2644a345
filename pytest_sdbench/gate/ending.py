"""Say what an outcome means for the test that reports it, and for the run."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.gate.verdict import Outcome, Verdict


class Ending(StrEnum):
    """How a test ends."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"
    XFAIL = "xfail"


def ending(verdict: Verdict, inconclusive: str = "fail") -> tuple[Ending, str]:
    """Return how a test with this verdict ends, and why. A skip is never a pass.

    `inconclusive` says what becomes of a test that cannot tell: ``fail`` or ``xfail``.
    """
    if verdict.outcome in (Outcome.FAIL, Outcome.ERROR):
        return Ending.FAIL, verdict.reason
    told = f"{verdict.outcome}: {verdict.reason}"
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return Ending(inconclusive), told
    return (Ending.PASS if verdict.outcome is Outcome.PASS else Ending.SKIP), told


def outcome_of(error: BaseException, *, skipped: bool) -> Outcome:
    """Return the outcome of a test that ended by an error before it had a verdict."""
    return Outcome.UNAVAILABLE if skipped or isinstance(error, Unavailable) else Outcome.ERROR


def compared(outcomes: Iterable[str]) -> bool:
    """Return whether any of these tests compared a checkpoint with its claim, or failed to."""
    return not {Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.ERROR}.isdisjoint(outcomes)
