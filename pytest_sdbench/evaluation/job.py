"""Describe what the missing images of one draw are made with, wherever they are made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.environment import device_name, versions
from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.base.paths import shown, told
from pytest_sdbench.base.text import duration
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.tuning import Tuning, default_batch_size
from pytest_sdbench.features.extractors import EXTRACTORS, column_keys, extractor_of
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.protocol import DRAWN, Protocol
from pytest_sdbench.protocols.sections import SequentialSeeds
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.shards import Evidence, Store

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint

Load = Callable[[str], Any]
"""Makes the pipeline under test, given the name of a dtype."""


_KEPT = 64
"""Images of a draw whose pictures are kept where nobody says how many."""


@dataclass(frozen=True)
class Extras:
    """What a run wants of a draw beside, or instead of, what its protocol's metrics read."""

    columns: Mapping[str, str] | None = None
    """The key of each wanted column by its name in rows; None: those that the metrics read."""
    keep: int = 0
    """The pictures of so many images, from the first one on and in whole shards, are needed, whatever the
    workspace says."""
    later: int = 0
    """Of so many images others of this run will need the pictures: they are kept of what is drawn anyway,
    where the workspace leaves that open."""
    reference: Evidence | None = None
    """Whose kept pictures paired extractors compare with."""
    original: Callable[[], Checkpoint] | None = None
    """Finds the checkpoint that an evaluation draws those pictures with, where a metric needs them."""
    instead: str = ""
    """What else can be done where that checkpoint has another scheduler than the protocol."""
    original_store: Path | str | None = None
    """Where they are kept; None: beside the evaluation's own. Where a pipeline of one's own draws, the two
    may have one key."""


PLAIN = Extras()


@dataclass(frozen=True)
class Job:
    """What the missing images of one draw are made with; it can be sent to another process."""

    checkpoint: Checkpoint
    protocol: Protocol
    """As this kind of device draws it, without metrics that cannot be had."""
    workspace: Workspace
    gaps: tuple[Gap, ...]
    """What lacked when it was looked for."""
    tuning: Tuning = field(default_factory=Tuning)
    extras: Extras = PLAIN
    most: int | None = None
    """Images that may be drawn; None: any number."""
    load: Load | None = None
    """Makes a pipeline of the user's own: such a job stays in its process."""

    @property
    def tie(self) -> str:
        """Why no other process can do it; empty where one can."""
        if self.load is not None:
            return "its pipeline is one of your own, which lies in this process"
        metrics = [spec.metric for spec in self.protocol.metrics.values()]
        own = [name for name in metrics if not METRICS.is_installed(name)]
        own += [
            name for name in self.protocol.extractors if not EXTRACTORS.is_installed(extractor_of(name).name)
        ]
        return f"{own[0]} is registered in a conftest, and other processes do not have it" if own else ""

    @property
    def title(self) -> str:
        """What a progress bar calls it."""
        return f"{self.checkpoint.spec}: {self.protocol.name}"

    @property
    def images(self) -> int:
        """Images of which something lacks."""
        return images_of(self.gaps)

    @property
    def columns(self) -> frozenset[str]:
        """Columns that lack of any image."""
        return frozenset[str]().union(*(gap.columns for gap in self.gaps))

    @property
    def missing(self) -> list[range]:
        """The shards of which something lacks, those first that need no drawing."""
        return [gap.images for gap in sorted(self.gaps, key=lambda gap: gap.draws)]

    def evidence(self) -> Evidence:
        """Open the evidence, as whoever draws on this device writes it."""
        return open_evidence(
            self.workspace,
            self.checkpoint,
            self.protocol,
            batch_size=self.tuning.batch_size,
            extras=self.extras,
        )

    def on(self, device: str, **changes: Any) -> Job:
        """Return the job of another device, or in another workspace."""
        return replace(self, workspace=replace(self.workspace, device=device, **changes))


def images_of(gaps: Iterable[Gap]) -> int:
    return sum(len(gap.images) for gap in gaps)


def check_number(gaps: Sequence[Gap], most: int | None, protocol: Protocol, evidence: Evidence) -> None:
    """Raise Unavailable where more images are to be drawn than this run may make."""
    missing = images_of(gap for gap in gaps if gap.draws)
    if most is not None and missing > most:
        raise _too_many(missing, most, protocol, evidence.pace(), evidence.manifest["options"]["device"])


def _too_many(missing: int, most: int, protocol: Protocol, pace: float | None, device: str) -> Unavailable:
    """Return the reason for a score that costs more images than this run may make."""
    cost = f"{protocol.sampling.steps} steps each"
    remedy = "To make them: --sdbench-max-images all"
    if on_this_device(protocol, device) is not protocol:
        remedy += "; what CUDA's generator has drawn elsewhere counts where none of it lacks"
    if pace is not None:
        cost += f", about {duration(missing * pace)} on this machine"
    return Unavailable(
        f"{missing:,} of {protocol.n:,} images are not in the store ({cost}), and this run makes at most "
        f"{most:,} of a checkpoint and protocol",
        key=protocol.name,
        remedy=remedy,
    )


def open_evidence(
    workspace: Workspace,
    checkpoint: Checkpoint,
    protocol: Protocol,
    *,
    batch_size: int | None = None,
    extras: Extras = PLAIN,
) -> Evidence:
    """Return what the store holds of a checkpoint under a protocol: features and scores of images.

    Raises Unavailable where the weights of an extractor are not on this machine: they are in the keys of its
    columns.
    """
    data = workspace.data_root
    manifest = {
        "checkpoint_spec": _passed_on(checkpoint.spec),
        "protocol": protocol.model_dump(mode="json", include=DRAWN),
        "device": device_name(workspace.device),
        "versions": versions(),
        "batch_size": batch_size or default_batch_size(protocol, workspace.device),
        # What the run was told, and not the command: there may stand in it what is nobody's business.
        "options": {
            "device": workspace.device,
            "dtype": workspace.dtype,
            "data": None if data is None else shown(data),
        },
    }
    against = None if extras.reference is None else str(extras.reference.manifest["checkpoint"])
    here = replace(workspace, download=False)
    columns = column_keys(protocol, against, here) if extras.columns is None else extras.columns
    keep, insists = kept_images(protocol, workspace.keep_images, extras.keep, extras.later)
    key = checkpoint.fingerprint, protocol.draw_fingerprint
    return Store(workspace.store).open(*key, manifest, columns, keep=keep, insists=insists)


def _passed_on(spec: str) -> str:
    """Return a checkpoint's spec with the names alone of folders elsewhere.

    Evidence is passed on, and where somebody keeps files is not.
    """
    parts = map(told, re.split(r"(base: |, (?:unet|file|lora): )", spec))
    return "".join(Path(part).name if part.startswith("/") else part for part in parts)


def kept_images(protocol: Protocol, asked: int | str, needed: int = 0, later: int = 0) -> tuple[int, bool]:
    """Return of how many images pictures are kept, and whether those that lack are drawn for that alone.

    `asked` is what a workspace says; `needed` and `later` are the `keep` and `later` of extras.
    """
    if needed or asked != "auto":
        number = asked if isinstance(asked, int) else protocol.n if asked == "all" else 0
        return max(needed, number), True
    return max(_KEPT, later, *compared_pictures([protocol]).values()), False


def compared_pictures(protocols: Iterable[Protocol]) -> dict[str, int]:
    """Return, by draw, of how many images the metrics of pairs of any protocol compare the pictures."""
    found: dict[str, int] = {}
    for protocol in protocols:
        if any(METRICS[metric].reads == "pair" for metric in protocol.metrics):
            draw = protocol.draw_fingerprint
            found[draw] = max(protocol.n, found.get(draw, 0))
    return found


def on_this_device(protocol: Protocol, device: str) -> Protocol:
    """Return the protocol as this device can draw it: a CUDA generator needs CUDA."""
    seeds = protocol.seeds
    if isinstance(seeds, SequentialSeeds) and seeds.device == "cuda" and not device.startswith("cuda"):
        return protocol.with_seeds_on("cpu")
    return protocol
