"""Build what a recipe trains."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from pytest_sdbench.models.checkpoint import resolve
from training.data.batch import NoPairs, Pairs
from training.data.open import open_source, pairs_of
from training.errors import TrainingError
from training.objectives.consistency import ConsistencyTask
from training.objectives.diffusion import Say
from training.objectives.distillation import DistillationTask
from training.objectives.dreambooth import DreamBoothTask
from training.objectives.dreambooth_pictures import add_adapters, class_pairs, subject_pairs
from training.objectives.inputs import Inputs
from training.objectives.prediction import PredictionTask
from training.recipes.schema import EXTRACTORS, Consistency, Distillation, DreamBooth, Prediction, Recipe
from training.run.state import told
from training.run.task import Task
from training.students.block_removal import account, build_student
from training.students.feature_taps import Denoiser, Readout, feature_pairs, inner_taps
from training.students.networks import Parts, load_parts


def build_task(
    recipe: Recipe,
    *,
    folder: Path,
    accelerator: Accelerator,
    download: bool = False,
    say: Say = print,
    export_only: bool = False,
) -> Task:
    """Load, build and connect everything that a recipe trains.

    Latents and text states are cached beside the run's folder, in `../cache`, so that runs share them. What
    is to be exported alone needs no data, and none is opened. Raises TrainingError for what cannot be trained
    so, CheckpointError and Unavailable for the teacher.
    """
    kind = recipe.objective.kind
    if kind in EXTRACTORS:
        from training.embedded.build import build_extractor

        return build_extractor(recipe)
    if kind == "dreambooth":
        return build_dreambooth(
            recipe,
            folder=folder,
            accelerator=accelerator,
            download=download,
            say=say,
            export_only=export_only,
        )
    if recipe.teacher is None:
        from training.students.scratch import build_scratch, write_down

        parts = build_scratch(recipe, download=download)
        if recipe.data.cache and not export_only:
            # Pictures and captions are encoded by networks of a checkpoint, whose files tell caches apart.
            if accelerator.is_main_process:
                write_down(parts, folder / "start")
            accelerator.wait_for_everyone()
            parts = replace(parts, checkpoint=resolve(str(folder / "start")))
    else:
        parts = load_parts(recipe.teacher, download=download)
    pairs = recalled_pairs(folder) if export_only else open_pairs(recipe, parts, folder, accelerator, say)
    return connect(recipe, parts, pairs, accelerator, say=say)


def connect(
    recipe: Recipe, parts: Parts, pairs: Pairs, accelerator: Accelerator, *, say: Say = print
) -> Task:
    """Build the task of a recipe from the networks it starts from and its pairs.

    `parts.unet` is the teacher, or what learns where there is none.
    """
    objective, teacher_unet = recipe.objective, parts.unet
    if recipe.teacher is not None:
        _check_teacher(teacher_unet)
    dtype = half_type(accelerator)
    inputs = _inputs(recipe, parts, pairs, accelerator)
    if isinstance(objective, Prediction):
        unet = teacher_unet if recipe.teacher is None else _student(recipe, teacher_unet, say)
        trained = replace(parts, unet=unet)
        return PredictionTask(recipe, trained, _trainable(recipe, trained, objective), inputs)
    student = prepare_unet(_student(recipe, teacher_unet, say), recipe)
    trained = replace(parts, unet=student)
    if isinstance(objective, Distillation):
        taps = feature_pairs(objective.pairing, recipe.student.remove) if objective.weights.feature else ()
        teacher = _frozen(teacher_unet, [theirs for theirs, _ in taps], accelerator.device, dtype, recipe)
        model = Denoiser(student, [mine for _, mine in taps])
        return DistillationTask(recipe, trained, model, inputs, teacher)
    assert isinstance(objective, Consistency)
    teacher = _frozen(teacher_unet, (), accelerator.device, dtype, recipe)
    return ConsistencyTask(recipe, trained, Denoiser(student), inputs, teacher)


def _check_teacher(unet: Any) -> None:
    """Raise TrainingError for a consistency model: told no guidance, it predicts what nobody asked for."""
    if unet.config.time_cond_proj_dim is not None:
        raise TrainingError(
            "the teacher is a consistency model, which takes the guidance as an input",
            key="teacher",
            found=f"time_cond_proj_dim: {unet.config.time_cond_proj_dim}",
            remedy="Name the checkpoint that it was distilled from",
        )


def open_pairs(recipe: Recipe, parts: Parts, folder: Path, accelerator: Accelerator, say: Say) -> Pairs:
    """Open the recipe's data, encoded and cached where it says so."""
    # One file for each process: not every file system keeps lines whole that several hosts append.
    number = "" if accelerator.is_main_process else f"-{accelerator.process_index}"
    return pairs_of(
        recipe,
        open_source(recipe.data, say=say),
        parts,
        folder.parent / "cache",
        device=accelerator.device,
        dtype=half_type(accelerator) if accelerator.device.type == "cuda" else torch.float32,
        say=say,
        record=folder / f"skipped{number}.jsonl",
    )


def recalled_pairs(folder: Path) -> NoPairs:
    """Return what the state of a run tells of its pairs."""
    known = told(folder)
    return NoPairs(known.get("pairs", 0), known.get("skipped", {}))


def _inputs(recipe: Recipe, parts: Parts, pairs: Pairs, accelerator: Accelerator) -> Inputs:
    seed, flip, dtype = recipe.schedule.seed, recipe.data.flip, half_type(accelerator)
    return Inputs(parts, pairs, seed=seed, flip=flip, device=accelerator.device, dtype=dtype)


def _student(recipe: Recipe, teacher: Any, say: Say) -> Any:
    student, objective = recipe.student, recipe.objective
    width = objective.embedding if isinstance(objective, Consistency) else None
    if student.remove != "none":
        say(f"student by block removal ({student.remove}, {student.init} weights):")
        say(account(teacher.config, student.remove))
    return build_student(
        teacher, student.remove, init=student.init, guidance_embedding=width, seed=recipe.schedule.seed
    )


def _trainable(recipe: Recipe, parts: Parts, objective: Prediction | DreamBooth) -> Denoiser:
    """Return the U-Net, with its text encoder if that learns too."""
    encoder = parts.text_encoder if objective.train_text_encoder else None
    unet: Any = prepare_unet(parts.unet, recipe)
    taps, readouts = {}, None
    if getattr(objective, "readout", 0):
        taps, made = inner_taps(unet), unet.config["in_channels"]
        readouts = nn.ModuleList(Readout(channels, made, covers) for channels, covers in taps.values())
    model = Denoiser(unet, tuple(taps), encoder, readouts).requires_grad_(True)
    if getattr(objective, "inner_captions", 0):
        model.tell_blocks_apart()
    return model.drop_inner_skips() if getattr(objective, "dropped_skips", 0) else model


def _frozen(unet: Any, taps: Any, device: torch.device, dtype: torch.dtype, recipe: Recipe) -> Denoiser:
    unet = copy.deepcopy(unet).eval().requires_grad_(False)
    # diffusers' own `to` warns of every cast, whether or not there is anything to keep in float32.
    nn.Module.to(unet, device=device, dtype=dtype)
    if recipe.speed.channels_last:
        unet.to(memory_format=torch.channels_last)
    teacher = Denoiser(unet, taps)
    if recipe.speed.compile:
        teacher.compile()
    return teacher


def build_dreambooth(
    recipe: Recipe,
    *,
    folder: Path,
    accelerator: Accelerator,
    download: bool = False,
    say: Say = print,
    export_only: bool = False,
) -> DreamBoothTask:
    """Draw the pictures of the class, encode both kinds and prepare what learns."""
    objective = recipe.objective
    assert isinstance(objective, DreamBooth)
    assert recipe.teacher is not None  # the recipe's own check
    parts = load_parts(recipe.teacher, download=download)
    _check_teacher(parts.unet)
    of_class: Pairs | None = NoPairs()
    of_subject: Pairs = recalled_pairs(folder)
    if not export_only:
        cache, device, dtype = folder.parent / "cache", accelerator.device, half_type(accelerator)
        # Whoever comes first draws, and the others wait at its lock: at a barrier they would run out of time.
        of_class = class_pairs(
            recipe, parts, folder, cache, device=device, dtype=dtype, download=download, say=say
        )
        of_subject = subject_pairs(recipe, parts, cache, device=device, say=say)
    prior = _inputs(recipe, parts, of_class, accelerator) if of_class is not None else None
    inputs = _inputs(recipe, parts, of_subject, accelerator)
    model = _trainable(recipe, parts, objective)
    if objective.lora is not None:
        text_learns = objective.train_text_encoder
        add_adapters(parts, objective.lora, text_encoder=text_learns, seed=recipe.schedule.seed)
    return DreamBoothTask(recipe, parts, model, inputs, prior)


def half_type(accelerator: Accelerator) -> torch.dtype:
    """Return the type of networks that do not learn."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def prepare_unet(unet: Any, recipe: Recipe) -> Any:
    """Let a U-Net learn, as the recipe's speed settings say."""
    unet.requires_grad_(True).train()
    if recipe.speed.channels_last:
        unet.to(memory_format=torch.channels_last)
    if recipe.speed.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet
