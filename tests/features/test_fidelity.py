"""Extractors of pairs against independent implementations, on random weights where weights are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from scipy.ndimage import gaussian_filter
from torch.nn import functional
from torchmetrics.functional.image import (
    lpips as torchmetrics_lpips,
)
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from pytest_sdbench.base.errors import CheckpointError, DataError, ProtocolError, Unavailable
from pytest_sdbench.features.classifier import load_classifier
from pytest_sdbench.features.extractors import describe, known_fingerprint, open_extractor
from pytest_sdbench.features.fidelity import lpips
from pytest_sdbench.features.fidelity.cosine import cosine
from pytest_sdbench.features.fidelity.psnr import psnr
from pytest_sdbench.features.fidelity.ssim import ssim
from pytest_sdbench.metrics.definition import Sample
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.registry import METRICS
from tests.features.test_extractors import nchw, pictures

pytestmark = pytest.mark.usefixtures("one_thread")

Pairs = tuple[np.ndarray, np.ndarray]


def noisy(images: np.ndarray, most: int) -> np.ndarray:
    """Return pictures of which every byte is off by at most so much."""
    noise = np.random.default_rng(most).integers(-most, most + 1, images.shape)
    return np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def pairs() -> Pairs:
    """Five pictures of 96x64 and others: equal ones, near ones, far ones, black ones and unlike ones."""
    images = pictures(5, 96)[:, :, :64]
    others = [images[0], noisy(images[1], 3), noisy(images[2], 60), 0 * images[3], images[0]]
    return images, np.stack(others)


def their_psnr(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return peak_signal_noise_ratio(x, y, data_range=255.0, dim=(1, 2, 3), reduction="none").clamp(max=100)


def their_ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the mean over whole windows: the others see pixels that were filled in by reflection."""
    _, maps = structural_similarity_index_measure(
        x, y, sigma=1.5, kernel_size=11, data_range=255.0, reduction="none", return_full_image=True
    )
    assert isinstance(maps, torch.Tensor)
    return maps[..., 5:-5, 5:-5].mean((1, 2, 3))


def ssim_by_scipy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Write the formula out with the filter and the cut that scikit-image has."""

    def blur(maps: torch.Tensor) -> torch.Tensor:
        filtered = gaussian_filter(maps.numpy(), 1.5, truncate=3.5, axes=(2, 3))
        return torch.from_numpy(filtered)[..., 5:-5, 5:-5]

    (mx, my), (xx, yy, xy) = map(blur, (x, y)), map(blur, (x * x, y * y, x * y))
    c1, c2 = 2.55**2, 7.65**2
    light = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    return (light * (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)).mean((1, 2, 3))


@pytest.mark.parametrize(("ours", "theirs"), [(psnr, their_psnr), (ssim, their_ssim), (ssim, ssim_by_scipy)])
def test_pixel_formulas_agree_with_torchmetrics(
    pairs: Pairs, ours: Callable[..., np.ndarray], theirs: Callable[..., torch.Tensor]
) -> None:
    images, others = pairs
    expected = theirs(nchw(images).double(), nchw(others).double()).numpy()
    np.testing.assert_allclose(ours(images, others), expected, rtol=1e-5, atol=1e-5)


def test_psnr_is_in_decibels_of_bytes_and_ssim_a_share() -> None:
    grey = np.full((1, 16, 16, 3), 100, np.uint8)
    assert psnr(grey, grey + 1) == pytest.approx([20 * np.log10(255)], abs=1e-5)
    assert psnr(0 * grey, 0 * grey + 255) == pytest.approx([0], abs=1e-6)
    expected = (2 * 100 * 110 + 2.55**2) / (100**2 + 110**2 + 2.55**2)  # without structure, light alone
    assert ssim(grey, grey + 10) == pytest.approx([expected], abs=1e-6)
    stripes = np.tile(np.array([0, 255], np.uint8), (1, 16, 8))[..., None].repeat(3, axis=3)
    assert -1 <= ssim(stripes, 255 - stripes)[0] < -0.9


@pytest.mark.parametrize(
    ("metric", "extractor", "options"),
    [
        ("psnr", "psnr", {}),
        ("ssim", "ssim", {}),
        ("feature_cosine", "cosine:scenes-classifier", {}),
        ("lost", "ssim", {"below": 0.9}),
    ],
)
def test_the_direction_of_a_metric_is_that_of_what_pictures_lose(
    metric: str, extractor: str, options: dict[str, float]
) -> None:
    known, images = METRICS[metric], pictures(6, 64)
    network, found = open_extractor(extractor, ("pair",)), []
    for others in (images, noisy(images, 20), noisy(images, 120)):
        rows = np.asarray(network(images, (), others)[f"{extractor}-pair"])
        estimate = known.estimate(Sample([rows], 6), None, known.options(**options))
        assert isinstance(estimate, Estimate)
        found.append(estimate.value)
    assert found[0] == pytest.approx(known.perfect, abs=1e-6)
    assert sorted(found, reverse=known.higher_is_better) == found
    assert abs(found[2] - found[0]) > 0.02


@pytest.mark.parametrize(("measure", "perfect", "black"), [(psnr, 100.0, 20.0), (ssim, 1.0, 0.2)])
def test_the_better_the_higher(
    pairs: Pairs, measure: Callable[..., np.ndarray], perfect: float, black: float
) -> None:
    images, others = pairs
    equal, near, far, blackened, _ = measure(images, others)
    assert equal == perfect > near > far > blackened
    assert blackened < black
    np.testing.assert_allclose(measure(images, others), measure(others, images), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "says"), [("ssim", 10, "window of 11x11"), ("cosine:scenes-classifier", 32, "64x64")]
)
def test_pictures_that_are_too_small_are_refused(name: str, size: int, says: str) -> None:
    images = pictures(1, size)
    with pytest.raises(DataError, match=says):
        open_extractor(name, ("pair",))(images, (), images)


def test_a_cosine_is_that_of_the_features_of_another_extractor() -> None:
    images, others = pictures(4, 64), noisy(pictures(4, 64), 80)
    network = open_extractor("cosine:scenes-classifier", ("pair",))
    found = network(images, (), others)["cosine:scenes-classifier-pair"]
    with torch.inference_mode():
        mine, theirs = (load_classifier()(nchw(each))["features"] for each in (images, others))
    np.testing.assert_allclose(found, torch.cosine_similarity(mine, theirs).numpy(), atol=1e-5)
    np.testing.assert_allclose(network(images, (), images)["cosine:scenes-classifier-pair"], 1, atol=1e-6)
    assert (cosine(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)) == 0).all()
    assert known_fingerprint("cosine:scenes-classifier") != known_fingerprint("scenes-classifier")
    assert "loads" in describe("cosine:scenes-classifier")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cosine:psnr", "no features of a picture"),
        ("cosine:local:scenes-clip", "no features of a picture"),
        ("cosine:nothing", "unknown extractor"),
        ("lpips:squeeze", "no LPIPS of this name"),
    ],
)
def test_a_name_of_nothing_is_refused(name: str, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        known_fingerprint(name)


# --- LPIPS ---


def random_backbone(kind: str, folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Put random weights of the right architecture where the published ones would lie; return the network."""
    torch.manual_seed(7)
    network = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[kind](weights=None)
    weights = lpips.NETWORKS[kind]
    state = {key: value for key, value in network.state_dict().items() if key.startswith("features.")}
    torch.save(state, folder / weights.file)
    found = hashlib.sha256((folder / weights.file).read_bytes()).hexdigest()
    patch.setitem(lpips.NETWORKS, kind, replace(weights, sha256=found))
    return network.features


def lpips_by_hand(kind: str, features: Any, images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Write the definition out: of each layer the squared distance of directions, weighted by channel."""
    layers = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}[kind]
    folder = Path(torchmetrics_lpips.__file__).parent / "lpips_models"
    heads = torch.load(folder / f"{kind}.pth", map_location="cpu")
    shift, scale = (
        torch.tensor(each).view(3, 1, 1) for each in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
    )
    x, y = ((nchw(each).float() / 127.5 - 1 - shift) / scale for each in (images, others))
    total = torch.zeros(len(images))
    for number, layer in enumerate(features[: layers[-1] + 1]):
        x, y = layer(x), layer(y)
        if number in layers:
            squares = (functional.normalize(x, eps=1e-8) - functional.normalize(y, eps=1e-8)) ** 2
            weights = heads[f"lin{layers.index(number)}.model.1.weight"]
            total += (weights[0] * squares).sum(1).mean((1, 2))
    return total.detach().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips_agrees_with_torchmetrics_and_the_formula(
    kind: Any, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = random_backbone(kind, tmp_path, monkeypatch)
    images, others = pairs
    network = open_extractor(f"lpips:{kind}", ("pair",), data_root=tmp_path)
    found = network(images, (), others)[f"lpips:{kind}-pair"]
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda *_, **__: features)
    x, y = (nchw(each).float() / 127.5 - 1 for each in (images, others))
    expected = torchmetrics_lpips.learned_perceptual_image_patch_similarity(x, y, kind, reduction="none")
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(found, lpips_by_hand(kind, features, images, others), atol=1e-5)
    equal, near, far, *_ = found
    assert equal == 0 < near < far
    assert not METRICS["lpips"].higher_is_better
    assert "sha256 verified" in describe(f"lpips:{kind}", tmp_path)
    small = pictures(1, 48)
    with pytest.raises(DataError, match="64x64 pixels, and these are smaller"):
        network(small, (), small)


def test_a_backbone_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(Unavailable, match=r"alexnet-owt-7be5be79.pth.*--sdbench-download"):
        open_extractor("lpips:alex", ("pair",))
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="not the published weights of LPIPS"):
        open_extractor("lpips:alex", ("pair",), data_root=tmp_path)


def test_the_heads_are_those_that_torchmetrics_ships() -> None:
    folder = Path(torchmetrics_lpips.__file__).parent / "lpips_models"
    for kind, weights in lpips.NETWORKS.items():
        lpips.check_file(folder / f"{kind}.pth", weights.heads_sha256, "")
