"""A metric and an extractor of one's own, as the manual shows them: from card to report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pytest_sdbench.features.extractors import EXTRACTORS
from pytest_sdbench.metrics.registry import METRICS
from tests.project import make_card, make_project, make_protocol

DOCS = Path(__file__).parents[1] / "docs" / "extending.md"


def documented(file: str) -> str:
    """Return the code that the manual shows under the name of a file."""
    text = DOCS.read_text(encoding="utf-8")
    found = re.findall(rf'```python title="{file}"\n(.*?)```', text, flags=re.DOTALL)
    assert len(found) == 1, file
    return str(found[0])


@pytest.fixture
def card(pytester: pytest.Pytester, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cards that claim the brightness: one what any picture has, the one returned what none has."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    for registry in (METRICS, EXTRACTORS):  # what the conftest registers goes with the test
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    for file in ("brightness.py", "pixels.py", "conftest.py"):
        (pytester.path / file).write_text(documented(file), encoding="utf-8")
    make_project(pytester.path, pristine_checkpoint)
    for name, margin in (("dark", 0.05), ("bright", 0.05)):
        make_protocol(
            pytester.path / "cards" / "protocols" / f"{name}.yaml",
            title=name,
            n=40,
            metrics={"brightness": {"extractor": "pixels"}},
            margins={"brightness": margin},
        )
    make_card(pytester.path / "cards" / "mini.md", claims={"Mean-Brightness": 0.1}, protocol="dark")
    return make_card(pytester.path / "cards" / "bright.md", claims={"brightness": 0.99}, protocol="bright")


def test_a_metric_and_an_extractor_from_a_conftest_go_from_card_to_report(
    pytester: pytest.Pytester, card: Path
):
    words = ["--sdbench", "cards/mini.md", str(card), "-m", "quality", "--sdbench-report=r.json"]
    result = pytester.runpytest(*words, "--sdbench-report=r.md")
    result.assert_outcomes(passed=1, failed=1)
    rows = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
    found = {row["card"]: row for row in rows}
    assert found["mini"]["node_id"].endswith("test_quality[dark-brightness]")
    assert [found[name]["verdict"] for name in ("mini", "bright")] == ["pass", "fail"]
    assert found["mini"]["measured"] == pytest.approx(found["bright"]["measured"], abs=1e-12)
    assert 0 < found["mini"]["standard_error"] < 0.05
    assert "Brightness" in (pytester.path / "r.md").read_text(encoding="utf-8")


def test_what_a_protocol_says_of_it_is_checked_by_its_definition(pytester: pytest.Pytester, card: Path):
    file = pytester.path / "cards" / "protocols" / "dark.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("pixels", "pixels, splits: 3"), encoding="utf-8")
    result = pytester.runpytest("--sdbench", "cards/mini.md", "-m", "quality")
    result.stdout.fnmatch_lines(["*unknown key*splits*"])
