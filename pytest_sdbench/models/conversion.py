"""Convert a single file in the original layout to a folder, with diffusers' own loader."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.models.layout import COMPONENTS, SD, SINGLE_FILES, no_checkpoint
from pytest_sdbench.models.loading import quiet
from pytest_sdbench.models.made import Parts, copy_settings, explained, once, save
from pytest_sdbench.models.skeleton import text_config, text_encoder_skeleton
from pytest_sdbench.models.weights import Tensor, read_json, read_single_file, shapes_of_file

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
"""How the names of each component's tensors begin in the original layout."""
_XL, _EMA = "conditioner.embedders.", "model_ema."
_OPEN_CLIP = re.compile(
    r"cond_stage_model\.model\.(positional_embedding$|token_embedding\.weight$|ln_final\."
    r"|transformer\.resblocks\.(?P<layer>\d+)\.)"
)
"""What a text encoder is made of in files of SD v2."""
_BARE_CLIP = re.compile(r"^cond_stage_model\.transformer\.(?=(embeddings|encoder|final_layer_norm)\.)")
"""How the names of SD v1's text encoder begin in old merges, where ``text_model.`` follows elsewhere."""


def convert_single_file(file: Path, parts: Parts, scheduler: str) -> tuple[Path, tuple[str, ...]]:
    """Convert a file in the original layout; return the folder, and notes on what was read.

    A file holds weights alone: configurations, tokenizer and scheduler (``scheduler`` is its class) are those
    of ``parts``. The networks are made in float32, whatever the file stores. The notes tell of tensors that
    belong to no network, and that the text encoder does not take. Raise ``CheckpointError`` where the file
    lacks a component, does not fit the configurations, holds tensors that U-Net or auto-encoder do not have,
    or is no plain pickle of tensors.
    """
    shapes = shapes_of_file(file)
    held = {name: _values(shapes, prefix) for name, prefix in _PREFIXES.items()}
    if lacking := [name for name, count in held.items() if not count]:
        raise _unsupported(file, shapes, lacking)
    inside = [name for name in shapes if name.startswith(tuple(_PREFIXES.values()))]
    whole = [name for name in inside if not shapes[name].floats and not name.endswith("position_ids")]
    if whole:
        what, remedy = "integers in the place of weights", "Save the weights in float16 or more"
        raise CheckpointError(what, file=file, key=whole[0], remedy=remedy)
    rest = sorted(shapes.keys() - set(inside)) + _text_rest(file, inside, parts["text_encoder"])
    notes = [f"single file: {file.name}, read with the configuration of the checkpoint that it stands on"]
    if rest:
        what = "model_ema" if any(name.startswith(_EMA) for name in rest) else rest[0]
        notes.append(f"not looked at: {len(rest):,} tensors of {file.name}, e.g. of {what}")

    def make(folder: Path) -> None:
        from diffusers import StableDiffusionPipeline

        copy_settings(SD, {}, parts, scheduler, folder)
        read = _as_known(file, inside, folder)
        with explained(file, "StableDiffusionPipeline.from_single_file"):
            pipeline = StableDiffusionPipeline.from_single_file(
                str(read), config=str(folder), local_files_only=True
            )
        if read != file:
            read.unlink()
        for name in COMPONENTS:
            model = getattr(pipeline, name)
            _check_loaded(file, name, model, held[name])
            with quiet():
                save(model, folder / name)

    return once(("file", file, scheduler), [file, *parts.values()], make), tuple(notes)


def _as_known(file: Path, names: list[str], folder: Path) -> Path:
    """Return the file, or a copy in ``folder`` for diffusers, which does not read every form.

    It knows endings in small letters, and CLIP's names with ``text_model.``, which old merges lack.
    """
    import torch

    if file.suffix in SINGLE_FILES and not any(map(_BARE_CLIP.match, names)):
        return file
    copy = folder / "single.ckpt"
    torch.save({_BARE_CLIP.sub(r"\g<0>text_model.", k): v for k, v in read_single_file(file).items()}, copy)
    return copy


def _text_rest(file: Path, names: list[str], folder: Path) -> list[str]:
    """Return what the text encoder of a file has and the configured one does not take, positions aside.

    The text encoder of SD v2 has a last layer and a projection that are not used.
    """
    config = text_config(read_json(folder / "config.json"))
    with explained(file, "CLIPTextModel"):
        bare = {name.removeprefix("text_model.") for name in text_encoder_skeleton(config).state_dict()}
    prefix = f"{_PREFIXES['text_encoder']}transformer."
    taken = {f"{prefix}{part}{name}" for name in bare for part in ("", "text_model.")}
    rest = []
    for name in names:
        found = _OPEN_CLIP.match(name)
        used = found is not None and int(found["layer"] or 0) < config.get("num_hidden_layers", 12)
        if name.startswith(_PREFIXES["text_encoder"]) and not (
            used or name in taken or name.endswith("position_ids")
        ):
            rest.append(name)
    return sorted(rest)


def _unsupported(file: Path, shapes: Mapping[str, Tensor], lacking: list[str]) -> CheckpointError:
    if any("lora" in name for name in shapes):
        return no_checkpoint(file)
    found = f"{len(shapes):,} tensors, e.g. {min(shapes)}" if shapes else "no tensors"
    if any(name.startswith(_XL) for name in shapes):
        what, remedy = "a single file of SDXL", "Convert it: StableDiffusionXLPipeline.from_single_file(FILE)"
    elif shapes and len(shapes) <= 2 and all(len(each.shape) <= 2 for each in shapes.values()):
        what = "a textual inversion, which is an addition to a text encoder"
        remedy = "Supported is what changes a network: a U-Net, a LoRA, a whole checkpoint"
    elif len(lacking) == len(_PREFIXES):
        what = "not a single file in the layout of the original Stable Diffusion"
        remedy = "Weights of one network belong beside its config.json: give that folder"
    else:
        what = f"a single file without the weights of {' and '.join(lacking)}"
        remedy = "Give a file that holds the whole checkpoint, or a folder in diffusers layout"
    return CheckpointError(
        f"this is {what}; it is not supported (yet)", file=file, found=found, remedy=remedy
    )


def _values(shapes: Mapping[str, Tensor], prefix: str) -> int:
    return sum(math.prod(tensor.shape) for name, tensor in shapes.items() if name.startswith(prefix))


def _check_loaded(file: Path, component: str, model: Any, held: int) -> None:
    """Raise ``CheckpointError`` unless a network was in the file, whole and with nothing besides.

    The loader leaves out what it does not know, with a warning. What that is of the text encoder is noted, as
    that of SD v2 has a last layer that is not used.
    """
    remedy = "Give it with the checkpoint that it was made of: {base: ..., file: ...}"
    missing = [name for name, value in model.named_parameters() if value.is_meta]
    if missing:
        what = f"{len(missing):,} tensors of the {component} are missing"
        raise CheckpointError(what, file=file, key=missing[0], remedy=remedy)
    known = sum(value.numel() for value in model.parameters())
    if component != "text_encoder" and known != held:
        what = f"the file and the configuration of the {component} disagree"
        found = f"{held:,} values in the file, {known:,} in the network"
        raise CheckpointError(what, file=file, key=component, found=found, remedy=remedy)
