"""Scenes as training data: drawn by index, never those that checkpoints are judged on."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_sdbench.protocols import scenes
from training.data.scenes import ScenesSource
from training.errors import TrainingError


def test_rows_are_the_scenes_of_their_indices():
    source = ScenesSource(10, first=50)
    assert len(source) == 10
    for row in (0, 9):
        sample = source.read(row)
        assert np.array_equal(sample.image, scenes.render(scenes.scene(50 + row)))
        assert sample.caption == scenes.scene(50 + row).caption


def test_only_some_layouts():
    source = ScenesSource(20, first=5, layouts=["row", "one"])
    expected = [index for index in range(5, 500) if scenes.scene(index).layout in ("row", "one")][:20]
    assert [source.read(row).key for row in range(20)] == [f"scene {index}" for index in expected]


def test_close_ups_hold_the_object_wherever_it_stands():
    source, offsets = ScenesSource(60, layouts=["one"], close_up=32), set()
    for row in range(60):
        sample = source.read(row)
        drawn = scenes.scene(int(sample.key.split()[1]))
        assert np.array_equal(sample.image, scenes.render(drawn))
        top, left, side = sample.window
        (thing,) = drawn.objects
        offsets.add((top + 16 - thing.y, left + 16 - thing.x))
        assert side == 32
        assert 0 <= top <= 32
        assert 0 <= left <= 32
    assert offsets == {(y, x) for y in (-4, 0, 4) for x in (-4, 0, 4)}


@pytest.mark.parametrize(
    "options",
    [
        {"layouts": ["row"]},
        {},
        {"layouts": ["one", "row"]},
        {"layouts": ["one"], "size": 32},
        {"close_up": 72},
    ],
)
def test_close_ups_of_several_objects_are_refused(options):
    with pytest.raises(TrainingError, match="only object") as caught:
        ScenesSource(5, **{"close_up": 24, **options})
    assert "layouts: [one]" in str(caught.value)


def test_every_layout_can_be_named():
    assert {scenes.scene(index).layout for index in range(500)} == set(scenes.LAYOUTS)
    with pytest.raises(TrainingError, match="unknown layout") as caught:
        ScenesSource(5, layouts=["circle"])
    assert "two-over-one" in str(caught.value)


def test_names_of_a_domain_alone():
    source = ScenesSource(10, first=50, domain="faces")
    for row in range(10):
        one = scenes.scene(50 + row, "faces")
        assert source.read(row).caption == one.caption
        assert np.array_equal(source.read(row).image, scenes.render(one))
    assert "faces alone" in source.name
    with pytest.raises(TrainingError, match="unknown domain") as caught:
        ScenesSource(5, domain="cats")
    assert "faces, things" in str(caught.value)


def test_the_scenes_of_the_evaluation_are_out_of_reach():
    last = scenes.TRAINING.stop
    assert ScenesSource(10, first=last - 10).read(9).key == f"scene {last - 1}"
    assert len(ScenesSource(None, first=last - 10)) == 10
    for options in (
        {"pairs": 11, "first": last - 10},
        {"pairs": None, "first": last},
        {"pairs": 1, "first": scenes.EVALUATION.start},
        {"pairs": 50, "first": last - 30, "layouts": ["one"]},
        {"pairs": None, "first": last, "layouts": ["one"]},
    ):
        with pytest.raises(TrainingError, match=f"beyond {last - 1}"):
            ScenesSource(**options)
    for options in ({"pairs": 1, "first": -1}, {"pairs": 0}):
        with pytest.raises(TrainingError, match="not a range of scenes"):
            ScenesSource(**options)


def test_fingerprints_tell_different_scenes_apart():
    sources = [
        ScenesSource(10),
        ScenesSource(11),
        ScenesSource(10, first=1),
        ScenesSource(10, layouts=["one"]),
        ScenesSource(10, size=32),
        ScenesSource(10, domain="faces"),
        ScenesSource(10, layouts=["one"], close_up=32),
        ScenesSource(10, layouts=["one"], close_up=24),
    ]
    assert len({source.fingerprint for source in sources}) == 8
    assert ScenesSource(10).fingerprint == sources[0].fingerprint
