"""What others rely on stays: node ids, options, fingerprints, stores, and the JSON of a run."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.paths import reference
from pytest_sdbench.commands.main import COMMANDS, parser
from pytest_sdbench.protocols.load import load_protocol, protocol_names

PINNED = Path(__file__).parent / "pinned"
FREE = {"reason", "date", "seconds", "device", "versions", "torch_device", "notes"}
"""Keys whose values are of the machine, or wording."""


def pinned(name: str) -> Any:
    return json.loads((PINNED / name).read_text(encoding="utf-8"))


def test_the_packaged_cards_replace_testpaths_and_have_the_same_node_ids(pytester: pytest.Pytester):
    pytester.makepyfile("def test_of_the_project(): pass")
    lines = pytester.runpytest("--sdbench", "--collect-only", "-q").outlines
    found = [line.split("cards/")[-1] for line in lines if "::test_" in line]
    assert found == [
        line.split("cards/")[-1]
        for line in (PINNED / "node-ids.txt").read_text(encoding="utf-8").split("\n")
        if line
    ]


def test_protocols_and_draws_have_the_same_fingerprints():
    found = {}
    for name in protocol_names():
        protocol = load_protocol(name)
        found[name] = {"protocol": protocol.fingerprint, "draw": protocol.draw_fingerprint}
    assert found == pinned("fingerprints.json")


def options_of_pytest(config: pytest.Config) -> dict[str, Any]:
    """Return the default of each option on the command line, and of its ini twin."""
    names = sorted(name for name in vars(config.option) if name.startswith("sdbench"))
    given = {name: getattr(config.option, name) for name in names}
    return {"command line": given, "ini": {name: config.getini(name) for name in [*names, "sdbench_cards"]}}


def test_options_of_pytest_have_the_same_names_and_defaults(pytester: pytest.Pytester):
    assert options_of_pytest(pytester.parseconfig()) == pinned("options.json")["pytest"]


def options_of_commands(whole: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Return the default of each option and argument of each command."""

    def subcommands(of: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        nested = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
        for action in nested:
            for word, command in action.choices.items():
                yield from subcommands(command, f"{name} {word}".strip())
        if not nested:
            yield name, of

    return {
        name: {
            " ".join(action.option_strings) or action.dest: action.default
            for action in command._actions
            if not isinstance(action, argparse._HelpAction)
        }
        for name, command in subcommands(whole, "")
    }


def test_commands_have_the_same_options_and_defaults():
    assert options_of_commands(parser(*COMMANDS)) == pinned("options.json")["commands"]


def test_an_old_store_is_read_on_and_its_json_is_the_same(pytester: pytest.Pytester):
    shutil.copytree(PINNED / "store", pytester.path / "store")
    result = run_on_the_store(pytester)
    assert result.ret == 0
    report = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))
    # What a later version says besides: images of a score that each image has a part in, and their draw.
    for key, most in (("worst", 10), ("first", 12)):
        images = {row["metric"]: row["extra"].pop(key) for row in report["results"] if key in row["extra"]}
        assert {metric: len(each) for metric, each in images.items()} == {"clip_score": most}
    assert [row for row in report["results"] if row["extra"].pop("score_fingerprint", None)]
    draws = {row["extra"].pop("draw_fingerprint", None) for row in report["results"]}
    assert draws == {None, load_protocol("scenes-quick").draw_fingerprint}
    assert report["environment"].pop("status") == 0
    assert report["environment"].pop("unasked") > 0, "the scores of 5,000 images are no part of this run"
    assert_same(report, pinned("report.json"))
    made = [row["extra"]["images_made"] for row in report["results"] if row["test"] == "quality"]
    assert set(made) == {0}, "the old store's images were made again"


def run_on_the_store(pytester: pytest.Pytester) -> pytest.RunResult:
    """Score the 64 images of the store: no score but the counts is comparable with a claim."""
    card = reference() / "cards" / "scenes-tiny.md"
    words = ["--sdbench", str(card), "-m", "size or compute or quality", "-k", "quick or not quality"]
    return pytester.runpytest(
        *words, "--sdbench-store=store", "--sdbench-samples=64", "--sdbench-report=r.json"
    )


def assert_same(found: Any, expected: Any, where: str = "report") -> None:
    """Compare JSON values: floats to ten digits, keys exactly, and not what is of the machine."""
    if isinstance(expected, dict):
        assert sorted(found) == sorted(expected), where
        for key in expected:
            if key not in FREE and where != "report.environment":
                assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-10), where
    else:
        assert found == expected, where
