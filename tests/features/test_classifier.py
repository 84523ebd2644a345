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
    config = {"widths": [8, 8, 16], "hidden": 16, "features": 96}
    config |= {"names": scenes.NAMES, "colours": scenes.COLOURS}
    (tmp_path / "config.json").write_text(json.dumps(config))
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
    first = [scenes.NAMES.index(one.objects[0].name) for one in drawn]
    assert (logits.argmax(1) == torch.tensor(first)).float().mean() > 0.95


def test_torch_fidelity_makes_the_extractor_which_refuses_floats(untrained):
    extractor = create_feature_extractor(
        classifier.NAME, ["96", "logits"], cuda=False, feature_extractor_weights_path=str(untrained)
    )
    features = extractor.convert_features_tuple_to_dict(extractor(real(range(3))[1]))
    assert features["96"].shape == (3, 96)
    assert features["logits"].shape == (3, 128)
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


def test_a_classifier_of_other_names_is_refused(untrained):
    """Names of an equal number in another order would be read without a complaint, and wrongly."""
    config = json.loads((untrained / "config.json").read_text())
    config["names"] = config["names"][::-1]
    (untrained / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match=r"config\.json: this classifier reads other names or colours"):
        classifier.load_classifier(untrained)


class Reader(torch.nn.Module):
    """Reads every slot as told: names [N, 3] and colours [N, 3] by number."""

    def __init__(self, names, colours):
        super().__init__()
        self.names, self.colours = names, colours

    def forward(self, images):
        labels = len(classifier.NAME_LABELS), len(classifier.COLOUR_LABELS)
        read = (self.names, self.colours)
        return {
            key: torch.nn.functional.one_hot(torch.tensor(told), count).float()
            for key, told, count in zip(("name", "colour"), read, labels, strict=True)
        }


def test_hits_are_counted_per_object_and_per_name():
    """Two scenes: a red sun beside a blue cat face, and a red sun; the second sun is read as a cat face."""
    things = [
        scenes.SceneObject(name, colour, "small", 32.0, 32.0, 10.0)
        for name, colour in (("sun", "red"), ("cat face", "blue"), ("sun", "red"))
    ]
    ground = scenes.BACKGROUNDS[0]
    drawn = [
        scenes.Scene(0, "", tuple(things[:2]), "beside", ground),
        scenes.Scene(1, "", (things[2],), "one", ground),
    ]
    sun, cat, none = (classifier.NAME_LABELS.index(name) for name in ("sun", "cat face", classifier.NONE))
    red, green, empty = (classifier.COLOUR_LABELS.index(name) for name in ("red", "green", classifier.NONE))
    reader = Reader([[sun, cat, none], [cat, none, none]], [[red, green, empty], [red, empty, empty]])
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    assert classifier.object_hits(reader, images, drawn).tolist() == [True, False, False]
    counts = classifier.name_hits(reader, images, drawn)
    assert counts == {"sun": (1, 2), "cat face": (1, 1)}
    assert list(counts) == [name for name in scenes.NAMES if name in counts]


def test_default_features_of_metrics():
    default = classifier.SceneFeatureExtractor.get_default_feature_layer_for_metric
    assert default("isc") == "logits"
    assert {default(metric) for metric in ("fid", "kid", "prc")} == {"96"}
    assert not classifier.SceneFeatureExtractor.can_be_compiled()
    assert classifier.SceneFeatureExtractor.get_dummy_input_for_compile().shape == (1, 3, 64, 64)
