"""One good card among broken ones of every kind: it is judged, they fail, and reports are written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project import PASSES, make_card, make_project, make_protocol

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FRONT = {
    "never-closed": "---\nsdbench:\n  protocols: [mini]\n",
    "complex": "---\nsdbench: {protocols: [mini]}\n? {a: 1}\n: 1\n---\n",
    "nested": "---\nsdbench: " + "[" * 3000 + "]" * 3000 + "\n---\n",
    "huge": f"---\nsdbench: {{size: {{unet: {{exact: {'9' * 400}}}}}}}\n---\n",
    "no-bool": "---\nsdbench: !!bool maybe\n---\n",
    "no-time": "---\nsdbench: {records: 9999-99-99 99:99:99}\n---\n",
    "aliases": f"---\n{BOMB}\nsdbench: *i\n---\n",
    "flow": '---\n{"model-index": [[[}\n---\n',
}
"""By file: front matter that cannot be read."""


def wide(path: Path) -> None:
    path.write_text("---\nsdbench: {protocols: [mini]}\n---\n", encoding="utf-16")


def lost(path: Path) -> None:
    path.symlink_to("../blobs/gone")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def bytes_of_no_text(path: Path) -> None:
    path.write_bytes(b"---\nsdbench: {title: \xff\xff}\n---\n")


def nul(path: Path) -> None:
    path.write_bytes(b"---\nsdbench: {title: \0}\n---\n")


def baseline(path: Path) -> None:
    make_card(path, claims={}, baseline="flow")


def long_name(path: Path) -> None:
    make_card(path, claims={}, baseline="x" * 5000)


def bomb_of_a_protocol(path: Path) -> None:
    (path.parent / "protocols" / "bomb.yaml").write_text(f"{BOMB}\nn: *i\n")
    make_card(path, claims={}, protocols=["bomb"])


def pipe_for_a_protocol(path: Path) -> None:
    os.mkfifo(path.parent / "protocols" / "pipe.yaml")
    make_card(path, claims={}, protocols=["pipe"])


FILES: list[Callable[[Path], None]] = [
    wide,
    lost,
    circle,
    bytes_of_no_text,
    nul,
    baseline,
    long_name,
    bomb_of_a_protocol,
    pipe_for_a_protocol,
]


def break_cards(cards: Path) -> set[str]:
    """Write a broken card of each kind beside others, and return their names."""
    (cards / "protocols").mkdir(parents=True, exist_ok=True)
    for name, text in FRONT.items():
        (cards / f"{name}.md").write_text(f"{text}# {name}\n", encoding="utf-8")
    for write in FILES:
        write(cards / f"{write.__name__}.md")
    (cards / "LOUD.MD").write_text(f"{FRONT['flow']}# Loud\n", encoding="utf-8")
    (cards / "readme").mkdir()
    circle(cards / "readme" / "README.md")
    # What is no card stays none.
    (cards / "folder.md").mkdir()
    (cards / "empty.md").write_bytes(b"")
    os.mkfifo(cards / "fifo.md")
    (cards / ".#good.md").symlink_to("me@host.42:1700000000")  # the lock of an editor
    return {*FRONT, *(write.__name__ for write in FILES), "LOUD", "readme"}


SELECTIONS = [
    [],
    ["-m", "not speed and not memory"],
    ["-m", "quality", "-k", "inception"],
    ["-k", "not fid and not good"],
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
@pytest.mark.parametrize("words", SELECTIONS, ids=" ".join)
def test_one_good_card_among_broken_ones_is_judged_and_told(pytester, pristine_checkpoint, store, words):
    card = make_project(pytester.path, pristine_checkpoint, claims=PASSES, protocols=[])
    broken = break_cards(card.parent)
    given = (
        "--sdbench",
        "cards",
        "--benchmark-disable",
        f"--sdbench-store={store}",
        "--sdbench-report=r.json",
    )
    result = pytester.runpytest(*given, "--sdbench-report=r.md", *words)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes()["failed"] == len(broken)
    rows = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
    assert {row["card"] for row in rows if row["verdict"] == "error"} == broken
    judged = {
        row["name"]: row["verdict"] for row in rows if row["card"] == "mini" and row["test"] == "quality"
    }
    assert judged == {"mini-inception_score": "pass"}
    table = (pytester.path / "r.md").read_text(encoding="utf-8")
    assert [name for name in broken if name not in table] == []
    assert "Traceback" not in result.stdout.str()
    result.stdout.fnmatch_lines(["*sdbench: claimed and measured*", "*cannot be read: *"])


OTHER_WAYS = [
    ["-m", "size", "-n", "2"],
    ["--lf", "-m", "size"],
    ["--sw", "-m", "size"],
    ["--sdbench-update", "-m", "size"],
    ["cards/../cards/flow.md::test_quality[mini-fid]", "-m", "size"],
]


@pytest.mark.parametrize(
    "words", [OTHER_WAYS[0], *(pytest.param(way, marks=pytest.mark.slow) for way in OTHER_WAYS[1:])]
)
def test_no_other_way_to_select_leaves_a_broken_card_out(pytester, words):
    cards = pytester.path / "cards"
    make_protocol(cards / "protocols" / "mini.yaml")
    about = {"architecture": "bk-sdm-tiny", "checkpoint": "nobody/nothing"}
    make_card(cards / "good.md", claims={}, **about)
    named = [] if "::test" in words[0] else ["cards"]
    if "--lf" in words:  # of a card that fails, of which a figure breaks only now, and another one
        fails = {"size": {"unet": {"exact": 5}}, **about}
        make_card(cards / "fails.md", claims={}, **fails)
        pytester.runpytest("--sdbench", "cards", "-m", "size").assert_outcomes(failed=1, skipped=7)
        make_card(cards / "fails.md", claims={"fid": 0.0}, **fails)
    (cards / "flow.md").write_text(FRONT["flow"])
    result = pytester.runpytest("--sdbench", *named, *words)
    assert result.ret not in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
        pytest.ExitCode.USAGE_ERROR,
    )
    assert result.parseoutcomes()["failed"] == 1 + 2 * ("--lf" in words)
    result.stdout.fnmatch_lines(["*cannot be read: flow*"])


def test_without_the_plugin_its_option_is_unknown(pytester):
    result = pytester.runpytest("--sdbench", "-p", "no:sdbench")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_card_that_vanishes_after_it_was_found_fails(pytester):
    about = {"architecture": "bk-sdm-tiny", "checkpoint": "nobody/nothing"}
    card = make_card(pytester.path / "cards" / "good.md", claims={}, **about)
    make_protocol(card.parent / "protocols" / "mini.yaml")
    pytester.makeconftest(
        "import pathlib\n"
        "def pytest_collectstart(collector):\n"
        "    if type(collector).__name__ == 'CardModule':\n"
        "        collector.path.unlink()\n"
    )
    result = pytester.runpytest("--sdbench", "cards", "-m", "size")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*cards/good.md: *No such file or directory*"])
