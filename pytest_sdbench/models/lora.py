"""Fuse a LoRA into the checkpoint that it stands on, with diffusers' own loader."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.models.conversion import Parts, copy_settings, explained, once, save
from pytest_sdbench.models.layout import COMPONENTS
from pytest_sdbench.models.loading import load_model, quiet
from pytest_sdbench.models.weights import Tensor, Weights, read_json, shapes_of_file

_FUSED = ("unet", "text_encoder")
_MATRIX = r"lora.*(\.|_)(down|up|A|B)(\.default)?\.weight$|\.alpha$"
"""How the names end of all that diffusers reads: of its own forms, of peft's and of kohya's."""
_FIRST = r"(\.|_)(down|A)(\.default)?\.weight$"


@dataclass(frozen=True)
class Base:
    """The checkpoint that a LoRA stands on."""

    spec: str
    parts: Parts
    weights: Mapping[str, Weights]
    scheduler: str
    """Class of the scheduler."""


def fuse_lora(file: Path, base: Base) -> tuple[Path, tuple[str, ...]]:
    """Fuse the LoRA in a file at scale 1; return the folder of the result, and a note on what it is.

    U-Net and text encoder are loaded, fused and saved in float32, which is what `fuse_lora` and
    `save_pretrained` make of them. Raise ``Unavailable`` without peft, and ``CheckpointError`` where the file
    holds anything that would be left out, or where the base is quantised.
    """
    shapes = shapes_of_file(file)
    layers = _layers(file, shapes)
    if importlib.util.find_spec("peft") is None:
        remedy = 'Install it: pip install "pytest-sdbench[training]"'
        raise Unavailable("a LoRA is loaded by peft, which is not installed here", file=file, remedy=remedy)
    for name in _FUSED:
        config = base.parts[name] / "config.json"
        if read_json(config).get("quantization_config") is not None:
            what, remedy = "a LoRA cannot be fused into quantised weights", "Give the base in float16 or more"
            raise CheckpointError(what, file=config, key="quantization_config", remedy=remedy)

    def make(folder: Path) -> None:
        copy_settings(base.parts, base.scheduler, folder)
        networks = _fused(file, base, layers)
        for name in COMPONENTS:
            if name in networks:
                with quiet():
                    save(networks[name], folder / name)
                continue
            weights = base.weights[name]
            for each in (*weights.files, *([weights.index] if weights.index else [])):
                (folder / name / each.name).symlink_to(each.resolve())

    ranks = sorted({min(shapes[name].shape[:2]) for name in layers})
    told = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    note = f"LoRA on {base.spec}: {file.name}, {len(layers):,} layers of {told}, fused at scale 1"
    folder = once(("lora", file, base.scheduler), [file, *base.parts.values()], make)
    return folder, (note,)


def _layers(file: Path, shapes: Mapping[str, Tensor]) -> list[str]:
    """Return the first matrix of each layer; raise ``CheckpointError`` for what is none of a LoRA."""
    odd = sorted(name for name in shapes if not re.search(_MATRIX, name))
    layers = sorted(name for name in shapes if re.search(_FIRST, name))
    if odd or not layers:
        what = "not a LoRA that diffusers reads whole: it holds other tensors than low-rank matrices"
        remedy = "DoRA, LoHa, LoKr and trained biases are not supported (yet): fuse it where it was trained"
        raise CheckpointError(
            what, file=file, key=odd[0] if odd else None, found=f"{len(odd):,}", remedy=remedy
        )
    whole = next((name for name in shapes if not shapes[name].floats), None)
    if whole is not None:
        remedy = "Save the LoRA in float16 or more"
        raise CheckpointError("integers in the place of weights", file=file, key=whole, remedy=remedy)
    return layers


def _fused(file: Path, base: Base, layers: list[str]) -> dict[str, Any]:
    """Return the networks that the LoRA changes, with it fused in."""
    import torch
    from diffusers import StableDiffusionPipeline

    networks = {
        name: load_model(name, base.parts[name], base.weights[name], torch.float32) for name in _FUSED
    }
    others = dict.fromkeys(("vae", "tokenizer", "scheduler", "safety_checker", "feature_extractor"))
    pipeline = StableDiffusionPipeline(**networks, **others, requires_safety_checker=False)
    with explained(file, "load_lora_weights"):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    places = {name: sum(hasattr(each, "lora_A") for each in networks[name].modules()) for name in _FUSED}
    changed = [name for name in _FUSED if places[name]]
    if (found := sum(places.values())) != len(layers):
        what = (
            f"{len(layers) - found:,} of the {len(layers):,} layers of the LoRA are of no layer of its base"
        )
        remedy = "Give the base that it was trained on"
        raise CheckpointError(what, file=file, found=f"on {base.spec}", remedy=remedy)
    with explained(file, "fuse_lora"):
        pipeline.fuse_lora(components=changed)
        pipeline.unload_lora_weights()
    return {name: networks[name] for name in changed}
