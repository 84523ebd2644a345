"""Say what a run will cost before it starts: images, time, disk and downloads, by card and protocol."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pytest_sdbench.base.errors import EvidenceError, SdbenchError, Unavailable
from pytest_sdbench.base.paths import told
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import Card, own_names
from pytest_sdbench.cards.cases import is_beside_baseline
from pytest_sdbench.cards.network import network_of
from pytest_sdbench.commands.doctor import Finding, Search
from pytest_sdbench.commands.plan_disk import ESTIMATED, MEASURED, evidence_bytes, picture_bytes
from pytest_sdbench.commands.plan_downloads import (
    Download,
    checkpoint_downloads,
    extractor_download,
    still_needed,
)
from pytest_sdbench.commands.plan_time import Stopwatch
from pytest_sdbench.commands.shared import named_card, weights_of
from pytest_sdbench.evaluation.evidence import as_drawn
from pytest_sdbench.evaluation.fidelity import known_pairs, other_scheduler, pairs_of
from pytest_sdbench.evaluation.job import Extras, kept_images, on_this_device, open_evidence
from pytest_sdbench.features.extractors import column_widths, extractor_of
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.shard_folder import DamagedEvidence, in_grid
from pytest_sdbench.store.shards import Evidence

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint

Number = TypeVar("Number", int, float)
_NOTHING = None, None, ""
"""The reference of a protocol without pairs."""


@dataclass(frozen=True)
class Row:
    """What one card costs under one protocol."""

    card: str
    protocol: str
    """Empty where a card cannot be read, or is judged by none."""
    beside: str = ""
    """The card whose pictures are compared with these, which are of its reference; empty for its own row."""
    images: int = 0
    """That the protocol asks for, or the first of them that were asked for."""
    missing: int = 0
    """Of these, images that the store lacks."""
    looked: bool = True
    """Whether the store could be looked at: it is keyed by the weights, and these may not be here."""
    seconds_per_image: float | None = None
    basis: str = ""
    """``measured`` by an earlier run of this set-up, ``estimated`` from a timing, or empty."""
    timed_in: str = ""
    """The precision that was timed, where it stands for another one: the time is then the least."""
    untimed: str = ""
    """Why there is no time."""
    bytes: int | None = None
    """Disk that the evidence of the missing images takes; None where that cannot be told."""
    pictures: int = 0
    """Images whose pictures would be kept of what is made."""
    picture_bytes: int = 0
    """Disk that these take."""
    picture_basis: str = ""
    """``measured`` on the kept ones of this draw, ``estimated`` from the resolution, or empty."""
    draw: str = ""
    """Equal for rows of which one's images are among the other's."""
    checkpoint: str = ""
    """The fingerprint of what draws; empty where it is not here."""
    temporary_bytes: int = 0
    """Disk that it takes while a process runs, where it is converted."""
    unpaired: str = ""
    """Why the protocol's metrics of pairs have nothing to compare with, where they have not."""
    downloads: tuple[Download, ...] = ()
    findings: tuple[Finding, ...] = ()
    """All that the row needs, found or not."""

    @property
    def seconds(self) -> float | None:
        """Seconds that the missing images take; None where that is not known."""
        if not self.missing:
            return 0.0
        return None if self.seconds_per_image is None else self.missing * self.seconds_per_image

    def joined(self, other: Row) -> Row:
        """Return the row with more images of two of one draw, with what both of them keep."""
        larger = self if self.missing > other.missing else other
        rows = [each.bytes for each in (self, other) if each.bytes is not None]
        kept = max(self, other, key=lambda row: row.picture_bytes)
        pictures, basis = kept.picture_bytes, kept.picture_basis
        return replace(larger, bytes=max(rows, default=None), picture_bytes=pictures, picture_basis=basis)

    @property
    def ready(self) -> bool:
        """Whether nothing lacks."""
        return all(finding.found for finding in self.findings)

    @property
    def broken(self) -> bool:
        """Whether the card or a protocol cannot be read."""
        return any(not each.found and each.need in ("card", "prompts") for each in self.findings)

    @property
    def unfetched(self) -> tuple[Finding, ...]:
        """What lacks and cannot be downloaded."""
        weights = any(download.need == "weights" for download in self.downloads)

        def can_be_fetched(finding: Finding) -> bool:
            if finding.need == "extractor":
                return finding.state == "missing" and extractor_of(finding.name).download is not None
            return finding.state == "missing" and finding.need == "weights" and weights

        return tuple(each for each in self.findings if not each.found and not can_be_fetched(each))


@dataclass(frozen=True)
class Plan:
    """What a run costs."""

    rows: tuple[Row, ...]
    device: str
    store: Path | str
    warnings: tuple[str, ...] = ()
    """What the store set aside."""

    @property
    def ready(self) -> bool:
        """Whether every card can be run as things are."""
        return all(row.ready for row in self.rows)

    @property
    def counted(self) -> tuple[Row, ...]:
        """Rows without those whose images are among another row's: protocols that differ in N share them."""
        most: dict[str, Row] = {}
        for row in self.rows:
            if row.missing:
                most[row.draw] = row.joined(most.get(row.draw, row))
        return tuple(most.values())

    @property
    def missing(self) -> int:
        """Images to make."""
        return sum(row.missing for row in self.counted)

    @property
    def seconds(self) -> float | None:
        """Seconds that they take; None where a part of them is not known."""
        return _total(row.seconds for row in self.counted)

    @property
    def bytes(self) -> int | None:
        """Disk that their evidence takes; None where a part of it is not known."""
        return _total(row.bytes for row in self.counted)

    @property
    def picture_bytes(self) -> int:
        """Disk that the kept ones of their pictures take."""
        return sum(row.picture_bytes for row in self.counted)

    @property
    def temporary_bytes(self) -> int:
        """Disk that converted checkpoints take while a process runs."""
        return sum(size for _, size in {(row.checkpoint, row.temporary_bytes) for row in self.rows})

    @property
    def downloads(self) -> dict[Download, list[str]]:
        """Everything to fetch, with the cards that need it."""
        found: dict[Download, dict[str, None]] = {}
        for row in self.rows:
            for download in row.downloads:
                found.setdefault(download, {})[row.beside or row.card] = None
        return {download: list(users) for download, users in found.items()}

    @property
    def download_bytes(self) -> int | None:
        """Bytes to fetch; None where a part of them is not known."""
        return _total(download.size for download in self.downloads)


def plan(
    cards: Sequence[Path],
    workspace: Workspace,
    *,
    images: int | None = None,
    protocols: Sequence[str] = (),
    weights: Mapping[str, Path] | None = None,
    timing: bool = True,
    tell: Callable[[str], object] = lambda line: None,
) -> Plan:
    """Reckon what cards cost under the protocols that they are judged by, or under `protocols`.

    `weights` replaces the checkpoint of a card by name or path. Nothing is downloaded and no image is made.
    One or two U-Net calls of each network are timed, unless `timing` is off; `tell` hears of it first. What
    is missing or broken is a finding of its row, and ends nothing. What the store sets aside as damaged is
    missing, with a warning. Raises CardError for `weights` of no card.
    """
    planner = _Planner(workspace, images, Stopwatch(workspace.device, tell) if timing else None)
    names = own_names(cards)
    given = weights_of(names, weights or {})
    rows: list[Row] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamagedEvidence)
        for path, name in names.items():
            try:
                card = named_card(path, name)
            except SdbenchError as error:
                broken = Finding(name, "card", path.name, "broken", str(error))
                rows.append(Row(name, "", findings=(broken,)))
                continue
            rows += planner.rows(card, given.get(path), protocols)
    said = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, DamagedEvidence))
    return Plan(tuple(rows), workspace.device, workspace.store, tuple(said))


def figures(made: Plan) -> dict[str, Any]:
    """Return a plan as plain data."""
    return {
        "ready": made.ready,
        "device": made.device,
        "store": told(made.store),
        "warnings": list(made.warnings),
        "totals": {
            "images_to_make": made.missing,
            "seconds": made.seconds,
            "evidence_bytes": made.bytes,
            "picture_bytes": made.picture_bytes,
            "temporary_bytes": made.temporary_bytes,
            "download_bytes": made.download_bytes,
        },
        "rows": [
            {
                "card": row.card,
                "protocol": row.protocol or None,
                "beside": row.beside or None,
                "ready": row.ready,
                "images": row.images,
                "images_in_store": row.images - row.missing if row.looked else None,
                "images_to_make": row.missing,
                "seconds_per_image": row.seconds_per_image,
                "seconds": row.seconds,
                "basis": row.basis or None,
                "timed_in": row.timed_in or None,
                "untimed": row.untimed or None,
                "evidence_bytes": row.bytes,
                "pictures": row.pictures,
                "picture_bytes": row.picture_bytes,
                "picture_basis": row.picture_basis or None,
                "temporary_bytes": row.temporary_bytes,
                "unpaired": row.unpaired or None,
                "draw": row.draw or None,
                "downloads": [asdict(download) for download in row.downloads],
                "lacking": [asdict(finding) for finding in row.findings if not finding.found],
            }
            for row in made.rows
        ],
    }


class _Planner:
    """Plans one card after the other, and looks for each thing once."""

    def __init__(self, workspace: Workspace, images: int | None, stopwatch: Stopwatch | None) -> None:
        self._workspace, self._images, self._stopwatch = workspace, images, stopwatch
        self._search = Search(workspace.data_root)

    def rows(self, card: Card, weights: Path | None, names: Sequence[str]) -> Iterator[Row]:
        """Yield a row for each protocol of a card, and one for the pictures of a reference that it needs."""
        protocols, broken = self._search.protocols(card, names)
        checkpoint, weighed = self._search.checkpoint(card, weights)
        downloads = checkpoint_downloads(card, weights) if weighed.state == "missing" else ()
        if broken or not protocols:
            yield Row(card.name, "", downloads=downloads, findings=(weighed, *broken))
        for protocol in protocols:
            asked = protocol.with_samples(min(self._images, protocol.n)) if self._images else protocol
            asked = asked.with_dtype(self._workspace.dtype) if self._workspace.dtype else asked
            if checkpoint is None:
                drawn = on_this_device(asked, self._workspace.device)
            else:
                drawn = as_drawn(checkpoint, asked, self._workspace)
            findings = (weighed, *self._search.protocol(card, asked))
            if checkpoint is not None and (why := other_scheduler(checkpoint, asked)):
                told = f"{card.name} {why}"
                findings += (Finding(card.name, "weights", f"under {asked.name}", "broken", told),)
            reference, row, why = self._reference(card, weights, drawn) if pairs_of(drawn) else _NOTHING
            if reference is not None and checkpoint is not None:
                compared = known_pairs(self._workspace, checkpoint, drawn, reference) is not None
                row = None if compared else row
            own = self._row(card, drawn, checkpoint, findings, downloads, Extras(reference=reference))
            yield replace(own, unpaired=why)
            if row is not None:
                yield replace(row, beside=card.name)

    def _reference(
        self, card: Card, weights: Path | None, protocol: Protocol
    ) -> tuple[Evidence | None, Row | None, str]:
        """Return the evidence of what pictures are compared with, its row, and why there is none."""
        candidate = None if is_beside_baseline(card, protocol.name) else weights
        if (found := self._search.reference(card, candidate)) is None:
            return None, None, "the card names no baseline"
        other, checkpoint, finding = found
        if checkpoint is not None and (why := other_scheduler(checkpoint, protocol)):
            return None, None, f"{other.name} {why}"
        extras = Extras(columns={}, keep=protocol.n)
        downloads = checkpoint_downloads(other) if finding.state == "missing" else ()
        row = self._row(other, protocol, checkpoint, (finding,), downloads, extras)
        evidence = self._open(checkpoint, protocol, extras) if checkpoint is not None and row.looked else None
        return evidence, row, ""

    def _open(self, checkpoint: Checkpoint, protocol: Protocol, extras: Extras) -> Evidence:
        return open_evidence(self._workspace, checkpoint, protocol, extras=extras)

    def _row(
        self,
        card: Card,
        protocol: Protocol,
        checkpoint: Checkpoint | None,
        findings: tuple[Finding, ...],
        downloads: tuple[Download, ...],
        extras: Extras,
    ) -> Row:
        from pytest_sdbench.models.made import bytes_made

        evidence: Evidence | None = None
        gaps: list[Gap] | None = None
        try:
            if checkpoint is not None:
                evidence = self._open(checkpoint, protocol, extras)
                gaps = evidence.gaps(protocol.n)
                findings = tuple(still_needed(findings, protocol, gaps))
        except Unavailable:
            evidence = None  # an extractor is not here: it is among the findings
        except EvidenceError as error:
            evidence = None
            findings += (Finding(card.name, "store", told(self._workspace.store), "broken", str(error)),)
        count = protocol.n if gaps is None else sum(len(gap.images) for gap in gaps if gap.draws)
        pace, basis, untimed, timed_in = evidence.pace() if evidence is not None else None, MEASURED, "", ""
        if count and pace is None and self._stopwatch is not None:
            basis = ESTIMATED
            try:
                network = network_of(card, checkpoint)
                pace = self._stopwatch.seconds_per_image(protocol, network, name=card.name)
                timed_in = self._stopwatch.dtype(protocol)
            except SdbenchError as error:
                untimed = str(error)
        extractors = [each.name for each in findings if (each.need, each.state) == ("extractor", "missing")]
        fetched = [each for each in map(extractor_download, extractors) if each is not None]
        of = checkpoint.fingerprint if checkpoint is not None else told(card.checkpoint or card.name)
        return Row(
            card=card.name,
            protocol=protocol.name,
            images=protocol.n,
            missing=count,
            looked=evidence is not None,
            seconds_per_image=pace,
            basis="" if pace is None else basis,
            timed_in="" if timed_in == protocol.sampling.dtype else timed_in,
            untimed=untimed,
            draw=f"{of}-{protocol.draw_fingerprint}",
            checkpoint="" if checkpoint is None else of,
            temporary_bytes=0 if checkpoint is None else bytes_made(checkpoint.folder),
            downloads=tuple(dict.fromkeys([*downloads, *fetched])),
            findings=findings,
            **self._disk(protocol, gaps, evidence, extras),
        )

    def _disk(
        self, protocol: Protocol, gaps: list[Gap] | None, evidence: Evidence | None, extras: Extras
    ) -> dict[str, Any]:
        """Return what a row says of the disk that the missing images take."""
        try:
            keep, _ = kept_images(protocol, self._workspace.keep_images, extras.keep)
            if gaps is None:
                columns = column_widths(protocol) if extras.columns is None else extras.columns
                whole = [Gap.of_all(images, columns) for images in in_grid(protocol.n)]
                gaps = [replace(gap, keeps=gap.images.start < keep) for gap in whole]
            size = evidence_bytes(protocol, gaps, evidence.manifest if evidence is not None else {})
        except SdbenchError:  # an extractor that does not exist: it is among the findings
            return {"bytes": None}
        pictures = sum(len(gap.images) for gap in gaps if gap.keeps)
        disk, basis = picture_bytes(protocol, pictures, evidence)
        return {"bytes": size, "pictures": pictures, "picture_bytes": disk, "picture_basis": basis}


def _total(values: Iterable[Number | None]) -> Number | None:
    """Return a sum, or None where a part of it is not known."""
    found = [*values]
    return None if None in found else cast("Number", sum(value or 0 for value in found))
