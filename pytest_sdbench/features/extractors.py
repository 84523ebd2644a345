"""Measure images: one pass per extractor, one float32 row per image.

The names of extractors are those that protocols use:

=========================== ==========================================================================
``inception-pytorch-fid``    Inception of 2015-12-05 behind pytorch-fid's front end: 2048 features
``inception-torch-fidelity`` the same weights behind torch-fidelity's: 2048 features, 1008 logits
``scenes-classifier``        the classifier of the embedded dataset: 64 features, 56 logits
``open_clip:MODEL/TAG``      a pretrained open_clip model: cosine of picture and caption
``local:NAME``               an open_clip model in a folder, such as ``local:scenes-clip``
=========================== ==========================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.errors import CheckpointError, ProtocolError, Unavailable
from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.base.paths import reference

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pytest_sdbench.protocols.image_steps import Images
    from pytest_sdbench.protocols.protocol import Protocol

CLIP_COLUMN = "clip_score"
"""Column of the cosine of image and caption, [n]."""

Rows = npt.NDArray[np.float32]

WIDTHS = {"inception-pytorch-fid": 2048, "inception-torch-fidelity": 2048, "scenes-classifier": 64}
"""Features of each extractor that FID and KID may use."""

LOGITS = {"inception-torch-fidelity": 1008, "scenes-classifier": 56}
"""Classes of each extractor that the Inception score may use."""

_CHUNK = 32
"""Pictures in one forward pass: bounds the memory at 299 pixels, whatever batches the sampler makes."""


def feature_column(extractor: str) -> str:
    """Return the column of an extractor's features, [n, D]."""
    return extractor


def logits_column(extractor: str) -> str:
    """Return the column of an extractor's class logits, [n, classes]."""
    return f"{extractor}-logits"


@dataclass(frozen=True)
class Extractor:
    """One network that looks at images."""

    name: str
    fingerprint: str
    """16 hex digits of the weights and of the front end."""
    measure: Callable[[Images, Sequence[str]], dict[str, Tensor]]

    def __call__(self, images: Images, prompts: Sequence[str] = ()) -> dict[str, Rows]:
        """Return float32 columns of uint8 [B, H, W, 3]; prompts are needed by CLIP models alone."""
        parts = []
        for start in range(0, len(images), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            parts.append(self.measure(images[chunk], prompts[chunk]))
        return {key: np.concatenate([part[key].float().cpu().numpy() for part in parts]) for key in parts[0]}


@dataclass(frozen=True)
class Extractors:
    """All networks of a protocol."""

    networks: tuple[Extractor, ...]

    def extract(self, images: Images, prompts: Sequence[str]) -> dict[str, Rows]:
        """Return the columns of every network: float32 [B, D] of features and logits, [B] of the CLIP score.

        `images` are uint8 [B, H, W, 3] after the protocol's image steps, `prompts` their captions.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts")
        return {key: rows for network in self.networks for key, rows in network(images, prompts).items()}


def open_extractors(
    protocol: Protocol,
    *,
    data_root: Path | None = None,
    device: torch.device | str = "cpu",
    download: bool = False,
) -> Extractors:
    """Load every network that the protocol's metrics need, each once, and Inception once for both front ends.

    Raises Unavailable for weights that are not on this machine, CheckpointError for damaged ones,
    ProtocolError for an extractor that does not exist.
    """
    columns = {name: _columns(protocol, name) for name in protocol.extractors}
    loaded: dict[str, Any] = {}
    return Extractors(
        tuple(
            _open(name, columns[name], loaded, data_root=data_root, device=device, download=download)
            for name in protocol.extractors
        )
    )


def open_extractor(
    name: str, *, data_root: Path | None = None, device: torch.device | str = "cpu", download: bool = False
) -> Extractor:
    """Load one feature extractor by name, as `open_extractors` does; it gives its features alone."""
    return _open(name, (feature_column(name),), {}, data_root=data_root, device=device, download=download)


def identity(name: str) -> str:
    """Return what an extractor is, without loading it; raises as `open_extractors` does.

    It is the name, with the fingerprint of its weights where that is known before they are loaded: those of a
    pretrained open_clip model are gigabytes, and fixed by their name.
    """
    known = known_fingerprint(name)
    return f"{name}@{known}" if known else name


def known_fingerprint(name: str) -> str | None:
    """Return the fingerprint of the extractor of this name, without loading it; None if that is not known."""
    if name == "scenes-classifier":
        return _fingerprint(name, sha256_of(_classifier_weights()))
    if name.startswith("inception-"):
        from pytest_sdbench.features.inception import SHA256

        return _fingerprint(name, SHA256)
    if name.startswith("local:"):
        from pytest_sdbench.features.clip import locate_clip

        return _fingerprint(name, sha256_of(locate_clip(name)))
    return None


def describe(name: str, data_root: Path | None = None) -> str:
    """Say in one line which verified file an extractor would use; raises as `open_extractors` does."""
    if name.startswith("inception-"):
        from pytest_sdbench.features import inception

        _known(name)
        path = inception.find_weights(data_root)
        inception.check_weights(path)
        return f"{path}, sha256 verified"
    if name == "scenes-classifier":
        path = _classifier_weights()
        _load_classifier()
        return f"{path}, loads"
    from pytest_sdbench.features.clip import load_clip, locate_clip

    path = locate_clip(name)
    if name.startswith("local:"):
        load_clip(name)
        return f"{path}, loads"
    return f"{path} (its publisher gives no checksum)"


def column_widths(protocol: Protocol) -> dict[str, int]:
    """Return the columns that a protocol's networks fill with float32 numbers, and how many to an image.

    Nothing is loaded. Raises ProtocolError for an extractor that does not exist.
    """
    widths: dict[str, int] = {}
    for name in protocol.extractors:
        for column in _columns(protocol, name):
            if column == CLIP_COLUMN:
                widths[column] = 1
                continue
            _known(name)
            widths[column] = LOGITS.get(name, 0) if column == logits_column(name) else WIDTHS[name]
    return widths


def _columns(protocol: Protocol, name: str) -> tuple[str, ...]:
    """Return the columns of one network that the protocol's metrics read."""
    found = set()
    for spec in protocol.metrics.values():
        if spec.metric == "clip_score":
            if spec.model == name:
                found.add(CLIP_COLUMN)
        elif spec.extractor == name:
            found.add(logits_column(name) if spec.metric == "inception_score" else feature_column(name))
    return tuple(sorted(found))


def _open(
    name: str,
    columns: tuple[str, ...],
    loaded: dict[str, Any],
    *,
    data_root: Path | None,
    device: torch.device | str,
    download: bool,
) -> Extractor:
    if columns == (CLIP_COLUMN,):
        return _clip(name, device, download)
    _known(name)
    if logits_column(name) in columns and name == "inception-pytorch-fid":
        raise ProtocolError(
            "pytorch-fid's front end has no logits",
            key="metrics.inception_score.extractor",
            found=name,
            remedy="Write inception-torch-fidelity",
        )
    if name == "scenes-classifier":
        return _scenes(columns, device)
    from pytest_sdbench.features import inception

    path = inception.find_weights(data_root, download=download)
    if "inception" not in loaded:
        loaded["inception"] = inception.load_inception(path, device=device)
    network = loaded["inception"]

    def measure(images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        pixels = _pixels(images, device)
        if name == "inception-pytorch-fid":
            return {feature_column(name): inception.pytorch_fid(network, pixels)}
        features, logits = inception.torch_fidelity(network, pixels)
        return _chosen(columns, {feature_column(name): features, logits_column(name): logits})

    return Extractor(name, _fingerprint(name, inception.SHA256), measure)


def _scenes(columns: tuple[str, ...], device: torch.device | str) -> Extractor:
    import torch

    name = "scenes-classifier"
    path = _classifier_weights()
    network = _load_classifier().to(device)

    def measure(images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        with torch.inference_mode():
            outputs = network(_pixels(images, device))
        return _chosen(
            columns, {feature_column(name): outputs["features"], logits_column(name): outputs["logits"]}
        )

    return Extractor(name, _fingerprint(name, sha256_of(path)), measure)


def _clip(name: str, device: torch.device | str, download: bool) -> Extractor:
    from pytest_sdbench.features.clip import load_clip

    scorer = load_clip(name, device=device, download=download)
    return Extractor(
        name,
        _fingerprint(name, scorer.sha256),
        lambda images, prompts: {CLIP_COLUMN: scorer(images, prompts)},
    )


def _classifier_weights() -> Path:
    path = reference() / "checkpoints" / "scenes-classifier" / "model.safetensors"
    if not path.is_file():
        raise Unavailable(
            "the classifier of the embedded dataset is not here",
            file=path,
            remedy="Install the package again, or make it: python -m training classifier",
        )
    return path


def _load_classifier() -> torch.nn.Module:
    from pytest_sdbench.features.classifier import load_classifier

    path = _classifier_weights()
    try:
        return load_classifier(path.parent)
    except Exception as problem:
        raise CheckpointError(
            f"the classifier cannot be loaded: {problem}", file=path, remedy="Install the package again"
        ) from problem


def _known(name: str) -> None:
    if name not in WIDTHS:
        raise ProtocolError(
            "unknown extractor",
            key="metrics",
            found=name,
            remedy=f"Known are {', '.join(WIDTHS)}; for the CLIP score open_clip:MODEL/TAG and local:FOLDER",
        )


def _pixels(images: Images, device: torch.device | str) -> Tensor:
    """Return uint8 [B, 3, H, W] on the device."""
    import torch

    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C")).to(device)


def _chosen(columns: tuple[str, ...], outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {column: outputs[column] for column in columns}


def _fingerprint(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
