"""Find published weights, fetch them where that is allowed, and check that they are what was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import CheckpointError, Unavailable, first_line
from pytest_sdbench.base.files import known_sha256, sha256_of
from pytest_sdbench.base.text import size_text
from pytest_sdbench.features.definition import Extractor, Measure
from pytest_sdbench.models.hub import cached_file, download_file
from pytest_sdbench.models.weights import read_file

if TYPE_CHECKING:
    from torch import Tensor

Build = Callable[[Sequence[Path], str], Measure]
"""Make what measures images of the files of weights, on a device."""


@dataclass(frozen=True)
class WeightsFile:
    """A file of published weights."""

    repository: str
    revision: str
    """The commit, which never changes."""
    name: str
    licence: str
    size: int
    """Bytes; to three digits where the checksum is not known."""
    sha256: str | None
    """None: not known for certain; the file is used, reported as unverified, keyed by its own checksum."""
    url: str | None = None
    """Where it is fetched; None: from the hub."""

    @property
    def place(self) -> Path:
        """Return where it lies in a data root."""
        return Path(self.repository) / self.name


def find(file: WeightsFile, data_root: Path | None = None, *, download: bool = False) -> Path:
    """Return where a file is: in the data root, else in the cache of the hub (or of torch's hub, for a URL).

    With `download` it is fetched into the cache. Raises Unavailable that says how to get it.
    """
    if data_root is not None and (data_root / file.place).is_file():
        return data_root / file.place
    if (here := _cached(file)) is not None:
        return here
    if download:
        return _fetch(file)
    command = f"hf download {file.repository} {file.name} --revision {file.revision}"
    if file.url is not None:
        command = f"curl -L --create-dirs -o {_target(file)} {file.url}"
    raise Unavailable(
        f"these weights are not on this machine: {size_text(file.size)}, licence {file.licence}",
        key=f"{file.repository} {file.name}",
        remedy=f"Run with --sdbench-download, or put them into the folder of --sdbench-data as {file.place}, "
        f"or: {command}",
    )


def check(file: WeightsFile, path: Path) -> str:
    """Return the sha256 of a file; raise CheckpointError where another one is published."""
    found = sha256_of(path)
    if file.sha256 not in (None, found):
        what = f"this is not {file.name} of {file.repository}: its sha256 must be {file.sha256}"
        raise CheckpointError(what, file=path, found=found, remedy="Delete the file and fetch it again")
    return found


def read(file: WeightsFile, path: Path, inside: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file by name, in float32; integers (positions in old files) are left out.

    Raises CheckpointError as `weights.read_file`.
    """
    tensors = read_file(path, inside)
    return {name: value.float() for name, value in tensors.items() if value.dtype.is_floating_point}


def of_files(name: str, outputs: Mapping[str, int], files: Sequence[WeightsFile], build: Build) -> Extractor:
    """Define an extractor that takes these files: each is found, checked and told by `doctor` and `plan`."""

    def load(name: str, *, data_root: Path | None, device: str, download: bool) -> tuple[Measure, str]:
        paths = [find(file, data_root, download=download) for file in files]
        sums = [check(file, path) for file, path in zip(files, paths, strict=True)]
        return build(paths, device), "+".join(sums)

    def weights(name: str) -> str | None:
        known = [file.sha256 for file in files if file.sha256]
        return "+".join(known) if len(known) == len(files) else None

    def found(name: str, data_root: Path | None, download: bool) -> str:
        return "+".join(known_sha256(find(file, data_root, download=download)) for file in files)

    def describe(name: str, data_root: Path | None) -> str:
        told = []
        for file in files:
            path = find(file, data_root)
            check(file, path)
            state = "sha256 verified" if file.sha256 else "no checksum is known: unverified"
            told.append(f"{path}, {state}, licence {file.licence}")
        return "; ".join(told)

    def download(name: str) -> tuple[str, int | None]:
        lacking = [file for file in files if _cached(file) is None] or files
        licences = " and ".join(dict.fromkeys(file.licence for file in lacking))
        return f"{name} (licence {licences})", sum(file.size for file in lacking)

    return Extractor(name, outputs, load, weights, describe, download=download, found=found)


def _target(file: WeightsFile) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / file.name


def _cached(file: WeightsFile) -> Path | None:
    if file.url is None:
        return cached_file(file.repository, file.revision, file.name)
    return _target(file) if _target(file).is_file() else None


def _fetch(file: WeightsFile) -> Path:
    import torch

    if file.url is None:
        try:
            return download_file(file.repository, file.revision, file.name)
        except Unavailable as problem:
            raise problem.at(f"{file.repository}/{file.name}") from problem.__cause__
    target = _target(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(file.url, str(target), hash_prefix=file.sha256, progress=False)
    except (OSError, RuntimeError) as problem:
        what, found = "these weights cannot be fetched", first_line(problem)
        remedy = f"Check network and disk space, or try: curl -L -o {target} {file.url}"
        raise Unavailable(what, file=target, found=found, remedy=remedy) from problem
    return target
