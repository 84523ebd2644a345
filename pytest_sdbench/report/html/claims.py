"""Turn the rows of a run into lines of claims: failed first, each with its figures and its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from pytest_sdbench.cards.card import Card
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import (
    COMPONENTS,
    NETWORK,
    NONE,
    claimed,
    decimals_beside,
    figure,
    images,
    measured,
    mebibytes,
)
from pytest_sdbench.report.html.forest import Forest, forest, worse_by
from pytest_sdbench.report.html.headline import JUDGED, SIGNS
from pytest_sdbench.report.results import Row

_ORDER = (*JUDGED, "mismatch", "uncalibrated")
_TITLES = {"compute": "MACs of a U-Net call", "speed": "Latency of a U-Net call", "memory": "Peak memory"}
_HOW = {
    "size": "counted exactly",
    "compute": "counted, to 0.1 %",
    "speed": "beside the baseline, in turns",
    "memory": "of a U-Net call",
}
_KINDS = {"identity": "equal pictures", "published": "published", "recorded": "recorded"}


@dataclass(frozen=True)
class ClaimLine:
    """One claim beside what was measured, in words."""

    number: int
    node_ids: tuple[str, ...]
    """Of a figure that is published and recorded there are two."""
    card: str
    title: str
    """The metric as the card calls it, with an arrow to the better side; or what was counted or timed."""
    under: str
    """The protocol, and whether the figure is published, recorded or what equal pictures have."""
    metric: str
    """What the filter calls it."""
    verdict: str
    sign: str
    claimed: str
    measured: str
    images: str
    margin: str
    difference: str
    """How much worse it is."""
    bound: str
    """How much at least or at most, and the margin."""
    reason: str
    remedy: str
    """What would tell, where it is inconclusive."""
    forest: Forest | None

    @property
    def is_open(self) -> bool:
        """Whether it was judged and did not hold."""
        return self.verdict in JUDGED and self.verdict != "pass"


def labels_of(cards: Iterable[Card]) -> dict[tuple[str, str], str]:
    """Return what cards call the metrics of their claims, by card and claim."""
    return {(card.name, claim.id): claim.label for card in cards for claim in card.claims}


def share_rows(rows: Sequence[Row]) -> tuple[list[Row], dict[str, Row]]:
    """Return rows without records that say what a published figure says, and these by its node id.

    They agree to the printed digits and in the verdict, and are one claim.
    """
    published = {
        (row.card, row.protocol, row.metric, row.variant): row
        for row in rows
        if row.test == "quality" and row.kind == "published" and row.claimed is not None
    }
    twins: dict[str, Row] = {}
    left = []
    for row in rows:
        other = published.get((row.card, row.protocol, row.metric, row.variant))
        same = row.test == "quality" and row.kind == "recorded" and row.claimed is not None
        if other is not None and same and row.verdict == other.verdict and _agree(other, row):
            twins[other.node_id] = row
        else:
            left.append(row)
    return left, twins


def unasked(cards: Sequence[Card], rows: Sequence[Row]) -> dict[tuple[str, str], list[str]]:
    """Return the metrics of the scores that cards claim and a run has no row of, by card and protocol."""
    asked = {(row.card, row.name) for row in rows if row.test == "quality"}
    found: dict[tuple[str, str], list[str]] = {}
    for card in cards:
        for claim in card.claims:
            place = card.name, claim.gate_protocol or claim.protocol
            if (card.name, claim.id) not in asked and claim.metric not in found.get(place, ()):
                found.setdefault(place, []).append(claim.metric)
    return found


def count_unasked(cards: Sequence[Card], rows: Sequence[Row]) -> int:
    """Return how many scores cards claim that a run has no row of."""
    return sum(map(len, unasked(cards, rows).values()))


def _agree(published: Row, record: Row) -> bool:
    """Return whether a record, rounded to the digits of a published figure, is that figure."""
    try:
        text = Decimal((published.claimed_text or repr(published.claimed)).replace("_", ""))
        return Decimal(repr(record.claimed)).quantize(text) == text
    except InvalidOperation:
        return False


def claim_lines(
    rows: Sequence[Row], twins: Mapping[str, Row], labels: Mapping[tuple[str, str], str]
) -> tuple[ClaimLine, ...]:
    """Return a line for each row that was judged or measured; `labels` has those of claims by card and id.

    Among those that failed the one that missed its margin most is first. `twins` are those of `share_rows`.
    """
    lines = [
        row for row in rows if row.verdict in JUDGED or (row.verdict in _ORDER and row.measured is not None)
    ]
    ordered = sorted(lines, key=rank)
    return tuple(_line(number, row, twins, labels) for number, row in enumerate(ordered, 1))


def rank(row: Row) -> tuple[int, int, float]:
    """Return what rows are sorted by: what fell first, and of that what missed its margin most."""
    worse, margin = worse_by(row), row.margin
    missed = -worse / margin if row.verdict == "fail" and worse is not None and margin else 0.0
    place = _ORDER.index(row.verdict) if row.verdict in _ORDER else len(_ORDER)
    return place, row.test != "quality", missed


def _line(
    number: int, row: Row, twins: Mapping[str, Row], labels: Mapping[tuple[str, str], str]
) -> ClaimLine:
    quality, twin = row.test == "quality", twins.get(row.node_id)
    return ClaimLine(
        number=number,
        node_ids=(row.node_id,) if twin is None else (row.node_id, twin.node_id),
        card=row.card,
        title=_title(row, labels),
        under=_under(row, shared=twin is not None),
        metric=METRICS[row.metric].label if row.metric in METRICS else row.test,
        verdict=row.verdict,
        sign=SIGNS[row.verdict],
        claimed=_claimed(row),
        measured=measured(row) if quality else _figure(row, row.measured),
        images=images(row) if quality else "",
        margin=f"{row.margin:g}" if row.margin is not None else "",
        difference=difference(row),
        bound=_bound(row) if quality else "",
        reason=_reason(row),
        remedy=_remedy(row),
        forest=forest(row),
    )


def _title(row: Row, labels: Mapping[tuple[str, str], str]) -> str:
    if row.test == "size":
        return f"Parameters: {COMPONENTS.get(row.name, row.name)}{row.variant}"
    if row.test in NETWORK:
        return f"{_TITLES[row.test]}{row.variant}"
    if row.metric in METRICS:
        metric = METRICS[row.metric]
        return f"{labels.get((row.card, row.name)) or metric.label} {metric.arrow}{row.variant}"
    return row.title


def _reason(row: Row) -> str:
    """Return a printed reason without in what the checkpoint differs, which the page says once."""
    said = " ".join(row.reason.split())
    for change in row.extra.get("changes", ()):
        said = said.replace(f"; {change}", "").replace(f" ({change})", "")
    return said


def _remedy(row: Row) -> str:
    _, _, remedy = _reason(row).partition("; cannot tell: ")
    return remedy.partition(" (")[0] if row.verdict == "inconclusive" else ""


def _under(row: Row, *, shared: bool) -> str:
    if row.test != "quality":
        return _HOW.get(row.test, "")
    assumed = row.name.startswith("unstated") and row.protocol not in ("", "unstated")
    protocol = f"{row.protocol} (assumed)" if assumed else row.protocol
    kind = "published, recorded" if shared else _KINDS.get(row.kind, row.kind)
    return ", ".join(part for part in (protocol, kind) if part)


def _claimed(row: Row) -> str:
    if row.claimed is None:
        return NONE
    if row.test == "quality":
        return claimed(row)
    at_most = "at most " if row.test in ("speed", "memory") else ""
    return at_most + _figure(row, row.claimed)


def _figure(row: Row, value: float | None) -> str:
    """Return a figure of a network in the unit that suits it."""
    if value is None:
        return NONE
    if row.test == "memory":
        return mebibytes(value)
    if row.test == "compute":
        return figure(value / 1e9, ".4g", " G") if value >= 1e9 else figure(value / 1e6, ".4g", " M")
    return figure(value, ".3f", " ×") if row.test == "speed" else figure(value)  # noqa: RUF001


def difference(row: Row) -> str:
    """Return by how much a score differs from its claim in the direction that counts."""
    worse = worse_by(row) if row.test == "quality" else None
    if worse is None:
        return ""
    shown = f"{abs(worse):.{decimals_beside(row)}f}"
    return "no difference" if float(shown) == 0 else f"{shown} {'worse' if worse > 0 else 'better'}"


def _bound(row: Row) -> str:
    """Return the bound that the verdict rests on, and the margin that it is compared with."""
    form, parts = f".{decimals_beside(row)}f", []
    key = {"fail": "at_least", "pass": "at_most"}.get(row.verdict, "")
    bound = row.extra.get(key)
    if isinstance(bound, int | float):
        better = key == "at_most" and float(f"{bound:{form}}") < 0
        words = "at least" if better else key.replace("_", " ")
        parts.append(f"{words} {abs(bound):{form}} {'better' if better else 'worse'}")
    elif row.verdict == "inconclusive" and {"at_least", "at_most"} <= row.extra.keys():
        low, high = (row.extra[each] for each in ("at_least", "at_most"))
        sign = "+" if low < 0 else ""
        parts.append(f"between {low:{sign}{form}} and {high:{sign}{form}} worse")
    if row.margin is not None:
        parts.append(f"margin {row.margin:g}")
    return ", ".join(parts)
