"""A card that claims preference scores beside LPIPS and FID, on a machine that has none of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands.main import main
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.features.extractors import EXTRACTORS
from pytest_sdbench.features.pretrained import aesthetic, hpsv2, pickscore
from pytest_sdbench.features.pretrained.files import of_files
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.protocols.load import load_protocol
from tests.features.test_pretrained import FILES, MAKERS
from tests.project import make_card, make_project, make_protocol

CLAIMS = {"FID": 17.0, "LPIPS": 0.12, "HPSv2.1": 0.285, "PickScore": 21.7, "Aesthetic-Score": 5.5}
METRICS: dict[str, dict[str, Any]] = {
    "fid": {"extractor": "inception-pytorch-fid", "statistics": {"file": "real.npz", "images": 5000}},
    "lpips": {"extractor": "lpips:alex"},
    "hpsv2": {"extractor": "hpsv2.1"},
    "pickscore": {"extractor": "pickscore"},
    "aesthetic": {"extractor": "laion-aesthetic-v2"},
}
MARGINS = {"fid": 1.0, "lpips": 0.02, "hpsv2": 0.002, "pickscore": 0.1, "aesthetic": 0.05}


@pytest.fixture
def card(tmp_path: Path, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card under a protocol of the user's own; the caches of this machine are empty."""
    for module in ("constants", "file_download"):
        name = f"huggingface_hub.{module}.HF_HUB_CACHE"
        monkeypatch.setattr(name, str(tmp_path / "no hub"), raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no torch hub"))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    make_project(tmp_path, pristine_checkpoint, claims={})
    own = tmp_path / "cards" / "protocols" / "own.yaml"
    make_protocol(own, title="Own", n=40, metrics=METRICS, margins=MARGINS)
    return make_card(tmp_path / "cards" / "card.md", claims=CLAIMS, protocol="own")


@pytest.mark.slow
def test_is_collected_and_each_score_says_what_it_lacks(pytester: pytest.Pytester, card: Path):
    wrong = make_card(card.with_name("wrong.md"), claims={"HPSv2.1": 28.5}, protocol="own")
    result = pytester.runpytest("--sdbench", str(card), str(wrong), "-m", "quality", "-v", "-rs")
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == 1
    for metric in METRICS:
        result.stdout.fnmatch_lines([f"*card.md::test_quality?own-{metric}? SKIPPED*"])
    text = result.stdout.str()
    assert "the HPSv2.1 has the wrong scale (found 28.5)" in text
    assert "write 0.285" in text
    for word in (
        hpsv2.WEIGHTS.repository,
        hpsv2.WEIGHTS.revision,
        "Apache-2.0",
        "--sdbench-download",
        "real.npz",
    ):
        assert word in text


def test_is_planned_and_doctored(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", str(card)]) == 1
    told = capsys.readouterr().out
    for file in (hpsv2.WEIGHTS, pickscore.WEIGHTS, aesthetic.CLIP):
        for word in (file.repository, file.name, file.revision, file.licence):
            assert word in told
    assert main(["plan", str(card), "--store", str(tmp_path / "store"), "--no-timing"]) == 1
    told = capsys.readouterr().out
    sizes = {"hpsv2.1": "1.97 GB", "pickscore": "3.94 GB", "laion-aesthetic-v2": "1.71 GB"}
    for name, size in sizes.items():
        (line,) = (line for line in told.splitlines() if line.startswith(f"{name} (licence"))
        assert size in line
    assert any("lpips" in line and "MB" in line for line in told.splitlines())


def test_without_a_block_of_ours_it_is_explained(card: Path):
    text = card.read_text(encoding="utf-8")
    card.write_text(text[: text.index("sdbench:")] + text[text.index("\n---\n") + 1 :], encoding="utf-8")
    found = read_card(card)
    assert {claim.metric for claim in found.claims} == set(METRICS)
    assert [claim.gate_protocol for claim in found.claims] == ["own"] * len(METRICS)
    assert not found.problems


@pytest.mark.slow
def test_with_weights_its_pictures_are_scored_and_kept(
    card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The weights are random, of small networks of the same architecture."""
    for name in ("hpsv2.1", "pickscore", "laion-aesthetic-v2"):
        module, make = MAKERS[name]
        paths, _ = make(monkeypatch, tmp_path)
        for file, path in zip(FILES[name], paths, strict=True):
            (tmp_path / file.place).parent.mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / file.place)
        files = [replace(file, sha256=None) for file in FILES[name]]
        monkeypatch.setitem(
            EXTRACTORS._loaded, name, of_files(name, EXTRACTORS[name].outputs, files, module.build)
        )
    metrics = {name: spec for name, spec in METRICS.items() if name not in ("fid", "lpips")}
    own = make_protocol(tmp_path / "scored.yaml", title="Own", n=40, metrics=metrics, margins={})
    workspace = Workspace(tmp_path / "store", data_root=tmp_path, progress=False)
    checkpoint = Checkpoint("./mini-sd", card.parent / "mini-sd")
    first, again = (evaluate(checkpoint, load_protocol(own), workspace).estimates for _ in range(2))
    assert first == again
    for metric in metrics:
        found = first[metric]
        assert isinstance(found, Estimate)
        assert found.standard_error
        assert found.n == 40
