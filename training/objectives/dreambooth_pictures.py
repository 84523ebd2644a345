"""The pictures of DreamBooth (Ruiz et al. 2023): a few of a subject, many of its class to keep that alive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from PIL import Image

from pytest_sdbench.base.files import write_atomically
from training.data.batch import Pairs
from training.data.folder import FolderSource
from training.data.open import pairs_of
from training.data.source import Subset
from training.errors import TrainingError, explain_write_errors
from training.export.samples import BATCH, draw
from training.recipes.schema import DreamBooth, FolderData, Lora, Recipe
from training.students.networks import Parts, load_parts

ADAPTED = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
}
"""The layers that low-rank adapters are put on, in U-Net and text encoder: all projections of attention."""

Say = Callable[[str], None]


def subject_pairs(
    recipe: Recipe, parts: Parts, folder: Path, *, device: str | torch.device = "cpu", say: Say = print
) -> Pairs:
    """Return the pictures of the recipe's folder, each with the recipe's prompt; captions there do not count.

    With `data.cache` they are encoded once, into `folder`. Raises TrainingError for data that is no folder.
    """
    objective, data = _objective(recipe), recipe.data
    if not isinstance(data, FolderData) or data.path is None:
        raise TrainingError(
            "the pictures of a subject lie in a folder",
            file=recipe.name,
            key="data.path" if isinstance(data, FolderData) else "data.kind",
            found=None if isinstance(data, FolderData) else data.kind,
            remedy="Give data.kind=folder data.path=FOLDER; no captions are needed",
        )
    source = Subset(FolderSource(data.path, caption=objective.prompt, say=say), data.pairs)
    return pairs_of(recipe, source, parts, folder, device=device, say=say)


def class_pairs(
    recipe: Recipe,
    parts: Parts,
    run_folder: Path,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    download: bool = False,
    say: Say = print,
) -> Pairs | None:
    """Return pictures of the class with the class prompt; None where the recipe wants none.

    They are drawn once, by the recipe's `class_model` or by the teacher in `parts`, which must not have
    learned yet, into `run_folder`; see `draw_class`. With `data.cache` they are encoded once, into `folder`.
    """
    objective = _objective(recipe)
    if not objective.class_images or not objective.prior_weight:
        return None
    if recipe.data.resolution is None:
        _check_size(recipe, parts)
    model = objective.class_model
    painter = parts
    if model is not None and model != recipe.teacher:
        painter = load_parts(model, key="objective.class_model", download=download)
    pictures = draw_class(recipe, painter, run_folder, device=device, dtype=dtype, say=say)
    source = FolderSource(pictures, caption=objective.class_prompt, say=say)
    return pairs_of(recipe, source, parts, folder, device=device, say=say)


def _check_size(recipe: Recipe, parts: Parts) -> None:
    """Raise TrainingError where pictures of the subject and of the class would not share a batch."""
    assert isinstance(recipe.data, FolderData)
    picture = FolderSource(recipe.data.path or "", caption="-", say=lambda _: None).read(0).image
    found = picture.size if isinstance(picture, Image.Image) else picture.shape[1::-1]
    side = parts.unet.config.sample_size * 2 ** (len(parts.vae.config.block_out_channels) - 1)
    if tuple(found) != (side, side):
        raise TrainingError(
            f"pictures of the class are drawn {side}x{side}, those of the subject have another size",
            key="data.resolution",
            found=f"{found[0]}x{found[1]}",
            remedy=f"Give data.resolution={side}",
        )


def draw_class(
    recipe: Recipe,
    parts: Parts,
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    say: Say = print,
) -> Path:
    """Draw the recipe's pictures of a class, picture i from a seed of its own, and return their folder.

    The folder, in `folder`, is named after all that the pictures depend on; those that lie there whole are
    not drawn again. Of several processes one draws and the others wait for it. Raises TrainingError where
    the disk is full; what is there is kept.
    """
    objective, seed = _objective(recipe), recipe.schedule.seed
    prompt, count = objective.class_prompt, objective.class_images
    settings: dict[str, Any] = {
        "guidance": recipe.watch.guidance,
        "steps": recipe.watch.sampling_steps,
        "size": recipe.data.resolution,
    }
    model = parts.checkpoint.fingerprint if parts.checkpoint is not None else None
    what = {"model": model, "prompt": prompt, **settings, "seed": seed}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    into = folder / f"class-{key}-{count}"
    with explain_write_errors(into, "pictures of the class"):
        into.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"class-{key}.lock"):
            missing = [number for number in range(count) if not _is_whole(_file(into, number))]
            if missing and len(missing) < count:
                say(f"pictures of the class: {count - len(missing)} of {count} are there already")
            for first in range(0, len(missing), BATCH):
                numbers = missing[first : first + BATCH]
                seeds = [_seed(seed, number) for number in numbers]
                prompts = [prompt] * len(numbers)
                images = draw(parts, prompts, seed=seeds, device=device, dtype=dtype, **settings)
                for number, image in zip(numbers, images, strict=True):
                    picture = Image.fromarray(image)
                    write_atomically(_file(into, number), partial(picture.save, format="PNG"))
                say(f"pictures of the class: {min(first + BATCH, len(missing))} of {len(missing)} drawn")
    return into


def add_adapters(parts: Parts, lora: Lora, *, text_encoder: bool, seed: int = 0) -> None:
    """Put low-rank adapters on the projections of attention and freeze everything else.

    The networks of `parts` are changed in place: their adapters alone learn, and before the first step they
    compute what they did. Raises TrainingError where peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise TrainingError(
            "low-rank adapters need peft",
            key="objective.lora",
            remedy="Install it: pip install 'pytest-sdbench[training]'",
        ) from error
    networks = {"unet": parts.unet} | ({"text_encoder": parts.text_encoder} if text_encoder else {})
    alpha: Any = lora.alpha  # peft declares whole numbers, and divides by the rank
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, network in networks.items():
            network.requires_grad_(False)
            network.add_adapter(
                LoraConfig(
                    r=lora.rank,
                    lora_alpha=alpha,
                    init_lora_weights=True,
                    target_modules=list(ADAPTED[name]),
                )
            )


def _objective(recipe: Recipe) -> DreamBooth:
    assert isinstance(recipe.objective, DreamBooth)
    return recipe.objective


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"


def _seed(seed: int, number: int) -> int:
    """Return the seed of a picture: that of the run and its number, mixed into 32 bits."""
    return int.from_bytes(hashlib.sha256(f"class {seed} {number}".encode()).digest()[:4], "little")


def _is_whole(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError):
        return False
    return True
