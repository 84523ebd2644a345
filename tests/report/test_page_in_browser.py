"""The page of a run in a browser: silent, usable with a keyboard, in any width, and accessible.

It needs Playwright (extra `dev`), a Chromium (`apt-get install chromium`, or SDBENCH_CHROMIUM=FILE) and, for
one test, axe-core (`npm install --no-save axe-core@4.14.1`, or SDBENCH_AXE=FILE of its axe.min.js).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.family import reports
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.report.history import run_of
from pytest_sdbench.report.html.render import results_html
from pytest_sdbench.report.html.run import NO_RUN, Run
from tests.report.pages import row, score
from tests.report.test_page import hostile, shown_rows
from tests.report.test_report import FORGED, ROWS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = {each.name: reports.PAGES / f"{each.name}.html" for each in reports.EXAMPLES}
NAMES = ("fell", "hostile", "mixed", "nothing", *(f"example {name}" for name in EXAMPLES))


def chromium() -> str | None:
    """Return the browser of this machine."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("SDBENCH_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright, as the extra `dev` does")
    if (program := chromium()) is None:
        pytest.skip("no Chromium here: apt-get install chromium, or SDBENCH_CHROMIUM=FILE")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of several runs: with pictures and panels, of words that are not ours, of nothing."""
    folder = tmp_path_factory.mktemp("pages")
    family = [read_card(path) for path in sorted((reference() / "cards").glob("scenes-*.md"))]
    (card,) = (card for card in family if card.name == "scenes-tiny-lcm")
    others = [
        replace(score("clip_score", 0.0, half=2.0), protocol="scenes-quick", reason="long " * 90),
        row("quality", "scenes-sd", metric="fid", protocol="scenes-quick", measured=1.1, claimed=1.0, n=512),
        row("size", "scenes-sd", name="unet", measured=3.8e6, claimed=3.8e6),
        row("quality", "x" * 80, name="y" * 90, verdict="unavailable", reason="z" * 200),
    ]
    store = folder / "store"
    rows = [*shown_rows(store), *others]
    history = [kept for worse in (0.0, 0.5, 3.0) if (kept := run_of([score("ssim", worse), *rows], {}))]
    runs = {
        "fell": ([card], rows, Run("python -m pytest", (store,), history=history), family),
        "hostile": hostile(FORGED, folder / "hostile"),
        "mixed": ([], ROWS, NO_RUN, family),
        "nothing": ([], [], NO_RUN, family),
    }
    found = {f"example {name}": path for name, path in EXAMPLES.items()}
    for name, (cards, rows, run, beside) in runs.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(results_html(cards, rows, run, beside=beside), encoding="utf-8")
    return found


class Visit:
    """A page in a browser, and what it said and asked for."""

    def __init__(self, browser: Any, file: Path, **context: Any) -> None:
        self.said: list[str] = []
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", self._asked)
        self.page.goto(file.as_uri())

    def _asked(self, request: Any) -> None:
        if not request.url.startswith("data:") and not request.is_navigation_request():
            self.said.append(request.url)

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        assert self.said == []
        self.context.close()


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_nothing_and_fits_its_width(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    with Visit(browser, pages[name], viewport={"width": width, "height": 800}) as page:
        over = """[...document.querySelectorAll("body *")].filter((each) => {
            const box = each.getBoundingClientRect();
            return box.width && box.right > innerWidth + 1 && !each.closest(".hidden, .skip, svg, pre");
        }).map((each) => each.outerHTML.slice(0, 120))"""
        assert page.evaluate(over) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        loaded = "[...document.images].every((image) => image.complete && image.naturalWidth > 0)"
        assert page.evaluate(loaded)


def test_without_scripts_everything_is_there(browser: Any, pages: dict[str, Path]) -> None:
    with Visit(browser, pages["fell"], java_script_enabled=False) as page:
        assert page.locator(".claims tbody").count() == page.locator(".claims tbody:visible").count() > 3
        assert page.locator(".stage img:visible").count() == page.locator(".stage img").count() > 20
        for control in (".filter", ".modes", "input[type=range]"):
            assert page.locator(f"{control}:visible").count() == 0


def test_the_first_screen_says_what_fell_and_shows_it(browser: Any, pages: dict[str, Path]) -> None:
    for width, height in ((360, 740), (1440, 900)):
        with Visit(browser, pages["fell"], viewport={"width": width, "height": height}) as page:
            for place in ("h1", ".fell li:first-child strong", "#lead img.candidate", "#lead img.baseline"):
                box = page.locator(place).bounding_box()
                assert box["y"] + box["height"] <= height, place
            assert page.locator("h1").inner_text().startswith("✕Do not release: 2 of ")


def test_the_list_is_filtered_by_card_metric_and_verdict(browser: Any, pages: dict[str, Path]) -> None:
    with Visit(browser, pages["fell"]) as page:
        lines, told = page.locator(".claims tbody:visible"), page.locator(".filter output")
        whole = lines.count()
        page.locator("select[name=verdict]").select_option("fail")
        assert lines.count() == 2
        assert told.inner_text() == f"2 of {whole}"
        page.locator("select[name=metric]").select_option("PSNR")
        assert lines.count() == 1
        page.locator("select[name=card]").select_option("scenes-sd")
        assert lines.count() == 0
        page.get_by_role("button", name="Show all").click()
        page.wait_for_function(f"document.querySelectorAll('.claims tbody:not([hidden])').length === {whole}")
        assert told.inner_text() == ""
        # A link to a line that is filtered away shows it.
        page.locator("select[name=verdict]").select_option("pass")
        page.locator(".fell a").first.click()
        page.wait_for_function("document.querySelector(':target').offsetHeight > 0")


def test_pictures_are_compared_by_slider_and_difference(browser: Any, pages: dict[str, Path]) -> None:
    with Visit(browser, pages["fell"]) as page:
        pair = page.locator("#pictures .pair").first
        first, second = pair.locator(".stage img").all()
        assert first.bounding_box()["x"] < second.bounding_box()["x"]
        page.get_by_label("Slider").check()
        assert first.bounding_box() == second.bounding_box()
        border = pair.get_by_role("slider")
        border.focus()
        before = second.evaluate("(image) => getComputedStyle(image).clipPath")
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        assert border.input_value() == "60"
        after = second.evaluate("(image) => getComputedStyle(image).clipPath")
        assert ("50%" in before, "60%" in after) == (True, True)
        page.get_by_label("Difference").check()
        assert second.evaluate("(image) => getComputedStyle(image).mixBlendMode") == "difference"
        assert not border.is_visible()
        page.get_by_label("Side by side").check()
        assert first.bounding_box()["x"] < second.bounding_box()["x"]


def test_everything_is_reached_with_the_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    with Visit(browser, pages["fell"]) as page:
        wanted = page.locator("a:visible, select, button, summary:visible").count()
        seen = set()
        for _ in range(3 * wanted):
            page.keyboard.press("Tab")
            place = page.evaluate(
                "[...document.querySelectorAll('a, select, button, summary, input, pre')]"
                ".indexOf(document.activeElement)"
            )
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert place < 0 or outline != "none"
            seen.add(place)
            if place < 0 and len(seen) > 1:
                break
        # One of a group of radio buttons stands for all.
        assert len(seen - {-1}) >= wanted + 1
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing_serious(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    axe = Path(os.environ.get("SDBENCH_AXE") or ROOT / "node_modules" / "axe-core" / "axe.min.js")
    if not axe.is_file():
        pytest.skip("no axe-core here: npm install --no-save axe-core@4.14.1, or SDBENCH_AXE=FILE")
    context = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "bypass_csp": True}
    with Visit(browser, pages[name], **context) as page:
        page.evaluate(axe.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run()")["violations"]
        assert [(each["id"], each["impact"], each["nodes"][0]["html"]) for each in found] == []
