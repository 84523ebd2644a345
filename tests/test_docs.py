"""The documentation tells the truth about files, options and commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_sdbench import plugin
from pytest_sdbench.commands.main import COMMANDS
from training import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONS = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def prose(path: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return the fragments that the headings of a page can be linked by."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@page
def test_a_relative_link_leads_to_something_that_exists(page: Path):
    links = re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", prose(page))
    for link in links:
        file, _, fragment = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: leads out of the repository"
        if fragment:
            assert fragment in anchors(target), f"{link}: no such heading"


@page
def test_a_file_that_is_included_exists(page: Path):
    for name in re.findall(r'--8<-- "(.+)"', page.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), f"{name}: no such file"


def test_every_page_stands_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    named = set(re.findall(r": (\S+\.md)$", navigation, re.MULTILINE))
    assert {path.name for path in PAGES[2:]} <= named


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


class Parser:
    """Takes down what a plugin declares."""

    def __init__(self) -> None:
        self.options: set[str] = set()
        self.ini: set[str] = set()

    def getgroup(self, *_: object) -> Parser:
        return self

    def addoption(self, flag: str, **_: object) -> None:
        self.options.add(flag)

    def addini(self, name: str, *_: object, **__: object) -> None:
        self.ini.add(name)


@pytest.fixture(scope="module")
def declared() -> Parser:
    parser = Parser()
    plugin.pytest_addoption(parser)
    return parser


def test_every_option_and_its_ini_twin_stand_in_the_page_of_options(declared: Parser):
    assert declared.options == set(re.findall(r"^\| `(--sdbench[\w-]*)", OPTIONS, re.MULTILINE))
    assert declared.ini <= set(re.findall(r"`(sdbench\w*)`", OPTIONS))


@page
def test_no_option_is_named_that_does_not_exist(page: Path, declared: Parser):
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"--sdbench(?:-[a-z]+)*", text)) <= declared.options
    assert set(re.findall(r"^(sdbench_\w+) = ", text, re.MULTILINE)) <= declared.ini


def test_every_command_stands_in_the_page_of_options_and_no_other_is_named():
    pages = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert set(re.findall(r"-m pytest_sdbench ([a-z]+)", pages)) == set(COMMANDS)
    assert set(re.findall(r"^\| `python -m pytest_sdbench (\w+)` \|", OPTIONS, re.MULTILINE)) == set(COMMANDS)


def test_every_option_of_training_stands_in_its_page(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    known = re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE)
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(--[a-z-]+)` \|", text, re.MULTILINE) == known


@page
def test_every_recipe_that_is_named_exists(page: Path):
    for name in re.findall(r"-m training ([a-z][\w-]+)", page.read_text(encoding="utf-8")):
        assert (ROOT / "training" / "recipes" / f"{name}.yaml").is_file(), f"{name}: no such recipe"
