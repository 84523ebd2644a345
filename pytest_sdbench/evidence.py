"""Keep evidence: the per-image rows of one checkpoint under one draw, in immutable shards with checksums.

A store is a folder. Each pair of checkpoint and draw has a folder of its own in it:

    <checkpoint>-<draw>/
        manifest-<writer>.json                what was drawn; on which device, with which versions and command
        shard-00000000-00000064.safetensors   rows of images 0 to 63; its header holds its checksum and writer
        pace-<writer>.json                    seconds an image: what the missing ones would take

Shards lie on a fixed grid, so that their borders do not depend on where a run was killed. Nothing is ever
written in place: a file is written under another name, flushed to the disk and renamed. So a reader finds a
whole file or none, and of two writers of one shard the last wins, with the same rows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as format_safetensors

from pytest_sdbench.errors import EvidenceError
from pytest_sdbench.files import TEMPORARY, write_atomically

SHARD = 64
"""Images in a shard; the last one of a run may hold fewer."""

FORMAT = 1
"""Counts changes of the form of shards and manifests."""

Rows = dict[str, npt.NDArray[Any]]

_META = "sdbench"
_REMARKS = ("command", "checkpoint_spec")
"""What a manifest says for people, and what does not make another writer."""
_STALE = 24 * 3600


class DamagedEvidence(UserWarning):
    """A shard that was damaged and has been set aside; it will be made again."""


@dataclass(frozen=True)
class Store:
    """Evidence of many checkpoints, in one folder."""

    root: Path

    def open(self, checkpoint: str, draw: str, manifest: Mapping[str, Any]) -> Evidence:
        """Open the evidence of a checkpoint under a draw, both given by fingerprint.

        `manifest` is what this process would write down with its shards: device, versions, command and so on.
        Nothing is written until the first shard is, so that a finished store may be read-only.
        """
        if self.root.exists() and not self.root.is_dir():
            raise EvidenceError("the evidence store is not a folder", file=self.root, remedy=_ELSEWHERE)
        return Evidence(
            self.root / f"{checkpoint}-{draw}", {"checkpoint": checkpoint, "draw": draw, **manifest}
        )


@dataclass(frozen=True)
class Evidence:
    """The rows of one checkpoint under one draw."""

    folder: Path
    manifest: Mapping[str, Any]
    _sound: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    """Size and time of shards whose checksum was right: they are not read again for each question."""

    @property
    def writer(self) -> str:
        """Fingerprint of this process as a writer: of its manifest without the command."""
        return _writer(self.manifest)

    def missing(self, n: int) -> list[range]:
        """Return the shards that the first `n` images still need, each as the range of its images.

        A damaged shard is set aside with a warning, and is missing.
        """
        return [wanted for wanted in _grid(n) if self._find(wanted) is None]

    def work(self, n: int, *, start_at: float = 0.0) -> Iterator[range]:
        """Yield the shards that the first `n` images still need."""
        yield from self.missing(n)

    def write(self, start: int, rows: Mapping[str, npt.NDArray[Any]]) -> Path:
        """Write the rows of consecutive images from `start` on as one shard, and return its file.

        `start` lies on the grid; there are at most `SHARD` rows; the first axis of every array is the image.
        Raises EvidenceError if the store cannot take them; nothing half-written is left then.
        """
        counts = {name: len(values) for name, values in rows.items()}
        count = next(iter(counts.values()), 0)
        if start % SHARD or not 0 < count <= SHARD or set(counts.values()) != {count}:
            raise ValueError(f"not a shard: start {start}, rows {counts}; the grid is {SHARD}")
        self.prepare()
        arrays = {name: np.ascontiguousarray(values) for name, values in rows.items()}
        arrays["index"] = np.arange(start, start + count, dtype=np.int64)
        about = {"format": FORMAT, "start": start, "stop": start + count, "writer": self.writer}
        about["sha256"] = _checksum(arrays, about)
        # One entry: safetensors keeps metadata in an unordered map, and equal shards are to be equal files.
        content = format_safetensors(arrays, {_META: json.dumps(about, sort_keys=True)})
        path = self.folder / _shard_name(range(start, start + count))
        _put(path, content)
        stamp = _stamp(path)
        if stamp is not None:
            self._sound[path.name] = stamp
        return path

    def prepare(self) -> None:
        """Make the folder and write this process's manifest, unless they are there.

        A run calls it before its first image, so that a store that cannot be written is found at once.
        """
        path = self.folder / f"manifest-{self.writer}.json"
        try:
            if path.is_file():
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"{TEMPORARY}*"):
                # Of a run that was killed long ago; a younger one may belong to a run beside this one, which
                # may have given it its name by now.
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - left.stat().st_mtime > _STALE:
                        left.unlink()
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        content = {"format": FORMAT, **self.manifest}
        _put(path, (json.dumps(content, indent=2, sort_keys=True, default=str) + "\n").encode())

    def pace(self) -> float | None:
        """Return the seconds that an image last took this set-up, or None where it has made none yet."""
        try:
            return float(json.loads(_get(self._pace))["seconds_per_image"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def keep_pace(self, seconds: float) -> None:
        """Write down the seconds that an image took; a store that cannot take it loses an estimate alone."""
        with contextlib.suppress(EvidenceError):
            _put(self._pace, (json.dumps({"seconds_per_image": round(seconds, 6)}) + "\n").encode())

    @property
    def _pace(self) -> Path:
        return self.folder / f"pace-{self.writer}.json"

    def read(self, n: int) -> Iterator[Rows]:
        """Yield the rows of the first `n` images in the order of their index, shard by shard.

        Every shard has `index`; all have the same columns. Raises EvidenceError if one is missing or damaged.
        """
        # `_find` has checked the checksum of this very file, so that further passes need not hash it again.
        columns: dict[str, tuple[int, ...]] | None = None
        for wanted in _grid(n):
            path = self._find(wanted)
            if path is None:
                raise EvidenceError(
                    f"images {wanted.start} to {wanted.stop - 1} are missing", file=self.folder, remedy=_AGAIN
                )
            try:
                rows, _ = _parse(_get(path), check=False)
            except _Damage as damage:
                raise EvidenceError(
                    f"damaged since it was opened: {damage}", file=path, remedy=_AGAIN
                ) from None
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
        found: dict[str, dict[str, Any]] = {}
        for wanted in _grid(n):
            path = self._find(wanted)
            if path is not None:
                writer = str(_about(_get(path))["writer"])
                if writer not in found:
                    found[writer] = self._manifest(writer)
        return list(found.values())

    def _manifest(self, writer: str) -> dict[str, Any]:
        path = self.folder / f"manifest-{writer}.json"
        try:
            content = json.loads(_get(path))
            return dict(content)
        except (FileNotFoundError, ValueError):
            # Rows are sound without it; only who wrote them is not known any more.
            return {"writer": writer, "device": "unknown"}

    def _find(self, wanted: range) -> Path | None:
        """Return the shard that holds these images, checked; set damaged ones aside."""
        for path in self._shards(wanted):
            stamp = _stamp(path)
            if stamp is not None and self._sound.get(path.name) == stamp:
                return path
            try:
                _, about = _parse(_get(path))
                if (about["start"], about["stop"]) != _range_of(path):
                    raise _Damage("its name is not that of its images")
            except FileNotFoundError:
                continue
            except _Damage as damage:
                _set_aside(path, damage)
                continue
            if stamp is not None:
                self._sound[path.name] = stamp
            return path
        return None

    def _shards(self, wanted: range) -> Sequence[Path]:
        """Return the files that hold these images, the largest first: longer runs leave the shorter ones'."""
        names = [
            _shard_name(range(wanted.start, stop)) for stop in range(wanted.stop, wanted.start + SHARD + 1)
        ]
        return [path for name in reversed(names) if _stamp(path := self.folder / name) is not None]


@dataclass(frozen=True)
class _Rows:
    evidence: Evidence
    n: int

    def __iter__(self) -> Iterator[Rows]:
        return self.evidence.read(self.n)


_AGAIN = "Run again: what is missing is made again."
_ELSEWHERE = "Check the folder and its permissions, or give another one with --sdbench-store."


class _Damage(Exception):
    """What is wrong with a shard."""


def _grid(n: int) -> Iterator[range]:
    return (range(start, min(start + SHARD, n)) for start in range(0, n, SHARD))


def _shard_name(images: range) -> str:
    return f"shard-{images.start:08d}-{images.stop:08d}.safetensors"


def _range_of(path: Path) -> tuple[int, int]:
    _, start, stop = path.stem.split("-")
    return int(start), int(stop)


def _writer(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key not in _REMARKS}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _checksum(arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _about(content: bytes) -> dict[str, Any]:
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_META]))


def _parse(content: bytes, *, check: bool = True) -> tuple[Rows, dict[str, Any]]:
    """Return the arrays of a shard and what its header says of it; raise _Damage if a bit is wrong."""
    try:
        about = _about(content)
        arrays = parse_safetensors(content)
        expected = about.pop("sha256")
    except Exception as error:  # whatever a torn header makes of two parsers
        raise _Damage(f"not a whole shard ({type(error).__name__})") from None
    if about.get("format") != FORMAT:
        raise _Damage(f"format {about.get('format')}, this version reads {FORMAT}")
    if check and _checksum(arrays, about) != expected:
        raise _Damage("wrong checksum")
    return arrays, about


def _set_aside(path: Path, damage: _Damage) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
        where = f"moved to {aside.name}"
    except OSError as error:
        where = f"left in place: {error.strerror}"
    warnings.warn(
        f"{path}: damaged evidence ({damage}), {where}; its images are made again",
        DamagedEvidence,
        stacklevel=4,
    )


def _get(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    return status.st_size, status.st_mtime_ns


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and have it on the disk before it has its name."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unreadable(path: Path, error: OSError) -> EvidenceError:
    return EvidenceError(f"evidence cannot be read: {error.strerror or error}", file=path, remedy=_ELSEWHERE)


def _unwritable(path: Path, error: OSError) -> EvidenceError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return EvidenceError(
        f"evidence cannot be written: {error.strerror or error}",
        file=path,
        remedy="Make room and run again: finished shards are kept." if full else _ELSEWHERE,
    )
