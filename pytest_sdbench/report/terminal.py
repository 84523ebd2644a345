"""What a run prints at its end: a headline, a row a card, and one for each claim that did not pass.

With ``-v`` there is a row for every claim, exact counts, and each reason in full.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from textwrap import fill

from pytest_sdbench.base.text import clipped, columns, plain, shortened
from pytest_sdbench.cards.card import Card
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import (
    NETWORK,
    NONE,
    NOT_HELD,
    Paint,
    call_cells,
    changes,
    claimed,
    counts,
    figure,
    images,
    measured,
    of_card,
    plain_table,
    reasons,
    size,
    telling,
    unpainted,
    untested,
    verdicts,
)
from pytest_sdbench.report.html.claims import count_unasked, share_rows
from pytest_sdbench.report.html.headline import Headline, verdict_of
from pytest_sdbench.report.results import VERDICTS, Row

WIDTH, FEWEST_COLUMNS = 100, 60
MOST_REMEDIES, MOST_NOTES = 9, 5
_WORST_FIRST = ("error", "fail", "inconclusive", "pass")
"""Verdicts on a whole card."""
_LEFT_OUT = ("whole", "MACs", "memory", "latency", "U-Net", "scores")
"""Columns that a terminal has no room for, the first to go first; scores stay."""


def terminal_tables(
    rows: Sequence[Row],
    cards: Sequence[Card] = (),
    *,
    verbose: bool = False,
    width: int = WIDTH,
    paint: Paint = unpainted,
    status: int = 0,
) -> str:
    """Return the tables of a run in short, or every claim and reason where it is to be `verbose`.

    `width` is that of the terminal, `status` what pytest ended with: a run that did not end well releases
    nothing. Only with `verbose` come the images that lost most, a table a score.
    """
    if not rows:
        return ""
    width = max(width, FEWEST_COLUMNS)
    names = list(dict.fromkeys(row.card for row in rows if row.test in (*NETWORK, "quality")))
    left = count_unasked(cards, rows)
    parts = [_headline(rows, width, paint, verdict_of(share_rows(rows)[0], status, left))]
    if verbose:
        networks = [name for name in names if of_card(rows, name, *NETWORK)]
        parts += [_networks(networks, rows, paint)] if networks else []
        parts += [_claims([row for row in rows if row.test == "quality" and row.measured is not None], paint)]
        parts += [_worst(row) for row in rows if row.test == "quality" and row.extra.get("worst")]
    else:
        parts += [_overview(names, rows, width, paint)] if names else []
        parts += [_claims([row for row in rows if _is_open(row)], paint, width)]
    parts.append(_not_measured(rows, verbose, width))
    if changed := changes([row for row in rows if row.test == "quality"]):
        said = "in what the checkpoints differ from those that the figures are of:"
        parts.append(_few(said, changed, verbose, width))
    parts.append(reasons([row for row in rows if row.test == "calibration"]))
    # Failures have a section of their own in pytest's output; what was skipped has its reason here.
    skipped = [
        row for row in rows if row.verdict not in ("pass", "fail", "error") and row.test != "calibration"
    ]
    parts.append(reasons(skipped) if verbose else "")
    if broken := {row.card for row in rows if row.test not in (*NETWORK, "quality", "calibration")}:
        parts.append(f"cannot be read: {', '.join(map(plain, sorted(broken)))}")
    # Of what passed, too: prompts that were cut, images that were blacked out.
    known = {note: None for row in rows if row.verdict == "pass" for note in row.extra.get("notes", ())}
    parts.append(_few("", "\n".join(f"- note: {plain(note)}" for note in known), verbose, width))
    parts.append(_few("what the cards leave untested:", untested(cards), verbose, width))
    return "\n\n".join(part for part in parts if part)


def _headline(rows: Sequence[Row], width: int, paint: Paint, verdict: Headline) -> str:
    """Return the verdict of a run, as a page has it, what it is of, and the number of each verdict."""
    worst = [row for row in rows if row.verdict in ("fail", "error")]
    names: dict[str, list[str]] = {}
    for row in _single(worst or [row for row in rows if row.verdict == "inconclusive"]):
        names.setdefault(row.card, []).append(row.title)
    told = ", ".join(f"{card} ({', '.join(claims)})" for card, claims in names.items())
    said = paint(clipped(plain(f"{verdict.sentence}{f': {told}' if told else ''}"), width), verdict.state)
    cards = len({row.card for row in rows})
    number = f"{cards} card{'s' * (cards != 1)}: {counts(rows)}"
    return f"{said}\n{fill(number, width)}"


def _overview(names: Sequence[str], rows: Sequence[Row], width: int, paint: Paint) -> str:
    """Return a table with a row a card, with as many columns as the terminal has room for."""
    heading = ["", "card", "U-Net", "whole", "MACs", "latency", "memory", "scores"]
    table = []
    for name in names:
        mine = of_card(rows, name, *NETWORK, "quality")
        macs, _, ratio, allowed, memory = call_cells(rows, name)
        latency = ratio if NONE in (ratio, allowed) else f"{ratio} (max {allowed})"
        sizes = [_millions(of_card(rows, name, "size"), part) for part in ("unet", "whole")]
        verdict = next((each for each in _WORST_FIRST if any(row.verdict == each for row in mine)), NONE)
        table.append([verdict, name, *sizes, macs, latency, memory, _scores(mine, figures=True)])
    briefly = [[*line[:-1], _scores(of_card(rows, line[1], "quality"), figures=False)] for line in table]
    shown = ""
    for lines, without in (
        *((table, _LEFT_OUT[:many]) for many in range(3)),
        *((briefly, _LEFT_OUT[:many]) for many in range(len(_LEFT_OUT))),
    ):
        shown = _fitted(heading, lines, "llrrrrrl", without, paint)
        if _columns(shown) <= width:
            return shown
    # A name may be longer than any terminal is wide.
    longest = max(columns(plain(line[1])) for line in table)
    most = max(longest - _columns(shown) + width, 8)
    cut = [[line[0], shortened(plain(line[1]), most), *line[2:]] for line in briefly]
    return _fitted(heading, cut, "llrrrrrl", _LEFT_OUT[:-1], paint)


def _fitted(
    heading: Sequence[str], lines: Sequence[Sequence[str]], align: str, without: Sequence[str], paint: Paint
) -> str:
    """Return a table without some of its columns, and without those in which there is nothing."""
    kept = [
        at
        for at, word in enumerate(heading)
        if at < 2 or (word not in without and any(line[at] not in (NONE, "") for line in lines))
    ]
    cells = [[line[at] for at in kept] for line in lines]
    return plain_table([heading[at] for at in kept], cells, "".join(align[at] for at in kept), paint)


def _columns(text: str) -> int:
    """Return the columns of the widest line of a text, whatever its colours."""
    return max(columns(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in text.splitlines())


def _millions(rows: Sequence[Row], component: str) -> str:
    """Return a counted component in short."""
    row = telling(row for row in rows if row.name == component)
    count = None if row is None else row.measured
    if count is None or count < 1e6:
        return figure(count)
    return f"{count / 1e6:,.{2 if count < 1e7 else 1 if count < 1e8 else 0}f} M"


def _scores(rows: Sequence[Row], *, figures: bool) -> str:
    """Return what came of a card's scores: those that passed as figures, or how many did."""
    scores = _single([row for row in rows if row.test == "quality"])
    looked_at = [row for row in scores if row.measured is not None]
    passed = [row for row in looked_at if row.verdict == "pass"] if figures else []
    number = Counter(row.verdict for row in looked_at if row not in passed)
    rest = [f"{number[verdict]} {verdict}" for verdict in VERDICTS if number[verdict]]
    rest += [f"{len(scores) - len(looked_at)} not measured"] if len(scores) > len(looked_at) else []
    return "; ".join(", ".join(words) for words in ([*map(_labelled, passed)], rest) if words)


def _labelled(row: Row) -> str:
    metric = METRICS.get(row.metric)
    if metric is None:
        return f"{row.metric or row.name} {measured(row).partition(' ±')[0]}"
    ahead = " (predicted)" if "predicted_for" in row.extra else ""
    return f"{metric.label} {figure(row.measured, f'.{metric.decimals}f')}{ahead}"


def _is_open(row: Row) -> bool:
    """Return whether a row is of a claim that was looked at and did not pass."""
    judged = row.verdict in NOT_HELD
    return row.test in (*NETWORK, "quality") and (
        judged or (row.verdict != "pass" and row.measured is not None)
    )


def _paired(rows: Sequence[Row]) -> list[tuple[Row, Row | None]]:
    """Return rows, each published figure with its record where the two agree to the printed digits."""
    left, twins = share_rows(rows)
    return [(row, twins.get(row.node_id)) for row in left]


def _claims(rows: Sequence[Row], paint: Paint, width: int | None = None) -> str:
    """Return a table with a row a claim; what a record has beyond a published figure stands beside it."""
    lines = []
    for row, record in _paired(rows):
        network = row.test in NETWORK
        said = f"{row.test} {row.name}".strip() if network else row.name or row.metric
        said += row.variant
        kept = row if row.kind == "recorded" else record
        first = NONE if row.kind == "recorded" else _claimed_cell(row)
        second = NONE if kept is None else claimed(kept)
        found = (
            figure(row.measured, ",.0f" if (row.measured or 0) >= 1000 else ".3f")
            if network
            else measured(row)
        )
        lines.append([row.verdict, row.card, said, first, second, found, images(row)])
    if not lines:
        return ""
    heading, align, whole = ["", "card", "claim", "claimed", "recorded", "measured", "images"], "lllrrrr", ""
    for without in ((), ("images",), ("images", "recorded")):
        whole = _fitted(heading, lines, align, without, paint)
        if width is None or _columns(whole) <= width:
            return whole
    hidden = ["images", "recorded"]
    for at, least in ((2, 16), (1, 12), (2, 8), (1, 8)):
        most = max(columns(plain(line[at])) for line in lines) - _columns(whole) + (width or 0)
        lines = [[*line[:at], _cut(line[at], max(most, least), at == 2), *line[at + 1 :]] for line in lines]
        whole = _fitted(heading, lines, align, hidden, paint)
        if width is None or _columns(whole) <= width:
            break
        if (at, least) == (1, 12):
            hidden.append("claimed")
            whole = _fitted(heading, lines, align, hidden, paint)
    return whole


def _cut(text: str, most: int, from_end: bool) -> str:
    """Return the beginning of a text that is too long, or its end: claims of one protocol begin alike."""
    said = plain(text)
    return clipped(said[::-1], most)[::-1] if from_end else clipped(said, most)


def _claimed_cell(row: Row) -> str:
    if row.test in NETWORK and not row.claimed_text:
        return figure(row.claimed, ",.0f" if (row.claimed or 0) >= 1000 else ".3f")
    if row.test == "size":
        return figure(row.claimed)
    return claimed(row) if row.claimed is not None or row.claimed_text else NONE


def _not_measured(rows: Sequence[Row], verbose: bool, width: int) -> str:
    """Return what was not measured, grouped by what would help; with `verbose` the reasons follow in full."""
    rest = [row for row in rows if row.measured is None and row.test in (*NETWORK, "quality")]
    rest = _single([row for row in rest if row.verdict not in ("fail", "error", "pass")])
    if not rest:
        return ""
    heading = f"not measured: {_number(rest)} ({counts(rest)})"
    if verbose:
        return heading
    groups: dict[str, list[Row]] = {}
    for row in rest:
        cause, remedy = _cause_and_remedy(row)
        groups.setdefault(remedy or cause, []).append(row)
    some = sorted(groups.values(), key=len, reverse=True)
    most = MOST_REMEDIES if len(some) <= MOST_REMEDIES else MOST_REMEDIES - 1
    lines = []
    for group in some[:most]:
        found = dict.fromkeys(_cause_and_remedy(row) for row in group)
        cause, remedy = next(iter(found))
        places = len(dict.fromkeys(row.reason.partition(": ")[0] for row in group)) - 1
        lines.append(
            (f"- {_number(group)}", remedy, cause + (f" and {places} more" if remedy and places else ""))
        )
    if len(some) > most:
        left = [row for group in some[most:] for row in group]
        lines.append((f"- {_number(left)}", "-v", f"for {len(some) - most} other reasons"))
    first, second = (max(columns(line[at]) for line in lines) for at in (0, 1))
    told = [
        f"{number}{' ' * (first - columns(number))}  "
        + (f"{remedy}{' ' * (second - columns(remedy))}  {cause}" if remedy else cause)
        for number, remedy, cause in lines
    ]
    return "\n".join([heading, *(clipped(line, min(width, WIDTH)) for line in told)])


def _single(rows: Sequence[Row]) -> list[Row]:
    """Return rows with one of a published figure and its record that share a row, or were not measured."""
    found: dict[tuple[str, ...], Row] = {}
    for row, _ in _paired(rows):
        name = row.name if row.measured is not None else row.name.removesuffix("-recorded")
        found.setdefault((row.card, row.test, row.verdict, name, row.variant), row)
    return list(found.values())


def _number(rows: Sequence[Row]) -> str:
    """Return how many checks of how many cards these are."""
    word = "score" if all(row.test == "quality" for row in rows) else "check"
    of = len({row.card for row in rows})
    return f"{len(rows)} {word}{'s' * (len(rows) != 1)} of {of} card{'s' * (of != 1)}"


_OPTION = re.compile(r"(?<![\w-])--?[a-z]")


def _cause_and_remedy(row: Row) -> tuple[str, str]:
    """Return the parts of a reason: what lacks and where, and the first thing to do about it, in short.

    What else does not compare has a remedy where it names an option.
    """
    reason = plain(" ".join(row.reason.split())) or row.verdict
    said, _, last = reason.rpartition(". ")
    remedy = re.split(r"[,;] ", plain(str(row.extra.get("remedy") or last)))[0]
    if not said or not (_OPTION.search(remedy) or row.verdict == "unavailable"):
        return reason.removeprefix("not comparable: "), ""
    option = remedy.partition(": ")[2]
    place, _, cause = said.partition(": ")
    if not cause or " " in place:
        place, cause = "", said
    # What the images take, and how many this run may make, stand in the whole reason.
    cause = re.sub(r" \(.*?\)|, and this run makes .*", "", cause)
    return f"{cause}: {place}" if place else cause, option if option.startswith("-") else remedy


def _few(heading: str, lines: str, verbose: bool, width: int) -> str:
    """Return a list under a heading; of a long one the beginning, unless it is to be `verbose`."""
    found = lines.split("\n") if lines else []
    if not verbose and len(found) > MOST_NOTES:
        found = [*found[: MOST_NOTES - 1], f"- {len(found) - MOST_NOTES + 1} more: -v"]
    shown = found if verbose else [clipped(line, width) for line in found]
    return "\n".join([*([heading] if heading and found else []), *shown])


def _worst(row: Row) -> str:
    """Return the images that lost most, each with what the reference's has."""
    decimals = METRICS[row.metric].decimals + 1 if row.metric in METRICS else 4
    lines = [
        [
            str(each["index"]),
            *(figure(each[key], f".{decimals}f") for key in ("value", "reference")),
            each["prompt"],
        ]
        for each in row.extra["worst"]
    ]
    heading = ["image", "here", "reference", "prompt"]
    return f"worst images of {plain(row.card)}, {plain(row.name)}:\n{plain_table(heading, lines, 'rrrl')}"


def _networks(names: Sequence[str], rows: Sequence[Row], paint: Paint) -> str:
    heading = ["card", "U-Net", "whole", "MACs", "s/call", "ratio", "memory", "network"]
    table = []
    for name in names:
        macs, seconds, ratio, allowed, memory = call_cells(rows, name)
        if NONE not in (ratio, allowed):
            ratio = f"{ratio} (max {allowed})"
        sizes = size(rows, name, "unet"), size(rows, name, "whole")
        verdict = verdicts(of_card(rows, name, *NETWORK))
        table.append([name, *sizes, macs, seconds, ratio, memory, verdict])
    memory_at = heading.index("memory")
    if all(line[memory_at] == NONE for line in table):
        # Memory is read on CUDA alone: elsewhere the column would be empty.
        for line in (heading, *table):
            del line[memory_at]
    return plain_table(heading, table, "l" + "r" * (len(heading) - 2) + "l", paint)
