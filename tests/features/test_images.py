"""Sets of images: the same pictures out of a folder, an archive or shards, and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.features.images import BATCH, ImageSet, decode, in_batches, open_images, read_captions
from pytest_sdbench.protocols.image_steps import apply_image_steps
from pytest_sdbench.protocols.sections import Jpeg, Resize

N = 12


def encoded(number: int, ending: str = "png") -> bytes:
    """A picture of noise as a file; each number is another one."""
    pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {"jpg": "JPEG"}.get(ending, ending))
    return file.getvalue()


FILES = {f"set/{number}.png": encoded(number) for number in range(N)}
"""In their natural order, which is not that of their letters: 2 is before 10."""


def folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


SOURCES: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "folder": folder,
    "images.zip": zipped,
    "images.tar": tarred,
    "images.tar.gz": tarred,
    "images.tgz": tarred,
}


def pixels(images: ImageSet) -> list[np.ndarray]:
    return [image[0] for _, image in decode(images)]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_pictures_in_natural_order(kind: str, tmp_path: Path) -> None:
    images = open_images([SOURCES[kind](tmp_path / kind, FILES)])
    assert [picture.name for picture in images.pictures] == list(FILES)
    expected = [np.asarray(Image.open(io.BytesIO(content))) for content in FILES.values()]
    np.testing.assert_array_equal(pixels(images), expected)


@pytest.mark.parametrize("kind", ["images.zip", "images.tar", "images.tgz"])
def test_the_order_of_entries_in_an_archive_does_not_matter(kind: str, tmp_path: Path) -> None:
    plain = pixels(open_images([folder(tmp_path / "plain", FILES)]))
    images = open_images([SOURCES[kind](tmp_path / kind, dict(reversed(FILES.items())))])
    assert [picture.name for picture in images.pictures] == list(FILES)
    found = dict(decode(images))
    np.testing.assert_array_equal([found[number][0] for number in range(N)], plain)
    # A compressed archive is read forwards.
    assert list(found) == (list(reversed(range(N))) if kind == "images.tgz" else list(range(N)))


def test_a_wanted_order_and_choice_is_kept(tmp_path: Path) -> None:
    images = open_images([zipped(tmp_path / "a.zip", FILES)])
    every = pixels(images)
    found = list(decode(images, order=[5, 0, 11]))
    assert [number for number, _ in found] == [5, 0, 11]
    np.testing.assert_array_equal([image[0] for _, image in found], [every[5], every[0], every[11]])


def test_all_four_formats_and_any_case_are_images(tmp_path: Path) -> None:
    files = {f"{k}.{e.upper()}": encoded(k, e) for k, e in enumerate(("png", "jpg", "bmp", "webp"))}
    found = pixels(open_images([folder(tmp_path / "a", files)]))
    expected = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in files.values()]
    np.testing.assert_array_equal(found, expected)


def test_steps_are_those_of_the_protocol(tmp_path: Path) -> None:
    steps = (Jpeg(jpeg=75), Resize(resize=16, filter="pil-bicubic"), Jpeg(jpeg=75))
    images = open_images([folder(tmp_path / "a", FILES)])
    found = np.concatenate([image for _, image in decode(images, steps)])
    np.testing.assert_array_equal(found, apply_image_steps(np.stack(pixels(images)), steps))


def test_what_is_no_image_is_passed_over_and_said(tmp_path: Path) -> None:
    others = {
        ".DS_Store": b"x",
        "set/._1.png": b"x",
        "__MACOSX/set/1.png": b"x",
        ".git/1.png": b"x",
        "notes.md": b"x",
        "set/more.md": b"x",
        "LICENSE": b"x",
        "set/1.txt": b"its caption",
    }
    for kind, make in SOURCES.items():
        images = open_images([make(tmp_path / kind, {**FILES, **others})])
        assert [picture.name for picture in images.pictures] == list(FILES)
        assert images.remark() == "passed over, as no images: 2 .md, 1 without an ending"
    assert open_images([folder(tmp_path / "clean", FILES)]).remark() == ""


def test_batches_hold_one_size(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    images = open_images([folder(tmp_path / "a", {**FILES, "set/4.png": file.getvalue()})])
    found = list(in_batches(decode(images)))
    assert [numbers for numbers, _ in found] == [[0, 1, 2, 3], [4], list(range(5, N))]
    assert [batch.shape for _, batch in found] == [(4, 24, 32, 3), (1, 8, 8, 3), (7, 24, 32, 3)]


def test_only_a_batch_is_read_ahead(tmp_path: Path) -> None:
    images = open_images([folder(tmp_path / "a", {f"{k}.png": encoded(0) for k in range(4 * BATCH)})])
    read = []

    @contextmanager
    def watched() -> Iterator[Callable[[str], bytes]]:
        def one(name: str) -> bytes:
            read.append(name)
            return encoded(0)

        yield one

    source = images.pictures[0].source
    object.__setattr__(source, "open", watched)
    ready = decode(images)
    for _ in range(5):
        next(ready)
    time.sleep(0.3)  # more than enough for the threads to read whatever they may
    ready.close()  # type: ignore[attr-defined]
    assert 5 <= len(read) <= 5 + BATCH + 1


# --- shards ---


def shards(path: Path) -> Path:
    """Three shards of four samples each: a picture and its caption, in the two forms that there are."""
    path.mkdir()
    for shard in range(3):
        files = {}
        for number in range(4 * shard, 4 * shard + 4):
            files[f"{number:04}.png"] = encoded(number)
            if number % 2:
                files[f"{number:04}.txt"] = f"picture {number}\n".encode()
            else:
                files[f"{number:04}.json"] = json.dumps({"caption": f"picture {number}"}).encode()
        tarred(path / f"data-{shard:03}.tar", files)
    return path


@pytest.mark.parametrize("form", ["pattern", "folder", "list"])
def test_shards_are_one_set_in_every_form(form: str, tmp_path: Path) -> None:
    place = shards(tmp_path / "shards")
    sources: list[str | Path] = {
        "pattern": [str(place / "data-{000..002}.tar")],
        "folder": [place],
        "list": sorted(place.iterdir()),
    }[form]  # type: ignore[assignment]
    images = open_images(sources)
    assert [picture.stem for picture in images.pictures] == [f"{number:04}" for number in range(N)]
    assert read_captions(images) == [[f"picture {number}"] for number in range(N)]
    assert images.remark() == ""
    np.testing.assert_array_equal(pixels(images), pixels(open_images([folder(tmp_path / "a", FILES)])))


# --- captions ---


@pytest.mark.parametrize("kind", SOURCES)
def test_captions_of_a_table_are_those_of_the_files_it_names(kind: str, tmp_path: Path) -> None:
    rows = "".join(f'{number}.jpg,"picture, {number}"\n' for number in reversed(range(N)))
    table = {"set/metadata.csv": f"file_name,text\n{rows}".encode()}
    images = open_images([SOURCES[kind](tmp_path / kind, {**table, **FILES})])
    assert read_captions(images) == [[f"picture, {number}"] for number in range(N)]
    assert images.remark() == ""


def test_a_table_above_the_pictures_names_their_folder(tmp_path: Path) -> None:
    rows = "".join(f"set/{number}.png,picture {number}\n" for number in range(3))
    table = {"metadata.csv": f"file_name,text\n{rows}".encode()}
    images = open_images([zipped(tmp_path / "a.zip", {**FILES, **table})])
    assert read_captions(images) == [["picture 0"], ["picture 1"], ["picture 2"], *[[]] * 9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set/1.json", b"{", r"set/1\.json: this caption cannot be read"),
        ("set/1.txt", b"\xff", r"set/1\.txt: this caption cannot be read"),
        ("set/metadata.csv", b"name,caption\n1,x\n", r"set/metadata\.csv: line 2: .*file_name .*'name'"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "images.zip"])
def test_broken_captions_are_named(
    kind: str, name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    images = open_images([SOURCES[kind](tmp_path / kind, {**FILES, name: content})])
    with pytest.raises(DataError, match=f"{kind}/{message}"):
        read_captions(images)


# --- what is refused ---


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("content", [b"", b"no picture", encoded(3)[:700]], ids=["empty", "text", "cut"])
def test_a_damaged_picture_is_named(kind: str, content: bytes, tmp_path: Path) -> None:
    images = open_images([SOURCES[kind](tmp_path / kind, {**FILES, "set/3.png": content})])
    with pytest.raises(DataError, match=rf"{kind}/set/3\.png: this image cannot be read"):
        pixels(images)


def test_a_picture_whose_checksum_in_the_zip_is_wrong_is_named(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", FILES)
    content = path.read_bytes()
    at = content.index(FILES["set/7.png"]) + 500
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(DataError, match=r"a\.zip/set/7\.png: this image cannot be read: Bad CRC"):
        pixels(open_images([path]))


@pytest.mark.parametrize("kind", ["images.zip", "images.tar", "images.tgz"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.97])
def test_an_archive_that_was_cut_short_is_refused_before_any_picture(
    kind: str, keep: float, tmp_path: Path
) -> None:
    path = SOURCES[kind](tmp_path / kind, FILES)
    content = path.read_bytes()
    if kind == "images.tar":
        content = content[: content.rindex(FILES["set/11.png"]) + 2560]  # without the padding at the end
    path.write_bytes(content[: keep if keep >= 1 else int(keep * len(content))])  # type: ignore[misc]
    with pytest.raises(DataError, match=rf"{kind}: this archive cannot be read"):
        open_images([path])


def test_what_comes_twice_is_refused(tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", FILES)
    with pytest.raises(DataError, match=r"a\.tar: this is given 2 times"):
        open_images([path, tmp_path / "." / "a.tar"])
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("./set/5.png"))
    with pytest.raises(DataError, match=r"a\.tar: set/5\.png: this entry stands 2 times"):
        open_images([path])


def test_names_that_lead_outside_are_only_names(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    names = ["../outside.png", "/absolute.png", "a/../../b.png"]
    before = sorted(tmp_path.rglob("*"))
    for path in (
        tarred(inside / "a.tar", dict.fromkeys(names, encoded(0))),
        zipped(inside / "a.zip", dict.fromkeys(names, encoded(0))),
    ):
        assert len(pixels(open_images([path]))) == 3
        path.unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(99))
    path = tarred(tmp_path / "a.tar", FILES)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("set/12.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
    images = open_images([path])
    assert len(images.pictures) == N
    assert images.remark() == "passed over, as no images: 1 links and other special entries"


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_without_images_is_refused(kind: str, tmp_path: Path) -> None:
    path = SOURCES[kind](tmp_path / kind, {"notes.md": b"x"})
    with pytest.raises(DataError, match=rf"{kind}: no images in this .*1 \.md.*Images end in \.png"):
        open_images([path])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: there is no such folder or archive"),
        ("a.npz", r"a\.npz: neither a folder nor an archive"),
        ("a.zip", r"a\.zip: this archive cannot be read"),
        ("data-{000..003}.tar", r"data-000\.tar: there is no such folder or archive"),
    ],
)
def test_what_is_no_source_is_named(name: str, message: str, tmp_path: Path) -> None:
    if name.startswith("a."):
        (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(DataError, match=message):
        open_images([str(tmp_path / name)])


def test_a_picture_of_sixteen_bits_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: it has more than 8 bits a channel.*Save it"):
        pixels(open_images([tmp_path]))
