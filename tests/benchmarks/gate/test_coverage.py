"""The coverage benchmark as it is run: it counts, goes on where it was, and says what is not finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gate.coverage import main

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
    assert once.with_suffix(".md").read_text(encoding="utf-8") in printed.out


def test_again_forgets_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    for asked in (["--replicates", "30"], ["--replicates", "20", "--again"]):
        main(["--only", CELL, "--results", str(path), *asked])
    assert json.loads(path.read_text(encoding="utf-8"))["cells"][CELL]["replicates"] == 20


def test_an_unknown_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no cell begins with nonsense"):
        main(["--only", "nonsense", "--results", str(tmp_path / "found.json")])
