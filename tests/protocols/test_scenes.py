"""Scenes: pure, disjoint, captioned truthfully, anti-aliased."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pytest_sdbench.protocols import scenes

SAMPLE = range(10_000_000, 10_000_400)


def test_scene_is_a_pure_function_of_its_index():
    assert scenes.scene(123) == scenes.scene(123)
    assert np.array_equal(scenes.render(scenes.scene(123)), scenes.render(scenes.scene(123)))
    assert scenes.scene(123) != scenes.scene(124)
    with pytest.raises(ValueError, match="-1 is negative"):
        scenes.scene(-1)


def test_choices_never_change():
    """Recorded evidence and statistics rest on them."""
    told = "\n".join(scenes.captions([*range(200), *SAMPLE]))
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "24b1457f3dd993f2"
    places = [(thing.x, thing.y, thing.radius) for i in range(200) for thing in scenes.scene(i).objects]
    assert np.sum(places) == pytest.approx(28377.057, abs=1e-6)


def test_ranges_are_disjoint():
    ranges = [scenes.TRAINING, scenes.EVALUATION, scenes.REFERENCE]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert max(ranges[first][0], ranges[second][0]) > min(ranges[first][-1], ranges[second][-1])


def test_caption_names_the_objects_in_order_and_nothing_else():
    for index in SAMPLE:
        one = scenes.scene(index)
        words = one.caption.replace(",", "").split()
        assert [word for word in words if word in scenes.SHAPES] == [thing.shape for thing in one.objects]
        tail = next(phrase for phrase in one.background.phrases if one.caption.endswith(phrase))
        head = one.caption.removesuffix(tail).replace(",", "").split()
        assert [word for word in head if word in scenes.COLOURS] == [thing.colour for thing in one.objects]
        assert 1 <= len(one.objects) <= scenes.MAX_OBJECTS


def test_objects_stand_in_the_order_of_the_caption():
    for index in SAMPLE:
        one = scenes.scene(index)
        if one.layout in ("beside", "row"):
            assert [thing.x for thing in one.objects] == sorted(thing.x for thing in one.objects)
        else:
            rows = [(thing.y > 32, thing.x) for thing in one.objects]
            assert rows == sorted(rows)


def test_every_object_is_in_the_picture_in_its_colour():
    for index in SAMPLE[:100]:
        one = scenes.scene(index)
        picture = scenes.render(one).astype(float)
        for thing in one.objects:
            if thing.pattern != "plain" or thing.shape == "ring":
                continue
            middle = picture[int(thing.y), int(thing.x)]
            nearest = min(scenes.COLOURS, key=lambda name: np.linalg.norm(middle - scenes._RGB[name]))
            assert nearest == thing.colour, (index, thing)


def test_objects_stay_inside_and_apart():
    for index in SAMPLE:
        one = scenes.scene(index)
        for number, thing in enumerate(one.objects):
            assert min(thing.x, 64 - thing.x) >= thing.radius
            assert min(thing.y, 64 - thing.y) >= thing.radius
            for other in one.objects[:number]:
                gap = np.hypot(thing.x - other.x, thing.y - other.y) - thing.radius - other.radius
                assert gap > 0, (index, gap)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_edges_are_anti_aliased(shape):
    thing = scenes.SceneObject(shape, "white", "large", "plain", 32.3, 31.6, 12.0)
    ground = next(background for background in scenes.BACKGROUNDS if background.name == "navy")
    picture = scenes.render(scenes.Scene(0, "", (thing,), "one", ground)).astype(int)[..., 0]
    # Between the navy (26) and the white (at least 240), some pixels must lie in between, but not many.
    between = ((picture > 60) & (picture < 200)).mean()
    inside = (picture >= 200).mean()
    assert 0.002 < between < inside


def test_render_scales():
    small, large = scenes.render(scenes.scene(5)), scenes.render(scenes.scene(5), size=128)
    assert small.shape == (64, 64, 3)
    assert large.shape == (128, 128, 3)
    halved = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - small).mean() < 3


def test_render_batch_is_the_renders_stacked():
    batch = scenes.render_batch(range(7, 10))
    assert batch.dtype == np.uint8
    assert np.array_equal(batch[1], scenes.render(scenes.scene(8)))


def test_scenes_are_found_by_their_layout():
    found = list(scenes.indices_of(["one", "row"], range(2000)))
    assert found == [i for i in range(2000) if scenes.scene(i).layout in ("one", "row")]
    assert {scenes.scene(i).layout for i in range(200)} == set(scenes.LAYOUTS)
    with pytest.raises(ValueError, match="no scene has the layout 'pile'; there are one, beside"):
        scenes.indices_of(["pile"], range(5))


def test_near_misses_differ_from_the_caption_and_stay_captions():
    words = {word for caption in scenes.captions(range(3000)) for word in caption.split()}
    for index in SAMPLE:
        one = scenes.scene(index)
        for wrong in scenes.near_misses(one, 4):
            assert wrong != one.caption
            assert set(wrong.split()) <= words
    assert scenes.near_misses(scenes.scene(3), 4) == scenes.near_misses(scenes.scene(3), 4)
