"""Lay out the networks of a recipe from their configurations, with no weights loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.models.architectures import ARCHITECTURES, SD_V1_TEXT_ENCODER, SD_V1_VAE
from pytest_sdbench.models.specs import EMBEDDED
from training.recipes.load import load_recipe, recipe_names
from training.recipes.schema import EXTRACTORS, Recipe
from training.students.fit import check_fit
from training.students.networks import find

Config = Mapping[str, Any]
Role = Literal["learns", "frozen", "average"]


@dataclass(frozen=True)
class Configs:
    """The configurations of a checkpoint's networks."""

    unet: Config
    text_encoder: Config
    vae: Config
    origin: str
    """Where they come from, to be shown."""


@dataclass(frozen=True)
class Network:
    """One network of a run."""

    name: str
    role: Role
    parameters: int
    tensors: int
    learned: int
    """Parameters that the optimiser changes; with LoRA those of the adapters."""
    resident: bool
    """Whether it stays on the device through the run."""
    note: str = ""


@dataclass(frozen=True)
class Blueprint:
    """All networks of a run."""

    networks: tuple[Network, ...]
    origin: str
    teacher: Configs | None = None
    """The configurations of the teacher, or those that a recipe from scratch gives; None without a U-Net."""
    student: Config | None = None
    """The configuration of the U-Net that learns."""

    @property
    def learned(self) -> int:
        """Parameters that the optimiser changes."""
        return sum(network.learned for network in self.networks)

    def parameters(self, role: Role) -> int:
        """Parameters of the networks of a role."""
        return sum(network.parameters for network in self.networks if network.role == role)


def blueprint(recipe: Recipe) -> Blueprint:
    """Return the networks of a recipe; read configurations at most: no weights, and nothing from the hub."""
    objective = recipe.objective
    if objective.kind in EXTRACTORS:
        import torch

        from training.embedded.build import build_extractor

        with torch.device("meta"):
            module = build_extractor(recipe).model
        name = "open_clip model" if objective.kind == "clip" else objective.kind
        return Blueprint((_network(name, module, "learns", resident=True),), "trained from scratch")
    configs = teacher_configs(recipe)
    student = unet_of(recipe, configs)
    lora = getattr(objective, "lora", None)
    text_learns = getattr(objective, "train_text_encoder", False)
    compared = objective.kind in ("distillation", "consistency")

    from pytest_sdbench.models.skeleton import text_encoder_skeleton, unet_skeleton, vae_skeleton

    unet, text_encoder = unet_skeleton(student), text_encoder_skeleton(configs.text_encoder)
    networks = [_network("U-Net", unet, "learns", True, lora and adapter_parameters(unet, "unet", lora.rank))]
    if objective.kind == "consistency":
        note = f"follows the U-Net, {objective.target_decay:g} a step"
        networks.append(_network("target U-Net", unet, "average", True, note=note))
    if getattr(objective, "readout", 0):
        note = "read the picture out of the inner levels; not kept"
        networks.append(_network("readouts", _readouts(unet), "learns", True, note=note))
    if compared:
        networks.append(_network("teacher's U-Net", unet_skeleton(configs.unet), "frozen", True))
    if text_learns:
        adapters = lora and adapter_parameters(text_encoder, "text_encoder", lora.rank)
        networks.append(_network("text encoder", text_encoder, "learns", True, adapters))
    else:
        cached = recipe.data.cache_text
        note = "on the device only until its states are cached" if cached else ""
        networks.append(_network("text encoder", text_encoder, "frozen", not cached, note=note))
    cached = recipe.data.cache
    note = "on the device only until latents are cached, and for previews" if cached else ""
    networks.append(_network("VAE", vae_skeleton(configs.vae), "frozen", not cached, note=note))
    return Blueprint(tuple(networks), configs.origin, configs, student)


def unet_of(recipe: Recipe, configs: Configs) -> Config:
    """Return the configuration of the U-Net that learns."""
    if recipe.teacher is None:
        return configs.unet
    from training.students.block_removal import student_config

    embedding = recipe.objective.embedding if recipe.objective.kind == "consistency" else None
    return student_config(configs.unet, recipe.student.remove, guidance_embedding=embedding)


def teacher_configs(recipe: Recipe) -> Configs:
    """Return the configurations that a recipe starts from.

    A teacher that is not on this machine is taken for what its card says, or what the recipe of that name
    makes, or else Stable Diffusion v1; ``origin`` says so. Raise CheckpointError for a folder that is none.
    """
    if recipe.teacher is None:
        return _scratch(recipe)
    spec = recipe.teacher
    try:
        checkpoint = find(spec, key="teacher")
    except Unavailable:
        return _assumed(spec)
    except CheckpointError:
        name = spec if isinstance(spec, str) else spec["unet"]
        if name.startswith(EMBEDDED) and name.removeprefix(EMBEDDED) in recipe_names():
            return _assumed(spec)
        raise
    from training.students.networks import check_family

    check_family(checkpoint)
    return Configs(
        checkpoint.unet_config, checkpoint.config("text_encoder"), checkpoint.config("vae"), checkpoint.spec
    )


def _assumed(spec: str | Mapping[str, str]) -> Configs:
    text = spec if isinstance(spec, str) else spec["unet"]
    shown = spec if isinstance(spec, str) else f"{spec['base']} with the U-Net of {text}"
    here, name = (
        f"{shown}, which is not on this machine: taken for",
        text.removeprefix(EMBEDDED).split("@")[0],
    )
    if text.startswith(EMBEDDED):
        recipe = load_recipe(name)
        before = teacher_configs(recipe)
        origin = f"{here} what the recipe {name} makes"
        return Configs(unet_of(recipe, before), before.text_encoder, before.vae, origin)
    architecture, card = _by_card(name) or ("sd-v1", "stable-diffusion-v1-4")
    origin = f"{here} the networks of the card {card}"
    return Configs(ARCHITECTURES[architecture], SD_V1_TEXT_ENCODER, SD_V1_VAE, origin)


def _by_card(name: str) -> tuple[str, str] | None:
    """Return the architecture that a shipped card gives for a repository of the hub, and the card's name."""
    from pytest_sdbench.base.paths import reference
    from pytest_sdbench.cards.card import read_card

    for path in sorted((reference() / "cards").glob("*.md")):
        if name not in path.read_text(encoding="utf-8"):
            continue  # reading a card takes a while
        card = read_card(path)
        if isinstance(card.checkpoint, str) and card.checkpoint.split("@")[0] == name:
            return (card.architecture, card.name) if isinstance(card.architecture, str) else None
    return None


def _scratch(recipe: Recipe) -> Configs:
    networks = recipe.student.networks
    assert networks is not None  # the recipe was checked
    if isinstance(networks.text_encoder, Mapping):
        from training.students.scratch import text_config
        from training.students.tokenizer import build_tokenizer

        text = text_config(dict(networks.text_encoder), len(build_tokenizer())).to_dict()
    else:
        key = "student.networks.text_encoder" if networks.text_encoder else "student.networks.vae"
        text = _lent(networks.text_encoder or networks.vae, "text_encoder", key)
    vae = _lent(networks.vae, "vae", "student.networks.vae")
    check_fit(networks.unet, text, vae)
    return Configs(networks.unet, text, vae, "trained from scratch")


def _lent(spec: str | dict[str, str], name: str, key: str) -> Config:
    """Return the configuration of a network of a checkpoint, or of a folder that may hold it alone."""
    file = Path(spec, name, "config.json") if isinstance(spec, str) else None
    if file is None or not file.is_file():
        return find(spec, key=key).config(name)
    found: Config = json.loads(file.read_text(encoding="utf-8"))
    return found


def _readouts(unet: Any) -> Any:
    """Return what reads the picture out of the inner levels of a U-Net, without weights."""
    import torch

    from training.students.feature_taps import Readout, inner_taps

    with torch.device("meta"):
        made = unet.config["in_channels"]
        return torch.nn.ModuleList(Readout(wide, made, covers) for wide, covers in inner_taps(unet).values())


def _network(
    name: str, module: Any, role: Role, resident: bool, adapters: int | None = None, note: str = ""
) -> Network:
    counts = [parameter.numel() for parameter in module.parameters()]
    learned = 0 if role != "learns" else sum(counts) if adapters is None else adapters
    if adapters is not None:
        note = f"by {adapters:,} parameters of low-rank adapters"
    return Network(name, role, sum(counts), len(counts), learned, resident, note)


def adapter_parameters(module: Any, component: str, rank: int) -> int:
    """Count the parameters of adapters: two narrow matrices for each projection of attention."""
    from training.objectives.dreambooth_pictures import ADAPTED

    ends = tuple(f".{name}" for name in ADAPTED[component])
    layers = [layer for name, layer in module.named_modules() if name.endswith(ends)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)
