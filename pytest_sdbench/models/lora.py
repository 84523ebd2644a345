"""Fuse a LoRA into its base, with diffusers' own loader, as a folder in diffusers layout."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.models.loading import load_model, quiet
from pytest_sdbench.models.lora_layers import Base, Layer, lora_layers
from pytest_sdbench.models.made import copy_settings, explained, once, save
from pytest_sdbench.models.weights import read_file

if TYPE_CHECKING:
    import torch

_DIGEST = "lora.sha256"


def fuse_lora(file: Path, base: Base) -> tuple[Path, str, str]:
    """Fuse the LoRA in a file at scale 1; return the folder of the result, a note on it, and a digest.

    The digest is of the matrices that the base gets, and of their scales: the same for every form of a file.

    U-Net and text encoders are loaded, fused and saved in float32, which is what `fuse_lora` and
    `save_pretrained` make of them. Raise ``Unavailable`` without peft, and ``CheckpointError`` for NaN and
    infinity, and where `lora_layers` does.
    """
    layers = lora_layers(file, base)
    if importlib.util.find_spec("peft") is None:
        remedy = 'Install it: pip install "pytest-sdbench[training]"'
        raise Unavailable("a LoRA is loaded by peft, which is not installed here", file=file, remedy=remedy)

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

    ranks = sorted({layer.rank for layer in layers})
    told = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    note = f"LoRA on {base.spec}: {file.name}, {len(layers):,} layers of {told}, fused at scale 1"
    folder = once(("lora", file, base.scheduler, *base.settings.items()), [file, *base.parts.values()], make)
    return folder, note, (folder / _DIGEST).read_text(encoding="ascii")


def _fused(file: Path, base: Base, layers: list[Layer]) -> tuple[dict[str, Any], str]:
    """Return the networks that the LoRA changes, with it fused in, and its digest."""
    import diffusers
    import torch

    of, tensors = base.pipeline, read_file(file)
    _check_finite(file, tensors)
    networks = {
        name: load_model(name, base.parts[name], base.weights[name], torch.float32) for name in of.adapted
    }
    others = dict.fromkeys(name for name in of.parts if name not in of.adapted)
    pipeline = getattr(diffusers, of.name)(**networks, **others, **of.options)
    with explained(file, "load_lora_weights"):
        if any(layer.alpha for layer in layers):
            # Where alphas differ, diffusers (0.42) gives the layers of attention the commonest one.
            matrices = {name: each for name, each in tensors.items() if not name.endswith(".alpha")}
            pipeline.load_lora_weights(matrices)
        else:
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    loaded = {
        (name, place.removeprefix("text_model.")): module
        for name, network in networks.items()
        for place, module in network.named_modules()
        if hasattr(module, "lora_A")
    }
    if odd := sorted(loaded.keys() ^ {(layer.component, layer.place) for layer in layers}):
        what = f"load_lora_weights reads {len(odd):,} of the layers otherwise than the file names them"
        remedy = "Save it again with the installed version of diffusers: save_lora_weights"
        raise CheckpointError(what, file=file, key=".".join(odd[0]), remedy=remedy)
    for layer in layers:
        if layer.alpha is not None:
            module = loaded[layer.component, layer.place]
            for adapter in module.lora_A:
                module.scaling[adapter] = tensors[layer.alpha].item() / layer.rank
    digest = _digest_of_layers(networks)
    changed = [name for name in of.adapted if any(layer.component == name for layer in layers)]
    with explained(file, "fuse_lora"):
        pipeline.fuse_lora(components=changed)
        pipeline.unload_lora_weights()
    return {name: networks[name] for name in changed}, digest


def _check_finite(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise ``CheckpointError`` for values of a LoRA that are no numbers."""
    import torch

    for name, tensor in tensors.items():
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
