"""Find and read the weight files of one component of a checkpoint: names, shapes, values."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable, first_line
from pytest_sdbench.base.files import is_pointer, json_mapping, read_bounded
from pytest_sdbench.models.access import forbidden

if TYPE_CHECKING:
    import torch

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""Components that transformers loads; the others are diffusers'."""
STEMS = {
    "unet": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "vae": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    **dict.fromkeys(TEXT_ENCODERS, ("model", "pytorch_model")),
}
"""File stem of each component's weights: as safetensors, as .bin."""

VARIANTS = (None, "fp16")
"""What to read where there are several: what ``from_pretrained`` loads unasked, then its usual variant."""

WEIGHT_FILES = {
    *(".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".gguf"),
    *(".npz", ".pkl", ".flashpack"),
}
"""How files end that may hold weights."""

LARGEST_JSON, DEEPEST_JSON = 64 << 20, 64
"""Bytes, and lists and objects in each other: a tokenizer has 2 MB, a configuration three levels."""

QUANTISED = 'Install it: pip install "pytest-sdbench[quantised]"'
COPY_AGAIN = "Copy or download the checkpoint again"


def incomplete(message: str, file: Path, *, key: str | None = None, found: object = None) -> CheckpointError:
    """Return the error of a checkpoint that did not arrive whole: it is to be copied again."""
    return CheckpointError(message, file=file, key=key, found=found, remedy=COPY_AGAIN)


def check_link(file: Path) -> None:
    """Raise ``CheckpointError`` for a link whose content is missing, as in a cache that was cleaned up."""
    if file.is_symlink() and not file.exists():
        raise incomplete("a link to content that is missing", file, found=os.readlink(file))


@dataclass(frozen=True)
class Weights:
    """The weight files of one component."""

    files: tuple[Path, ...]
    variant: str | None
    safetensors: bool
    index: Path | None
    """The JSON file that says which shard holds which tensor; None for a single file."""
    quantised: bool = False
    """Whether torchao wrote them: what is stored are parts of tensors."""


@dataclass(frozen=True)
class Tensor:
    """Shape of one stored tensor, and the file that holds it."""

    shape: tuple[int, ...]
    file: Path
    floats: bool = True
    """Whether its values are floating point; only `shapes_of_file` tells."""


@dataclass(frozen=True)
class Candidate:
    """A form in which a component's weights may be saved."""

    name: str
    """Of the weights, or of the index of their shards."""
    variant: str | None
    safetensors: bool
    shards: re.Pattern[str] | None
    """What the names of the shards look like; None for a single file."""


def candidates(component: str) -> Iterator[Candidate]:
    """Yield the forms of a component's weights in the order in which ``from_pretrained`` looks for them."""
    for variant in VARIANTS:
        dotted = f".{variant}" if variant else ""
        for stem, suffix in zip(STEMS[component], ("safetensors", "bin"), strict=True):
            safe = suffix == "safetensors"
            single = Candidate(f"{stem}{dotted}.{suffix}", variant, safe, None)
            indices = [f"{stem}.{suffix}.index{dotted}.json"]
            if variant and component not in TEXT_ENCODERS:
                indices.append(f"{stem}.{suffix}{dotted}.index.json")  # as diffusers wrote it until 0.30
            # The variant stands before the number of a shard or, in older files, after it.
            part, end, number = re.escape(dotted), re.escape(f".{suffix}"), r"-\d+-of-\d+"
            shards = re.compile(f"{re.escape(stem)}({part}{number}|{number}{part}){end}")
            sharded = [Candidate(name, variant, safe, shards) for name in indices]
            # transformers looks for a single file first, diffusers for shards.
            yield from [single, *sharded] if component in TEXT_ENCODERS else [*sharded, single]


def find_weights(folder: Path, component: str) -> Weights:
    """Return the weight files of ``component`` (``unet``, ``vae``, ``text_encoder``, ...) in its ``folder``.

    Those are what ``from_pretrained`` loads: full precision before the fp16 variant, safetensors before
    ``.bin``. Raise ``CheckpointError`` where there are none, or where a shard is missing.
    """
    for each in candidates(component):
        if (folder / each.name).is_file():
            index = folder / each.name if each.shards else None
            files = (folder / each.name,) if index is None else _shards(index)
            for file in files:
                if not os.access(file, os.R_OK):
                    raise forbidden(file)
            return Weights(files, each.variant, each.safetensors, index)
        check_link(folder / each.name)
    what, stem = f"no weights of the {component}", STEMS[component][0]
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    form = rf"({'|'.join(STEMS[component])})(-\d+-of-\d+)?\..+\.(safetensors|bin)"
    # Shards of a form that is supported lack their index alone.
    ours = [each.shards for each in candidates(component) if each.shards]
    others = [name for name in names if re.fullmatch(form, name) and not any(s.fullmatch(name) for s in ours)]
    found = (others or names)[:8] if folder.is_dir() else "no such folder"
    remedy = f"It needs {stem}.safetensors. {COPY_AGAIN}"
    if others:
        what = f"only a variant of the weights of the {component}, which is not supported (yet)"
        remedy = f"from_pretrained loads none unasked. Save it as {stem}.safetensors, if it is the one to use"
    raise CheckpointError(what, file=folder, key=component, found=found, remedy=remedy)


def unread(folder: Path, weights: Weights) -> list[str]:
    """Return the names of further weight files in a component's folder, which are not looked at."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in WEIGHT_FILES and path not in weights.files and not path.name.startswith(".")
    )


def read_shapes(weights: Weights) -> dict[str, Tensor]:
    """Return every stored tensor's shape by stored name; of safetensors only the header is read."""
    return {name: Tensor(shape, file) for name, file, shape, _ in _stored(weights)}


def read_tensors(weights: Weights) -> Iterator[tuple[str, Path, torch.Tensor]]:
    """Yield every stored tensor with its name and file, one at a time."""
    for name, file, _, load in _stored(weights):
        yield name, file, load(name)


def read_file(file: Path, inside: str | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of one file by name; of what torch has saved, those under the key `inside`.

    Raise ``CheckpointError`` for a damaged file and for one that holds more than tensors.
    """
    if inside is not None:
        content = _unpickle(file)
        return _flat(content.get(inside) if isinstance(content, dict) else content, file)
    if file.suffix.lower() == ".safetensors":
        return {name: value for name, _, value in read_tensors(Weights((file,), None, True, None))}
    return _load_bin(file)


def read_single_file(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file that stands for itself; in a pickle they may be in a ``state_dict``."""
    if file.suffix.lower() == ".safetensors":
        return read_file(file)
    content = _unpickle(file)
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    return _flat(content, file)


def open_tensors(weights: Weights) -> Callable[[Path, str], torch.Tensor]:
    """Return what reads one tensor of one of the files; each file is opened once."""
    if weights.quantised:
        whole = _quantised(weights)
        return lambda file, name: _plain(whole[name])

    @cache
    def opened(file: Path) -> Any:
        return _open(file).get_tensor if weights.safetensors else _load_bin(file).__getitem__

    return lambda file, name: opened(file)(name)


def _stored(weights: Weights) -> Iterator[tuple[str, Path, tuple[int, ...], Callable[[str], torch.Tensor]]]:
    """Yield name, file and shape of every stored tensor, and what loads it by its name meanwhile."""
    if weights.quantised:
        whole = _quantised(weights)
        for name, value in whole.items():
            yield name, weights.files[0], tuple(value.shape), lambda name: _plain(whole[name])
        return
    for file in weights.files:
        if weights.safetensors:
            with _open(file) as handle:
                for name in sorted(handle.keys()):
                    yield name, file, tuple(handle.get_slice(name).get_shape()), handle.get_tensor
        else:
            content = _load_bin(file)
            for name, value in content.items():
                yield name, file, tuple(value.shape), content.__getitem__


def _quantised(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the tensors that torchao put together from what is stored: quantised ones, and plain ones."""
    import torch

    if importlib.util.find_spec("torchao") is None:
        what, remedy = "quantised weights are read by torchao, which is not installed here", QUANTISED
        raise Unavailable(what, file=weights.files[0], remedy=remedy)
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
    from torchao.prototype.safetensors.safetensors_utils import is_metadata_torchao

    stored: dict[str, Any] = {}
    about: dict[str, str] = {}
    for file in weights.files:
        if weights.safetensors:
            with _open(file) as handle:
                about |= handle.metadata() or {}
                stored |= {name: handle.get_tensor(name) for name in sorted(handle.keys())}
        else:
            stored |= content if isinstance(content := _unpickle(file), dict) else {"": content}
    if weights.safetensors and is_metadata_torchao(about):
        try:
            stored, rest = unflatten_tensor_state_dict(stored, about)
        except Exception as error:  # it fails in as many ways as there are wrong entries
            raise incomplete("damaged weights", weights.files[0], found=first_line(error)) from error
        if rest or (lost := set(json.loads(about["tensor_names"])) - stored.keys()):
            first = min(rest or lost)
            raise incomplete("only parts of a quantised tensor", weights.files[0], key=first)
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in stored.items()):
        raise incomplete("not a flat mapping of names to tensors", weights.files[0])
    return _values(stored, weights.files[0])


def _plain(value: Any) -> torch.Tensor:
    """Return the values that a quantised tensor stands for."""
    ours = type(value).__module__.startswith("torchao")
    found: torch.Tensor = value.dequantize() if ours else value
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raise ``CheckpointError`` where the file is missing, broken or something else."""
    try:
        # As the libraries read it: in UTF-8, and without a byte order mark.
        content = json_mapping(read_bounded(path, LARGEST_JSON).decode("utf-8"))
    except FileNotFoundError:
        check_link(path)
        raise incomplete("missing file", path) from None
    except PermissionError:
        raise forbidden(path) from None
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else first_line(error)
        raise incomplete("unreadable JSON", path, found=found) from error
    level: list[Any] = [content]
    for _ in range(DEEPEST_JSON):
        values = [each.values() if isinstance(each, dict) else each for each in level]
        level = [value for each in values for value in each if isinstance(value, dict | list)]
    if level:
        raise incomplete(f"more than {DEEPEST_JSON} lists and objects in each other", path)
    return content


def _shards(index: Path) -> tuple[Path, ...]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise incomplete("no list of shards", index, key="weight_map", found=placed)
    names = sorted({str(name) for name in placed.values()})
    for name in names:
        if Path(name).name != name:
            raise incomplete("a shard outside of the folder", index, key="weight_map", found=name)
        check_link(index.parent / name)
        if not (index.parent / name).is_file():
            raise incomplete("missing shard", index.parent / name, key="weight_map")
    return tuple(index.parent / name for name in names)


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise incomplete("damaged or truncated weights", file, found=_what(file, _cause(error))) from error


def shapes_of_file(file: Path) -> dict[str, Tensor]:
    """Return every tensor's shape of a file that stands for itself: safetensors, or a pickle of tensors."""
    if file.suffix.lower() == ".safetensors":
        with _open(file) as handle:
            slices = {name: handle.get_slice(name) for name in sorted(handle.keys())}
            return {
                name: Tensor(tuple(part.get_shape()), file, part.get_dtype().startswith(("F", "BF")))
                for name, part in slices.items()
            }
    return {
        name: Tensor(tuple(value.shape), file, value.dtype.is_floating_point)
        for name, value in read_single_file(file).items()
    }


def _load_bin(file: Path) -> dict[str, torch.Tensor]:
    return _flat(_unpickle(file), file)


def _unpickle(file: Path) -> Any:
    import torch

    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                    raise ValueError("compressed, as torch.save writes nothing")
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files of torch < 1.6 are no zip archives and cannot be mapped.
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with file.open("rb") as stream:
            head = stream.read(2)
        if head[:1] != b"\x80" and head != b"PK":  # a Git LFS pointer, a page of a web server
            found = _what(file, "torch.save did not write it")
            raise incomplete("damaged or truncated weights", file, found=found) from error
        what = "refused: not a plain pickle of tensors"
        remedy = (
            f"Convert it to safetensors if you trust it; {file.suffix} is read with weights_only=True alone"
        )
        raise CheckpointError(what, file=file, found=_cause(error), remedy=remedy) from error
    except Exception as error:  # unpickling fails in as many ways as a file can be damaged
        raise incomplete("damaged or truncated weights", file, found=_what(file, _cause(error))) from error


def _flat(content: Any, file: Path) -> dict[str, torch.Tensor]:
    if isinstance(content, dict) and all(map(_is_plain, content.items())):
        return _values(content, file)
    what, remedy = "not a flat mapping of names to tensors", "Save it with diffusers' save_pretrained"
    raise CheckpointError(what, file=file, found=type(content).__name__, remedy=remedy)


def _values(tensors: dict[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """Return tensors without what training asks of them; raise ``CheckpointError`` for one without values."""
    if (lost := next((name for name, value in tensors.items() if value.is_meta), None)) is not None:
        what = "saved without its values, as accelerate's offloading leaves a network"
        remedy = "Load it whole (without device_map and offloading), and save it again"
        raise CheckpointError(what, file=file, key=lost, remedy=remedy)
    return {name: value.detach() for name, value in tensors.items()}


def _is_plain(item: tuple[object, object]) -> bool:
    """Return whether this is a name and a tensor all of whose values are stored: a view may repeat one."""
    import torch

    name, value = item
    if not (isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout is torch.strided):
        return False
    return value.numel() * value.dtype.itemsize <= value.untyped_storage().nbytes()


def _what(file: Path, why: str) -> str:
    """Say what a file is that cannot be read: the usual case is a Git LFS pointer in place of the content."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if is_pointer(stream.read(64)):
            return "a Git LFS pointer, not the weights: run `git lfs pull`"
    return f"{size:,} bytes: {why}"


def _cause(error: Exception) -> str:
    """Return what torch refuses, and not its advice to load it all the same."""
    found = re.search(r"(?:WeightsUnpickler error: *|(?=Unsupported ))([^\n]+)", str(error))
    return re.split(r"\.? Please ", found[1] if found else first_line(error))[0]
