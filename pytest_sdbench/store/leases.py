"""Lease shards, so that several processes or hosts do not make the same one.

A lease is a small file beside the shards that its owner writes again every few seconds. Leases save work and
nothing else: shards are immutable, and whoever makes one makes the same, so that a lease that is lost, or
taken twice, or cannot be written at all, costs time and never a wrong row.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.base.files import json_mapping
from pytest_sdbench.base.processes import is_dead, this_host
from pytest_sdbench.store.folders import Stamp, Storage

PREFIX = "lease-"
SECONDS = 60.0
"""A lease that has not changed for so long is nobody's any more."""
BEAT = 10.0
"""Seconds after which an owner writes its leases again."""


def lease_name(images: range) -> str:
    """Return the name of the file that leases these images."""
    return f"{PREFIX}{images.start:08d}-{images.stop:08d}.json"


class Leases:
    """The leases that one process holds in one folder; usable from several threads."""

    def __init__(self, storage: Storage, *, seconds: float = SECONDS, beat: float = BEAT) -> None:
        self.storage, self.seconds, self.beat = storage, seconds, beat
        self.owner = {"host": this_host(), "pid": os.getpid(), "id": uuid.uuid4().hex}
        self._held: set[str] = set()
        # Leases of others: since when, by this process's own clock (those of two hosts need not agree), each
        # has had this stamp, and its owner (None of one that is torn: it is watched all the same).
        self._sightings: dict[str, tuple[Stamp, float, Mapping[str, Any] | None]] = {}
        self._beats = itertools.count()
        # Not held while something is read or written: garbage may be collected, and release, in any thread.
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def holds(self, images: range) -> bool:
        """Return whether this process holds the lease of these images."""
        return lease_name(images) in self._held

    def take(self, images: range, files: Mapping[str, Stamp]) -> bool:
        """Lease images unless somebody else has them, and return whether the caller should make them.

        `files` is a listing of the folder. A lease whose owner is gone is taken over. Where leases cannot be
        written the answer is yes: work that cannot be shared is done alone.
        """
        name = lease_name(images)
        try:
            if name not in files:
                # A reply may be lost, and the request repeated: then this very process was the first.
                taken = self.storage.create(name, self._content()) or self._owner(name) == self.owner
            else:
                taken = self._take_over(name, files[name])
        except EvidenceError:
            return True
        if taken:
            with self._lock:
                self._held.add(name)
                self._start()
        return taken

    def release(self, *images: range) -> None:
        """Give up leases of this process; those that it does not hold are left alone."""
        for name in map(lease_name, images):
            with self._lock:
                held = name in self._held
                self._held.discard(name)
                if not self._held:
                    self._stop.set()
            if held:
                # One that stays goes stale by itself.
                with contextlib.suppress(EvidenceError):
                    self.storage.remove(name)

    def _take_over(self, name: str, stamp: Stamp) -> bool:
        """Put this process's name over that of an owner who is gone; of several at once, the last has it."""
        sighting = self._sightings.get(name)
        if sighting is None or sighting[0] != stamp:
            sighting = self._sightings[name] = (stamp, time.monotonic(), self._owner(name))
        _, since, owner = sighting
        if not _is_gone(owner) and time.monotonic() - since <= self.seconds:
            return False
        self._sightings.pop(name, None)
        if self._owner(name) != owner:
            return False  # somebody else was faster
        self.storage.write(name, self._content())
        return self._owner(name) == self.owner

    def _owner(self, name: str) -> Mapping[str, Any] | None:
        try:
            content = json_mapping(self.storage.read(name))
            return {key: content[key] for key in ("host", "pid", "id")}
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _content(self) -> bytes:
        # The count makes every beat another content: a stamp may be a checksum.
        return json.dumps({**self.owner, "beat": next(self._beats)}).encode()

    def _start(self) -> None:
        # A thread that is asked to stop may be asleep still; nor does one live on in a forked process.
        if self._beating is None or not self._beating.is_alive() or self._stop.is_set():
            self._stop = threading.Event()
            self._beating = threading.Thread(
                target=self._refresh, args=(self._stop,), name="sdbench-leases", daemon=True
            )
            self._beating.start()

    def _refresh(self, stop: threading.Event) -> None:
        while not stop.wait(self.beat):
            for name in list(self._held):
                # The store may be away for a moment; the next beat may be in time.
                with contextlib.suppress(EvidenceError):
                    if self._owner(name) != self.owner:
                        with self._lock:
                            self._held.discard(name)  # this process slept for too long
                        continue
                    self.storage.write(name, self._content())
                    if name not in self._held:
                        self.storage.remove(name)  # released since it was read


class Work(Iterator[range]):
    """Shards to make, each leased before it is given out; usable from several threads.

    It gives out what nobody has leased, then waits for what other processes are making and takes over what
    they let go. It gives nothing out twice, and does not wait for what this process is making.
    """

    def __init__(
        self,
        wanted: Sequence[range],
        leases: Leases,
        left: Callable[[Sequence[range], Mapping[str, Stamp]], list[range]],
    ) -> None:
        """`left` returns those of some shards that are not made yet, given a listing of the folder."""
        self._wanted, self._leases, self._left = list(wanted), leases, left
        self._given: list[range] = []
        self._files: Mapping[str, Stamp] | None = None
        """The folder after the last lease: a server is asked once a shard."""
        self._lock = threading.Lock()
        self._closed = False

    def __next__(self) -> range:
        """Return the next shard, leased; may wait for those of others. Raises EvidenceError."""
        with self._lock:
            while not self._closed:
                known, self._files = self._files, None
                files = self._leases.storage.files() if known is None else known
                self._wanted = [
                    images for images in self._left(self._wanted, files) if not self._leases.holds(images)
                ]
                # Those that nobody has leased first: whether an owner is gone costs a request.
                for images in sorted(self._wanted, key=lambda images: lease_name(images) in files):
                    if not self._leases.take(images, files):
                        continue
                    self._wanted.remove(images)
                    self._given.append(images)
                    # Its last owner may have written it, and let it go, since the listing.
                    self._files = self._leases.storage.files()
                    if not self._closed and self._left([images], self._files):
                        return images
                    self._leases.release(images)
                if not self._wanted:
                    break
                if known is not None or self._files is not None:
                    continue
                time.sleep(min(self._leases.beat / 5, self._leases.seconds / 10))
        raise StopIteration

    def close(self) -> None:
        """Give up what was given out and not written, and end the waiting of other threads."""
        self._closed = True
        self._leases.release(*self._given)

    def __del__(self) -> None:
        self.close()


def _is_gone(owner: Mapping[str, Any] | None) -> bool:
    """Return whether an owner surely works no more.

    That is a process of this very system that does not run, or this process at an earlier attempt: nobody
    waits for himself.
    """
    if owner is None:
        return False
    itself = owner["host"] == this_host() and owner["pid"] == os.getpid() and os.name == "posix"
    return itself or is_dead(owner["host"], owner["pid"])
