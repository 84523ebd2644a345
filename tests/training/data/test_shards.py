"""WebDataset shards: read by row, indexed once, fetched once, broken ones explained."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest

from tests.training.data.samples import encoded, picture, write_shards, write_tar
from training.data.local_copies import LocalCopies, locate
from training.data.open import open_source
from training.data.shards import ShardsSource, braces
from training.data.source import BadSample
from training.errors import TrainingError
from training.recipes.schema import WebDatasetData

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def remote():
    """The in-memory file system of fsspec, which counts as remote."""
    system = fsspec.filesystem("memory")
    yield system
    for path in system.find("/"):
        system.rm(path)


def upload(remote, folder, sizes):
    """Write shards of these sizes to a folder and to /bucket; return those of the folder."""
    paths = write_shards(folder, sizes)
    for path in paths:
        remote.pipe(f"/bucket/{path.name}", path.read_bytes())
    return paths


def quiet(_line: str) -> None:
    pass


def deleted_but_open(folder):
    """The files below a folder that are deleted and held open: their room is not free."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    held = [os.readlink(link) for link in links if os.path.islink(link)]
    return [name for name in held if str(folder) in name and name.endswith("(deleted)")]


def test_any_row_of_any_shard(tmp_path):
    write_shards(tmp_path, [3, 5, 1, 4])
    source = ShardsSource(str(tmp_path / "shard-{000..003}.tar"), say=quiet)
    assert list(source.group_sizes) == [3, 5, 1, 4]
    for row in (12, 0, 3, 2, 8, 7, 9):
        sample = source.read(row)
        assert sample.caption == f"red {row}"
        assert np.array_equal(np.asarray(sample.image), np.asarray(picture(row)))


def test_many_threads_read_at_once(tmp_path):
    write_shards(tmp_path, [20, 20])
    source = ShardsSource(str(tmp_path / "*.tar"), say=quiet)
    rows = list(np.random.default_rng(0).integers(0, 40, 200))
    with ThreadPoolExecutor(8) as pool:
        assert [s.caption for s in pool.map(source.read, rows)] == [f"red {row}" for row in rows]


def test_forms_of_members(tmp_path):
    jpeg, png, webp = (encoded(picture(1), form) for form in ("jpeg", "png", "webp"))
    text = "naïve 猫".encode()
    write_tar(
        tmp_path / "a.tar",
        [
            ("./", b""),
            ("dir/one.jpg", jpeg),
            ("dir/one.json", json.dumps({"caption": "from json", "width": 64}).encode()),
            ("dir/two.txt", text),
            ("dir/two.PNG", png),
            ("dir/two.cls", b"7"),
            ("dir.v1/three.webp", webp),
            ("other.txt", b"no picture"),
            ("dir.v1/three.json", json.dumps({"text": "key text"}).encode()),
            ("dir/._one.jpg", b"resource fork"),
            ("four.jpeg", jpeg),
            ("four.json", b'{"caption": "json"}'),
            ("four.txt", b"txt goes first\n"),
        ],
    )
    source = ShardsSource(str(tmp_path / "a.tar"), say=quiet)
    captions = [source.read(row).caption for row in range(len(source))]
    assert captions == ["from json", "naïve 猫", "key text", "txt goes first"]


def test_tars_of_other_writers(tmp_path):
    # Long names need extra headers, and each format writes them in its way.
    name = "x" * 150
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{kind}.tar"
        (tmp_path / "p.png").write_bytes(encoded(picture(5)))
        (tmp_path / "p.txt").write_text("long")
        with tarfile.open(path, "w", format=kind) as tar:
            tar.add(tmp_path / "p.png", f"{name}.png")
            tar.add(tmp_path / "p.txt", f"{name}.txt")
        sample = ShardsSource(str(path), say=quiet).read(0)
        assert sample.caption == "long"
        assert np.array_equal(np.asarray(sample.image), np.asarray(picture(5)))


def test_broken_samples_are_named_with_their_shard(tmp_path):
    good = encoded(picture(0))
    write_tar(
        tmp_path / "a.tar",
        [
            ("a.png", good),
            ("b.png", good[:100]),
            ("b.txt", b"cut"),
            ("c.png", good),
            ("c.txt", b"\xff\xfe"),
            ("d.png", good),
            ("d.json", b"{}"),
            ("e.png", good),
            ("e.json", b"[broken"),
            ("f.png", good),
            ("f.json", b'{"caption": 3}'),
            ("g.png", good),
            ("g.txt", b"fine"),
        ],
    )
    source = ShardsSource(str(tmp_path / "a.tar"), say=quiet)
    reasons = ["no caption", "not a readable", "unreadable", "none of the keys", "unreadable", "no text"]
    for row, reason in enumerate(reasons):
        with pytest.raises(BadSample) as caught:
            source.read(row)
        assert reason in caught.value.reason
        assert caught.value.key == f"{tmp_path / 'a.tar'}: {'abcdef'[row]}"
    assert source.read(6).caption == "fine"


def test_patterns(tmp_path):
    assert braces("s-{000..010..}.tar") == ["s-{000..010..}.tar"]
    assert braces("s-{008..010}.tar") == ["s-008.tar", "s-009.tar", "s-010.tar"]
    assert braces("s-{8..10}") == ["s-8", "s-9", "s-10"]
    assert braces("{b,a}/{1..2}") == ["b/1", "b/2", "a/1", "a/2"]
    assert braces("s3://bucket/x.tar") == ["s3://bucket/x.tar"]
    paths = write_shards(tmp_path, [1, 1, 1])
    for urls in (str(tmp_path / "*.tar"), [str(path) for path in paths]):
        source = ShardsSource(urls, say=quiet)
        assert [source.read(row).caption for row in range(3)] == ["red 0", "red 1", "red 2"]
    with pytest.raises(TrainingError, match="no shards"):
        ShardsSource(str(tmp_path / "x*.tar"), say=quiet)


def test_brackets_in_a_path_are_no_pattern(tmp_path):
    (path,) = write_shards(tmp_path, [1])
    named = tmp_path / "with [1].tar"
    path.rename(named)
    assert ShardsSource(str(named), say=quiet).read(0).caption == "red 0"


def test_a_changed_caption_is_another_content(tmp_path):
    path, found = tmp_path / "a.tar", []
    for caption in (b"a red dog", b"a tan dog"):
        write_tar(path, [("a.png", encoded(picture(0))), ("a.txt", caption)])
        found.append(ShardsSource(str(path), say=quiet).fingerprint)
    assert len(set(found)) == 2


def test_pictures_that_are_no_part_of_a_pair_are_told(tmp_path):
    png, said = encoded(picture(0)), []
    write_tar(
        tmp_path / "a.tar",
        [
            ("a.png", png),
            ("a.json", b'{"caption": ["red", "crimson"]}'),
            ("b.v1.png", png),
            ("c.gif", b"GIF89a"),
        ],
    )
    assert ShardsSource(str(tmp_path / "a.tar"), say=said.append).read(0).caption == "red"
    assert "2 pictures of" in said[0]
    assert "e.g. b.v1.png" in said[0]


def test_only_as_many_shards_as_needed(tmp_path):
    write_shards(tmp_path, [4] * 20)
    (tmp_path / "shard-019.tar").write_bytes(b"this shard is broken")
    urls = str(tmp_path / "shard-{000..019}.tar")
    source = open_source(WebDatasetData(kind="webdataset", urls=(urls,), pairs=10), say=quiet)
    assert len(source) == 10
    assert list(source.group_sizes) == [4, 4, 2]
    with pytest.raises(TrainingError, match=r"shard-019\.tar"):
        open_source(WebDatasetData(kind="webdataset", urls=(urls,)), say=quiet)


def test_empty_captions_of_shards(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", encoded(picture(0))), ("a.txt", b" \n")])
    data = {"kind": "webdataset", "urls": (str(tmp_path / "a.tar"),)}
    with pytest.raises(TrainingError, match=r"a\.tar: a.*an empty caption"):
        open_source(WebDatasetData(**data), say=quiet).read(0)
    with pytest.raises(BadSample):
        open_source(WebDatasetData(**data, empty_captions="skip"), say=quiet).read(0)
    assert open_source(WebDatasetData(**data, empty_captions="keep"), say=quiet).read(0).caption == ""


def test_a_truncated_shard_is_refused_wherever_it_was_cut(tmp_path):
    path = write_shards(tmp_path, [3])[0]
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    borders = [members[2].offset, members[-1].offset_data + 512]
    for length in (100, 512, 700, *borders, borders[0] + 300, len(whole) // 3):
        path.write_bytes(whole[:length])
        with pytest.raises(TrainingError, match=rf"{path}.*tar file"):
            ShardsSource(str(path), say=quiet)
    path.write_bytes(whole)
    assert len(ShardsSource(str(path), say=quiet)) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty.tar", r"empty\.tar.*tar file"),
        ("page.tar", r"page\.tar.*not a tar file"),
        *((f"a.tar.{kind}", "compressed") for kind in ("gz", "xz", "bz2")),
        ("missing.tar", r"missing\.tar: data\.urls: no such file"),
        ("memory://bucket/missing.tar", "no such file"),
        ("", "a folder"),
        ("nonsense://x/a.tar", "unknown kind"),
        ("texts.tar", "no pairs"),
    ],
)
def test_other_broken_shards_are_explained(tmp_path, name, words):
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "page.tar").write_bytes(b"<html>404</html>" * 100)
    (tmp_path / "p.txt").write_text("x")
    for kind in ("gz", "xz", "bz2"):
        with tarfile.open(tmp_path / f"a.tar.{kind}", f"w:{kind}") as tar:
            tar.add(tmp_path / "p.txt", "p.txt")
    write_tar(tmp_path / "texts.tar", [("a.txt", b"x")])
    with pytest.raises(TrainingError, match=words):
        ShardsSource(name if "://" in name else str(tmp_path / name), say=quiet)


def test_the_index_is_kept_and_made_anew_when_the_shard_changes(tmp_path):
    lines: list[str] = []
    path = write_shards(tmp_path, [2])[0]
    first = ShardsSource(str(path), say=lines.append)
    assert lines == ["indexed 1 of 1 shards"]
    again = ShardsSource(str(path), say=lines.append)
    assert len(lines) == 1
    assert again.fingerprint == first.fingerprint
    assert again.read(1).caption == "red 1"

    write_tar(path, [("x.png", encoded(picture(9))), ("x.txt", b"changed")])
    changed = ShardsSource(str(path), say=lines.append)
    assert len(lines) == 2
    assert changed.read(0).caption == "changed"
    assert changed.fingerprint != first.fingerprint


def test_a_damaged_index_is_made_anew(tmp_path, cache):
    path = write_shards(tmp_path, [2])[0]
    ShardsSource(str(path), say=quiet)
    [index] = (cache / "training" / "shards" / "indices").glob("*.npz")
    for content in (b"", b"garbage", index.read_bytes()[:-40]):
        index.write_bytes(content)
        assert ShardsSource(str(path), say=quiet).read(1).caption == "red 1"


def test_remote_shards_are_fetched_once(tmp_path, remote, monkeypatch):
    upload(remote, tmp_path / "there", [3, 2])
    fetched: list[str] = []
    plain = type(remote).get_file
    monkeypatch.setattr(
        type(remote), "get_file", lambda self, path, *rest: (fetched.append(path), plain(self, path, *rest))
    )
    for _ in range(2):
        source = ShardsSource("memory://bucket/shard-{000..001}.tar", say=quiet)
        assert [source.read(row).caption for row in range(5)] == [f"red {row}" for row in range(5)]
    assert sorted(fetched) == ["/bucket/shard-000.tar", "/bucket/shard-001.tar"]
    local = ShardsSource(str(tmp_path / "there" / "*.tar"), say=quiet)
    assert local.fingerprint == source.fingerprint


def test_remote_patterns(tmp_path, remote):
    upload(remote, tmp_path, [1, 1])
    source = ShardsSource("memory://bucket/*.tar", say=quiet)
    assert [source.read(row).caption for row in range(2)] == ["red 0", "red 1"]


def test_copies_of_remote_shards_are_bounded(tmp_path, remote, cache):
    paths = upload(remote, tmp_path / "there", [2] * 6)
    room = 2 * max(path.stat().st_size for path in paths)
    source = ShardsSource("memory://bucket/shard-{000..005}.tar", local_bytes=room, say=quiet)
    copies = cache / "training" / "shards" / "copies"
    rows = [*range(12), *reversed(range(12)), 0, 11, 0, 11]
    for row in rows:
        assert source.read(row).caption == f"red {row}"
        assert sum(copy.stat().st_size for copy in copies.glob("*.tar")) <= room
    assert not deleted_but_open(copies)


def test_threads_that_fetch_at_once_hold_no_deleted_copy(tmp_path, remote):
    for number in range(6):
        remote.pipe(f"/bucket/{number}.tar", bytes([number]) * 1000)
    remotes = [locate(f"memory://bucket/{number}.tar") for number in range(6)]
    for round_ in range(20):
        shelf = LocalCopies(tmp_path / str(round_), 2000)
        with ThreadPoolExecutor(6) as pool:
            assert [file.read(1) for file in pool.map(shelf.open, remotes)] == [bytes([n]) for n in range(6)]
        assert not deleted_but_open(tmp_path)


def test_over_http(tmp_path):
    pytest.importorskip("aiohttp")
    write_shards(tmp_path / "there", [2])

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(tmp_path / "there"), **kwargs)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = ShardsSource(f"http://127.0.0.1:{server.server_port}/shard-000.tar", say=quiet)
        assert source.read(1).caption == "red 1"
        server.shutdown()


def test_a_failing_network_is_tried_again_then_explained(tmp_path, remote, monkeypatch):
    (path,) = upload(remote, tmp_path / "there", [1])
    waits: list[float] = []
    failures = [ConnectionError("reset"), TimeoutError("slow")]
    plain = type(remote).get_file

    def flaky(self, source, target, *rest):
        if failures:
            # What a broken transfer leaves behind must not pass for the file.
            with open(target, "wb") as part:
                part.write(b"half")
            raise failures.pop()
        plain(self, source, target, *rest)

    monkeypatch.setattr(type(remote), "get_file", flaky)
    shelf = LocalCopies(tmp_path / "copies", 10**9, wait=waits.append)
    found = locate("memory://bucket/shard-000.tar")
    assert shelf.open(found).read() == path.read_bytes()
    assert waits == [2.0, 8.0]

    failures += [ConnectionError("down")] * 3
    other = LocalCopies(tmp_path / "others", 10**9, wait=waits.append)
    with pytest.raises(
        TrainingError, match=r"memory://bucket/shard-000\.tar.*cannot be reached: ConnectionError"
    ):
        other.open(found)
    assert not [path for path in (tmp_path / "others").iterdir() if path.suffix in (".tar", ".part")]


def test_a_copy_that_arrives_incomplete_is_not_kept(tmp_path, remote, monkeypatch):
    (path,) = upload(remote, tmp_path / "there", [1])

    def short(self, source, target, *rest):
        with open(target, "wb") as part:
            part.write(path.read_bytes()[:-600])

    monkeypatch.setattr(type(remote), "get_file", short)
    with pytest.raises(TrainingError, match="arrived incomplete"):
        LocalCopies(tmp_path / "copies", 10**9).open(locate("memory://bucket/shard-000.tar"))
    assert not list((tmp_path / "copies").glob("*.tar"))
