"""Read the stores of versions whose draws were keyed by their extractors too; nothing is written to them.

A folder ``<checkpoint>-<key>`` of such a store has a manifest that says prompts, seeds, sampling, image steps
and the identities of all extractors. Its shards have no set of columns in their names, and name each column
after the extractor alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pytest_sdbench.base.files import json_mapping
from pytest_sdbench.store.folders import Storage
from pytest_sdbench.store.mirror import Mirror
from pytest_sdbench.store.shard_folder import ShardFolder
from pytest_sdbench.store.shard_format import Rows


def older_folders(
    store: Storage, folder: str, manifest: Mapping[str, Any], keys: Collection[str], mirror: Mirror | None
) -> Iterator[ShardFolder]:
    """Yield the old folders of a store with pictures of the checkpoint and draw of `folder`.

    `manifest` says what the draw is. Their columns get those of `keys` that they are known to be of.
    """
    draw = _draw(manifest)
    for name in store.folders() if draw is not None else ():
        if name == folder or not name.startswith(f"{manifest['checkpoint']}-"):
            continue
        storage = store.within(name)
        old = next(manifests(storage), {})
        extractors = old.get("extractors")
        if _draw(old) == draw and isinstance(extractors, list):
            names = _Names(tuple(map(str, extractors)), tuple(keys))
            yield ShardFolder(storage, name, mirror, names)


def manifests(storage: Storage, files: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the manifests in a folder; one that cannot be read tells nothing, and costs no row."""
    for name in sorted(storage.files() if files is None else files):
        if name.startswith("manifest-") and name.endswith(".json"):
            try:
                yield json_mapping(storage.read(name))
            except (FileNotFoundError, ValueError):
                continue


def _draw(manifest: Mapping[str, Any]) -> str | None:
    """Return what a manifest says of its draw, as `Protocol.draw_fingerprint` sees it; None if nothing."""
    try:
        protocol = dict(manifest["protocol"])
        moved = {key: value for key, value in protocol["prompts"].items() if key not in ("file", "rows")}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return json.dumps({**protocol, "prompts": moved}, sort_keys=True)


class _Names:
    """Gives old columns the keys of today, ``IDENTITY/OUTPUT``; those of other keys stay as they are."""

    def __init__(self, extractors: tuple[str, ...], keys: tuple[str, ...]) -> None:
        self._extractors, self._keys = extractors, keys

    def __call__(self, rows: Rows) -> Rows:
        found = dict(rows)
        for key in self._keys:
            identity, _, output = key.rpartition("/")
            name = _bare(identity)
            old = {"features": name, "cosine": "clip_score"}.get(output, f"{name}-{output}")
            if (
                identity in self._extractors
                and old in rows
                and (output != "cosine" or self._scores(name, rows))
            ):
                found[key] = found.pop(old)
        return found

    def _scores(self, name: str, rows: Rows) -> bool:
        """Return whether it is this extractor's cosine: the column is not named after it, all others are."""
        names = {_bare(identity) for identity in self._extractors}
        silent = {each for each in names if not any(f"{row}-".startswith(f"{each}-") for row in rows)}
        return silent == {name} or names == {name}


def _bare(identity: str) -> str:
    """Return the name of an extractor without the checksum of its weights."""
    return re.sub(r"@[0-9a-f]{16}$", "", identity)
