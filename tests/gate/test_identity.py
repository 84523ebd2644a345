"""A verdict says in what the candidate differs from the recorded checkpoint, when it passes too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import Card, read_card
from pytest_sdbench.gate.identity import recorded_changes
from pytest_sdbench.gate.recorded import evidence_path, read_recorded, write_recorded
from pytest_sdbench.models.changes import describe
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from tests.project import FAILS, PASSES, PROTOCOL, make_project

SCHEDULER = "scheduler/scheduler_config.json"
CHANGE = "scheduler.beta_schedule: linear, {} scaled_linear"


def candidate_of(checkpoint: Path, folder: Path) -> Checkpoint:
    """Return a copy with other betas."""
    shutil.copytree(checkpoint, folder)
    file = folder / SCHEDULER
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_schedule": "linear"}))
    return resolve(str(folder))


@pytest.fixture
def card(tmp_path: Path, pristine_checkpoint: Path) -> Card:
    return read_card(make_project(tmp_path, pristine_checkpoint))


def record(card: Card, checkpoint: Checkpoint, *, described: bool) -> None:
    """Put packaged evidence beside the card, as if it were of the checkpoint."""
    known = read_recorded(reference() / "evidence" / "scenes-tiny" / "scenes-quick.safetensors")
    assert known is not None
    description = describe(checkpoint) if described else None
    known = replace(known, checkpoint_fingerprint=checkpoint.fingerprint, description=description)
    path = evidence_path(card.path, PROTOCOL)
    assert write_recorded(path, known)
    found = read_recorded(path)
    assert found == known
    assert (found.description is not None) is described


def test_the_card_s_own_checkpoint_is_compared_where_it_is_here(
    card: Card, pristine_checkpoint: Path, tmp_path: Path
) -> None:
    own, other = resolve(str(pristine_checkpoint)), candidate_of(pristine_checkpoint, tmp_path / "other")
    assert recorded_changes(card, own, PROTOCOL) == ()
    assert recorded_changes(card, other, PROTOCOL) == (CHANGE.format("the card's own"),)
    record(card, own, described=False)
    assert recorded_changes(card, own, PROTOCOL) == ()
    assert recorded_changes(card, other, PROTOCOL) == (CHANGE.format("recorded"),)


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "changed"])
def test_else_its_description_is_and_what_is_not_known_is_said(
    card: Card, pristine_checkpoint: Path, tmp_path: Path, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = resolve(str(pristine_checkpoint)), candidate_of(pristine_checkpoint, tmp_path / "other")
    record(card, own, described=True)
    shutil.rmtree(card.path.parent / "mini-sd")
    if not gone:
        shutil.copytree(tmp_path / "other", card.path.parent / "mini-sd")
    assert recorded_changes(card, other, PROTOCOL) == (CHANGE.format("recorded"),)
    with monkeypatch.context() as patch:
        patch.delattr("pytest_sdbench.models.changes.read_tensors")  # read once in a process
        assert recorded_changes(card, other, PROTOCOL) == (CHANGE.format("recorded"),)
    record(card, own, described=False)
    (unknown,) = recorded_changes(card, other, PROTOCOL)
    assert unknown.startswith("other weights than those that are recorded")


@pytest.mark.slow
def test_a_run_prints_it_in_every_verdict_and_once_below_the_table(
    pytester: pytest.Pytester, pristine_checkpoint: Path
) -> None:
    make_project(pytester.path, pristine_checkpoint, claims=PASSES | FAILS)
    candidate_of(pristine_checkpoint, pytester.path / "other")
    shutil.copytree(pytester.path / "other" / "unet", pytester.path / "other" / "unet_ema")
    result = pytester.runpytest(
        "--sdbench",
        "cards/mini.md",
        "-m",
        "quality",
        "--sdbench-weights=mini=other",
        "--sdbench-report=r.json",
    )
    change = CHANGE.format("the card's own")
    result.stdout.fnmatch_lines([f"*not looked at: unet_ema/; {change})*", f"- mini: {change}"])
    rows = json.loads((pytester.path / "r.json").read_text())["results"]
    judged = {row["verdict"]: row["reason"] for row in rows if row["claimed"] is not None}
    assert set(judged) == {"pass", "fail"}
    assert all(change in reason for reason in judged.values())
    assert all(row["extra"]["changes"] == [change] for row in rows)
