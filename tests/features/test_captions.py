"""Captions that come with images: every form that the hub's ImageFolder knows, and what only looks so."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.commands.score_matching import match
from pytest_sdbench.features.images import open_images, read_captions
from tests.features.test_images import SOURCES, folder

ROWS = {"b.png": "a red cat, asleep", "a.png": "“two” dogs\u2028and a line", "c.png": "an owl"}
"""Their order is neither that of the images nor that of the prompts."""
PROMPTS = ("an owl", "a red cat, asleep", "“two” dogs\u2028and a line")
ORDER = (2, 1, 0)
"""The images of these prompts: c, b, a."""


def csv(header: str, row: str, end: str = "\n") -> bytes:
    return (header + end + end.join(row.format(name, text) for name, text in ROWS.items()) + end).encode()


def jsonl(rows: Sequence[dict[str, Any]], end: str = "\n") -> bytes:
    return (end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end).encode()


def columns(names: Sequence[str] = ("file_name", "text"), **more: Any) -> bytes:
    file = io.BytesIO()
    captions = dict(zip(names, (list(ROWS), list(ROWS.values())), strict=True))
    parquet.write_table(pyarrow.table({**captions, **more}), file)
    return file.getvalue()


def rows(column: str = "text", **more: object) -> list[dict[str, Any]]:
    return [{**more, column: text, "file_name": name} for name, text in ROWS.items()]


BOM = b"\xef\xbb\xbf"
READ = {
    "csv": ("metadata.csv", csv("file_name,text", '{},"{}"')),
    "csv of another order": ("metadata.csv", csv("seed,prompt,file_name", '7,"{1}",{0}')),
    "csv of a spreadsheet": (
        "metadata.csv",
        BOM + csv("file_name,caption,", '{},"{}",', "\r\n") + b",,\r\n\n",
    ),
    "csv of Windows": ("metadata.csv", csv("file_name, text", '.\\{},"{}"')),
    "csv in capitals": ("metadata.csv", csv("File_Name,Text", '{},"{}"')),
    "csv with spaces": ("metadata.csv", csv("file_name, text", '{}, "{}"')),
    "csv after blank lines": ("metadata.csv", b"\n , \n" + csv("file_name,text", '{},"{}"')),
    "csv that says how it is separated": (
        "metadata.csv",
        BOM + b"sep=,\r\n" + csv("file_name,text", '{},"{}"', "\r\n"),
    ),
    "csv with a long column": ("metadata.csv", csv("file_name,text,mask", '{},"{}",' + "0" * 2**18)),
    "csv of another codec": ("metadata.csv", csv("file_name,text", '{},"{}"').replace(b".png", b".jpg")),
    "jsonl": ("metadata.jsonl", jsonl(rows())),
    "jsonl with more": (
        "metadata.jsonl",
        BOM + jsonl(rows("prompt", seed=[1], mask_file_name="x.png"), "\r\n"),
    ),
    "jsonl, blank lines": ("metadata.jsonl", b"\n" + jsonl(rows("caption"), "\n\n") + b" \n"),
    "jsonl of another name": (
        "metadata.jsonl",
        jsonl([{"x_file_name": n, "text": t} for n, t in ROWS.items()]),
    ),
    "jsonl of two": ("metadata.jsonl", jsonl(rows(prompt="tags, of no use"))),
    "jsonl in capitals": ("metadata.jsonl", jsonl([{"FILE_NAME": n, "TEXT": t} for n, t in ROWS.items()])),
    "parquet": ("metadata.parquet", columns()),
    "parquet in capitals": ("metadata.parquet", columns(names=["File_Name", "Text"])),
    "parquet with more": (
        "metadata.parquet",
        columns(picture=[b"\x00" * 999] * 3, caption=["an", "other", None]),
    ),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["folder", "images.zip", "images.tgz"])
def test_a_table_of_captions_is_read_as_image_folder_reads_it(kind: str, name: str, tmp_path: Path) -> None:
    file, content = READ[name]
    images = open_images(
        [SOURCES[kind](tmp_path / kind, {**dict.fromkeys(sorted(ROWS), b""), file: content})]
    )
    found = match(images, PROMPTS, n=3)
    assert (found.order, found.doubt) == (ORDER, None)
    assert images.remark() == ""


NUMBERED = ("0.png", "1.png", "2.png")
LIKE = {
    "no table": ("metadata.json", b"[]"),
    "tabs": ("metadata.tsv", b"file_name\ttext\n0.png\tan owl\n"),
    "lines": ("prompts.txt", b"an owl\n"),
    "a mapping": ("all.json", json.dumps({"0.png": "an owl in a tree"}).encode()),
    "another header": ("labels.csv", b"image,sentence\n0.png,owl\n"),
    "another folder": ("texts/x/0.txt", b"an owl"),
    "the name alone": ("beside/0.txt", b"an owl"),
    "another ending": ("0.caption", b"an owl"),
    "keys of its own": ("0.json", b'{"TEXT": "an owl"}'),
    "a whole dataset": ("train.parquet", columns()),
    "compressed": ("metadata.csv.gz", b"\x1f\x8b"),
    "other images": ("metadata.jsonl", jsonl(rows())),
    "UTF-16": ("metadata.csv", "file_name,text\n0.png,an owl\n".encode("utf-16")),
    "semicolons": ("metadata.csv", b"file_name;text\n0.png;an owl\n"),
    "no caption": ("metadata.csv", b"file_name,seed\n0.png,1\n"),
    "no text": ("metadata.jsonl", b'{"file_name": "0.png", "text": 7}\n'),
    "no quotes": ("metadata.csv", b"file_name,text\n0.png,an owl, asleep\n"),
    "no line an object": ("metadata.jsonl", b'[{"file_name": "0.png"}]'),
    "two columns of one name": ("metadata.csv", b"file_name,text,Text\n0.png,an owl,a cat\n"),
    "deep": ("metadata.jsonl", b"[" * 100_000),
    "cut short": ("metadata.parquet", columns()[:-9]),
}


@pytest.mark.parametrize("name", LIKE)
@pytest.mark.parametrize("kind", ["folder", "images.tgz"])
def test_what_looks_like_captions_and_is_not_understood_leaves_the_prompt_of_an_image_open(
    kind: str, name: str, tmp_path: Path
) -> None:
    file, content = LIKE[name]
    images = open_images([SOURCES[kind](tmp_path / kind, {**dict.fromkeys(NUMBERED, b""), file: content})])
    found = match(images, PROMPTS, n=3)
    assert found.how == "in no way"
    assert f"{kind}/{file}: " in str(found.doubt)
    with pytest.raises(DataError, match=file):
        match(images, PROMPTS, n=3, by="caption")
    assert match(images, PROMPTS, n=3, by="index").doubt is None


@pytest.mark.parametrize("kind", ["folder", "images.tgz"])
def test_a_table_of_other_images_is_told_by_the_first_file_that_it_names(kind: str, tmp_path: Path) -> None:
    table = b"file_name,text\n5.png,\n/home/me/0.png,an owl\n"
    files = {**dict.fromkeys(NUMBERED, b""), "metadata.csv": table}
    images = open_images([SOURCES[kind](tmp_path / kind, files)])
    words = r"csv: line 3, file_name: none of the images, such as 0\.png, .* \(found '/home/me/0\.png'\)"
    with pytest.raises(DataError, match=words):
        match(images, PROMPTS, n=3, by="caption")


@pytest.mark.parametrize("kind", ["images.zip", "images.tgz"])
@pytest.mark.parametrize(
    ("file", "doubtful"),
    [
        ("metadata.jsonl", (True, True)),
        ("prompts.txt", (True, True)),
        ("0.txt", (True, True)),
        ("all.json", (True, False)),  # it may be anybody's
        ("texts/captions.csv", (True, False)),
        ("README.txt", (False, False)),
    ],
)
def test_what_looks_like_captions_beside_an_archive_leaves_them_open(
    kind: str, file: str, doubtful: tuple[bool, bool], tmp_path: Path
) -> None:
    archive = SOURCES[kind](tmp_path / kind, dict.fromkeys(NUMBERED, b""))
    content = b"Ours" if file == "README.txt" else b'{"file_name": "0.png", "text": "an owl"}'
    folder(tmp_path, {file: content})
    for source, doubt in zip((tmp_path, archive), doubtful, strict=True):
        found = match(open_images([source]), PROMPTS, n=3)
        assert (
            (f"{file}: this looks like captions" in str(found.doubt)) == (found.how == "in no way") == doubt
        )


@pytest.mark.parametrize("file", ["metadata.jsonl", "x/metadata.csv", "c.txt"])
@pytest.mark.parametrize("kind", ["images.zip", "images.tgz"])
def test_captions_around_an_archive_are_read_where_captions_are_asked_for(
    kind: str, file: str, tmp_path: Path
) -> None:
    inner = "x/" if "x/" in file else ""
    archive = SOURCES[kind](tmp_path / kind, dict.fromkeys((inner + name for name in sorted(ROWS)), b""))
    outside = {
        "metadata.jsonl": {"metadata.jsonl": jsonl(rows())},
        "x/metadata.csv": {"metadata.csv": csv("file_name,text", 'x/{},"{}"')},
        "c.txt": {f"{name[0]}.txt": text.encode() for name, text in ROWS.items()},
    }[file]
    folder(tmp_path, outside)
    images = open_images([archive])
    assert match(images, PROMPTS, n=3, by="caption").order == ORDER
    assert match(images, PROMPTS, n=3).doubt is not None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("README.txt", b"Made with the prompts of another text."),
        ("args.json", b'{"seed": 1, "prompt_file": "x"}'),
        ("0.json", b'{"seed": 1}'),
        ("sums.txt", b"abcdef  0.png\nfedcba  1.png\n"),
        ("loss.csv", b"step,loss\n0,0.5\n"),
        ("notes.md", b"captions"),
    ],
)
def test_what_lies_beside_images_and_is_no_caption_does_not_matter(
    file: str, content: bytes, tmp_path: Path
) -> None:
    images = open_images([folder(tmp_path, {**dict.fromkeys(NUMBERED, b""), file: content})])
    assert match(images, PROMPTS, n=3).how.startswith("by the numbers")


def test_files_of_captions_that_agree_are_one_and_others_are_refused(tmp_path: Path) -> None:
    names = dict.fromkeys(ROWS, b"")
    both = {
        "metadata.jsonl": jsonl(rows()),
        "metadata.csv": csv("file_name,text", '{},"{}"'),
        "c.txt": b"an owl",
    }
    images = open_images([folder(tmp_path / "a", {**names, **both})])
    assert match(images, PROMPTS, n=3).order == ORDER
    other = {**both, "c.txt": ROWS["b.png"].encode()}
    images = open_images([folder(tmp_path / "b", {**names, **other})])
    with pytest.raises(DataError, match=r"c\.png: several prompts of the protocol are captions"):
        match(images, PROMPTS, n=3)


@pytest.mark.parametrize("key", ["file_name", "id"])
@pytest.mark.parametrize("where", ["", "x/"])
def test_a_table_without_captions_takes_none_from_images_that_have_one(
    where: str, key: str, tmp_path: Path
) -> None:
    beside = {f"{name[0]}.txt": text.encode() for name, text in ROWS.items()}
    table = jsonl([{key: name, "seed": 1} for name in ROWS])
    files = {**dict.fromkeys(ROWS, b""), **beside, f"{where}metadata.jsonl": table}
    assert match(open_images([folder(tmp_path, files)]), PROMPTS, n=3).order == ORDER


def test_captions_that_would_fill_the_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_sdbench.features.captions._LARGEST", 2**12)
    file = io.BytesIO()
    repeated = {"file_name": [f"{k}.png" for k in range(999)], "text": ["an owl" * 99] * 999}
    parquet.write_table(pyarrow.table(repeated), file, compression="zstd")
    for name, content in (
        ("metadata.parquet", file.getvalue()[:]),
        ("metadata.csv", b"file_name,text\n" * 999),
    ):
        images = open_images([folder(tmp_path / name, {"0.png": b"", name: content})])
        with pytest.raises(DataError, match=rf"{name}.* 4,096 bytes"):
            read_captions(images)


def test_names_of_zips_of_windows_and_of_macs_are_the_same_names(tmp_path: Path) -> None:
    apart, together = "o\u0301wl.png", "\u00f3wl.png"
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("images\\0.png", b"")
        archive.writestr(f"images\\{apart}", b"")
        table = jsonl(
            [{"file_name": "0.png", "text": PROMPTS[1]}, {"file_name": together, "text": PROMPTS[0]}]
        )
        archive.writestr("images\\metadata.jsonl", table)
    found = match(open_images([tmp_path / "images.zip"]), PROMPTS, n=2)
    assert (found.order, found.doubt) == ((1, 0), None)


def test_namesakes_in_several_folders_are_told_apart_by_these(tmp_path: Path) -> None:
    files = ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"]
    for file in files:
        path = (tmp_path / "out" / file).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = match(open_images([tmp_path / "out"]), ["a", "b", "c", "d"], files, n=4)
    assert found.order == (0, 1, 2, 3)
    assert "by their names" in found.how
