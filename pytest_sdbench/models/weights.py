"""Find and read the weight files of one component of a checkpoint: names, shapes, values."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, first_line

if TYPE_CHECKING:
    import torch

STEMS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "text_encoder": ("model", "pytorch_model"),
}
"""File stem of each component's weights: as safetensors, as .bin."""

VARIANTS = (None, "fp16")
"""Which file to read where there are several: full precision first, since protocols cast it themselves."""

COPY_AGAIN = "Copy or download the checkpoint again"


def incomplete(message: str, file: Path, *, key: str | None = None, found: object = None) -> CheckpointError:
    """Return the error of a checkpoint that did not arrive whole: it is to be copied again."""
    return CheckpointError(message, file=file, key=key, found=found, remedy=COPY_AGAIN)


@dataclass(frozen=True)
class Weights:
    """The weight files of one component."""

    files: tuple[Path, ...]
    variant: str | None
    safetensors: bool
    index: Path | None
    """The JSON file that says which shard holds which tensor; None for a single file."""


@dataclass(frozen=True)
class Tensor:
    """Shape of one stored tensor, and the file that holds it."""

    shape: tuple[int, ...]
    file: Path


def candidates(component: str) -> Iterator[tuple[str, str, str | None, bool]]:
    """Yield, best first, (file, shard index, variant, whether safetensors) as diffusers names them."""
    safe, pickled = STEMS[component]
    for stem, suffix, safetensors in ((safe, "safetensors", True), (pickled, "bin", False)):
        for variant in VARIANTS:
            dotted = f".{variant}" if variant else ""
            yield f"{stem}{dotted}.{suffix}", f"{stem}.{suffix}.index{dotted}.json", variant, safetensors


def find_weights(folder: Path, component: str) -> Weights:
    """Return the weight files of ``component`` (``unet``, ``vae``, ``text_encoder``) in its ``folder``.

    Safetensors come before ``.bin``, full precision before the fp16 variant. Raise ``CheckpointError``
    where there are none, or where a shard is missing.
    """
    for name, index_name, variant, safetensors in candidates(component):
        if (folder / name).is_file():
            return Weights((folder / name,), variant, safetensors, None)
        if (folder / index_name).is_file():
            files = _shards(folder / index_name)
            return Weights(files, variant, safetensors, folder / index_name)
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
    what = f"no weights of the {component}"
    remedy = f"It needs {STEMS[component][0]}.safetensors. {COPY_AGAIN}"
    raise CheckpointError(what, file=folder, key=component, found=found, remedy=remedy)


def read_shapes(weights: Weights) -> dict[str, Tensor]:
    """Return every stored tensor's shape by stored name; of safetensors only the header is read."""
    return {name: Tensor(shape, file) for name, file, shape, _ in _stored(weights)}


def read_tensors(weights: Weights) -> Iterator[tuple[str, Path, torch.Tensor]]:
    """Yield every stored tensor with its name and file, one at a time."""
    for name, file, _, load in _stored(weights):
        yield name, file, load(name)


def _stored(weights: Weights) -> Iterator[tuple[str, Path, tuple[int, ...], Callable[[str], torch.Tensor]]]:
    """Yield name, file and shape of every stored tensor, and what loads it by its name meanwhile."""
    for file in weights.files:
        if weights.safetensors:
            with _open(file) as handle:
                for name in handle.keys():  # noqa: SIM118
                    yield name, file, tuple(handle.get_slice(name).get_shape()), handle.get_tensor
        else:
            content = _load_bin(file)
            for name, value in content.items():
                yield name, file, tuple(value.shape), content.__getitem__


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raise ``CheckpointError`` where the file is missing, broken or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise incomplete("missing file", path) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise incomplete("unreadable JSON", path, found=str(error)) from error
    if not isinstance(content, dict):
        raise incomplete("not a JSON object", path, found=type(content).__name__)
    return content


def _shards(index: Path) -> tuple[Path, ...]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise incomplete("no list of shards", index, key="weight_map", found=placed)
    names = sorted({str(name) for name in placed.values()})
    for name in names:
        if Path(name).name != name:
            raise incomplete("a shard outside of the folder", index, key="weight_map", found=name)
        if not (index.parent / name).is_file():
            raise incomplete("missing shard", index.parent / name, key="weight_map")
    return tuple(index.parent / name for name in names)


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise incomplete("damaged or truncated weights", file, found=_what(file, error)) from error


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files of torch < 1.6 are no zip archives and cannot be mapped.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = "refused: not a plain pickle of tensors"
        remedy = "Convert it to safetensors if you trust it; .bin is read with weights_only=True alone"
        raise CheckpointError(what, file=file, found=first_line(error), remedy=remedy) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise incomplete("damaged or truncated weights", file, found=_what(file, error)) from error
    if isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values()):
        return content
    what, remedy = "not a flat mapping of names to tensors", "Save it with diffusers' save_pretrained"
    raise CheckpointError(what, file=file, found=type(content).__name__, remedy=remedy)


def _what(file: Path, error: Exception) -> str:
    """Say what a file is that cannot be read: the usual case is a Git LFS pointer in place of the content."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if stream.read(23) == b"version https://git-lfs":
            return "a Git LFS pointer, not the weights: run `git lfs pull`"
    return f"{size:,} bytes: {first_line(error)}"
