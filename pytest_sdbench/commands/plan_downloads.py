"""Reckon what a card would have to download, and about how many bytes that is; asks no network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import SdbenchError, Unavailable
from pytest_sdbench.cards.card import Card
from pytest_sdbench.commands.doctor import Finding
from pytest_sdbench.features.extractors import extractor_of, outputs_of
from pytest_sdbench.metrics.definition import column
from pytest_sdbench.models.counts import parameter_count
from pytest_sdbench.models.hub import HUB_ID, cached_snapshot
from pytest_sdbench.models.layout import COMPONENTS, JOINED
from pytest_sdbench.models.specs import hub_lora, split_pair
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.gap import Gap

_WIDTH = 4
"""Bytes of a parameter: the hub client fetches full precision where a repository has it."""


@dataclass(frozen=True)
class Download:
    """Something to fetch."""

    need: str
    """``weights`` or ``extractor``."""
    what: str
    size: int | None
    """Bytes, about; None where that cannot be told from here."""


def checkpoint_downloads(card: Card, weights: Path | None = None) -> tuple[Download, ...]:
    """Return what of a card's checkpoint the hub would have to send; `weights` stands in for it.

    Sizes are those of the card's architecture in float32, with the other components of SD v1 or SDXL: where a
    repository holds float16 alone, it is half as much.
    """
    if card.checkpoint is None or (weights is not None and (weights / "model_index.json").is_file()):
        return ()
    found: list[Download] = []
    pair = split_pair(card.checkpoint)
    wanted: list[tuple[str, tuple[str, ...]]] = [(str(card.checkpoint), COMPONENTS)]
    if pair is not None:
        base, kind, other = pair
        wanted = [(base, JOINED[kind])]
        if kind == "unet":
            wanted.append((other, ("unet",)))
        elif kind == "lora" and weights is None and hub_lora(other):
            found.append(Download("weights", other, None))
    if weights is not None:
        wanted = wanted[:1]  # the base of another U-Net
    for spec, components in wanted:
        match = re.fullmatch(HUB_ID, spec)
        if match is None or spec.startswith((".", "/", "~")):
            continue
        lacking = [part for part in components if not _cached(match["name"], match["revision"], part)]
        if lacking:
            parts = "" if tuple(lacking) == COMPONENTS else f" ({', '.join(lacking)})"
            found.append(Download("weights", f"{spec}{parts}", _size(card, lacking)))
    return tuple(found)


def extractor_download(name: str) -> Download | None:
    """Return the weights of an extractor as a download; None where there is nothing to fetch."""
    download = extractor_of(name).download
    found = None if download is None else download(name)
    return None if found is None else Download("extractor", *found)


def still_needed(findings: Iterable[Finding], protocol: Protocol, gaps: Iterable[Gap]) -> Iterator[Finding]:
    """Yield findings without extractors that are not here, and all of whose columns are in the store."""
    lacking, read = {name for gap in gaps for name in gap.columns}, outputs_of(protocol)
    for each in findings:
        columns = {column(each.name, output) for output in read.get(each.name, ())}
        if each.need != "extractor" or each.state != "missing" or columns & lacking:
            yield each


def _cached(name: str, revision: str | None, component: str) -> bool:
    try:
        cached_snapshot(name, revision, (component,))
    except Unavailable:
        return False
    return True


def _size(card: Card, components: list[str]) -> int | None:
    from pytest_sdbench.models import skeleton

    models: list[Any] = []
    try:
        config = {} if card.architecture is None else skeleton.unet_config(card.architecture)
        for component in components:
            if component == "text_encoder":
                models += skeleton.text_encoder_skeletons(config) or [skeleton.text_encoder_skeleton()]
            elif component == "vae":
                models.append(skeleton.vae_skeleton())
            elif card.architecture is None:
                return None
            else:
                models.append(skeleton.unet_skeleton(config))
    except SdbenchError:  # told where the network is built for its timing
        return None
    return _WIDTH * sum(map(parameter_count, models))
