"""Write what was trained as a diffusers folder, with the card that verifies it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.base.files import is_of_desktop
from pytest_sdbench.base.paths import real
from pytest_sdbench.evaluation.schedulers import with_settings
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.models.skeleton import known_keys
from training.errors import TrainingError, explain_write_errors
from training.export.card import card_spec, write_card
from training.export.facts import Run
from training.export.samples import sampling_kind
from training.recipes.schema import Consistency, Recipe
from training.students.networks import Parts
from training.students.tokenizer import save_tokenizer

ADAPTER = "pytorch_lora_weights.safetensors"
_MARKS = ("model_index.json", "unet", ADAPTER)
"""What an exported folder holds one of, at least."""
_OURS = frozenset((*_MARKS, "README.md", "scheduler", "text_encoder", "tokenizer", "vae"))
"""All that an exported folder holds."""
_OF_TASKS = ("config.json", "open_clip_config.json", "unet", "vae", "model_index.json")
"""What a folder holds one of that a task's own export may add to."""


def export_checkpoint(
    task: Any,
    recipe: Recipe,
    run_folder: Path,
    out: Path,
    *,
    seen: int,
    told: Mapping[str, Any],
    seconds: float | None,
    merge: bool = True,
) -> Path:
    """Write the checkpoint of a task to the folder `out`, with its card, and return the folder.

    `told` is what the run's state tells of it, and `seconds` how long it trained.
    `task.parts` holds the networks, the trained ones among them, plain and on any device; they stay as they
    are. What was not trained is taken from the checkpoint that it came from, where that is known. A task with
    an `export(folder)` of its own writes its files itself, without a card. Low-rank adapters are written as
    diffusers' `load_lora_weights` takes them; with `merge` the checkpoint with the adapters merged, too.

    The folder appears, and replaces an older one, when it is complete and verified. Raises TrainingError when
    the disk is full, for weights that are not finite, for a scheduler that there is none, and where `out`
    holds anything else; an older checkpoint is then untouched.
    """
    out = real(out)
    if hasattr(task, "export"):
        with _folder_beside(out, adds=True) as temporary:
            task.export(temporary)
            _move_entries(temporary, out)
        return out
    parts: Parts = task.parts
    for source in _sources(recipe, parts):
        _refuse_source(source, out)
    pairs = getattr(getattr(task, "inputs", None), "pairs", None)
    run = Run(run_folder, seen, told, seconds)
    if pairs is not None:
        run = replace(run, pairs=len(pairs), skipped=len(pairs.skipped))
    with _folder_beside(out) as temporary:
        adapted = bool(_adapters(parts.unet))
        if adapted:
            save_adapter(parts, temporary)
        if not adapted or merge:
            _save_networks(parts, recipe, temporary)
        write_card(temporary, recipe, run, name=out.name, near=out, parts=parts)
        if not adapted or merge:
            _verify(recipe, parts, temporary, out)
        _swap(temporary, out)
    return out


def export_scheduler(parts: Parts, recipe: Recipe) -> Any:
    """Return the scheduler that is written: the recipe's, else the teacher's.

    Without one in the recipe a consistency model gets LCMScheduler: no other draws what it predicts. What it
    was distilled with, the scheduler is told. Raises TrainingError for a class or a setting that diffusers
    does not know.
    """
    import diffusers

    wanted, objective = recipe.export.scheduler, recipe.objective
    distilled = {}
    if isinstance(objective, Consistency):
        scaling = objective.timestep_scaling
        distilled = {"original_inference_steps": objective.grid_steps, "timestep_scaling": scaling}
    if wanted is None:
        return with_settings(sampling_kind(parts), parts.scheduler, distilled)
    kind: Any = getattr(diffusers, wanted.class_, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        raise TrainingError(
            "diffusers has no such scheduler",
            file=recipe.name,
            key="export.scheduler.class",
            found=wanted.class_,
            remedy="Name a class, such as PNDMScheduler or LCMScheduler",
        )
    unknown = sorted(set(wanted.config) - set(inspect.signature(kind.__init__).parameters))
    if unknown:
        raise TrainingError(
            f"{wanted.class_} has no such setting",
            file=recipe.name,
            key=f"export.scheduler.config.{unknown[0]}",
            remedy="diffusers would pass over it without a word: correct or remove it",
        )
    return with_settings(kind, parts.scheduler, {**distilled, **wanted.config})


def save_adapter(parts: Parts, folder: Path) -> Path:
    """Write the low-rank adapters of U-Net and text encoder to one file that `load_lora_weights` takes.

    The file's metadata hold rank and alpha: without them diffusers takes alpha to be the rank.
    """
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    found: dict[str, Any] = {}
    for name, network in (("unet", parts.unet), ("text_encoder", parts.text_encoder)):
        for adapter in _adapters(network)[:1]:
            state = get_peft_model_state_dict(network, adapter_name=adapter)
            state = {key: value.detach().float().cpu() for key, value in state.items()}
            found[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(state)
            found[f"{name}_lora_adapter_metadata"] = _metadata(network.peft_config[adapter])
    StableDiffusionPipeline.save_lora_weights(folder, weight_name=ADAPTER, **found)
    return folder / ADAPTER


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network on the CPU in float32, low-rank adapters merged into them."""
    state = {
        name.replace(".base_layer.", "."): value.detach()
        for name, value in network.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in network.named_modules():
        if hasattr(layer, "get_delta_weight"):
            for adapter in layer.active_adapters:
                weight = state[f"{name}.weight"]
                state[f"{name}.weight"] = weight + layer.get_delta_weight(adapter).detach().to(weight)
    return {
        name: value.cpu().float() if value.is_floating_point() else value.cpu()
        for name, value in state.items()
    }


# --- the networks --------------------


def _save_networks(parts: Parts, recipe: Recipe, folder: Path) -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    dtype = torch.float16 if recipe.export.half else torch.float32
    unet = UNet2DConditionModel(**_without_notes(known_keys(parts.unet.config)))
    unet.load_state_dict(merged_state(parts.unet))
    if recipe.export.unet_only:
        _cast(unet, dtype).save_pretrained(folder / "unet")
        # A consistency model is none under the scheduler of its base.
        scheduler = export_scheduler(parts, recipe)
        of_its_own = parts.checkpoint is not None and parts.checkpoint.scheduler_folder is not None
        stated = recipe.export.scheduler is not None or recipe.teacher is None
        if stated or of_its_own or type(scheduler) is not type(parts.scheduler):
            scheduler.save_pretrained(folder / "scheduler")
        _tidy(folder)
        return
    scratch = recipe.student.networks
    own_words = scratch is not None and scratch.text_encoder is not None
    kept = parts
    if parts.checkpoint is not None:
        # Networks that do not learn may have been cast for speed: they are read again.
        lender = load_pipeline(parts.checkpoint)
        kept = replace(parts, vae=lender.vae, text_encoder=lender.text_encoder, tokenizer=lender.tokenizer)
    learned = own_words or getattr(recipe.objective, "train_text_encoder", False)
    text_encoder = parts.text_encoder if learned else kept.text_encoder
    encoder = type(text_encoder)(text_encoder.config.__class__.from_dict(text_encoder.config.to_dict()))
    encoder.load_state_dict(merged_state(text_encoder))
    vae = type(kept.vae)(**_without_notes(kept.vae.config))
    vae.load_state_dict(merged_state(kept.vae))
    pipeline = StableDiffusionPipeline(
        vae=_cast(vae, dtype),
        text_encoder=_cast(encoder, dtype),
        tokenizer=parts.tokenizer if own_words else kept.tokenizer,
        unet=_cast(unet, dtype),
        scheduler=export_scheduler(parts, recipe),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    if own_words or parts.checkpoint is None:
        save_tokenizer(parts.tokenizer, folder / "tokenizer")
    else:
        shutil.rmtree(folder / "tokenizer")
        (folder / "tokenizer").mkdir()
        for file in parts.checkpoint.part("tokenizer").glob("*"):
            if file.suffix in (".json", ".txt"):
                shutil.copyfile(file, folder / "tokenizer" / file.name)
    # transformers loads the type that the config names, diffusers float32: they have to agree.
    _edit_json(folder / "text_encoder" / "config.json", {"dtype": "float32", "torch_dtype": None})
    _tidy(folder)


def _cast(network: Any, dtype: torch.dtype) -> Any:
    # diffusers' own `to` warns of every cast, whether or not a model has anything to keep in float32.
    return nn.Module.to(network, dtype)


def _without_notes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _tidy(folder: Path) -> None:
    """Take out of every configuration where its content came from: a folder of this machine means nothing."""
    for file in [*folder.rglob("*config.json"), *folder.glob("model_index.json")]:
        _edit_json(file, {"_name_or_path": None, "name_or_path": None})


def _edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Set keys of a JSON file; None removes the key."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not any(found.get(key) != value for key, value in changes.items()):
        return
    kept = {
        key: value
        for key, value in (found | dict(changes)).items()
        if key not in changes or value is not None
    }
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _adapters(network: Any) -> list[str]:
    """Return the names of a network's low-rank adapters."""
    return list(getattr(network, "peft_config", None) or ())


def _metadata(config: Any) -> dict[str, Any]:
    """Return what diffusers keeps of an adapter's configuration, without the model that it came from."""
    values = dict(config.to_dict()) | {"base_model_name_or_path": None}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}


def _verify(recipe: Recipe, parts: Parts, temporary: Path, out: Path) -> None:
    """Check what was written as the suite checks any checkpoint, before it replaces anything."""
    try:
        verify(resolve(card_spec(recipe, temporary), near=temporary))
    except CheckpointError as error:
        finite = _finite(parts.unet) and _finite(parts.text_encoder)
        beyond = recipe.export.half and finite and error.message.startswith("NaN or infinity")
        raise TrainingError(
            f"not written: {error.message}",
            file=out,
            key=error.key,
            found=error.found,
            remedy="float16 does not reach that far: give export.half=false" if beyond else error.remedy,
        ) from error


def _finite(network: nn.Module) -> bool:
    return all(bool(torch.isfinite(weight).all()) for weight in network.parameters())


# --- the folder --------------------


def check_out(out: Path, *, adds: bool = False) -> None:
    """Raise TrainingError where an export would take the place of something else, or could not be added."""
    if out.exists() and (foreign := _foreign(out, adds)):
        raise TrainingError(
            "the folder holds something that is no checkpoint, which would be lost",
            file=out,
            found=", ".join(foreign[:5]),
            remedy="Name another folder",
        )


@contextmanager
def _folder_beside(out: Path, *, adds: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `out` that is gone afterwards; a full disk becomes a TrainingError.

    It is to take the place of `out`, where nothing else may be, or to be added to it.
    """
    old, new = out.with_name(f".{out.name}.old"), out.with_name(f".{out.name}.new")
    try:
        with explain_write_errors(out, "the checkpoint"):
            if old.exists() and not out.exists():
                old.rename(out)  # an export was killed between its last two steps
            check_out(out, adds=adds)
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                yield new
            except SafetensorError as error:
                number = re.search(r"os error (\d+)", str(error))  # safetensors tells it in words alone
                raise OSError(int(number[1]) if number else 0, str(error)) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _foreign(out: Path, adds: bool) -> list[str]:
    """Return the names in a folder that no export wrote; all, where there is nothing of a checkpoint."""
    if not out.is_dir():
        return ["a file"]
    names = sorted(path.name for path in out.iterdir() if not is_of_desktop(path.name))
    if not any(name in names for name in (_OF_TASKS if adds else _MARKS)):
        return names
    return [] if adds else [name for name in names if name not in _OURS]


def _sources(recipe: Recipe, parts: Parts) -> Iterator[Path]:
    """Yield the folders that a run starts from."""
    if recipe.teacher is not None and parts.checkpoint is not None:
        found = parts.checkpoint
        yield from filter(None, (found.folder, found.unet_folder, found.scheduler_folder))
    networks = recipe.student.networks
    for lender in (networks.vae, networks.text_encoder) if networks else ():
        named = [lender] if isinstance(lender, str) else []
        if isinstance(lender, Mapping):
            named = [lender[part] for part in ("base", "unet") if part in lender]
        yield from (Path(name).expanduser() for name in named if name and Path(name).expanduser().is_dir())


def _refuse_source(folder: Path, out: Path) -> None:
    """Raise TrainingError where an export would take the place of what it learned from."""
    if out in (real(folder), *real(folder).parents):
        raise TrainingError(
            "the folder is one that the run starts from, which would be lost",
            file=out,
            found=folder,
            remedy="Name another folder",
        )


def _swap(new: Path, out: Path) -> None:
    _flush(new)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _move_entries(new: Path, out: Path) -> None:
    """Put each finished file or folder in the place of the one of the same name; others stay."""
    _flush(new)
    out.mkdir(parents=True, exist_ok=True)
    for entry in sorted(new.iterdir()):
        if entry.is_dir():
            _swap(entry, out / entry.name)
        else:
            entry.replace(out / entry.name)


def _flush(folder: Path) -> None:
    """See that every file is on the disk, for all who may read its folder, before it replaces anything."""
    rights = folder.stat().st_mode & 0o666  # safetensors 0.8 gives them to the owner alone
    for path in folder.rglob("*"):
        if path.is_file():
            mode = path.stat().st_mode
            if rights & ~mode:  # some file systems refuse any change
                path.chmod(mode | rights)
            with path.open("rb") as file:
                os.fsync(file.fileno())
