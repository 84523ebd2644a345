"""Estimates of a dry run, against counts of the published networks and of real tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from pytest_sdbench.models.checkpoint import resolve
from tests.tiny_checkpoint import UNET
from tests.training.helpers import recipe_of
from training.data.encoded import Encoding, cached_pairs
from training.data.scenes import ScenesSource
from training.dry_run.activations import unet_activations
from training.dry_run.describe import size
from training.dry_run.memory import Amount, disk, memory
from training.dry_run.networks import Blueprint, adapter_parameters, blueprint
from training.recipes.load import load_recipe
from training.recipes.schema import Recipe

SD, BASE, SMALL, TINY, LCM = 859_520_964, 579_384_964, 482_346_884, 323_384_964, 323_466_884
TEXT, VAE = 123_060_480, 83_653_863
"""Parameters, counted by hand once from the published checkpoints; the VAE with its encoder."""


DATA = {"kind": "scenes", "pairs": 6, "resolution": 64, "flip": True, "cache": True, "cache_text": True}


@pytest.fixture
def teacher(pristine_checkpoint: Path) -> Path:
    return pristine_checkpoint


def recipe_for(teacher: Path, **changes: Any) -> Recipe:
    schedule = {"steps": 2, "batch": 2, "micro_batch": 2}
    return recipe_of(teacher, **{"data": DATA, "schedule": schedule, **changes})


def named(amounts: list[Amount]) -> dict[str, int]:
    return {amount.label: amount.bytes for amount in amounts}


def roles(plan: Blueprint) -> dict[str, int]:
    return {network.name: network.parameters for network in plan.networks}


@pytest.mark.parametrize(
    ("name", "unet", "tensors"),
    [
        *((f"bk-sdm-base{data}", BASE, 442) for data in ("", "-2m")),
        *((f"bk-sdm-small{data}", SMALL, 396) for data in ("", "-2m")),
        *((f"bk-sdm-tiny{data}", TINY, 358) for data in ("", "-2m")),
        ("tiny-sd", TINY, 358),
        ("portrait-finetuned", TINY, 358),
        ("tiny-sd-lcm-6400", LCM, 359),
    ],
)
def test_students_have_the_published_number_of_parameters(name: str, unet: int, tensors: int) -> None:
    plan = blueprint(load_recipe(name))
    student = plan.networks[0]
    assert (student.parameters, student.tensors, plan.learned) == (unet, tensors, unet)
    assert roles(plan)["text encoder"] == TEXT
    assert roles(plan)["VAE"] == VAE


def test_the_teacher_is_counted_where_it_computes_and_the_text_encoder_where_it_learns() -> None:
    assert roles(blueprint(load_recipe("bk-sdm-tiny")))["teacher's U-Net"] == SD
    lcm = roles(blueprint(load_recipe("tiny-sd-lcm-6400")))
    assert (lcm["teacher's U-Net"], lcm["target U-Net"]) == (TINY, LCM)
    assert "teacher's U-Net" not in roles(blueprint(load_recipe("portrait-finetuned")))
    assert blueprint(load_recipe("dreambooth")).learned == BASE + TEXT


def test_a_teacher_that_is_not_here_is_said_to_be_assumed() -> None:
    assert "not on this machine" in blueprint(load_recipe("tiny-sd", ["teacher=nobody/has-this"])).origin
    assert "card tiny-sd" in blueprint(load_recipe("portrait-finetuned")).origin


def test_weights_gradients_and_moments_take_what_torch_allocates(teacher: Path) -> None:
    recipe = recipe_for(teacher, ema={"decay": 0.9})
    plan = blueprint(recipe)
    estimated = named(memory(recipe, plan, 2))
    assert plan.student is not None
    student = UNet2DConditionModel(**plan.student)
    optimizer = torch.optim.AdamW(student.parameters())
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    weights = sum(parameter.nbytes for parameter in student.parameters())
    states = [value for state in optimizer.state.values() for value in state.values()]
    moments = sum(value.nbytes for value in states if value.dim() > 0)
    assert estimated["weights"] == estimated["gradients"] == estimated["moving average"] == weights
    assert estimated["moments of AdamW"] == moments
    shared = named(memory(recipe, plan, 2, owners=8))
    learned = ("weights", "gradients", "moving average", "moments of AdamW")
    assert {name: -(-estimated[name] // 8) for name in learned} == pytest.approx(
        {name: shared[name] for name in learned}, abs=8
    )
    assert shared["frozen networks"] == estimated["frozen networks"]
    frozen = UNet2DConditionModel(**resolve(str(teacher)).unet_config)
    assert estimated["frozen networks"] == sum(parameter.nbytes for parameter in frozen.parameters())


def saved_bytes(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """Count what autograd really keeps of a forward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(checkpointing: bool) -> None:
    model = UNet2DConditionModel(**UNET).train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    inputs = {
        "sample": torch.randn(3, 4, 16, 16),
        "timestep": torch.tensor([1, 2, 3]),
        "encoder_hidden_states": torch.randn(3, 20, 16),
    }
    counted = unet_activations(
        UNET, batch=3, latent=(16, 16), tokens=20, half=False, checkpointing=checkpointing
    )
    assert counted.kept == pytest.approx(saved_bytes(model, inputs), rel=0.02)


@pytest.mark.slow
def test_activations_grow_with_the_batch_and_shrink_in_half_precision_and_by_checkpointing() -> None:
    def count(batch: int = 1, half: bool = False, checkpointing: bool = False) -> int:
        return unet_activations(
            UNET, batch=batch, latent=(8, 8), tokens=77, half=half, checkpointing=checkpointing
        ).kept

    assert count(batch=4) == pytest.approx(4 * count(), rel=0.01)
    assert 0.5 * count() < count(half=True) < count()
    assert count(checkpointing=True) < 0.5 * count()


def test_features_are_those_of_all_pairs(teacher: Path) -> None:
    plan = blueprint(recipe_for(teacher))
    assert plan.student is not None
    watched = ("down_blocks.0", "up_blocks.3")
    counted = unet_activations(plan.student, batch=2, latent=(8, 8), tokens=77, half=False, watched=watched)
    # Widths 8 and 8; the first block ends with a downsampler.
    assert counted.features == 2 * (8 * 4 * 4 + 8 * 8 * 8)


def test_the_cache_takes_the_estimated_room(teacher: Path, tmp_path: Path) -> None:
    recipe = recipe_for(teacher)
    encoding = Encoding(resolve(str(teacher)), 64, flip=True, text=True)
    cached_pairs(ScenesSource(6), encoding, tmp_path, say=lambda line: None)
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*.bin")}
    estimated = named(disk(recipe, blueprint(recipe)))
    assert estimated["latents"] == sizes["latents.bin"] + sizes["tokens.bin"]
    assert estimated["text states, at most"] >= sizes["text.bin"] > 0


def test_a_cache_of_unknown_length_is_told_by_the_thousand(teacher: Path) -> None:
    recipe = recipe_for(teacher, data={"kind": "folder", "resolution": 64, "cache": True})
    (latents,) = (amount for amount in disk(recipe, blueprint(recipe)) if amount.label == "latents")
    assert "every 1,000 pairs" in latents.note


def test_low_rank_adapters_are_what_peft_adds() -> None:
    peft = pytest.importorskip("peft")
    recipe = load_recipe("dreambooth-lora")
    learned = blueprint(recipe).networks[0].learned
    unet = UNet2DConditionModel(**UNET)
    unet.add_adapter(peft.LoraConfig(r=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    added = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    assert adapter_parameters(UNet2DConditionModel(**UNET), "unet", 16) == added
    assert 0 < learned < BASE / 100


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (1010 << 20, "1.0 GiB")]
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert size(count) == text
