"""Say in one sentence whether to release, and what was not measured and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_sdbench.report.cells import NETWORK, NOT_HELD
from pytest_sdbench.report.results import VERDICTS, Row

JUDGED = (*NOT_HELD, "pass")
"""Verdicts on a claim, the worst first; the others compare nothing."""
SIGNS = {
    "pass": "✓",
    "fail": "✕",
    "inconclusive": "?",
    "error": "!",
    "mismatch": "≠",
    "uncalibrated": "○",
    "unavailable": "–",  # noqa: RUF001 - an en dash, as in the tables
}
"""What tells verdicts apart without colour."""
_STATUS = {
    1: "a test that is no claim failed, records changed, or something could not be written",
    2: "the run was interrupted",
    3: "pytest itself failed",
    4: "the command line or the configuration is wrong",
    5: "no test was collected",
    6: "a card was compared with nothing, or a claim is open",
}
"""What an exit status means where no claim says it."""
_WEIGHTS = re.compile(r"--sdbench-weights \S+=")


@dataclass(frozen=True)
class Headline:
    """The verdict of a run in one sentence."""

    state: str
    """``fail``, ``inconclusive`` or ``pass``: its colour."""
    sentence: str


@dataclass(frozen=True)
class Count:
    """How many rows have a verdict."""

    verdict: str
    sign: str
    number: int


@dataclass(frozen=True)
class Gap:
    """What was not compared, for one reason."""

    verdict: str
    reason: str
    remedy: str
    checks: tuple[str, ...]
    """What it is of, a line a card."""
    number: int
    """Rows."""


def headline(rows: Sequence[Row], unasked: int = 0) -> Headline:
    """Return whether the checkpoints of some rows may be released.

    What was not measured is not taken for good. What cannot be compared, for want of a margin or since it is
    of other images, is counted beside the verdict.
    `unasked` is the number of claimed scores that are no part of the run.
    """
    count = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    judged, held = sum(count[verdict] for verdict in JUDGED), count["pass"]
    of = f"{judged} {claims_word(judged)}"
    if count["fail"]:
        more = f", and {count['error']} cannot be judged" if count["error"] else ""
        return Headline("fail", f"Do not release: {count['fail']} of {of} fell{more}")
    if count["error"]:
        return Headline("fail", f"Do not release: {count['error']} of {of} cannot be judged")
    if count["inconclusive"]:
        told = f"{count['inconclusive']} of {of} {'is' if count['inconclusive'] == 1 else 'are'}"
        return Headline("inconclusive", f"Cannot tell: {told} too close to call")
    quality = [row for row in rows if row.test == "quality"]
    # Memory is read on CUDA alone.
    looked_for = [row for row in rows if row.test in ("quality", *NETWORK) and row.test != "memory"]
    absent = sum(row.verdict == "unavailable" for row in looked_for)
    holds = f"{held} {claims_word(held)} {'holds' if held == 1 else 'hold'}"
    if not held:
        nothing = "nothing was measured"
        if any(row.measured is not None for row in rows):
            nothing = "nothing that was measured can be compared with a claim"
        return Headline("inconclusive", f"Cannot tell: {nothing}")
    if not any(row.verdict == "pass" for row in quality):
        lacks = any(row.verdict == "unavailable" for row in quality)
        why = f"no score was {'measured' if lacks else 'compared'}"
        return Headline("inconclusive", f"Cannot tell: {why}; {holds} of the networks")
    lacking = [f"{absent} {_were(absent)} not measured"] if absent else []
    if unasked:
        lacking += [f"{unasked} claimed score{'s are' if unasked > 1 else ' is'} no part of this run"]
    if lacking:
        return Headline("inconclusive", f"Cannot tell: {holds}, and {', and '.join(lacking)}")
    without_margin = (row.verdict == "uncalibrated" and row.claimed is not None for row in quality)
    others = sum(row.verdict == "mismatch" for row in quality) + sum(without_margin)
    more = f"; {others} {_were(others)} not compared" if others else ""
    return Headline("pass", f"Release: {f'all {holds}' if held > 1 else f'the one {holds[2:]}'}{more}")


def verdict_of(rows: Sequence[Row], status: int, unasked: int = 0) -> Headline:
    """Return the verdict of a run: no claim makes one good that did not end well."""
    found = (
        headline(rows, unasked) if rows else Headline("inconclusive", "Cannot tell: no claim was looked at")
    )
    if status and (not rows or found.state == "pass"):
        why = _STATUS.get(status, "see its log")
        held = "the claims hold, but " if found.state == "pass" else ""
        return Headline("inconclusive", f"Cannot tell: {held}pytest ended with status {status} ({why})")
    return found


def counts(rows: Sequence[Row]) -> tuple[Count, ...]:
    """Return how many rows have each verdict that occurs, the worst first."""
    found = [row.verdict for row in rows]
    order = dict.fromkeys([*JUDGED, *VERDICTS])
    return tuple(Count(each, SIGNS[each], found.count(each)) for each in order if each in found)


def gaps(rows: Sequence[Row]) -> tuple[Gap, ...]:
    """Return what was not compared with a claim, what has one remedy together, the largest group first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.verdict not in JUDGED:
            remedy = _WEIGHTS.sub("--sdbench-weights CARD=", str(row.extra.get("remedy", "")))
            alike = remedy or " ".join(row.reason.split())
            groups.setdefault((row.verdict, alike), []).append(row)
    found = [_gap(verdict, group) for (verdict, _), group in groups.items()]
    return tuple(sorted(found, key=lambda gap: -gap.number))


def _gap(verdict: str, rows: Sequence[Row]) -> Gap:
    remedies = list(dict.fromkeys(str(row.extra.get("remedy", "")) for row in rows))
    remedy = remedies[0] if len(remedies) == 1 else _WEIGHTS.sub("--sdbench-weights CARD=", remedies[0])
    reasons = list(dict.fromkeys(_without(row.reason, str(row.extra.get("remedy", ""))) for row in rows))
    reason = reasons[0] if len(reasons) == 1 else f"{reasons[0]} (and {len(reasons) - 1} more of the kind)"
    cards: dict[str, list[str]] = {}
    for row in rows:
        cards.setdefault(row.card, []).append(row.title)
    lines = tuple(f"{card}: {', '.join(dict.fromkeys(names))}" for card, names in cards.items())
    return Gap(verdict, reason, remedy, lines, len(rows))


def _without(reason: str, remedy: str) -> str:
    """Return a reason without its remedy, which stands apart."""
    said = " ".join(reason.split())
    return said.removesuffix(remedy).rstrip(". ") or said if remedy else said


def is_network(row: Row) -> bool:
    """Return whether a row is of a network, and not of scores."""
    return row.test in NETWORK


def claims_word(number: int) -> str:
    """Return the word for so many of them."""
    return "claim" if number == 1 else "claims"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"
