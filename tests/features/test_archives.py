"""Archives and folders that somebody hostile made: refused by what they declare, before it is believed."""

from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.features import archives
from pytest_sdbench.features.images import decode, open_images, read_captions
from tests.features.test_images import FILES, SOURCES, N, encoded, folder, pixels, tarred, zipped

HUGE = 10 * 2**30


def header(name: str = "0.png", size: int = HUGE, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def negative() -> bytes:
    content = bytearray(header(size=0))
    content[124:136] = b"\xff" * 10 + b"\xfa\x00"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content)
    return bytes(content)


def declared(content: bytes, size: int, packed: int = zipfile.ZIP_DEFLATED, method: int = 0) -> bytes:
    """A zip of one file that says it has another size, and is packed by another method."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed) as archive:
        archive.writestr("0.png", content)
        archive.infolist()[0].file_size = size
        archive.infolist()[0].compress_type = method or packed
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar.gz", gzip.compress(header()), "this archive of .* bytes unpacks to 10,737,4.*split it"),
        ("a.zip", declared(b"x", HUGE % 2**32), "this archive of .* bytes unpacks to 2,147,4.*split it"),
        ("a.tgz", gzip.compress(header(kind=tarfile.XHDTYPE) + bytes(2**26)), "more than 33,554,432 bytes"),
        ("b.tgz", gzip.compress(header(kind=tarfile.GNUTYPE_LONGNAME) + bytes(2**26)), "more than 33,554,4"),
        ("a.tar", header(kind=tarfile.GNUTYPE_LONGNAME, size=0) * 5000, "recursion"),
        ("b.tar", (negative() + bytes(512)) * 2 + bytes(1024), "cannot be read"),
        ("b.zip", declared(b"x", 1, zipfile.ZIP_BZIP2), r"0.png: packed in a way that is not .*method 12"),
        ("c.zip", declared(b"x", 1, zipfile.ZIP_LZMA), r"not read \(method 14\).*Pack it again"),
        ("c.zip", declared(b"x", 1, method=9), r"not read \(method 9\).*Pack it again"),
        ("c.zip", declared(b"x", 1, method=93), r"not read \(method 93\).*Pack it again"),
        ("d.zip", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        ("d.tar", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
    ],
    ids=lambda value: "content" if isinstance(value, bytes) else None,
)
def test_an_archive_is_refused_by_what_it_declares(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        open_images([tmp_path / name])


@pytest.mark.parametrize("kind", ["images.zip", "images.tar", "images.tgz"])
def test_an_archive_of_more_entries_than_its_bytes_can_be_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = SOURCES[kind](tmp_path / kind, dict.fromkeys(map("{}.png".format, range(300)), b""))
    assert len(open_images([path]).pictures) == 300
    monkeypatch.setattr(archives, "_FREE_ENTRIES", 100)
    if kind == "images.tgz":
        with pytest.raises(DataError, match=r"tgz: this archive of [0-9,]+ bytes has 1\d\d entries or more"):
            open_images([path])
    monkeypatch.setattr(archives, "ENTRIES", 200)
    with pytest.raises(DataError, match=r"this archive of [0-9,]+ bytes has [1-3]\d\d entries or more"):
        open_images([path])


@pytest.mark.parametrize("kind", SOURCES)
def test_a_file_that_is_larger_than_any_picture_is_refused_and_others_are_not_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "LARGEST", 2**14)
    path = SOURCES[kind](tmp_path / kind, {**FILES, "weights.bin": bytes(2**15)})
    assert len(pixels(open_images([path]))) == N
    path = SOURCES[kind](tmp_path / f"b{kind}", {**FILES, "set/3.png": bytes(2**15)})
    with pytest.raises(DataError, match=r"set/3\.png: this image cannot be read: 32,768 bytes are more than"):
        pixels(open_images([path]))


def test_a_zip_that_holds_more_than_it_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(declared(bytes(2**24), 1000))
    with pytest.raises(DataError, match=r"a\.zip/0\.png: this image cannot be read: Bad CRC"):
        pixels(open_images([tmp_path / "a.zip"]))


def bound(path: Path) -> None:
    # The name of a socket is short, whatever folder it lies in.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(before)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to(os.devnull),
    "a socket": bound,
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["set/2.png", "set/metadata.csv", "a.zip", "a.tar.gz"])
def test_what_is_no_regular_file_is_not_read(kind: str, name: str, tmp_path: Path) -> None:
    files = {name: content for name, content in FILES.items() if name != "set/2.png"}
    path = folder(tmp_path, files if name.startswith("set") else {}) / name
    SPECIAL[kind](path)

    def read() -> None:
        images = open_images([tmp_path if name.startswith("set") else path])
        assert len(list(decode(images))) == N - 1
        read_captions(images)

    with pytest.raises(DataError, match=rf"{name}: this is {kind}"):
        read()


def test_links_to_regular_files_are_read(tmp_path: Path) -> None:
    folder(tmp_path / "blobs", {"x": encoded(1), "y": b"file_name,text\n1.png,x\n"})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.png").symlink_to("../blobs/x")
    (tmp_path / "set" / "metadata.csv").symlink_to("../blobs/y")
    assert len(pixels(open_images([tmp_path / "set"]))) == 1


def test_archives_in_archives_are_not_opened_and_it_is_said(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", FILES).read_bytes()
    for make, name in ((zipped, "a.zip"), (tarred, "a.tar")):
        path = make(tmp_path / name, {"inner.zip": inner})
        with pytest.raises(DataError, match=r"1 \.zip'\).*archives inside archives are not opened"):
            open_images([path])


@pytest.mark.parametrize("text", ["ftp://127.0.0.1/x.zip", "hf://datasets/x/y", "s3://a/{000..002}.tar"])
def test_a_url_is_refused_as_such(text: str) -> None:
    with pytest.raises(DataError, match=r"a URL: images are read from this machine alone .*Download it"):
        open_images([text])


@pytest.mark.parametrize(
    "text", ["a-{0..999999999}.tar", "a-{9999999..0}", "{1..99999}{1..99999}", "{a,b}" * 2000]
)
def test_a_pattern_of_too_many_shards_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"a pattern of too many shards .*Give 1,500,000 at most"):
        open_images([text])


@pytest.mark.parametrize("name", ["a.tar", "a.tgz"])
def test_joined_archives_are_not_read_in_part(name: str, tmp_path: Path) -> None:
    path = tarred(tmp_path / name, FILES)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(DataError, match="several were joined"):
        open_images([path])


@pytest.mark.parametrize(("made", "name"), [("a.tgz", "b.tar"), ("a.zip", "b.tar.gz"), ("a.tar", "b.zip")])
def test_an_archive_is_what_it_begins_with_whatever_its_name_says(
    made: str, name: str, tmp_path: Path
) -> None:
    make = zipped if made == "a.zip" else tarred
    make(tmp_path / made, FILES).rename(tmp_path / name)
    assert len(pixels(open_images([tmp_path / name]))) == N
    # The first bytes of a tar are a name.
    assert len(pixels(open_images([tarred(tmp_path / "c.tar", {"BZh.png": encoded(0)})]))) == 1


def test_a_zip_whose_list_of_entries_is_too_long_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_INDEX", 2**9)
    path = zipped(tmp_path / "a.zip", FILES)
    assert struct.unpack("<I", path.read_bytes()[-10:-6])[0] > 2**9
    with pytest.raises(DataError, match=r"a\.zip: a list or a header of more than 512 bytes.*split it"):
        open_images([path])
