"""``images`` writes the pictures of a card out, to the bit, so that others and `score` can read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands.images import MARK, TABLE, export
from pytest_sdbench.commands.main import main
from pytest_sdbench.commands.score_images import score
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.store.shard_folder import DamagedEvidence
from tests.project import make_card, make_project, make_protocol

N = 70
Run = Callable[..., str]


@pytest.fixture(scope="module")
def card(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"), pristine_checkpoint)


@pytest.fixture(scope="module")
def exported(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of a card, and the store that they were drawn into beside them."""
    root = tmp_path_factory.mktemp("exported")
    words = [str(card), str(root / "out"), "--images", str(N), "--store", str(root / "store")]
    assert main(["images", *words, "--device", "cpu"]) == 0
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / TABLE).read_text(encoding="utf-8").splitlines()]


def test_each_image_has_a_file_and_a_line(exported: Path) -> None:
    out = exported / "out"
    rows = lines(out)
    assert [row["index"] for row in rows] == list(range(N))
    assert {row["file_name"] for row in rows} == {path.name for path in out.glob("*.png")}
    assert len({row["seed"] for row in rows}) == N
    assert all(row["text"] for row in rows)


def test_they_are_the_kept_pixels(exported: Path) -> None:
    from pytest_sdbench.store.pictures import parse_pictures

    first, _ = sorted((exported / "store").glob("*/pictures-*.tar"))
    kept, _ = parse_pictures(first.read_bytes())
    found = [np.asarray(Image.open(exported / "out" / f"{index:08d}.png")) for index in range(64)]
    np.testing.assert_array_equal(np.stack(found), kept.images)


def test_what_is_kept_is_not_drawn_again(
    card: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(card), str(tmp_path / "again"), "--images", str(N), "--store", str(exported / "store")]
    assert main(["images", *words]) == 0
    assert f"{N} images of mini, 0 of them drawn now" in capsys.readouterr().out
    assert content(tmp_path / "again") == content(exported / "out")


def test_damaged_pictures_are_drawn_again(card: Path, exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "store", tmp_path / "store")
    *_, last = sorted((tmp_path / "store").glob("*/pictures-*.tar"))
    sound = last.read_bytes()
    last.write_bytes(sound[:-2000] + b"x" + sound[-1999:])
    workspace = Workspace(tmp_path / "store", progress=False)
    with pytest.warns(DamagedEvidence, match="wrong checksum"):
        made = export(read_card(card), tmp_path / "out", workspace, images=N)
    assert made.drawn == N - 64
    assert last.read_bytes() == sound
    assert content(tmp_path / "out") == content(exported / "out")


def test_its_own_folder_is_completed(
    card: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run leaves it that was killed while it wrote."""
    out = tmp_path / "out"
    shutil.copytree(exported / "out", out)
    (out / TABLE).unlink()
    (out / "00000003.png").unlink()
    words = ["images", str(card), str(out), "--store", str(exported / "store"), "--images"]
    assert main([*words, str(N)]) == 0
    assert content(out) == content(exported / "out")
    assert main([*words, "10"]) == 2
    assert f"or ask for {N} images" in capsys.readouterr().err


@pytest.mark.parametrize("mark", [None, b"{", b'{"of": 1}', b'{"of": "a-b", "images": 3}'])
def test_a_folder_of_anything_else_is_left_alone(
    mark: bytes | None, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "holiday.png").write_bytes(b"mine")
    if mark is not None:
        (tmp_path / MARK).write_bytes(mark)
    before = content(tmp_path)
    assert main(["images", str(card), str(tmp_path), "--store", str(tmp_path / "none")]) == 2
    assert "Name a folder that is new or empty" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_a_file_is_no_folder(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main(["images", str(card), str(tmp_path / "file"), "--store", str(tmp_path / "store")]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_of_several_protocols_one_is_named(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_card(card.with_name("both.md"), protocols=["mini", "scenes-quick"])
    assert main(["images", str(other), str(tmp_path / "out")]) == 2
    assert "Name one: --protocol NAME" in capsys.readouterr().err


@pytest.mark.slow
def test_the_hubs_imagefolder_reads_them(exported: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    told = {"data_dir": str(exported / "out"), "split": "train", "cache_dir": str(tmp_path)}
    found = datasets.load_dataset("imagefolder", **told)
    rows = lines(exported / "out")
    assert [(each["text"], each["index"], each["seed"]) for each in found] == [
        (row["text"], row["index"], row["seed"]) for row in rows
    ]
    with Image.open(exported / "out" / rows[5]["file_name"]) as image:
        np.testing.assert_array_equal(np.asarray(found[5]["image"]), np.asarray(image))


STEPS = [{"jpeg": 90}, {"resize": 64, "filter": "pil-bicubic"}]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[], STEPS], ids=["no image steps", "JPEG and a resize"])
def test_scored_from_files_they_have_the_scores_of_the_run(
    steps: list[dict[str, Any]], card: Path, tmp_path: Path
) -> None:
    path = make_protocol(card.parent / "protocols" / f"stepped{len(steps)}.yaml", n=N, image=steps)
    protocol, workspace = load_protocol(path), Workspace(tmp_path / "store", progress=False)
    mine = evaluate(resolve(str(card.parent / "mini-sd")), protocol, workspace)
    made = export(read_card(card), tmp_path / "out", workspace, name=str(path))
    assert made.drawn == N - 64
    found = score([tmp_path / "out"], path, workspace, stage="sampled")
    assert set(found.estimates) == set(mine.estimates) == {"fid", "kid", "inception_score", "clip_score"}
    for metric, estimate in mine.estimates.items():
        theirs = found.estimates[metric]
        assert type(theirs) is type(estimate)
        if isinstance(estimate, Estimate) and isinstance(theirs, Estimate):
            assert theirs.value == pytest.approx(estimate.value, rel=1e-6)
