"""Fuse a LoRA into its base, with diffusers' own loader, as a folder in diffusers layout."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.models.layout import SD, Pipeline
from pytest_sdbench.models.loading import load_model, quiet
from pytest_sdbench.models.made import Parts, copy_settings, explained, once, save
from pytest_sdbench.models.weights import Tensor, Weights, read_file, read_json, shapes_of_file

_MATRIX = r"lora.*(\.|_)(down|up|A|B)(\.default)?\.weight$|\.alpha$"
"""How the names end of all that diffusers reads: of its own forms, of peft's and of kohya's."""
_FIRST = r"(\.|_)(down|A)(\.default)?\.weight$"
_SECOND = r"(\.|_)(up|B)(\.default)?\.weight$"


_COMPONENT = ("unet.", "text_encoder", "lora_unet_", "lora_te")
"""How the names begin of layers whose component diffusers can tell."""
_DIGEST = "lora.sha256"


@dataclass(frozen=True)
class Base:
    """The checkpoint that a LoRA stands on."""

    spec: str
    parts: Parts
    weights: Mapping[str, Weights]
    scheduler: str
    """Class of the scheduler."""
    pipeline: Pipeline = SD
    settings: Mapping[str, bool] = field(default_factory=dict)
    """What its ``model_index.json`` says of how it draws."""


def fuse_lora(file: Path, base: Base) -> tuple[Path, str, str]:
    """Fuse the LoRA in a file at scale 1; return the folder of the result, a note on it, and a digest.

    The digest is of the matrices that the base gets, and of their scales: the same for every form of a file.

    U-Net and text encoders are loaded, fused and saved in float32, which is what `fuse_lora` and
    `save_pretrained` make of them. Raise ``Unavailable`` without peft, and ``CheckpointError`` where the file
    holds anything that would be left out, or where the base is quantised.
    """
    shapes = shapes_of_file(file)
    layers = _layers(file, shapes)
    if importlib.util.find_spec("peft") is None:
        remedy = 'Install it: pip install "pytest-sdbench[training]"'
        raise Unavailable("a LoRA is loaded by peft, which is not installed here", file=file, remedy=remedy)
    for name in base.pipeline.adapted:
        config = base.parts[name] / "config.json"
        if read_json(config).get("quantization_config") is not None:
            what, remedy = "a LoRA cannot be fused into quantised weights", "Give the base in float16 or more"
            raise CheckpointError(what, file=config, key="quantization_config", remedy=remedy)

    def make(folder: Path) -> None:
        copy_settings(base.pipeline, base.settings, base.parts, base.scheduler, folder)
        networks, digest = _fused(file, base, layers)
        (folder / _DIGEST).write_text(digest, encoding="ascii")
        for name in base.pipeline.components:
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
    folder = once(("lora", file, base.scheduler, *base.settings.items()), [file, *base.parts.values()], make)
    return folder, note, (folder / _DIGEST).read_text(encoding="ascii")


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
    ends = [{re.sub(end, "", name) for name in shapes if re.search(end, name)} for end in (_FIRST, _SECOND)]
    if lone := sorted(ends[0] ^ ends[1]):
        name = next(
            name for name in sorted(shapes) if re.search(f"^{re.escape(lone[0])}({_FIRST}|{_SECOND})", name)
        )
        several = (
            "layers of the LoRA have one of their" if len(lone) > 1 else "layer of the LoRA has one of its"
        )
        what = f"{len(lone):,} {several} two matrices alone"
        remedy = "The file was cut short, or merged badly: save it again where it was trained"
        raise CheckpointError(what, file=file, key=name, remedy=remedy)
    whole = next((name for name in shapes if not (shapes[name].floats or name.endswith(".alpha"))), None)
    if whole is not None:
        remedy = "Save the LoRA in float16 or more"
        raise CheckpointError("integers in the place of weights", file=file, key=whole, remedy=remedy)
    return layers


def _fused(file: Path, base: Base, layers: list[str]) -> tuple[dict[str, Any], str]:
    """Return the networks that the LoRA changes, with it fused in, and its digest."""
    import diffusers
    import torch

    of = base.pipeline
    networks = {
        name: load_model(name, base.parts[name], base.weights[name], torch.float32) for name in of.adapted
    }
    others = dict.fromkeys(name for name in of.parts if name not in of.adapted)
    pipeline = getattr(diffusers, of.name)(**networks, **others, **of.options)
    _check_finite(file)
    with explained(file, "load_lora_weights"):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    places = {name: sum(hasattr(each, "lora_A") for each in networks[name].modules()) for name in of.adapted}
    changed = [name for name in of.adapted if places[name]]
    if (found := sum(places.values())) != len(layers):
        what = (
            f"{len(layers) - found:,} of the {len(layers):,} layers of the LoRA are of no layer of its base"
        )
        remedy = "Give the base that it was trained on"
        if not found and not any(name.startswith(_COMPONENT) for name in layers):
            what = "the names in the LoRA do not say of which component its layers are"
            remedy = (
                "Load it where it was trained, pipeline.unet.load_lora_adapter(FILE, prefix=None), and save "
                "that: pipeline.save_lora_weights(FOLDER, get_peft_model_state_dict(pipeline.unet))"
            )
            raise CheckpointError(what, file=file, key=layers[0], remedy=remedy)
        raise CheckpointError(what, file=file, found=f"on {base.spec}", remedy=remedy)
    digest = _digest_of_layers(networks)
    with explained(file, "fuse_lora"):
        pipeline.fuse_lora(components=changed)
        pipeline.unload_lora_weights()
    return {name: networks[name] for name in changed}, digest


def _check_finite(file: Path) -> None:
    """Raise ``CheckpointError`` for values of a LoRA that are no numbers."""
    import torch

    for name, tensor in read_file(file).items():
        if broken := int((~torch.isfinite(tensor.float())).sum()):
            what = f"NaN or infinity in {broken:,} of {tensor.numel():,} values"
            remedy = "The training of the LoRA diverged: take an earlier state of it"
            raise CheckpointError(what, file=file, key=name, remedy=remedy)


def _digest_of_layers(networks: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the loaded layers of a LoRA: their places, matrices in float32, and scales."""
    digest = hashlib.sha256()
    for component, network in networks.items():
        places = {name.removeprefix("text_model."): each for name, each in network.named_modules()}
        for place, layer in sorted(places.items()):
            for adapter in getattr(layer, "lora_A", ()):
                scale = layer.scaling[adapter]
                digest.update(f"{component}.{place} {float(scale)!r}\n".encode())
                for matrix in (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight):
                    digest.update(f"{list(matrix.shape)}\n".encode())
                    digest.update(matrix.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
