"""Folders in diffusers layout that are made of what is published in another form.

What was made is a checkpoint like any other: checked tensor by tensor, identified by its content, loaded by
``from_pretrained``. It lies among the temporary files (``TMPDIR`` says where) until the process ends; what a
killed process leaves there goes when the next one converts something.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable, first_line
from pytest_sdbench.base.files import FULL
from pytest_sdbench.base.processes import is_dead, this_host
from pytest_sdbench.models.layout import CLASSES, SD, Pipeline
from pytest_sdbench.models.loading import quiet
from pytest_sdbench.models.weights import TEXT_ENCODERS, read_json

Parts = Mapping[str, Path]
"""The folder of each component, of the tokenizer and of the scheduler."""

_SETTINGS = (".json", ".txt")
_FOLDER = "sdbench-"
"""How the name of a folder begins that was made, before host and process."""


def copy_settings(
    pipeline: Pipeline, settings: Mapping[str, bool], parts: Parts, scheduler: str, folder: Path
) -> None:
    """Write a checkpoint without weights: the configurations and the vocabulary of another one."""
    for name in pipeline.parts:
        (folder / name).mkdir(parents=True)
        for source in sorted(parts[name].glob("*")):
            if source.suffix in _SETTINGS and source.is_file() and ".index." not in source.name:
                shutil.copyfile(source, folder / name / source.name)
        if name in pipeline.components:
            config = read_json(parts[name] / "config.json")
            # How the weights of that checkpoint are stored says nothing of these.
            config.pop("quantization_config", None)
            (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    index: dict[str, Any] = {
        name: ["transformers" if name in TEXT_ENCODERS else "diffusers", CLASSES[name]]
        for name in pipeline.components
    }
    index |= {name: ["transformers", "CLIPTokenizer"] for name in pipeline.tokenizers}
    index |= {"scheduler": ["diffusers", scheduler], "_class_name": pipeline.name, **settings}
    if pipeline is SD:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index |= {"requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def save(model: Any, folder: Path) -> None:
    """Save a network in the folder that its configuration came from, and leave that as it was."""
    config = (folder / "config.json").read_bytes()
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # safetensors 0.8 lets the owner alone read them
        file.chmod(folder.stat().st_mode & 0o666)
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
    there = [each for each in files if each.is_file()]  # a cache may hold links that lead nowhere
    state = tuple((str(each), each.stat().st_size, each.stat().st_mtime_ns) for each in there)
    if (key, state) not in _made:
        with _room():
            _sweep(Path(tempfile.gettempdir()))
            folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{this_host()}-{os.getpid()}-"))
            try:
                make(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        atexit.register(_remove, folder, os.getpid())
        _made[key, state] = folder
    return _made[key, state]


def bytes_made(folder: Path) -> int:
    """Return the bytes that a folder takes which this process has made; 0 of any other folder."""
    if folder not in _made.values():
        return 0
    files = [each for each in folder.rglob("*") if each.is_file() and not each.is_symlink()]
    return sum(each.stat().st_size for each in files)


@contextmanager
def _room() -> Iterator[None]:
    """Turn what the system refuses into ``Unavailable``, a full disk by its name."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors tells the number in words alone.
        number = re.search(r"\(os error (\d+)\)", str(error))
        code = error.errno if isinstance(error, OSError) else int(number[1]) if number else None
        what = "a checkpoint cannot be converted among the temporary files"
        remedy = "Check that its files can be read, and that folder written. For another one: TMPDIR=FOLDER"
        if code in FULL:
            what = "no room for a converted checkpoint among the temporary files"
            remedy = "Name another folder for them: TMPDIR=FOLDER"
        file = tempfile.tempdir or os.environ.get("TMPDIR")
        raise Unavailable(what, file=file, found=first_line(error), remedy=remedy) from error


def _sweep(place: Path) -> None:
    """Remove the folders that processes of this system left when they were killed."""
    for folder in place.glob(f"{_FOLDER}{this_host()}-*"):
        process = folder.name.split("-")[2]
        if process.isdecimal() and is_dead(this_host(), int(process)) and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, process: int) -> None:
    """Remove a folder at the end of the process that made it, not of one that was forked from it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
