"""Measure images: one pass per extractor, one float32 row per image.

=========================== ==========================================================================
``inception-pytorch-fid``    Inception of 2015-12-05 behind pytorch-fid's front end: 2048 features
``inception-torch-fidelity`` the same weights behind torch-fidelity's: 2048 features, 1008 logits
``scenes-classifier``        the classifier of the embedded dataset: 96 features, 128 logits
``open_clip:MODEL/TAG``      a pretrained open_clip model: cosine of picture and caption
``local:NAME``               an open_clip model in a folder, such as ``local:scenes-clip``
``hpsv2.1``                  HPS v2.1: what people would prefer, one number for picture and caption
``pickscore``                PickScore: the same of another model
``laion-aesthetic-v2``       LAION's aesthetic predictor: one number a picture
``clip-vit-l14-336``         CLIP ViT-L/14 at 336 pixels: 768 features of length one
``dinov2-vitl14``            DINOv2 ViT-L/14: 1024 features
``imported:METRIC``          another tool; ``python -m pytest_sdbench import`` brings its values in
``psnr``, ``ssim``           of a picture and the reference's: a formula, without a network
``lpips:alex``, ``:vgg``     LPIPS of a picture and the reference's
``cosine:EXTRACTOR``         cosine of the features that another extractor has of both
=========================== ==========================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import ProtocolError
from pytest_sdbench.base.registry import Registry
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.features.definition import Extractor, FeatureNetwork, Rows, fingerprint
from pytest_sdbench.metrics.definition import column
from pytest_sdbench.metrics.registry import METRICS

if TYPE_CHECKING:
    import torch

    from pytest_sdbench.protocols.image_steps import Images
    from pytest_sdbench.protocols.metric_specs import MetricSpec
    from pytest_sdbench.protocols.protocol import Protocol

EXTRACTORS: Registry[Extractor] = Registry(
    Extractor,
    "pytest_sdbench.extractors",
    {
        "inception-pytorch-fid": "pytest_sdbench.features.inception:PYTORCH_FID",
        "inception-torch-fidelity": "pytest_sdbench.features.inception:TORCH_FIDELITY",
        "scenes-classifier": "pytest_sdbench.features.classifier:SCENES_CLASSIFIER",
        "open_clip:": "pytest_sdbench.features.clip:OPEN_CLIP",
        "local:": "pytest_sdbench.features.clip:LOCAL_CLIP",
        "hpsv2.1": "pytest_sdbench.features.pretrained.hpsv2:HPSV2_1",
        "pickscore": "pytest_sdbench.features.pretrained.pickscore:PICKSCORE",
        "laion-aesthetic-v2": "pytest_sdbench.features.pretrained.aesthetic:LAION_AESTHETIC",
        "clip-vit-l14-336": "pytest_sdbench.features.pretrained.clip_image:CLIP_VIT_L_14_336",
        "dinov2-vitl14": "pytest_sdbench.features.pretrained.dinov2:DINOV2",
        "imported:": "pytest_sdbench.features.imported:IMPORTED_VALUES",
        "psnr": "pytest_sdbench.features.fidelity.psnr:PSNR",
        "ssim": "pytest_sdbench.features.fidelity.ssim:SSIM",
        "lpips:": "pytest_sdbench.features.fidelity.lpips:LPIPS",
        "cosine:": "pytest_sdbench.features.fidelity.cosine:COSINE",
    },
)


def register_extractor(extractor: Extractor) -> None:
    """Add an extractor from a conftest; raises SdbenchError for a name that another extractor has."""
    EXTRACTORS.register(extractor)


def extractor_of(name: str) -> Extractor:
    """Return the extractor that a protocol names; raises ProtocolError for an unknown one."""
    prefix, colon, _ = name.partition(":")
    known = prefix + colon
    if known not in EXTRACTORS:
        names = ", ".join(each + "..." if each.endswith(":") else each for each in EXTRACTORS)
        raise ProtocolError("unknown extractor", key="metrics", found=name, remedy=f"Known are {names}")
    return EXTRACTORS[known]


@dataclass(frozen=True)
class Extractors:
    """All networks of a protocol."""

    networks: tuple[FeatureNetwork, ...]

    def extract(
        self, images: Images, prompts: Sequence[str], references: Images | None = None
    ) -> dict[str, Rows]:
        """Return the columns of every network: float32 [B, D] of features and logits, [B] of the CLIP score.

        `images` are uint8 [B, H, W, 3] after the protocol's image steps, `prompts` their captions, and
        `references` the pictures that paired networks compare them with, after the same steps.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts")
        found = [network(images, prompts, references) for network in self.networks]
        return {key: rows for each in found for key, rows in each.items()}

    def only(self, columns: Collection[str]) -> Extractors:
        """Return the networks that fill some of these columns, for these alone."""
        wanted = [
            (network, tuple(each for each in network.outputs if column(network.name, each) in columns))
            for network in self.networks
        ]
        return Extractors(tuple(replace(network, outputs=outputs) for network, outputs in wanted if outputs))

    @property
    def paired(self) -> bool:
        """Whether a network needs references."""
        return any(network.paired for network in self.networks)


def open_extractors(
    protocol: Protocol,
    *,
    columns: Collection[str] | None = None,
    data_root: Path | None = None,
    device: torch.device | str = "cpu",
    download: bool = False,
) -> Extractors:
    """Load every network that the protocol's metrics need, each once, or those that fill some `columns`.

    Raises Unavailable for weights that are not on this machine, CheckpointError for damaged ones,
    ProtocolError for an extractor that does not exist or lacks what a metric reads.
    """
    # All of them are checked before the first one is loaded.
    networks = [
        open_extractor(name, outputs, data_root=data_root, device=device, download=download)
        for name, outputs in outputs_of(protocol).items()
        if columns is None or any(column(name, output) in columns for output in outputs)
    ]
    return Extractors(tuple(networks))


def open_extractor(
    name: str,
    outputs: tuple[str, ...] = ("features",),
    *,
    data_root: Path | None = None,
    device: torch.device | str = "cpu",
    download: bool = False,
) -> FeatureNetwork:
    """Load one extractor by name, for some of its outputs; raises as `open_extractors` does."""
    known = extractor_of(name)
    if absent := [output for output in outputs if output not in known.outputs]:
        what = f"this extractor has {', '.join(known.outputs)}, and no {', '.join(absent)}"
        raise ProtocolError(what, key="extractor", found=name, remedy="Name another one")
    measure, weights = known.load(name, data_root=data_root, device=str(device), download=download)
    return FeatureNetwork(name, weights, measure, outputs, known.size, known.paired)


def identity(name: str, workspace: Workspace | None = None) -> str:
    """Return an extractor's name, with the fingerprint of its weights where that is known without loading.

    Those of a pretrained open_clip model are gigabytes, and fixed by their name. Where no checksum is
    published it is that of the file that a run in `workspace` finds, or fetches. Raises Unavailable where
    there is none.
    """
    known = known_fingerprint(name, workspace)
    return f"{name}@{known}" if known else name


def known_fingerprint(name: str, workspace: Workspace | None = None) -> str | None:
    """Return the fingerprint of the extractor of this name, without loading it; None if that is not known.

    Raises as `identity`.
    """
    known = extractor_of(name)
    weights = known.weights(name)
    if weights is None and workspace is not None and known.found is not None:
        weights = known.found(name, workspace.data_root, workspace.download)
    return None if weights is None else fingerprint(name, weights)


def describe(name: str, data_root: Path | None = None) -> str:
    """Say in one line which verified file an extractor would use; raises as `open_extractors` does."""
    return extractor_of(name).describe(name, data_root)


def outputs_of(protocol: Protocol) -> dict[str, tuple[str, ...]]:
    """Return what a protocol's metrics read of each extractor; nothing is loaded.

    Raises ProtocolError for an extractor that does not exist or lacks what a metric reads.
    """
    found: dict[str, set[str]] = {name: set() for name in protocol.extractors}
    for spec in protocol.metrics.values():
        width_of(spec)
        found[spec.extractor].add(METRICS[spec.metric].output)
    return {name: tuple(sorted(outputs)) for name, outputs in found.items()}


def width_of(spec: MetricSpec) -> int:
    """Return in how many numbers its extractor says what a metric reads; raises as `outputs_of`."""
    metric, extractor = METRICS[spec.metric], extractor_of(spec.extractor)
    if metric.extractors and not spec.extractor.startswith(metric.extractors):
        raise ProtocolError(
            f"{metric.label} is read of another extractor",
            key=f"metrics.{spec.metric}.{metric.extractor_key}",
            found=spec.extractor,
            remedy=f"Its name begins with {' or '.join(metric.extractors)}",
        )
    if metric.output not in extractor.outputs:
        others = [each for each in EXTRACTORS if metric.output in EXTRACTORS[each].outputs]
        raise ProtocolError(
            f"{metric.label} reads {metric.output}; this extractor has {', '.join(extractor.outputs)}",
            key=f"metrics.{spec.metric}.{metric.extractor_key}",
            found=spec.extractor,
            remedy=f"Name one that has them: {', '.join(others)}",
        )
    if metric.reads == "pair" and not extractor.paired:
        raise ProtocolError(
            f"{metric.label} reads pairs of pictures; this extractor measures single ones",
            key=f"metrics.{spec.metric}.{metric.extractor_key}",
            found=spec.extractor,
            remedy='A metric with reads="pair" goes with an extractor with paired=True',
        )
    return extractor.outputs[metric.output]


def column_widths(protocol: Protocol) -> dict[str, int]:
    """Return the columns that a protocol's networks fill with float32 numbers, and how many to an image.

    Nothing is loaded. Raises ProtocolError as `outputs_of`.
    """
    return {
        column(name, output): extractor_of(name).outputs[output]
        for name, outputs in outputs_of(protocol).items()
        for output in outputs
    }


def column_keys(
    protocol: Protocol, reference: str | None = None, workspace: Workspace | None = None
) -> dict[str, str]:
    """Return under which key a store keeps each column that a protocol's metrics read, by its name in rows.

    `reference` is the fingerprint of the checkpoint that pairs are compared with, which their keys name;
    without it their columns are left out. Nothing is loaded. Raises Unavailable where the weights of an
    extractor are not on this machine (in `workspace`, where no checksum is published), else as `outputs_of`.
    """
    return {
        column(name, output): f"{identity(name, workspace)}/{output}" + (f"@{reference}" if paired else "")
        for name, outputs in outputs_of(protocol).items()
        if not (paired := extractor_of(name).paired) or reference is not None
        for output in outputs
    }
