"""Find a checkpoint, tell whether it is whole, identify it by its content, load it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.base.paths import reference
from pytest_sdbench.models.hub import HUB_ID, cached_snapshot, download_snapshot
from pytest_sdbench.models.integrity import check_component, check_together
from pytest_sdbench.models.skeleton import known_keys
from pytest_sdbench.models.weights import COPY_AGAIN, Weights, find_weights, read_json

if TYPE_CHECKING:
    import torch

COMPONENTS = ("unet", "text_encoder", "vae")
EMBEDDED = "embedded:"
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
_FORMS = (
    "Write org/name@revision, embedded:NAME, ./folder (relative to the card), or a base and the folder of a "
    "U-Net: {base: ..., unet: ...}"
)


@dataclass(frozen=True)
class Checkpoint:
    """The weights under test, in diffusers layout, on this machine."""

    spec: str
    """What the card or the command line asked for."""

    folder: Path
    """The complete checkpoint, or the one that lends everything but the U-Net."""

    unet_folder: Path | None = None
    """The folder of another U-Net that takes the place of ``folder/unet``."""

    scheduler_folder: Path | None = None
    """The folder of the scheduler published together with that U-Net."""

    def part(self, name: str) -> Path:
        """Return the folder of ``unet``, ``text_encoder``, ``vae``, ``tokenizer`` or ``scheduler``."""
        override = {"unet": self.unet_folder, "scheduler": self.scheduler_folder}.get(name)
        return override or self.folder / name

    def config(self, name: str) -> dict[str, Any]:
        """Read the configuration of a component."""
        return read_json(
            self.part(name) / ("scheduler_config.json" if name == "scheduler" else "config.json")
        )

    def weights(self, name: str) -> Weights:
        """Find the weight files of a component."""
        return find_weights(self.part(name), name)

    @property
    def unet_config(self) -> dict[str, Any]:
        """The configuration of the U-Net under test, as far as the installed diffusers knows its keys."""
        return known_keys(self.config("unet"))

    @cached_property
    def fingerprint(self) -> str:
        """Identify the content of all components: 16 hex digits of a SHA-256.

        It depends on weights, configurations, vocabulary and scheduler alone: not on where the folder lies,
        what else is in it, nor on notes of library versions in a configuration.
        """
        digest = hashlib.sha256()
        for name, content in self._contents():
            digest.update(f"{name}\0{content}\n".encode())
        return digest.hexdigest()[:16]

    def _contents(self) -> Iterator[tuple[str, str]]:
        """Yield (name, SHA-256) of everything that the pipeline's results depend on."""
        for name in COMPONENTS:
            yield f"{name}/config", _config_digest(self.config(name))
            for file in self.weights(name).files:
                yield f"{name}/{file.name}", _file_digest(file)
        yield "scheduler/class", scheduler_class(self)
        yield "scheduler/config", _config_digest(self.config("scheduler"))
        for file in sorted(self.part("tokenizer").glob("*")):
            if file.suffix == ".json" and "config" in file.name:
                yield f"tokenizer/{file.name}", _config_digest(read_json(file))
            elif file.suffix in (".json", ".txt"):
                yield f"tokenizer/{file.name}", _file_digest(file)


def resolve(
    spec: str | Mapping[str, str] | None,
    *,
    card: str = "CARD",
    near: Path | None = None,
    weights: str | Path | None = None,
    download: bool = False,
) -> Checkpoint:
    """Find the checkpoint that a card names.

    ``spec`` is ``org/name@revision``, ``embedded:NAME``, a folder (``./folder``, relative to ``near``, the
    folder of the card), or a base and a U-Net (a mapping, or ``"base: X, unet: Y"``). ``weights`` replaces
    it: a complete folder, or that of a U-Net, which then stands on the components of ``spec``. Nothing is
    fetched from the hub without ``download``. Raise ``Unavailable`` where the checkpoint is not on this
    machine, and ``CheckpointError`` where a folder is named that is none.
    """
    if weights is not None:
        return _override(spec, Path(weights).expanduser().resolve(), card, near, download)
    if spec is None:
        raise Unavailable(
            "the card names no checkpoint",
            key="sdbench.checkpoint",
            remedy=f"Give the weights: --sdbench-weights {card}=PATH",
        )
    pair = split_pair(spec)
    if pair is None:
        folder = _locate(str(spec), card, near, download)
        if _is_unet(folder):
            raise CheckpointError(
                "the folder of a U-Net alone",
                file=folder,
                key="sdbench.checkpoint",
                remedy="Name the checkpoint that lends the other components: {base: ..., unet: ...}",
            )
        return Checkpoint(str(spec), _complete(folder))
    base, unet = pair
    unet_folder, scheduler_folder = _unet_parts(_locate(unet, card, near, download, components=("unet",)))
    # Every component but the U-Net is needed of the base; a cached copy often has them all.
    folder = _locate(base, card, near, download, components=("text_encoder", "vae"))
    return Checkpoint(f"base: {base}, unet: {unet}", _complete(folder), unet_folder, scheduler_folder)


def verify(checkpoint: Checkpoint) -> None:
    """Check that every tensor is there, of the shape that the configuration means, and finite.

    diffusers loads a checkpoint with a missing tensor, one too many, or NaN in it without an error. Raise
    ``CheckpointError`` that names file and tensor. Each content is checked once in a process.
    """
    if checkpoint.fingerprint in _verified:
        return
    for name in COMPONENTS:
        config_file = checkpoint.part(name) / "config.json"
        config = checkpoint.config(name)
        found = config.get("_class_name", _CLASSES[name])
        if found != _CLASSES[name]:
            raise CheckpointError(
                f"another kind of {name}",
                file=config_file,
                key="_class_name",
                found=found,
                remedy=f"Only checkpoints with a {_CLASSES[name]}, as SD v1's, are supported",
            )
        check_component(name, config, config_file, checkpoint.weights(name))
    check_together({name: checkpoint.config(name) for name in COMPONENTS}, checkpoint.folder)
    scheduler_class(checkpoint)
    _verified.add(checkpoint.fingerprint)


def load_pipeline(
    checkpoint: Checkpoint, *, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32"
) -> Any:
    """Verify a checkpoint and load it as a ``diffusers.StableDiffusionPipeline``.

    The safety checker is off (it blacks images out), the progress bar too; the networks are in evaluation
    mode, on ``device``, in ``dtype``; the scheduler is the checkpoint's own.
    """
    import diffusers
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    verify(checkpoint)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    tokenizer = _load_tokenizer(checkpoint)
    with _quiet():
        pipeline = StableDiffusionPipeline(
            unet=_load_model(UNet2DConditionModel, "unet", checkpoint, dtype),
            text_encoder=_load_model(CLIPTextModel, "text_encoder", checkpoint, dtype),
            vae=_load_model(AutoencoderKL, "vae", checkpoint, dtype),
            tokenizer=tokenizer,
            scheduler=getattr(diffusers, scheduler_class(checkpoint)).from_config(
                checkpoint.config("scheduler")
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        model.eval().requires_grad_(False)
    return pipeline.to(device)


def scheduler_class(checkpoint: Checkpoint) -> str:
    """Return the name of the scheduler's class: what ``model_index.json`` says, as diffusers reads it."""
    import diffusers

    index = {} if checkpoint.scheduler_folder else read_json(checkpoint.folder / "model_index.json")
    config = checkpoint.config("scheduler")
    _, name = index.get("scheduler") or (None, config.get("_class_name"))
    kind = getattr(diffusers, str(name), None)
    if kind is None or not issubclass(kind, diffusers.SchedulerMixin):
        raise CheckpointError(
            "unknown scheduler",
            file=checkpoint.part("scheduler") / "scheduler_config.json",
            key="_class_name",
            found=name,
            remedy="Name one of diffusers' schedulers, e.g. PNDMScheduler",
        )
    return str(name)


_verified: set[str] = set()
_digests: dict[tuple[str, int, int], str] = {}


def _file_digest(path: Path) -> str:
    """SHA-256 of a file; remembered in this process by real path, size and time of change."""
    real = path.resolve()
    status = real.stat()
    key = (str(real), status.st_size, status.st_mtime_ns)
    if key not in _digests:
        with real.open("rb") as stream:
            _digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _digests[key]


_NOTES = (
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "name_or_path",
    "local_files_only",
    "is_local",
)


def _config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, without private entries, notes of versions and paths, or its layout."""
    notes = {key for key in config if key.startswith("_") and key != "_class_name"}.union(_NOTES)
    kept = {key: value for key, value in config.items() if key not in notes}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _override(
    spec: str | Mapping[str, str] | None, folder: Path, card: str, near: Path | None, download: bool
) -> Checkpoint:
    if not folder.is_dir():
        raise CheckpointError(
            "no such folder",
            key=f"--sdbench-weights {card}",
            found=str(folder),
            remedy="Give a checkpoint in diffusers layout, or the folder of its U-Net",
        )
    if (folder / "model_index.json").is_file():
        return Checkpoint(str(folder), _complete(folder))
    unet_folder, scheduler_folder = _unet_parts(folder)
    pair = split_pair(spec) if spec is not None else None
    base = resolve(pair[0] if pair else spec, card=card, near=near, download=download)
    return Checkpoint(f"base: {base.spec}, unet: {folder}", base.folder, unet_folder, scheduler_folder)


def split_pair(spec: str | Mapping[str, str]) -> tuple[str, str] | None:
    """Split a spec into base and U-Net; None where it is a single one."""
    if isinstance(spec, str):
        match = re.fullmatch(r"\s*base:\s*(\S+?)\s*,\s*unet:\s*(\S+)\s*", spec)
        return (match[1], match[2]) if match else None
    if set(spec) != {"base", "unet"}:
        raise CheckpointError(
            "not a checkpoint", key="sdbench.checkpoint", found=", ".join(sorted(spec)), remedy=_FORMS
        )
    return spec["base"], spec["unet"]


def _locate(
    spec: str, card: str, near: Path | None, download: bool, components: tuple[str, ...] = COMPONENTS
) -> Path:
    """Return the folder that a single spec means."""
    if spec.startswith(EMBEDDED):
        folder = reference() / "checkpoints" / spec.removeprefix(EMBEDDED)
        remedy = "Embedded checkpoints: " + ", ".join(
            sorted(p.name for p in folder.parent.glob("*") if p.is_dir())
        )
    elif spec.startswith((".", "/", "~")):
        folder = ((near or Path.cwd()) / Path(spec).expanduser()).resolve()
        remedy = f"Put the checkpoint there, or give another: --sdbench-weights {card}=PATH"
    elif match := re.fullmatch(HUB_ID, spec):
        name, revision = match["name"], match["revision"]
        try:
            return (download_snapshot if download else cached_snapshot)(name, revision, components)
        except Unavailable as error:
            raise Unavailable(
                error.message,
                file=spec,
                found=error.found,
                remedy=f"{error.remedy or 'Fetch it: --sdbench-download'}, or give a local copy: "
                f"--sdbench-weights {card}=PATH",
            ) from error
    else:
        raise CheckpointError("not a checkpoint", key="sdbench.checkpoint", found=spec, remedy=_FORMS)
    if not folder.is_dir():
        raise CheckpointError(
            "no such folder", key="sdbench.checkpoint", found=f"{spec} -> {folder}", remedy=remedy
        )
    return folder


def _is_unet(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()


def _complete(folder: Path) -> Path:
    """Return ``folder`` if it is a pipeline of ours."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise CheckpointError(
            "not a checkpoint in diffusers layout: no model_index.json", file=folder, remedy=COPY_AGAIN
        )
    index = read_json(index_file)
    for name, kind in _CLASSES.items():
        found = index.get(name)
        if found is not None and (not isinstance(found, list) or found[-1] != kind):
            raise CheckpointError(
                f"another kind of {name}",
                file=index_file,
                key=name,
                found=found,
                remedy=f"Only checkpoints with a {kind}, as SD v1's, are supported",
            )
    return folder


def _unet_parts(folder: Path) -> tuple[Path, Path | None]:
    """Return the U-Net in ``folder``, and the scheduler beside it if the folder is no whole checkpoint."""
    if _is_unet(folder):
        return folder, None
    if (folder / "unet" / "config.json").is_file():
        lone = not (folder / "model_index.json").is_file()
        scheduler = folder / "scheduler"
        return folder / "unet", scheduler if lone and (
            scheduler / "scheduler_config.json"
        ).is_file() else None
    raise CheckpointError(
        "no U-Net: neither config.json nor unet/config.json",
        file=folder,
        found=sorted(path.name for path in folder.iterdir()),
        remedy="Give a checkpoint in diffusers layout, or the folder of its U-Net",
    )


def _load_model(kind: Any, name: str, checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Load one network with its library's own loader, and do not trust that everything arrived."""
    weights = checkpoint.weights(name)
    try:
        model, info = kind.from_pretrained(
            checkpoint.part(name),
            torch_dtype=dtype,
            variant=weights.variant,
            use_safetensors=weights.safetensors,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{kind.__name__} cannot be loaded",
            file=checkpoint.part(name),
            found=str(error),
            remedy=COPY_AGAIN,
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{kind.__name__} left {len(missing)} tensors at random values",
            file=weights.files[0],
            key=missing[0],
            remedy="Save the checkpoint again with the installed versions of diffusers and transformers",
        )
    return model


def _load_tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import CLIPTokenizer

    folder = checkpoint.part("tokenizer")
    present = {path.name for path in folder.glob("*")}
    # Without its files the tokenizer would come up with an empty vocabulary, and without an error.
    if not ({"vocab.json", "merges.txt"} <= present or "tokenizer.json" in present):
        raise CheckpointError(
            "no vocabulary",
            file=folder,
            found=sorted(present),
            remedy=f"It needs vocab.json and merges.txt. {COPY_AGAIN}",
        )
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise CheckpointError(
            "unreadable vocabulary", file=folder, found=str(error).splitlines()[0], remedy=COPY_AGAIN
        ) from error
    known = checkpoint.config("text_encoder").get("vocab_size", 49408)
    if len(tokenizer) > known:
        raise CheckpointError(
            f"the vocabulary has more tokens than the text encoder, which knows {known}",
            file=folder,
            key="text_encoder.vocab_size",
            found=len(tokenizer),
            remedy="Take tokenizer and text encoder from the same checkpoint",
        )
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' own progress bars and notices out of test output."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bar) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
