"""GitHub markdown for people: what was published, and what was measured beside it.

Every table is made of cells of text: a figure keeps the digits that its source printed, a missing one is an
en dash, and an arrow in the heading points to the better side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from tabulate import tabulate

from pytest_sdbench.cards.card import Card, Claim
from pytest_sdbench.metrics.names import METRICS
from pytest_sdbench.report.results import VERDICTS, Row

NONE = "–"  # noqa: RUF001 - an en dash is what a table has where there is nothing
COMPONENTS = {
    "unet": "U-Net",
    "text_encoder": "Text encoder",
    "image_decoder": "Image decoder",
    "whole": "Whole",
}
_NETWORK = ("size", "compute", "speed", "memory")


# --- what was published -----------------------------------------------------------------------------------


def published_tables(cards: Sequence[Card]) -> str:
    """Return one table per source of published figures, to the digit: scores, then sizes.

    A card belongs to the table of each source that its claims (or ``sdbench.sources.size``) name; each
    teacher stands before its students, larger networks before smaller ones. A source that calls figures of
    two protocols by one name gets a table for each protocol.
    """
    groups: dict[str, list[Card]] = {}
    links: dict[str, str] = {}
    for card in _in_order(cards):
        for name, url in _sources(card):
            group = groups.setdefault(name, [])
            if card not in group:
                group.append(card)
            if url:
                links[name] = url
    parts = []
    for name, group in groups.items():
        heading = f"[{name}]({links[name]})" if name in links else name or "Published without a source"
        for protocol in _kept_apart(name, group):
            some = [card for card in group if protocol is None or _claims_of(name, card, protocol)]
            title = heading if protocol is None else f"{heading}: {protocol}"
            parts.append(f"### {title}\n\n{_published_table(name, some, protocol)}\n")
    return "\n".join(parts) or "No figures are published in these cards.\n"


def _sources(card: Card) -> list[tuple[str, str | None]]:
    found = [
        (claim.source.name, claim.source.url) if claim.source else ("", None) for claim in _published(card)
    ]
    if "size" in card.sources:
        found.append((card.sources["size"], None))
    return found


def _published(card: Card) -> list[Claim]:
    return [claim for claim in card.claims if claim.kind == "published"]


def _claims_of(source: str, card: Card, protocol: str | None = None) -> list[Claim]:
    return [
        claim
        for claim in _published(card)
        if (claim.source.name if claim.source else "") == source and protocol in (None, claim.protocol)
    ]


def _kept_apart(source: str, cards: Sequence[Card]) -> list[str | None]:
    """Return the protocols that need a table of their own, or None for one table."""
    claims = [claim for card in cards for claim in _claims_of(source, card)]
    columns = {(claim.metric, claim.protocol, claim.n): claim.label for claim in claims}
    if len(set(columns.values())) == len(columns):
        return [None]
    return list(dict.fromkeys(claim.protocol for claim in claims))


def _published_table(source: str, cards: Sequence[Card], protocol: str | None) -> str:
    columns: dict[tuple[str, str, int | None], str] = {}
    figures: dict[tuple[str, tuple[str, str, int | None]], str] = {}
    for card in cards:
        for claim in _claims_of(source, card, protocol):
            column = (claim.metric, claim.protocol, claim.n)
            columns.setdefault(column, f"{claim.label} {METRICS[claim.metric].arrow}")
            figures[card.name, column] = claim.text
    sizes = [name for name in COMPONENTS if any(_published_size(card, name) for card in cards)]
    rows = [
        [
            card.title,
            *(figures.get((card.name, column), NONE) for column in columns),
            *(_published_size(card, name) or NONE for name in sizes),
        ]
        for card in cards
    ]
    return _table(["Model", *columns.values(), *(COMPONENTS[name] for name in sizes)], rows)


def _published_size(card: Card, component: str) -> str:
    size = card.size.get(component)
    return billions(size.published_text) if size and size.published_text else ""


def _in_order(cards: Iterable[Card]) -> list[Card]:
    """Return each teacher before its students, and among equals larger before smaller, then by name."""
    known = {card.name: card for card in cards}

    def family(card: Card, seen: frozenset[str]) -> list[Card]:
        students = [
            other
            for other in known.values()
            if other.base == card.name and other.name not in seen | {card.name}
        ]
        below = [family(other, seen | {card.name}) for other in sorted(students, key=_by_size)]
        return [card, *(member for members in below for member in members)]

    first = [card for card in known.values() if card.base not in known]
    ordered = [member for card in sorted(first, key=_by_size) for member in family(card, frozenset())]
    return ordered + [card for card in known.values() if card not in ordered]


def _by_size(card: Card) -> tuple[int, str]:
    unet = card.size.get("unet")
    return -(unet.exact or 0) if unet else 0, card.name


# --- what was measured ------------------------------------------------------------------------------------


def results_markdown(
    cards: Sequence[Card], rows: Sequence[Row], environment: Mapping[str, Any] | None = None
) -> str:
    """Return the report of a run: a summary, the networks of all cards, and each card's claims beside what
    was measured, with the reasons of every verdict."""
    titles = {card.name: card.title for card in cards}
    order = [card.name for card in _in_order(cards)]
    order += [name for name in dict.fromkeys(row.card for row in rows) if name not in titles]
    parts = ["# Results", _summary(rows)]
    if environment:
        parts.append(_environment(environment))
    parts += _networks(order, titles, rows)
    claims = {(card.name, claim.id): claim for card in cards for claim in card.claims}
    labels = {key: claim.label for key, claim in claims.items()}
    scores = [_with_claim(row, claims.get((row.card, row.name))) for row in rows if row.test == "quality"]
    measured = [row for row in scores if row.measured is not None]
    for name in order:
        mine = [row for row in measured if row.card == name]
        if mine:
            parts += [f"## Quality: {titles.get(name, name)}", _scores(mine, labels), _reasons(mine)]
    open_claims = [row for name in order for row in scores if row.card == name and row.measured is None]
    if open_claims:
        parts += [
            "## Claims that this run did not measure",
            _not_measured(open_claims, titles, labels),
            _reasons(open_claims),
        ]
    calibrated = [row for row in rows if row.test == "calibration"]
    if calibrated:
        parts += ["## Calibration", _reasons(calibrated)]
    others = [row for row in rows if row.test not in (*_NETWORK, "quality", "calibration")]
    if others:
        parts += ["## Cards that cannot be read", _reasons(others)]
    if notes := _untested(cards):
        parts += ["## What the cards leave untested", notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def terminal_tables(rows: Sequence[Row], cards: Sequence[Card] = ()) -> str:
    """Return the same in short for a terminal: networks, one line a card; scores, one line a claim."""
    names = list(dict.fromkeys(row.card for row in rows))
    parts = []
    network = [[name, *_network_cells(name, rows)] for name in names if _of(rows, name, *_NETWORK)]
    if network:
        heading = ["card", "U-Net", "whole", "MACs", "s/call", "ratio", "memory", "network"]
        # Memory is read on CUDA alone: elsewhere the column would be empty.
        shown = [
            i
            for i, title in enumerate(heading)
            if title != "memory" or any(row[i] != NONE for row in network)
        ]
        parts.append(_plain([heading[i] for i in shown], [[row[i] for i in shown] for row in network]))
    scores = [
        [row.card, row.name or row.metric, _claimed(row), _measured(row), _images(row), row.verdict]
        for row in rows
        if row.test == "quality" and row.measured is not None
    ]
    if scores:
        parts.append(_plain(["card", "claim", "claimed", "measured", "N", "verdict"], scores))
    rest = [row for row in rows if row.test == "quality" and row.measured is None]
    if rest:
        counts = _counts(rest)
        parts.append(
            f"not measured: {_many(len(rest), 'score')} of {_many(len({row.card for row in rest}), 'card')} "
            f"({counts})"
        )
    calibrated = [row for row in rows if row.test == "calibration"]
    if calibrated:
        parts.append(_reasons(calibrated))
    broken = {row.card for row in rows if row.test not in (*_NETWORK, "quality", "calibration")}
    if broken:
        parts.append(f"cannot be read: {', '.join(sorted(broken))}")
    # Failures have a section of their own in pytest's output; what was skipped has its reason here.
    skipped = [row for row in rows if row.verdict not in ("pass", "fail", "error") and row not in calibrated]
    if skipped:
        parts.append(_reasons(skipped))
    if notes := _untested(cards):
        parts.append(f"what the cards leave untested:\n{notes}")
    return "\n\n".join(parts)


def _summary(rows: Sequence[Row]) -> str:
    cards = len({row.card for row in rows})
    return f"{len(rows)} checks of {cards} card{'s' * (cards != 1)}: {_counts(rows) or 'none'}."


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _counts(rows: Sequence[Row]) -> str:
    found = [row.verdict for row in rows]
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found)


def _environment(environment: Mapping[str, Any]) -> str:
    flat: dict[str, Any] = {}
    for key, value in environment.items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    return "Measured with " + ", ".join(f"{key} {value}" for key, value in flat.items()) + "."


def _networks(order: Sequence[str], titles: Mapping[str, str], rows: Sequence[Row]) -> list[str]:
    parts: list[str] = []
    counted = [name for name in order if _of(rows, name, "size")]
    if counted:
        table = [
            [titles.get(name, name), *(_size(rows, name, part) for part in COMPONENTS)] for name in counted
        ]
        parts += [
            "## Parameters",
            "Counted exactly; in brackets what the source prints, which is rounded and only shown.",
            _table(["Model", *COMPONENTS.values()], table),
            _reasons([row for row in rows if row.test == "size" and row.verdict != "pass"]),
        ]
    timed = [name for name in order if _of(rows, name, "compute", "speed", "memory")]
    if timed:
        table = [
            [
                titles.get(name, name),
                _macs(_one(rows, name, "compute")),
                _seconds(_one(rows, name, "speed")),
                *_latency(_one(rows, name, "speed")),
                _memory(_one(rows, name, "memory")),
                _verdicts(_of(rows, name, "compute", "speed", "memory")),
            ]
            for name in timed
        ]
        heading = ["Model", "MACs ↓", "s/call ↓", "Latency ratio ↓", "Allowed", "Peak memory ↓", "Verdict"]
        rest = [row for row in rows if row.test in _NETWORK[1:] and row.verdict != "pass"]
        parts += [
            "## Compute, speed and memory of one U-Net call",
            "The latency ratio is relative to the baseline's network, measured interleaved in the same run.",
            _table(heading, table, left=(0, 6)),
            _reasons(rest),
        ]
    return parts


def _network_cells(name: str, rows: Sequence[Row]) -> list[str]:
    speed = _one(rows, name, "speed")
    return [
        _size(rows, name, "unet"),
        _size(rows, name, "whole"),
        _macs(_one(rows, name, "compute")),
        _seconds(speed),
        _ratio(speed),
        _memory(_one(rows, name, "memory")),
        _verdicts(_of(rows, name, *_NETWORK)),
    ]


def _untested(cards: Sequence[Card]) -> str:
    """Return a list of what cannot be tested, each reason once."""
    users: dict[str, list[str]] = {}
    for card in cards:
        for note in card.explained:
            users.setdefault(note, []).append(card.name)
    return "\n".join(f"- {', '.join(names)}: {note}" for note, names in users.items())


def _of(rows: Sequence[Row], card: str, *tests: str) -> list[Row]:
    return [row for row in rows if row.card == card and row.test in tests]


def _one(rows: Sequence[Row], card: str, test: str, name: str | None = None) -> Row | None:
    return next((row for row in _of(rows, card, test) if name is None or row.name == name), None)


def _size(rows: Sequence[Row], card: str, component: str) -> str:
    row = _one(rows, card, "size", component)
    if row is None or row.measured is None:
        return NONE
    shown = _figure(row)
    if row.claimed_text:
        shown += f" ({billions(row.claimed_text)})"
    if row.verdict == "fail" and row.claimed is not None:
        shown = f"**{shown}, not {row.claimed:,.0f}**"
    return shown


def _figure(row: Row | None) -> str:
    return NONE if row is None or row.measured is None else f"{row.measured:,.0f}"


def _macs(row: Row | None) -> str:
    if row is None or row.measured is None:
        return NONE
    return f"{row.measured / 1e9:.1f} G" if row.measured >= 1e9 else f"{row.measured / 1e6:.1f} M"


def _latency(row: Row | None) -> tuple[str, str]:
    if row is None:
        return NONE, NONE
    measured = NONE if row.measured is None else f"{row.measured:.3f}"
    return measured, NONE if row.claimed is None else f"{row.claimed:.2f}"


def _ratio(row: Row | None) -> str:
    measured, allowed = _latency(row)
    return measured if NONE in (measured, allowed) else f"{measured} (max {allowed})"


def _seconds(row: Row | None) -> str:
    """Return the median latency of one U-Net call; figures of two runs are not comparable, ratios are."""
    seconds = None if row is None else row.extra.get("candidate_median")
    return NONE if seconds is None else f"{seconds:.3g}"


def _memory(row: Row | None) -> str:
    return NONE if row is None or row.measured is None else f"{row.measured / 2**20:,.0f} MiB"


def _verdicts(rows: Sequence[Row]) -> str:
    """Return one verdict where all that was measured agree, else what differs from a pass."""
    # What this machine cannot measure is an en dash in its own column, and its reason stands below the table.
    rows = [row for row in rows if row.verdict != "unavailable"] or rows
    found = list(dict.fromkeys(row.verdict for row in rows))
    if len(found) == 1:
        return found[0]
    parts = [
        f"{verdict} ({', '.join(dict.fromkeys(row.test for row in rows if row.verdict == verdict))})"
        for verdict in VERDICTS
        if verdict in found and verdict != "pass"
    ]
    return ", ".join(parts) + (", else pass" if "pass" in found else "")


def _scores(rows: Sequence[Row], labels: Mapping[tuple[str, str], str]) -> str:
    table = [
        [
            _metric(row, labels),
            _protocol(row),
            row.kind or NONE,
            _claimed(row),
            _measured(row),
            _images(row),
            NONE if row.margin is None else f"{row.margin:g}",
            f"**{row.verdict}**" if row.verdict in ("fail", "error") else row.verdict,
        ]
        for row in rows
    ]
    heading = ["Metric", "Protocol", "Claim", "Claimed", "Measured", "N", "Margin", "Verdict"]
    baselines = dict.fromkeys(row.extra["beside"]["card"] for row in rows if "beside" in row.extra)
    if baselines:
        # Prompt by prompt: far more certain than the difference of the two scores looks.
        heading.insert(5, f"Less {', '.join(baselines)}")
        for cells, row in zip(table, rows, strict=True):
            cells.insert(5, _beside(row))
    return _table(heading, table, left=(0, 1, 2, len(heading) - 1))


def _not_measured(
    rows: Sequence[Row], titles: Mapping[str, str], labels: Mapping[tuple[str, str], str]
) -> str:
    table = [
        [titles.get(row.card, row.card), _metric(row, labels), _protocol(row), _claimed(row), row.verdict]
        for row in rows
    ]
    return _table(["Model", "Metric", "Protocol", "Claimed", "Verdict"], table, left=(0, 1, 2, 4))


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
        return row.name or NONE
    return f"{labels.get((row.card, row.name), metric.label)} {metric.arrow}"


def _protocol(row: Row) -> str:
    assumed = row.name.startswith("unstated") and row.protocol not in ("", "unstated")
    return f"{row.protocol} (assumed)" if assumed else row.protocol or NONE


def _claimed(row: Row) -> str:
    if row.claimed is None:
        return NONE
    return row.claimed_text or f"{row.claimed:.{_decimals(row)}f}"


def _measured(row: Row) -> str:
    if row.measured is None:
        return NONE
    decimals = _decimals(row)
    shown = f"{row.measured:.{decimals}f}"
    if row.standard_error is not None:
        shown += f" ± {row.standard_error:.{decimals}f}"
    return f"{shown}, predicted" if "predicted_for" in row.extra else shown


def _beside(row: Row) -> str:
    """Return a score less the baseline's."""
    found = row.extra.get("beside")
    if found is None:
        return NONE
    decimals = _decimals(row) + 1
    shown = f"{found['difference']:+.{decimals}f}"
    error = found["standard_error"]
    return shown if error is None else f"{shown} ± {error:.{decimals}f}"


def _decimals(row: Row) -> int:
    """Return as many decimals as the claim has, and no fewer than the metric's usual ones."""
    _, _, claimed = row.claimed_text.partition(".")
    usual = METRICS[row.metric].decimals if row.metric in METRICS else 2
    return max(usual, len(claimed) if claimed.isdigit() else 0)


def _images(row: Row) -> str:
    """Return the images behind a score, and how many the claim is of where these are fewer."""
    wanted = row.extra.get("requested")
    fewer = row.n is not None and wanted is not None and row.n < wanted
    return f"{_count(row.n)} of {_count(wanted)}" if fewer else _count(row.n)


def _count(n: int | None) -> str:
    return NONE if n is None else f"{n:,}"


def _reasons(rows: Sequence[Row]) -> str:
    """Return each reason once, with the checks that it holds for."""
    reasons: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.reason:
            reasons.setdefault((row.verdict, " ".join(row.reason.split())), []).append(row)
    return "\n".join(
        f"- {verdict}: {_whose(those)}: {reason}" for (verdict, reason), those in reasons.items()
    )


def _whose(rows: Sequence[Row]) -> str:
    """Return what a reason is about: checks of one card, or one check of many."""
    cards = list(dict.fromkeys(row.card for row in rows))
    tests = list(dict.fromkeys(row.test for row in rows))
    checks = list(dict.fromkeys(f"`{row.name}`" if row.name else row.test for row in rows))
    if len(cards) > 4:
        return f"{' and '.join(tests)} of {len(cards)} cards"
    return f"{', '.join(cards)}: {', '.join(checks)}"


# --- cells --------------------------------------------------------------------------------------------------


def billions(text: str) -> str:
    """Return a printed count in billions with the digits that it was printed with: 0.860e+9 is 0.860B."""
    return f"{Decimal(text.replace('_', '')).scaleb(-9):f}B"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return a GitHub table; all columns but those of `left` are set right."""
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in rows]
    align = ["left" if column in left else "right" for column in range(len(heading))]
    return tabulate(cells, heading, tablefmt="pipe", disable_numparse=True, colalign=align)


def _plain(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["left", *("right" for _ in heading[1:-1]), "left"]
    if heading[1] == "claim":
        align[1] = "left"
    return tabulate(rows, heading, tablefmt="simple", disable_numparse=True, colalign=align)
