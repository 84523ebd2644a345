"""A teacher from scratch learns on latents and text states of the networks that it borrows."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.protocols.scenes import captions, render_batch
from tests.tiny_checkpoint import UNET
from training.build import build_task
from training.data.batch import tokenize
from training.data.source import to_pixels
from training.dry_run.networks import blueprint
from training.errors import TrainingError
from training.recipes.load import load_recipe
from training.recipes.schema import Recipe
from training.run.processes import start
from training.students.networks import Parts
from training.students.scratch import build_scratch


@pytest.mark.usefixtures("one_thread")
def test_what_it_learns_on_is_encoded_by_the_networks_that_it_borrows(
    pristine_checkpoint: Path, parts: Parts, tmp_path: Path
) -> None:
    overrides = [f"student.networks.{name}={pristine_checkpoint}" for name in ("vae", "text_encoder")]
    overrides += [f"student.networks.unet={json.dumps(UNET)}", "data.pairs=3"]
    overrides += ["data.cache_text=true", "objective.train_text_encoder=false", "data.close_up=null"]
    overrides += ["data.layouts=null", "data.resolution=64", "objective.inner_captions=0"]
    recipe, folder = load_recipe("scenes-objects", overrides), tmp_path / "run"
    task: Any = build_task(
        recipe, folder=folder, accelerator=start(recipe, folder, "cpu"), say=lambda line: None
    )
    found = task.inputs.pairs.take([0, 1, 2])
    with torch.no_grad():
        mean = parts.vae.encode(to_pixels(list(render_batch(range(3))))).latent_dist.mean
        states = parts.text_encoder(tokenize(parts.tokenizer, captions(range(3)))[0]).last_hidden_state
    # Kept as float16.
    torch.testing.assert_close(found.mean.float(), mean, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found.text.float(), states, atol=2e-3, rtol=2e-3)


def test_a_dry_run_counts_networks_that_folders_hold_alone(pristine_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(pristine_checkpoint / name, tmp_path / name)
    overrides = [f"student.networks.{name}={tmp_path}" for name in ("vae", "text_encoder")]
    recipe = load_recipe("scenes-objects", [*overrides, f"student.networks.unet={json.dumps(UNET)}"])
    counted = {network.name: network.parameters for network in blueprint(recipe).networks}
    parts = build_scratch(recipe)
    for name, network in (("U-Net", parts.unet), ("text encoder", parts.text_encoder), ("VAE", parts.vae)):
        assert counted[name] == sum(weight.numel() for weight in network.parameters()), name


def borrowing(folder: Path, *overrides: str) -> Recipe:
    lent = [f"student.networks.{name}={folder}" for name in ("vae", "text_encoder")]
    return load_recipe("scenes-objects", [*lent, f"student.networks.unet={json.dumps(UNET)}", *overrides])


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("unet.cross_attention_dim=24", "unet.cross_attention_dim", "states are 16 wide"),
        ("unet.in_channels=8", "unet.in_channels", "latents are 4 wide"),
        ("unet.addition_embed_type=text_time", "unet.addition_embed_type", "SDXL"),
        ("unet.chanels=8", "unet.chanels", "no such argument"),
        ("text_encoder={hidden_sise: 16}", "text_encoder.hidden_sise", "no such argument"),
        ("text_encoder={vocab_size: 16}", "text_encoder.vocab_size", "set by the tokenizer"),
        ("text_encoder={base: a, unet: b}", "text_encoder.base", "name one checkpoint"),
        ("text_encoder={}", "text_encoder", "without a width"),
    ],
)
def test_networks_that_do_not_fit_are_named_before_any_is_built(
    pristine_checkpoint: Path, override: str, key: str, words: str
) -> None:
    recipe = borrowing(pristine_checkpoint, f"student.networks.{override}")
    for make in (build_scratch, blueprint):
        with pytest.raises(TrainingError, match=rf"student\.networks\.{re.escape(key)}: .*{words}"):
            make(recipe)


def test_a_checkpoint_in_half_precision_lends_its_networks(pristine_checkpoint: Path, tmp_path: Path) -> None:
    whole = StableDiffusionPipeline.from_pretrained(pristine_checkpoint, torch_dtype=torch.float16)
    whole.save_pretrained(tmp_path / "half", variant="fp16")
    parts = build_scratch(borrowing(tmp_path / "half"))
    assert {network.dtype for network in (parts.vae, parts.text_encoder)} == {torch.float32}


def test_a_damaged_network_of_a_folder_that_lends_is_named(pristine_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(pristine_checkpoint / name, tmp_path / name)
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"networks\.vae: the vae of this folder cannot be read"):
        build_scratch(borrowing(tmp_path))


def test_a_dry_run_counts_what_reads_inner_levels(pristine_checkpoint: Path, tmp_path: Path) -> None:
    recipe = borrowing(pristine_checkpoint, "objective.readout=0.3", "data.pairs=3")
    folder = tmp_path / "run"
    accelerator = start(recipe, folder, "cpu")
    task: Any = build_task(recipe, folder=folder, accelerator=accelerator, say=lambda line: None)
    learned = sum(each.numel() for each in task.model.parameters() if each.requires_grad)
    assert blueprint(recipe).learned == learned
