"""Score how well pictures fit their captions, with an open_clip model."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from PIL import Image
from torch import Tensor, nn

from pytest_sdbench.base.errors import CheckpointError, ProtocolError, Unavailable
from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.base.paths import reference
from pytest_sdbench.features.definition import Extractor, Measure
from pytest_sdbench.models.counts import parameter_count
from pytest_sdbench.protocols.image_steps import Images

NAMED, LOCAL = "open_clip:", "local:"
_KEY = "metrics.clip_score.model"
_SETTINGS = (
    "open_clip_config",
    "config",
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens_map",
    "added_tokens",
)
"""What the names of files begin with that say how a model and its tokenizer work."""


@dataclass(frozen=True)
class ClipScorer:
    """A model, its picture transform and its tokenizer."""

    model: nn.Module
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[Sequence[str]], Tensor]
    sha256: str
    """Of the weights' file; of a folder's model, of its configuration and vocabulary as well."""

    @torch.inference_mode()
    def __call__(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Return the cosine of each picture, uint8 [B, H, W, 3], and its caption: float32 [B]."""
        device = next(self.model.parameters()).device
        pixels = torch.stack([self.preprocess(Image.fromarray(image)) for image in images])
        model: Any = self.model
        seen = model.encode_image(pixels.to(device), normalize=True)
        told = model.encode_text(self.tokenize(prompts).to(device), normalize=True)
        cosines: Tensor = (seen * told).sum(dim=-1).float()
        return cosines


def load_clip(name: str, *, device: torch.device | str = "cpu", download: bool = False) -> ClipScorer:
    """Load `open_clip:MODEL/TAG` from the local cache or `local:NAME` from a folder of open_clip's local-dir
    form.

    A local NAME is a path, or a folder of `reference/checkpoints`. Weights are never made up: open_clip
    builds a random model where it finds none. Raises Unavailable where the weights are not here,
    ProtocolError for a model that does not exist or whose activation is not that of its weights,
    CheckpointError for damaged weights.
    """
    if name.startswith(LOCAL):
        model_name, weights, settings = _local(name)
        pretrained = None
    elif name.startswith(NAMED):
        model_name, weights, settings = _named(name, download=download)
        pretrained = str(weights)
    else:
        raise ProtocolError(
            "a CLIP model is written open_clip:MODEL/TAG or local:FOLDER", key=_KEY, found=name
        )
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            model_name, pretrained, device=device, pretrained_text=False, **settings
        )
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as problem:
        what = f"open_clip cannot load this model: {problem}"
        remedy = "Delete the file and fetch it again, or correct open_clip_config.json beside it"
        raise CheckpointError(what, file=weights, remedy=remedy) from problem
    model.eval().requires_grad_(False)
    return ClipScorer(model, preprocess, _Tokenizer(tokenizer, model, weights), _checksum(name, weights))


def locate_clip(name: str) -> Path:
    """Return the weights' file of a model that is on this machine; raises as `load_clip` does."""
    return (_local(name) if name.startswith(LOCAL) else _named(name, download=False))[1]


def _checksum(name: str, weights: Path) -> str:
    """Return what stands for a model: whatever in its folder decides its scores."""
    if not name.startswith(LOCAL):
        return sha256_of(weights)
    told = hashlib.sha256(sha256_of(weights).encode())
    for path in sorted(weights.parent.iterdir()):
        if path.name.startswith(_SETTINGS) and path.suffix in (".json", ".txt") and path.is_file():
            told.update(path.name.encode() + b"\0")
            told.update(path.read_bytes().replace(b"\r\n", b"\n"))  # git may write them so
    return told.hexdigest()


class _Tokenizer:
    """open_clip's tokenizer, with proof that no caption lost the end token that the text tower reads."""

    def __init__(self, tokenizer: Any, model: Any, file: Path) -> None:
        self._tokenizer, self._file = tokenizer, file
        # A fast tokenizer keeps the settings of its last call in itself, and workers share this one.
        self._lock = threading.Lock()
        text = getattr(model, "text", model)
        pool = getattr(text, "pool_type", None) or getattr(text, "text_pool_type", None)
        inner = getattr(tokenizer, "tokenizer", None)
        end = getattr(tokenizer, "eot_token_id", None) if inner is None else inner.eos_token_id
        # The other poolings read a fixed place, whatever token stands there.
        self._end = end if pool in ("argmax", "eos") else None
        self._argmax = pool == "argmax"

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        with self._lock:
            tokens: Tensor = self._tokenizer(list(prompts))
        if self._end is not None:
            ends = (tokens == self._end).any(dim=1)
            if self._argmax:
                ends &= tokens.amax(dim=1) == self._end
            if not ends.all():
                row = int((~ends).nonzero()[0])
                what = "the tokenizer cuts off the end token, where the text tower reads the caption"
                remedy = "Give the tokenizer a post-processor that adds the end token, with the highest id"
                raise CheckpointError(what, file=self._file, found=prompts[row], remedy=remedy)
        return tokens


def _local(name: str) -> tuple[str, Path, dict[str, Any]]:
    text = name.removeprefix(LOCAL)
    folder = Path(text) if os.sep in text else reference() / "checkpoints" / text
    config = folder / "open_clip_config.json"
    if not config.is_file():
        remedy = "Put a model there in open_clip's local-dir form: configuration, weights and tokenizer"
        raise Unavailable("the CLIP model is not on this machine", file=config, remedy=remedy)
    # open_clip takes any weights it finds, in an order of its own, and random ones where it finds none.
    weights = folder / HF_SAFE_WEIGHTS_NAME
    if not weights.is_file():
        raise Unavailable("the CLIP model has no weights", file=weights, remedy="Put its weights there")
    return f"local-dir:{folder}", weights, {}


def _named(name: str, *, download: bool) -> tuple[str, Path, dict[str, Any]]:
    model, _, tag = name.removeprefix(NAMED).rpartition("/")
    if ":" in model:  # open_clip would ask the hub for its configuration
        what = "a model of open_clip is named by MODEL/TAG, and not by where its files lie"
        remedy = f"Write {NAMED}MODEL/TAG as open_clip.list_pretrained() has them, or {LOCAL}FOLDER"
        raise ProtocolError(what, key=_KEY, found=name, remedy=remedy)
    config = open_clip.get_model_config(model) if model else None
    source = open_clip.get_pretrained_cfg(model, tag)
    if config is None or not source:
        tags = open_clip.list_pretrained_tags_by_model(model)
        known = f"its weights are {', '.join(tags)}" if tags else "see open_clip.list_pretrained()"
        raise ProtocolError(
            "open_clip has no such model and weights", key=_KEY, found=name, remedy=f"For MODEL/TAG {known}"
        )
    if bool(config.get("quick_gelu")) != bool(source.get("quick_gelu")):
        right = model.removesuffix("-quickgelu") + ("-quickgelu" if source.get("quick_gelu") else "")
        what = "the activation (QuickGELU or not) is not the one that these weights were trained with"
        remedy = f"Write {NAMED}{right}/{tag}"
        raise ProtocolError(what, key=_KEY, found=name, remedy=remedy)
    weights = _cached(source)
    if weights is None:
        what = f"the weights of {name} are not on this machine"
        command = f'python -c "import open_clip; open_clip.create_model({model!r}, {tag!r})"'
        if not download:
            raise Unavailable(what, remedy=f"Run with --sdbench-download, or: {command}")
        try:
            weights = Path(open_clip.download_pretrained(source))
        except Exception as problem:
            raise Unavailable(f"{what}: {problem}", remedy=f"Try: {command}") from problem
    # Loading by file leaves out the picture settings that belong to the tag.
    picture = {f"image_{key}": source.get(key) for key in ("mean", "std", "interpolation", "resize_mode")}
    return model, weights, picture


def _cached(source: Mapping[str, Any]) -> Path | None:
    """Return where a cache on this machine holds the weights of a tag; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    if hub := source.get("hf_hub"):
        repository, file = os.path.split(hub)
        files = [f"{Path(file).stem}.safetensors", file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
        for name in files:
            found = try_to_load_from_cache(repository, name)
            if isinstance(found, str):
                return Path(found)
    elif url := source.get("url"):
        path = Path("~/.cache/clip").expanduser() / os.path.basename(url)
        return path if path.is_file() else None
    return None


def _load(name: str, *, data_root: Path | None, device: str, download: bool) -> tuple[Measure, str]:
    scorer = load_clip(name, device=device, download=download)
    return (lambda images, prompts: {"cosine": scorer(images, prompts)}), scorer.sha256


def _describe_local(name: str, data_root: Path | None) -> str:
    load_clip(name)
    return f"{locate_clip(name)}, loads"


def _download(name: str) -> tuple[str, int | None]:
    """Count the parameters of a plain CLIP model; others (of timm, with captions) are not built here."""
    config: Mapping[str, Any] = open_clip.get_model_config(name.removeprefix(NAMED).rpartition("/")[0]) or {}
    plain = {"embed_dim", "vision_cfg", "text_cfg"}
    if not plain <= set(config) <= plain | {"quick_gelu"}:
        return name, None
    if "timm_model_name" in config["vision_cfg"] or "hf_model_name" in config["text_cfg"]:
        return name, None
    with torch.device("meta"):
        return name, 4 * parameter_count(open_clip.CLIP(**config))


OPEN_CLIP = Extractor(
    name=NAMED,
    outputs={"cosine": 1},
    load=_load,
    describe=lambda name, data_root: f"{locate_clip(name)} (its publisher gives no checksum)",
    download=_download,
)
LOCAL_CLIP = Extractor(
    name=LOCAL,
    outputs={"cosine": 1},
    load=_load,
    weights=lambda name: _checksum(name, locate_clip(name)),
    describe=_describe_local,
)
