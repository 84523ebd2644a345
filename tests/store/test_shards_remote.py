"""Evidence in a bucket is what it is in a folder: found, checked, shared, and not fetched twice."""

from __future__ import annotations

import datetime
import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.store.folders import Stamp, open_storage
from pytest_sdbench.store.mirror import Mirror
from pytest_sdbench.store.shard_folder import DamagedEvidence
from pytest_sdbench.store.shard_format import SHARD, shard_name
from tests.store.remote import in_threads, s3_server
from tests.store.test_shards import (
    COLUMNS,
    MANIFEST,
    evidence_of,
    fill,
    flipped,
    headless,
    misnamed,
    read,
    renumbered,
    rows_of,
    torn,
)

bucket = pytest.mark.parametrize("root", ["s3"], indirect=True)


@pytest.fixture
def requests(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Return a list that the requests to the server are added to, such as ``GET shard-...``."""
    found: list[str] = []

    def keep(record: object) -> bool:
        text = str(record.getMessage())  # type: ignore[attr-defined]
        verb, path = text.partition('"')[2].split()[:2]
        found.append(f"{verb} {'listing' if 'list-type' in path else path.rpartition('/')[2]}")
        return True

    caplog.set_level("INFO", "werkzeug")
    caplog.handler.addFilter(keep)
    yield found
    caplog.handler.removeFilter(keep)


def files(root: str | Path) -> dict[str, bytes]:
    storage = open_storage(root).within(f"{'c' * 16}-{'d' * 16}")
    return {name: storage.read(name) for name in storage.files()}


@bucket
def test_a_bucket_holds_the_same_files_as_a_folder(root: str, tmp_path: Path) -> None:
    assert evidence_of(root).missing(150) == [range(0, 64), range(64, 128), range(128, 150)]
    for place in (root, tmp_path / "folder"):
        fill(evidence_of(place), 100)
        evidence = fill(evidence_of(place, device="another"), 150)
        evidence.keep_pace(0.5)
        assert evidence_of(place, device="another").pace() == 0.5
        assert evidence_of(place).pace() is None
        assert read(evidence_of(place), 150)["index"].tolist() == list(range(150))
        assert [writer["device"] for writer in evidence.writers(150)] == ["a device", "another"]
    assert evidence_of(root).folder == f"{root}/{'c' * 16}-{'d' * 16}"
    assert files(root) == files(tmp_path / "folder")


def empty(_content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [torn, headless, flipped, misnamed, renumbered, empty])
def test_a_damaged_shard_is_set_aside_and_made_again(damage: Callable[[bytes], bytes], root: str) -> None:
    storage = fill(evidence_of(root), 150).storage
    name = shard_name(range(64, 128), COLUMNS)
    good = storage.read(name)
    bad = damage(good)
    assert bad != good
    storage.write(name, bad)

    evidence = evidence_of(root)
    with pytest.warns(DamagedEvidence, match=rf"{root}/.*/{name}: damaged evidence.*moved to {name}.damaged"):
        assert evidence.missing(150) == [range(64, 128)]
    assert storage.read(f"{name}.damaged") == bad
    assert name not in storage.files()
    with pytest.raises(EvidenceError, match=rf"{root}.*images 64 to 127 are missing. Run again"):
        list(evidence.read(150))
    fill(evidence, 150)
    assert storage.read(name) == good


@bucket
def test_a_damaged_shard_that_cannot_be_set_aside_is_made_again(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one may write and read, and not remove."""
    evidence = fill(evidence_of(root), 64)
    name = shard_name(range(64), COLUMNS)
    evidence.storage.write(name, b"bad")

    def refuse(*_: object) -> str:
        raise EvidenceError("evidence cannot be set aside: Access Denied")

    monkeypatch.setattr("pytest_sdbench.store.folders.RemoteFolder.set_aside", refuse)
    with pytest.warns(DamagedEvidence, match="left in place: evidence cannot be set aside: Access Denied"):
        work = evidence.missing(64)
    for images in work:
        evidence.write(images.start, rows_of(images))
    assert read(evidence_of(root), 64)["index"].tolist() == list(range(64))


def test_writers_beside_each_other_do_not_hurt(root: str, tmp_path: Path) -> None:
    """No reader ever sees half a file."""

    def write_and_look(_thread: int) -> None:
        evidence = evidence_of(root)
        for start in range(0, 192, SHARD):
            for _ in range(2):
                evidence.write(start, rows_of(range(start, start + SHARD)))
                assert range(start, start + SHARD) not in evidence_of(root).missing(192)

    in_threads(4, write_and_look)
    fill(evidence_of(tmp_path / "alone"), 192)
    assert files(root) == files(tmp_path / "alone")


WRITER = f"""
import sys
import numpy as np
from pytest_sdbench.store.shard_format import SHARD, shard_name
from pytest_sdbench.store.shards import Store
evidence = Store(sys.argv[1]).open({"c" * 16!r}, {"d" * 16!r}, {MANIFEST!r})
print("ready", flush=True)
for start in range(0, 4000 * SHARD, SHARD):
    index = np.arange(start, start + SHARD, dtype=np.float32)
    features = np.outer(index, np.ones(2048, np.float32))
    evidence.write(start, {{"features": features, "clip_score": index}})
    print(start, flush=True)
"""


def test_a_kill_among_many_writes_loses_the_shard_in_flight(root: str) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, root], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        seen = [next(lines) for _ in range(8)]
        process.send_signal(signal.SIGKILL)
        seen += list(lines)
    finished = len([line for line in seen[1:] if line.endswith("\n")])
    evidence = evidence_of(root)
    missing = evidence.missing((finished + 1) * SHARD)
    assert missing in ([], [range(finished * SHARD, (finished + 1) * SHARD)])
    found = read(evidence, finished * SHARD)
    assert found["clip_score"].tolist() == list(range(finished * SHARD))
    # The next run goes on there.
    for images in missing:
        evidence.write(images.start, {name: values[: len(images)] for name, values in found.items()})
    assert evidence_of(root).missing((finished + 1) * SHARD) == []


@bucket
def test_one_listing_answers_what_is_missing(root: str, requests: list[str]) -> None:
    evidence = fill(evidence_of(root), 5 * SHARD)
    requests.clear()
    assert evidence.missing(40 * SHARD) == [range(at * SHARD, (at + 1) * SHARD) for at in range(5, 40)]
    assert requests == ["GET listing"]


@bucket
def test_rows_are_fetched_once(root: str, requests: list[str], cache: Path) -> None:
    """A machine that wrote them, or that read them before, does not fetch them for another pass."""
    evidence = fill(evidence_of(root), 3 * SHARD)
    requests.clear()
    read(evidence, 3 * SHARD)
    read(evidence_of(root), 3 * SHARD)
    assert set(requests) == {"GET listing"}
    # Another machine.
    for copy in (cache / "mirror").iterdir():
        copy.unlink()
    requests.clear()
    rows = evidence_of(root).rows(3 * SHARD)
    for _ in range(3):
        assert sum(len(shard["index"]) for shard in rows) == 3 * SHARD
    assert len([line for line in requests if line.startswith("GET shard")]) == 3


@bucket
def test_a_copy_is_not_trusted(root: str, cache: Path) -> None:
    evidence = fill(evidence_of(root), 2 * SHARD)
    for copy in (cache / "mirror").iterdir():
        copy.write_bytes(flipped(copy.read_bytes()))
    assert (
        read(evidence, 2 * SHARD)["clip_score"].tolist() == rows_of(range(2 * SHARD))["clip_score"].tolist()
    )
    for copy in (cache / "mirror").iterdir():
        copy.write_bytes(b"")
    assert len(read(evidence_of(root), 2 * SHARD)["index"]) == 2 * SHARD


@bucket
def test_a_machine_without_room_for_copies_reads_all_the_same(root: str, cache: Path) -> None:
    cache.write_text("not a folder")
    evidence = fill(evidence_of(root), 2 * SHARD)
    assert len(read(evidence, 2 * SHARD)["index"]) == 2 * SHARD


class Listed(MemoryFileSystem):
    """A server whose listings are those of another driver, and that counts what is fetched."""

    protocol = "listed"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    said: Callable[[bytes], dict[str, Any]]
    """What is told of a file of this content, beside its size."""
    fetched = 0

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        entries = [
            {key: each[key] for key in ("name", "size", "type")} for each in super().ls(path, detail=True)
        ]
        files = [each for each in entries if each["type"] == "file"]
        for each in files:
            each |= type(self).said(self.store[each["name"]].getvalue())
        return entries

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        type(self).fetched += "shard-" in path
        return super().cat_file(path, start, end, **options)


@pytest.fixture
def listed() -> Iterator[type[Listed]]:
    fsspec.register_implementation("listed", Listed, clobber=True)
    yield Listed
    Listed.store.clear()
    Listed.pseudo_dirs[:] = [""]


BLOB = {"blob_id": hashlib.sha1, "xet_hash": hashlib.sha256}


@pytest.mark.parametrize("key", [None, *BLOB])
def test_what_was_replaced_is_read_anew(key: str | None, listed: type[Listed]) -> None:
    """Rows of the same size, in a store that tells no time and no ETag."""
    listed.said = staticmethod(lambda content: {key: BLOB[key](content).hexdigest()} if key else {})
    evidence, other = fill(evidence_of("listed://store"), SHARD), evidence_of("listed://store")
    assert read(other, SHARD)["clip_score"].tolist() == rows_of(range(SHARD))["clip_score"].tolist()
    evidence.write(0, rows_of(range(SHARD)) | {"clip_score": np.ones(SHARD, np.float32)})
    for reader in (evidence, other, evidence_of("listed://store")):
        assert set(read(reader, SHARD)["clip_score"]) == {1}
    listed.fetched = 0
    read(evidence_of("listed://store"), SHARD)
    assert (listed.fetched == 0) is (key is not None)


def test_times_of_other_drivers_are_known(listed: type[Listed]) -> None:
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    seconds = moment.timestamp()
    for key, said in {
        "last_modified": moment,
        "last_write_time": seconds,
        "modificationTime": seconds * 1000,
        "mtime": moment,
    }.items():
        listed.said = staticmethod(lambda content, told={key: said}: told)
        storage = open_storage("listed://store")
        storage.write("file", b"content")
        stamp = storage.files()["file"]
        assert (stamp.tag, stamp.modified) == (str(said), seconds)


def test_copies_take_a_bounded_place(tmp_path: Path) -> None:
    limit, size = 10_000, 700
    for number in range(60):
        # Each of another process, and some files are used again and again.
        mirror = Mirror(tmp_path, limit)
        mirror.put(f"file {number}", Stamp(size, "tag"), bytes(size))
        assert mirror.get(f"file {number}", Stamp(size, "tag")) == bytes(size)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    one = Mirror(tmp_path, limit)
    for number in range(60, 120):
        one.put(f"file {number}", Stamp(size, "tag"), bytes(size))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    assert one.get("file 119", Stamp(size, "tag")) is not None
    assert one.get("file 0", Stamp(size, "tag")) is None
    assert one.get("file 119", Stamp(size, "another")) is None


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle(tmp_path: Path) -> None:
    with s3_server() as server:
        evidence = fill(evidence_of(f"{server.url}/store"), 64)
        server.stop()
        with pytest.raises(EvidenceError, match=r"s3://bucket.*shard-00000064.*Finished shards are kept"):
            evidence.write(64, rows_of(range(64, 128)))
        with pytest.raises(EvidenceError, match=r"s3://bucket.*cannot be read.*run again"):
            evidence.missing(128)
