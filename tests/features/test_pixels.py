"""Pixels of one picture: those that a person sees, of a file that is whole, whatever it is called."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pytest_sdbench.base.errors import DataError
from pytest_sdbench.features import pixels
from pytest_sdbench.features.images import decode, open_images
from pytest_sdbench.protocols.sections import Resize

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def faded(mode: str, alpha: int) -> Image.Image:
    image = Image.fromarray(RGB).convert(mode)
    image.putalpha(Image.new("L", image.size, 255))
    band = Image.new("L", image.size, 255)
    band.putpixel((3, 2), alpha)
    image.putalpha(band)
    return image


def palette(alpha: int) -> bytes:
    image = Image.fromarray(RGB).quantize(8)
    return saved(image, transparency=bytes([255] * 7 + [alpha]))


def seen(path: Path, content: bytes, background: str | None = None) -> tuple[np.ndarray, Counter[str]]:
    (path / "x.png").write_bytes(content)
    told = Counter[str]()
    ((_, found),) = decode(open_images([path]), background=background, seen=told)
    return found[0], told


def test_no_flip_of_a_bit_changes_pixels_without_an_error(tmp_path: Path) -> None:
    content = saved(Image.fromarray(RGB))
    for at in range(len(content)):
        broken = bytearray(content)
        broken[at] ^= 1 << at % 8
        with suppress(DataError):
            found, _ = seen(tmp_path, bytes(broken))
            np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP"])
def test_a_picture_that_is_cut_short_is_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.png: this image cannot be read"):
        seen(tmp_path, saved(Image.fromarray(RGB), form)[:-9])


OPAQUE: dict[str, Callable[[], bytes]] = {
    "RGBA": lambda: saved(faded("RGB", 255)),
    "LA": lambda: saved(faded("L", 255)),
    "P": lambda: saved(Image.fromarray(RGB).quantize(8)),
    "P with tRNS": lambda: palette(255),
    "L": lambda: saved(Image.fromarray(RGB).convert("L")),
    "L of a colour that is not there": lambda: saved(Image.new("L", (8, 6), 3), transparency=4),
    "1": lambda: saved(Image.fromarray(RGB).convert("1")),
}
CLEAR: dict[str, Callable[[], bytes]] = {
    "RGBA": lambda: saved(faded("RGB", 0)),
    "RGBA, hardly": lambda: saved(faded("RGB", 254)),
    "LA": lambda: saved(faded("L", 7)),
    "WebP": lambda: saved(faded("RGB", 0), "WEBP", lossless=True),
    "P with tRNS": lambda: palette(0),
    "RGB of a clear colour": lambda: saved(Image.new("RGB", (8, 6), "red"), transparency=(255, 0, 0)),
    "L of a clear gray": lambda: saved(Image.new("L", (8, 6), 3), transparency=3),
}


@pytest.mark.parametrize("mode", OPAQUE)
def test_pictures_without_a_clear_pixel_are_what_they_were(mode: str, tmp_path: Path) -> None:
    content = OPAQUE[mode]()
    found, told = seen(tmp_path, content)
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    assert pixels.remarks(told) == []


@pytest.mark.parametrize("mode", CLEAR)
def test_a_picture_with_clear_pixels_is_refused_or_laid_over_a_colour_that_is_named(
    mode: str, tmp_path: Path
) -> None:
    content = CLEAR[mode]()
    with pytest.raises(DataError, match=r"x\.png: alpha: this image is transparent.*--background"):
        seen(tmp_path, content)
    found, told = seen(tmp_path, content, "#00ff00")
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    alpha = np.asarray(picture)[..., 3:] / 255
    expected = np.asarray(picture)[..., :3] * alpha + (1 - alpha) * [0, 255, 0]
    np.testing.assert_allclose(found, expected, atol=1)
    assert pixels.remarks(told) == ["1 images are transparent in part and were laid over #00ff00"]


TWO: dict[str, object] = {"save_all": True, "append_images": [Image.new("RGB", (8, 6))]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (saved(Image.fromarray(RGB.astype(np.uint16)[..., 0])), "more than 8 bits a channel"),
        (saved(Image.fromarray(RGB), "PNG", **TWO), "an animation of 2 pictures"),
        (saved(Image.fromarray(RGB), "WEBP", **TWO), "an animation of 2 pictures"),
        (saved(Image.fromarray(RGB), "TIFF"), "no PNG, JPEG, BMP or WebP"),
        (saved(Image.fromarray(RGB), "GIF"), "no PNG, JPEG, BMP or WebP"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
        (saved(Image.new("1", (8192, 8192))), "a picture of more than 33,554,432 pixels .found '8192x8192'"),
    ],
    ids=["I;16", "APNG", "WebP", "TIFF", "GIF", "LFS", "large"],
)
def test_what_pillow_would_read_as_something_else_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"x\.png: .*{message}"):
        seen(tmp_path, content)


def test_sixteen_bits_of_a_colour_are_refused_though_pillow_cuts_them_to_eight(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    lines = zlib.compress((b"\0" + bytes(48)) * 6)
    head = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    assert Image.open(io.BytesIO(content)).mode == "RGB"
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        seen(tmp_path, content)


def test_the_format_is_that_of_the_content(tmp_path: Path) -> None:
    for form, lossy in (("JPEG", 1), ("WEBP", 1), ("PNG", 0), ("BMP", 0)):
        _, told = seen(tmp_path, saved(Image.fromarray(RGB), form))
        assert (pixels.lossy(told), told[form]) == (lossy, 1)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "clear PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_picture_is_turned_upright_and_it_is_said(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(RGB) if form in Image.SAVE else faded("RGB", 0)
    expected, before = seen(tmp_path, saved(image, form.split()[-1], quality=95), "white")
    found, told = seen(tmp_path, saved(image, form.split()[-1], quality=95, exif=exif), "white")
    np.testing.assert_array_equal(found, np.rot90(expected, {1: 0, 3: 2, 6: -1}[orientation]))
    turned = ["1 images were turned upright as their EXIF data say"]
    assert pixels.remarks(told) == pixels.remarks(before) + (turned if orientation > 1 else [])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF at all", b"Exif\0\0II"])
def test_damaged_exif_data_cost_no_picture_and_it_is_said(form: str, exif: bytes, tmp_path: Path) -> None:
    expected, _ = seen(tmp_path, saved(Image.fromarray(RGB), form))
    found, told = seen(tmp_path, saved(Image.fromarray(RGB), form, exif=exif))
    np.testing.assert_array_equal(found, expected)
    assert pixels.remarks(told) == ["1 images have EXIF data that cannot be read, and were not turned"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_does(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(RGB), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(seen(tmp_path, content)[0], np.asarray(expected))


def test_colours_of_print_are_converted_and_it_is_said(tmp_path: Path) -> None:
    _, told = seen(tmp_path, saved(Image.new("CMYK", (8, 6)), "JPEG"))
    assert pixels.remarks(told) == ["1 images are CMYK, and were converted without their colour profile"]


def test_large_pictures_are_decoded_when_their_turn_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_now: list[int] = []

    def counted(file: Image.Image, background: str | None) -> tuple[np.ndarray, list[str]]:
        open_now.append(file.width)
        return pixels.pixels_of(file, background)

    monkeypatch.setattr("pytest_sdbench.features.images.pixels_of", counted)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(saved(Image.new("1", (2049, 2049), number % 2)))
    steps = (Resize(resize=2, filter="pil-bicubic"),)
    found = decode(open_images([tmp_path]), steps)
    for number in range(4):
        _, image = next(found)
        assert len(open_now) == number + 1
        assert (image == 255 * (number % 2)).all()
