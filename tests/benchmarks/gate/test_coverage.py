"""The coverage benchmark as it is run: it counts, goes on where it was, and says what is not finished."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gate.coverage import Sums, main, report
from benchmarks.gate.coverage_cells import all_cells
from pytest_sdbench.metrics.estimates import Estimate
from tests.metrics.populations import off

CELL = "clip-gaussian-1-a-prompt-2000"


def test_a_cell_goes_on_where_it_was_and_is_finished_with_its_replicates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, twice = tmp_path / "once.json", tmp_path / "twice.json"
    main(["--only", CELL, "--replicates", "30", "--results", str(twice)])
    assert "unfinished: 30 of 500" in capsys.readouterr().err
    main(["--only", CELL, "--results", str(twice)])
    main(["--only", CELL, "--results", str(once)])
    printed = capsys.readouterr()
    assert "unfinished" not in printed.out + printed.err
    found = [json.loads(path.read_text(encoding="utf-8"))["cells"][CELL] for path in (once, twice)]
    assert found[0]["replicates"] == found[1]["replicates"] == 500
    assert found[0]["held"] == found[1]["held"]
    assert 0.9 < found[0]["held"] / 500 < 1.0
    assert found[0]["below"] == found[1]["below"]
    assert 0.02 < found[0]["below"] / 500 < 0.09
    assert once.with_suffix(".md").read_text(encoding="utf-8") in printed.out


def test_again_forgets_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    for asked in (["--replicates", "30"], ["--replicates", "20", "--again"]):
        main(["--only", CELL, "--results", str(path), *asked])
    assert json.loads(path.read_text(encoding="utf-8"))["cells"][CELL]["replicates"] == 20


def test_an_unknown_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no cell begins with nonsense"):
        main(["--only", "nonsense", "--results", str(tmp_path / "found.json")])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fid-16-close-rectified-8x", "fid-16-low-rank-gaussian-8x", "fid-64-close-clusters-4x"]
)
def test_estimates_scatter_about_the_truth_of_their_cell(name: str) -> None:
    (cell,) = (cell for cell in all_cells() if cell.name == name)
    found = [cell.measure(np.random.default_rng(seed)) for seed in range(40)]
    corrected = [each.corrected for each in found if isinstance(each, Estimate)]
    assert len(corrected) == 40
    assert abs(off(np.array(corrected, float), cell.truth())) < 4


@pytest.mark.parametrize(("below", "shown"), [(None, ""), (0, "25.0 %")])
def test_values_far_below_the_truth_are_shown_where_they_were_counted(below: int | None, shown: str) -> None:
    sums = Sums(0.3, below=below)
    for value in (0.1, 0.15, 0.3, 0.5):
        sums.add(Estimate("clip_score", value, 0.1, 200, value))
    row = next(line for line in report({CELL: sums}).splitlines() if line.startswith(f"| {CELL}"))
    assert row.split("|")[8].strip() == shown
