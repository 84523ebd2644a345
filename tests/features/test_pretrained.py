"""Extractors of published weights against the libraries and formulas of their sources.

The weights are random, of the right architecture but smaller: the published ones are not needed. That the
full architectures are those of the published files is held against the sizes of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.base.text import size_text
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.features.definition import FeatureNetwork, fingerprint
from pytest_sdbench.features.extractors import (
    EXTRACTORS,
    describe,
    identity,
    known_fingerprint,
    open_extractor,
)
from pytest_sdbench.features.fidelity import cosine
from pytest_sdbench.features.pretrained import aesthetic, clip_image, dinov2, hpsv2, networks, pickscore
from pytest_sdbench.features.pretrained.files import WeightsFile, of_files
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.models.hub import forget_failures
from tests.features.test_extractors import CLIP_CONFIG, _Touch, offline, pictures

pytestmark = pytest.mark.usefixtures("one_thread", "nothing_cached")

CAPTIONS = ["a red circle", "two cats on a sofa", "x", "it's 7 o'clock, café & naïve — über alles " * 9]
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = TEXT | {"patch_size": 8, "image_size": 32}
TINY_TOWER = VISION | {"projection_dim": 12, "hidden_act": "quick_gelu"}
TINY_CLIP = {"projection_dim": 12, "vision_config": VISION, "text_config": TEXT}
TINY_DINO = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 4},
    **{"patch_size": 7, "image_size": 35},
}


@pytest.fixture
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find nothing in the caches of this machine."""
    for module in ("constants", "file_download"):
        name = f"huggingface_hub.{module}.HF_HUB_CACHE"
        monkeypatch.setattr(name, str(tmp_path / "no hub"), raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no torch hub"))
    forget_failures()


def random(network: nn.Module) -> Any:
    """Give every tensor values that make a difference, and return the network in eval mode."""
    generator = torch.Generator().manual_seed(3)
    for name, value in network.named_parameters():
        with torch.no_grad():
            if "logit_scale" in name:
                value.fill_(math.log(100))
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return network.eval().requires_grad_(False)


def seen_by_clip(images: np.ndarray, size: int) -> torch.Tensor:
    """Prepare pictures with transformers' own processor."""
    sides = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    found = CLIPImageProcessorPil(**sides)([Image.fromarray(image) for image in images], return_tensors="pt")
    return found["pixel_values"]


# --- each extractor: its files with random weights, and what its source would say of pictures ---


def of_hpsv2(patch: pytest.MonkeyPatch, folder: Path) -> tuple[list[Path], Callable[..., Any]]:
    patch.setattr(open_clip, "get_model_config", lambda name: CLIP_CONFIG)
    model = random(open_clip.CLIP(**CLIP_CONFIG))
    path = folder / "hps.pt"
    torch.save({"epoch": 1, "state_dict": {k: v.half() for k, v in model.state_dict().items()}}, path)
    model = model.half().float()  # the published file is of half precision

    def score(images: np.ndarray, captions: list[str]) -> list[float]:
        mean, std = (torch.tensor(networks.CLIP_COLOURS[key])[:, None, None] for key in ("mean", "std"))
        tokenizer, scores = open_clip.SimpleTokenizer(context_length=20), []
        for image, caption in zip(images, captions, strict=True):
            pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255
            height, width = (round(side * 32 / max(image.shape)) for side in image.shape[:2])
            options = {"mode": "bicubic", "antialias": True}
            canvas = torch.zeros(3, 32, 32)
            top, left = (32 - height) // 2, (32 - width) // 2
            canvas[:, top : top + height, left : left + width] = F.interpolate(
                pixels, (height, width), **options
            )[0]
            seen = model.encode_image(((canvas - mean) / std)[None])
            scores.append(float(F.cosine_similarity(seen, model.encode_text(tokenizer([caption])))))
        return scores

    return [path], score


def of_pickscore(patch: pytest.MonkeyPatch, folder: Path) -> tuple[list[Path], Callable[..., Any]]:
    patch.setattr(pickscore, "CONFIG", TINY_CLIP)
    model = random(CLIPModel(CLIPConfig(**TINY_CLIP)))
    save_file(model.state_dict(), folder / "pick.safetensors")

    def score(images: np.ndarray, captions: list[str]) -> np.ndarray:
        tokens = open_clip.tokenize(captions)
        found = model(input_ids=tokens.long(), pixel_values=seen_by_clip(images, 32))
        return found.logits_per_image.diagonal().numpy()

    return [folder / "pick.safetensors"], score


class PublishedHead(nn.Module):
    """The predictor as its source has it: linear layers, and dropout between them in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        drop, line = nn.Dropout(0.2), nn.Linear
        layers = [line(width, 1024), drop, line(1024, 128), drop, line(128, 64), nn.Dropout(0.1)]
        self.layers = nn.Sequential(*layers, line(64, 16), line(16, 1))


def of_aesthetic(patch: pytest.MonkeyPatch, folder: Path) -> tuple[list[Path], Callable[..., Any]]:
    patch.setattr(aesthetic, "VIT_L_14", TINY_TOWER)
    tower = random(CLIPModel(CLIPConfig(**TINY_CLIP | {"vision_config": TINY_TOWER})))
    head = random(PublishedHead(12))
    save_file(tower.state_dict(), folder / "clip.safetensors")
    torch.save(head.state_dict(), folder / "head.pth")

    def score(images: np.ndarray, captions: list[str]) -> np.ndarray:
        features = tower.vision_model(pixel_values=seen_by_clip(images, 32)).pooler_output
        embeddings = tower.visual_projection(features)
        return head.layers(embeddings / embeddings.norm(dim=1, keepdim=True))[:, 0].numpy()

    return [folder / "clip.safetensors", folder / "head.pth"], score


def of_clip_image(patch: pytest.MonkeyPatch, folder: Path) -> tuple[list[Path], Callable[..., Any]]:
    patch.setattr(clip_image, "CONFIG", TINY_TOWER)
    tower = random(CLIPModel(CLIPConfig(**TINY_CLIP | {"vision_config": TINY_TOWER})))
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}  # as old files have them
    torch.save(tower.state_dict() | positions, folder / "clip.bin")

    def embed(images: np.ndarray, captions: list[str]) -> np.ndarray:
        height, width = images.shape[1:3]
        side = min(height, width)
        box = ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
        squares = [Image.fromarray(image).crop(box) for image in images]
        ready = np.stack([square.resize((32, 32), Image.Resampling.BICUBIC) for square in squares])
        features = tower.vision_model(pixel_values=seen_by_clip(ready, 32)).pooler_output
        embeddings = tower.visual_projection(features)
        return (embeddings / embeddings.norm(dim=1, keepdim=True)).numpy()

    return [folder / "clip.bin"], embed


def keys(t: float) -> float:
    """The cubic kernel of torch's bicubic interpolation (a = -0.75)."""
    t, a = abs(t), -0.75
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def of_dinov2(patch: pytest.MonkeyPatch, folder: Path) -> tuple[list[Path], Callable[..., Any]]:
    patch.setattr(dinov2, "CONFIG", TINY_DINO)
    patch.setattr(dinov2, "SIZE", 28)
    tensors = random(Dinov2Model(Dinov2Config(**TINY_DINO))).state_dict()
    old = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    names = {
        f"attention.{new}": f"attention.{name}" for new, name in (old | {"o_proj": "output.dense"}).items()
    }

    def published(name: str) -> str:
        return next((name.replace(new, before) for new, before in names.items() if new in name), name)

    save_file({published(name): value for name, value in tensors.items()}, folder / "dino.safetensors")

    def positions() -> torch.Tensor:
        """Resample 5 x 5 positions to 4 x 4 as the authors do: the scale is (4 + 0.1) / 5."""
        weights = torch.zeros(4, 5)
        for i in range(4):
            x = (i + 0.5) / (4.1 / 5) - 0.5
            for k in range(math.floor(x) - 1, math.floor(x) + 3):
                weights[i, min(max(k, 0), 4)] += keys(x - k)
        table = tensors["embeddings.position_embeddings"][0]
        grid = torch.einsum("ai,bj,ijd->abd", weights, weights, table[1:].view(5, 5, -1))
        return torch.cat([table[:1], grid.reshape(16, -1)])

    def features(images: np.ndarray, captions: list[str]) -> np.ndarray:
        colours = [torch.tensor(dinov2.COLOURS[key]) for key in ("mean", "std")]
        rows = []
        for image in images:
            small = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC))
            pixels = ((torch.from_numpy(small.copy()) / 255 - colours[0]) / colours[1]).permute(2, 0, 1)[None]
            rows.append(vit(tensors, pixels, positions()))
        return torch.stack(rows).numpy()

    return [folder / "dino.safetensors"], features


def vit(tensors: dict[str, torch.Tensor], pixels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Write DINOv2 out for one picture: the class token after the last norm."""

    def line(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    patch = "embeddings.patch_embeddings.projection"
    patches = F.conv2d(pixels, tensors[f"{patch}.weight"], tensors[f"{patch}.bias"], stride=7)[0].flatten(1).T
    x = torch.cat([tensors["embeddings.cls_token"][0], patches]) + positions
    for number in range(2):
        at = f"encoder.layer.{number}."
        h = norm(f"{at}norm1", x)
        q, k, v = (line(f"{at}attention.{each}_proj", h).view(-1, 2, 8).transpose(0, 1) for each in "qkv")
        mixed = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(8), dim=-1) @ v
        h = line(f"{at}attention.o_proj", mixed.transpose(0, 1).reshape(-1, 16))
        x = x + h * tensors[f"{at}layer_scale1.lambda1"]
        h = line(f"{at}mlp.fc2", F.gelu(line(f"{at}mlp.fc1", norm(f"{at}norm2", x))))
        x = x + h * tensors[f"{at}layer_scale2.lambda1"]
    return norm("layernorm", x)[0]


MAKERS = {
    "hpsv2.1": (hpsv2, of_hpsv2),
    "pickscore": (pickscore, of_pickscore),
    "laion-aesthetic-v2": (aesthetic, of_aesthetic),
    "clip-vit-l14-336": (clip_image, of_clip_image),
    "dinov2-vitl14": (dinov2, of_dinov2),
}
FILES = {
    "hpsv2.1": [hpsv2.WEIGHTS],
    "pickscore": [pickscore.WEIGHTS],
    "laion-aesthetic-v2": [aesthetic.CLIP, aesthetic.HEAD],
    "clip-vit-l14-336": [clip_image.WEIGHTS],
    "dinov2-vitl14": [dinov2.WEIGHTS],
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("shape", [(48, 48), (60, 40)], ids=["square", "tall"])
def test_agrees_with_its_source_on_the_same_pixels(
    name: str, shape: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, make = MAKERS[name]
    paths, source = make(monkeypatch, tmp_path)
    images = pictures(4, 60)[:, : shape[0], : shape[1]]
    (output,) = EXTRACTORS[name].outputs
    found = module.build(paths, "cpu")(images, CAPTIONS)[output]
    assert found.dtype == torch.float32
    expected = np.asarray(source(images, CAPTIONS))
    assert np.ptp(expected, axis=0).min() > 1e-3, "the pictures make no difference"
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_cosine_of_dinov2_is_that_of_the_features_of_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, source = of_dinov2(monkeypatch, tmp_path)
    network = FeatureNetwork("dinov2-vitl14", "random", dinov2.build(paths, "cpu"), ("features",))
    monkeypatch.setattr(cosine, "open_extractor", lambda *_, **__: network)
    images = pictures(4, 60)
    others = [images, np.clip(images.astype(int) + 12, 0, 255).astype(np.uint8), images[::-1]]
    pair, _ = cosine.COSINE.load("cosine:dinov2-vitl14", data_root=None, device="cpu", download=False)
    found = [pair(images, each)["pair"] for each in others]
    for rows, each in zip(found, others, strict=True):
        mine, theirs = (torch.from_numpy(source(pixels, [])) for pixels in (images, each))
        np.testing.assert_allclose(rows, torch.cosine_similarity(mine, theirs), atol=1e-5)
    assert METRICS["dino_cosine"].higher_is_better
    assert METRICS["dino_cosine"].perfect == pytest.approx(found[0].mean(), abs=1e-6)
    assert found[0].mean() > found[1].mean() > found[2].mean()


@pytest.mark.parametrize("name", ["hpsv2.1", "pickscore"])
def test_score_is_the_scaled_cosine_and_depends_on_the_caption(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, make = MAKERS[name]
    paths, _ = make(monkeypatch, tmp_path)
    (output,) = EXTRACTORS[name].outputs
    image = np.repeat(pictures(1, 32), 4, axis=0)
    scores = module.build(paths, "cpu")(image, CAPTIONS)[output]
    most = {"hpsv2.1": 1, "pickscore": 100}[name]
    assert 1e-3 * most < scores.std()
    assert scores.abs().max() <= most


TEXT_L = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def clip(vision: dict[str, Any]) -> CLIPModel:
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=TEXT_L, projection_dim=768))


@pytest.mark.parametrize(
    ("file", "network", "width"),
    [
        (hpsv2.WEIGHTS, lambda: open_clip.CLIP(**open_clip.get_model_config(hpsv2.MODEL)), 2),
        (pickscore.WEIGHTS, lambda: CLIPModel(CLIPConfig(**pickscore.CONFIG)), 4),
        (aesthetic.CLIP, lambda: clip(networks.VIT_L_14), 4),
        (aesthetic.HEAD, lambda: PublishedHead(768), 4),
        (clip_image.WEIGHTS, lambda: clip(clip_image.CONFIG), 4),
        (dinov2.WEIGHTS, lambda: Dinov2Model(Dinov2Config(**dinov2.CONFIG)), 4),
    ],
    ids=lambda value: value.name if isinstance(value, WeightsFile) else "",
)
def test_the_full_architecture_is_that_of_the_published_file(
    file: WeightsFile, network: Callable[[], nn.Module], width: int
) -> None:
    """Its tensors make up the file; what is left are the names of them."""
    with torch.device("meta"):
        numbers = sum(value.numel() for value in network().parameters())
    assert numbers * width <= file.size * (1 + 2e-3)
    assert numbers * width == pytest.approx(file.size, rel=2e-3)


# --- files ---


class TestFiles:
    @pytest.mark.parametrize("name", FILES)
    def test_that_are_missing_say_what_to_fetch(self, name: str, tmp_path: Path) -> None:
        file = FILES[name][0]
        for look in (
            lambda: open_extractor(name, EXTRACTORS[name].outputs),
            lambda: describe(name, tmp_path),
        ):
            with pytest.raises(Unavailable) as raised:
                look()
            told = str(raised.value)
            for word in (
                file.repository,
                file.name,
                file.revision,
                file.licence,
                "--sdbench-download",
                " GB",
            ):
                assert word in told

    @pytest.mark.parametrize("name", FILES)
    def test_of_another_content_are_refused(self, name: str, tmp_path: Path) -> None:
        for file in FILES[name]:
            (tmp_path / file.place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.place).write_bytes(b"other")
        with pytest.raises(CheckpointError, match=r"sha256 must be|damaged or truncated"):
            open_extractor(name, tuple(EXTRACTORS[name].outputs), data_root=tmp_path)

    def test_without_a_published_checksum_the_file_is_the_key(self, tmp_path: Path) -> None:
        (file,) = FILES["pickscore"]
        path, here = tmp_path / file.place, Workspace(data_root=tmp_path)
        with pytest.raises(Unavailable, match="not on this machine"):
            identity("pickscore", here)
        path.parent.mkdir(parents=True)
        keys = []
        for content in (b"wrong", b"the right one"):
            path.write_bytes(content)
            keys.append(identity("pickscore", here))
            assert keys[-1] == f"pickscore@{fingerprint('pickscore', sha256_of(path))}"
        assert keys[0] != keys[1]

    @pytest.mark.parametrize("name", FILES)
    def test_their_checksums_are_those_of_the_extractor(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module, make = MAKERS[name]
        paths, _ = make(monkeypatch, tmp_path)
        files = [
            replace(file, sha256=file.sha256 and sha256_of(path))
            for file, path in zip(FILES[name], paths, strict=True)
        ]
        for file, path in zip(files, paths, strict=True):
            (tmp_path / file.place).parent.mkdir(parents=True, exist_ok=True)
            path.rename(tmp_path / file.place)
        known = of_files(name, EXTRACTORS[name].outputs, files, module.build)
        monkeypatch.setitem(EXTRACTORS._loaded, name, known)
        network = open_extractor(name, tuple(known.outputs), data_root=tmp_path)
        verified = all(file.sha256 for file in files)
        assert known_fingerprint(name) == (network.fingerprint if verified else None)
        here = Workspace(data_root=tmp_path)
        assert known_fingerprint(name, here) == network.fingerprint
        told = describe(name, tmp_path)
        assert ("unverified" in told) is not verified
        assert all(file.licence in told for file in files)
        (rows,) = network(pictures(2, 32), CAPTIONS[:2]).values()
        assert rows.dtype == np.float32
        assert len(rows) == 2

    @pytest.mark.parametrize("name", MAKERS)
    @pytest.mark.parametrize("fault", ["a tensor less", "a tensor more", "another shape"])
    def test_whose_tensors_are_not_those_of_the_network_are_refused(
        self, name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module, make = MAKERS[name]
        paths, _ = make(monkeypatch, tmp_path)

        def damaged(*arguments: Any) -> dict[str, torch.Tensor]:
            tensors = whole(*arguments)
            last = next(key for key in reversed(tensors) if not key.startswith("text_"))
            if fault == "a tensor more":
                tensors["vision_model.more" if "vision_model" in str(list(tensors)) else "more"] = torch.ones(
                    2
                )
            elif fault == "a tensor less":
                del tensors[last]
            else:
                tensors[last] = torch.ones(5)
            return tensors

        whole = module.read
        monkeypatch.setattr(module, "read", damaged)
        with pytest.raises(CheckpointError, match="not the weights of this network") as raised:
            module.build(paths, "cpu")
        assert raised.value.file in paths

    def test_with_code_in_them_run_nothing(self, tmp_path: Path) -> None:
        path, trace = tmp_path / "w.pt", tmp_path / "trace"
        torch.save({"state_dict": {"logit_scale": _Touch(trace)}}, path)
        with pytest.raises(CheckpointError, match="not a plain pickle of tensors"):
            hpsv2.build([path], "cpu")
        assert not trace.exists()

    def test_are_fetched_if_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def fetch(*words: Any, **options: Any) -> str:
            asked.append((words, options))
            (tmp_path / "fetched").write_bytes(b"other")
            return str(tmp_path / "fetched")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
        monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
        with pytest.raises(CheckpointError, match="sha256 must be"):
            open_extractor("hpsv2.1", ("hps",), download=True)
        with pytest.raises(CheckpointError, match=r"not model\.safetensors of openai/clip"):
            open_extractor("laion-aesthetic-v2", ("aesthetic",), download=True)
        ours, of_clip, head = asked
        assert ours == (("xswu/HPSv2", hpsv2.WEIGHTS.name), {"revision": hpsv2.WEIGHTS.revision})
        assert of_clip[0][0] == aesthetic.CLIP.repository
        assert head[0][0] == aesthetic.HEAD.url
        assert head[1]["hash_prefix"] == aesthetic.HEAD.sha256
        monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
        with pytest.raises(Unavailable, match=r"xswu/HPSv2.*no route to host"):
            open_extractor("hpsv2.1", ("hps",), download=True)


def test_the_manual_lists_every_file() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, files in FILES.items():
        assert f"| `{name}` |" in manual
        for file in files:
            size = f"{file.size:,}" if file.sha256 else size_text(file.size)
            sha256 = f"{file.sha256[:16]}..." if file.sha256 else "unverified"
            for word in (file.repository, file.name, file.licence, size, sha256):
                assert word in manual


def test_a_plan_knows_what_is_to_be_fetched() -> None:
    download = EXTRACTORS["laion-aesthetic-v2"].download
    assert download is not None
    what, size = download("laion-aesthetic-v2")
    assert size == aesthetic.CLIP.size + aesthetic.HEAD.size
    assert what == "laion-aesthetic-v2 (licence MIT and Apache-2.0)"
