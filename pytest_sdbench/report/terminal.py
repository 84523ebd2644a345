"""The tables that a run prints at its end: networks, one line a card; scores, one line a claim."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import Card
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import (
    NETWORK,
    NONE,
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
    untested,
    verdicts,
)
from pytest_sdbench.report.results import Row


def terminal_tables(rows: Sequence[Row], cards: Sequence[Card] = (), *, worst: bool = False) -> str:
    """Return the tables of a run in short, and the reasons of what was neither passed nor failed.

    With `worst` come the images that lost most, a table a score.
    """
    names = [name for name in dict.fromkeys(row.card for row in rows) if of_card(rows, name, *NETWORK)]
    parts = [_networks(names, rows)] if names else []
    quality = [row for row in rows if row.test == "quality"]
    scores = [
        [row.card, row.name or row.metric, claimed(row), measured(row), images(row), row.verdict]
        for row in quality
        if row.measured is not None
    ]
    if scores:
        heading = ["card", "claim", "claimed", "measured", "N", "verdict"]
        parts.append(plain_table(heading, scores, "llrrrl"))
    if worst:
        parts += [_worst(row) for row in quality if row.extra.get("worst")]
    if rest := [row for row in quality if row.measured is None]:
        of = len({row.card for row in rest})
        many = f"{len(rest)} score{'s' * (len(rest) != 1)} of {of} card{'s' * (of != 1)}"
        parts.append(f"not measured: {many} ({counts(rest)})")
    if changed := changes(quality):
        parts.append(f"in what the checkpoints differ from those that the figures are of:\n{changed}")
    calibration = [row for row in rows if row.test == "calibration"]
    parts.append(reasons(calibration))
    if broken := {row.card for row in rows if row.test not in (*NETWORK, "quality", "calibration")}:
        parts.append(f"cannot be read: {', '.join(map(plain, sorted(broken)))}")
    # Failures have a section of their own in pytest's output; what was skipped has its reason here.
    skipped = [row for row in rows if row.verdict not in ("pass", "fail", "error") and row not in calibration]
    parts.append(reasons(skipped))
    # Of what passed, too: prompts that were cut, images that were blacked out.
    known = {note: None for row in rows if row.verdict == "pass" for note in row.extra.get("notes", ())}
    parts.append("\n".join(f"- note: {plain(note)}" for note in known))
    if notes := untested(cards):
        parts.append(f"what the cards leave untested:\n{notes}")
    return "\n\n".join(part for part in parts if part)


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


def _networks(names: Sequence[str], rows: Sequence[Row]) -> str:
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
    return plain_table(heading, table, "l" + "r" * (len(heading) - 2) + "l")
