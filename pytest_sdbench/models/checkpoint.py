"""Find a checkpoint, and identify it by its content."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.base.files import known_sha256
from pytest_sdbench.base.paths import real_file
from pytest_sdbench.models.access import readable
from pytest_sdbench.models.beside import passed_over, some
from pytest_sdbench.models.conversion import convert_single_file
from pytest_sdbench.models.digests import VOCABULARY, config_digest, kept_entries, vocabulary_digest
from pytest_sdbench.models.layout import (
    CLASSES,
    COMPONENTS,
    FUSE,
    JOINED,
    PARTS,
    SD,
    UNUSED,
    Pipeline,
    lora_file,
    no_checkpoint,
    other_class,
    pipeline_of,
    replaces,
)
from pytest_sdbench.models.lora import fuse_lora
from pytest_sdbench.models.lora_layers import Base
from pytest_sdbench.models.quantised import quantised_words
from pytest_sdbench.models.skeleton import known_keys, text_config
from pytest_sdbench.models.specs import (
    complete,
    local,
    locate,
    locate_lora,
    other_scheduler,
    split_pair,
    unet_parts,
    untold_by_cache,
)
from pytest_sdbench.models.weights import (
    TEXT_ENCODERS,
    Weights,
    check_link,
    find_weights,
    read_json,
    unread,
)

_DIFFUSERS = {name: CLASSES[name] for name in ("unet", "vae")}


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
    notes: tuple[str, ...] = ()
    """What the folder was made of, where it is not what was published."""
    base: Checkpoint | None = None
    """What a LoRA was fused into."""
    lora: str | None = None
    """The digest of that LoRA's matrices."""

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline that the checkpoint is loaded as."""
        return pipeline_of(self.folder)

    def part(self, name: str) -> Path:
        """Return the folder of a component, a tokenizer or the ``scheduler``."""
        override = {"unet": self.unet_folder, "scheduler": self.scheduler_folder}.get(name)
        return override or self.folder / name

    def config_file(self, name: str) -> Path:
        """Return the file of a component's configuration."""
        return self.part(name) / ("scheduler_config.json" if name == "scheduler" else "config.json")

    def config(self, name: str) -> dict[str, Any]:
        """Read the configuration of a component, as its library obeys it."""
        return _obeyed(self, name, read_json(self.config_file(name)))

    @readable()
    def weights(self, name: str) -> Weights:
        """Find the weight files of a component; raise ``CheckpointError`` for an adapter beside them."""
        # transformers loads it on top, unasked, wherever peft is installed: the files are not the model.
        if (adapter := self.part(name) / "adapter_config.json").is_file():
            what = f"an adapter on the {name}, which is not supported (yet)"
            raise CheckpointError(what, file=adapter, remedy=f"{FUSE}. Or delete the file")
        return replace(find_weights(self.part(name), name), quantised=self.quantised(name) is not None)

    def quantised(self, name: str) -> str | None:
        """Return how a component's weights are quantised, in words; None where they are not."""
        file = self.config_file(name)
        config = read_json(file).get("quantization_config") if file.is_file() else None
        return None if config is None else quantised_words(config)

    @property
    def unet_config(self) -> dict[str, Any]:
        """The configuration of the U-Net under test, as far as the installed diffusers knows its keys."""
        return known_keys(self.config("unet"))

    @cached_property
    @readable()
    def choices(self) -> tuple[str, ...]:
        """Which weights are those of the checkpoint where there are several, and what was not looked at."""
        notes = list(self.notes)
        if (told := self.other_scheduler()) is not None:
            notes.append(told)
        if (named := other_class(self.folder)) is not None:
            notes.append(f"model_index.json calls it a {named}: it is judged as a {self.pipeline.name} draws")
        for name in self.pipeline.components:
            weights = self.weights(name)
            judged = (weights.index or weights.files[0]).name
            if (how := self.quantised(name)) is not None:
                size = sum(file.stat().st_size for file in weights.files)
                notes.append(f"{name}: quantised: {how}, {size:,} bytes")
            if rest := unread(self.part(name), weights):
                notes.append(f"{name}: {judged} was judged, not {some(rest)}")
            elif weights.variant:
                notes.append(f"{name}: {judged} was judged, a variant that must be asked for by its name")
        beside = sorted(self.folder.iterdir())
        if self.unet_folder is not None:
            parent = self.unet_folder.parent
            # In a folder that has its U-Net in `unet/` the files are of the same publication: a LoRA, say.
            files = parent.iterdir() if self.unet_folder.name == "unet" else ()
            beside += sorted({*parent.glob("unet*"), *(each for each in files if each.is_file())})
        known = {self.folder / name for name in (*self.pipeline.components, *UNUSED)} | {self.part("unet")}
        notes += passed_over(path for path in beside if path not in known)
        return tuple(dict.fromkeys(notes))

    def other_scheduler(self) -> str | None:
        """Return a note where the U-Net was published with another scheduler; raises as the function."""
        return other_scheduler(self.part("unet"), self.config_file("scheduler"))

    @cached_property
    @readable()
    def fingerprint(self) -> str:
        """Identify the content of all components: 16 hex digits of a SHA-256.

        It depends on weights, configurations, vocabulary and scheduler alone: not on where the folder lies,
        what else is in it, nor on notes of library versions in a configuration. Of a fused LoRA the base and
        the matrices count in place of the weights: the last digits of their product are this processor's.
        """
        contents = dict[str, str]()
        if self.base is not None and self.lora is not None:
            contents |= {"base": self.base.fingerprint, "lora": self.lora}
        for name in () if contents else self.pipeline.components:
            contents[f"{name}/config"] = config_digest(self.settings(name))
            digests = zip(self.weights(name).files, self.file_digests(name), strict=True)
            contents |= {f"{name}/{file.name}": digest for file, digest in digests}
        contents["scheduler/class"] = scheduler_class(self)
        contents["scheduler/config"] = config_digest(self.settings("scheduler"))
        settings, vocabulary = self.tokenizer_settings, self.vocabulary
        for name in sorted([*settings, *vocabulary]):
            contents[f"tokenizer/{name}"] = vocabulary.get(name) or config_digest(settings[name])
        if self.pipeline_settings:
            contents["pipeline/config"] = config_digest(self.pipeline_settings)
        listed = "".join(f"{name}\0{content}\n" for name, content in contents.items())
        return hashlib.sha256(listed.encode()).hexdigest()[:16]

    def settings(self, name: str) -> dict[str, Any]:
        """Return a configuration without private entries, and notes of versions and paths."""
        return kept_entries(self.config(name))

    @property
    def pipeline_settings(self) -> dict[str, bool]:
        """What ``model_index.json`` says of how the pipeline draws."""
        index = read_json(self.folder / "model_index.json")
        return {name: index.get(name, default) for name, default in self.pipeline.settings.items()}

    def file_digests(self, name: str) -> list[str]:
        """Return the SHA-256 of each weight file of a component."""
        return [known_sha256(file) for file in self.weights(name).files]

    @property
    def vocabulary(self) -> dict[str, str]:
        """The SHA-256 of each file of a tokenizer that is no configuration, a second one's by its folder."""
        return {name: vocabulary_digest(file) for name, file in self._tokenizer_files(settings=False)}

    @property
    def tokenizer_settings(self) -> dict[str, dict[str, Any]]:
        """Each configuration of a tokenizer, by its file."""
        return {name: kept_entries(read_json(file)) for name, file in self._tokenizer_files(settings=True)}

    def _tokenizer_files(self, *, settings: bool) -> Iterator[tuple[str, Path]]:
        for tokenizer in self.pipeline.tokenizers:
            folder = self.part(tokenizer)
            for file in folder.iterdir() if folder.is_dir() else []:
                known = file.suffix == ".json" and "config" in file.name
                if not (known or file.name in VOCABULARY) or file.name.startswith("."):
                    continue  # hidden ones are what macOS writes beside a file on other disks
                check_link(file)
                if not file.is_file():
                    continue
                if known is settings:
                    yield file.name if tokenizer == "tokenizer" else f"{tokenizer}/{file.name}", file


@readable()
def resolve(
    spec: str | Mapping[str, str] | Checkpoint | None,
    *,
    card: str = "CARD",
    near: Path | None = None,
    weights: str | Path | None = None,
    download: bool = False,
) -> Checkpoint:
    """Find the checkpoint that a card names.

    ``spec`` is ``org/name@revision``, ``embedded:NAME``, a folder (``./folder``, relative to ``near``, the
    folder of the card), or a base and what stands on it (a mapping, or ``"base: X, unet: Y"``): a U-Net, or
    a single file. ``weights`` replaces it: a complete folder, or that of a U-Net, which then stands on the
    components of ``spec`` (which may be a checkpoint as well), or a single file, which has its configuration
    from there. Nothing is fetched from the hub without ``download``. Raise ``Unavailable`` where the
    checkpoint is not on this machine, and ``CheckpointError`` where a folder is named that is none.
    """
    if weights is not None:
        return _override(spec, real_file(weights), card, near, download)
    if isinstance(spec, Checkpoint):
        return spec
    if spec is None:
        remedy = f"Give the weights: --sdbench-weights {card}=PATH"
        raise Unavailable("the card names no checkpoint", key="sdbench.checkpoint", remedy=remedy)
    pair = split_pair(spec)
    if pair is None:
        return Checkpoint(str(spec), complete(locate(str(spec), card, near, download)))
    base, kind, other = pair
    # Not every component is needed of the base; a cached copy often has them all.
    folder = partial(locate, base, card, near, download, components=JOINED[kind])
    if kind == "file":
        return _of_file(local(other, near), Checkpoint(base, complete(folder())))
    if kind == "lora":
        file = locate_lora(other, card, near, download)
        made = _of_lora(file, other, Checkpoint(base, complete(folder())))
        return replace(made, notes=made.notes + untold_by_cache(other, kind))
    own = unet_parts(locate(other, card, near, download, components=("unet",)))
    notes = untold_by_cache(other, kind)
    return _fitting(Checkpoint(f"base: {base}, unet: {other}", complete(folder()), *own, notes=notes))


def scheduler_class(checkpoint: Checkpoint) -> str:
    """Return the name of the scheduler's class: what ``model_index.json`` says, as diffusers reads it."""
    import diffusers

    index = {} if checkpoint.scheduler_folder else read_json(checkpoint.folder / "model_index.json")
    name = (index.get("scheduler") or [None])[-1]
    if name is None:
        name = read_json(checkpoint.config_file("scheduler")).get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if lacking := getattr(kind, "_backends", None):
        remedy = f"pip install {' '.join(lacking)}"
        what = f"{name} needs {', '.join(lacking)}, and not all of them are installed"
        raise Unavailable(what, file=checkpoint.config_file("scheduler"), key="_class_name", remedy=remedy)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise CheckpointError(
            "unknown scheduler",
            file=checkpoint.config_file("scheduler"),
            key="_class_name",
            found=name,
            remedy="Name one of diffusers' schedulers, e.g. PNDMScheduler",
        )
    return str(name)


_DEFAULTED = "_use_default_values"


def _obeyed(checkpoint: Checkpoint, name: str, written: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the values that its library gives the constructor.

    diffusers passes over the keys that ``_use_default_values`` lists: the defaults stand for them.
    """
    if name in TEXT_ENCODERS:
        return dict(text_config(written))
    if name not in (*_DIFFUSERS, "scheduler") or _DEFAULTED not in written:
        return written
    import diffusers

    listed = written[_DEFAULTED]
    if not (isinstance(listed, list) and all(isinstance(key, str) for key in listed)):
        file, remedy = checkpoint.config_file(name), "Remove the entry, which save_pretrained never writes"
        raise CheckpointError("not a list of keys", file=file, key=_DEFAULTED, found=listed, remedy=remedy)
    kind = getattr(diffusers, _DIFFUSERS.get(name) or scheduler_class(checkpoint))
    parameters = inspect.signature(kind.__init__).parameters
    return {
        key: parameters[key].default if key in listed and key in parameters else value
        for key, value in written.items()
        if key != _DEFAULTED
    }


def _override(
    spec: str | Mapping[str, str] | Checkpoint | None,
    path: Path,
    card: str,
    near: Path | None,
    download: bool,
) -> Checkpoint:
    if (kind := replaces(path)) is None:
        raise no_checkpoint(path, key=f"--sdbench-weights {card}")
    if (path / "model_index.json").is_file():
        return Checkpoint(str(path), complete(path))
    own = unet_parts(path) if kind == "unet" else None
    if spec is None:
        what = "this stands on a checkpoint, and the card names none"
        remedy = "Name the one that it was made of: `checkpoint:` in the card"
        raise Unavailable(what, file=path, key="sdbench.checkpoint", remedy=remedy)
    pair = None if isinstance(spec, Checkpoint) else split_pair(spec)
    # A LoRA gives way to whatever takes its place on the base.
    if isinstance(spec, Checkpoint):
        base = spec.base or spec
    elif pair is not None and pair[1] not in (kind, "lora"):
        base = resolve(spec, card=card, near=near, download=download)
    else:
        name = pair[0] if pair else str(spec)
        components = () if kind == "file" else COMPONENTS
        base = Checkpoint(name, complete(locate(name, card, near, download, components)))
    if own is not None:
        scheduler, notes = own[1], base.notes
        # Weights alone have that of what they take the place of.
        if scheduler is None and isinstance(spec, Checkpoint):
            scheduler = spec.scheduler_folder
        elif scheduler is None and pair is not None and pair[1] == "unet":
            try:
                scheduler = unet_parts(locate(pair[2], card, near, download, components=("unet",)))[1]
                notes += untold_by_cache(pair[2], "unet")
            except (CheckpointError, Unavailable):
                notes += ("the scheduler is that of the base: the U-Net that the card names is not at hand",)
        return _fitting(
            Checkpoint(f"base: {base.spec}, unet: {path}", base.folder, own[0], scheduler, notes=notes)
        )
    return _of_file(path, base) if kind == "file" else _of_lora(path, str(path), base)


def _fitting(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint; raise ``CheckpointError`` where its U-Net predicts otherwise than it is drawn."""
    checkpoint.other_scheduler()
    return checkpoint


def _of_file(file: Path, base: Checkpoint) -> Checkpoint:
    """Return the checkpoint of a single file, with the configuration of another one."""
    if base.pipeline is not SD:
        what = "a single file on a checkpoint of SDXL, which is not supported (yet)"
        remedy = f"Convert it: {base.pipeline.name}.from_single_file(FILE).save_pretrained(FOLDER)"
        raise CheckpointError(what, file=file, found=base.spec, remedy=f"{remedy}, and give that folder")
    parts = {name: base.part(name) for name in PARTS}
    folder, notes = convert_single_file(file, parts, scheduler_class(base))
    return Checkpoint(f"base: {base.spec}, file: {file}", folder, notes=notes)


def _of_lora(path: Path, spec: str, base: Checkpoint) -> Checkpoint:
    """Return the checkpoint with a LoRA fused into another one."""
    if (file := lora_file(path)) is None:
        raise no_checkpoint(path, key="lora")
    folder, note, digest = fuse_lora(file, as_base(base, file))
    # A folder may hold more that was trained with it: the embeddings of new words, say.
    beside = [each for each in sorted(path.iterdir()) if each != file] if path.is_dir() else []
    notes = (*base.choices, note, *passed_over(beside))
    return Checkpoint(f"base: {base.spec}, lora: {spec}", folder, notes=notes, base=base, lora=digest)


def as_base(checkpoint: Checkpoint, lora: Path) -> Base:
    """Return what the LoRA in a file stands on."""
    of = checkpoint.pipeline
    parts = {name: checkpoint.part(name) for name in of.parts}
    # Published together with it, in its folder or its repository.
    if (own := lora.parent / "scheduler" / "scheduler_config.json").is_file():
        parts["scheduler"] = own.parent
    weights = {name: checkpoint.weights(name) for name in of.components}
    scheduler = str(read_json(own).get("_class_name")) if own.is_file() else scheduler_class(checkpoint)
    return Base(checkpoint.spec, parts, weights, scheduler, of, checkpoint.pipeline_settings)
