"""The shards of one folder: which there are, which columns they hold, and whether they are sound.

Columns that were made together lie in one file, and its name says which set of columns that is. So a listing
tells what there is of every image, once one shard of each set has been read.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.base.files import is_pointer, json_mapping
from pytest_sdbench.base.paths import told
from pytest_sdbench.store.folders import Stamp, Storage
from pytest_sdbench.store.mirror import Mirror
from pytest_sdbench.store.shard_format import (
    SHARD,
    Damage,
    LaterFormat,
    Rows,
    columns_in,
    parse_rows,
    parse_shard,
    read_shard_name,
    set_of,
)

_NONE: frozenset[str] = frozenset()


class DamagedEvidence(UserWarning):
    """A file of evidence that was damaged and has been set aside; it will be made again."""


@dataclass(frozen=True)
class Listing:
    """The files of a folder at one moment."""

    files: Mapping[str, Stamp]

    @cached_property
    def _shards(self) -> dict[int, list[tuple[int, str, str]]]:
        """Stop, set and name of the shards that begin at each image, the longest first."""
        found: dict[int, list[tuple[int, str, str]]] = {}
        for name in self.files:
            if (parts := read_shard_name(name)) is not None:
                images, columns = parts
                found.setdefault(images.start, []).append((images.stop, columns, name))
        return {start: sorted(each, key=lambda one: (-one[0], one[1])) for start, each in found.items()}

    def holding(self, wanted: range) -> list[tuple[str, str]]:
        """Return set and name of the shards that hold these images, the longest first."""
        shards = self._shards.get(wanted.start, ())
        return [
            (columns, name) for stop, columns, name in shards if wanted.stop <= stop <= wanted.start + SHARD
        ]

    def of_set(self, wanted: str) -> Iterator[str]:
        """Yield the names of the shards of one set of columns, in the order of their images."""
        for start in sorted(self._shards):
            yield from (name for _, columns, name in self._shards[start] if columns == wanted)


@dataclass(frozen=True)
class Known:
    """What the name of a sound shard does not say."""

    stamp: Stamp | None
    writers: tuple[str, ...]
    """Who drew its pictures and, if that is another, who measured them."""
    reference: Mapping[str, Any] | None = None
    """Device and versions with which the pictures were drawn that its pairs compare with, if it says so."""


def _as_they_are(rows: Rows) -> Rows:
    return rows


@dataclass(frozen=True)
class ShardFolder:
    """The shards of a folder. What was found sound is not read again for each question."""

    storage: Storage
    of: str
    """Whose rows these are: shards that were copied together from several stores must not mix."""
    mirror: Mirror | None = None
    """Copies of a remote store's shards; None where the store is as near."""
    renamed: Callable[[Rows], Rows] = _as_they_are
    """Gives the columns of an old store the names of today."""
    _sound: dict[str, Known] = field(default_factory=dict, repr=False)
    """What is known of each shard whose checksum was right."""
    _damaged: dict[str, Stamp] = field(default_factory=dict, repr=False)
    """Files that could not be set aside, in a store that is not quite ours."""
    _sets: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)
    """The columns of each set of which a shard was read or written."""
    _last: list[Listing] = field(default_factory=list, repr=False)
    """The last listing: a server is not asked again for each shard."""
    spare: list[str] = field(default_factory=list, repr=False)
    """Pictures that this process has added: they go where rows need their room."""

    def listing(self, files: Mapping[str, Stamp] | None = None) -> Listing:
        """Return the files that are there now, or were, without those that are known to be damaged."""
        files = self.storage.files() if files is None else files
        found = Listing({name: each for name, each in files.items() if self._damaged.get(name) != each})
        self._last[:] = [found]
        return found

    def last_listing(self) -> Listing:
        """Return the last listing, which lacks what was written since; where there is none, one of now."""
        return next(iter(self._last), None) or self.listing()

    def listings(self) -> Iterator[Listing]:
        """Yield the last listing, and one of now for whoever does not find in it, or not any more."""
        yield from self._last[:]
        yield self.listing()

    def columns(self, of: str, listing: Listing) -> frozenset[str]:
        """Return the columns of a set of this listing; the first sound shard of it says which they are."""
        if of not in self._sets:
            next(filter(lambda name: self.is_sound(name, listing), listing.of_set(of)), None)
        return self._sets.get(of, _NONE)

    def covering(
        self, wanted: range, columns: frozenset[str], listing: Listing
    ) -> tuple[list[str], frozenset[str]]:
        """Return sound shards that hold these images and columns, as few as will do, and which columns lack.

        Where no columns are wanted, or none is there, one sound shard of any columns is returned, if there is
        one.
        """
        there = [(self.columns(of, listing), name) for of, name in listing.holding(wanted)]
        if len(there) > 1:
            there.sort(key=lambda each: -len(each[0] & columns))  # of equal ones the longest stays first
        found: list[str] = []
        for held, name in there:
            if (not found or columns & held) and self.is_sound(name, listing):
                found.append(name)
                columns -= held
            if found and not columns:
                break
        return found, columns

    def known(self, wanted: range, listing: Listing) -> frozenset[str] | None:
        """Return the columns of these images by a listing alone; None where there is no shard."""
        there = listing.holding(wanted)
        return frozenset[str]().union(*(self.columns(of, listing) for of, _ in there)) if there else None

    def open(self, name: str, stamp: Stamp) -> Rows:
        """Return the arrays of a sound shard; raises FileNotFoundError, and Damage where it is whole no more.

        What is remote is always checked; of a file on a disk the checksum was right.
        """
        if self.mirror is None:
            return self.renamed(parse_rows(self.storage.read(name)))
        return self.renamed(self._parse(name, stamp)[0])

    def known_of(self, name: str) -> Known:
        """Return who made a sound shard, and what it says of its pairs."""
        return self._sound[name]

    def manifest(self, writer: str) -> dict[str, Any]:
        """Return what a writer has said of itself; of one whose manifest is gone nothing is known."""
        try:
            return json_mapping(self.storage.read(f"manifest-{writer}.json"))
        except (FileNotFoundError, ValueError):
            # Rows are sound without it; only who wrote them is not known any more.
            return {"writer": writer, "device": "unknown"}

    def put(self, name: str, content: bytes, columns: frozenset[str], known: Known) -> None:
        """Write a shard."""
        stamp = self.storage.write(name, content)
        self._sets[set_of(columns)] = columns
        # What is there now may look like what was there before, where a listing tells a size alone.
        self._sound.pop(name, None)
        self._damaged.pop(name, None)
        if stamp is not None:
            self._sound[name] = replace(known, stamp=stamp)
            if self.mirror is not None:
                self.mirror.put(str(self.storage.where(name)), stamp, content)

    def is_sound(self, name: str, listing: Listing) -> bool:
        """Return whether a shard is what its name says, to the bit; a damaged one is set aside."""
        stamp = listing.files[name]
        if stamp.tag and name in self._sound and self._sound[name].stamp == stamp:
            return True
        try:
            rows, about = self._parse(name, stamp)
            self._check(name, about, self.renamed(rows))
        except FileNotFoundError:
            return False
        except Damage as damage:
            self.set_aside(name, stamp, damage)
            return False
        writer = str(about["writer"])
        writers = tuple(dict.fromkeys([str(about.get("artist", writer)), writer]))
        self._sound[name] = Known(stamp, writers, about.get("reference"))
        return True

    def holds(self, name: str) -> bool:
        """Return whether a shard is there and sound; nothing is changed."""
        try:
            rows, about = parse_shard(self.storage.read(name))
            self._check(name, about, self.renamed(rows))
        except (FileNotFoundError, Damage):
            return False
        return True

    def set_aside(self, name: str, stamp: Stamp, damage: Damage) -> None:
        """Give a damaged file another name, with a warning, unless somebody has made it again by now.

        Raises EvidenceError for a file that is not damaged, but of a later version.
        """
        if isinstance(damage, LaterFormat):
            what = f"written by a later version: {damage}"
            remedy = "Upgrade pytest-sdbench, or give another --sdbench-store"
            raise EvidenceError(what, file=self.storage.where(name), remedy=remedy)
        if self.storage.files().get(name) != stamp:
            return
        self._last.clear()
        try:
            kept = f"moved to {self.storage.set_aside(name)}"
        except EvidenceError as error:
            self._damaged[name] = stamp
            kept = f"left in place: {error.message}"
        where = self.storage.where(name)
        text = told(f"{where}: damaged evidence ({damage}), {kept}; its images are missing now")
        say(text, DamagedEvidence)

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the content of a file, or its first bytes, as the storage does.

        Raises EvidenceError for what Git LFS has left in its place.
        """
        content = self.storage.read(name, most)
        if is_pointer(content):
            what, remedy = "a Git LFS pointer, not a file of the store", "Run: git lfs pull"
            raise EvidenceError(what, file=self.storage.where(name), remedy=remedy)
        return content

    def _parse(self, name: str, stamp: Stamp) -> tuple[Rows, dict[str, Any]]:
        """Parse and check a shard, from the mirror if it has it."""
        if self.mirror is None:
            return parse_shard(self.read(name))
        where = str(self.storage.where(name))
        copy = self.mirror.get(where, stamp)
        if copy is not None:
            try:
                return parse_shard(copy)
            except Damage:
                self.mirror.forget(where, stamp)
        content = self.read(name)
        shard = parse_shard(content)
        self.mirror.put(where, stamp, content)
        return shard

    def _check(self, name: str, about: Mapping[str, Any], rows: Rows) -> None:
        """Raise Damage for a shard of other images or columns than its name says, or of another folder."""
        parts = read_shard_name(name)
        if parts is None or range(about["start"], about["stop"]) != parts[0]:
            raise Damage("its name is not that of its images")
        check_owner(about, self.of)
        columns, found = parts[1], columns_in(rows)
        if columns and columns != set_of(found):
            raise Damage("its name is not that of its columns")
        if self._sets.setdefault(columns, found) != found:
            raise Damage("other columns than the shards beside it")


class Look:
    """The folders of evidence with their listings of one moment; old ones are listed where asked for."""

    def __init__(
        self, shards: ShardFolder, older: Callable[[], Sequence[ShardFolder]], *, last: bool = False
    ) -> None:
        """`last` takes the last listing of each folder, where there is one, for that of the moment."""
        self._find, self._last = older, last
        self._shards, self.own = shards, self._listing(shards)

    def __iter__(self) -> Iterator[tuple[ShardFolder, Listing]]:
        yield self._shards, self.own
        yield from self._older

    @cached_property
    def _older(self) -> list[tuple[ShardFolder, Listing]]:
        return [(folder, self._listing(folder)) for folder in self._find()]

    def _listing(self, folder: ShardFolder) -> Listing:
        return folder.last_listing() if self._last else folder.listing()


def say(text: str, category: type[Warning]) -> None:
    """Warn of something that ends nothing, also under `-W error`."""
    try:
        warnings.warn(text, category, stacklevel=7)
    except category:
        print(text, file=sys.stderr)


def check_owner(about: Mapping[str, Any], of: str) -> None:
    """Raise Damage for a file of another checkpoint or draw; files had no such mark once."""
    if about.get("of", of) != of:
        raise Damage(f"it is of {about['of']}")


def in_grid(n: int) -> Iterator[range]:
    """Yield the images of each shard of the first `n`."""
    return (range(start, min(start + SHARD, n)) for start in range(0, n, SHARD))


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the columns of several shards of the same images as one; what they share is the first one's."""
    return {name: values for part in reversed(parts) for name, values in part.items()}
