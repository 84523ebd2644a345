"""Find the folder or the file that a card's ``checkpoint`` means, and say what it is instead of one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.base.paths import real, real_file, reference
from pytest_sdbench.models.digests import kept_entries
from pytest_sdbench.models.hub import (
    HUB_ID,
    INDEX,
    SCHEDULER,
    cached_snapshot,
    download_snapshot,
    hub_file,
    unknown_files,
)
from pytest_sdbench.models.layout import (
    COMPONENTS,
    JOINED,
    LORA,
    companions,
    holds_unet,
    is_unet,
    no_checkpoint,
    pipeline_of,
    replaces,
)
from pytest_sdbench.models.weights import COPY_AGAIN, WEIGHT_FILES, read_json

EMBEDDED = "embedded:"
"""How the spec begins of a checkpoint that ships with this package."""
_PATHS = (".", "/", "~")
"""How the name of a folder begins."""
_FORMS = (
    "Write org/name@revision, embedded:NAME, ./folder (relative to the card), or a base with the folder of a "
    "U-Net, a LoRA or a single file: {base: ..., unet: ...}, {base: ..., lora: ...}, {base: ..., file: ...}"
)


def embedded_folder(spec: str) -> Path:
    """Return where a checkpoint lies that ships with this package, or would."""
    return reference() / "checkpoints" / spec.removeprefix(EMBEDDED)


def is_spec(text: str) -> bool:
    """Return whether a text has the form of a single checkpoint's name, whatever lies there."""
    return text.startswith((EMBEDDED, *_PATHS)) or re.fullmatch(HUB_ID, text) is not None


def split_pair(spec: str | Mapping[str, str]) -> tuple[str, str, str] | None:
    """Split a spec into base, kind of what stands on it, and that; None where it is a single one."""
    kinds = "|".join(JOINED)
    if isinstance(spec, str):
        match = re.fullmatch(rf"\s*base:\s*(\S+?)\s*,\s*({kinds}):\s*(\S+)\s*", spec)
        return (match[1], match[2], match[3]) if match else None
    kind = next((kind for kind in JOINED if set(spec) == {"base", kind}), None)
    if kind is None:
        found = ", ".join(sorted(spec))
        raise CheckpointError("not a checkpoint", key="sdbench.checkpoint", found=found, remedy=_FORMS)
    return spec["base"], kind, spec[kind]


def locate(
    spec: str, card: str, near: Path | None, download: bool, components: tuple[str, ...] = COMPONENTS
) -> Path:
    """Return the folder that a single spec means."""
    if spec.startswith(EMBEDDED):
        folder = embedded_folder(spec)
        known = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
        remedy = f"Embedded checkpoints: {', '.join(known)}"
    elif spec.startswith(_PATHS):
        folder = real((near or Path.cwd()) / os.path.expanduser(spec))
        remedy = f"Put the checkpoint there, or give another: --sdbench-weights {card}=PATH"
    elif match := re.fullmatch(HUB_ID, spec):
        _check_hub_id(match, spec, near)
        find = download_snapshot if download else cached_snapshot
        try:
            return find(match["name"], match["revision"], components)
        except Unavailable as error:
            raise _elsewhere(error, spec, card) from error
    else:
        raise CheckpointError("not a checkpoint", key="sdbench.checkpoint", found=spec, remedy=_FORMS)
    if folder.is_file():
        raise no_checkpoint(folder, key="sdbench.checkpoint")
    if not folder.is_dir():
        found = f"{spec} -> {folder}"
        raise CheckpointError("no such folder", key="sdbench.checkpoint", found=found, remedy=remedy)
    return folder


def local(spec: str, near: Path | None) -> Path:
    """Return a file, or the folder of a LoRA; raise ``CheckpointError`` for a file that is no weights."""
    path = real_file((near or Path.cwd()) / os.path.expanduser(spec))
    if not path.exists():
        what, remedy = "no such file of weights", "Put it there, or name another"
        raise CheckpointError(what, key="sdbench.checkpoint", found=f"{spec} -> {path}", remedy=remedy)
    if path.is_file() and replaces(path) is None:
        raise no_checkpoint(path, key="sdbench.checkpoint")
    return path


def hub_lora(spec: str) -> re.Match[str] | None:
    """Return the match of `HUB_ID` where a LoRA lies on the hub; what ends like weights do is a path."""
    here = spec.startswith(_PATHS) or Path(spec).suffix.lower() in WEIGHT_FILES
    return None if here else re.fullmatch(HUB_ID, spec)


def locate_lora(spec: str, card: str, near: Path | None, download: bool) -> Path:
    """Return the file of a LoRA, or its folder: here or in the hub's cache."""
    match = hub_lora(spec)
    if match is None:
        return local(spec, near)
    _check_hub_id(match, spec, near)
    names = [f"{LORA}.safetensors", f"{LORA}.bin"]
    try:
        return hub_file(match["name"], match["revision"], names, download=download)
    except Unavailable as error:
        raise _elsewhere(error, spec, card) from error


def _check_hub_id(match: re.Match[str], spec: str, near: Path | None) -> None:
    """Raise ``CheckpointError`` for a name that the hub has none of, and for one that a folder here has."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if ((near or Path.cwd()) / spec).is_dir():
        what = "this is a folder here, and the name of a repository on the hub"
        remedy = f"For the folder write ./{spec}, for the repository {spec}@main"
        raise CheckpointError(what, key="sdbench.checkpoint", found=spec, remedy=remedy)
    try:
        validate_repo_id(match["name"])
    except HFValidationError as error:
        what = "not the name of a repository on the hub"
        raise CheckpointError(what, key="sdbench.checkpoint", found=spec, remedy=_FORMS) from error


def _elsewhere(error: Unavailable, spec: str, card: str) -> Unavailable:
    remedy = f"{error.remedy or 'Fetch it: --sdbench-download'}, or give a local copy: "
    return Unavailable(
        error.message, file=spec, found=error.found, remedy=f"{remedy}--sdbench-weights {card}=PATH"
    )


def complete(folder: Path) -> Path:
    """Return ``folder`` if it is a pipeline of ours."""
    if holds_unet(folder):
        what = "this folder holds a U-Net alone"
        remedy = "As `base`, name a whole checkpoint, which lends the other parts: {base: ..., unet: ...}"
        raise CheckpointError(what, file=folder, key="sdbench.checkpoint", remedy=remedy)
    if not (folder / "model_index.json").is_file():
        raise no_checkpoint(folder)
    pipeline_of(folder)
    return folder


def unet_parts(folder: Path) -> tuple[Path, Path | None]:
    """Return the U-Net in ``folder``, and the scheduler beside it if the folder is no whole checkpoint.

    Raise ``CheckpointError`` for further components that no index makes a checkpoint of: they were trained,
    perhaps, and those of the base would be judged.
    """
    whole = (folder / "model_index.json").is_file()
    if whole:
        pipeline_of(folder)
    if is_unet(folder) and not whole:
        return folder, None
    if (folder / "unet" / "config.json").is_file():
        if not whole and (others := companions(folder)):
            raise CheckpointError(
                "components besides a U-Net, and no model_index.json that makes a checkpoint of them",
                file=folder,
                found=", ".join(others),
                remedy="Copy the index too, or make one: load the pipeline that was trained, put these "
                f"components into it, save_pretrained(...). Or give {folder / 'unet'}, for the U-Net alone",
            )
        brings = not whole and (folder / "scheduler" / "scheduler_config.json").is_file()
        return folder / "unet", folder / "scheduler" if brings else None
    error = no_checkpoint(folder)
    if error.remedy != COPY_AGAIN:
        raise error
    raise CheckpointError(
        "no U-Net: neither config.json nor unet/config.json",
        file=folder,
        found=error.found,
        remedy="Give a checkpoint in diffusers layout, or the folder of its U-Net",
    )


def other_scheduler(unet: Path, used: Path) -> str | None:
    """Return a note where another scheduler lies beside a U-Net, or in it, than ``used``, a configuration.

    Raise ``CheckpointError`` where the two mean different things by what the U-Net predicts.
    """
    places = (folder / SCHEDULER for folder in (unet, unet.parent))
    own = next((file for file in places if file.is_file()), used)
    if own == used:
        return None
    theirs, ours = kept_entries(read_json(own)), kept_entries(read_json(used))
    predicts, taken = (each.get("prediction_type") or "epsilon" for each in (theirs, ours))
    if predicts != taken:
        whole = (own.parents[1] / "model_index.json").is_file()
        raise CheckpointError(
            f"a U-Net that predicts {predicts}, by the scheduler beside it, to be drawn as one of {taken}",
            file=own,
            key="prediction_type",
            found=f"{predicts}, and {taken} in {used}",
            remedy=f"To draw it with its own, give {own.parents[1]}{', without a base' if whole else ''}",
        )
    # What is false or nothing by default is often left out.
    names = sorted(key for key in {*ours, *theirs} if (ours.get(key) or None) != (theirs.get(key) or None))
    if not names:
        return None
    kinds = [str(each.get("_class_name")) for each in (ours, theirs)]
    told = ", not ".join(kinds) if kinds[0] != kinds[1] else f"{kinds[0]} with another {', '.join(names[:5])}"
    return f"the scheduler is not the one beside the U-Net: {told}"


def untold_by_cache(spec: str, kind: str) -> tuple[str, ...]:
    """Return a note where the hub's cache does not tell with which scheduler something was published."""
    if (match := hub_lora(spec)) is None:
        return ()
    unknown = unknown_files(match["name"], match["revision"])
    if SCHEDULER in unknown:
        told = f"{SCHEDULER}: the scheduler is that of the base"
    elif kind == "unet" and INDEX in unknown:
        told = f"{INDEX}, and so is a whole checkpoint: the scheduler is the one beside its U-Net"
    else:
        return ()
    return (f"the hub's cache does not tell whether {spec} has {told} (--sdbench-download asks)",)
