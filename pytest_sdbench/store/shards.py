"""Keep evidence: the per-image rows of one checkpoint under one draw, in immutable shards with checksums.

A store is a folder on a disk or behind a URL. Each pair of checkpoint and draw has a folder of its own in it:

    <checkpoint>-<draw>/
        manifest-<writer>.json                what was drawn; on which device, with which versions and options
        shard-00000000-00000064.safetensors   rows of images 0 to 63; its header says whose they are and who
                                              wrote them, and holds a checksum
        pace-<writer>.json                    seconds an image: what the missing ones would take

Shards lie on a fixed grid, so that their borders do not depend on where a run was killed. Nothing is ever
written in place (see `folders`): a reader finds a whole file or none, and of two writers of one shard the
last wins, with the same rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.base.files import TEMPORARY, json_mapping
from pytest_sdbench.base.paths import told
from pytest_sdbench.store.folders import ELSEWHERE, Stamp, Storage, open_storage
from pytest_sdbench.store.leases import BEAT, SECONDS, Leases, Work
from pytest_sdbench.store.mirror import Mirror
from pytest_sdbench.store.shard_format import (
    FORMAT,
    SHARD,
    Damage,
    Rows,
    format_shard,
    names_of,
    parse_shard,
    range_of,
    shard_name,
)

_REMARKS = ("command", "options", "checkpoint_spec")
"""What a manifest says for people, and what does not make another writer."""
_STALE = 24 * 3600


class DamagedEvidence(UserWarning):
    """A shard that was damaged and has been set aside; it will be made again."""


@dataclass(frozen=True)
class Store:
    """Evidence of many checkpoints, in one folder."""

    root: Path | str
    """A path, or an fsspec URL."""
    lease_seconds: float = SECONDS
    """A lease of a process that was not heard of for so long is taken over."""
    beat: float = BEAT
    """Seconds after which a process renews its leases."""

    def open(self, checkpoint: str, draw: str, manifest: Mapping[str, Any]) -> Evidence:
        """Open the evidence of a checkpoint under a draw, both given by fingerprint.

        `manifest` is what this process would write down with its shards: device, versions, options and so on.
        Nothing is written until the first shard is, so that a finished store may be read-only.
        """
        storage = open_storage(self.root)
        if isinstance(storage.root, Path) and storage.root.exists() and not storage.root.is_dir():
            raise EvidenceError("the evidence store is not a folder", file=storage.root, remedy=ELSEWHERE)
        folder = storage.within(f"{checkpoint}-{draw}")
        return Evidence(
            folder,
            {"checkpoint": checkpoint, "draw": draw, **manifest},
            Leases(folder, seconds=self.lease_seconds, beat=self.beat),
            None if isinstance(storage.root, Path) else Mirror(),
        )


@dataclass(frozen=True)
class Evidence:
    """The rows of one checkpoint under one draw."""

    storage: Storage
    manifest: Mapping[str, Any]
    leases: Leases = field(repr=False)
    mirror: Mirror | None = None
    """Copies of a remote store's shards; None where the store is as near."""
    _sound: dict[str, tuple[Stamp, str]] = field(default_factory=dict, repr=False)
    """Stamp and writer of each shard whose checksum was right: it is not read again for each question."""
    _damaged: dict[str, Stamp] = field(default_factory=dict, repr=False)
    """Shards that could not be set aside, in a store that is not quite ours."""
    _prepared: set[str] = field(default_factory=set, repr=False)
    """Manifests of a remote store that were found or written."""

    @property
    def folder(self) -> Path | str:
        return self.storage.root

    @property
    def writer(self) -> str:
        """Fingerprint of this process as a writer: of its manifest without remarks."""
        content = {key: value for key, value in self.manifest.items() if key not in _REMARKS}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]

    @property
    def _of(self) -> str:
        """Whose rows these are: shards that were copied together from several stores must not mix."""
        return f"{self.manifest['checkpoint']}-{self.manifest['draw']}"

    def missing(self, n: int) -> list[range]:
        """Return the shards that the first `n` images still need, each as the range of its images.

        A damaged shard is set aside with a warning, and is missing.
        """
        files = self.storage.files()
        return [wanted for wanted in _grid(n) if self._find(wanted, files) is None]

    def holds(self, images: range) -> bool:
        """Return whether the shard of exactly these images is there and sound; nothing is changed."""
        try:
            _, about = parse_shard(self.storage.read(shard_name(images)))
            self._check(about, images)
        except (FileNotFoundError, Damage):
            return False
        return True

    def work(self, n: int, *, start_at: float = 0.0) -> Work:
        """Return an iterator over the shards that the first `n` images still need, for this process to make.

        Each is leased before it is given out, so that processes and hosts that share the store do not make
        the same; `write` lets it go. At the end it waits for those that others are making, and takes over
        those of owners that are gone. `start_at` is the fraction of the missing ones at which to begin:
        processes that begin apart seldom meet. Several threads may call `next`. Close it if it is left before
        its end.
        """
        missing = self.missing(n)
        first = int(start_at * len(missing))

        def is_made(images: range, files: Mapping[str, Stamp]) -> bool:
            return any(files[name] != self._damaged.get(name) for name in names_of(images, files))

        return Work(missing[first:] + missing[:first], self.leases, is_made)

    def write(self, start: int, rows: Mapping[str, npt.NDArray[Any]]) -> Path | str:
        """Write the rows of consecutive images from `start` on as one shard, and return its path or URL.

        `start` lies on the grid; there are at most `SHARD` rows; the first axis of every array is the image.
        Raises EvidenceError if the store cannot take them; nothing half-written is left then.
        """
        counts = {name: len(values) for name, values in rows.items()}
        count = next(iter(counts.values()), 0)
        if start % SHARD or not 0 < count <= SHARD or set(counts.values()) != {count}:
            raise ValueError(f"not a shard: start {start}, rows {counts}; the grid is {SHARD}")
        self.prepare()
        images = range(start, start + count)
        name, content = shard_name(images), format_shard(rows, images, of=self._of, writer=self.writer)
        stamp = self.storage.write(name, content)
        if stamp is not None:
            self._sound[name] = (stamp, self.writer)
            if self.mirror is not None:
                self.mirror.put(str(self.storage.where(name)), stamp, content)
        self.leases.release(images)
        return self.storage.where(name)

    def prepare(self) -> None:
        """Make the folder and write this process's manifest, unless they are there.

        A run calls it before its first image, so that a store that cannot be written is found at once.
        """
        name = f"manifest-{self.writer}.json"
        if name in self._prepared:
            return
        files = self.storage.files()
        if name not in files:
            for left, stamp in files.items():
                # Of a run that was killed long ago; a younger one may belong to a run beside this one.
                if left.startswith(TEMPORARY) and time.time() - stamp.modified > _STALE:
                    self.storage.remove(left)
            self.storage.write(name, _json({"format": FORMAT, **self.manifest}, indent=2))
        if self.mirror is not None:  # a folder on a disk may be gone at the next shard
            self._prepared.add(name)

    def pace(self) -> float | None:
        """Return the seconds that an image last took this set-up, or None where it has made none yet."""
        try:
            pace = float(json_mapping(self.storage.read(self._pace))["seconds_per_image"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
            return None
        return pace if 0 < pace < math.inf else None

    def keep_pace(self, seconds: float) -> None:
        """Write down the seconds that an image took; a store that cannot take it loses an estimate alone."""
        with contextlib.suppress(EvidenceError):
            self.storage.write(self._pace, _json({"seconds_per_image": round(seconds, 6)}))

    @property
    def _pace(self) -> str:
        return f"pace-{self.writer}.json"

    def read(self, n: int) -> Iterator[Rows]:
        """Yield the rows of the first `n` images in the order of their index, shard by shard.

        Every shard has `index`; all have the same columns. Raises EvidenceError if one is missing or damaged.
        """
        # `_find` has checked the checksum of this very file, so that further passes need not hash it again.
        columns: dict[str, tuple[int, ...]] | None = None
        files = self.storage.files()
        for wanted in _grid(n):
            name = self._find(wanted, files)
            if name is None:
                raise EvidenceError(
                    f"images {wanted.start} to {wanted.stop - 1} are missing", file=self.folder, remedy=_AGAIN
                )
            path = self.storage.where(name)
            try:
                rows, _ = self._open(name, files[name], check=False)
            except (FileNotFoundError, Damage) as error:
                what = "removed" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
                raise EvidenceError(f"{what} since it was opened", file=path, remedy=_AGAIN) from None
            rows = {name: values[: len(wanted)] for name, values in rows.items()}
            form = {name: values.shape[1:] for name, values in rows.items()}
            if columns is not None and form != columns:
                raise EvidenceError(
                    "other columns than the shards before", file=path, found=form, remedy=_AGAIN
                )
            columns = form
            yield rows

    def rows(self, n: int) -> Iterable[Rows]:
        """Return the rows of the first `n` images, to be read as often as they are needed."""
        return _Rows(self, n)

    def writers(self, n: int) -> list[dict[str, Any]]:
        """Return the manifests of all who wrote the first `n` images, in the order of their first image."""
        files = self.storage.files()
        names = [self._find(wanted, files) for wanted in _grid(n)]
        found = []
        for writer in dict.fromkeys(self._sound[name][1] for name in names if name is not None):
            try:
                found.append(json_mapping(self.storage.read(f"manifest-{writer}.json")))
            except (FileNotFoundError, ValueError):
                # Rows are sound without it; only who wrote them is not known any more.
                found.append({"writer": writer, "device": "unknown"})
        return found

    def _find(self, wanted: range, files: Mapping[str, Stamp]) -> str | None:
        """Return the shard among these files that holds these images, checked; set damaged ones aside."""
        return next((name for name in names_of(wanted, files) if self._is_sound(name, files[name])), None)

    def _open(self, name: str, stamp: Stamp, *, check: bool) -> tuple[Rows, dict[str, Any]]:
        """Parse a shard, from the mirror if it has it; what is remote is always checked."""
        if self.mirror is None:
            return parse_shard(self.storage.read(name), check=check)
        where = str(self.storage.where(name))
        copy = self.mirror.get(where, stamp)
        if copy is not None:
            try:
                return parse_shard(copy)
            except Damage:
                self.mirror.forget(where, stamp)
        content = self.storage.read(name)
        shard = parse_shard(content)
        self.mirror.put(where, stamp, content)
        return shard

    def _is_sound(self, name: str, stamp: Stamp) -> bool:
        if name in self._sound and self._sound[name][0] == stamp:
            return True
        try:
            _, about = self._open(name, stamp, check=True)
            self._check(about, range_of(name))
        except FileNotFoundError:
            return False
        except Damage as damage:
            if self.storage.files().get(name) == stamp:  # else another process has made it again by now
                self._set_aside(name, stamp, damage)
            return False
        self._sound[name] = (stamp, str(about["writer"]))
        return True

    def _check(self, about: Mapping[str, Any], images: range | None) -> None:
        """Raise Damage for a shard of other images than its name says, or of another checkpoint or draw."""
        if range(about["start"], about["stop"]) != images:
            raise Damage("its name is not that of its images")
        if about.get("of", self._of) != self._of:  # shards had no such mark once
            raise Damage(f"it is of {about['of']}")

    def _set_aside(self, name: str, stamp: Stamp, damage: Damage) -> None:
        try:
            kept = f"moved to {self.storage.set_aside(name)}"
        except EvidenceError as error:
            self._damaged[name] = stamp
            kept = f"left in place: {error.message}"
        where = self.storage.where(name)
        text = told(f"{where}: damaged evidence ({damage}), {kept}; its images are missing now")
        try:
            warnings.warn(text, DamagedEvidence, stacklevel=4)
        except DamagedEvidence:  # `-W error`: the images are made again all the same
            print(text, file=sys.stderr)


@dataclass(frozen=True)
class _Rows:
    evidence: Evidence
    n: int

    def __iter__(self) -> Iterator[Rows]:
        return self.evidence.read(self.n)


_AGAIN = "Run again: missing images are made anew."


def _grid(n: int) -> Iterator[range]:
    return (range(start, min(start + SHARD, n)) for start in range(0, n, SHARD))


def _json(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(content, indent=indent, sort_keys=True, default=str) + "\n").encode()
