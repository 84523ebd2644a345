"""Read and make reference statistics: npz files in pytorch-fid's form.

Keys: `mu` [D] and `sigma` [D, D], float64; ours add `n` (images), `features` [M, D] where KID is to be had,
and `provenance` (JSON). Files of pytorch-fid, which have the first two, are read as well.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_sdbench.base.environment import true_float32
from pytest_sdbench.base.errors import DataError, SdbenchError, Unavailable, first_line
from pytest_sdbench.base.files import holds_pointer, sha256_of, write_atomically
from pytest_sdbench.base.progress import progress
from pytest_sdbench.base.text import plain
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.features.archives import guarded
from pytest_sdbench.features.definition import FeatureNetwork
from pytest_sdbench.features.extractors import known_fingerprint, open_extractor, width_of
from pytest_sdbench.features.images import BATCH, decode, in_batches, open_images
from pytest_sdbench.features.pixels import remarks
from pytest_sdbench.features.scene_set import SceneSet, scenes_like
from pytest_sdbench.metrics.definition import column
from pytest_sdbench.metrics.moments import FeatureStatistics, Moments
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.image_steps import Images, apply_image_steps
from pytest_sdbench.protocols.metric_specs import ReferencedSpec
from pytest_sdbench.protocols.sections import Jpeg, Resize

_FEATURES = 4096
"""Features that are kept where a metric reads them, unless somebody wants others."""
_BY, _STEPS, _SCENES = "provenance.extractor", "provenance.steps", "provenance.images"

if TYPE_CHECKING:
    from pytest_sdbench.protocols.protocol import Protocol

_LARGEST = 2**29
"""Bytes that the arrays of a file of statistics may come to; those of 50,000 features take 400 MB."""


# --- read ---


def load_reference(
    path: Path,
    *,
    width: int,
    sha256: str | None = None,
    extractor: str | None = None,
    size: int | None = None,
    scenes_of: str | None = None,
    again: str = "Compute it again: python -m pytest_sdbench stats --help",
) -> FeatureStatistics:
    """Return the reference statistics in a file, checked; `again` tells how to make them.

    `scenes_of` is the `kind` of the scenes that a protocol shows; None for other pictures.
    Raises Unavailable where there is no file, DataError for another checksum, a missing key, another width,
    NaN, a covariance that is none, other weights than the extractor has now, other scenes, and anything that
    is no npz of plain arrays.
    """

    def fault(message: str, key: str | None = None, found: object = None, remedy: str = again) -> DataError:
        return DataError(message, file=path, key=key, found=found, remedy=remedy)

    if not path.is_file():
        remedy = f"Put them there. {again}"
        raise Unavailable("the reference statistics are not on this machine", file=path, remedy=remedy)
    if holds_pointer(path):
        raise fault("a Git LFS pointer, not the statistics", remedy="Run: git lfs pull")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        remedy = "Put the right file there, or name this one in a protocol of its own"
        what = f"these are other reference statistics: the sha256 must be {sha256}"
        raise fault(what, found=found, remedy=remedy)
    arrays = _arrays(path, again)
    for key, shape in (("mu", (width,)), ("sigma", (width, width))):
        if key not in arrays:
            raise fault("this key is missing", key, sorted(arrays))
        if arrays[key].shape != shape:
            remedy = "These are the statistics of another extractor: name the one they were made with"
            what = f"the extractor has {width} features, so the shape must be {list(shape)}"
            raise fault(what, key, list(arrays[key].shape), remedy)
    for key in ("mu", "sigma", "features"):
        values = arrays.get(key, np.zeros(0))
        if not (np.issubdtype(values.dtype, np.floating) and np.isfinite(values).all()):
            raise fault("NaN, infinity or no numbers at all", key)
    sigma = arrays["sigma"].astype(np.float64)
    symmetric = np.allclose(sigma, sigma.T, rtol=1e-5, atol=1e-7 * np.abs(sigma).max())
    if not symmetric or (np.diagonal(sigma) < 0).any():
        raise fault("a covariance is symmetric with variances of 0 or more", "sigma")
    features = arrays.get("features")
    if features is not None and (features.ndim != 2 or features.shape[1] != width):
        raise fault(f"must be [M, {width}]", "features", list(features.shape))
    about = _check_provenance(str(arrays.get("provenance", "{}")), extractor, size, fault)
    made = re.fullmatch(r"scenes \d+ to \d+(.*)", str(about.get("images")))
    if made and scenes_of not in (None, made[1]):
        raise fault(f"the protocol shows scenes{scenes_of}, and these are others", _SCENES, made[0])
    return FeatureStatistics(
        mu=arrays["mu"].astype(np.float64),
        sigma=(sigma + sigma.T) / 2,
        n=int(arrays["n"]) if "n" in arrays and arrays["n"].ndim == 0 else None,
        features=features,
        source=str(path),
    )


def _check_provenance(
    text: str, extractor: str | None, size: int | None, fault: Callable[..., DataError]
) -> dict[str, Any]:
    """Return what is told of statistics.

    Raises a fault where they were made with another extractor, other weights or another resize.
    """
    try:
        about = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as problem:
        raise fault("this is no JSON object", "provenance", text[:80]) from problem
    if extractor and (by := about.get("extractor")) not in (None, extractor):
        raise fault(f"these statistics were made with another extractor than {extractor}", _BY, by)
    made = about.get("extractor_fingerprint")
    now = known_fingerprint(extractor) if extractor and made else None
    if now not in (None, made):
        what = f"these statistics were made with other weights of {extractor}, whose fingerprint is now {now}"
        raise fault(what, "provenance.extractor_fingerprint", made)
    if size and (other := _resized(about.get("steps"))) not in (None, size):
        raise fault(f"the protocol resizes pictures to {size}, and these were resized", _STEPS, other)
    return about


def _resized(steps: object) -> object:
    """Return to which size pictures came last, as provenance tells it."""
    told = [step["resize"] for step in steps if "resize" in step] if isinstance(steps, list) else []
    return told[-1] if told else None


def load_references(
    protocol: Protocol, data_root: Path | None = None
) -> dict[str, FeatureStatistics | Unavailable]:
    """Return the reference statistics of a protocol by metric, or why they are not on this machine.

    Raises DataError as `reference_of`: what is damaged is no matter of one metric.
    """
    read: dict[object, FeatureStatistics | Unavailable] = {}
    found: dict[str, FeatureStatistics | Unavailable] = {}
    for metric, spec in protocol.metrics.items():
        if not isinstance(spec, ReferencedSpec):
            continue
        key = (spec.extractor, spec.statistics.file, spec.statistics.sha256)
        try:
            read[key] = read.get(key) or _read(protocol, spec, data_root)
        except Unavailable as lacking:
            read[key] = lacking
        here = read[key]
        found[metric] = here if isinstance(here, Unavailable) else _check(spec, here)
    return found


def reference_of(
    protocol: Protocol, spec: ReferencedSpec, data_root: Path | None = None
) -> FeatureStatistics:
    """Return the reference statistics of one metric of a protocol.

    Raises what `load_reference` does, and DataError for another number of images and no features for KID.
    """
    return _check(spec, _read(protocol, spec, data_root))


def describe(protocol: Protocol, specs: Sequence[ReferencedSpec], data_root: Path | None = None) -> str:
    """Say in one line which reference statistics metrics of one file would use; raises as `reference_of`."""
    found, *_ = [reference_of(protocol, each, data_root) for each in specs]
    spec = specs[0]
    images = f"{found.n:,} images" if found.n is not None else "number of images not recorded"
    checked = "sha256 verified" if spec.statistics.sha256 else "no checksum is published: unverified"
    return f"{found.source}, {images}, {checked}"


def _read(protocol: Protocol, spec: ReferencedSpec, data_root: Path | None) -> FeatureStatistics:
    wanted, path = spec.statistics, protocol.locate(spec.statistics.file, data_root)
    resizes = [step for step in protocol.image if isinstance(step, Resize)]
    resized = "".join(f" --resize {step.resize}" for step in resizes)
    same = [each for each in protocol.metrics.values() if getattr(each, "statistics", None) == wanted]
    features = any(METRICS[each.metric].reference == "features" for each in same)
    resized += f" --features {_FEATURES}" * features
    shown = scenes_like(protocol.prompts)
    source = "IMAGES" if shown is None else shown.source
    command = f"python -m pytest_sdbench stats {source} --extractor {spec.extractor}{resized} --out"
    others = sorted({step.filter for step in resizes} - {"pil-bicubic"})
    told = f". It resizes with pil-bicubic; resize with {others[0]} before, as the protocol" if others else ""
    if path is None:
        remedy = f"Give --sdbench-data a folder that has it; to make it: {command} FOLDER/{wanted.file}{told}"
        raise Unavailable("no data root is given", key=wanted.file, remedy=remedy)
    return load_reference(
        path,
        width=width_of(spec),
        sha256=wanted.sha256,
        extractor=spec.extractor,
        size=resizes[-1].resize if resizes else None,
        scenes_of=None if shown is None else shown.kind,
        again=f"To compute them from {wanted.images:,} real images: {command} {path}{told}",
    )


def _check(spec: ReferencedSpec, found: FeatureStatistics) -> FeatureStatistics:
    if found.n is not None and found.n != spec.statistics.images:
        what = f"the protocol's reference is {spec.statistics.images:,} images; another number moves scores"
        remedy = "Compute the statistics of the right images, or write a protocol for these"
        raise DataError(what, file=found.source, key="n", found=found.n, remedy=remedy)
    metric = METRICS[spec.metric]
    if metric.reference == "features" and found.features is None:
        what = f"{metric.label} needs features, and these statistics hold moments only"
        remedy = f"Compute them with --features {_FEATURES}, or leave {metric.label} out of the protocol"
        raise DataError(what, file=found.source, key="features", remedy=remedy)
    return found


def _arrays(path: Path, remedy: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise DataError("this is one array, not an npz", file=path, remedy=remedy)
            with zipfile.ZipFile(guarded(file, 2**25)) as archive:
                return dict(_unpacked(archive))
    except SdbenchError as known:
        raise DataError(known.message, file=path, remedy=remedy) from None
    except Exception as problem:  # numpy and zipfile raise errors of every kind
        what = f"this is no npz of plain arrays: {first_line(problem)}"
        raise DataError(what, file=path, remedy=remedy) from problem


def _unpacked(archive: zipfile.ZipFile) -> Iterator[tuple[str, Any]]:
    """Yield the names of arrays, and ours themselves; raise ValueError for one that would fill the memory."""
    left = _LARGEST
    for entry in archive.infolist():
        key = entry.filename.removesuffix(".npy")
        if key not in ("mu", "sigma", "n", "features", "provenance"):
            yield key, None
            continue
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{key} is packed as numpy packs none")
        with archive.open(entry) as file:
            form = np.lib.format
            first = form.read_magic(file) == (1, 0)
            shape, _, dtype = (form.read_array_header_1_0 if first else form.read_array_header_2_0)(file)
        if any(side < 0 for side in shape):
            raise ValueError(f"{key} {list(shape)} holds no numbers")
        if (size := math.prod(shape) * dtype.itemsize) > left:
            raise ValueError(f"{key} {list(shape)} and what is before it take more than {_LARGEST:,} bytes")
        left -= size
        with archive.open(entry) as file:
            array = form.read_array(file, allow_pickle=False)
        if key == "n" and not (array.dtype.kind in "iuf" and np.isfinite(array).all()):
            raise ValueError("n is no number of images")
        yield key, array


# --- make ---


def make_statistics(
    source: range | SceneSet | Sequence[str | Path],
    out: Path,
    workspace: Workspace,
    *,
    extractor: str,
    steps: Sequence[Jpeg | Resize] = (),
    keep: int = 0,
    background: str | None = None,
) -> FeatureStatistics:
    """Compute the statistics of sets of images, or of scenes, and write them to `out`.

    Images come in folders, archives and shards (`images.open_images`). `steps` are image steps (such as a
    resize to 256) that every picture goes through first; the features of `keep` pictures stay for KID;
    transparent ones are laid over `background`.
    Raises DataError for a source without images or with one that is damaged, transparent or of a size that
    the extractor does not take.
    """
    network = open_extractor(
        extractor, data_root=workspace.data_root, device=workspace.device, download=workspace.download
    )
    # Where images are resized, that decides their size.
    resized = next((step.resize for step in reversed(steps) if isinstance(step, Resize)), None)
    if network.size and resized not in (None, network.size):
        raise DataError(f"{extractor} takes images of {network.size} pixels", key="resize", found=resized)
    seen = Counter[str]()
    if isinstance(source, range):
        source = SceneSet(source)
    if isinstance(source, SceneSet):
        indices = source.chosen()
        drawn = scene_batches(indices, domain=source.domain)
        batches: Iterator[Images] = (apply_image_steps(batch, steps) for batch in drawn)
        total, origin = len(indices), str(source)
    else:
        images = open_images(source)
        size = None if resized else network.size
        decoded = decode(images, steps, size=size, background=background, seen=seen)
        batches = (pixels for _, pixels in in_batches(decoded))
        total, origin = len(images.pictures), images.origin
        if remark := images.remark():
            print(plain(f"{origin}: {remark}"), file=sys.stderr)
    shown = progress(batches, total, "images", f"statistics of {origin}", count=len)
    with true_float32():
        made = compute_statistics(shown, network, total=total, keep=keep)
    notes = remarks(seen)
    for note in notes:
        print(plain(f"{origin}: {note}"), file=sys.stderr)
    about = {
        "images": origin,
        "extractor": extractor,
        "extractor_fingerprint": network.fingerprint,
        "steps": [step.model_dump() for step in steps],
        **({"notes": notes} if notes else {}),
    }
    save_statistics(out, made, about)
    return replace(made, source=str(out))


def compute_statistics(
    batches: Iterable[Images], extractor: FeatureNetwork, *, total: int, keep: int = 0
) -> FeatureStatistics:
    """Return the statistics of `total` images in uint8 batches [B, H, W, 3].

    The features of `keep` of them, spread evenly over all, stay for KID.
    """
    features = column(extractor.name, "features")
    kept_rows = set(np.linspace(0, total - 1, min(keep, total)).round().astype(int).tolist())
    moments: Moments | None = None
    kept = []
    for batch in batches:
        rows = extractor(batch)[features]
        if moments is None:
            width = rows.shape[1]
            most = max(0, _LARGEST - 8 * width * (width + 1)) // (4 * width)
            if len(kept_rows) > most:
                what, remedy = "a file of statistics cannot hold so many features", f"Keep {most:,} or fewer"
                raise DataError(what, found=len(kept_rows), remedy=remedy)
            moments = Moments(width)
        chosen = [i for i in range(len(rows)) if moments.n + i in kept_rows]
        kept.append(rows[chosen])
        moments.update(rows)
    if moments is None or moments.n < 2:
        raise DataError("statistics need at least 2 images", found=0 if moments is None else moments.n)
    return replace(moments.statistics(), features=np.concatenate(kept) if keep else None)


def save_statistics(path: Path, statistics: FeatureStatistics, provenance: Mapping[str, object]) -> None:
    """Write statistics as npz: whole or not at all. Raises DataError where the file cannot be written."""
    arrays: dict[str, Any] = {
        "mu": statistics.mu,
        "sigma": statistics.sigma,
        "provenance": np.array(json.dumps(dict(provenance), sort_keys=True)),
    }
    if statistics.n is not None:
        arrays["n"] = np.array(statistics.n)
    if statistics.features is not None:
        arrays["features"] = statistics.features
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: np.savez(file, **arrays))
    except OSError as problem:
        what = "the statistics cannot be written"
        remedy = "Name a file in a folder that can be written and has room"
        raise DataError(what, file=path, found=problem.strerror, remedy=remedy) from problem


def scene_batches(indices: Sequence[int], size: int = 64, domain: str = "all") -> Iterator[Images]:
    """Yield the scenes with these indices: uint8 batches [B, size, size, 3]."""
    for start in range(0, len(indices), BATCH):
        yield scenes.render_batch(indices[start : start + BATCH], size, domain)
