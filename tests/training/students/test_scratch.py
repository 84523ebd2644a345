"""A teacher from scratch learns on latents and text states of the networks that it borrows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_sdbench.protocols.scenes import captions, render_batch
from tests.tiny_checkpoint import UNET
from training.build import build_task
from training.data.batch import tokenize
from training.data.source import to_pixels
from training.dry_run.networks import blueprint
from training.recipes.load import load_recipe
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
    overrides += ["data.layouts=null", "data.resolution=64"]
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
