"""The claims of a card: its published figures, and those that this suite recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pytest_sdbench.base.schema import Keys, suggestion
from pytest_sdbench.cards.front_matter import FrontMatter
from pytest_sdbench.cards.records import Record
from pytest_sdbench.cards.schema import Block, Source, check_metric, check_value
from pytest_sdbench.metrics.registry import METRICS

UNSTATED = "unstated"
"""The protocol of a figure whose source does not say how it was measured."""

Margins = Mapping[str, Mapping[str, float]]
"""By protocol (``""``: any), then metric."""


@dataclass(frozen=True)
class Claim:
    """One published or recorded figure of a card."""

    metric: str
    """A name of `metric_names.METRICS`."""
    value: float
    text: str
    """The figure as the card prints it: its digits are its precision."""
    protocol: str
    """A protocol's name, or ``unstated``."""
    assumed: str | None = None
    """The protocol under which an unstated claim is gated; None: shown, never gated."""
    n: int | None = None
    """The number of images that the card states beside the claim (``dataset.args.num_samples``)."""
    margin: float | None = None
    """From ``sdbench.margins``; None: the protocol's own."""
    source: Source | None = None
    kind: str = "published"
    """``published`` (in ``model-index``), ``recorded`` (in ``sdbench.records``), or ``identity``: what stands
    in the place of the card's checkpoint draws the same pictures."""
    record: Record | None = None
    label: str = ""
    """The metric's name as the card prints it."""
    dataset: str = ""
    origin: Mapping[str, str] = field(default_factory=dict)
    """What else the card says of it, in words: its model, dataset, config, args; all of it may tell it from
    another figure of the same protocol and metric."""
    suffix: str = ""
    """What does tell it from such a one, as ids have it."""
    apart: str = ""
    """The same in the card's own words; empty where the model tells."""
    doubt: str = ""
    """Why it is not gated, though its protocol is stated."""
    place: Keys = ()
    """Where the figure stands in the front matter."""

    @property
    def id(self) -> str:
        """Return the claim's name in a test id: ``coco30k-bksdm-fid``, ``unstated-5k-fid``."""
        parts = [self.protocol]
        if self.protocol == UNSTATED and self.n:
            parts.append(f"{self.n // 1000}k" if self.n % 1000 == 0 else str(self.n))
        parts += [self.metric, self.suffix, "recorded" if self.kind == "recorded" else ""]
        return "-".join(part for part in parts if part)

    @property
    def ungated(self) -> str:
        """Return why the claim is shown only, as far as the card says more than no protocol at all."""
        config = self.origin.get("config", UNSTATED)
        if self.doubt or config in (UNSTATED, self.gate_protocol):
            return self.doubt
        return f"`config: {config}` is no protocol that is known here, so it is shown and not gated"

    @property
    def gate_protocol(self) -> str | None:
        """Return the protocol under which the claim is gated, or None: it is shown only."""
        if self.doubt:
            return None
        return self.assumed if self.protocol == UNSTATED else self.protocol


def recorded(front: FrontMatter, block: Block, known: Sequence[str], margins: Margins) -> list[Claim]:
    """Return the claims of ``sdbench.records``."""
    claims = []
    for position, entry in enumerate(block.records):
        at = ("sdbench", "records", position)
        check_protocol(front, (*at, "protocol"), entry.protocol, known)
        metric = check_metric(front.path, (*at, "metric"), entry.metric)
        claims.append(
            Claim(
                metric=metric,
                value=check_value(front.path, (*at, "value"), metric, entry.value, recorded=True),
                text=front.scalar(*at, "value") or repr(entry.value),
                protocol=entry.protocol,
                n=entry.n,
                margin=margin_of(margins, entry.protocol, metric),
                kind="recorded",
                record=replace(entry, metric=metric),
                label=METRICS[metric].label,
                place=(*at, "value"),
            )
        )
    return claims


def read_margins(front: FrontMatter, block: Block, known: Sequence[str]) -> Margins:
    """Return ``sdbench.margins`` by protocol (``""``: any), then metric."""
    margins: dict[str, dict[str, float]] = {}
    for name, value in block.margins.items():
        at = ("sdbench", "margins", name)
        if isinstance(value, Mapping):
            check_protocol(front, at, name, known, UNSTATED)
            for key, each in value.items():
                _add(margins.setdefault(name, {}), front, (*at, key), key, each)
        else:
            _add(margins.setdefault("", {}), front, at, name, value)
    return margins


def _add(margins: dict[str, float], front: FrontMatter, at: Keys, name: str, value: float) -> None:
    metric = check_metric(front.path, at, name)
    if metric in margins:
        raise front.error(at, f"the margin of {metric} stands twice", value, "Keep one")
    margins[metric] = value


def margin_of(margins: Margins, protocol: str | None, metric: str) -> float | None:
    """Return the margin of a metric under a protocol, or None where the card has none."""
    return margins.get(protocol or "", {}).get(metric, margins.get("", {}).get(metric))


def check_protocol(front: FrontMatter, at: Keys, name: str, known: Sequence[str], *more: str) -> None:
    """Raise, with the names there are, if a protocol is not among them."""
    names = [*known, *more]
    if name not in names:
        remedy = f"{suggestion(name, names)}Known protocols: {', '.join(names)}; "
        remedy += "one of your own is a YAML file in `protocols/` beside the card"
        raise front.error(at, "unknown protocol", name, remedy)


def check_claims(
    front: FrontMatter, claims: Sequence[Claim], unread: Sequence[Claim], sources: Mapping[str, str]
) -> None:
    """Raise for a figure that is recorded twice, a margin that passes nearly anything, a source of nothing.

    `unread` are figures that the card has and nobody can read: they have sources too.
    """
    seen: dict[str, Claim] = {}
    at: Keys
    for claim in claims:
        if claim.id in seen:
            both = f"{seen[claim.id].text} and {claim.text}"
            raise front.error(("sdbench", "records"), "the same figure is recorded twice", both, "Keep one")
        seen[claim.id] = claim
        wide = claim.margin is not None and passes_anything(claim.metric, claim.value, claim.margin)
        if wide and claim.kind == "published":
            room = METRICS[claim.metric].room(claim.value)
            message = f"the margin beside the claim of {claim.text} would pass nearly anything"
            remedy = f"Give the margin in the metric's own unit, well below {room:g}"
            remedy = remedy if room > 0 else "Nothing is worse than the claim: remove one of the two"
            raise front.error(("sdbench", "margins", claim.metric), message, claim.margin, remedy)
    figures = [*claims, *unread]
    known = ["size"]
    for claim in figures:
        known += [claim.id, replace(claim, suffix="").id, claim.metric, claim.protocol]
    for key in sources:
        if key not in known:
            remedy = f"{suggestion(key, known)}Give it under one of: {', '.join(dict.fromkeys(known))}"
            at = ("sdbench", "sources", key)
            raise front.error(at, "the source belongs to no figure of this card", sources[key], remedy)


def passes_anything(metric: str, claimed: float, margin: float) -> bool:
    """Return whether a margin reaches the worst score there is, or is as large as a distance itself.

    An unbiased distance of a good model, such as KID, is next to nothing: no share of it is a margin.
    """
    return margin >= METRICS[metric].room(claimed)
