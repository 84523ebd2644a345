"""Say by the header of a LoRA's file which layers of its base it changes; no weights are loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.models.layout import FUSE_PEFT, PEFT, SD, SDXL, Pipeline
from pytest_sdbench.models.made import Parts, explained
from pytest_sdbench.models.weights import Tensor, Weights, read_json, read_shapes, shapes_of_file

_MATRIX = r"lora.*(\.|_)(down|up|A|B)(\.default)?\.weight$|\.alpha$"
"""How the names end of all that diffusers reads: of its own forms, of peft's and of kohya's."""
_FIRST = r"(\.|_)(down|A)(\.default)?\.weight$"
_SECOND = r"(\.|_)(up|B)(\.default)?\.weight$"
_BEHIND = rf"[._]lora(_linear_layer)?({_FIRST}|{_SECOND})"
"""What follows the name of a layer."""

_COMPONENT = ("unet.", "text_encoder", "lora_unet_", "lora_te")
"""How the names begin of layers whose component diffusers can tell."""


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


@dataclass(frozen=True)
class Layer:
    """A layer of a LoRA: two matrices, whose product is added to the weight of a layer of the base."""

    component: str
    place: str
    """The name of the layer of the base, without ``text_model.``."""
    rank: int
    alpha: str | None
    """The tensor in the file that the product is scaled by, over the rank; None where it is not scaled so."""


def lora_layers(file: Path, base: Base) -> list[Layer]:
    """Return the layers of the LoRA in a file.

    Raise ``CheckpointError`` where the file holds anything that would be left out, where one of its layers
    has no place in the base or another shape than there, or where the base is quantised.
    """
    for name in base.pipeline.adapted:
        config = base.parts[name] / "config.json"
        if read_json(config).get("quantization_config") is not None:
            what, remedy = "a LoRA cannot be fused into quantised weights", "Give the base in float16 or more"
            raise CheckpointError(what, file=config, key="quantization_config", remedy=remedy)
    shapes = shapes_of_file(file)
    pairs = _pairs(file, shapes)
    there = {
        f"{component}.{name.removeprefix('text_model.')}": tensor.shape
        for component in base.pipeline.adapted
        for name, tensor in read_shapes(base.weights[component]).items()
    }
    places = _places(file, shapes, base)
    found, lost, other = list[Layer](), list[str](), list[tuple[str, str]]()
    for first, second in pairs.items():
        place, (down, up) = places.get(first, first), (shapes[first].shape, shapes[second].shape)
        weight = there.get(f"{place}.weight")
        if weight is None:
            lost.append(first)
            continue
        rank = down[0] if down else 0
        if (down, up) != ((rank, *weight[1:]), (weight[0], rank, *(1 for _ in weight[2:]))):
            other.append((first, f"matrices {down} and {up}, and {place} of the base is {weight}"))
        alpha = _alpha(first)
        component, _, name = place.partition(".")
        found.append(Layer(component, name, rank, alpha if alpha in shapes else None))
    remedy = "Give the base that it was trained on"
    if other:
        what = f"{len(other):,} of the {len(pairs):,} layers of the LoRA have other shapes than {base.spec}"
        raise CheckpointError(what, file=file, key=other[0][0], found=other[0][1], remedy=remedy)
    if lost:
        what = f"{len(lost):,} of the {len(pairs):,} layers of the LoRA are of no layer of its base"
        raise CheckpointError(what, file=file, key=lost[0], found=f"on {base.spec}", remedy=remedy)
    return found


def _pairs(file: Path, shapes: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the two matrices of each layer; raise ``CheckpointError`` for what is none of a LoRA."""
    odd = sorted(name for name in shapes if not re.search(_MATRIX, name))
    first, second = (
        {re.sub(end, "", name): name for name in sorted(shapes) if re.search(end, name)}
        for end in (_FIRST, _SECOND)
    )
    if odd or not first:
        what = "not a LoRA that diffusers reads whole: it holds other tensors than low-rank matrices"
        remedy = "DoRA, LoHa, LoKr and trained biases are not supported (yet): fuse it where it was trained"
        raise CheckpointError(
            what, file=file, key=odd[0] if odd else None, found=f"{len(odd):,}", remedy=remedy
        )
    if lone := sorted(first.keys() ^ second.keys()):
        several = (
            "layers of the LoRA have one of their" if len(lone) > 1 else "layer of the LoRA has one of its"
        )
        what = f"{len(lone):,} {several} two matrices alone"
        remedy = "The file was cut short, or merged badly: save it again where it was trained"
        raise CheckpointError(what, file=file, key=(first | second)[lone[0]], remedy=remedy)
    whole = next((name for name in shapes if not (shapes[name].floats or name.endswith(".alpha"))), None)
    if whole is not None:
        remedy = "Save the LoRA in float16 or more"
        raise CheckpointError("integers in the place of weights", file=file, key=whole, remedy=remedy)
    alphas = {name for name in shapes if name.endswith(".alpha")}
    known = {_alpha(name) for name in first.values()}
    if lone := sorted(name for name in alphas if name not in known or math.prod(shapes[name].shape) != 1):
        what = f"{len(lone):,} of the {len(alphas):,} alphas are no single number of a layer of the LoRA"
        remedy = "The file was cut short, or merged badly: save it again where it was trained"
        raise CheckpointError(what, file=file, key=lone[0], remedy=remedy)
    if not any(name.startswith(_COMPONENT) for name in first.values()):
        raise _nameless(file, min(first.values()))
    return {first[layer]: second[layer] for layer in first}


def _alpha(matrix: str) -> str:
    return re.sub(_BEHIND, "", matrix) + ".alpha"


def _nameless(file: Path, key: str) -> CheckpointError:
    """Return the error of a LoRA that is of one network, and whose names do not say of which."""
    if (file.parent / "adapter_config.json").is_file() or key.startswith("base_model."):
        what = f"this is {PEFT}; it is not supported (yet)"
        return CheckpointError(what, file=file, key=key, remedy=FUSE_PEFT)
    what = "the names in the LoRA do not say of which component its layers are"
    remedy = (
        "If they are the U-Net's, fuse it into its base and save that: "
        f'pipeline.unet.load_lora_adapter(FOLDER, weight_name="{file.name}", prefix=None), '
        "pipeline.unet.fuse_lora(), pipeline.unet.unload_lora(), pipeline.save_pretrained(...)"
    )
    return CheckpointError(what, file=file, key=key, remedy=remedy)


def _places(file: Path, shapes: Mapping[str, Tensor], base: Base) -> dict[str, str]:
    """Return where the layers of a LoRA lie, by the name of each tensor: ``component.layer``.

    diffusers renames what kohya's scripts call otherwise; it does so to tensors without values as well.
    """
    import diffusers
    import torch

    blank = {
        name: torch.empty(tensor.shape, device="meta")
        for name, tensor in shapes.items()
        if not name.endswith(".alpha")
    }
    called = {id(value): name for name, value in blank.items()}
    options = {}
    if base.pipeline is SDXL:  # as its load_lora_weights does, for the names of the original layout
        depth = read_json(base.parts["unet"] / "config.json").get("layers_per_block", 2)
        options["unet_config"] = SimpleNamespace(layers_per_block=depth)
    with explained(file, "lora_state_dict"):
        named, _ = getattr(diffusers, base.pipeline.name).lora_state_dict(dict(blank), **options)
    return {called[id(value)]: _place(name) for name, value in named.items()}


def _place(name: str) -> str:
    """Return the layer that one of the matrices changes, by the name that diffusers gives the matrix."""
    layer = re.sub(_BEHIND, "", name).replace(".processor.", ".")
    if layer.startswith("unet."):
        return re.sub(r"\.to_out$", ".to_out.0", layer)
    return re.sub(r"\.to_(q|k|v|out)$", r".\1_proj", layer.replace(".text_model.", "."))
