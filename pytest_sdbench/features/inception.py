"""Run the Inception network of 2015-12-05, behind the front end of pytorch-fid or that of torch-fidelity.

Both tools use one set of weights and differ in what they do to a picture before: pytorch-fid resizes to 299
pixels with torch's bilinear interpolation and scales to [-1, 1]; torch-fidelity resizes as TensorFlow 1 did
and scales by (x - 128) / 128. The features differ enough to move a score, so a protocol names its front end.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.features.definition import Extractor, Measure, pixels_of

if TYPE_CHECKING:
    from pytest_sdbench.protocols.image_steps import Images

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""The same file under the names that torch-fidelity and pytorch-fid give it."""
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BYTES = 95_600_000
"""Size of the file, about."""
WIDTH = 2048
CLASSES = 1008

_AGAIN = f"Delete the file and fetch it again from {URL}"
_SIZE = 299
_BODY = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1"),
    *("Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)


def find_weights(data_root: Path | None, *, download: bool = False) -> Path:
    """Return the weights' file: in the data root, else in torch's hub cache.

    With `download` it is fetched into the cache. Raises Unavailable that says where to put it.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (data_root, cache):
        for name in FILES:
            if folder is not None and (folder / name).is_file():
                return folder / name
    target = cache / FILES[0]
    command = f"curl -L --create-dirs -o {target} {URL}"
    if not download:
        remedy = f"Run with --sdbench-download, or put it into the folder of --sdbench-data, or: {command}"
        raise Unavailable("the Inception weights are not on this machine", file=target, remedy=remedy)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(target), hash_prefix=SHA256)
    except (OSError, RuntimeError) as problem:
        raise Unavailable(
            f"the Inception weights cannot be downloaded: {problem}", file=target, remedy=f"Try: {command}"
        ) from problem
    return target


def check_weights(path: Path, *, sha256: str | None = None) -> None:
    """Raise CheckpointError if a file is not the published one (or the one with the given checksum)."""
    expected = sha256 or SHA256
    if (found := sha256_of(path)) != expected:
        what = f"this is not the Inception of 2015-12-05: its sha256 must be {expected}"
        raise CheckpointError(what, file=path, found=found, remedy=_AGAIN)


def load_inception(path: Path, *, sha256: str | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """Load the network, in eval mode and float32, after checking the file.

    Raises CheckpointError for another checksum and for tensors that are not those of the network.
    """
    check_weights(path, sha256=sha256)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        # The class unpickles whatever it is given; it gets what we have checked, written out by us.
        checked = io.BytesIO()
        torch.save(state, checked)
        checked.seek(0)
        network: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=checked
        )
    except Exception as problem:
        what = f"the Inception weights cannot be loaded: {problem}"
        raise CheckpointError(what, file=path, remedy=_AGAIN) from problem
    return network.to(device)


@torch.inference_mode()
def pytorch_fid(network: nn.Module, images: Tensor) -> Tensor:
    """Return pool3 features of uint8 [B, 3, H, W] as pytorch-fid does: float32 [B, 2048]."""
    x = images.float() / 255
    x = F.interpolate(x, size=(_SIZE, _SIZE), mode="bilinear", align_corners=False)
    x = 2 * x - 1
    for name in _BODY:
        x = network.get_submodule(name)(x)
    return x.flatten(1)


@torch.inference_mode()
def torch_fidelity(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return pool3 [B, 2048] and unbiased logits [B, 1008] of uint8 [B, 3, H, W] as torch-fidelity does."""
    return tuple(network(images))


_NETWORKS: WeakValueDictionary[tuple[Path, str], nn.Module] = WeakValueDictionary()
"""Networks in use: both front ends share one."""


def _load(name: str, *, data_root: Path | None, device: str, download: bool) -> tuple[Measure, str]:
    path = find_weights(data_root, download=download)
    network = _NETWORKS.get((path, device))
    if network is None:
        network = _NETWORKS[path, device] = load_inception(path, device=device)

    def measure(images: Images, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        pixels = pixels_of(images, device)
        if name == PYTORCH_FID.name:
            return {"features": pytorch_fid(network, pixels)}
        return dict(zip(("features", "logits"), torch_fidelity(network, pixels), strict=True))

    return measure, SHA256


def _describe(name: str, data_root: Path | None) -> str:
    path = find_weights(data_root)
    check_weights(path)
    return f"{path}, sha256 verified"


def _front_end(name: str, outputs: Mapping[str, int]) -> Extractor:
    return Extractor(
        name=name,
        outputs=outputs,
        load=_load,
        weights=lambda name: SHA256,
        describe=_describe,
        download=lambda name: ("Inception of 2015-12-05", BYTES),
    )


PYTORCH_FID = _front_end("inception-pytorch-fid", {"features": WIDTH})
TORCH_FIDELITY = _front_end("inception-torch-fidelity", {"features": WIDTH, "logits": CLASSES})
