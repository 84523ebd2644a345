"""Measure pictures that are kept: what a new metric reads of them costs no drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_sdbench.base.environment import true_float32
from pytest_sdbench.features.extractors import Extractors
from pytest_sdbench.protocols.image_steps import Images, apply_image_steps
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.kept import not_kept
from pytest_sdbench.store.shards import Evidence


@dataclass(frozen=True)
class Beside:
    """Pictures of a reference that others are compared with."""

    images: Images
    """After the image steps."""
    drawn_with: Mapping[str, Any]
    """Device and versions."""


def measure_kept(
    evidence: Evidence,
    protocol: Protocol,
    gap: Gap,
    extractors: Extractors,
    *,
    reference: Evidence | None = None,
) -> bool:
    """Fill the columns that lack in a shard from its kept pictures, and return whether that could be done.

    What is not kept, or damaged, stays a gap. Paired extractors compare with the pictures of `reference`.
    Raises what the extractors and the store raise.
    """
    images = gap.images
    kept = None if gap.draws or not gap.columns else evidence.pictures(images)
    flags = None if kept is None else evidence.flags(images)
    if kept is None or flags is None:
        return False
    pictures, artist = kept
    wanted = extractors.only(gap.columns)
    beside = references_of(reference, protocol, wanted, images)
    measured = apply_image_steps(pictures.images, protocol.image)
    with true_float32():
        rows = wanted.extract(measured, pictures.prompts, None if beside is None else beside.images)
    drawn_with = None if beside is None else beside.drawn_with
    evidence.write(images.start, {**rows, **flags}, artist=artist, reference=drawn_with)
    return True


def references_of(
    reference: Evidence | None, protocol: Protocol, extractors: Extractors, images: range
) -> Beside | None:
    """Return what paired extractors compare pictures with; None where none is paired.

    Raises PictureLoss where pictures of the reference are not kept, or not any more.
    """
    if not extractors.paired:
        return None
    if reference is None:
        names = ", ".join(network.name for network in extractors.networks if network.paired)
        raise ValueError(f"{names} compares with a reference, and none is given")
    kept = reference.pictures(images)
    if kept is None:
        raise not_kept(reference.shards, images)
    pictures, artist = kept
    manifest = reference.shards.manifest(artist)
    drawn_with = {key: manifest.get(key) for key in ("device", "versions")}
    return Beside(apply_image_steps(pictures.images, protocol.image), drawn_with)
