"""The file of kept pictures: lossless, the same bytes each time, read by others, and safe to open."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.features.images import decode, open_images, read_captions
from pytest_sdbench.store.pictures import (
    format_picture,
    format_pictures,
    parse_pictures,
    pictures_name,
    pictures_names,
    pictures_range,
)
from pytest_sdbench.store.shard_format import SHARD, Damage

IMAGES = range(64, 69)
PROMPTS = ("a red square, 'on' a blue one", "", "ein Stück Käse", "two\nlines ", "日本")
SEEDS = (0, 1, 2**32 - 1, 7, 7)
OWN = {"of": "c-d", "writer": "w"}


def pixels(count: int = len(IMAGES), height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def content(images: np.ndarray | None = None) -> bytes:
    return format_pictures(pixels() if images is None else images, IMAGES, SEEDS, PROMPTS, **OWN)


def test_what_is_written_is_read_to_the_bit() -> None:
    found, about = parse_pictures(content())
    np.testing.assert_array_equal(found.images, pixels())
    assert found.indices.tolist() == list(IMAGES)
    assert found.seeds.tolist() == list(SEEDS)
    assert found.prompts == PROMPTS
    assert about == {"format": 1, "of": "c-d", "writer": "w", "start": 64, "stop": 69}


def test_equal_pictures_are_equal_bytes_that_tell_neither_time_nor_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = content()
    monkeypatch.setattr("time.time", lambda: 1.0)
    assert content() == first
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        entries = archive.getmembers()
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.mode) for entry in entries} == {
        (0, 0, 0, "", 0o644)
    }


def test_a_png_holds_its_pixels_alone() -> None:
    with (
        tarfile.open(fileobj=io.BytesIO(content())) as archive,
        Image.open(archive.extractfile("00000064.png")) as png,
    ):
        assert (png.mode, png.info) == ("RGB", {})


# --- others' readers ---


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / pictures_name(IMAGES)
    path.write_bytes(content())
    return path


NAMES = [f"{index:08d}.{ending}" for index in IMAGES for ending in ("png", "txt", "json")]


@pytest.mark.parametrize("mode", ["r:", "r|*"], ids=["in place", "as a stream, as WebDataset reads"])
def test_tarfile_reads_it(mode: Any, file: Path) -> None:
    with file.open("rb") as stream, tarfile.open(fileobj=stream, mode=mode) as archive:
        found = {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isreg()}
    assert list(found) == NAMES
    assert found["00000066.txt"].decode() == PROMPTS[2]
    assert json.loads(found["00000066.json"]) == {"index": 66, "seed": 2**32 - 1}


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar on this machine")
def test_tar_reads_it_without_a_word(file: Path) -> None:
    done = subprocess.run(["tar", "-tf", file], capture_output=True, text=True, check=True)
    assert (done.stdout.split("\n")[:-1], done.stderr) == (NAMES, "")


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_it(streaming: bool, file: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = {"train": str(file.parent / "pictures-*.tar")}
    told = {"split": "train", "cache_dir": str(tmp_path / "cache"), "streaming": streaming}
    samples = list(datasets.load_dataset("webdataset", data_files=files, **told))
    np.testing.assert_array_equal(np.stack([np.asarray(each["png"]) for each in samples]), pixels())
    assert tuple(each["txt"] for each in samples) == PROMPTS
    assert [each["json"] for each in samples] == [
        {"index": index, "seed": seed} for index, seed in zip(IMAGES, SEEDS, strict=True)
    ]


def test_score_and_stats_read_it(file: Path) -> None:
    images = open_images([file])
    assert images.remark() == ""
    assert [texts for texts in read_captions(images)] == [[text.strip()] if text else [] for text in PROMPTS]
    np.testing.assert_array_equal(np.concatenate([image for _, image in decode(images)]), pixels())


# --- what is refused ---


def resealed(change: Callable[[bytes], bytes], images: np.ndarray | None = None) -> bytes:
    """Change what follows the header, with a checksum that says it is right."""
    whole = content(images)
    about = {"format": 1, **OWN, "start": 64, "stop": 69}
    body = change(whole[1024:])
    about["sha256"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode() + body).hexdigest()
    told = {"comment": json.dumps(about, sort_keys=True)}
    return tarfile.TarInfo.create_pax_global_header(told) + body


def larger(size: int) -> Callable[[bytes], bytes]:
    """Let the header of every PNG say that it is so wide and high."""

    def change(body: bytes) -> bytes:
        old = b"IHDR" + (20).to_bytes(4, "big") + (12).to_bytes(4, "big")
        return body.replace(old, b"IHDR" + size.to_bytes(4, "big") * 2)

    return change


HOSTILE = {
    "another name": (lambda body: body.replace(b"00000065.txt", b"../../../txt"), "not in its place"),
    "one member less": (lambda body: body[: -1024 - 512 * 2] + bytes(1024), "not a whole shard"),
    "one member more": (lambda body: body[:-1024] + body[:1024] + bytes(1024), "more files"),
    "no end": (lambda body: body[:-512], "more files"),
    "another index": (lambda body: body.replace(b'{"index": 66', b'{"index": 67'), "another picture"),
    "a seed that is none": (lambda body: body.replace(b'"seed": 1}', b'"seed":"1}'), "not a whole shard"),
    "a bomb": (larger(2**30), "larger than are ever kept"),
    "one picture larger": (lambda body: larger(24)(body[:1024]) + body[1024:], "not a whole shard"),
    "no PNG": (lambda body: body.replace(b"\x89PNG", b"\x89JNG"), "no PNG"),
    "grey": (lambda body: body.replace(bytes([8, 2, 0, 0, 0]), bytes([8, 0, 0, 0, 0])), "another form"),
    "a text in the PNG": (lambda body: body.replace(b"IDAT", b"tEXt"), "another form"),
    "pixels cut": (larger(200), "not a whole shard"),
}


def test_resealed_and_unchanged_it_is_sound() -> None:
    """Else what follows would be refused for its checksum."""
    assert resealed(bytes) == content()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_with_a_right_checksum_is_damage(name: str) -> None:
    change, why = HOSTILE[name]
    assert resealed(change) != content()
    with pytest.raises(Damage, match=why):
        parse_pictures(resealed(change))


def test_any_flipped_bit_is_damage() -> None:
    whole = content(pixels(height=1, width=1))
    for at in range(0, len(whole)):
        with pytest.raises(Damage):
            parse_pictures(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])


def test_without_the_checksum_the_form_is_looked_at_all_the_same() -> None:
    whole = content()
    at = whole.index(b"00000066.txt") + 512
    other = whole[:at] + b"EIN" + whole[at + 3 :]
    assert parse_pictures(other, check=False)[0].prompts[2] == "EIN Stück Käse"
    with pytest.raises(Damage, match="wrong checksum"):
        parse_pictures(other)
    with pytest.raises(Damage):
        parse_pictures(whole[:-600], check=False)


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024, 5000], ids=str)
def test_a_torn_file_is_damage(cut: int) -> None:
    with pytest.raises(Damage):
        parse_pictures(content()[:cut])


def test_a_file_of_a_later_version_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pytest_sdbench.store.pictures.FORMAT", 2)
        later = content()
    with pytest.raises(Damage, match="format 2, this version reads 1"):
        parse_pictures(later)


@pytest.mark.parametrize(
    ("images", "indices", "seeds", "prompts"),
    [
        (pixels(0), [], [], []),
        (pixels(2), [0, 2], [1, 1], ["a", "b"]),
        (pixels(2), [0, 1], [1], ["a", "b"]),
        (pixels(2), [0, 1], [1, 1], ["a"]),
        (pixels(2).astype(np.float32), [0, 1], [1, 1], ["a", "b"]),
        (pixels(2)[..., 0], [0, 1], [1, 1], ["a", "b"]),
        (pixels(SHARD + 1, 1, 1), range(SHARD + 1), range(SHARD + 1), ["a"] * (SHARD + 1)),
    ],
)
def test_only_shards_of_pictures_are_written(images: Any, indices: Any, seeds: Any, prompts: Any) -> None:
    with pytest.raises(ValueError, match=r"not (a shard|pictures)"):
        format_pictures(images, indices, seeds, prompts, **OWN)


@pytest.mark.parametrize("side", [2056, 4104], ids=str)
def test_what_is_written_is_not_too_large_to_be_read(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 of 2056x2056 were once written and never read; a stand-in for PNG keeps the test small."""
    images = np.broadcast_to(np.zeros((), np.uint8), (SHARD, side, side, 3))
    about = (range(SHARD), range(SHARD), ["a"] * SHARD)
    png = bytearray(format_picture(pixels(1)[0]))
    png[16:24] = side.to_bytes(4, "big") * 2
    monkeypatch.setattr("pytest_sdbench.store.pictures.format_picture", lambda image: bytes(png))
    if side > 4096:
        with pytest.raises(EvidenceError, match=r"4104x4104 is more than 16,777,216 pixels"):
            format_pictures(images, *about, **OWN)
        return
    monkeypatch.setattr("pytest_sdbench.store.pictures._pixels", lambda png: pixels(1)[0])
    assert len(parse_pictures(format_pictures(images, *about, **OWN))[0].seeds) == SHARD


def test_names_lie_on_the_grid_of_the_shards() -> None:
    assert pictures_name(range(64)) == "pictures-00000000-00000064.tar"
    assert pictures_range("pictures-00000064-00000070.tar") == range(64, 70)
    assert pictures_range("shard-00000064-00000128.safetensors") is None
    there = {pictures_name(range(64, stop)): 1 for stop in (66, 70, 128)}
    assert pictures_names(range(64, 70), there) == [pictures_name(range(64, stop)) for stop in (128, 70)]
