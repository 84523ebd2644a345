"""One folder of files, on a disk, in memory and on S3: the same operations do the same."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.store.folders import LocalFolder, RemoteFolder, Storage, open_storage, place_of
from tests.store.remote import S3, in_threads, s3_line, s3_server


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "a" / "b")
    root = "memory://a" if request.param == "memory" else request.getfixturevalue("s3").url
    return open_storage(f"{root}/b/{uuid.uuid4().hex}")


def test_what_is_written_is_read(storage: Storage) -> None:
    assert storage.files() == {}
    assert storage.folders() == []
    storage.write("file", b"content")
    storage.write("empty", b"")
    assert storage.read("file") == b"content"
    assert storage.read("empty") == b""
    assert {name: stamp.size for name, stamp in storage.files().items()} == {"file": 7, "empty": 0}
    storage.write("file", b"other")
    assert storage.read("file") == b"other"


def test_a_file_that_is_not_there(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("file")
    storage.remove("file")


def test_a_stamp_stays_until_the_content_changes(storage: Storage) -> None:
    storage.write("file", b"one")
    storage.write("other", b"one")
    first = storage.files()["file"]
    assert open_storage(storage.root).files()["file"] == first
    for content in (b"two", b"six"):
        before = storage.files()["file"]
        stamp = storage.write("file", content)
        assert storage.files()["file"] != before
        assert stamp is None or stamp == storage.files()["file"]
    assert 0 <= storage.files()["file"].modified - first.modified < 60


def test_only_the_first_creates(storage: Storage) -> None:
    assert storage.create("file", b"first")
    assert not storage.create("file", b"second")
    assert storage.read("file") == b"first"
    storage.remove("file")
    assert storage.files() == {}
    assert storage.create("file", b"third")


@pytest.mark.parametrize("storage", ["local"], indirect=True)  # the others are no stores for many, but tests
def test_of_many_at_once_one_creates(storage: Storage) -> None:
    won: list[int] = []
    start = threading.Barrier(6)

    def create(number: int) -> None:
        start.wait()
        if storage.create("file", str(number).encode()):
            won.append(number)

    in_threads(6, create)
    assert len(won) == 1
    assert storage.read("file") == str(won[0]).encode()
    assert list(storage.files()) == ["file"]


def test_what_is_set_aside_is_kept_under_another_name(storage: Storage) -> None:
    storage.write("file", b"content")
    aside = storage.set_aside("file")
    assert list(storage.files()) == [aside]
    assert storage.read(aside) == b"content"
    with pytest.raises(EvidenceError, match="cannot be set aside"):
        storage.set_aside("file")


def test_folders_within(storage: Storage) -> None:
    storage.within("one").write("file", b"1")
    storage.within("two").write("file", b"2")
    storage.write("beside", b"3")
    assert storage.folders() == ["one", "two"]
    assert list(storage.files()) == ["beside"]
    assert storage.within("one").read("file") == b"1"
    storage.within("one").discard()
    assert storage.folders() == ["two"]
    storage.within("one").discard()


def test_what_others_write_is_seen_at_once(storage: Storage) -> None:
    """Listings are not remembered: another host's shard must not be made again."""
    assert storage.files() == {}
    script = "import sys, pytest_sdbench.store.folders as s; s.open_storage(sys.argv[1]).write('file', b'x')"
    if str(storage.root).startswith("memory"):
        open_storage(storage.root).write("file", b"x")
    else:
        subprocess.run([sys.executable, "-c", script, str(storage.root)], check=True)
    assert list(storage.files()) == ["file"]


def test_files_have_names_that_people_can_use(storage: Storage) -> None:
    storage.write("file", b"content")
    where = storage.where("file")
    again = open_storage(where.parent) if isinstance(where, Path) else open_storage(where.rpartition("/")[0])
    assert again.read("file") == b"content"


def test_paths_and_urls_are_told_apart(tmp_path: Path) -> None:
    assert isinstance(open_storage(tmp_path), LocalFolder)
    assert open_storage(f"file://{tmp_path}/with%20space").root == tmp_path / "with space"
    assert place_of(f"file://localhost{tmp_path}/a#1?b") == tmp_path / "a#1?b"
    with pytest.raises(EvidenceError, match=r"file://evidence: .*file:///FOLDER"):
        place_of("file://evidence", tmp_path)
    assert place_of("~/store") == Path.home() / "store"
    assert place_of("store", tmp_path) == tmp_path / "store"
    assert place_of("s3://bucket/folder/", tmp_path) == "s3://bucket/folder"
    assert isinstance(open_storage("memory://store"), RemoteFolder)
    for url in (f"file:{tmp_path}/a", f"FILE://{tmp_path}/a", f"File://localhost{tmp_path}/a"):
        assert place_of(url) == tmp_path / "a"


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3:///evidence", "gs://", "simplecache::s3:///evidence"])
def test_a_url_that_names_no_place_is_no_folder_of_that_name(url: str, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=rf"^{url}: a URL that names no place.*from a variable"):
        place_of(url, tmp_path)
    for sound in ("memory://", "memory:///evidence", "local:///evidence"):
        assert place_of(sound) == sound


def test_a_url_of_an_unknown_kind_says_so() -> None:
    with pytest.raises(EvidenceError, match=r"gopher://store: not the URL of a store.*such as s3://"):
        open_storage("gopher://store")


def test_a_driver_that_is_not_installed_says_how_to_get_it() -> None:
    script = "import sys; sys.modules['s3fs'] = None; import pytest_sdbench.store.folders as s; s.open_storage('s3://b/f')"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert 'pip install "pytest-sdbench[s3]"' in run.stderr.splitlines()[-1]


def test_a_bucket_that_is_not_there(s3: S3) -> None:
    storage = open_storage("s3://another/store")
    assert storage.files() == {}
    for write in (storage.write, storage.create):
        with pytest.raises(
            EvidenceError, match=r"s3://another/store/file: evidence cannot be written.*bucket"
        ):
            write("file", b"content")
    assert not storage.fs.exists("another")  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["local://", "filecache::file://"])
def test_a_store_of_real_folders_is_begun(kind: str, tmp_path: Path) -> None:
    for verb in ("write", "create"):
        storage = open_storage(f"{kind}{tmp_path}/{verb}/deep").within("inner")
        assert isinstance(storage, RemoteFolder)
        getattr(storage, verb)("file", b"content")
        assert (tmp_path / verb / "deep" / "inner" / "file").read_bytes() == b"content"


def test_a_link_to_what_was_not_fetched_is_named(tmp_path: Path) -> None:
    (tmp_path / "shard").symlink_to(".git/annex/objects/key")
    told = r"shard: .*a link to a file that is not there \(found '.git/annex/objects/key'\)\. Fetch that file"
    with pytest.raises(EvidenceError, match=told):
        open_storage(tmp_path).write("shard", b"content")


def test_a_name_that_is_too_long_is_no_traceback(tmp_path: Path) -> None:
    """As of a folder that one may not enter, `Path.exists` raises of it."""
    storage = open_storage(tmp_path / ("x" * 300))
    for attempt in (lambda: storage.create("file", b""), storage.files):
        with pytest.raises(EvidenceError, match="File name too long"):
            attempt()


def test_a_server_that_is_gone() -> None:
    with s3_server() as server:
        storage = open_storage(f"{server.url}/store")
        storage.write("file", b"content")
        server.stop()
        for attempt in (lambda: storage.read("file"), lambda: storage.create("other", b"x")):
            with pytest.raises(EvidenceError, match=r"s3://bucket-\w+/store.*shards are kept.*run again"):
                attempt()


@pytest.mark.slow
def test_a_line_that_breaks_now_and_then_is_no_error(s3: S3) -> None:
    with s3_line(s3) as line:
        storage = open_storage(f"{s3.url}/{uuid.uuid4().hex}")
        assert storage.files() == {}
        line.breaks = 2
        storage.write("file", b"content")
        line.breaks = 2
        assert storage.read("file") == b"content"
        line.breaks = 2
        assert list(storage.files()) == ["file"]
        assert line.breaks == 0


def test_a_full_disk_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", full)
    storage = open_storage(tmp_path)
    for write in (storage.write, storage.create):
        with pytest.raises(EvidenceError, match="Make room and run again: finished shards are kept"):
            write("file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, os.strerror(1))

    monkeypatch.setattr("os.link", refuse)
    storage = open_storage(tmp_path)
    assert storage.create("file", b"first")
    assert not storage.create("file", b"second")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"first"}


def test_a_server_that_refuses_is_told_without_secrets() -> None:
    for url in ("ftp://me:hush@127.0.0.1:1/x", "sftp://me:hush@127.0.0.1:1/x", "nothing://me:hush@x"):
        with pytest.raises(EvidenceError, match=r"://\*\*\*@") as raised:
            open_storage(url).files()
        assert "hush" not in str(raised.value)
