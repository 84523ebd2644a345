"""Recorded tables are those of the recorded figures: Markdown is written from JSON alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evaluation import many_rows
from benchmarks.evaluation import report as evaluation
from benchmarks.family import comparison, dreambooth, experiments
from benchmarks.family.experiment_list import EXPERIMENTS
from benchmarks.gate import coverage, mutation, tables
from benchmarks.report import RESULTS, load, paragraphs, save, table
from benchmarks.scale import report as scale
from benchmarks.training import compare


def coverage_report(name: str, found: Any) -> str:
    return coverage.report(name, {key: coverage.Sums(**cell) for key, cell in found["cells"].items()})


REPORTS: dict[str, Callable[[Any], str]] = {
    "gate": tables.report,
    **{name: partial(coverage_report, name) for name in coverage.TABLES},
    "evaluation-cpu": evaluation.report,
    "evaluation-cpu-scenes-sd": evaluation.report,
    "evaluation-cpu-scenes-tiny-lcm": evaluation.report,
    "scoring-rows": many_rows.report,
    "scale": scale.report,
    "training-cpu": compare.report,
    "family": comparison.report,
    "dreambooth": dreambooth.report,
    **{name: partial(experiments.report, name) for name in EXPERIMENTS},
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_recorded_table_is_that_of_its_figures(name: str) -> None:
    text = (RESULTS / name).with_suffix(".md").read_text(encoding="utf-8")
    assert REPORTS[name](load(RESULTS / name)) == text


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    assert load(tmp_path / "found") == {}
    save(tmp_path / "new" / "found", {"a": [1.5]}, paragraphs("# Title", "", "text"))
    assert load(tmp_path / "new" / "found.json") == {"a": [1.5]}
    assert (tmp_path / "new" / "found.md").read_text(encoding="utf-8") == "# Title\n\ntext\n"


def test_cells_are_formats_or_functions_and_empty_where_a_row_lacks_their_field() -> None:
    columns = [("a", "{a:.1f} s"), ("b", lambda row: row["b"] * 2), ("c", "{c[x]} x")]
    rows: list[dict[str, Any]] = [{"a": 1, "b": "u", "c": {"x": 3}}, {"a": None, "b": "v"}]
    lines = table(rows, columns).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in (lines[0], *lines[2:])] == [
        ["a", "b", "c"],
        ["1.0 s", "uu", "3 x"],
        ["", "vv", ""],
    ]


@pytest.mark.slow
def test_mutants_said_to_be_equivalent_exist() -> None:
    found = {
        (mutant.function, mutant.after) for module in mutation.TESTS for mutant in mutation.mutants(module)
    }
    assert found >= mutation.EQUIVALENT.keys()
