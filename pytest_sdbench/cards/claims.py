"""The claims of a card: its published figures, and those that this suite recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_sdbench.base.schema import Keys, dotted, suggestion
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
            parts.append(images(self.n))
        parts += [self.metric, self.suffix, "recorded" if self.kind == "recorded" else ""]
        return "-".join(part for part in parts if part)

    @property
    def gate_protocol(self) -> str | None:
        """Return the protocol under which the claim is gated, or None: it is shown only."""
        return self.assumed if self.protocol == UNSTATED else self.protocol


def images(n: int) -> str:
    """Return a number of images as the field writes it: 30k, 512."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)


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
        protocol = _protocol_of(front, at, result, known, hub=hub)
        assumed, n = _arguments(front, at, result, protocol, known)
        for k, figure in enumerate(result.metrics):
            place = (*at, "metrics", k)
            if hub and (note := _untestable(figure.type, figure.value)):
                explained.append(f"{figure.type}: {note}")
                continue
            metric = check_metric(front.path, dotted((*place, "type")), figure.type)
            key = (*place, "value")
            value = check_value(front.path, dotted(key), metric, figure.value)
            claims.append(
                Claim(
                    metric=metric,
                    value=value,
                    text=front.scalar(*key) or repr(figure.value),
                    protocol=protocol,
                    assumed=assumed,
                    n=n,
                    margin=_margin(margins, protocol, assumed, metric),
                    source=_source(result, protocol, metric, n, sources),
                    label=figure.name or METRICS[metric].label,
                    dataset=result.dataset.name,
                )
            )
    return claims, explained


def _untestable(metric: str, value: Any) -> str:
    """Say why a figure of a hub card is no claim; empty if it is one, or is to be one."""
    if metric_name(metric) is None:
        return f"not a metric of this suite ({', '.join(METRICS)})"
    if isinstance(value, str) and re.match(r"\s*\d", value):
        return f"{value!r} is text; write a plain number to test it"
    return ""


def _protocol_of(front: FrontMatter, at: Keys, result: Result, known: Sequence[str], *, hub: bool) -> str:
    config, key = result.dataset.config, (*at, "dataset", "config")
    if hub:
        return config if config is not None and config in known else UNSTATED
    if config is None:
        raise front.error(
            key,
            "the result does not say under which protocol it was measured",
            None,
            f"Name the protocol ({', '.join(known)}), or write `config: {UNSTATED}`",
        )
    check_protocol(front, key, config, known, UNSTATED)
    return config


def _arguments(
    front: FrontMatter, at: Keys, result: Result, protocol: str, known: Sequence[str]
) -> tuple[str | None, int | None]:
    """Return the assumed protocol and the number of images that stand beside a result."""
    values, key = result.dataset.args, (*at, "dataset", "args")
    n, assumed = values.get("num_samples"), values.get("assumed")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n <= 0):
        raise front.error(
            (*key, "num_samples"),
            "not a number of images",
            n,
            "Write a whole number such as 30000, or leave the key out",
        )
    if assumed is not None:
        check_protocol(front, (*key, "assumed"), str(assumed), known)
        if protocol != UNSTATED:
            raise front.error(
                (*key, "assumed"),
                "a protocol that is stated need not be assumed",
                assumed,
                f"Remove it, or write `config: {UNSTATED}`",
            )
    return assumed, n


def _source(
    result: Result, protocol: str, metric: str, n: int | None, sources: Mapping[str, str]
) -> Source | None:
    if result.source is not None and (name := result.source.name or result.source.url):
        return replace(result.source, name=name)
    claim = Claim(metric, 1.0, "", protocol, n=n)
    named = next((sources[key] for key in (claim.id, metric, protocol) if key in sources), None)
    return Source(named) if named else None


def recorded(front: FrontMatter, block: Block, known: Sequence[str], margins: Margins) -> list[Claim]:
    """Return the claims of ``sdbench.records``."""
    claims = []
    for position, entry in enumerate(block.records):
        at = ("sdbench", "records", position)
        check_protocol(front, (*at, "protocol"), entry.protocol, known)
        metric = check_metric(front.path, dotted((*at, "metric")), entry.metric)
        check_value(front.path, dotted((*at, "value")), metric, entry.value, recorded=True)
        claims.append(
            Claim(
                metric=metric,
                value=entry.value,
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
        at = f"sdbench.margins.{name}"
        if isinstance(value, Mapping):
            check_protocol(front, ("sdbench", "margins", name), name, known, UNSTATED)
            margins |= {
                name: {check_metric(front.path, f"{at}.{key}", key): each for key, each in value.items()}
            }
        else:
            margins.setdefault("", {})[check_metric(front.path, at, name)] = value
    return margins


def margin_of(margins: Margins, protocol: str | None, metric: str) -> float | None:
    """Return the margin of a metric under a protocol, or None where the card has none."""
    return margins.get(protocol or "", {}).get(metric, margins.get("", {}).get(metric))


def _margin(margins: Margins, protocol: str, assumed: str | None, metric: str) -> float | None:
    """Return the margin of a published claim: of an unstated one its own, else the assumed protocol's."""
    own = margins.get(UNSTATED, {}).get(metric) if protocol == UNSTATED else None
    return own if own is not None else margin_of(margins, assumed or protocol, metric)


def check_protocol(front: FrontMatter, key: Keys, name: str, known: Sequence[str], *more: str) -> None:
    """Raise, with the names there are, if a protocol is not among them."""
    names = [*known, *more]
    if name not in names:
        raise front.error(
            key,
            "unknown protocol",
            name,
            f"{suggestion(name, names)}Known protocols: {', '.join(names)}; "
            "one of your own is a YAML file in `protocols/` beside the card",
        )


def check_claims(front: FrontMatter, claims: Sequence[Claim], sources: Mapping[str, str]) -> None:
    """Raise for a figure that is claimed twice, a margin that passes nearly anything, a source of nothing."""
    seen: dict[str, Claim] = {}
    for claim in claims:
        if claim.id in seen:
            raise front.error(
                ("sdbench", "records") if claim.kind == "recorded" else (f"model-index: {claim.id}",),
                "the same figure is claimed twice",
                f"{seen[claim.id].text} and {claim.text}",
                "Keep one; two numbers of images are told apart by `dataset.args.num_samples`, "
                "two ways of measuring by `dataset.config`",
            )
        seen[claim.id] = claim
        wide = claim.margin is not None and passes_anything(claim.metric, claim.value, claim.margin)
        if wide and claim.kind == "published":
            raise front.error(
                ("sdbench", "margins", claim.metric),
                f"the margin beside the claim of {claim.text} would pass nearly anything",
                claim.margin,
                "Give the margin in the metric's own unit, well below "
                f"{METRICS[claim.metric].room(claim.value):g}",
            )
    known = [
        "size",
        *dict.fromkeys(key for claim in claims for key in (claim.id, claim.metric, claim.protocol)),
    ]
    for key in sources:
        if key not in known:
            raise front.error(
                ("sdbench", "sources", key),
                "the source belongs to no figure of this card",
                sources[key],
                f"{suggestion(key, known)}Give it under one of: {', '.join(known)}",
            )


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
