"""The classifier reads unseen real scenes, and torch-fidelity knows it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity.utils import create_feature_extractor

from pytest_sdbench.base.paths import reference
from pytest_sdbench.features import classifier
from pytest_sdbench.protocols import scenes

SHIPPED = reference() / "checkpoints" / classifier.NAME
needs_weights = pytest.mark.skipif(
    not (SHIPPED / "model.safetensors").is_file(),
    reason="the scenes classifier is not trained: see training/",
)


def real(indices: range) -> tuple[list[scenes.Scene], torch.Tensor]:
    pictures = torch.from_numpy(scenes.render_batch(indices)).permute(0, 3, 1, 2)
    return [scenes.scene(i) for i in indices], pictures


@pytest.fixture
def untrained(tmp_path):
    """A classifier folder with random weights."""
    torch.manual_seed(0)
    model = classifier.SceneClassifier((8, 8, 16), hidden=16)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"widths": [8, 8, 16], "hidden": 16, "features": 64}))
    return tmp_path


@pytest.fixture(scope="module")
def model():
    """The shipped classifier."""
    return classifier.load_classifier()


@needs_weights
def test_reads_unseen_real_scenes(model):
    drawn, images = real(scenes.EVALUATION[-512:])
    assert classifier.object_hits(model, images, drawn).float().mean() >= 0.98


@needs_weights
def test_wrong_place_counts_as_wrong(model):
    """A mirrored row of objects is read in mirrored order."""
    drawn, images = real(scenes.EVALUATION[:200])
    rows = [
        i
        for i, one in enumerate(drawn)
        if one.layout == "beside" and one.objects[0].colour != one.objects[1].colour
    ]
    mirrored = classifier.object_hits(model, images[rows].flip(-1), [drawn[i] for i in rows])
    assert mirrored.float().mean() < 0.02


@needs_weights
def test_logits_name_the_first_object():
    extractor = create_feature_extractor(classifier.NAME, ["logits"], cuda=False)
    drawn, images = real(scenes.EVALUATION[:256])
    (logits,) = extractor(images)
    first = [
        scenes.SHAPES.index(one.objects[0].shape) * len(scenes.COLOURS)
        + scenes.COLOURS.index(one.objects[0].colour)
        for one in drawn
    ]
    assert (logits.argmax(1) == torch.tensor(first)).float().mean() > 0.95


def test_torch_fidelity_makes_the_extractor_which_refuses_floats(untrained):
    extractor = create_feature_extractor(
        classifier.NAME, ["64", "logits"], cuda=False, feature_extractor_weights_path=str(untrained)
    )
    features = extractor.convert_features_tuple_to_dict(extractor(real(range(3))[1]))
    assert features["64"].shape == (3, 64)
    assert features["logits"].shape == (3, len(scenes.SHAPES) * len(scenes.COLOURS))
    assert {value.dtype for value in features.values()} == {torch.float32}
    with pytest.raises(ValueError, match=r"reads uint8 \[N, 3, 64, 64\]"):
        extractor(torch.zeros(1, 3, 64, 64))


def test_features_do_not_depend_on_the_batch(untrained):
    model = classifier.load_classifier(untrained)
    images = real(range(8))[1]
    alone = torch.cat([model(images[i : i + 1])["features"] for i in range(8)])
    torch.testing.assert_close(alone, model(images)["features"], rtol=1e-4, atol=1e-5)


def test_missing_weights_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        classifier.load_classifier(tmp_path)


def test_default_features_of_metrics():
    default = classifier.SceneFeatureExtractor.get_default_feature_layer_for_metric
    assert default("isc") == "logits"
    assert {default(metric) for metric in ("fid", "kid", "prc")} == {"64"}
    assert not classifier.SceneFeatureExtractor.can_be_compiled()
    assert classifier.SceneFeatureExtractor.get_dummy_input_for_compile().shape == (1, 3, 64, 64)
