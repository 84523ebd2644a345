"""Check what a checkpoint says besides its weights: values of its configurations, scheduler, vocabulary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CardError, CheckpointError, first_line
from pytest_sdbench.models.checkpoint import Checkpoint, scheduler_class
from pytest_sdbench.models.layout import SDXL
from pytest_sdbench.models.quantised import check_quantised
from pytest_sdbench.models.skeleton import (
    OTHER_CONDITIONING,
    component_skeleton,
    known_keys,
    text_time_widths,
    unet_inputs,
)
from pytest_sdbench.models.weights import incomplete, read_json

_MOST_TIMESTEPS = 100_000
_CALLED = ("init_noise_sigma", "scale_model_input", "set_timesteps", "step")
"""What a pipeline of Stable Diffusion uses of its scheduler."""
_MERGES = 49152 - 256 - 2
"""As many lines of a merges.txt does CLIP read."""


def check_values(checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` for a component that is not supported, or a value that means nothing."""
    for name in checkpoint.pipeline.components:
        config, file = checkpoint.config(name), checkpoint.config_file(name)
        if (quantised := config.get("quantization_config")) is not None:
            check_quantised(name, quantised, file)
        if (elsewhere := config.get("transformers_weights")) is not None:
            what, remedy = (
                "a configuration that names a file of weights",
                "Remove the entry, and rename that file",
            )
            raise CheckpointError(what, file=file, key="transformers_weights", found=elsewhere, remedy=remedy)
    unet, file = checkpoint.config("unet"), checkpoint.config_file("unet")
    wanted = checkpoint.pipeline.conditions
    if key := next((key for key in OTHER_CONDITIONING if unet.get(key) != wanted.get(key)), None):
        what = f"a U-Net with other inputs than those of a {checkpoint.pipeline.name}"
        remedy = "SDXL's U-Net stands on SDXL's other parts, and those of SD v1 and v2 on theirs"
        raise CheckpointError(what, file=file, key=key, found=unet.get(key), remedy=remedy)
    if checkpoint.pipeline is SDXL:
        try:
            text_time_widths(unet)
        except CardError as error:
            width = str(error.key).rpartition(".")[2]
            raise CheckpointError(
                error.message, file=file, key=width, found=error.found, remedy=error.remedy
            ) from error
    _check_latents(checkpoint)
    make_scheduler(checkpoint)
    for name in checkpoint.pipeline.tokenizers:
        check_vocabulary(checkpoint.part(name))


def _check_latents(checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` for a scale of the autoencoder's latents that means nothing."""
    vae, file = checkpoint.config("vae"), checkpoint.config_file("vae")
    for key in ("latents_mean", "latents_std") if checkpoint.pipeline is SDXL else ():
        if (found := vae.get(key)) is None:
            continue
        if not _are_numbers(found, vae.get("latent_channels", 4)):
            what, remedy = "not a number for each channel of the latents", "Compare it with SDXL's"
            raise CheckpointError(what, file=file, key=key, found=found, remedy=remedy)
        if key == "latents_std" and min(found) <= 0:
            what, remedy = "a deviation of latents that is not above zero", "Compare it with SDXL's"
            raise CheckpointError(what, file=file, key=key, found=found, remedy=remedy)
    if not isinstance(upcast := vae.get("force_upcast", True), bool):
        remedy = "It says whether the autoencoder decodes in float32. Where it is not given it is true"
        raise CheckpointError("not true or false", file=file, key="force_upcast", found=upcast, remedy=remedy)
    factor = vae.get("scaling_factor", 1.0)
    if not (_is_number(factor) and factor > 0):
        what, remedy = "not a factor that latents are scaled by", "SD v1's is 0.18215"
        raise CheckpointError(what, file=file, key="scaling_factor", found=factor, remedy=remedy)


def check_calls(checkpoint: Checkpoint) -> None:
    """Raise ``CheckpointError`` unless each network can be called, tried on tensors without storage."""
    import torch

    tokens = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    for name in checkpoint.pipeline.components:
        config = checkpoint.config(name)
        try:
            model = component_skeleton(name, config)
            with torch.inference_mode():
                if name == "unet":
                    model(**unet_inputs(known_keys(config)))
                elif name == "vae":
                    model.decode(torch.empty(1, model.config.latent_channels, 8, 8, device="meta"))
                else:
                    model(input_ids=tokens)
        except Exception as error:  # a wrong value fails wherever it is used first
            why = error.found if isinstance(error, CardError) else first_line(error)
            file = checkpoint.config_file(name)
            raise incomplete(f"a {name} that cannot be called", file, found=why) from error


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def make_scheduler(checkpoint: Checkpoint) -> Any:
    """Return a checkpoint's scheduler; raise ``CheckpointError`` where its configuration makes none."""
    import diffusers
    import torch

    name, config = scheduler_class(checkpoint), checkpoint.config("scheduler")
    file, steps = checkpoint.config_file("scheduler"), config.get("num_train_timesteps", 1000)
    if not (isinstance(steps, int) and 0 < steps <= _MOST_TIMESTEPS):
        raise incomplete("not a number of timesteps", file, key="num_train_timesteps", found=steps)
    kind = getattr(diffusers, name)
    try:
        trial = kind.from_config(config)
        if not (lacking := [each for each in _CALLED if not hasattr(trial, each)]):
            try_scheduler(trial, 4)
        noise = torch.as_tensor(getattr(trial, "alphas_cumprod", 1.0), dtype=torch.float64)
    except Exception as error:  # constructors fail in as many ways as there are wrong values
        why = f"{type(error).__name__}: {first_line(error)}"
        raise incomplete(f"not a configuration of {name}", file, found=why) from error
    if lacking:
        what = f"a {checkpoint.pipeline.name} cannot draw with this scheduler, which has no {lacking[0]}"
        remedy = "Name the one that the network was trained with; flow matching is not supported (yet)"
        raise CheckpointError(what, file=file, key="_class_name", found=name, remedy=remedy)
    if not bool(((noise >= 0) & (noise <= 1)).all()):
        values = {key: config.get(key) for key in ("trained_betas", "beta_start", "beta_end")}
        raise incomplete("betas that leave no noise schedule", file, key="beta_end", found=values)
    return kind.from_config(config)


def try_scheduler(scheduler: Any, steps: int) -> None:
    """Do what a pipeline does with a scheduler: some values are refused by the first step alone."""
    import torch

    scheduler.set_timesteps(steps)
    latents = torch.zeros(1, 4, 8, 8) * scheduler.init_noise_sigma
    with torch.random.fork_rng(devices=[]):
        scaled = scheduler.scale_model_input(latents, scheduler.timesteps[0])
        scheduler.step(scaled, scheduler.timesteps[0], latents)


def check_vocabulary(folder: Path) -> None:
    """Raise ``CheckpointError`` where two forms of one vocabulary disagree: libraries read either."""
    whole, merges, vocabulary = (folder / name for name in ("tokenizer.json", "merges.txt", "vocab.json"))
    if not whole.is_file():
        return
    content = read_json(whole)
    try:
        model, added = content["model"], {each["content"] for each in content.get("added_tokens") or []}
        told = [pair.split() if isinstance(pair, str) else pair for pair in model["merges"]][:_MERGES]
        if merges.is_file():
            lines = merges.read_text(encoding="utf-8").split("\n")[1 : _MERGES + 1]
            _agree(merges, [line.split() for line in lines if line.strip()], told)
        if vocabulary.is_file():
            # Tokens that were added later stand in a list of their own, or in both.
            forms = (read_json(vocabulary), model["vocab"])
            _agree(vocabulary, *({key: n for key, n in form.items() if key not in added} for form in forms))
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise incomplete("unreadable vocabulary", whole, found=first_line(error)) from error


def _agree(file: Path, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        found = f"{len(ours):,} entries, {len(theirs):,} in tokenizer.json"
        what = "contradicts the tokenizer.json beside it: old libraries read the one, new ones the other"
        remedy = "Delete the wrong one, or save the tokenizer again"
        raise CheckpointError(what, file=file, found=found, remedy=remedy)
