"""Find what contradicts itself in a recipe whose values are each fine alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pytest_sdbench.base.schema import Fault, suggestion
from training.recipes.schema import EXTRACTORS, Data, Recipe, Student

TIMESTEPS = 1000
"""Of the schedule that SD's networks are trained on."""
LEAVE_OUT = "Leave the key out"
_HEARS = "UNetMidBlock2DCrossAttn"


def contradictions(recipe: Recipe) -> list[Fault]:
    """Return everything that is wrong, each with its key."""
    return [
        *_schedule(recipe),
        *_teacher(recipe),
        *_student(recipe),
        *_objective(recipe),
        *_data(recipe),
        *_export(recipe),
        *_notes(recipe),
    ]


def _schedule(recipe: Recipe) -> Iterator[Fault]:
    steps, batch, micro_batch = recipe.schedule.steps, recipe.schedule.batch, recipe.schedule.micro_batch
    if batch % micro_batch:
        fits = max((n for n in range(1, min(micro_batch, batch) + 1) if batch % n == 0), default=1)
        remedy = f"Take {fits}, or another batch"
        yield Fault("schedule.micro_batch", f"does not divide the batch of {batch}", micro_batch, remedy)
    if (warmup := recipe.optimizer.warmup_steps) > steps:
        remedy = "Shorten it, or raise schedule.steps"
        yield Fault("optimizer.warmup_steps", f"longer than the run of {steps} steps", warmup, remedy)
    if recipe.watch.preview_images and not recipe.watch.prompts:
        remedy = "Give some, or watch.preview_images: 0"
        yield Fault("watch.prompts", "no prompts to draw a preview of", None, remedy)


def _teacher(recipe: Recipe) -> Iterator[Fault]:
    kind = recipe.objective.kind
    if recipe.teacher is not None:
        if kind in EXTRACTORS:
            yield Fault("teacher", f"{kind} is trained from scratch", recipe.teacher, LEAVE_OUT)
        elif recipe.student.networks is not None:
            message = "the networks come from student.networks, not from a teacher"
            yield Fault("teacher", message, recipe.teacher, "Leave one of the two out")
    elif kind in ("consistency", "distillation", "dreambooth"):
        yield Fault("teacher", f"{kind} needs one", None, "Name a checkpoint: teacher=ORG/NAME")
    elif kind == "prediction" and recipe.student.networks is None:
        message = "without a teacher nothing says which networks to train"
        remedy = "Give student.networks (unet, text_encoder, vae), or name a teacher"
        yield Fault("student.networks", message, None, remedy)


def _student(recipe: Recipe) -> Iterator[Fault]:
    kind, student = recipe.objective.kind, recipe.student
    if kind in EXTRACTORS:
        if student != Student():
            yield Fault("student", f"{kind} trains no U-Net", None, LEAVE_OUT)
        return
    if recipe.teacher is None and student.remove != "none":
        message = "there is no teacher to take blocks out of"
        yield Fault("student.remove", message, student.remove, "Name a teacher, or leave the key out")
    if kind in ("consistency", "dreambooth"):
        message = f"{kind} starts from the teacher as it is"
        if student.remove != "none":
            remedy = "Leave the key out; make the smaller student first, by distillation"
            yield Fault("student.remove", message, student.remove, remedy)
        if student.init != "teacher":
            yield Fault("student.init", message, student.init, LEAVE_OUT)
    if kind == "distillation" and recipe.teacher is not None and student == Student():
        message = "the student is the teacher: there is nothing to distil"
        yield Fault("student.remove", message, "none", "Take base, small or tiny")


def _objective(recipe: Recipe) -> Iterator[Fault]:
    objective, networks = recipe.objective, recipe.student.networks
    if objective.kind == "distillation":
        weights = objective.weights
        if not (weights.task or weights.output or weights.feature):
            yield Fault("objective.weights", "all are zero", None, "Give one of them some weight")
    elif objective.kind == "consistency":
        if objective.guidance[0] > objective.guidance[1]:
            remedy = "Write [smallest, largest]"
            yield Fault("objective.guidance", "not a range", list(objective.guidance), remedy)
        if objective.embedding % 2 or objective.embedding < 4:
            remedy = "Take an even width of at least 4: half of it are sines, half cosines"
            yield Fault("objective.embedding", "not a width", objective.embedding, remedy)
        if objective.grid_steps > TIMESTEPS:
            remedy = f"Take at most {TIMESTEPS}: timesteps of the grid lie among those of the schedule"
            yield Fault("objective.grid_steps", "more than timesteps", objective.grid_steps, remedy)
        if objective.sigma_data != 0.5:
            remedy = "Take 0.5, which diffusers' LCMScheduler draws with"
            yield Fault("objective.sigma_data", "no sampler knows it", objective.sigma_data, remedy)
    elif objective.kind == "prediction" and (share := objective.inner_captions):
        if recipe.data.kind != "scenes":
            message = "of scenes alone it is known which words name objects"
            yield Fault("objective.inner_captions", message, share, "Leave the key out")
        elif not objective.train_text_encoder:
            message = "the names alone are other text than the text encoder was trained on"
            yield Fault("objective.inner_captions", message, share, "Write train_text_encoder: true too")
        elif networks and not str(networks.unet.get("mid_block_type", _HEARS)).endswith("CrossAttn"):
            message = "the mid block hears no text, so none would hear whole captions"
            yield Fault("objective.inner_captions", message, share, f"Take mid_block_type: {_HEARS}")
    elif objective.kind == "autoencoder" and (side := objective.square):
        factor = 2 ** (len(objective.network.get("block_out_channels", (64,))) - 1)
        if side > 64 or side % factor or side < 2 * factor:
            remedy = f"Take a multiple of {factor} from {2 * factor} to 64"
            yield Fault("objective.square", "no square of whole latents within a scene", side, remedy)
    elif objective.kind == "dreambooth" and objective.prior_weight and not objective.class_images:
        message = f"a prior weight of {objective.prior_weight:g} needs class images"
        yield Fault("objective.class_images", message, 0, "Take some, such as 200, or prior_weight: 0")


def _data(recipe: Recipe) -> Iterator[Fault]:
    kind, data = recipe.objective.kind, recipe.data
    if kind in EXTRACTORS:
        yield from _whole_scenes(kind, data)
    if data.cache and kind in EXTRACTORS:
        yield Fault("data.cache", f"{kind} learns from pictures, not latents", True, "Write cache: false")
    if side := getattr(data, "close_up", None):
        yield from _close_up(data, side)
    if data.cache_text and not data.cache:
        yield Fault("data.cache_text", "text is cached beside latents", True, "Write cache: true too")
    if data.cache_text and getattr(recipe.objective, "train_text_encoder", False):
        remedy = "Write cache_text: false, or objective.train_text_encoder: false"
        yield Fault("data.cache_text", "the text encoder learns, so its states change", True, remedy)


def _close_up(data: Data, side: int) -> Iterator[Fault]:
    if data.flip or not data.cache:
        remedy = "Write cache: true and flip: false"
        yield Fault("data.close_up", "cut out of the cached latents of whole scenes", side, remedy)
    if getattr(data, "layouts", None) != ("one",):
        message = "a close-up is cut around the only object of a scene"
        yield Fault("data.close_up", message, side, "Write layouts: [one] too")
    if not 24 <= side <= 64 or side % 8:
        remedy = "Take 24, 32, 40, 48, 56 or 64"
        yield Fault("data.close_up", "no square of whole latents that holds an object", side, remedy)


def _whole_scenes(kind: str, data: Data) -> Iterator[Fault]:
    """Find what objectives that draw scenes themselves, one after another, would pass over."""
    if data.kind != "scenes":
        yield Fault(
            "data.kind", f"{kind} is trained on scenes alone", data.kind, "Write data: {kind: scenes}"
        )
    if data.resolution not in (None, 64):
        yield Fault("data.resolution", f"{kind} draws scenes 64 pixels wide", data.resolution, "Take 64")
    for key in ("pairs", "first", "layouts", "close_up", "flip"):
        if found := getattr(data, key, None):
            yield Fault(f"data.{key}", f"{kind} takes one training scene after another", found, LEAVE_OUT)
    if (domain := getattr(data, "domain", "all")) != "all":
        yield Fault("data.domain", f"{kind} learns all names", domain, LEAVE_OUT)


def _export(recipe: Recipe) -> Iterator[Fault]:
    networks = recipe.student.networks
    encoder = networks.text_encoder if networks is not None else None
    learns = isinstance(encoder, Mapping) or getattr(recipe.objective, "train_text_encoder", False)
    if recipe.export.unet_only and (learns or encoder is not None):
        message = (
            "the text encoder learns, too, and would be lost"
            if learns
            else "the text encoder is another one than that of the VAE's checkpoint, and would be lost"
        )
        yield Fault("export.unet_only", message, True, "Write export.unet_only: false")


def _notes(recipe: Recipe) -> Iterator[Fault]:
    known = _keys(recipe)
    for name, notes in (("sources", recipe.sources), ("unstated", recipe.unstated)):
        for key in notes:
            if key not in known:
                remedy = f"{suggestion(key, known)}Write a dotted key, such as optimizer.learning_rate"
                yield Fault(f"{name}.{key}", "not a key of this recipe", key, remedy)
    for key in recipe.unstated:
        if key in recipe.sources:
            yield Fault(f"unstated.{key}", "has a source too", key, "Keep one of the two")


def _keys(recipe: Recipe) -> list[str]:
    """Return every dotted key of a recipe."""

    def walk(value: Any, prefix: str) -> Iterator[str]:
        if isinstance(value, Mapping):
            for name, part in value.items():
                yield f"{prefix}{name}"
                yield from walk(part, f"{prefix}{name}.")

    return list(walk(recipe.model_dump(by_alias=True, exclude={"sources", "unstated"}), ""))
