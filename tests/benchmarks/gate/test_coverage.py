"""The coverage benchmark as it is run: it counts, goes on where it was, and says what is not finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gate.coverage import Sums, all_cells, main, report
from benchmarks.gate.coverage_cells import Interval
from benchmarks.gate.coverage_pairs import pair_cells
from pytest_sdbench.metrics.estimates import Estimate
from tests.metrics.populations import off

CELL = "clip-gaussian-1-a-prompt-2000"


def found(folder: Path) -> Any:
    return json.loads((folder / "coverage.json").read_text(encoding="utf-8"))["cells"][CELL]


def test_a_cell_goes_on_where_it_was_and_is_finished_with_its_replicates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    main(["--only", CELL, "--replicates", "30", "--results", str(twice)])
    assert "unfinished: 30 of 500" in capsys.readouterr().err
    main(["--only", CELL, "--results", str(twice)])
    main(["--only", CELL, "--results", str(once)])
    printed = capsys.readouterr()
    assert "unfinished" not in printed.out + printed.err
    cells = [found(folder) for folder in (once, twice)]
    assert cells[0]["replicates"] == cells[1]["replicates"] == 500
    assert cells[0]["held"] == cells[1]["held"]
    assert 0.9 < cells[0]["held"] / 500 < 1.0
    assert cells[0]["wrong"] == cells[1]["wrong"]
    assert 0.02 < cells[0]["wrong"] / 500 < 0.09
    assert (once / "coverage.md").read_text(encoding="utf-8") in printed.out


def test_again_forgets_what_was_found(tmp_path: Path) -> None:
    for asked in (["--replicates", "30"], ["--replicates", "20", "--again"]):
        main(["--only", CELL, "--results", str(tmp_path), *asked])
    assert found(tmp_path)["replicates"] == 20


def test_an_unknown_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no cell begins with nonsense"):
        main(["--only", "nonsense", "--results", str(tmp_path)])


def test_every_cell_is_of_one_table() -> None:
    names = [cell.name for cells in all_cells().values() for cell in cells]
    assert len(names) == len(set(names))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("fid-16-close-rectified-8x", "fid-16-low-rank-gaussian-8x", "fid-64-close-clusters-4x"),
        *("psnr-equal-4-a-prompt-512", "ssim-skewed-1-a-prompt-512", "lpips-heavy-2-a-prompt-512"),
        "cosine-heavier-difference-4-a-prompt-512",
    ],
)
def test_estimates_scatter_about_the_truth_of_their_cell(name: str) -> None:
    (cell,) = (cell for cells in all_cells().values() for cell in cells if cell.name == name)
    drawn = [cell.measure(np.random.default_rng(seed)) for seed in range(40)]
    corrected = [each.corrected for each in drawn if isinstance(each, Estimate)]
    assert len(corrected) == 40
    assert abs(off(np.array(corrected, float), cell.truth())) < 4


def row_of(table: str, cell: str, sums: Sums) -> list[str]:
    lines = report(table, {cell: sums}).splitlines()
    return [each.strip() for each in next(line for line in lines if line.startswith(f"| {cell}")).split("|")]


@pytest.mark.parametrize(
    ("wrong", "higher_is_better", "shown"), [(None, False, ""), (0, False, "50.0 %"), (0, True, "25.0 %")]
)
def test_values_far_better_than_the_truth_are_shown_where_they_were_counted(
    wrong: int | None, higher_is_better: bool, shown: str
) -> None:
    sums = Sums(0.3, wrong=wrong)
    for value in (0.1, 0.12, 0.3, 0.5):
        sums.add(Estimate("clip_score", value, 0.1, 200, value), higher_is_better=higher_is_better)
    assert row_of("coverage", CELL, sums)[8] == shown


@pytest.mark.parametrize(("held", "verdict"), [(500, "exact, conservative"), (480, "exact"), (440, "misses")])
def test_exact_intervals_are_called_exact_and_hold_the_truth_or_miss(held: int, verdict: str) -> None:
    sums = Sums(0.01, wrong=0)
    for number in range(500):
        low = 0.0 if number < held else 0.02
        sums.add(Interval(0.01 + 0.001 * (number % 3), low, 0.03, 0.025 if number else 0.005))
    row = row_of("coverage-pairs", "lost-0.01-once-512", sums)
    assert row[-3:-1] == ["0.2 %", verdict]


def test_so_few_prompts_that_nothing_is_called_of_them_are_unsupported() -> None:
    (cell,) = (each for each in pair_cells() if each.name == "psnr-equal-4-a-prompt-64")
    sums = Sums(cell.truth())
    sums.add(cell.measure(np.random.default_rng(0)), higher_is_better=cell.higher_is_better)
    assert (sums.replicates, sums.supported) == (1, 0)
