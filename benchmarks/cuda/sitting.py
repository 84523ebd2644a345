"""Train on random networks and a synthetic cache with the loop itself: one sitting of a run.

Each sitting is a process of its own, so that it can be killed. What it does is noted in a file with the time,
for whoever watches it.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.training.scenario import CONFIGS
from pytest_sdbench.models.architectures import SD_V1_SCHEDULER
from pytest_sdbench.models.skeleton import component_skeleton, unet_skeleton
from training.build import connect
from training.data.disk_arrays import DiskArrays
from training.data.encoded import CachedPairs
from training.recipes.load import load_recipe
from training.recipes.schema import Recipe
from training.run import loop, processes, state
from training.students.networks import Parts

NOTES = "notes.jsonl"
WHOLE_RUN = 1e6
"""Minutes between two saves of a run that is to save at its end alone."""
REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What has to stand in the environment before CUDA starts, for the same bits from the same sums."""
_TOKENS = 77


def recipe_of(name: str, *, smoke: bool, save_minutes: float = WHOLE_RUN) -> Recipe:
    """Return a recipe that reports every step that the loop looks at."""
    settings = ["watch.report_seconds=0.000001", f"watch.save_minutes={save_minutes}"]
    if smoke:
        settings += ["schedule.batch=4", "schedule.micro_batch=2", "data.resolution=64", "precision=fp32"]
    return load_recipe(name, settings)


def write_cache(folder: Path, recipe: Recipe, rows: int, *, smoke: bool) -> int:
    """Write what a run's cache holds, with random numbers in it; return its bytes."""
    unet = CONFIGS["smoke" if smoke else "full"][0]
    side, sides = (recipe.data.resolution or 64) // 8, 1 + recipe.data.flip
    random, arrays = np.random.default_rng(0), DiskArrays(folder)

    def normal(*shape: int) -> Any:
        return random.standard_normal(shape, np.float32).astype(np.float16)

    latents = normal(rows, sides, 2, unet["in_channels"], side, side)
    latents[:, :, 1] = np.abs(latents[:, :, 1]) * 0.1
    text = normal(rows, _TOKENS, unet["cross_attention_dim"])
    arrays.append({"latents": latents, "text": text, "tokens": np.zeros((rows, _TOKENS), np.int32)}, {})
    arrays.finish()
    return int(latents.nbytes + text.nbytes)


def sit(
    name: str, folder: str, cache: str, *, device: str, smoke: bool, save_minutes: float, images: int
) -> None:
    """Go on with the run in a folder until it has seen so many images in all."""
    recipe, place = recipe_of(name, smoke=smoke, save_minutes=save_minutes), Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    note = _notebook(place / NOTES)
    note("process", at=time.time())
    with _repeatable(note):
        accelerator = processes.start(recipe, place, torch.device(device).type)
        arrays = DiskArrays(Path(cache))
        tokens, rows = arrays.open("tokens"), np.arange(len(arrays.open("tokens")))
        pairs = CachedPairs(arrays.open("latents"), tokens, {}, arrays.open("text"), rows)
        task = connect(recipe, _parts(accelerator.device, smoke), pairs, accelerator, say=lambda _line: None)
        note("networks", at=time.time())
        with _noting_states(note):
            loop.train(task, recipe, place, accelerator, stop_at=images, say=_telling(note))
    accelerator.end_training()


def _parts(device: torch.device, smoke: bool) -> Parts:
    """Return the U-Net with random weights, made on the device; the cache stands for all else."""
    from diffusers import PNDMScheduler

    unet, text, vae = CONFIGS["smoke" if smoke else "full"]
    return Parts(
        unet_skeleton(unet, device=device),
        component_skeleton("text_encoder", text),
        component_skeleton("vae", vae),
        None,
        PNDMScheduler(**SD_V1_SCHEDULER),
    )


def _notebook(path: Path) -> Callable[..., None]:
    def note(what: str, **facts: object) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **facts}) + "\n")

    return note


def _telling(note: Callable[..., None]) -> Callable[[str], None]:
    def tell(line: str) -> None:
        note("report", at=time.time())
        print(line, flush=True)

    return tell


@contextmanager
def _noting_states(note: Callable[..., None]) -> Iterator[None]:
    """Note how long states take to be read and written, and after how many images."""
    save, load = state.save_state, state.load_state

    def saving(folder: Path, learner: Any, seen: int) -> None:
        began = time.perf_counter()
        save(folder, learner, seen)
        note("saved", seen=seen, seconds=time.perf_counter() - began, at=time.time())

    def loading(folder: Path, learner: Any) -> int:
        began = time.perf_counter()
        seen = load(folder, learner)
        note("loaded", seen=seen, seconds=time.perf_counter() - began, at=time.time())
        return seen

    with patch.object(loop, "save_state", saving), patch.object(loop, "load_state", loading):
        yield


@contextmanager
def _repeatable(note: Callable[..., None]) -> Iterator[None]:
    """Have torch take the kernels that give the same bits every time, and note those that have none."""
    wanted = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("once", message=".*deterministic.*")
            yield
    finally:
        torch.use_deterministic_algorithms(wanted, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    for text in sorted({str(warning.message).splitlines()[0] for warning in caught}):
        if "deterministic" in text:
            note("other bits", of=text.partition(" does not")[0])


def notes(folder: Path) -> list[Mapping[str, Any]]:
    """Return what the sittings of a run have noted so far, without a line that is being written."""
    path = folder / NOTES
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
