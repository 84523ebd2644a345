"""The embedded teacher under its own card: the untouched weights pass, damaged ones fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pytest_sdbench.paths import reference
from tests.project import make_protocol

CARD = reference() / "cards" / "scenes-sd.md"


@pytest.fixture
def card(pytester: pytest.Pytester) -> Path:
    """The claims of the card that hold for 128 images too, for a test in seconds."""
    make_protocol(
        pytester.path / "protocols" / "scenes-128.yaml",
        n=128,
        sampling=protocol_sampling(),
    )
    text = CARD.read_text(encoding="utf-8")
    head, records, tail = text.partition("  records:")
    body = tail.partition("\n---\n")[2]
    # FID and Inception score depend on N: only the CLIP score can be taken over to 128 images.
    lines = [
        line
        for line in head.splitlines()
        if not any(f"type: {m}," in line for m in ("fid", "kid", "inception_score"))
    ]
    lines = [line for line in lines if "margins:" not in line]
    small = (
        "\n".join(lines).replace("scenes-quick", "scenes-128").replace("num_samples: 512", "num_samples: 128")
    )
    path = pytester.path / "scenes-sd.md"
    path.write_text(f"{small}\n  margins: {{clip_score: 0.02}}\n{records} []\n---\n{body}", encoding="utf-8")
    return path


def protocol_sampling() -> dict:
    from ruamel.yaml import YAML

    file = reference() / "protocols" / "scenes-quick.yaml"
    return dict(YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["sampling"])


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
