"""Extractors against the tools they stand for, on random weights: no published ones are needed."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from pytest_sdbench.base.errors import CheckpointError, ProtocolError, Unavailable
from pytest_sdbench.features import classifier, inception
from pytest_sdbench.features import extractors as features
from pytest_sdbench.features.clip import load_clip
from pytest_sdbench.features.extractors import EXTRACTORS, describe, open_extractor, open_extractors
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.metric_specs import read_spec
from tests.tiny_checkpoint import make_tokenizer


def pictures(n: int, size: int) -> np.ndarray:
    coarse = np.random.default_rng(n).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse]
    )


def protocol(**metrics: Any) -> Any:
    """Return what extractors read of a protocol."""
    specs = {
        name: read_spec({"metric": name, **ABOUT.get(name, {}), **spec}) for name, spec in metrics.items()
    }
    names = {spec.extractor for spec in specs.values()}
    return SimpleNamespace(metrics=specs, extractors=tuple(sorted(names)))


STATISTICS = {"statistics": {"file": "s.npz", "images": 2}}
ABOUT = {"fid": STATISTICS, "kid": STATISTICS}


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub; return the folder of its checkpoints."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


# --- Inception ---


class _RandomInception(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """torch-fidelity's network, left as it was initialised."""

    def __init__(self) -> None:
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        super().__init__("random", ["2048", "logits_unbiased"], feature_extractor_weights_path=nothing)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        return None


@pytest.fixture(scope="module")
def random_inception() -> _RandomInception:
    torch.manual_seed(0)
    network = _RandomInception()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.05, 0.15)
    return network


@pytest.fixture(scope="module")
def weights_folder(random_inception: _RandomInception, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with random weights under the published name; their checksum must be given."""
    folder = tmp_path_factory.mktemp("data")
    torch.save(random_inception.state_dict(), folder / inception.FILES[0])
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def network(weights_folder: Path) -> Any:
    path = weights_folder / inception.FILES[0]
    return inception.load_inception(path, sha256=sha256(path))


COCO = {
    "fid": {"extractor": "inception-pytorch-fid"},
    "inception_score": {"extractor": "inception-torch-fidelity"},
}


@pytest.fixture(scope="class")
def coco(weights_folder: Path) -> Iterator[features.Extractors]:
    """Both front ends; the checksum of the random weights counts as the published one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "SHA256", sha256(weights_folder / inception.FILES[0]))
        yield open_extractors(protocol(**COCO), data_root=weights_folder)


class TestInception:
    def test_torch_fidelity_front_end_is_theirs(
        self, network: Any, random_inception: _RandomInception
    ) -> None:
        images = pictures(3, 256)
        expected = random_inception(nchw(images))
        got = inception.torch_fidelity(network, nchw(images))
        assert got[0].std() > 1e-3
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])

    def test_pytorch_fid_front_end_equals_plain_torch(
        self, network: Any, random_inception: _RandomInception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The network's own forward, its front end taken out: no list of layers that could miss one.
        images = pictures(3, 256)
        got = inception.pytorch_fid(network, nchw(images))

        ready = 2 * F.interpolate(nchw(images).float() / 255, size=(299, 299), mode="bilinear") - 1
        module = "torch_fidelity.feature_extractor_inceptionv3.interpolate_bilinear_2d_like_tensorflow1x"
        monkeypatch.setattr(module, lambda x, size, align_corners: ready * 128 + 128)
        expected = random_inception(nchw(images))[0]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

    def test_front_ends_differ(self, network: Any) -> None:
        images = nchw(pictures(2, 64))
        one, other = inception.pytorch_fid(network, images), inception.torch_fidelity(network, images)[0]
        assert (one - other).abs().max() > 1e-2 * one.abs().max()

    def test_one_pass_gives_what_the_protocol_asks_for(self, coco: features.Extractors) -> None:
        rows = coco.extract(pictures(3, 256), ["a"] * 3)
        assert {key: (value.shape, value.dtype) for key, value in rows.items()} == {
            "inception-pytorch-fid": ((3, 2048), np.float32),
            "inception-torch-fidelity-logits": ((3, 1008), np.float32),
        }
        with pytest.raises(ValueError, match="3 images and 2 prompts"):
            coco.extract(pictures(3, 64), ["a", "b"])

    @pytest.mark.slow
    def test_batch_size_does_not_matter(
        self, coco: features.Extractors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images, extractor = pictures(3, 96), coco.networks[0]
        whole = extractor(images)["inception-pytorch-fid"]
        monkeypatch.setattr("pytest_sdbench.features.definition._CHUNK", 1)
        alone = extractor(images)["inception-pytorch-fid"]
        np.testing.assert_allclose(alone, whole, rtol=1e-4, atol=1e-4 * np.abs(whole).max())

    def test_front_ends_have_their_own_names(self, coco: features.Extractors, weights_folder: Path) -> None:
        names = ["inception-pytorch-fid", "inception-torch-fidelity"]
        assert [network.name for network in coco.networks] == names
        assert [len(fingerprint) for fingerprint in {each.fingerprint for each in coco.networks}] == [16, 16]
        assert "sha256 verified" in describe(names[0], weights_folder)

    def test_logits_of_pytorch_fid_are_refused(self, weights_folder: Path) -> None:
        features_alone = protocol(inception_score={"extractor": "inception-pytorch-fid"})
        message = r"IS reads logits; this extractor has features.*Name one that has them: inception-torch"
        with pytest.raises(ProtocolError, match=message):
            open_extractors(features_alone, data_root=weights_folder)


class _Touch:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class TestInceptionWeights:
    def test_of_another_checksum_are_refused(self, weights_folder: Path) -> None:
        found = sha256(weights_folder / inception.FILES[0])
        with pytest.raises(CheckpointError, match=f"must be {inception.SHA256}.*found '{found}'"):
            open_extractors(protocol(**COCO), data_root=weights_folder)
        with pytest.raises(CheckpointError, match="not the Inception"):
            describe("inception-torch-fidelity", weights_folder)

    @pytest.mark.parametrize("content", ["other tensors", "code"])
    def test_that_cannot_be_loaded_are_refused_and_run_nothing(self, content: str, tmp_path: Path) -> None:
        path, trace = tmp_path / "w.pth", tmp_path / "trace"
        torch.save({"fc.weight": _Touch(trace) if content == "code" else torch.zeros(3)}, path)
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            inception.load_inception(path, sha256=sha256(path))
        assert not trace.exists()

    def test_that_are_missing_say_where_they_go(self, hub: Path, tmp_path: Path) -> None:
        with pytest.raises(Unavailable, match=r"--sdbench-download.*curl|curl.*--sdbench-download") as raised:
            open_extractors(protocol(**COCO), data_root=tmp_path)
        assert str(hub / inception.FILES[0]) in str(raised.value)

    @pytest.mark.parametrize("name", inception.FILES)
    def test_are_found_in_the_hub_cache_under_both_names(self, name: str, hub: Path, tmp_path: Path) -> None:
        (hub / name).touch()
        assert inception.find_weights(None) == hub / name
        assert inception.find_weights(tmp_path / "elsewhere") == hub / name

    def test_are_downloaded_if_asked_and_possible(self, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        monkeypatch.setattr(
            torch.hub,
            "download_url_to_file",
            lambda url, to, hash_prefix: asked.append((url, to, hash_prefix)),
        )
        path = inception.find_weights(None, download=True)
        assert asked == [(inception.URL, str(path), inception.SHA256)]
        monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
        with pytest.raises(Unavailable, match="no route to host"):
            inception.find_weights(None, download=True)


def offline(*args: object, **options: object) -> str:
    raise FileNotFoundError("no route to host")


def test_unknown_extractors_are_named() -> None:
    known = r"unknown extractor.*inception-v3.*Known are inception-pytorch-fid"
    with pytest.raises(ProtocolError, match=known):
        open_extractors(protocol(fid={"extractor": "inception-v3"}))


# --- the classifier of scenes ---


@pytest.fixture
def scenes_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reference folder whose classifier has random weights."""
    torch.manual_seed(0)
    folder = tmp_path / "checkpoints" / "scenes-classifier"
    folder.mkdir(parents=True)
    config = {"widths": [24, 48, 96], "hidden": 256, "features": 96}
    config |= {"names": scenes.NAMES, "colours": scenes.COLOURS}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(classifier.SceneClassifier().state_dict(), folder / "model.safetensors")
    monkeypatch.setattr(classifier, "reference", lambda: tmp_path)
    return tmp_path


SCENES = {name: {"extractor": "scenes-classifier"} for name in ("fid", "inception_score", "kid")}


def test_scenes_classifier_gives_features_and_logits_in_one_pass(scenes_reference: Path) -> None:
    images = pictures(40, 64)
    rows = open_extractors(protocol(**SCENES)).extract(images, ["a"] * 40)
    network = classifier.load_classifier(scenes_reference / "checkpoints" / "scenes-classifier")
    expected = network(nchw(images))
    assert set(rows) == {"scenes-classifier", "scenes-classifier-logits"}
    for column, output in (("scenes-classifier", "features"), ("scenes-classifier-logits", "logits")):
        np.testing.assert_allclose(rows[column], expected[output].numpy(), rtol=1e-4, atol=1e-5)
    assert "loads" in describe("scenes-classifier")


def test_scenes_classifier_that_is_missing_or_damaged_is_explained(scenes_reference: Path) -> None:
    path = scenes_reference / "checkpoints" / "scenes-classifier" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        open_extractor("scenes-classifier")
    path.unlink()
    with pytest.raises(Unavailable, match=r"model\.safetensors"):
        open_extractor("scenes-classifier")


# --- CLIP ---

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CAPTIONS = ["a small red circle", "two cats", "x", "a dog with a stick in its mouth runs over the grass"]
LONG = "a very long caption " * 30


def make_clip(folder: Path, **text: Any) -> Path:
    """Write a tiny random model in open_clip's local-dir form."""
    torch.manual_seed(1)
    config = {**CLIP_CONFIG, "text_cfg": {**CLIP_CONFIG["text_cfg"], **text}}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "tiny")


def directly(folder: Path, images: np.ndarray, captions: list[str]) -> np.ndarray:
    """Score one picture at a time, as open_clip's own documentation does."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    scores = []
    with torch.no_grad():
        for image, caption in zip(images, captions, strict=True):
            seen = model.encode_image(preprocess(Image.fromarray(image)).unsqueeze(0))
            told = model.encode_text(tokenizer([caption]))
            scores.append(float(F.cosine_similarity(seen, told)))
    return np.array(scores)


class TestClip:
    def test_score_equals_open_clip_called_directly(self, clip_folder: Path) -> None:
        images, captions = pictures(5, 48), [*CAPTIONS, LONG]
        scores = open_extractor_of_clip(clip_folder).extract(images, captions)[f"local:{clip_folder}-cosine"]
        assert (scores.shape, scores.dtype) == ((5,), np.float32)
        assert np.ptp(scores) > 0.01
        np.testing.assert_allclose(scores, directly(clip_folder, images, captions), atol=1e-5)

    def test_batch_size_does_not_matter(self, clip_folder: Path) -> None:
        images, captions = pictures(32, 48), [f"{caption} {i}" for i in range(8) for caption in CAPTIONS]
        extractors = open_extractor_of_clip(clip_folder)
        name = f"local:{clip_folder}-cosine"
        whole = extractors.extract(images, captions)[name]
        parts = [slice(i, i + 1) for i in range(32)]
        alone = [extractors.extract(images[part], captions[part])[name][0] for part in parts]
        np.testing.assert_allclose(alone, whole, atol=1e-4)

    def test_long_captions_keep_the_end_token_of_either_tokenizer(
        self, clip_folder: Path, tmp_path: Path
    ) -> None:
        own = make_tokenizer(tmp_path / "own")
        end = len(json.loads((own / "vocab.json").read_text(encoding="utf-8"))) - 1
        make_clip(own, hf_tokenizer_name="own", vocab_size=end + 1)
        for folder, last in ((clip_folder, 49407), (own, end)):
            tokens = load_clip(f"local:{folder}").tokenize([LONG, "a"])
            assert tokens.shape == (2, 20)
            assert tokens[0, -1] == last
            assert tokens[0].argmax() == 19

    def test_a_tokenizer_without_end_is_refused(
        self, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scorer = load_clip(f"local:{clip_folder}")
        # The once-common bug: cut at the context length and hope.
        naive = open_clip.get_tokenizer(f"local-dir:{clip_folder}", context_length=500)
        monkeypatch.setattr(scorer.tokenize, "_tokenizer", lambda texts: naive(texts)[:, :20])
        assert scorer.tokenize(["short enough"]).shape == (1, 20)
        with pytest.raises(CheckpointError, match=r"cuts off the end token.*a very long caption"):
            scorer.tokenize(["short enough", LONG])

    def test_weights_that_are_missing_or_of_another_model_are_refused(self, tmp_path: Path) -> None:
        folder = make_clip(tmp_path / "other")
        weights = folder / "open_clip_model.safetensors"
        save_file({"logit_scale": torch.zeros(())}, weights)
        with pytest.raises(CheckpointError, match="open_clip cannot load this model"):
            open_extractor_of_clip(folder)
        weights.unlink()
        with pytest.raises(Unavailable, match=r"open_clip_model\.safetensors: the CLIP model has no weights"):
            open_extractor_of_clip(folder)
        with pytest.raises(Unavailable, match=r"open_clip_config\.json"):
            open_extractor_of_clip(tmp_path / "nowhere")

    def test_packaged_models_are_found_by_name(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        make_clip(tmp_path / "checkpoints" / "scenes-clip")
        monkeypatch.setattr("pytest_sdbench.features.clip.reference", lambda: tmp_path)
        one = open_extractors(protocol(clip_score={"model": "local:scenes-clip"}))
        assert len(one.networks) == 1
        assert "scenes-clip" in describe("local:scenes-clip")

    @pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_config.json", "merges.txt"])
    def test_whatever_decides_scores_is_in_the_fingerprint(
        self, clip_folder: Path, tmp_path: Path, file: str
    ) -> None:
        other = Path(shutil.copytree(clip_folder, tmp_path / "other"))
        (other / "README.md").write_text("no part of it")
        weights = EXTRACTORS["local:"].weights
        assert weights(f"local:{other}") == weights(f"local:{clip_folder}")
        assert load_clip(f"local:{other}").sha256 == weights(f"local:{other}")
        with (other / file).open("ab") as changed:
            changed.write(b" ")
        assert weights(f"local:{other}") != weights(f"local:{clip_folder}")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("ViT-g-14/laion2b_s34b_b88k", "written open_clip:MODEL/TAG or local:FOLDER"),
            ("open_clip:ViT-g-14", "no such model and weights"),
            ("open_clip:ViT-g-14/laion2b", "its weights are laion2b_s12b_b42k, laion2b_s34b_b88k"),
            ("open_clip:ViT-Z/openai", "no such model and weights"),
            ("open_clip:hf-hub:laion/CLIP-ViT-g-14", "named by MODEL/TAG, and not by where"),
            ("open_clip:ViT-B-32/openai", "QuickGELU.*Write open_clip:ViT-B-32-quickgelu/openai"),
        ],
    )
    def test_names_that_cannot_be_are_explained(self, name: str, message: str) -> None:
        with pytest.raises(ProtocolError, match=message):
            load_clip(name)


def open_extractor_of_clip(folder: Path) -> features.Extractors:
    return open_extractors(protocol(clip_score={"model": f"local:{folder}"}))


class TestNamedClip:
    """Pretrained names, with a tiny model in place of the gigabytes."""

    @pytest.fixture
    def tag(self, monkeypatch: pytest.MonkeyPatch) -> str:
        pictures = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
        source = {"hf_hub": "org/tiny/", **pictures, "interpolation": "bilinear", "resize_mode": "squash"}
        for module in (open_clip, open_clip.factory):
            monkeypatch.setattr(module, "get_model_config", lambda name: copy.deepcopy(CLIP_CONFIG))
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: source)
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
        return "open_clip:tiny/tag"

    def test_is_unavailable_without_weights_or_network(
        self, tag: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(Unavailable, match=r"not on this machine.*--sdbench-download"):
            load_clip(tag)
        monkeypatch.setattr(open_clip, "download_pretrained", offline)
        with pytest.raises(Unavailable, match="no route to host"):
            load_clip(tag, download=True)

    def test_is_loaded_from_the_cache_with_the_tags_own_pictures(
        self, tag: str, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = "open_clip_model.safetensors"
        found = {("org/tiny", name): str(clip_folder / name)}
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *asked: found.get(asked))
        scorer = load_clip(tag)
        theirs = open_clip.image_transform(
            32, False, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), interpolation="bilinear", resize_mode="squash"
        )
        image = Image.fromarray(pictures(1, 48)[0]).resize((60, 48))
        assert torch.equal(scorer.preprocess(image), theirs(image))
        assert "gives no checksum" in describe(tag)

    def test_is_downloaded_if_asked(
        self, tag: str, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            open_clip, "download_pretrained", lambda source: str(clip_folder / "open_clip_model.safetensors")
        )
        assert load_clip(tag, download=True)(pictures(1, 32), ["a"]).shape == (1,)
