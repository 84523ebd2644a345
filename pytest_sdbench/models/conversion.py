"""Make a folder in diffusers layout of what is published in another form, with diffusers' own loaders.

What was made is a checkpoint like any other: checked tensor by tensor, identified by its content, loaded by
``from_pretrained``. It lies among the temporary files (``TMPDIR`` says where) until the process ends.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable, first_line
from pytest_sdbench.models.layout import CLASSES, COMPONENTS, PARTS
from pytest_sdbench.models.loading import quiet
from pytest_sdbench.models.weights import Tensor, read_json, shapes_of_file

Parts = Mapping[str, Path]
"""The folder of each component, of the tokenizer and of the scheduler."""

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
"""How the names of each component's tensors begin in the original layout."""
_XL, _EMA = "conditioner.embedders.", "model_ema."
_SETTINGS = (".json", ".txt")


def convert_single_file(file: Path, parts: Parts, scheduler: str) -> tuple[Path, tuple[str, ...]]:
    """Convert a file in the original layout; return the folder, and notes on what was read.

    A file holds weights alone: configurations, tokenizer and scheduler (``scheduler`` is its class) are those
    of ``parts``. The networks are made in float32, whatever the file stores. Raise ``CheckpointError`` where
    the file lacks a component, does not fit the configurations, holds tensors of a network that they do not
    have, or is no plain pickle of tensors.
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
    rest = sorted(shapes.keys() - set(inside))
    notes = [f"single file: {file.name}, read with the configuration of the checkpoint that it stands on"]
    if rest:
        what = "model_ema" if any(name.startswith(_EMA) for name in rest) else rest[0]
        notes.append(f"not looked at: {len(rest):,} tensors of {file.name}, e.g. of {what}")

    def make(folder: Path) -> None:
        from diffusers import StableDiffusionPipeline

        copy_settings(parts, scheduler, folder)
        with explained(file, "StableDiffusionPipeline.from_single_file"):
            pipeline = StableDiffusionPipeline.from_single_file(
                str(file), config=str(folder), local_files_only=True
            )
        for name in COMPONENTS:
            model = getattr(pipeline, name)
            _check_loaded(file, name, model, held[name])
            with quiet():
                save(model, folder / name)

    return once(("file", file, scheduler), [file, *parts.values()], make), tuple(notes)


def _unsupported(file: Path, shapes: Mapping[str, Tensor], lacking: list[str]) -> CheckpointError:
    found = f"{len(shapes):,} tensors, e.g. {min(shapes)}" if shapes else "no tensors"
    if any(name.startswith(_XL) for name in shapes):
        what, remedy = "a single file of SDXL", "Convert it: StableDiffusionXLPipeline.from_single_file(FILE)"
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

    The loader leaves out what it does not know, with a warning. The text encoder of SD v2 has a last layer
    that is not used, and CLIP its positions: of text encoders the loader alone can tell.
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


# --- folders ---


def copy_settings(parts: Parts, scheduler: str, folder: Path) -> None:
    """Write a checkpoint without weights: the configurations and the vocabulary of another one."""
    for name in PARTS:
        (folder / name).mkdir(parents=True)
        for source in sorted(parts[name].glob("*")):
            if source.suffix in _SETTINGS and source.is_file() and ".index." not in source.name:
                shutil.copyfile(source, folder / name / source.name)
        if name in COMPONENTS:
            config = read_json(parts[name] / "config.json")
            # How the weights of that checkpoint are stored says nothing of these.
            config.pop("quantization_config", None)
            (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    libraries = {name: "transformers" if name == "text_encoder" else "diffusers" for name in COMPONENTS}
    index: dict[str, Any] = {name: [library, CLASSES[name]] for name, library in libraries.items()}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", scheduler]}
    index |= {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def save(model: Any, folder: Path) -> None:
    """Save a network in the folder that its configuration came from, and leave that as it was."""
    config = (folder / "config.json").read_bytes()
    model.save_pretrained(folder)
    (folder / "config.json").write_bytes(config)


@contextmanager
def explained(file: Path, what: str) -> Iterator[None]:
    """Turn what a loader raises into one of our errors; it fails in as many ways as there are values."""
    try:
        with quiet():
            yield
    except Exception as error:
        found = f"{type(error).__name__}: {first_line(error)}"
        remedy = "Give it with the checkpoint that it was made of"
        message = f"{what} cannot read it with the configuration of this checkpoint"
        raise CheckpointError(message, file=file, found=found, remedy=remedy) from error


_made: dict[Hashable, Path] = {}


def once(key: Hashable, sources: list[Path], make: Callable[[Path], None]) -> Path:
    """Return the folder that was made of ``sources`` as they are now; make it once in a process."""
    files = [each for path in sources for each in ([path] if path.is_file() else sorted(path.glob("*")))]
    state = tuple((str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in files)
    if (key, state) not in _made:
        try:
            folder = Path(tempfile.mkdtemp(prefix="sdbench-"))
            atexit.register(_remove, folder, os.getpid())
            make(folder)
        except OSError as error:
            what = "no room for a converted checkpoint among the temporary files"
            remedy = "Name another folder for them: TMPDIR=FOLDER"
            raise Unavailable(
                what, file=tempfile.gettempdir(), found=first_line(error), remedy=remedy
            ) from error
        _made[key, state] = folder
    return _made[key, state]


def _remove(folder: Path, process: int) -> None:
    """Remove a folder at the end of the process that made it, not of one that was forked from it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
