"""Datasets in the form of the Hugging Face hub."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.training.data.samples import encoded, picture, write_folder
from training.data.hub import HubSource
from training.data.open import open_source
from training.data.source import BadSample
from training.errors import TrainingError
from training.recipes.schema import HuggingFaceData

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def local_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def saved(tmp_path, captions, pictures=None):
    """A dataset written by the library's own `save_to_disk`."""
    contents = pictures or [encoded(picture(row)) for row in range(len(captions))]
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": content, "path": None} for content in contents], "text": captions}
    ).cast_column("image", datasets.Image(decode=False))
    table.save_to_disk(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def test_rows_are_those_of_the_library(tmp_path):
    captions = ["red", "naïve 猫", "x"]
    name = saved(tmp_path, captions)
    source = HubSource(name)
    oracle = datasets.load_from_disk(name).cast_column("image", datasets.Image())
    assert len(source) == 3
    for row in (2, 0, 1):
        sample = source.read(row)
        assert sample.caption == oracle[row]["text"] == captions[row]
        assert np.array_equal(np.asarray(sample.image), np.asarray(oracle[row]["image"].convert("RGB")))


def test_a_folder_that_the_library_builds(tmp_path):
    folder = write_folder(
        tmp_path / "pictures", {"a.png": (picture(3), "red"), "b.png": (picture(4), "blue")}
    )
    source = HubSource(str(folder))
    found = {source.read(row).caption: np.asarray(source.read(row).image) for row in range(len(source))}
    assert np.array_equal(found["red"], np.asarray(picture(3)))
    assert np.array_equal(found["blue"], np.asarray(picture(4)))


def test_several_captions_and_none(tmp_path):
    source = HubSource(saved(tmp_path, [["first", "second"], [], ["third"]]))
    assert [source.read(row).caption for row in range(3)] == ["first", "", "third"]
    assert list(source.captions) == ["first", "", "third"]


def test_corrupt_pictures_are_named(tmp_path):
    good = encoded(picture(0))
    source = HubSource(saved(tmp_path, ["a", "b", "c"], [good, good[:50], b"text"]))
    source.read(0)
    for row in (1, 2):
        with pytest.raises(BadSample) as caught:
            source.read(row)
        assert f"row {row}" in caught.value.key


def test_what_is_missing_is_explained(tmp_path):
    name = saved(tmp_path, ["a", "b"])
    unknown = r"data\.caption_column: unknown column \(found 'caption'\).*image, text"
    with pytest.raises(TrainingError, match=unknown):
        HubSource(name, caption_column="caption")
    with pytest.raises(TrainingError, match=r"data\.image_column: unknown column"):
        HubSource(name, image_column="picture")
    with pytest.raises(TrainingError, match=r"data\.image_column"):
        HubSource(saved(tmp_path / "numbers", [1, 2]), image_column="text", caption_column="text")
    with pytest.raises(TrainingError, match="a caption that is no text"):
        HubSource(saved(tmp_path / "more", [1, 2])).read(0)
    with pytest.raises(TrainingError, match=r"data\.name.*cannot be loaded"):
        HubSource(str(tmp_path / "nowhere"))


def test_a_split_that_is_not_there(tmp_path):
    table = datasets.load_from_disk(saved(tmp_path, ["a"]))
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "both"))
    assert len(HubSource(str(tmp_path / "both"), split="test")) == 1
    with pytest.raises(TrainingError, match="cannot be loaded"):
        HubSource(str(tmp_path / "both"), split="validation")


def test_a_part_of_a_split(tmp_path):
    name = saved(tmp_path, ["a", "b", "c"])
    assert list(HubSource(name, split="train[1:]").captions) == ["b", "c"]
    table = datasets.load_from_disk(name)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "both"))
    assert list(HubSource(str(tmp_path / "both"), split="train[:1]+test[:1]").captions) == ["a", "a"]
    with pytest.raises(TrainingError, match=r"cannot be loaded.*test"):
        HubSource(name, split="test")


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TrainingError, match="pip install datasets"):
        HubSource("org/name")


def test_the_fingerprint_follows_the_content(tmp_path):
    original = HubSource(saved(tmp_path / "a", ["red", "blue"])).fingerprint
    assert HubSource(saved(tmp_path / "b", ["red", "blue"])).fingerprint == original
    others = [
        saved(tmp_path / "c", ["red", "green"]),
        saved(tmp_path / "d", ["red", "blue"], [encoded(picture(0)), encoded(picture(1, 70, 70))]),
        saved(tmp_path / "e", ["red"]),
    ]
    assert len({original, *(HubSource(name).fingerprint for name in others)}) == 4


def test_by_recipe(tmp_path):
    name = saved(tmp_path, ["red", " ", "blue"])
    with pytest.raises(TrainingError, match="empty caption"):
        open_source(HuggingFaceData(kind="huggingface", name=name))
    assert len(open_source(HuggingFaceData(kind="huggingface", name=name, pairs=1))) == 1
    source = open_source(HuggingFaceData(kind="huggingface", name=name, empty_captions="skip"))
    with pytest.raises(BadSample):
        source.read(1)


def test_the_fingerprint_follows_pictures_that_are_files(tmp_path):
    def of(name, side):
        folder = write_folder(tmp_path / name, {"a.png": (picture(3, side, side), "red")})
        return HubSource(str(folder)).fingerprint

    assert of("one", 8) == of("two", 8)
    assert of("one", 8) != of("three", 64), "latents of other pictures would be taken from the cache"
