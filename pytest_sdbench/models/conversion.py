"""Make a folder in diffusers layout of what is published in another form, with diffusers' own loaders.

What was made is a checkpoint like any other: checked tensor by tensor, identified by its content, loaded by
``from_pretrained``. It lies among the temporary files (``TMPDIR`` says where) until the process ends; what a
killed process leaves there goes when the next one converts something.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import importlib.util
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable, first_line
from pytest_sdbench.base.processes import is_dead, this_host
from pytest_sdbench.models.layout import CLASSES, COMPONENTS, SD, Pipeline
from pytest_sdbench.models.loading import load_model, quiet
from pytest_sdbench.models.skeleton import text_encoder_skeleton
from pytest_sdbench.models.weights import TEXT_ENCODERS, Tensor, Weights, read_file, read_json, shapes_of_file

Parts = Mapping[str, Path]
"""The folder of each component, of the tokenizer and of the scheduler."""

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.",
}
"""How the names of each component's tensors begin in the original layout."""
_XL, _EMA = "conditioner.embedders.", "model_ema."
_OPEN_CLIP = re.compile(
    r"cond_stage_model\.model\.(positional_embedding$|token_embedding\.weight$|ln_final\."
    r"|transformer\.resblocks\.(?P<layer>\d+)\.)"
)
"""What a text encoder is made of in files of SD v2."""
_SETTINGS = (".json", ".txt")
_MATRIX = r"lora.*(\.|_)(down|up|A|B)(\.default)?\.weight$|\.alpha$"
"""How the names end of all that diffusers reads: of its own forms, of peft's and of kohya's."""
_FIRST = r"(\.|_)(down|A)(\.default)?\.weight$"
_SECOND = r"(\.|_)(up|B)(\.default)?\.weight$"


_COMPONENT = ("unet.", "text_encoder", "lora_unet_", "lora_te")
"""How the names begin of layers whose component diffusers can tell."""
_DIGEST = "lora.sha256"
_FOLDER = "sdbench-"
"""How the name of a folder begins that was made, before host and process."""

# --- single files ---


def convert_single_file(file: Path, parts: Parts, scheduler: str) -> tuple[Path, tuple[str, ...]]:
    """Convert a file in the original layout; return the folder, and notes on what was read.

    A file holds weights alone: configurations, tokenizer and scheduler (``scheduler`` is its class) are those
    of ``parts``. The networks are made in float32, whatever the file stores. The notes tell of tensors that
    belong to no network, and that the text encoder does not take. Raise ``CheckpointError`` where the file
    lacks a component, does not fit the configurations, holds tensors that U-Net or auto-encoder do not have,
    or is no plain pickle of tensors.
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
    rest = sorted(shapes.keys() - set(inside)) + _text_rest(file, inside, parts["text_encoder"])
    notes = [f"single file: {file.name}, read with the configuration of the checkpoint that it stands on"]
    if rest:
        what = "model_ema" if any(name.startswith(_EMA) for name in rest) else rest[0]
        notes.append(f"not looked at: {len(rest):,} tensors of {file.name}, e.g. of {what}")

    def make(folder: Path) -> None:
        from diffusers import StableDiffusionPipeline

        _copy_settings(SD, {}, parts, scheduler, folder)
        with _explained(file, "StableDiffusionPipeline.from_single_file"):
            pipeline = StableDiffusionPipeline.from_single_file(
                str(file), config=str(folder), local_files_only=True
            )
        for name in COMPONENTS:
            model = getattr(pipeline, name)
            _check_loaded(file, name, model, held[name])
            with quiet():
                _save(model, folder / name)

    return _once(("file", file, scheduler), [file, *parts.values()], make), tuple(notes)


def _text_rest(file: Path, names: list[str], folder: Path) -> list[str]:
    """Return what the text encoder of a file has and the configured one does not take, positions aside.

    The text encoder of SD v2 has a last layer and a projection that are not used.
    """
    config = read_json(folder / "config.json")
    with _explained(file, "CLIPTextModel"):
        bare = {name.removeprefix("text_model.") for name in text_encoder_skeleton(config).state_dict()}
    prefix = f"{_PREFIXES['text_encoder']}transformer."
    taken = {f"{prefix}{part}{name}" for name in bare for part in ("", "text_model.")}
    rest = []
    for name in names:
        found = _OPEN_CLIP.match(name)
        used = found is not None and int(found["layer"] or 0) < config.get("num_hidden_layers", 12)
        if name.startswith(_PREFIXES["text_encoder"]) and not (
            used or name in taken or name.endswith("position_ids")
        ):
            rest.append(name)
    return sorted(rest)


def _unsupported(file: Path, shapes: Mapping[str, Tensor], lacking: list[str]) -> CheckpointError:
    found = f"{len(shapes):,} tensors, e.g. {min(shapes)}" if shapes else "no tensors"
    if any(name.startswith(_XL) for name in shapes):
        what, remedy = "a single file of SDXL", "Convert it: StableDiffusionXLPipeline.from_single_file(FILE)"
    elif shapes and len(shapes) <= 2 and all(len(each.shape) <= 2 for each in shapes.values()):
        what = "a textual inversion, which is an addition to a text encoder"
        remedy = "Supported is what changes a network: a U-Net, a LoRA, a whole checkpoint"
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

    The loader leaves out what it does not know, with a warning. What that is of the text encoder is noted, as
    that of SD v2 has a last layer that is not used.
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


# --- LoRA ---


@dataclass(frozen=True)
class Base:
    """The checkpoint that a LoRA stands on."""

    spec: str
    parts: Parts
    weights: Mapping[str, Weights]
    scheduler: str
    """Class of the scheduler."""
    pipeline: Pipeline = SD
    settings: Mapping[str, bool] = field(default_factory=dict)
    """What its ``model_index.json`` says of how it draws."""


def fuse_lora(file: Path, base: Base) -> tuple[Path, str, str]:
    """Fuse the LoRA in a file at scale 1; return the folder of the result, a note on it, and a digest.

    The digest is of the matrices that the base gets, and of their scales: the same for every form of a file.

    U-Net and text encoders are loaded, fused and saved in float32, which is what `fuse_lora` and
    `save_pretrained` make of them. Raise ``Unavailable`` without peft, and ``CheckpointError`` where the file
    holds anything that would be left out, or where the base is quantised.
    """
    shapes = shapes_of_file(file)
    layers = _layers(file, shapes)
    if importlib.util.find_spec("peft") is None:
        remedy = 'Install it: pip install "pytest-sdbench[training]"'
        raise Unavailable("a LoRA is loaded by peft, which is not installed here", file=file, remedy=remedy)
    for name in base.pipeline.adapted:
        config = base.parts[name] / "config.json"
        if read_json(config).get("quantization_config") is not None:
            what, remedy = "a LoRA cannot be fused into quantised weights", "Give the base in float16 or more"
            raise CheckpointError(what, file=config, key="quantization_config", remedy=remedy)

    def make(folder: Path) -> None:
        _copy_settings(base.pipeline, base.settings, base.parts, base.scheduler, folder)
        networks, digest = _fused(file, base, layers)
        (folder / _DIGEST).write_text(digest, encoding="ascii")
        for name in base.pipeline.components:
            if name in networks:
                with quiet():
                    _save(networks[name], folder / name)
                continue
            weights = base.weights[name]
            for each in (*weights.files, *([weights.index] if weights.index else [])):
                (folder / name / each.name).symlink_to(each.resolve())

    ranks = sorted({min(shapes[name].shape[:2]) for name in layers})
    told = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    note = f"LoRA on {base.spec}: {file.name}, {len(layers):,} layers of {told}, fused at scale 1"
    folder = _once(("lora", file, base.scheduler, *base.settings.items()), [file, *base.parts.values()], make)
    return folder, note, (folder / _DIGEST).read_text(encoding="ascii")


def _layers(file: Path, shapes: Mapping[str, Tensor]) -> list[str]:
    """Return the first matrix of each layer; raise ``CheckpointError`` for what is none of a LoRA."""
    odd = sorted(name for name in shapes if not re.search(_MATRIX, name))
    layers = sorted(name for name in shapes if re.search(_FIRST, name))
    if odd or not layers:
        what = "not a LoRA that diffusers reads whole: it holds other tensors than low-rank matrices"
        remedy = "DoRA, LoHa, LoKr and trained biases are not supported (yet): fuse it where it was trained"
        raise CheckpointError(
            what, file=file, key=odd[0] if odd else None, found=f"{len(odd):,}", remedy=remedy
        )
    ends = [{re.sub(end, "", name) for name in shapes if re.search(end, name)} for end in (_FIRST, _SECOND)]
    if lone := sorted(ends[0] ^ ends[1]):
        name = next(
            name for name in sorted(shapes) if re.search(f"^{re.escape(lone[0])}({_FIRST}|{_SECOND})", name)
        )
        several = (
            "layers of the LoRA have one of their" if len(lone) > 1 else "layer of the LoRA has one of its"
        )
        what = f"{len(lone):,} {several} two matrices alone"
        remedy = "The file was cut short, or merged badly: save it again where it was trained"
        raise CheckpointError(what, file=file, key=name, remedy=remedy)
    whole = next((name for name in shapes if not (shapes[name].floats or name.endswith(".alpha"))), None)
    if whole is not None:
        remedy = "Save the LoRA in float16 or more"
        raise CheckpointError("integers in the place of weights", file=file, key=whole, remedy=remedy)
    return layers


def _fused(file: Path, base: Base, layers: list[str]) -> tuple[dict[str, Any], str]:
    """Return the networks that the LoRA changes, with it fused in, and its digest."""
    import diffusers
    import torch

    of = base.pipeline
    networks = {
        name: load_model(name, base.parts[name], base.weights[name], torch.float32) for name in of.adapted
    }
    others = dict.fromkeys(name for name in of.parts if name not in of.adapted)
    pipeline = getattr(diffusers, of.name)(**networks, **others, **of.options)
    _check_finite(file)
    with _explained(file, "load_lora_weights"):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    places = {name: sum(hasattr(each, "lora_A") for each in networks[name].modules()) for name in of.adapted}
    changed = [name for name in of.adapted if places[name]]
    if (found := sum(places.values())) != len(layers):
        what = (
            f"{len(layers) - found:,} of the {len(layers):,} layers of the LoRA are of no layer of its base"
        )
        remedy = "Give the base that it was trained on"
        if not found and not any(name.startswith(_COMPONENT) for name in layers):
            what = "the names in the LoRA do not say of which component its layers are"
            remedy = (
                "Load it where it was trained, pipeline.unet.load_lora_adapter(FILE, prefix=None), and save "
                "that: pipeline.save_lora_weights(FOLDER, get_peft_model_state_dict(pipeline.unet))"
            )
            raise CheckpointError(what, file=file, key=layers[0], remedy=remedy)
        raise CheckpointError(what, file=file, found=f"on {base.spec}", remedy=remedy)
    digest = _digest_of_layers(networks)
    with _explained(file, "fuse_lora"):
        pipeline.fuse_lora(components=changed)
        pipeline.unload_lora_weights()
    return {name: networks[name] for name in changed}, digest


def _check_finite(file: Path) -> None:
    """Raise ``CheckpointError`` for values of a LoRA that are no numbers."""
    import torch

    for name, tensor in read_file(file).items():
        if broken := int((~torch.isfinite(tensor.float())).sum()):
            what = f"NaN or infinity in {broken:,} of {tensor.numel():,} values"
            remedy = "The training of the LoRA diverged: take an earlier state of it"
            raise CheckpointError(what, file=file, key=name, remedy=remedy)


def _digest_of_layers(networks: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the loaded layers of a LoRA: their places, matrices in float32, and scales."""
    digest = hashlib.sha256()
    for component, network in networks.items():
        places = {name.removeprefix("text_model."): each for name, each in network.named_modules()}
        for place, layer in sorted(places.items()):
            for adapter in getattr(layer, "lora_A", ()):
                scale = layer.scaling[adapter]
                digest.update(f"{component}.{place} {float(scale)!r}\n".encode())
                for matrix in (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight):
                    digest.update(f"{list(matrix.shape)}\n".encode())
                    digest.update(matrix.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- folders ---


def _copy_settings(
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


def _save(model: Any, folder: Path) -> None:
    """Save a network in the folder that its configuration came from, and leave that as it was."""
    config = (folder / "config.json").read_bytes()
    model.save_pretrained(folder)
    (folder / "config.json").write_bytes(config)
    for file in folder.glob("*.safetensors"):  # safetensors 0.8 lets the owner alone read them
        file.chmod(folder.stat().st_mode & 0o666)


@contextmanager
def _explained(file: Path, what: str) -> Iterator[None]:
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


def _once(key: Hashable, sources: list[Path], make: Callable[[Path], None]) -> Path:
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
        if code in (errno.ENOSPC, errno.EDQUOT):
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
