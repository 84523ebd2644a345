"""Measure LPIPS: how far two pictures are apart for a network that was fitted to people's judgements.

Zhang, Isola, Efros, Shechtman and Wang 2018. The network, and the weights of its linear heads, are those of
torchmetrics; the backbone is torchvision's AlexNet or VGG-16 of ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pytest_sdbench.base.errors import CheckpointError, DataError, ProtocolError, Unavailable
from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.features.definition import Extractor, Measure, pixels_of

if TYPE_CHECKING:
    from pytest_sdbench.protocols.image_steps import Images

PREFIX = "lpips:"
SMALLEST = 64
"""Pixels to a side: the heads were fitted to patches of 64 pixels, and smaller ones leave AlexNet nothing."""


@dataclass(frozen=True)
class Weights:
    """The published weights of one network."""

    file: str
    sha256: str
    bytes: int
    heads_sha256: str
    """Of the linear heads (version 0.1) that torchmetrics ships."""

    @property
    def url(self) -> str:
        return f"https://download.pytorch.org/models/{self.file}"


NETWORKS = {
    "alex": Weights(
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        244_408_911,
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
    "vgg": Weights(
        "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553_433_881,
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
}


def find_backbone(name: str, data_root: Path | None, *, download: bool = False) -> Path:
    """Return the file of a backbone: in the data root, else in torch's hub cache.

    With `download` it is fetched into the cache. Raises Unavailable that says where to put it.
    """
    weights, cache = _weights_of(name), Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (data_root, cache):
        if folder is not None and (folder / weights.file).is_file():
            return folder / weights.file
    target = cache / weights.file
    command = f"curl -L --create-dirs -o {target} {weights.url}"
    if not download:
        remedy = f"Run with --sdbench-download, or put it into the folder of --sdbench-data, or: {command}"
        raise Unavailable(f"the backbone of {name} is not on this machine", file=target, remedy=remedy)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(target), hash_prefix=weights.sha256)
    except (OSError, RuntimeError) as problem:
        what, remedy = f"the backbone of {name} cannot be downloaded: {problem}", f"Try: {command}"
        raise Unavailable(what, file=target, remedy=remedy) from problem
    return target


def check_file(path: Path, sha256: str, remedy: str) -> None:
    """Raise CheckpointError if a file has another checksum than the published one."""
    if (found := sha256_of(path)) != sha256:
        what = f"not the published weights of LPIPS: their sha256 is {sha256}"
        raise CheckpointError(what, file=path, found=found, remedy=remedy)


def load_lpips(name: str, backbone: Path, *, device: str = "cpu") -> Any:
    """Load the network of ``lpips:alex`` or ``lpips:vgg``, in eval mode and float32, from checked files.

    Asks no network for anything. Raises CheckpointError for files with other checksums, or other tensors.
    """
    from torchmetrics.functional.image import lpips

    weights, kind = _weights_of(name), name.removeprefix(PREFIX)
    heads = Path(lpips.__file__).parent / "lpips_models" / f"{kind}.pth"
    check_file(heads, weights.heads_sha256, "Install torchmetrics again")
    again = f"Delete the file and fetch it again from {weights.url}"
    check_file(backbone, weights.sha256, again)
    try:
        state = torch.load(backbone, map_location="cpu", weights_only=True)
        network = lpips._NoTrainLpips(pretrained=False, net=kind, pnet_rand=True)
        own: dict[str, Tensor] = network.state_dict()
        own |= torch.load(heads, map_location="cpu", weights_only=True)
        # Its slices number the layers as torchvision does: net.slice2.3.weight is features.3.weight.
        own |= {key: state[f"features.{key.split('.', 2)[2]}"] for key in own if key.startswith("net.")}
        # Every head has two names, and the second is that of the list which is computed with.
        own |= {f"lins.{key[3:]}": value for key, value in own.items() if key[:3] == "lin" and key[3] != "s"}
        network.load_state_dict(own)
    except Exception as problem:
        what = f"the backbone of {name} cannot be loaded: {problem}"
        raise CheckpointError(what, file=backbone, remedy=again) from problem
    return network.to(device)


@torch.inference_mode()
def lpips_distance(network: Any, images: Tensor, references: Tensor) -> Tensor:
    """Return the distance of each pair, float32 [B], of uint8 [B, 3, H, W]; the network sees [-1, 1].

    Raises DataError for pictures of less than 64 pixels to a side.
    """
    if min(images.shape[2:]) < SMALLEST:
        found = f"{images.shape[3]}x{images.shape[2]}"
        what = f"LPIPS was fitted to patches of {SMALLEST}x{SMALLEST} pixels, and these are smaller"
        remedy = "Enlarge the pictures with an image step, so that the protocol says how"
        raise DataError(what, key="lpips", found=found, remedy=remedy)
    distances: Tensor = network(images.float() / 127.5 - 1, references.float() / 127.5 - 1)
    return distances.flatten()


def _weights_of(name: str) -> Weights:
    kind = name.removeprefix(PREFIX)
    if kind not in NETWORKS:
        remedy = f"Known are {', '.join(PREFIX + each for each in NETWORKS)}"
        raise ProtocolError("there is no LPIPS of this name", key="metrics", found=name, remedy=remedy)
    return NETWORKS[kind]


def _load(name: str, *, data_root: Path | None, device: str, download: bool) -> tuple[Measure, str]:
    network = load_lpips(name, find_backbone(name, data_root, download=download), device=device)

    def measure(images: Images, references: Any) -> dict[str, Tensor]:
        return {"pair": lpips_distance(network, pixels_of(images, device), pixels_of(references, device))}

    return measure, _checksum(name)


def _checksum(name: str) -> str:
    weights = _weights_of(name)
    return f"{weights.sha256}\n{weights.heads_sha256}"


def _describe(name: str, data_root: Path | None) -> str:
    path, weights = find_backbone(name, data_root), _weights_of(name)
    check_file(path, weights.sha256, f"Delete the file and fetch it again from {weights.url}")
    return f"{path}, sha256 verified"


LPIPS = Extractor(
    name=PREFIX,
    outputs={"pair": 1},
    load=_load,
    weights=_checksum,
    describe=_describe,
    download=lambda name: (f"backbone of {name}", _weights_of(name).bytes),
    paired=True,
)
