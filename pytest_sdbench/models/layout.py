"""Say what a folder or a file is, where it is no checkpoint that can be tested, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.models.weights import (
    COPY_AGAIN,
    TEXT_ENCODERS,
    WEIGHT_FILES,
    incomplete,
    read_json,
    shapes_of_file,
)

COMPONENTS = ("unet", "text_encoder", "vae")
"""Those of SD v1; asking for its text encoder means every one that a pipeline has."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of diffusers that draws pictures here, and what it is made of."""

    name: str
    """Its class."""
    components: tuple[str, ...] = COMPONENTS
    """Those that have weights."""
    tokenizers: tuple[str, ...] = ("tokenizer",)
    """One for each text encoder, in their order."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """What the U-Net takes besides latents, a timestep and text, by the key of its configuration."""
    settings: Mapping[str, bool] = field(default_factory=dict)
    """Entries of ``model_index.json`` that change pictures, and their defaults."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its constructor."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Everything that it is made of."""
        return (*self.components, *self.tokenizers, "scheduler")

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Its text encoders."""
        return tuple(name for name in self.components if name in TEXT_ENCODERS)

    @property
    def adapted(self) -> tuple[str, ...]:
        """The components that a LoRA changes."""
        return ("unet", *self.text_encoders)

    def meant(self, components: Sequence[str]) -> tuple[str, ...]:
        """Return components with every text encoder where one is among them."""
        return tuple(
            each
            for name in components
            for each in (self.text_encoders if name == "text_encoder" else (name,))
        )


SD = Pipeline(
    "StableDiffusionPipeline",
    options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)
SDXL = Pipeline(
    "StableDiffusionXLPipeline",
    ("unet", *TEXT_ENCODERS, "vae"),
    ("tokenizer", "tokenizer_2"),
    conditions={"addition_embed_type": "text_time"},
    settings={"force_zeros_for_empty_prompt": True},
    # An invisible watermark would be in the pixels that are judged.
    options={"add_watermarker": False},
)

_PLAIN = (
    *("DiffusionPipeline", SD.name, SDXL.name),
    *("StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"),
)
"""Classes whose checkpoints draw from text as these two do."""

PARTS = SD.parts
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""What a pipeline may have besides, and text to image needs none of."""
JOINED: Mapping[str, tuple[str, ...]] = {"unet": ("text_encoder", "vae"), "lora": COMPONENTS, "file": ()}
"""What may stand on a base, and of which components the base lends the weights."""
CLASSES = {
    "unet": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "vae": "AutoencoderKL",
}
"""The class of every component that a pipeline may have."""

SINGLE_FILES = (".safetensors", ".ckpt")
"""How files end that may hold a whole checkpoint in the original layout."""
_SUPPORTED = f"Supported is what {SD.name} and {SDXL.name} load: SD v1, v2 and XL, and their students"
LORA = "pytorch_lora_weights"
"""What diffusers calls the file of a LoRA, with .safetensors or .bin at its end."""
FUSE = (
    "Fuse it into its base and save that: pipeline.load_lora_weights(...), fuse_lora(), save_pretrained(...)"
)
PEFT = "an adapter in peft's own form, which is an addition to a network"
FUSE_PEFT = (
    "If it is of the U-Net, fuse it into its base and save that: "
    "pipeline.unet = PeftModel.from_pretrained(pipeline.unet, FOLDER).merge_and_unload(), "
    "pipeline.save_pretrained(...)"
)
"""The same for an adapter that peft saved without diffusers."""
_ON = "Name the checkpoint that it was trained on: {base: ..., lora: ...}"
_PICKLED = (
    "Save it as .safetensors: "
    'safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NAME.safetensors")'
)
_CONVERT = f"Convert it: {SD.name}.from_single_file(FILE).save_pretrained(FOLDER), and give that folder"
_STAND = "Name the checkpoint that it was made of, for the configuration: {base: ..., file: ...}"
_KINDS = (
    ("adapter_config.json", PEFT, FUSE_PEFT),
    ("*/adapter_config.json", PEFT, FUSE_PEFT),
    ("learned_embeds.*", "a textual inversion, which is an addition to a text encoder", _SUPPORTED),
    ("transformer", "a pipeline with a transformer (Flux, SD 3, PixArt)", _SUPPORTED),
    ("*/model_index.json", "a folder of checkpoints", "Give one of them"),
    ("optimizer.*", "the state of a training run", "Export the pipeline with save_pretrained, and give that"),
    ("*.gguf", "quantised weights for another program", _SUPPORTED),
    ("*.onnx", "a network for another program", _SUPPORTED),
    ("*/*.onnx", "a network for another program", _SUPPORTED),
    ("*.msgpack", "a network for another program", _SUPPORTED),
)
"""What else people publish, by its name or by what lies in its folder: pattern, what it is, what to do."""
_INSIDE = ("*.ckpt", "a folder with a single file of weights", "Give the file itself")
_OF_ONE = ("diffusion_pytorch_model.", "pytorch_model.", "model.")
"""How the files of diffusers and transformers begin, each of one network."""


def pipeline_of(folder: Path) -> Pipeline:
    """Return which pipeline a checkpoint's ``model_index.json`` is of: SDXL's has two text encoders.

    Raise ``CheckpointError`` where it is none, or is of another pipeline.
    """
    file = folder / "model_index.json"
    index = read_json(file)
    for name in SDXL.parts:
        found = index.get(name)
        if found is not None and not (
            isinstance(found, list)
            and len(found) == 2
            and {type(each) for each in found} <= {str, type(None)}
        ):
            raise CheckpointError(
                "not an entry of a pipeline",
                file=file,
                key=name,
                found=found,
                remedy=f'It reads like ["diffusers", "{CLASSES.get(name, "PNDMScheduler")}"]. {COPY_AGAIN}',
            )
    kind = _class_of(index)
    if not isinstance(kind, str):
        what = "not the name of a pipeline"
        raise CheckpointError(what, file=file, key="_class_name", found=kind, remedy=_SUPPORTED)
    held = [
        name for name, value in index.items() if name[:1] != "_" and isinstance(value, list) and any(value)
    ]
    pipeline = SDXL if kind == SDXL.name or "text_encoder_2" in held else SD
    # What the index calls [null, null] is none, whatever folder lies there; what it leaves out may be there.
    silent = [name for name in pipeline.parts if name not in index and (folder / name).is_dir()]
    lacking = [name for name in pipeline.parts if name not in (*held, *silent)]
    further = [name for name in held if name not in (*pipeline.parts, *UNUSED)]
    if (pipeline is SDXL or kind != SD.name) and (lacking or further):
        parts = [f"it has no {', '.join(lacking)}"] if lacking else []
        parts += [f"it has {', '.join(further)}"] if further else []
        what = f"a {kind}, which is not supported (yet): {' and '.join(parts)}"
        raise CheckpointError(what, file=file, key="_class_name", remedy=_SUPPORTED)
    if none := next((name for name in lacking if name in index), None):
        what = "a part that text to image needs, of which the index says that there is none"
        raise CheckpointError(what, file=file, key=none, found=index[none], remedy=COPY_AGAIN)
    for name in pipeline.components:
        check_class(name, (index.get(name) or [None])[-1], file, key=name)
    for name in pipeline.settings:
        if not isinstance(found := index.get(name, False), bool):
            raise CheckpointError("not true or false", file=file, key=name, found=found, remedy=COPY_AGAIN)
    return pipeline


def _class_of(index: Mapping[str, Any]) -> Any:
    """Return what an index calls its pipeline; one with its own code is a list of module and class."""
    kind = index.get("_class_name") or SD.name
    return kind[-1] if isinstance(kind, list) and kind else kind


def other_class(folder: Path) -> str | None:
    """Return what a checkpoint calls its pipeline where that may draw otherwise than the one it is loaded as.

    PAG, panorama and pipelines with their own code have the parts of a plain one.
    """
    kind = _class_of(read_json(folder / "model_index.json"))
    return None if kind in _PLAIN else str(kind)


def check_class(name: str, found: Any, file: Path, *, key: str) -> None:
    """Raise ``CheckpointError`` unless a component is of the class that is loaded, or the file is silent."""
    if found not in (None, CLASSES[name]):
        remedy = f"Only checkpoints with a {CLASSES[name]}, as Stable Diffusion's, are supported"
        raise CheckpointError(f"unsupported {name}", file=file, key=key, found=found, remedy=remedy)


def holds_unet(folder: Path) -> bool:
    """Return whether a folder holds a U-Net alone, which stands on the other parts of a base."""
    if (folder / "model_index.json").is_file():
        return False
    return is_unet(folder) or ((folder / "unet" / "config.json").is_file() and not companions(folder))


def companions(folder: Path) -> list[str]:
    """Return the components that a folder holds besides a U-Net."""
    return [name for name in SDXL.components[1:] if (folder / name).is_dir()]


def is_unet(folder: Path) -> bool:
    """Return whether a folder is that of a U-Net, for all that its configuration says."""
    return (folder / "config.json").is_file() and _kind_of(folder) in (None, CLASSES["unet"])


def _kind_of(folder: Path) -> Any:
    """Return what the configuration in a folder calls its network, if it says so."""
    config = read_json(folder / "config.json")
    return config.get("_class_name") or config.get("architectures") or config.get("model_type")


def no_checkpoint(path: Path, *, key: str | None = None) -> CheckpointError:
    """Return the error of a file or folder that is no checkpoint in diffusers layout: what it is instead."""
    if lora_file(path) is not None:
        return CheckpointError("this is a LoRA, which stands on a base", file=path, key=key, remedy=_ON)
    if not path.is_dir():
        return _no_folder(path, key)
    for pattern, what, remedy in (*_KINDS, _INSIDE):
        if found := sorted(each.relative_to(path).as_posix() for each in path.glob(pattern)):
            return CheckpointError(
                f"this is {what}; it is not supported (yet)",
                file=path,
                key=key,
                found=found[0],
                remedy=remedy,
            )
    config = path / "config.json"
    if config.is_file() and not is_unet(path):
        what = "a network, and neither a whole checkpoint nor a U-Net"
        return CheckpointError(what, file=config, key=key, found=_kind_of(path), remedy=_SUPPORTED)
    names = sorted(each.name for each in path.iterdir())
    weights = [name for name in names if Path(name).suffix in WEIGHT_FILES]
    if lora := next((path / name for name in weights if _is_pickled_lora(path / name)), None):
        return no_checkpoint(lora, key=key)
    if weights and not config.is_file():
        what = "a folder with weights, and without a configuration that says of which network"
        return CheckpointError(what, file=path, key=key, found=weights[0], remedy=_CONVERT)
    what = "not a checkpoint in diffusers layout: no model_index.json"
    return incomplete(what, path, key=key, found=names[:8])


def _no_folder(path: Path, key: str | None) -> CheckpointError:
    if not path.exists():
        remedy = "Give a checkpoint in diffusers layout, or the folder of its U-Net"
        return CheckpointError("no such folder", key=key, found=str(path), remedy=remedy)
    what, remedy = "a file, not a checkpoint in diffusers layout", "Give the folder of the checkpoint"
    known = next((kind[1:] for kind in _KINDS if fnmatch(path.name, kind[0])), None)
    ending = path.suffix.lower()
    if known is None and _is_pickled_lora(path):
        known = "a LoRA in a pickle", _PICKLED
    if ending in SINGLE_FILES and known is None:
        # With a base it is supported, and as what replaces a card's checkpoint.
        what = "this is a single file of weights, which says nothing of its configuration"
        return CheckpointError(what, file=path, key=key, remedy=_STAND)
    if known is not None:
        what, remedy = known
    elif ending in WEIGHT_FILES and path.name.startswith(_OF_ONE):
        what, remedy = "the weights of one network", "Give the folder of the checkpoint that it is of"
    elif ending in WEIGHT_FILES:
        what, remedy = "a single file of weights", _CONVERT
    elif ending in (".zip", ".tar", ".gz", ".7z"):
        what, remedy = "an archive", "Unpack it, and give the folder"
    return CheckpointError(f"this is {what}; it is not supported (yet)", file=path, key=key, remedy=remedy)


def lora_file(path: Path) -> Path | None:
    """Return the file of a LoRA, given it or its folder; None where this is something else.

    Raise ``CheckpointError`` where a folder holds several of them.
    """
    if path.is_dir():
        named = [path / f"{LORA}{suffix}" for suffix in (".safetensors", ".bin")]
        found = [each for each in named if each.is_file()][:1] or [
            each for each in sorted(path.glob("[!.]*.safetensors")) if _holds_lora(each)
        ]
        if len(found) > 1:
            names = ", ".join(each.name for each in found)
            raise CheckpointError("a folder of several LoRAs", file=path, found=names, remedy="Give one file")
        return found[0] if found else None
    if path.is_file() and path.suffix.lower() == ".safetensors":
        return path if _holds_lora(path) else None
    return path if path.is_file() and path.name == f"{LORA}.bin" else None


def _holds_lora(file: Path) -> bool:
    return any("lora" in name for name in shapes_of_file(file))


def _is_pickled_lora(path: Path) -> bool:
    if path.suffix not in (".ckpt", ".pt", ".pth", ".bin") or not path.is_file():
        return False
    # What is no plain pickle of tensors is told of by its name: this looks for a better reason alone.
    with suppress(CheckpointError):
        return _holds_lora(path)
    return False


def replaces(path: Path) -> str | None:
    """Return what of ``lora``, ``file`` and ``unet`` a path holds; None for any other file.

    A folder that is neither is taken for a U-Net's, or a whole checkpoint's.
    """
    if path.is_dir():
        whole = (path / "model_index.json").is_file() or is_unet(path)
        return "unet" if whole or lora_file(path) is None else "lora"
    if lora_file(path) is not None:
        return "lora"
    return "file" if path.is_file() and path.suffix.lower() in SINGLE_FILES else None


def has_vocabulary(tokenizer: Path) -> bool:
    """Return whether a tokenizer's folder has its vocabulary, in either form."""
    forms = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    return any(all((tokenizer / name).is_file() for name in form) for form in forms)
