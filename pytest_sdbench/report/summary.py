"""GitHub Markdown of a run in short: the verdict, what fell, the worst pair, what was not measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pytest_sdbench.cards.card import Card
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import Markup, bold, code, decimals, markdown, table
from pytest_sdbench.report.html.claims import (
    ClaimLine,
    claim_lines,
    count_unasked,
    labels_of,
    rank,
    share_rows,
)
from pytest_sdbench.report.html.headline import SIGNS, Headline, claims_word, counts, gaps, verdict_of
from pytest_sdbench.report.results import Row

SUMMARY = 1 << 20
"""Bytes of a step's summary: GitHub shows nothing of a larger one."""
COMMENT = 65_536
"""Characters of a comment on GitHub."""
_LENGTHS = (1000, 100, 20, 5, 0)
"""Rows of a table, and groups of what was not measured: as many as there is room for."""
_LIGHTS = {"fail": "❌", "inconclusive": "⚠️", "pass": "✅"}
"""What a reader sees first."""
_NAMED = 4
"""Cards that the counts name."""


def summary(
    rows: Sequence[Row],
    cards: Sequence[Card] = (),
    *,
    status: int = 0,
    instead: Mapping[str, str] | None = None,
    left: int | None = None,
    ending: Sequence[str] = (),
    room: int = COMMENT,
) -> str:
    """Return what came of a run in at most so many bytes of UTF-8: its tables lose rows until they fit.

    `status` is the exit status of pytest; `instead` has by card the checkpoint that was judged in the place
    of its own, `left` the number of claimed scores that are no part of the run, where `cards` do not tell.
    The `ending` is Markdown: where the report is.
    """
    if left is None:
        left = count_unasked(cards, rows)
    text, state = "", verdict_of(share_rows(rows)[0], status, left)
    for most in _LENGTHS:
        text = "\n\n".join([*_parts(rows, cards, state, instead or {}, most), *ending]) + "\n"
        if len(text.encode("utf-8", "replace")) <= room:
            return text
    return text.encode("utf-8", "replace")[: max(room, 0)].decode("utf-8", "ignore")


def _parts(
    rows: Sequence[Row], cards: Sequence[Card], state: Headline, instead: Mapping[str, str], most: int
) -> list[str]:
    rows, twins = share_rows(rows)
    lines = claim_lines(rows, twins, labels_of(cards))
    several = len({row.card for row in rows}) > 1
    open_ones = [line for line in lines if line.is_open]
    parts = [f"### {_LIGHTS[state.state]} {markdown(state.sentence)}"]
    parts.append(_counts(rows, instead))
    parts += _claims(open_ones, most, several)
    parts += _worst_pair(rows)
    parts += _reasons(open_ones, most)
    # What was measured and not compared has its figures in its reason, below.
    if held := [line for line in lines if line.verdict == "pass"]:
        parts += _folded(f"{len(held)} {claims_word(len(held))} held", _claims(held, most, several))
    if missing := gaps(rows):
        many = sum(gap.number for gap in missing)
        said = [
            f"- {markdown(SIGNS[gap.verdict])} {gap.number} {gap.verdict}: {markdown(gap.reason)}"
            + (f" → {markdown(gap.remedy)}" if gap.remedy else "")
            + f" ({markdown('; '.join(gap.checks[:4]))}{' …' if len(gap.checks) > 4 else ''})"
            for gap in missing
        ]
        parts += _folded(f"{many} not compared", ["\n".join(_first(said, most, "groups"))])
    return [part for part in parts if part]


def _counts(rows: Sequence[Row], instead: Mapping[str, str]) -> str:
    """Return which cards a run is of, what was judged in their place, and how many rows have each verdict."""
    names = list(dict.fromkeys(row.card for row in rows))
    told = [bold(card) + (f" on {code(instead[card])}" if card in instead else "") for card in names[:_NAMED]]
    told += [f"{len(names) - _NAMED} more cards"] if len(names) > _NAMED else []
    shown = " · ".join(f"{markdown(each.sign)} {each.number} {each.verdict}" for each in counts(rows))
    return f"{', '.join(told)}: {shown}" if rows else ""


def _claims(lines: Sequence[ClaimLine], most: int, several: bool) -> list[str]:
    """Return a table of claims; none where there are none."""
    if not lines or not most:
        return [f"{len(lines)} {claims_word(len(lines))}: see the report."] if lines else []
    kept = lines[:most]
    heading = ["", *(["Card"] if several else []), "Claim", "Claimed", "Measured", "Difference"]
    cells = [
        [
            markdown(line.sign),
            *([line.card] if several else []),
            _two(bold(line.title), line.under),
            line.claimed,
            _two(markdown(line.measured), f"{line.images} images" if line.images else ""),
            _two(markdown(line.difference), line.bound),
        ]
        for line in kept
    ]
    shown = [table(heading, cells, left=(0, 1, 2) if several else (0, 1))]
    if len(lines) > most:
        shown.append(f"{len(lines) - most} more are in the report.")
    return shown


def _two(first: Markup, second: str) -> Markup:
    """Return a cell of two lines, or of one."""
    # A figure and its error, a name and its arrow stand on one line.
    kept = re.sub(r" (?=[±↑↓])|(?<=±) ", "&nbsp;", first)
    return Markup("<br>".join(part for part in (kept, markdown(second)) if part))


def _worst_pair(rows: Sequence[Row]) -> list[str]:
    """Return the picture that lost most of the score that fell furthest, beside what it was compared with."""
    open_ones = (row for row in rows if row.verdict in ("fail", "inconclusive") and row.extra.get("worst"))
    for row in sorted(open_ones, key=rank):
        pair, digits = row.extra["worst"][0], decimals(row)
        label = METRICS[row.metric].label if row.metric in METRICS else row.metric
        beside = pair.get("reference")
        than = "" if beside is None else f", and {beside:.{digits}f} for the picture that it is compared with"
        said = f"{label} {pair['value']:.{digits}f}{than}"
        what = "picture" if beside is None else "pair"
        return [f"**Worst {what}:** image {pair['index']:,}, {_quote(pair['prompt'])}: {markdown(said)}"]
    return []


def _reasons(lines: Sequence[ClaimLine], most: int) -> list[str]:
    """Return the printed reasons of what fell, each once."""
    found: dict[str, ClaimLine] = {}
    for line in lines:
        found.setdefault(line.reason, line)
    said = [f"- {markdown(line.sign)} {markdown(reason)}" for reason, line in found.items()]
    return _folded(f"Why, in full ({len(said)})", ["\n".join(_first(said, most, "reasons"))]) if said else []


def _first(lines: Sequence[str], most: int, what: str) -> Iterable[str]:
    kept = lines[:most]
    return [*kept, f"- {len(lines) - most} more {what} are in the report"] if len(lines) > most else kept


def _folded(title: str, parts: Sequence[str]) -> list[str]:
    """Return what a reader opens."""
    # A blank line on either side makes GitHub read it as Markdown.
    return [f"<details><summary>{markdown(title)}</summary>", *parts, "</details>"]


def _quote(text: str) -> str:
    return f"“{markdown(text)}”"
