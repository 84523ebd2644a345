"""GitHub markdown of a run for people: what was measured beside what was claimed, with every reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytest_sdbench.cards.card import Card, Claim
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import (
    COMPONENTS,
    NETWORK,
    NONE,
    bold,
    call_cells,
    claimed,
    counts,
    decimals,
    figure,
    images,
    in_order,
    markdown,
    measured,
    of_card,
    reasons,
    size,
    table,
    titles,
    untested,
    verdicts,
    with_error,
)
from pytest_sdbench.report.html.claims import count_unasked, share_rows
from pytest_sdbench.report.html.headline import verdict_of
from pytest_sdbench.report.results import Row


def results_markdown(
    cards: Sequence[Card],
    rows: Sequence[Row],
    environment: Mapping[str, Any] | None = None,
    status: int | None = None,
) -> str:
    """Return the report of a run: a summary, the networks of all cards, and each card's claims beside what
    was measured, with the reasons of every verdict. With the exit status of pytest it begins with what came
    of it all."""
    shown = titles(cards)
    order = [card.name for card in in_order(cards)]
    order += [name for name in dict.fromkeys(row.card for row in rows) if name not in shown]
    count = len({row.card for row in rows})
    summary = f"{len(rows)} checks of {count} card{'s' * (count != 1)}: {counts(rows) or 'none'}."
    parts = ["# Results", summary]
    if status is not None:
        state = verdict_of(share_rows(rows)[0], status, count_unasked(cards, rows))
        parts.insert(1, f"**{markdown(state.sentence)}**")
    if environment:
        parts.append(_environment(environment))
    parts += _networks(order, shown, rows)
    claims = {(card.name, claim.id): claim for card in cards for claim in card.claims}
    labels = {key: claim.label for key, claim in claims.items()}
    scores = [_with_claim(row, claims.get((row.card, row.name))) for row in rows if row.test == "quality"]
    for name in order:
        mine = [row for row in scores if row.card == name and row.measured is not None]
        if mine:
            parts += [
                f"## Quality: {markdown(shown.get(name, name))}",
                _scores(mine, labels),
                reasons(mine, markdown),
            ]
    open_claims = [row for name in order for row in scores if row.card == name and row.measured is None]
    if open_claims:
        parts += [
            "## Claims that this run did not measure",
            _not_measured(open_claims, shown, labels),
            reasons(open_claims, markdown),
        ]
    calibrated = [row for row in rows if row.test == "calibration"]
    if calibrated:
        parts += ["## Calibration", reasons(calibrated, markdown)]
    others = [row for row in rows if row.test not in (*NETWORK, "quality", "calibration")]
    if others:
        parts += ["## Cards that cannot be read", reasons(others, markdown)]
    if notes := untested(cards, markdown):
        parts += ["## What the cards leave untested", notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def _environment(environment: Mapping[str, Any]) -> str:
    flat: dict[str, Any] = {}
    for key, value in environment.items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    return "Measured with " + markdown(", ".join(f"{key} {value}" for key, value in flat.items())) + "."


def _networks(order: Sequence[str], shown: Mapping[str, str], rows: Sequence[Row]) -> list[str]:
    parts: list[str] = []
    if counted := [name for name in order if of_card(rows, name, "size")]:
        sizes = [
            [shown.get(name, name), *(size(rows, name, part, bold) for part in COMPONENTS)]
            for name in counted
        ]
        parts += [
            "## Parameters",
            "Counted exactly; in brackets what the source prints, which is rounded and only shown.",
            table(["Model", *COMPONENTS.values()], sizes),
            reasons([row for row in rows if row.test == "size" and row.verdict != "pass"], markdown),
        ]
    calls = NETWORK[1:]
    if timed := [name for name in order if of_card(rows, name, *calls)]:
        cells = [
            [shown.get(name, name), *call_cells(rows, name), verdicts(of_card(rows, name, *calls))]
            for name in timed
        ]
        heading = ["Model", "MACs ↓", "s/call ↓", "Latency ratio ↓", "Allowed", "Peak memory ↓", "Verdict"]
        parts += [
            "## Compute, speed and memory of one U-Net call",
            "The latency ratio is relative to the baseline's network, measured interleaved in the same run.",
            table(heading, cells, left=(0, 6)),
            reasons([row for row in rows if row.test in calls and row.verdict != "pass"], markdown),
        ]
    return parts


def _scores(rows: Sequence[Row], labels: Mapping[tuple[str, str], str]) -> str:
    lines = [
        [
            _metric(row, labels),
            _protocol(row),
            row.kind or NONE,
            claimed(row),
            measured(row),
            images(row),
            figure(row.margin, "g"),
            bold(row.verdict) if row.verdict in ("fail", "error") else row.verdict,
        ]
        for row in rows
    ]
    heading = ["Metric", "Protocol", "Claim", "Claimed", "Measured", "N", "Margin", "Verdict"]
    baselines = dict.fromkeys(row.extra["beside"]["card"] for row in rows if "beside" in row.extra)
    if baselines:
        # Prompt by prompt: far more certain than the difference of the two scores looks.
        heading.insert(5, f"Less {', '.join(baselines)}")
        for cells, row in zip(lines, rows, strict=True):
            cells.insert(5, _beside(row))
    return table(heading, lines, left=(0, 1, 2, len(heading) - 1))


def _not_measured(
    rows: Sequence[Row], shown: Mapping[str, str], labels: Mapping[tuple[str, str], str]
) -> str:
    lines = [
        [shown.get(row.card, row.card), _metric(row, labels), _protocol(row), claimed(row), row.verdict]
        for row in rows
    ]
    return table(["Model", "Metric", "Protocol", "Claimed", "Verdict"], lines, left=(0, 1, 2, 4))


def _with_claim(row: Row, claim: Claim | None) -> Row:
    """Return a row with what its card claims: a check that never ran could not file it."""
    if claim is None or row.claimed is not None:
        return row
    return replace(
        row,
        metric=claim.metric,
        protocol=claim.gate_protocol or claim.protocol,
        claimed=claim.value,
        claimed_text=claim.text,
        kind=claim.kind,
    )


def _metric(row: Row, labels: Mapping[tuple[str, str], str]) -> str:
    metric = METRICS.get(row.metric)
    if metric is None:
        return f"{row.name}{row.variant}" or NONE
    return f"{labels.get((row.card, row.name), metric.label)} {metric.arrow}{row.variant}"


def _protocol(row: Row) -> str:
    assumed = row.name.startswith("unstated") and row.protocol not in ("", "unstated")
    return f"{row.protocol} (assumed)" if assumed else row.protocol or NONE


def _beside(row: Row) -> str:
    """Return a score less the baseline's."""
    found = row.extra.get("beside")
    if found is None:
        return NONE
    return with_error(found["difference"], found["standard_error"], decimals(row) + 1, sign="+")
