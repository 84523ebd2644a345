"""Look into an evidence store, and remove what nothing needs: ``python -m pytest_sdbench store ls | gc``."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import EvidenceError, SdbenchError
from pytest_sdbench.base.files import TEMPORARY
from pytest_sdbench.base.paths import reference, told
from pytest_sdbench.base.text import size_text
from pytest_sdbench.commands.shared import own_words, share, show
from pytest_sdbench.report.cells import plain_table
from pytest_sdbench.store.folders import DAMAGED, Stamp, Storage, open_storage
from pytest_sdbench.store.kept import holds_pictures
from pytest_sdbench.store.older import manifests
from pytest_sdbench.store.pictures import pictures_range
from pytest_sdbench.store.shard_folder import ShardFolder
from pytest_sdbench.store.shard_format import SHARD, read_shard_name


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION", dest="action")
    ls = actions.add_parser("ls", help="list what it holds of which checkpoint and draw")
    ls.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    told = (
        "remove what nothing needs: damaged and unfinished files, leases of earlier versions, shards that a "
    )
    gc = actions.add_parser("gc", help=f"{told}longer one covers")
    told = "also evidence that nothing was written to for so many days"
    gc.add_argument("--older-than", type=float, metavar="DAYS", help=told)
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    for action in (ls, gc):
        share(action, "--store")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if options.action == "ls":
        found = inventory(options.store)
        if options.json:  # sizes in bytes, times in seconds since the epoch
            print(json.dumps([asdict(each) for each in found], indent=2))
        else:
            nothing = f"no evidence in {told(options.store)}"
            show(inventory_table(found) if found else nothing)
        return 0
    if options.older_than is not None and not options.older_than > 0:  # nan neither
        message, key = "not a number of days: give more than 0", "--older-than"
        raise SdbenchError(message, key=key, found=options.older_than)
    size, status = 0, 0
    for leftover in leftovers(options.store, older_than=options.older_than):
        try:
            if not options.dry_run:
                leftover.remove()
        except EvidenceError as error:  # the others go all the same
            status = 1
            print(f"error: {own_words(error, options)}", file=sys.stderr)
            continue
        show(f"{leftover.where}: {leftover.reason} ({size_text(leftover.size)})")
        size += leftover.size
    done = "would be removed" if options.dry_run else "removed"
    print(f"{size_text(size)} {done} from {told(options.store)}")
    return status


_DAY = 24 * 3600


@dataclass(frozen=True)
class Holding:
    """What a store holds of one checkpoint under one draw."""

    folder: str
    checkpoint: str
    """As its writers named it; empty if no manifest says."""
    checkpoint_fingerprint: str
    draw: str
    """Fingerprint of the draw; in the folder of an older version with that of the extractors' weights."""
    protocols: tuple[str, ...]
    """Known ones with this draw."""
    whole: int
    """Images from the first one on without a gap."""
    images: int
    pictures: int
    """Images whose pictures are kept."""
    size: int
    """Bytes of all files."""
    changed: float
    """Seconds since the epoch; 0 if the storage does not say."""
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Leftover:
    """A file or a folder that nothing needs."""

    storage: Storage
    """The folder that it is in, or that it is."""
    name: str | None
    size: int
    reason: str

    @property
    def where(self) -> str:
        """Its full name."""
        return str(self.storage.root if self.name is None else self.storage.where(self.name))

    def remove(self) -> None:
        """Remove it; raises EvidenceError."""
        files = [self.name] if self.name is not None else list(self.storage.files())
        if self.name is None and all(map(_is_ours, files)):
            self.storage.discard()
            return
        for name in filter(_is_ours, files):
            self.storage.remove(name)


def inventory(store: Path | str) -> list[Holding]:
    """Return what a store holds, in the order of its folders; raises EvidenceError."""
    storage = open_storage(store)
    names = _draws()
    found = []
    for folder in _folders(storage):
        inside = storage.within(folder)
        files = inside.files()
        if not files:
            continue
        checkpoint, _, draw = folder.rpartition("-")
        said = list(manifests(inside, files))
        longest, whole = _longest(files), 0
        while whole % SHARD == 0 and whole in longest:
            whole = longest[whole].stop
        found.append(
            Holding(
                folder,
                next((str(each["checkpoint_spec"]) for each in said if "checkpoint_spec" in each), ""),
                checkpoint,
                draw,
                tuple(names.get(_draw_of(said) or draw, ())),
                whole,
                sum(map(len, longest.values())),
                sum(map(len, _longest(files, pictures=True).values())),
                sum(stamp.size for stamp in files.values()),
                _changed(files),
                tuple(dict.fromkeys(str(each.get("device", "unknown")) for each in said)),
            )
        )
    return found


def leftovers(store: Path | str, *, older_than: float | None = None) -> Iterator[Leftover]:
    """Yield what nothing needs: of each folder, or with `older_than`, in days, folders not written to since.

    Whatever does not have the name of our files stays. Files set aside as damaged. Files that were never
    finished, and leases of earlier versions, of more than a day ago. Shards whose images are all in a longer
    one of the same columns that is sound, and pictures likewise. Raises EvidenceError.
    """
    root, now = open_storage(store), time.time()
    for folder in _folders(root):
        storage = root.within(folder)
        files = storage.files()
        changed = _changed(files)
        if older_than is not None and 0 < changed < now - older_than * _DAY:
            days = (now - changed) / _DAY
            size = sum(stamp.size for name, stamp in files.items() if _is_ours(name))
            yield Leftover(storage, None, size, f"not written to for {days:.0f} days")
            continue
        for name, reason in _unneeded(ShardFolder(storage, folder), files, now):
            yield Leftover(storage, name, files[name].size, reason)


def inventory_table(found: list[Holding]) -> str:
    """Return an inventory as a table for a terminal."""
    rows = []
    for each in found:
        changed = datetime.datetime.fromtimestamp(each.changed)
        rows.append(
            [
                f"{each.checkpoint or '?'} ({each.checkpoint_fingerprint[:8]})",
                ", ".join(each.protocols) or each.draw,
                f"{each.whole:,}",
                f"{each.images:,}",
                f"{each.pictures:,}",
                size_text(each.size),
                f"{changed:%Y-%m-%d %H:%M}" if each.changed else "unknown",
                ", ".join(each.devices) or "unknown",
            ]
        )
    heading = ["checkpoint", "draw", "whole", "images", "pictures", "size", "last change", "device"]
    total = size_text(sum(each.size for each in found))
    about = f"{total} in all; whole: images from the first one on without a gap"
    return f"{plain_table(heading, rows, 'llrrrrll')}\n\n{about}"


def _folders(storage: Storage) -> list[str]:
    """Return the folders that look like evidence; whatever else lies in the place is not ours."""
    return [name for name in storage.folders() if re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{16}", name)]


def _draws() -> dict[str, list[str]]:
    """Return the names of the known protocols by the fingerprint of their draw."""
    from pytest_sdbench.protocols.load import load_protocol
    from pytest_sdbench.protocols.sections import SequentialSeeds

    found: dict[str, list[str]] = {}
    folders = [reference() / "protocols", Path.cwd() / "protocols", Path.cwd() / "cards" / "protocols"]
    for path in (path for folder in folders for path in sorted(folder.glob("*.yaml"))):
        # One that is broken names nothing that could be in the store.
        with contextlib.suppress(SdbenchError):
            protocol = load_protocol(path)
            found.setdefault(protocol.draw_fingerprint, []).append(protocol.name)
            if isinstance(protocol.seeds, SequentialSeeds) and protocol.seeds.device != "cpu":
                elsewhere = protocol.with_seeds_on("cpu").draw_fingerprint
                found.setdefault(elsewhere, []).append(f"{protocol.name} (on the cpu)")
    return {key: list(dict.fromkeys(names)) for key, names in found.items()}


def _draw_of(said: list[dict[str, Any]]) -> str | None:
    """Return the fingerprint of the draw that manifests tell of, if one does: folders may have old keys."""
    from pytest_sdbench.protocols.protocol import draw_fingerprint

    for each in said:
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            return draw_fingerprint(each["protocol"])
    return None


_PICTURES = "pictures"
LEASE = "lease-"
"""How files began with which processes of earlier versions shared their work."""
_OURS = re.compile(
    rf"{re.escape(TEMPORARY)}[0-9a-f]{{32}}"
    r"|((manifest|pace)-[0-9a-f]{12}\.json"
    r"|(shard|pictures|lease)-\d{8,}-\d{8,}(-[0-9a-f]{8})?\.(safetensors|tar|json)"
    rf")({re.escape(DAMAGED)})?"
)
"""The names of all files that a store is written with."""


def _is_ours(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


def _content(name: str) -> tuple[str, range] | None:
    """Return what a file holds, a set of columns or the pictures, and of which images; None if nothing."""
    if (shard := read_shard_name(name)) is not None:
        return shard[1], shard[0]
    images = pictures_range(name)
    return None if images is None else (_PICTURES, images)


def _longest(files: Mapping[str, Stamp], *, pictures: bool = False) -> dict[int, range]:
    """Return the longest shard at each start, of whichever columns, or of the pictures."""
    found: dict[int, range] = {}
    for kind, images in filter(None, map(_content, files)):
        if (kind == _PICTURES) == pictures and len(images) > len(found.get(images.start, ())):
            found[images.start] = images
    return found


def _changed(files: Mapping[str, Stamp]) -> float:
    return max((stamp.modified for name, stamp in files.items() if _is_ours(name)), default=0.0)


def _unneeded(folder: ShardFolder, files: Mapping[str, Stamp], now: float) -> Iterator[tuple[str, str]]:
    alike: dict[tuple[str, int], list[tuple[range, str]]] = {}
    for name in files:
        if (content := _content(name)) is not None:
            alike.setdefault((content[0], content[1].start), []).append((content[1], name))
    for name, stamp in sorted(files.items()):
        if not _is_ours(name):
            continue
        if name.endswith(DAMAGED):
            yield name, "damaged, and set aside"
        elif name.startswith((TEMPORARY, LEASE)) and 0 < stamp.modified < now - _DAY:
            yield name, "never finished" if name.startswith(TEMPORARY) else "a lease of an earlier version"
        elif (content := _content(name)) is not None:
            kind, images = content
            longer, other = max(alike[kind, images.start], key=lambda each: len(each[0]))
            is_sound = holds_pictures if kind == _PICTURES else ShardFolder.holds
            if longer != images and is_sound(folder, other):
                yield name, f"in the shard of images {longer.start} to {longer.stop - 1}"
