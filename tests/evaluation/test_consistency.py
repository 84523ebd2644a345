"""A consistency-distilled U-Net with its own scheduler, on a base: the whole path of a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.models.counts import component_sizes
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from tests.evaluation.helpers import sample
from tests.project import make_card, make_project, make_protocol
from tests.tiny_checkpoint import GUIDANCE_WIDTH, UNET, make_consistency_unet

IMAGES = 70
"""More than the 64 features of the classifier: FID is shown too."""
SPEC = {"base": "./mini-sd", "unet": "./mini-lcm"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pristine_checkpoint: Path) -> Path:
    """A project whose card is of the base; its consistency model lies beside it."""
    root = tmp_path_factory.mktemp("consistency")
    cards = make_project(root, pristine_checkpoint, claims={}).parent
    make_consistency_unet(cards / "mini-lcm")
    shipped = load_protocol("scenes-lcm4-quick").sampling.model_dump()
    make_protocol(cards / "protocols" / "lcm.yaml", sampling=shipped, n=IMAGES)
    return cards


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return resolve(SPEC, near=folder)


@pytest.fixture(scope="module")
def protocol(folder: Path) -> Protocol:
    return load_protocol(folder / "protocols" / "lcm.yaml")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Checkpoint) -> Any:
    return load_pipeline(checkpoint)


def draw(pipeline: Any, protocol: Protocol, indices: list[int], batch_size: int) -> np.ndarray:
    batches = sample(pipeline, protocol, load_prompts(protocol), indices, batch_size=batch_size)
    return np.concatenate([batch.images for batch in batches])


def test_pictures_with_noise_between_steps_do_not_depend_on_the_batch(
    pipeline: Any, protocol: Protocol
) -> None:
    together = draw(pipeline, protocol, [0, 1, 2, 3, 4], 4).astype(int)
    torch.manual_seed(0)  # nor on the global generator
    alone = draw(pipeline, protocol, [0, 1, 2, 3, 4], 1).astype(int)
    # Rounding alone: a byte up or down here and there.
    assert np.abs(together - alone).max() <= 1
    assert (together != alone).mean() < 0.01
    backwards = draw(pipeline, protocol, [4, 2], 2).astype(int)
    assert np.abs(backwards - alone[[4, 2]]).max() <= 1
    assert np.abs(alone[0] - alone[1]).max() > 1


def test_each_step_is_one_call_that_is_told_the_guidance(pipeline: Any, protocol: Protocol) -> None:
    calls: list[tuple[int, torch.Tensor]] = []

    def look(_: Any, inputs: Any, options: Any) -> None:
        calls.append((len(inputs[0]), options["timestep_cond"]))

    hook = pipeline.unet.register_forward_pre_hook(look, with_kwargs=True)
    draw(pipeline, protocol, [0, 1], 2)
    hook.remove()
    assert [count for count, _ in calls] == [2] * 4
    # w = guidance - 1 = 1, as sines and cosines of 1000 w (Meng et al. 2023).
    half = GUIDANCE_WIDTH // 2
    angles = 1000.0 * np.exp(-np.log(10000.0) * np.arange(half) / (half - 1))
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    for _, condition in calls:
        np.testing.assert_allclose(condition.numpy(), np.stack([expected] * 2), atol=1e-4)


def test_the_projection_of_the_guidance_is_verified_and_counted(checkpoint: Checkpoint, folder: Path) -> None:
    verify(checkpoint)
    plain = component_sizes(resolve("./mini-sd", near=folder))
    more = UNET["block_out_channels"][0] * GUIDANCE_WIDTH
    assert component_sizes(checkpoint)["unet"] == plain["unet"] + more
    assert component_sizes(checkpoint)["whole"] == plain["whole"] + more


def test_the_scheduler_is_part_of_the_checkpoint(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    other = make_consistency_unet(tmp_path / "other")
    spec = {"base": "./mini-sd", "unet": str(other)}
    assert resolve(spec, near=folder).fingerprint == checkpoint.fingerprint
    file = other / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"original_inference_steps": 40}), encoding="utf-8")
    assert resolve(spec, near=folder).fingerprint != checkpoint.fingerprint


@pytest.mark.parametrize(("spec", "name"), [("./mini-sd", "lcm"), (SPEC, "mini")])
def test_a_protocol_of_the_other_kind_is_refused(folder: Path, spec: Any, name: str) -> None:
    pipeline = load_pipeline(resolve(spec, near=folder))
    protocol = load_protocol(folder / "protocols" / f"{name}.yaml")
    with pytest.raises(CheckpointError, match=r"samples with the checkpoint's own (LCM|PNDM)Scheduler"):
        draw(pipeline, protocol, [0], 1)


@pytest.mark.slow
def test_the_card_runs_from_size_to_score(
    pytester: pytest.Pytester, folder: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    sizes = component_sizes(checkpoint)
    make_card(
        folder / "mini-lcm.md",
        protocol="lcm",
        checkpoint=SPEC,
        baseline="mini",
        size={name: {"exact": count} for name, count in sizes.items()},
        compute={"unet_macs": macs(folder)},
        speed={"unet_ratio": {"max": 1e6, "source": "own record"}},
    )
    result = pytester.runpytest("--sdbench", folder / "mini-lcm.md", "--sdbench-report=r.json")
    # Sizes, compute, speed and the claimed score pass; memory and what nothing is claimed of are skipped.
    result.assert_outcomes(passed=7, skipped=4)
    content = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))
    (score,) = [row for row in content["results"] if row["name"] == "lcm-inception_score"]
    assert (score["verdict"], score["n"]) == ("pass", IMAGES)
    assert score["extra"]["checkpoint_fingerprint"] == checkpoint.fingerprint


def macs(folder: Path) -> int:
    """Count the base with the library's own counter, and add the projection of the guidance by hand."""
    from torch.utils.flop_counter import FlopCounterMode

    unet = load_pipeline(resolve("./mini-sd", near=folder)).unet
    unet.set_default_attn_processor()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, UNET["cross_attention_dim"]))
    return counter.get_total_flops() // 2 + UNET["block_out_channels"][0] * GUIDANCE_WIDTH
