"""Check stored tensors against the configuration: none missing, extra, misshapen or NaN."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CardError, CheckpointError, first_line
from pytest_sdbench.models.access import readable
from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.layout import check_class
from pytest_sdbench.models.skeleton import component_skeleton, text_width, unet_skeleton
from pytest_sdbench.models.values import check_values
from pytest_sdbench.models.weights import (
    COPY_AGAIN,
    TEXT_ENCODERS,
    Tensor,
    Weights,
    incomplete,
    open_tensors,
    read_shapes,
    read_tensors,
)

Shapes = Mapping[str, tuple[int, ...]]

_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_BUFFERS = {"embeddings.position_ids"}
_SOME = 5


_verified: set[str] = set()


@readable()
def verify(checkpoint: Checkpoint) -> None:
    """Check that every tensor is there, of the shape that the configuration means, and finite.

    diffusers loads a checkpoint with a missing tensor, one too many, or NaN in it without an error. Raise
    ``CheckpointError`` that names file and tensor. Each content is checked once in a process. Of a fused LoRA
    the base is checked as well: what is wrong with its files shows no more in what was made of them.
    """
    if checkpoint.base is not None:
        verify(checkpoint.base)
    if checkpoint.fingerprint in _verified:
        return
    check_values(checkpoint)
    for name in checkpoint.pipeline.components:
        config_file, config = checkpoint.config_file(name), checkpoint.config(name)
        check_class(name, config.get("_class_name"), config_file, key="_class_name")
        check_component(name, config, config_file, checkpoint.weights(name))
    configs = {name: checkpoint.config(name) for name in checkpoint.pipeline.components}
    check_together(configs, checkpoint.folder)
    _verified.add(checkpoint.fingerprint)


def canonical_name(component: str, name: str) -> str:
    """Return the name that today's libraries give a stored tensor.

    The VAEs of SD v1.4 and v1.5 name their attention as diffusers did before 0.18, and converts still;
    CLIP's text model lost the prefix ``text_model.`` in transformers 5, which accepts both.
    """
    if component == "vae":
        return re.sub(
            r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$",
            lambda match: f"{match[1]}.{_OLD_VAE_ATTENTION[match[2]]}.{match[3]}",
            name,
        )
    return name.removeprefix("text_model.") if component in TEXT_ENCODERS else name


def stored_parameters(component: str, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is stored by canonical name, without buffers that older libraries saved too (positions)."""
    named = {canonical_name(component, name): tensor for name, tensor in stored.items()}
    return {name: tensor for name, tensor in named.items() if name not in _BUFFERS}


def expected_shapes(
    component: str, config: Mapping[str, Any], config_file: Path
) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters that a component's configuration means."""
    try:
        model = component_skeleton(component, config)
    except Exception as error:
        # Constructors fail in as many ways as there are wrong values: the error's text says which it was.
        found = (
            error.found if isinstance(error, CardError) else f"{type(error).__name__}: {first_line(error)}"
        )
        raise incomplete(f"not a configuration of a {component}", config_file, found=found) from error
    return {canonical_name(component, name): tuple(value.shape) for name, value in model.state_dict().items()}


def check_component(component: str, config: Mapping[str, Any], config_file: Path, weights: Weights) -> None:
    """Raise ``CheckpointError`` unless the weights are exactly those of the configuration, and finite."""
    stored = stored_parameters(component, read_shapes(weights))
    expected = expected_shapes(component, config, config_file)
    missing = sorted(expected.keys() - stored.keys())
    extra = sorted(stored.keys() - expected.keys())
    misshapen = sorted(name for name in expected.keys() & stored if stored[name].shape != expected[name])
    if missing and extra and (told := _other_names(component, list(stored), expected)):
        raise CheckpointError(told[0], file=weights.files[0], key=extra[0], remedy=told[1])
    if misshapen or (missing and extra) or len(missing) > _SOME or len(extra) > _SOME:
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        parts = [
            f"{len(names)} {what}, e.g. {names[0]}"
            for what, names in (("of another shape", misshapen), ("missing", missing), ("extra", extra))
            if names
        ]
        if misshapen:
            parts[0] += f": {shapes[misshapen[0]]}, not {expected[misshapen[0]]}"
        raise CheckpointError(
            "configuration and tensors disagree",
            file=config_file,
            key=(misshapen or missing or extra)[0],
            found=f"{weights.files[0].name} with {len(stored)} tensors: {'; '.join(parts)}",
            remedy=_remedy(component, shapes, config_file),
        )
    if missing:
        what, remedy = f"missing tensor{_others(missing)}", f"{COPY_AGAIN}, or export it again"
        file = weights.index or weights.files[0]
        raise CheckpointError(what, file=file, key=missing[0], remedy=remedy)
    if extra:
        what = f"a tensor that the network does not have{_others(extra)}"
        first, remedy = stored[extra[0]], f"Compare it with {config_file}; export the checkpoint again"
        raise CheckpointError(what, file=first.file, key=extra[0], found=first.shape, remedy=remedy)
    _check_tensors(component, weights)


def _other_names(component: str, stored: list[str], expected: Shapes) -> tuple[str, str] | None:
    """Return what to say of weights whose names alone are others, as wrappers and other formats have."""
    first = min(stored)
    if any(name.endswith("_weight_qdata") for name in stored):
        remedy = "Put the config.json that was saved with them beside them"
        return "parts of quantised tensors, and no quantization_config that says how to read them", remedy
    if any("lora" in name for name in stored):
        return (
            "weights with layers of a LoRA in them",
            "Fuse them first: pipeline.fuse_lora(), save_pretrained(...)",
        )
    if first.startswith(
        ("model.diffusion_model.", "input_blocks.", "cond_stage_model.", "first_stage_model.")
    ):
        remedy = "Convert them: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
        return "weights with the names of the original single file, not of diffusers", remedy
    words = first.split(".")
    for surplus in [words[: i + 1] for i in range(2)] + [[word] for word in words[1:-1]]:
        text = ".".join(surplus) + "."
        bare = {
            canonical_name(component, re.sub(rf"(^|\.){re.escape(text)}", r"\1", name)) for name in stored
        }
        if len(bare & expected.keys()) > len(expected) / 2:
            remedy = "Save the network inside (accelerate's unwrap_model; _orig_mod of a compiled one)"
            return f"the names of the tensors hold `{text}`, which a wrapper around the network added", remedy
    return None


def check_together(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Raise ``CheckpointError`` unless the components fit each other."""
    unet, latents = configs["unet"], configs["vae"].get("latent_channels", 4)
    encoders = [name for name in configs if name in TEXT_ENCODERS]
    width = sum(configs[name].get("hidden_size", 512) for name in encoders)
    fits = [
        ("cross_attention_dim", 1280, " + ".join(f"{name}.hidden_size" for name in encoders), width),
        ("in_channels", 4, "vae.latent_channels", latents),
        ("out_channels", 4, "vae.latent_channels", latents),
    ]
    if (channels := configs["vae"].get("out_channels", 3)) != 3:
        remedy = "6 channels are of LDM3D, whose pictures have a depth: it is not supported (yet)"
        what = "an autoencoder whose pictures are not red, green and blue"
        raise CheckpointError(what, file=folder, key="vae.out_channels", found=channels, remedy=remedy)
    if second := configs.get("text_encoder_2"):
        width = second.get("projection_dim", 512) + 6 * unet["addition_time_embed_dim"]
        words = "text_encoder_2.projection_dim + 6 * unet.addition_time_embed_dim"
        fits.append(("projection_class_embeddings_input_dim", 0, words, width))
    for key, default, words, other_value in fits:
        value = text_width(unet) if key == "cross_attention_dim" else unet.get(key, default)
        other = words.split(".")[0]
        if key == "in_channels" and unet.get("out_channels", default) == other_value != value:
            raise CheckpointError(
                "a U-Net with other inputs than latents and text, which is not supported (yet)",
                file=folder,
                key="unet.in_channels",
                found=value,
                remedy="9 channels are of inpainting, 8 of InstructPix2Pix, 7 of upscaling, 5 of depth",
            )
        if value != other_value:
            raise CheckpointError(
                f"unet and {other} do not fit together",
                file=folder,
                key=f"unet.{key}",
                found=f"{value}, but {words} is {other_value}",
                remedy="Take them from checkpoints of one family",
            )


def _remedy(component: str, shapes: Shapes, config_file: Path) -> str:
    """Say what to do about weights of another network; name that network where it is a known one."""
    for name in ARCHITECTURES if component == "unet" else ():
        if shapes == {key: tuple(value.shape) for key, value in unet_skeleton(name).state_dict().items()}:
            # Distillation scripts are known to save the teacher's configuration with the student.
            return f"These are the tensors of {name}: put its configuration into {config_file.name}"
    return "Save the configuration of the network that was trained, beside its weights"


def _check_tensors(component: str, weights: Weights) -> None:
    """Raise ``CheckpointError`` for values that are not finite, not floats, or twice there and different."""
    import torch

    places, read = dict[str, tuple[Path, str]](), open_tensors(weights)
    for name, file, value in read_tensors(weights):
        known = canonical_name(component, name)
        if known in places and not torch.equal(value, read(*places[known])):
            other, called = places[known]
            what = f"stored twice with different values: as {called} in {other.name} too"
            raise CheckpointError(
                what, file=file, key=name, remedy=f"Delete the wrong one, or {COPY_AGAIN.lower()}"
            )
        places[known] = file, name
        if known in _BUFFERS:
            continue
        if not value.dtype.is_floating_point:
            what = "integers in the place of weights, and no quantization_config that says how to read them"
            remedy = "Save the weights in float16 or more: a cast of these draws other images"
            raise CheckpointError(what, file=file, key=name, found=str(value.dtype), remedy=remedy)
        if value.numel() == 0:
            continue
        # The extremes carry NaN and infinity through, in one pass and without a mask as large as the tensor.
        low, high = torch.aminmax(value if value.dtype.itemsize > 1 else value.float())
        if not (torch.isfinite(low) and torch.isfinite(high)):
            bad = int((~torch.isfinite(value.float())).sum())
            what = f"NaN or infinity in {bad:,} of {value.numel():,} values"
            remedy = "Export the checkpoint again from a step before the loss diverged"
            raise CheckpointError(what, file=file, key=name, remedy=remedy)


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
