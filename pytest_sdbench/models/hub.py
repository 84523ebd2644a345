"""Find a checkpoint in the hub's cache, or fetch just the files of it that are needed.

huggingface_hub does the fetching and keeps the cache. Which files to ask for is decided here: its own and
diffusers' downloads take whole repositories, safety checker and every format of the weights included, and
diffusers' knows no repository that is a U-Net alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_sdbench.base.errors import CheckpointError, Unavailable, first_line
from pytest_sdbench.models.layout import SD, SDXL, companions, has_vocabulary, pipeline_of
from pytest_sdbench.models.weights import candidates, find_weights

HUB_ID = r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?"
"""A repository of the hub, and optionally a commit, tag or branch of it."""

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
"""They settle which scheduler a U-Net is drawn with: its own, or that of its base."""


class CachedCopy(UserWarning):
    """The hub was to be asked for a repository and did not answer: its cached copy may be an older one."""


def cached_snapshot(name: str, revision: str | None, components: Sequence[str]) -> Path:
    """Return the cached folder of a repository; no network.

    Raise ``Unavailable`` where it is not cached, or where ``components`` are only partly there.
    """
    from huggingface_hub import try_to_load_from_cache

    # Not snapshot_download(local_files_only=True): it wants the whole repository, with every format of the
    # weights.
    for marker in ("model_index.json", "unet/config.json", "config.json"):
        found = try_to_load_from_cache(name, marker, revision=revision)
        if isinstance(found, str):
            folder = Path(found).parents[marker.count("/")]
            if missing := _missing(folder, components):
                raise Unavailable("only partly in the hub cache", found=f"no {', '.join(missing)}")
            return folder
    raise Unavailable("not in the hub cache")


def download_snapshot(name: str, revision: str | None, components: Sequence[str]) -> Path:
    """Fetch ``components`` of a repository to the hub cache, with tokenizer and scheduler; return the folder.

    One file format per component: the one that `find_weights` chooses. What is cached is not fetched again.
    Where the hub cannot be reached or refuses, a complete cached copy will do, with a warning; without one
    raise ``Unavailable``.
    """
    try:
        return _fetch_snapshot(name, revision, components)
    except Unavailable as error:
        with suppress(Unavailable):
            folder = cached_snapshot(name, revision, components)
            _warn(name, error)
            return folder
        raise


def _fetch_snapshot(name: str, revision: str | None, components: Sequence[str]) -> Path:
    import huggingface_hub

    if re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        # A commit never changes: a complete copy of one needs no network.
        with suppress(Unavailable):
            folder = cached_snapshot(name, revision, components)
            if not unknown_files(name, revision):
                return folder
    files: list[str] = []
    with _asked_once(files):
        files += huggingface_hub.list_repo_files(name, revision=revision)
        _note_absent(name, revision, files)
        wanted = wanted_files(files, components)
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
    if missing := _missing(folder, components):
        found, remedy = f"no {', '.join(missing)}", "Name another repository"
        raise CheckpointError("the repository lacks a part", file=folder, found=found, remedy=remedy)
    return folder


def unknown_files(name: str, revision: str | None) -> list[str]:
    """Return which of index and scheduler the cache neither holds nor knows to be absent; no network."""
    from huggingface_hub import try_to_load_from_cache

    return [
        file for file in (INDEX, SCHEDULER) if try_to_load_from_cache(name, file, revision=revision) is None
    ]


def _note_absent(name: str, revision: str | None, listed: Sequence[str]) -> None:
    """Let the client note in its cache which of index and scheduler a repository lacks: offline it tells."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    for file in {INDEX, SCHEDULER}.difference(listed):
        with suppress(EntryNotFoundError):
            huggingface_hub.hf_hub_download(name, file, revision=revision)


def _warn(name: str, error: Unavailable) -> None:
    warnings.warn(f"{name}: the cached copy is taken as it is: {error}", CachedCopy, stacklevel=3)


def cached_file(name: str, revision: str | None, file: str) -> Path | None:
    """Return where the cache holds a file of a repository at a commit; no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def download_file(name: str, revision: str | None, file: str) -> Path:
    """Fetch a file of a repository to the hub cache; raise ``Unavailable`` as `download_snapshot`."""
    import huggingface_hub

    with _asked_once():
        return Path(huggingface_hub.hf_hub_download(name, file, revision=revision))


@contextmanager
def _asked_once(answers: Sequence[str] = ()) -> Iterator[None]:
    """Raise ``Unavailable`` for what the client raises, and at once where the hub is known not to answer.

    A machine without network waits and retries for each repository anew. `answers` fill once it has answered.
    """
    what, remedy = "cannot be fetched from the hub", "Check network, access (`hf auth login`) and disk space"
    if _unreachable:
        raise Unavailable(what, found=_unreachable[0], remedy=remedy)
    try:
        yield
    except Exception as error:
        # The client lets errors of its transport, of the file system and of its own through; for the card
        # they all mean the same. A full disk shows in the text.
        found = f"{type(error).__name__}: {first_line(error)}"
        # The client's transport is httpx or requests, by its version: both have these names for a hub that
        # does not answer. An error of its own is about one repository alone.
        names = {kind.__name__ for kind in type(error).__mro__}
        if not answers and names & {"TransportError", "ConnectionError", "Timeout"}:
            _unreachable.append(found)
        raise Unavailable(what, found=found, remedy=remedy) from error


def hub_file(name: str, revision: str | None, files: Sequence[str], *, download: bool) -> Path:
    """Return the first of some files that the cached copy of a repository has, or fetch it.

    A scheduler that the repository holds comes along where it is fetched. Raise ``Unavailable`` where none is
    cached, or none can be fetched.
    """
    cached = next(filter(None, (cached_file(name, revision, file) for file in files)), None)
    if cached is not None and not (download and SCHEDULER in unknown_files(name, revision)):
        return cached
    if not download:
        raise Unavailable("not in the hub cache")
    try:
        return _fetch_file(name, revision, files)
    except Unavailable as error:
        if cached is None:
            raise
        _warn(name, error)
        return cached


def _fetch_file(name: str, revision: str | None, files: Sequence[str]) -> Path:
    import huggingface_hub

    listed: list[str] = []
    with _asked_once(listed):
        listed += huggingface_hub.list_repo_files(name, revision=revision)
        _note_absent(name, revision, listed)
    for file in files:
        if file in listed:
            if SCHEDULER in listed:
                download_file(name, revision, SCHEDULER)
            return download_file(name, revision, file)
    remedy = "Name another repository"
    raise CheckpointError("the repository lacks the file", file=name, found=f"no {files[0]}", remedy=remedy)


_unreachable: list[str] = []
"""How the hub could not be reached, once that is known."""


def forget_failures() -> None:
    """Try the hub again in this process: a new run begins."""
    _unreachable.clear()


def wanted_files(files: Sequence[str], components: Sequence[str]) -> list[str]:
    """Choose from a repository's files those that loading ``components`` takes."""
    wanted = [file for file in files if file == "model_index.json"]
    folders = {file.split("/")[0] for file in files}
    pipeline = SDXL if "text_encoder_2" in folders else SD
    if wanted and ("transformer" in folders or (pipeline is SDXL and "text_encoder" not in folders)):
        return wanted  # it says of which other kind the pipeline is; the rest is gigabytes
    settings = rf"scheduler/[^/]*\.json|({'|'.join(pipeline.tokenizers)})/[^/]*\.(json|txt)"
    wanted += [file for file in files if re.fullmatch(settings, file)]
    if not components:  # a single file has its configuration from here
        wanted += [file for file in files if file in {f"{name}/config.json" for name in pipeline.components}]
    for component in pipeline.meant(components):
        # A repository may be a U-Net alone, with its files at the top.
        alone = component == "unet" and "unet/config.json" not in files
        prefix = "" if alone else f"{component}/"
        wanted += [file for file in files if file == f"{prefix}config.json"]
        for each in candidates(component):
            if prefix + each.name in files:
                wanted.append(prefix + each.name)
                if each.shards:
                    inside = [file for file in files if file.startswith(prefix)]
                    wanted += [file for file in inside if each.shards.fullmatch(file.removeprefix(prefix))]
                break
    return wanted


def _missing(folder: Path, components: Sequence[str]) -> list[str]:
    """Name what is not there of ``components``, and of what a pipeline needs beside them.

    Without components that is what a single file takes: the configurations.

    Raise ``CheckpointError`` for a pipeline of another kind, of which it is no use to fetch more.
    """
    pipeline = pipeline_of(folder) if (folder / "model_index.json").is_file() else SD
    missing = []
    for component in pipeline.meant(components):
        part = folder / component
        if component == "unet" and not (part / "config.json").is_file():
            part = folder
        try:
            find_weights(part, component)
        except CheckpointError:
            missing.append(component)
        else:
            missing += [] if (part / "config.json").is_file() else [f"{component}/config.json"]
    beside = [] if components else [f"{name}/config.json" for name in pipeline.components]
    if "text_encoder" in components or not components:
        missing += [name for name in pipeline.tokenizers if not has_vocabulary(folder / name)]
        # Of a tokenizer's configuration comes the length of prompts.
        beside += [f"{name}/tokenizer_config.json" for name in pipeline.tokenizers if name not in missing]
        beside += [INDEX, SCHEDULER]
    elif companions(folder):
        beside.append(INDEX)  # a whole checkpoint of which not everything was fetched
    return missing + [name for name in beside if not (folder / name).exists()]
