"""`figure` collects what it shows: pictures of the store, what cards publish and record, runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.commands.figure_sheet import Choice, collect, columns_of
from pytest_sdbench.commands.main import main
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.scenes import render, scene
from pytest_sdbench.report.history import write_run
from pytest_sdbench.report.results import Row, results_json
from pytest_sdbench.store.pictures import parse_pictures
from tests.fonts import installed
from tests.project import make_card, make_project, make_protocol
from tests.report.test_history import SCORE, run_at

PAIRED = {"psnr": {"extractor": "psnr"}, "clip_score": {"model": "local:scenes-clip"}}


@pytest.fixture(scope="module")
def project(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card, another one with other weights, and a store for both."""
    root = tmp_path_factory.mktemp("project")
    make_project(root, pristine_checkpoint)
    make_protocol(root / "cards" / "protocols" / "pairs.yaml", metrics=PAIRED, margins={"psnr": 1.0})
    make_protocol(root / "cards" / "protocols" / "seeded.yaml", seeds={"kind": "per-image", "seed": 5})
    other = root / "cards" / "other-sd"
    shutil.copytree(root / "cards" / "mini-sd", other)
    (weights,) = (other / "unet").glob("*.safetensors")
    save_file({name: 1.2 * value for name, value in load_file(weights).items()}, weights)
    make_card(root / "cards" / "other.md", checkpoint="./other-sd", title="Other")
    return root


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def said(path: Path) -> list[str]:
    """Return the texts of an SVG."""
    root = ElementTree.parse(path).getroot()
    return ["".join(each.itertext()) for each in root.iterfind(".//{http://www.w3.org/2000/svg}text")]


def kept(store: Path) -> dict[str, np.ndarray]:
    """Return the first pictures that a store keeps, by checkpoint and draw."""
    files = sorted(store.glob("*/pictures-00000000-*.tar"))
    return {file.parent.name: parse_pictures(file.read_bytes())[0].images for file in files}


def test_a_sheet_is_of_the_kept_pictures_beside_the_real_scene(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["figure", "sheet", "mini", "other", "--prompts", "4,0", "--store", "store", "--device", "cpu"]
    assert main([*words, "--out", "sheet.png", "--out", "sheet.svg"]) == 0
    assert "mini: 2 pictures of mini, 5 drawn now" in capsys.readouterr().out
    assert main([*words, "-o", "again.png"]) == 0
    told = capsys.readouterr().out
    assert "mini: 2 pictures of mini, 0 drawn now" in told
    assert "other: 2 pictures of mini, 0 drawn now" in told
    assert Path("again.png").read_bytes() == Path("sheet.png").read_bytes()
    columns = columns_of(["mini", "other"])
    sheet, _ = collect(columns, Choice([4, 0]), Workspace(here / "store", device="cpu", progress=False))
    assert list(sheet.columns) == ["real scene", "mini", "other"]
    first = load_protocol("cards/protocols/mini.yaml").prompts.first
    for row, index in zip(sheet.rows, (4, 0), strict=True):
        real, *drawn = row.pictures
        np.testing.assert_array_equal(real, np.asarray(render(scene(first + index), 64)))
        for picture, column in zip(drawn, columns, strict=True):
            key = f"{column.checkpoint.fingerprint}-{column.protocol.draw_fingerprint}"
            np.testing.assert_array_equal(picture, kept(here / "store")[key][index])
    shown = said(Path("sheet.svg"))
    assert shown[:3] == ["real scene", "mini", "other"]
    assert [text for text in shown if text.startswith("prompt")] == ["prompt 4", "prompt 0"]


def test_without_the_font_a_sheet_says_that_the_real_scenes_are_missing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["figure", "sheet", "mini", "--count", "1", "--store", "store", "--device", "cpu"]
    with installed(None):
        assert main([*words, "--out", "bare.svg"]) == 0
    told = capsys.readouterr().out
    assert "no real scenes beside the pictures: scenes cannot be drawn here: matplotlib is not" in told
    assert "pip install 'pytest-sdbench[scenes]'" in told
    assert said(Path("bare.svg"))[0] == "mini"


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        (
            ["mini", "other", "--steps", "1,2"],
            ["1 step", "2 steps", "1 step", "2 steps", "mini", "other"],
        ),
        (["mini", "--protocol", "mini", "--protocol", "pairs"], ["mini", "pairs", "mini"]),
        (["mini", "other", "--label", "a", "--label", "b"], ["a", "b"]),
        (["mini", "cards/other-sd"], ["mini", "cards/other-sd"]),
        (["mini", "cards/other-sd/unet"], ["mini", "cards/other-sd/unet"]),
    ],
    ids=" ".join,
)
def test_columns_are_systems_protocols_and_steps(words: list[str], columns: list[str], here: Path) -> None:
    more = ["--count", "1", "--store", "store", "--device", "cpu", "--width", "12", "--out", "columns.svg"]
    assert main(["figure", "sheet", *words, *more]) == 0
    shown = " ".join(said(Path("columns.svg")))
    assert shown.startswith(" ".join(["real scene", *columns]))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["psnr", "clip_score"])
def test_the_worst_are_those_that_lost_most_against_the_first(metric: str, here: Path) -> None:
    workspace = Workspace(here / "store", device="cpu", progress=False)
    columns = columns_of(["mini", "other"], ["pairs"], metric=metric)
    sheet, _ = collect(columns, Choice(worst=metric, count=3, images=40), workspace)
    if metric == "psnr":
        pictures = kept(here / "store")
        mine, theirs = (
            pictures[f"{each.checkpoint.fingerprint}-{each.protocol.draw_fingerprint}"][:40].astype(float)
            for each in columns
        )
        errors = ((mine - theirs) ** 2).mean(axis=(1, 2, 3))
        wanted = [int(index) for index in np.argsort(-errors)[:3]]
        values = [10 * np.log10(255**2 / errors[index]) for index in wanted]
        notes = [f"prompt {index}, PSNR {value:.2f}" for index, value in zip(wanted, values, strict=True)]
        assert [row.note for row in sheet.rows] == notes
    assert len(sheet.rows) == 3
    assert all("prompt" in row.note for row in sheet.rows)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sheet", "mini", "--out", "a.jpg"], "ends neither in .png nor in .svg"),
        (["sheet", "mini", "--steps", "4,0", "--out", "a.png"], "give numbers from 1 on"),
        (["sheet", "mini", "--width", "90", "--out", "a.png"], "Give 2 to 20 inches"),
        (["sheet", "mini", "--out", "none/a.png"], "there is no folder none"),
        (["sheet", "mini", "--count", "41", "--out", "a.png"], "A sheet has at most 40 rows"),
        (["sheet", "mini", "--steps", "1,2,3,4,5,6,7,8,9,10,11,12", "--out", "a.png"], "at most 12"),
        (["sheet", "mini", "--prompts", "194", "--out", "a.png"], "mini has 194 prompts, counted from 0"),
        (["sheet", "mini", "--prompts", "1", "--worst", "psnr", "--out", "a.png"], "Give one of the two"),
        (["sheet", "mini", "--worst", "psnr", "--out", "a.png"], "it has clip_score"),
        (["sheet", "mini", "--worst", "clip_score", "--out", "a.png"], "Name two systems or more"),
        (["sheet", "mini", "other", "--label", "x", "--out", "a.png"], "Give a label for each"),
        (["sheet", "mini", "other", *["--protocol", "mini"] * 3, "--out", "a.png"], "one for each of them"),
        (["sheet", "cards/mini-sd", "--out", "a.png"], "Name one: --protocol NAME"),
        (["sheet", "mini", "--protocol", "mini", "--protocol", "seeded", "--out", "a.png"], "same seeds"),
        (["frontier", "--cost", "speed", "--metric", "kid", "--out", "a.png"], "no two cards have quality"),
        (["frontier", "--results", "cards/mini.md", "--out", "a.png"], "not the results of a run"),
        (["history", "empty", "--out", "a.png"], "there are no runs here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_be_shown_is_an_error_that_says_why(
    words: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["figure", *words])
    except SystemExit as stopped:  # of argparse
        status = stopped.code
    assert status == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not Path("a.png").exists()


def test_without_matplotlib_the_error_names_the_extra(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pytest_sdbench.report.figures.canvas.find_spec", lambda _: None)
    assert main(["figure", "frontier", "--out", "a.png"]) == 2
    assert 'pip install "pytest-sdbench[figures]"' in capsys.readouterr().err


def test_the_packaged_cards_stand_at_what_they_publish_and_record(tmp_path: Path) -> None:
    out = tmp_path / "frontier.svg"
    words = [
        "figure",
        "frontier",
        "--protocol",
        "coco30k-bksdm",
        "--protocol",
        "scenes-5k",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    told = ElementTree.parse(out).getroot().findtext("{http://www.w3.org/2000/svg}desc", "")
    lines = told.splitlines()
    at = lines.index("FID ↓ under coco30k-bksdm against million parameters of the U-Net:")
    assert "bk-sdm-base: 15.76 at 579.4, published" in lines[at:]
    assert "FID ↓ under coco30k-bksdm against billion MACs of a U-Net call:" in lines
    assert any(line.startswith("scenes-tiny: ") and line.endswith("measured") for line in lines)
    assert {"bk-sdm-base", "scenes-tiny"} <= set(said(out))


def test_a_run_stands_at_what_it_measured(here: Path) -> None:
    def row(card: str, test: str, value: float, **more: object) -> Row:
        return Row("", card, test, measured=value, verdict="pass", **more)  # type: ignore[arg-type]

    rows = [
        *(row("mini", "size", 1e6, name="unet"), row("other", "size", 2e6, name="unet")),
        *(
            row("mini", "speed", 0.5, extra={"candidate_median": 0.02}),
            row("other", "speed", 0.7, extra={"candidate_median": 0.03}),
        ),
        *(
            row(card, "quality", value, metric="fid", protocol="mini", standard_error=0.5)
            for card, value in (("mini", 9.0), ("other", 8.0))
        ),
    ]
    Path("results.json").write_text(results_json(rows, {}), encoding="utf-8")
    assert main(["figure", "frontier", "cards", "--results", "results.json", "--out", "run.svg"]) == 0
    told = (
        ElementTree.parse("run.svg").getroot().findtext("{http://www.w3.org/2000/svg}desc", "").splitlines()
    )
    assert "FID ↓ under mini against milliseconds of a U-Net call:" in told
    assert "other: 8.00 ± 0.50 at 30, measured" in told
    assert "mini: 9.00 ± 0.50 at 1, measured" in told
    assert "On the frontier: mini, other." in told


def test_a_history_shows_its_drop(tmp_path: Path) -> None:
    place, out = tmp_path / "history", tmp_path / "history.svg"
    for day in range(1, 31):
        fid = replace(SCORE, checkpoint=f"{day:016x}", value=17.0 + (day % 5) / 100 + (day >= 20))
        write_run(place, run_at(day, fid))
    assert main(["figure", "history", str(place), "--metric", "fid", "--out", str(out)]) == 0
    shown = said(out)
    assert [text for text in shown if text.startswith("worse +")]
    assert {"mini", "FID ↓, coco5k", "2026-10-01", "2026-10-30"} <= set(shown)
    assert main(["figure", "history", str(place), "--card", "other", "--out", str(out)]) == 2


def test_scores_of_other_images_stand_in_no_panel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value, n in (("a", 17.1, 30_000), ("b", 18.2, 30_000), ("c", 23.4, 5_000)):
        dataset = f"{{type: coco, name: COCO, config: coco30k-bksdm, args: {{num_samples: {n}}}}}"
        result = (
            f"{{task: {{type: text-to-image}}, dataset: {dataset}, metrics: [{{type: fid, value: {value}}}]}}"
        )
        block = "sdbench: {checkpoint: ./, size: {unet: {exact: 579384964, published: 0.58e+9}}}"
        text = f"---\n{block}\nmodel-index: [{{name: {name}, results: [{result}]}}]\n---\n# {name}\n"
        (tmp_path / f"{name}.md").write_text(text)
    cards, out = [str(tmp_path / f"{name}.md") for name in "abc"], tmp_path / "f.svg"
    assert main(["figure", "frontier", *cards, "--metric", "FID", "--cost", "size", "--out", str(out)]) == 0
    assert "c: 23.4 is left out: the claim is of 5,000 images" in capsys.readouterr().err
    told = ElementTree.parse(out).getroot().findtext("{http://www.w3.org/2000/svg}desc", "")
    assert [name for name in "abc" if f"\n{name}: " in told] == ["a", "b"]
    assert main(["figure", "frontier", *cards, "--metric", "fidd", "--out", str(out)]) == 2
    assert "unknown metric" in capsys.readouterr().err
