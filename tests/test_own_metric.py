"""A metric and an extractor of one's own, a file each: from card to report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.project import make_card, make_project, make_protocol

EXTRACTOR = '''
"""Measure how bright a picture is."""

from pytest_sdbench import Extractor


def load(name, *, data_root, device, download):
    def measure(images, prompts):
        return {"brightness": images.mean(axis=(1, 2, 3)) / 255}

    return measure, "version 1"


PIXELS = Extractor("pixels", {"brightness": 1}, load, weights=lambda name: "version 1")
'''

METRIC = '''
"""The mean brightness of a checkpoint's pictures, 0 to 1."""

from pytest_sdbench import Estimate, Metric, Undefined, standard_error


def estimate(sample, reference, options):
    rows = sample.rows().astype("float64")
    influence = rows - rows.mean()
    error = standard_error(influence, sample.groups)
    return Estimate("brightness", rows.mean(), error, sample.n, rows.mean(), influence=influence)


BRIGHTNESS = Metric(
    name="brightness",
    label="Brightness",
    decimals=3,
    recorded_decimals=5,
    higher_is_better=True,
    estimate=estimate,
    output="brightness",
    aliases=("mean_brightness",),
    minimum=0.0,
    maximum=1.0,
    scale="the brightness is a share between 0 and 1",
)
'''

CONFTEST = """
from brightness import BRIGHTNESS
from pixels import PIXELS

from pytest_sdbench import register_extractor, register_metric

register_extractor(PIXELS)
register_metric(BRIGHTNESS)
"""


@pytest.fixture
def card(pytester: pytest.Pytester, pristine_checkpoint: Path) -> Path:
    """A card that claims the brightness twice: once what any picture has, once what none has."""
    pytester.makepyfile(pixels=EXTRACTOR, brightness=METRIC)
    pytester.makeconftest(CONFTEST)
    make_project(pytester.path, pristine_checkpoint)
    for name, margin in (("dark", 0.05), ("bright", 0.05)):
        make_protocol(
            pytester.path / "cards" / "protocols" / f"{name}.yaml",
            title=name,
            metrics={"brightness": {"extractor": "pixels"}},
            margins={"brightness": margin},
        )
    make_card(pytester.path / "cards" / "mini.md", claims={"Mean-Brightness": 0.1}, protocol="dark")
    return make_card(pytester.path / "cards" / "bright.md", claims={"brightness": 0.99}, protocol="bright")


def test_a_metric_and_an_extractor_from_a_conftest_go_from_card_to_report(
    pytester: pytest.Pytester, card: Path
):
    words = ["--sdbench", "cards/mini.md", str(card), "-m", "quality", "--sdbench-report=r.json"]
    result = pytester.runpytest_subprocess(*words, "--sdbench-report=r.md")
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
    result = pytester.runpytest_subprocess("--sdbench", "cards/mini.md", "-m", "quality")
    result.stdout.fnmatch_lines(["*unknown key*splits*"])
