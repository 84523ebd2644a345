"""Pictures of scenes: the same bytes everywhere, pictograms as FreeType draws them, in their colours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont
from scipy.ndimage import binary_dilation, binary_fill_holes

from pytest_sdbench.base.errors import DataError, Unavailable
from pytest_sdbench.protocols import scene_glyphs, scenes
from pytest_sdbench.protocols.scene_glyphs import font_file, outline
from pytest_sdbench.protocols.scene_masks import fill, masks
from tests.fonts import installed

SAMPLE = range(10_000_000, 10_000_300)
SIDE = 224
"""Samples of the longer side: 14 pixels."""


def digest(pixels: scenes.Image) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


def alone(name: str, colour: str = "white", radius: float = 14.0, ground: str = "navy") -> scenes.Image:
    """Draw one object in the middle."""
    thing = scenes.SceneObject(name, colour, "large", 32, 32, radius)
    background = next(each for each in scenes.BACKGROUNDS if each.name == ground)
    return scenes.render(scenes.Scene(0, "", (thing,), "one", background))


def test_bytes_never_change():
    """Recorded statistics rest on them, on every machine."""
    assert digest(scenes.render_batch(SAMPLE)) == "702c6619cc7bde69"
    assert digest(scenes.render_batch(SAMPLE[:40], 128)) == "49cded399b1fc122"
    assert digest(scenes.render_batch(SAMPLE[:40], domain="faces")) == "c47532516f6b22b4"


def freetype(code: int) -> np.ndarray:
    """Draw a character with FreeType, its longer side `SIDE` pixels, cropped to its box: bool."""
    points = np.concatenate(outline(code))
    side = int((points.max(axis=0) - points.min(axis=0)).max())
    # Drawn four times as large: FreeType moves lines to whole pixels.
    size = 4 * SIDE * 2048 * 8 / side
    font = ImageFont.truetype(str(font_file()), size, layout_engine=ImageFont.Layout.BASIC)
    image = font.getmask(chr(code), mode="L")
    return cropped(np.array(image, np.uint8).reshape(image.size[::-1])[2::4, 2::4] > 127)


def cropped(found: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    return found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def amid(found: np.ndarray) -> np.ndarray:
    """Put a picture amid a square that is a little larger than the largest."""
    spare = [SIDE + 8 - own for own in found.shape]
    return np.pad(found, [(each // 2, each - each // 2) for each in spare])


@pytest.mark.parametrize("name", scenes.NAMES)
def test_pictograms_are_those_of_freetype(name):
    one = scenes.PICTOGRAMS[name]
    mine, theirs = (amid(each) for each in (cropped(fill(outline(one.code), SIDE)), freetype(one.code)))
    # FreeType moves lines a little, and tips that are narrower than a sample end elsewhere.
    assert (mine & ~binary_dilation(theirs, iterations=2)).sum() <= 20
    assert (theirs & ~binary_dilation(mine, iterations=2)).sum() <= 20
    assert theirs.sum() == pytest.approx(mine.sum(), rel=0.03)


@pytest.mark.parametrize("name", [name for name, one in scenes.PICTOGRAMS.items() if one.lined])
def test_bodies_are_what_lines_enclose(name):
    code = scenes.PICTOGRAMS[name].code
    lines = fill(outline(code), SIDE)
    found = masks(code, True, SIDE, 0, 0)
    padded = np.pad(binary_fill_holes(lines), ((0, 16), (0, 16)))
    blocks = padded.reshape(len(padded) // 16, 16, -1, 16).sum(axis=(1, 3))
    assert np.abs(blocks - found.body.astype(int)).sum() < 0.01 * blocks.sum()
    assert (found.lines <= found.body).all()


def test_samples_are_inside_where_the_outline_winds_around_them():
    square = np.array([(0, 0), (100, 0), (100, 100), (0, 100)])
    inner = square // 2 + 25
    assert fill([square], 320).all()
    assert fill([square], 330).shape == (352, 352)
    hole = fill([square, inner[::-1]], 320)
    assert hole.sum() == 320**2 - 160**2
    assert not hole[80:240, 80:240].any()
    assert fill([square, inner], 320).all()
    below = fill([square[:3]], 320)
    assert below.sum() == pytest.approx(320**2 / 2, rel=0.01)
    assert (below[-1, 200], below[0, 200]) == (True, False)


def test_coverage_counts_the_samples_of_every_pixel():
    """A circle of 20 pixels whose centre moves by a quarter of a pixel keeps its area and its samples."""
    code = scenes.PICTOGRAMS["circle"].code
    still, moved = (masks(code, False, 320, across, 0) for across in (0, 4))
    assert still.lines is None
    assert still.body.sum() == moved.body.sum() == pytest.approx(np.pi * 160**2, rel=0.01)
    assert still.body.max() == moved.body.max() == 256
    at = [np.average(np.arange(21), weights=each.body.sum(axis=0)) for each in (still, moved)]
    assert at[1] - at[0] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("name", scenes.NAMES)
def test_small_and_large_objects_are_as_high_or_wide_as_they_say(name):
    for radius in (9.5, 10.0, 13.5, 14.0):
        picture = alone(name, radius=radius).astype(int)[..., 0]
        # Brighter than the navy, which its shadow is not.
        rows, columns = (np.flatnonzero((picture > 30).any(axis=axis)) for axis in (1, 0))
        longest = max(np.ptp(rows), np.ptp(columns)) + 1
        assert longest == pytest.approx(2 * radius, abs=2), radius


def test_every_object_is_in_the_picture_in_its_colour():
    for index in SAMPLE[:150]:
        one = scenes.scene(index)
        picture = scenes.render(one).astype(float)
        for thing in one.objects:
            reach = int(thing.radius)
            x, y = int(thing.x), int(thing.y)
            box = picture[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            away = np.linalg.norm(box - np.array(scenes.RGB[thing.colour]), axis=-1)
            assert (away < 50).mean() > 0.01, (index, thing)


@pytest.mark.parametrize("name", scenes.NAMES)
def test_edges_are_anti_aliased(name):
    picture = alone(name, radius=13.5).astype(int)[..., 0]
    # Between the navy (26) and the white (at least 240), some pixels must lie in between.
    assert ((picture > 60) & (picture < 200)).mean() > 0.001
    assert (picture >= 240).sum() >= 8


def test_a_shadow_lies_to_the_lower_right():
    plain = scenes.render(scenes.Scene(0, "", (), "one", scenes.BACKGROUNDS[0])).astype(int)
    darker = plain.sum(axis=-1) - alone("square", ground="grey").astype(int).sum(axis=-1) > 40
    rows, columns = np.nonzero(darker)
    assert rows.size
    assert (rows.max(), columns.max()) == (48, 48)
    assert not darker[:18].any()
    assert not darker[:, :18].any()


def test_render_scales():
    small, large = scenes.render(scenes.scene(5)), scenes.render(scenes.scene(5), size=128)
    assert small.shape == (64, 64, 3)
    assert large.shape == (128, 128, 3)
    halved = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - small).mean() < 3


def test_objects_beyond_the_edge_are_cut_off():
    thing = scenes.SceneObject("circle", "red", "large", 0.0, 63.5, 14.0)
    picture = scenes.render(scenes.Scene(0, "", (thing,), "one", scenes.BACKGROUNDS[0]))
    assert (picture[-1, 0] == alone("circle", "red", ground="grey")[32, 32]).all()
    assert (picture[0, -1] == scenes.BACKGROUNDS[0].top).all()


def test_render_batch_is_the_renders_stacked():
    batch = scenes.render_batch(range(7, 10))
    assert batch.dtype == np.uint8
    assert np.array_equal(batch[1], scenes.render(scenes.scene(8)))
    assert np.array_equal(
        scenes.render_batch([8], domain="faces")[0], scenes.render(scenes.scene(8, "faces"))
    )


# --- the font --------------------


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """Another matplotlib, whose font is not there yet: the font's path."""
    package = tmp_path / "matplotlib" / "__init__.py"
    with installed(ModuleSpec("matplotlib", None, origin=str(package))):
        yield package.parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def test_another_font_is_refused(other):
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another font")
    with pytest.raises(DataError) as caught:
        font_file()
    told = str(caught.value)
    assert str(other) in told
    assert hashlib.sha256(b"another font").hexdigest() in told
    assert scene_glyphs.SHA256 in told
    assert "matplotlib 3.8 to 3.11 ship the right one: pip install" in told


def test_a_missing_font_is_named(other):
    with pytest.raises(Unavailable, match=r"DejaVuSans\.ttf.*missing.*matplotlib 3\.8 to 3\.11"):
        font_file()


def test_a_character_that_the_font_lacks_is_named():
    with pytest.raises(DataError, match=r"no such character.*U\+1F9F8"):
        outline(0x1F9F8)
