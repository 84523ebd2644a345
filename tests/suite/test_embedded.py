"""The embedded teacher under its own card: the untouched weights pass, damaged ones fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import Card, read_card
from pytest_sdbench.gate.looks import looks
from pytest_sdbench.gate.quality import claim_errors
from pytest_sdbench.gate.recorded import evidence_path, read_recorded
from pytest_sdbench.gate.verdict import chance_of_pass
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from tests.project import make_protocol
from training.students.block_removal import student_config

CARD = reference() / "cards" / "scenes-sd.md"


@pytest.fixture
def card(pytester: pytest.Pytester) -> Path:
    """The claims of the card that hold for 128 images too, for a test in seconds."""
    make_protocol(
        pytester.path / "protocols" / "scenes-128.yaml",
        n=128,
        sampling=protocol_sampling(),
    )
    yaml = YAML(typ="safe", pure=True)
    front = dict(yaml.load(CARD.read_text(encoding="utf-8").split("---\n")[1]))
    quick = front["model-index"][0]["results"][0]
    assert quick["dataset"]["config"] == "scenes-quick"
    quick["dataset"] |= {"config": "scenes-128", "args": {"num_samples": 128}}
    # FID and Inception score depend on N: only the CLIP score can be taken over to 128 images.
    quick["metrics"] = [metric for metric in quick["metrics"] if metric["type"] == "clip_score"]
    front["model-index"][0]["results"] = [quick]
    front["sdbench"] |= {
        "protocols": ["scenes-128"],
        "margins": {"clip_score": 0.02},
        "sources": {"scenes-128": "pytest-sdbench"},
        "records": [],
    }
    path = pytester.path / "scenes-sd.md"
    with path.open("w", encoding="utf-8") as file:
        file.write("---\n")
        yaml.dump(front, file)
        file.write("---\n")
    return path


def protocol_sampling() -> dict:
    file = reference() / "protocols" / "scenes-quick.yaml"
    return dict(YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["sampling"])


@pytest.mark.slow
def test_untouched_weights_pass_and_damaged_weights_fail(pytester: pytest.Pytester, card: Path):
    words = ("--sdbench", card.name, "-k", "clip_score", "--sdbench-report=r.json")
    pytester.runpytest(*words).assert_outcomes(passed=1, deselected=10)

    damaged = Path(shutil.copytree(reference() / "checkpoints" / "scenes-sd", pytester.path / "damaged"))
    add_noise(damaged / "unet" / "diffusion_pytorch_model.safetensors", 0.5)
    result = pytester.runpytest(*words, "--sdbench-weights=scenes-sd=damaged")
    result.assert_outcomes(failed=1, deselected=10)
    row = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"][0]
    assert row["verdict"] == "fail"
    assert row["measured"] < row["claimed"] - row["margin"]


def add_noise(file: Path, amount: float) -> None:
    """Add noise of this share of its own standard deviation to every tensor."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(0)
    noisy = {}
    for name, value in load_file(file).items():
        noise = torch.randn(value.shape, generator=generator) * amount
        spread = value.float().std() if value.numel() > 1 else value.float().abs()
        noisy[name] = (value.float() + noise * spread).to(value.dtype)
    save_file(noisy, file, metadata={"format": "pt"})


# --- the family -----------------------------------------------------------

FAMILY = sorted(path.stem for path in (reference() / "cards").glob("scenes-*.md"))
STUDENTS = {
    "scenes-base": "base",
    "scenes-small": "small",
    "scenes-small-2m": "small",
    "scenes-tiny": "tiny",
    "scenes-portrait": "tiny",
    "scenes-tiny-lcm": "tiny",
}


def test_the_family_is_complete_and_fits_its_room():
    assert {"scenes-sd", *STUDENTS} == set(FAMILY)
    files = [file for file in (reference() / "checkpoints").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 48e6


def recorded_under(card: Card) -> list[Protocol]:
    """Return a card's protocols but for that of candidates alone, whose pictures no baseline draws."""
    return [load_protocol(name) for name in card.protocols if name != "scenes-lcm4-fidelity"]


@pytest.mark.parametrize("name", FAMILY)
def test_what_a_card_records_is_of_these_weights_and_these_protocols(name: str):
    """A figure that was measured before the weights or the protocol changed would be judged as if it held."""
    card = read_card(reference() / "cards" / f"{name}.md")
    weights = resolve(card.checkpoint).fingerprint
    recorded = card.records
    assert {record.protocol for record in recorded} == {each.name for each in recorded_under(card)}
    for record in recorded:
        assert record.checkpoint_fingerprint == weights
        protocol = load_protocol(record.protocol)
        assert protocol.covers(record.protocol_fingerprint, record.metric)
        assert record.n == protocol.n
    for claim in card.claims:
        if claim.kind == "published":
            same = [r for r in recorded if (r.protocol, r.metric) == (claim.protocol, claim.metric)]
            assert [round(r.value, len(claim.text.partition(".")[2])) for r in same] == [claim.value], (
                claim.id
            )


@pytest.mark.parametrize("name", FAMILY)
def test_the_recorded_images_of_a_card_are_those_of_its_figures(name: str):
    """Images of other weights, or of another protocol, would pair a candidate with the wrong checkpoint."""
    path = reference() / "cards" / f"{name}.md"
    card = read_card(path)
    weights = resolve(card.checkpoint).fingerprint
    for protocol in recorded_under(card):
        found = read_recorded(evidence_path(path, protocol.name))
        assert found is not None
        assert found.checkpoint_fingerprint == weights
        assert protocol.covers(found.protocol_fingerprint)
        assert sorted(found.looks) == [look.n for look in looks(protocol.n)]
        whole = found.looks[protocol.n]
        records = {record.metric: record for record in card.records if record.protocol == protocol.name}
        assert set(whole) == set(records)
        assert set(records) == set(protocol.metrics) or protocol.n > 512
        for metric, estimate in whole.items():
            record, decimals = records[metric], METRICS[metric].recorded_decimals
            assert round(estimate.value, decimals) == pytest.approx(record.value, rel=5e-4)
            assert estimate.standard_error == pytest.approx(record.standard_error, rel=0.02)
            assert estimate.influence is not None
            assert estimate.influence.shape == (protocol.n,)


@pytest.mark.parametrize("name", FAMILY)
def test_the_margins_of_a_card_are_above_the_noise(name: str):
    """Unpaired, four of five identical checkpoints pass each claim; the gate refuses a smaller margin."""
    card = read_card(reference() / "cards" / f"{name}.md")
    for protocol in recorded_under(card):
        errors = claim_errors(card, protocol)
        for claim in card.claims:
            # A share is judged by counts: the gate itself refuses a margin that is too small.
            if claim.gate_protocol == protocol.name and not METRICS[claim.metric].share:
                assert claim.margin is not None
                assert chance_of_pass(claim.margin, errors[claim.metric]) >= 0.8


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_the_teacher_without_the_blocks_of_its_name(name: str):
    teacher = reference() / "checkpoints" / "scenes-sd" / "unet" / "config.json"
    expected = student_config(
        json.loads(teacher.read_text(encoding="utf-8")),
        STUDENTS[name],
        guidance_embedding=256 if name == "scenes-tiny-lcm" else None,
    )
    file = reference() / "checkpoints" / name / "unet" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    assert {key: config[key] for key in expected} == expected
