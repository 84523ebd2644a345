"""Keep evidence: what is known of the images of one checkpoint under one draw, in files with checksums.

A store is a folder on a disk or behind a URL. Each pair of checkpoint and draw has a folder of its own in it:

    <checkpoint>-<draw>/
        manifest-<writer>.json      what was drawn; on which device, with which versions and options
        shard-00000000-00000064-<set>.safetensors
                                    columns of images 0 to 63 that were made together; its header says whose
                                    they are and who wrote them, and holds a checksum
        pictures-00000000-00000064.tar
                                    the pictures themselves, where they are kept
        pace-<writer>.json          seconds an image: what the missing ones would take

A column is what one extractor says of each image. Its key, ``IDENTITY/OUTPUT``, names the extractor with its
weights, so that metrics can be added to a draw: what another one reads lies in further shards. Shards lie on
a fixed grid, so that their borders do not depend on where a run was killed. Nothing is ever written in place
(see `folders`): a reader finds a whole file or none, and of two writers of one shard the last wins, with the
same rows. So whoever hands out shards need not be right about who makes what: two who make one lose time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.base.files import TEMPORARY, json_mapping
from pytest_sdbench.store.folders import ELSEWHERE, Stamp, Storage, open_storage
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.kept import are_kept, artist_of, put_with_pictures, read_pictures
from pytest_sdbench.store.mirror import Mirror
from pytest_sdbench.store.older import older_folders
from pytest_sdbench.store.pictures import Pictures, pictures_name
from pytest_sdbench.store.shard_folder import Known, Listing, Look, ShardFolder, in_grid, joined
from pytest_sdbench.store.shard_format import (
    DRAW,
    FORMAT,
    SHARD,
    Damage,
    Rows,
    columns_in,
    format_shard,
    shard_name,
)

_REMARKS = ("command", "options", "checkpoint_spec")
"""What a manifest says for people, and what does not make another writer."""
_STALE = 24 * 3600


@dataclass(frozen=True)
class Store:
    """Evidence of many checkpoints, in one folder."""

    root: Path | str
    """A path, or an fsspec URL."""

    def open(
        self,
        checkpoint: str,
        draw: str,
        manifest: Mapping[str, Any],
        columns: Mapping[str, str] | None = None,
        *,
        keep: int = 0,
        insists: bool = True,
    ) -> Evidence:
        """Open the evidence of a checkpoint under a draw, both given by fingerprint.

        `manifest` is what this process would write down with its shards: device, versions, options and so on.
        `columns` are the wanted ones: the key of each by its name in rows. Of the first `keep` images the
        pictures are wanted too; unless it `insists`, they are a by-product of drawing. Nothing is written
        until the first shard is, so that a finished store may be read-only.
        """
        storage = open_storage(self.root)
        # Of a place below a folder that one may not enter, reading and writing say what is wrong.
        if isinstance(storage.root, Path) and os.path.exists(storage.root) and not storage.root.is_dir():
            raise EvidenceError("the evidence store is not a folder", file=storage.root, remedy=ELSEWHERE)
        name = f"{checkpoint}-{draw}"
        mirror = None if isinstance(storage.root, Path) else Mirror()
        folder = storage.within(name)
        return Evidence(
            ShardFolder(folder, name, mirror),
            {"checkpoint": checkpoint, "draw": draw, **manifest},
            dict(columns or {}),
            keep,
            insists,
            storage,
        )


@dataclass(frozen=True)
class Evidence:
    """What is known of one checkpoint under one draw."""

    shards: ShardFolder
    manifest: Mapping[str, Any]
    columns: Mapping[str, str] = field(default_factory=dict)
    """The key of each wanted column, by its name in rows. Where none is wanted, any shard will do."""
    keep: int = 0
    """The pictures of so many images, from the first one on and in whole shards, are wanted too."""
    insists: bool = True
    """Whether these are drawn for their own sake; else they are kept where images are drawn anyway."""
    _store: Storage | None = field(default=None, repr=False)
    """Where older folders may lie."""
    _prepared: set[str] = field(default_factory=set, repr=False)
    """The manifest, once it was found or written in a store that can be written."""

    @property
    def storage(self) -> Storage:
        return self.shards.storage

    @property
    def folder(self) -> Path | str:
        return self.storage.root

    @property
    def writer(self) -> str:
        """Fingerprint of this process as a writer: of its manifest without remarks."""
        content = {key: value for key, value in self.manifest.items() if key not in _REMARKS}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def missing(self, n: int) -> list[range]:
        """Return the shards that the first `n` images still need, each as the range of its images.

        That is where a wanted column lacks, or the pictures do. A damaged shard is set aside with a warning,
        and its columns lack.
        """
        return [gap.images for gap in self.gaps(n)]

    def gaps(self, n: int) -> list[Gap]:
        """Return what the first `n` images still need, by shard; see `missing`."""
        look = self._look()
        return [gap for images in in_grid(n) if (gap := self._gap(images, look))]

    def gap(self, images: range, *, last: bool = False) -> Gap:
        """Return what the images of one shard still need, if anything.

        `last` looks no further than the last listing, for whoever has just had one.
        """
        return self._gap(images, self._look(last=last))

    def left(self, wanted: Sequence[range]) -> list[range]:
        """Return those of some shards that are not made yet, as one new listing tells it.

        What is damaged counts as made: `gaps` finds it.
        """
        if not wanted:
            return []
        listings = [(self.shards, self.shards.listing())]
        listings += [(folder, folder.last_listing()) for folder in self.older]
        return [images for images in wanted if not self._is_made(images, listings)]

    def write(
        self,
        start: int,
        rows: Mapping[str, npt.NDArray[Any]],
        *,
        pictures: Pictures | None = None,
        artist: str | None = None,
        reference: Mapping[str, Any] | None = None,
    ) -> Path | str:
        """Write the rows of consecutive images from `start` on as one shard, and return its path or URL.

        `start` lies on the grid; there are at most `SHARD` rows; the first axis of every array is the image.
        The `pictures` come first, so that rows without them are never left by a kill, but where both cannot
        be had the rows are written alone; without `rows` pictures come alone. `artist` is the writer of the
        pictures that were measured, where they were not drawn just now; `reference` says device and versions
        of those that pairs compare with. Raises EvidenceError if the store
        cannot take them; nothing half-written is left then. Pictures that are a by-product cost a warning.
        """
        counts = {name: len(values) for name, values in rows.items()}
        if pictures is not None:
            counts["pictures"] = len(pictures.images)
        count = next(iter(counts.values()), 0)
        if start % SHARD or not 0 < count <= SHARD or set(counts.values()) != {count}:
            raise ValueError(f"not a shard: start {start}, rows {counts}; the grid is {SHARD}")
        self.prepare()
        images, writer = range(start, start + count), self.writer
        arrays = {self.columns.get(name, name): values for name, values in rows.items()}
        columns = columns_in(arrays)
        name, of = shard_name(images, columns), self.shards.of
        content = format_shard(arrays, images, of=of, writer=writer, artist=artist, reference=reference)
        known = Known(None, tuple(dict.fromkeys([artist or writer, writer])), reference)

        def put() -> None:
            if rows:
                self.shards.put(name, content, columns, known)

        put_with_pictures(self.shards, pictures, writer, put, insists=self.insists)
        return self.storage.where(name if rows else pictures_name(images))

    def pictures(self, images: range) -> tuple[Pictures, str] | None:
        """Return the pictures of some images of one shard, and who drew them; None where they are not kept.

        They are read, and checked, each time: damaged ones are set aside with a warning, and are missing.
        """
        return read_pictures(self.shards, images)

    def flags(self, images: range) -> Rows | None:
        """Return seeds and flags of the images of a shard; None where there is no sound one."""
        for last in (True, False):
            parts, _ = self._parts(images, frozenset(), self._look(last=last))
            with contextlib.suppress(FileNotFoundError, Damage):
                for folder, name, stamp in parts:
                    rows = folder.open(name, stamp)
                    return {key: rows[key][: len(images)] for key in DRAW if key in rows and key != "index"}
        return None

    def prepare(self) -> None:
        """Make the folder and write this process's manifest, unless they are there.

        A run calls it before its first image, so that a store that cannot be written is found at once: where
        the manifest is there, another file is written, and removed.
        """
        name = f"manifest-{self.writer}.json"
        if name in self._prepared and self.shards.mirror is not None:
            return
        files, content = self.storage.files(), _json({"format": FORMAT, **self.manifest}, indent=2)
        # A damaged one, of which nothing is known, is written again.
        if name not in files or self.shards.manifest(self.writer).get("device") == "unknown":
            for left, stamp in files.items():
                # Of a run that was killed long ago; a younger one may belong to a run beside this one.
                if left.startswith(TEMPORARY) and time.time() - stamp.modified > _STALE:
                    self.storage.remove(left)
            self.storage.write(name, content)
        elif name not in self._prepared:
            # Always of one name: where nothing may be removed, there is one such file and no more.
            trial = f"{TEMPORARY}{self.writer:0>32}"
            self.storage.write(trial, content)
            with contextlib.suppress(EvidenceError):
                self.storage.remove(trial)
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
        # `_parts` has checked the checksums of these very files: further passes need not hash them again.
        names = {key: name for name, key in self.columns.items()}
        form: dict[str, tuple[int, ...]] | None = None
        look = self._look()
        for wanted in in_grid(n):
            parts, lacking = self._parts(wanted, frozenset(names), look)
            if lacking or not parts:
                what = f"images {wanted.start} to {wanted.stop - 1} are missing"
                raise EvidenceError(what, file=self.folder, remedy=_AGAIN)
            found = []
            for folder, name, stamp in parts:
                path = folder.storage.where(name)
                try:
                    found.append(folder.open(name, stamp))
                except (FileNotFoundError, Damage) as error:
                    what = "removed" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
                    raise EvidenceError(f"{what} since it was opened", file=path, remedy=_AGAIN) from None
            rows = {
                names.get(key, key): values[: len(wanted)]
                for key, values in (joined(found) if len(found) > 1 else found[0]).items()
                if key in names or key in DRAW or not names
            }
            shape = {name: values.shape[1:] for name, values in rows.items()}
            if form not in (None, shape):
                what = "other columns than the shards before"
                raise EvidenceError(what, file=path, found=shape, remedy=_AGAIN)
            form = shape
            yield rows

    def rows(self, n: int) -> Iterable[Rows]:
        """Return the rows of the first `n` images, to be read as often as they are needed."""
        return _Rows(self, n)

    def writers(self, n: int) -> list[dict[str, Any]]:
        """Return the manifests of all who drew or measured the first `n` images, in the order of these."""
        return self._manifests(n, self.columns, slice(None))

    def artists(self, n: int, columns: Iterable[str]) -> list[dict[str, Any]]:
        """Return the manifests of those who drew what some columns say of the first `n` images."""
        return self._manifests(n, columns, slice(1))

    def picture_artists(self, n: int) -> list[dict[str, Any]]:
        """Return the manifests of those who drew the kept pictures of the first `n` images.

        Raises PictureLoss where some are not kept; whether their pixels are sound is not looked at.
        """
        writers = dict.fromkeys(artist_of(self.shards, images) for images in in_grid(n))
        return [self.shards.manifest(writer) for writer in writers]

    def references(self, n: int, columns: Iterable[str]) -> list[Mapping[str, Any] | None]:
        """Return with what the pictures were drawn that pairs compare with; None where that is not said."""
        return [folder.known_of(name).reference for folder, name in self._holding(n, columns)]

    def _holding(self, n: int, columns: Iterable[str]) -> Iterator[tuple[ShardFolder, str]]:
        look, wanted = self._look(), frozenset(self.columns[name] for name in columns)
        for images in in_grid(n):
            yield from ((folder, name) for folder, name, _ in self._parts(images, wanted, look)[0])

    def _manifests(self, n: int, columns: Iterable[str], which: slice) -> list[dict[str, Any]]:
        found: dict[tuple[Path | str, str], ShardFolder] = {}
        for folder, name in self._holding(n, columns):
            for writer in folder.known_of(name).writers[which]:
                found[folder.storage.root, writer] = folder
        return [folder.manifest(writer) for (_, writer), folder in found.items()]

    @cached_property
    def older(self) -> list[ShardFolder]:
        """Folders of old stores with rows of this draw; looked for once, and only where something lacks."""
        if self._store is None:
            return []
        keys, mirror = self.columns.values(), self.shards.mirror
        return list(older_folders(self._store, self.shards.of, self.manifest, keys, mirror))

    def _look(self, *, last: bool = False) -> Look:
        return Look(self.shards, lambda: self.older, last=last)

    def _parts(
        self, wanted: range, keys: frozenset[str], look: Look
    ) -> tuple[list[tuple[ShardFolder, str, Stamp]], frozenset[str]]:
        """Return sound shards that hold these columns of these images, and the keys of those that lack."""
        found: list[tuple[ShardFolder, str, Stamp]] = []
        for folder, listing in look:
            names, left = folder.covering(wanted, keys, listing)
            if left != keys or not found:
                found += [(folder, name, listing.files[name]) for name in names]
            keys = left
            if found and not keys:
                break
        return found, keys

    def _gap(self, images: range, look: Look) -> Gap:
        parts, lacking = self._parts(images, frozenset(self.columns.values()), look)
        columns = frozenset(name for name, key in self.columns.items() if key in lacking)
        kept, wanted = are_kept(images, look.own.files), images.start < self.keep
        # With rows that are drawn anew come their pictures: those that are there may be another writer's.
        keeps = wanted and not (kept and parts)
        return Gap(images, columns, not parts, wanted and self.insists and not kept, kept, keeps)

    def _is_made(self, images: range, listings: Sequence[tuple[ShardFolder, Listing]]) -> bool:
        """Return whether nothing of these images is missing any more, as listings tell it."""
        known = [folder.known(images, listing) for folder, listing in listings]
        there = [each for each in known if each is not None]
        if not there or not frozenset(self.columns.values()) <= frozenset().union(*there):
            return False
        enough = not self.insists or images.start >= self.keep
        return enough or are_kept(images, listings[0][1].files)


@dataclass(frozen=True)
class _Rows:
    evidence: Evidence
    n: int

    def __iter__(self) -> Iterator[Rows]:
        return self.evidence.read(self.n)


_AGAIN = "Run again: missing images are made anew."


def _json(content: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(content, indent=indent, sort_keys=True, default=str) + "\n").encode()
