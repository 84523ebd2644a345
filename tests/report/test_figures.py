"""Figures show what they are given: pixels to the bit, points at their values, words as text."""

from __future__ import annotations

import base64
import io
import itertools
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pytest_sdbench.report.figures import canvas
from pytest_sdbench.report.figures.frontier import Panel, describe, draw_frontier
from pytest_sdbench.report.figures.history import Call, draw_history
from pytest_sdbench.report.figures.history import Panel as Series
from pytest_sdbench.report.figures.labels import Box, place
from pytest_sdbench.report.figures.sheet import LONGEST, Row, Sheet, draw_sheet, layout
from pytest_sdbench.report.frontier import CostPoint, frontier
from tests.report.test_report import FORGED, HIDDEN

SVG = {"svg": "http://www.w3.org/2000/svg"}
Element = ElementTree.Element
HOSTILE = [
    FORGED,
    HIDDEN,
    "$\\frac{1}{0}$",
    "<script>alert(1)</script>",
    "]]>&amp;",
    "\ufffe\uffff\ud800",
    "%s{}",
]


def picture(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def sheet_of(rows: int = 2, columns: int = 3, side: int = 16, caption: str = "a cat") -> Sheet:
    return Sheet(
        [f"system {column}" for column in range(columns)],
        [
            Row(f"{caption} {row}", [picture(row * columns + column, side) for column in range(columns)])
            for row in range(rows)
        ],
        "One prompt a row.",
    )


def drawn(
    draw: Callable[[], object], folder: Path, description: str = "What it shows"
) -> tuple[Path, Element]:
    """Write a figure in both forms; return the PNG and the tree of the SVG."""
    paths = [folder / "figure.png", folder / "figure.svg"]
    with canvas.style():
        assert canvas.save(draw(), paths, "Title", description) == []
    return paths[0], ElementTree.parse(paths[1]).getroot()


def texts(root: Element) -> list[str]:
    return ["".join(each.itertext()) for each in root.iterfind(".//svg:text", SVG)]


@pytest.mark.parametrize(("side", "columns"), [(16, 3), (64, 5), (7, 2)])
def test_a_cell_is_the_picture_to_the_bit(side: int, columns: int, tmp_path: Path) -> None:
    sheet = sheet_of(columns=columns, side=side)
    with canvas.style():
        places = layout(sheet)
    path, root = drawn(lambda: draw_sheet(sheet, places), tmp_path)
    with Image.open(path) as image:
        assert image.size == (places.width, places.height)
        pixels = np.asarray(image.convert("RGB"))
    times = places.cell // side
    assert places.cell == times * side
    for row, top in zip(sheet.rows, places.tops, strict=True):
        for wanted, left in zip(row.pictures, places.lefts, strict=True):
            cell = pixels[top : top + places.cell, left : left + places.cell]
            np.testing.assert_array_equal(cell, wanted.repeat(times, 0).repeat(times, 1))
    # As many images are in the SVG, each in its own pixels.
    links = [
        each.get("{http://www.w3.org/1999/xlink}href", "") for each in root.iterfind(".//svg:image", SVG)
    ]
    kept = [Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).convert("RGB") for link in links]
    wanted = [each for row in sheet.rows for each in row.pictures]
    for image, each in zip(kept, wanted, strict=True):
        found = np.asarray(image)
        assert any(np.array_equal(turned, each) for turned in (found, found[::-1]))


def test_rows_stand_below_one_another_and_columns_under_their_headings(tmp_path: Path) -> None:
    sheet = sheet_of()
    with canvas.style():
        places = layout(sheet)
    _, root = drawn(lambda: draw_sheet(sheet, places), tmp_path)
    assert texts(root) == ["system 0", "system 1", "system 2", "a cat 0", "a cat 1", "One prompt a row."]
    assert list(places.lefts) == sorted(places.lefts)
    assert all(b - a >= places.cell for a, b in zip(places.tops, places.tops[1:], strict=False))


def test_what_neighbours_share_stands_once_above_them(tmp_path: Path) -> None:
    columns = ["real", "one\n1 step", "one\n2 steps", "two\n1 step", "two\n2 steps", "three\n1 step"]
    sheet = Sheet(columns, [Row("a cat", [picture(at) for at in range(6)])])
    with canvas.style():
        places = layout(sheet)
    assert [(list(run), lines) for run, lines, _ in places.shared] == [([1, 2], ["one"]), ([3, 4], ["two"])]
    _, root = drawn(lambda: draw_sheet(sheet, places), tmp_path)
    shown = texts(root)
    assert [shown.count(text) for text in ("real", "one", "two", "three", "1 step", "2 steps")] == [
        1,
        1,
        1,
        1,
        3,
        2,
    ]


def test_a_long_caption_is_wrapped_and_whole(tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(120)) + " " + "x" * 90
    sheet = sheet_of(rows=2, caption=words)
    with canvas.style():
        places = layout(sheet)
        width = canvas.measure(places.dpi)
        assert all(width(line) <= places.lefts[0] for lines in places.captions for line in lines)
    _, root = drawn(lambda: draw_sheet(sheet, places), tmp_path)
    said = "".join(texts(root)).replace(" ", "")
    assert words.replace(" ", "") + "0" in said
    lines = len(places.captions[0])
    assert places.tops[1] - places.tops[0] >= lines * places.leading(canvas.TEXT) - 1
    assert places.height >= places.tops[1] + lines * places.leading(canvas.TEXT)


@pytest.mark.parametrize("side", [64, 512, 1024])
def test_the_largest_sheet_stays_within_its_size(side: int) -> None:
    pixels = np.zeros((side, side, 3), np.uint8)
    with canvas.style():
        whole = layout(Sheet(["a"] * 12, [Row("a cat", [pixels] * 12)] * 40, "note"), 20)
        assert LONGEST / 2 < max(whole.width, whole.height) <= LONGEST
        for rows, columns in ((41, 1), (1, 13), (0, 1)):
            with pytest.raises(ValueError, match="a sheet has at most 40 and 12"):
                layout(Sheet(["a"] * columns, [Row("a cat", [pixels] * columns)] * rows))
        with pytest.raises(ValueError, match="1 pictures of 'lonely', 2 columns"):
            layout(Sheet(["a", "b"], [Row("lonely", [pixels])]))


POINTS = [
    CostPoint("teacher", 860e6, 13.05, "13.05", False),
    CostPoint("base", 580e6, 15.76, "15.76", False),
    CostPoint("small", 482e6, 16.98, "16.98", False),
    CostPoint("base", 580e6, 15.9, "15.90 ± 0.10", True, 0.1),
    CostPoint("worse", 700e6, 18.0, "18.00 ± 0.20", True, 0.2),
]


def axis(root: Element, which: str) -> Callable[[float], float]:
    """Return the value at a place, as the ticks of an axis say."""
    places = []
    for tick in root.iterfind(".//svg:g[@id]", SVG):
        if re.fullmatch(rf"{which}tick_\d+", tick.get("id", "")):
            (use,) = [each for each in tick.iterfind(".//svg:use", SVG) if "stroke" in each.get("style", "")][
                -1:
            ]
            (label,) = texts(tick)
            places.append((float(use.get(which, "")), float(label.replace("\u2212", "-"))))
    (at, value), *_, (other, further) = places
    return lambda place: value + (place - at) * (further - value) / (other - at)


def uses(root: Element, name: str) -> list[Element]:
    (group,) = [each for each in root.iterfind(".//svg:g[@id]", SVG) if each.get("id") == name]
    return group.findall(".//svg:use", SVG)


def test_a_point_lies_at_its_value(tmp_path: Path) -> None:
    panel = Panel("coco30k", "fid", "size", POINTS)
    _, root = drawn(lambda: draw_frontier([panel]), tmp_path, describe([panel]))
    x, y = axis(root, "x"), axis(root, "y")
    for number, point in enumerate(POINTS):
        (use,) = uses(root, f"point-0-{number}")
        assert x(float(use.get("x", ""))) == pytest.approx(point.cost / 1e6, abs=1)
        assert y(float(use.get("y", ""))) == pytest.approx(point.quality, abs=0.02)
        # Measured points are full, published ones hollow.
        assert (canvas.BLUE in use.get("style", "").partition("stroke")[0]) == point.measured
    for name in ("teacher", "base", "small", "worse"):
        assert texts(root).count(name) == 1
    assert "On the frontier: small, base, teacher." in (root.findtext("svg:desc", "", SVG))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("higher", [True, False])
def test_the_frontier_is_what_no_other_card_beats(seed: int, higher: bool) -> None:
    draw = random.Random(seed)
    points = [
        CostPoint(str(at), draw.randint(1, 9), draw.randint(1, 9), "", draw.random() < 0.5)
        for at in range(12)
    ]
    sign = 1 if higher else -1
    unbeaten = {
        (each.cost, each.quality)
        for each in points
        if not any(
            (other.cost, other.quality) != (each.cost, each.quality)
            and other.cost <= each.cost
            and sign * other.quality >= sign * each.quality
            for other in points
        )
    }
    assert {(each.cost, each.quality) for each in frontier(points, higher=higher)} == unbeaten


@pytest.mark.parametrize("seed", range(12))
def test_no_name_lies_on_another_or_on_a_mark(seed: int) -> None:
    draw, room = random.Random(seed), Box(0, 0, 400, 300)
    points = [(draw.uniform(20, 380), draw.uniform(20, 280)) for _ in range(12)]
    points += [(200 + draw.uniform(-4, 4), 150 + draw.uniform(-4, 4)) for _ in range(3)]
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    boxes = place(points, [(70, 12)] * len(points), room, marks, near=6)
    for at, box in enumerate(boxes):
        assert not box.outside(room)
        assert not any(box.overlap(other) for other in (*boxes[:at], *marks))


@pytest.mark.parametrize("width", [2.0, 6.5])
def test_what_a_change_is_stands_within_its_panel_and_shrinks_none(width: float) -> None:
    calls = [Call(at, at - 1, at, True, "+0.0000190 ± 0.0000014") for at in (1, 2, 3, 4)]
    steps = [at * 1e-5 for at in range(1, 6)]
    panels = [Series(("card", "KID"), steps, [1e-6] * 5, ["2026-01-01"] * 5, calls[:1])]
    panels.append(Series(("card", "KID"), steps, [1e-6] * 5, ["2026-01-01"] * 5, calls))
    with canvas.style():
        figure = draw_history(panels * 2, "note", width)
        figure.draw_without_rendering()
        for axes in [each for each in figure.axes if each.get_visible()]:
            room = axes.get_window_extent()
            assert room.width > 0.25 * min(width, 2.1) * canvas.DPI
            said = [text.get_window_extent() for text in axes.texts]
            assert all(room.x0 - 3 < each.x0 and each.x1 < room.x1 + 3 for each in said)
            assert not any(a.y0 + 1 < b.y1 - 1 for a, b in itertools.pairwise(said))
            first, last = (each.get_window_extent() for each in axes.get_xticklabels())
            assert first.x1 < last.x0 or last.y0 + first.height < first.y1  # beside it or below


def test_a_history_shows_each_value_and_where_a_change_was_called(tmp_path: Path) -> None:
    values = [1.0, 1.1, 0.9, 1.0, 2.0, 2.1]
    call = Call(4, 3, 4, True, "+1.05 ± 0.05")
    days = [f"2026-10-0{day}" for day in range(1, 7)]
    panel = Series(("mini", "FID ↓, coco5k"), values, [0.05] * 6, days, [call])
    _, root = drawn(lambda: draw_history([panel, panel], "± 95 %"), tmp_path)
    y = axis(root, "y")
    found = uses(root, "points-0")
    assert [y(float(each.get("y", ""))) for each in found] == pytest.approx(values, abs=0.02)
    places = [float(each.get("x", "")) for each in found]
    (group,) = [each for each in root.iterfind(".//svg:g[@id]", SVG) if each.get("id") == "change-0-0"]
    (path,) = group.findall("svg:path", SVG)
    start = float(path.get("d", "").split()[1])
    assert start == pytest.approx((places[3] + places[4]) / 2, abs=0.1)
    assert texts(root).count("worse +1.05 ± 0.05") == 2
    assert {"2026-10-01", "2026-10-06", "mini", "FID ↓, coco5k"} <= set(texts(root))


@pytest.mark.parametrize("said", HOSTILE, ids=ascii)
def test_no_word_is_markup_mathematics_or_a_turn_of_the_page(said: str, tmp_path: Path) -> None:
    panel = Panel(
        "coco5k",
        "fid",
        "size",
        [CostPoint(f"{said}{at}", 1e6 * (1 + at), 1.0 + at, said, True, 0.1) for at in range(2)],
    )
    series = Series((said, said), [1.0, 2.0], [None, None], [said, said], [Call(1, 0, 1, None, said)])
    sheet = Sheet([said, said], [Row(said, [picture(0), picture(1)], said)], said)
    figures: list[Callable[[], object]] = [
        lambda: draw_frontier([panel]),
        lambda: draw_history([series], said),
        lambda: draw_sheet(sheet, layout(sheet)),
    ]
    for figure in figures:
        _, root = drawn(figure, tmp_path, said)
        whole = "".join(root.itertext())
        assert all(char.isprintable() or char in "\n " for char in whole)
        assert {each.tag.rpartition("}")[2] for each in root.iter()} <= KNOWN
        assert not [name for each in root.iter() for name in each.attrib if name.startswith("on")]
        assert canvas.shown(said)[:3].strip() in whole


DRAWN = {"svg", "g", "path", "text", "tspan", "use", "defs", "clipPath", "rect", "style", "image"}
KNOWN = DRAWN | {"title", "desc", "metadata", "RDF", "Work", "type", "format"}


def test_equal_figures_have_equal_bytes_whatever_the_settings_of_this_machine(tmp_path: Path) -> None:
    import matplotlib

    panel = Panel("coco30k", "fid", "size", POINTS)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    drawn(lambda: draw_frontier([panel]), tmp_path / "one")
    with matplotlib.rc_context(
        {"font.size": 30, "svg.fonttype": "path", "axes.grid": True, "savefig.dpi": 20}
    ):
        drawn(lambda: draw_frontier([panel]), tmp_path / "two")
    for name in ("figure.png", "figure.svg"):
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert b"dc:date" not in content
        assert b"Matplotlib v" not in content


def test_an_svg_is_one_picture_with_title_and_description(tmp_path: Path) -> None:
    _, root = drawn(
        lambda: draw_frontier([Panel("coco30k", "fid", "size", POINTS)]), tmp_path, "a < b\nc & d"
    )
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", "title description")
    title, description = root.find("svg:title", SVG), root.find("svg:desc", SVG)
    assert title is not None
    assert description is not None
    assert (title.get("id"), title.text) == ("title", "Title")
    assert (description.get("id"), description.text) == ("description", "a < b\nc & d")


def test_signs_that_the_font_lacks_are_named(tmp_path: Path) -> None:
    sheet = Sheet(["a"], [Row("\u6f22 a cat", [picture(0)])])
    with canvas.style():
        (note,) = canvas.save(draw_sheet(sheet, layout(sheet)), [tmp_path / "a.png"], "Title", "")
    assert "lacks \u6f22:" in note


def test_nothing_imports_matplotlib_before_a_figure_is_drawn() -> None:
    modules = "plugin, commands.main, commands.figure, commands.figure_sheet, report.figures.sheet"
    names = [f"pytest_sdbench.{name}" for name in modules.split(", ")]
    code = f"import sys, {', '.join(names)}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
