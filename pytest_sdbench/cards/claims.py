"""The claims of a card: its published figures, and those that this suite recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_sdbench.base.schema import Keys, suggestion
from pytest_sdbench.cards.front_matter import FrontMatter
from pytest_sdbench.cards.records import Record
from pytest_sdbench.cards.schema import Block, Model, Result, Source, check_metric, check_value
from pytest_sdbench.metrics.registry import METRICS, metric_name

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
    """``published`` (in ``model-index``) or ``recorded`` (in ``sdbench.records``)."""
    record: Record | None = None
    label: str = ""
    """The metric's name as the card prints it."""
    dataset: str = ""
    suffix: str = ""
    """What tells the claim from another of the same protocol and metric, where a hub card has such."""

    @property
    def id(self) -> str:
        """Return the claim's name in a test id: ``coco30k-bksdm-fid``, ``unstated-5k-fid``."""
        parts = [self.protocol]
        if self.protocol == UNSTATED and self.n:
            parts.append(f"{self.n // 1000}k" if self.n % 1000 == 0 else str(self.n))
        parts += [self.metric, self.suffix, "recorded" if self.kind == "recorded" else ""]
        return "-".join(part for part in parts if part)

    @property
    def gate_protocol(self) -> str | None:
        """Return the protocol under which the claim is gated, or None: it is shown only."""
        return self.assumed if self.protocol == UNSTATED else self.protocol


def published(
    front: FrontMatter,
    models: Sequence[Model],
    known: Sequence[str],
    margins: Margins,
    sources: Mapping[str, str],
    *,
    hub: bool = False,
) -> tuple[list[Claim], list[str]]:
    """Return the claims of the model index, and what of it is no claim of ours."""
    claims: list[Claim] = []
    explained: list[str] = []
    results = [
        (("model-index", m, "results", r), result)
        for m, model in enumerate(models)
        for r, result in enumerate(model.results)
    ]
    for at, result in results:
        protocol = _protocol_of(front, (*at, "dataset", "config"), result, known, hub=hub)
        assumed, n = _arguments(front, (*at, "dataset", "args"), result, protocol, known)
        for k, figure in enumerate(result.metrics):
            place = (*at, "metrics", k)
            if hub and (note := _untestable(figure.type, figure.value)):
                explained.append(f"{figure.type}: {note}")
                continue
            metric = check_metric(front.path, (*place, "type"), figure.type)
            own = margins.get(UNSTATED, {}).get(metric) if protocol == UNSTATED else None
            claim = Claim(
                metric=metric,
                value=check_value(front.path, (*place, "value"), metric, figure.value),
                text=front.scalar(*place, "value") or repr(figure.value),
                protocol=protocol,
                assumed=assumed,
                n=n,
                margin=own if own is not None else margin_of(margins, assumed or protocol, metric),
                label=figure.name or METRICS[metric].label,
                dataset=result.dataset.name,
            )
            source = result.source
            if source is not None and (name := source.name or source.url):
                source = replace(source, name=name)
            else:
                keys = (claim.id, metric, protocol)
                source = next((Source(sources[key]) for key in keys if key in sources), None)
            claims.append(replace(claim, source=source))
    return claims, explained


def _untestable(metric: str, value: Any) -> str:
    """Say why a figure of a hub card is no claim; empty if it is one, or is to be one."""
    if metric_name(metric) is None:
        return f"not a metric of this suite ({', '.join(METRICS)})"
    if isinstance(value, str) and re.match(r"\s*\d", value):
        return f"{value!r} is text; write a plain number to test it"
    return ""


def _protocol_of(front: FrontMatter, at: Keys, result: Result, known: Sequence[str], *, hub: bool) -> str:
    config = result.dataset.config
    if hub:
        return config if config is not None and config in known else UNSTATED
    if config is None:
        message = "the result does not say under which protocol it was measured"
        remedy = f"Name the protocol ({', '.join(known)}), or write `config: {UNSTATED}`"
        raise front.error(at, message, None, remedy)
    check_protocol(front, at, config, known, UNSTATED)
    return config


def _arguments(
    front: FrontMatter, at: Keys, result: Result, protocol: str, known: Sequence[str]
) -> tuple[str | None, int | None]:
    """Return the assumed protocol and the number of images that stand beside a result."""
    n, assumed = result.dataset.args.get("num_samples"), result.dataset.args.get("assumed")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n <= 0):
        remedy = "Write a whole number such as 30000, or leave the key out"
        raise front.error((*at, "num_samples"), "not a number of images", n, remedy)
    if assumed is not None:
        at = (*at, "assumed")
        check_protocol(front, at, str(assumed), known)
        if protocol != UNSTATED:
            remedy = f"Remove it, or write `config: {UNSTATED}`"
            raise front.error(at, "a protocol that is stated need not be assumed", assumed, remedy)
    return assumed, n


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
            margins[name] = {check_metric(front.path, (*at, key), key): each for key, each in value.items()}
        else:
            margins.setdefault("", {})[check_metric(front.path, at, name)] = value
    return margins


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


def check_claims(front: FrontMatter, claims: Sequence[Claim], sources: Mapping[str, str]) -> None:
    """Raise for a figure that is claimed twice, a margin that passes nearly anything, a source of nothing."""
    seen: dict[str, Claim] = {}
    at: Keys
    for claim in claims:
        if claim.id in seen:
            at = ("sdbench", "records") if claim.kind == "recorded" else (f"model-index: {claim.id}",)
            remedy = "Keep one; two numbers of images are told apart by `dataset.args.num_samples`, "
            remedy += "two ways of measuring by `dataset.config`"
            both = f"{seen[claim.id].text} and {claim.text}"
            raise front.error(at, "the same figure is claimed twice", both, remedy)
        seen[claim.id] = claim
        wide = claim.margin is not None and passes_anything(claim.metric, claim.value, claim.margin)
        if wide and claim.kind == "published":
            room = METRICS[claim.metric].room(claim.value)
            message = f"the margin beside the claim of {claim.text} would pass nearly anything"
            remedy = f"Give the margin in the metric's own unit, well below {room:g}"
            raise front.error(("sdbench", "margins", claim.metric), message, claim.margin, remedy)
    known = ["size", *(key for claim in claims for key in (claim.id, claim.metric, claim.protocol))]
    for key in sources:
        if key not in known:
            remedy = f"{suggestion(key, known)}Give it under one of: {', '.join(dict.fromkeys(known))}"
            at = ("sdbench", "sources", key)
            raise front.error(at, "the source belongs to no figure of this card", sources[key], remedy)


def passes_anything(metric: str, claimed: float, margin: float) -> bool:
    """Return whether a margin reaches the worst score there is, or is as large as a distance itself.

    An unbiased distance of a good model, such as KID, is next to nothing: no share of it is a margin.
    """
    return not METRICS[metric].signed and margin >= METRICS[metric].room(claimed)


def told_apart(claims: Sequence[Claim]) -> list[Claim]:
    """Give unstated claims of several datasets ids of their own."""
    if len({claim.dataset for claim in claims}) < 2:
        return list(claims)
    return [
        replace(claim, suffix=re.sub(r"[^a-z0-9]+", "-", claim.dataset.lower()).strip("-"))
        if claim.protocol == UNSTATED
        else claim
        for claim in claims
    ]
