"""Scenes: pure, disjoint, captioned truthfully, and the words of the captions as frequent as stated."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest

from pytest_sdbench.protocols import scenes

SAMPLE = range(10_000_000, 10_000_400)
OBJECT = re.compile(rf"({'|'.join(scenes.COLOURS)}) ({'|'.join(sorted(scenes.NAMES, key=len)[::-1])})\b")
"""Colour and name of an object, as captions tell them; longer names before those that they begin with."""


@cache
def many() -> list[scenes.Scene]:
    return [scenes.scene(index) for index in range(12_000)]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def test_scene_is_a_pure_function_of_its_index():
    assert scenes.scene(123) == scenes.scene(123)
    assert np.array_equal(scenes.render(scenes.scene(123)), scenes.render(scenes.scene(123)))
    assert scenes.scene(123) != scenes.scene(124)
    with pytest.raises(ValueError, match="-1 is not one of 0"):
        scenes.scene(-1)


def test_choices_never_change():
    """Recorded evidence and statistics rest on them."""
    told = "\n".join(scenes.captions([*range(200), *SAMPLE]))
    assert digest(told.encode()) == "1eca82866ac94d28"
    places = [(thing.x, thing.y, thing.radius) for i in range(200) for thing in scenes.scene(i).objects]
    assert np.sum(places) == 28880.0
    assert digest("\n".join(scenes.captions(SAMPLE, "faces")).encode()) == "462c885024774f05"


def test_captions_need_no_font():
    absent = "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'fontTools']))"
    task = "from pytest_sdbench.protocols import scenes; print(scenes.near_misses(scenes.scene(7), 1)[0])"
    command = [sys.executable, "-c", f"{absent}; {task}; scenes.render(scenes.scene(7))"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == scenes.near_misses(scenes.scene(7), 1)[0]
    assert "scenes cannot be drawn here: matplotlib is not installed" in done.stderr
    assert "pip install 'pytest-sdbench[scenes]'" in done.stderr


def test_ranges_are_disjoint():
    ranges = [scenes.TRAINING, scenes.EVALUATION, scenes.REFERENCE]
    for first, second in [(0, 1), (0, 2), (1, 2)]:
        assert max(ranges[first][0], ranges[second][0]) > min(ranges[first][-1], ranges[second][-1])


def test_names_are_words_that_differ():
    assert len(scenes.NAMES) == len(set(scenes.NAMES)) == 128
    assert all(re.fullmatch("[a-z]+( [a-z]+)?", name) for name in scenes.NAMES)
    others = {*scenes.COLOURS, "small", "little", "large", "big", "left", "right", "above", "over", "row"}
    assert not others.intersection(word for name in scenes.NAMES for word in name.split())
    assert len({one.code for one in scenes.PICTOGRAMS.values()}) == 128


def test_names_are_as_frequent_as_their_weights():
    """Zipf's law: the n-th name by 1 / (n + 10); every count within five standard errors."""
    counts = Counter(thing.name for one in many() for thing in one.objects)
    total, weights = counts.total(), sum(1 / (rank + 10) for rank in range(128))
    for rank, name in enumerate(scenes.NAMES):
        share = 1 / (rank + 10) / weights
        assert abs(counts[name] - total * share) < 5 * (total * share) ** 0.5, name
    assert counts[scenes.NAMES[0]] > 8 * counts[scenes.NAMES[-1]]


def test_faces_are_frequent_and_rare():
    ranks = [rank for rank, name in enumerate(scenes.NAMES) if scenes.PICTOGRAMS[name].domain == "faces"]
    assert min(ranks) < 10
    assert max(ranks) > 118
    assert 50 < np.mean(ranks) < 78


def test_a_domain_changes_the_names_alone():
    faces, things = (set(scenes.names_of(domain)) for domain in ("faces", "things"))
    assert faces | things == set(scenes.NAMES)
    assert not faces & things
    for index in SAMPLE:
        whole, face, thing = (scenes.scene(index, domain) for domain in ("all", "faces", "things"))
        assert {each.name for each in face.objects} <= faces
        assert {each.name for each in thing.objects} <= things
        for one in (face, thing):
            assert (one.layout, one.background) == (whole.layout, whole.background)
            for mine, theirs in zip(one.objects, whole.objects, strict=True):
                assert (mine.colour, mine.x, mine.y, mine.radius) == (
                    theirs.colour,
                    theirs.x,
                    theirs.y,
                    theirs.radius,
                )
            wrong = {name for miss in scenes.near_misses(one, 3) for _, name in OBJECT.findall(miss)}
            assert wrong <= (faces if one is face else things)
    with pytest.raises(ValueError, match="no domain 'cats' of names; there are all, faces, things"):
        scenes.scene(3, "cats")


def test_caption_names_the_objects_in_order_and_nothing_else():
    for index in SAMPLE:
        one = scenes.scene(index)
        tail = next(phrase for phrase in one.background.phrases if one.caption.endswith(phrase))
        found = OBJECT.findall(one.caption.removesuffix(tail))
        assert found == [(thing.colour, thing.name) for thing in one.objects]
        sizes = [word for word in one.caption.split() if word in ("small", "little", "large", "big")]
        assert [word in ("large", "big") for word in sizes] == [
            thing.size == "large" for thing in one.objects
        ]
        assert 1 <= len(one.objects) <= scenes.MAX_OBJECTS


def test_several_things_go_without_an_article():
    told = " ".join(one.caption for one in many())
    assert re.search(r"(small|little|large|big) \w+ scissors", told)
    assert not re.search(r"\ba (small|little|large|big) \w+ (scissors|swords|beamed notes)", told)
    assert re.search(r"\ba (small|little|large|big) \w+ cross\b", told)


def test_objects_stand_in_the_order_of_the_caption():
    for index in SAMPLE:
        one = scenes.scene(index)
        if one.layout in ("beside", "row"):
            assert [thing.x for thing in one.objects] == sorted(thing.x for thing in one.objects)
        else:
            rows = [(thing.y > 32, thing.x) for thing in one.objects]
            assert rows == sorted(rows)


def test_objects_stay_inside_and_apart():
    for index in SAMPLE:
        one = scenes.scene(index)
        for number, thing in enumerate(one.objects):
            assert min(thing.x, 64 - thing.x) >= thing.radius
            assert min(thing.y, 64 - thing.y) >= thing.radius
            for other in one.objects[:number]:
                gap = np.hypot(thing.x - other.x, thing.y - other.y) - thing.radius - other.radius
                assert gap > 0, (index, gap)


def test_an_object_covers_the_same_part_of_a_latent_wherever_it_stands():
    things = [thing for index in SAMPLE for thing in scenes.scene(index).objects]
    assert {(thing.x % 4, thing.y % 4) for thing in things} == {(0, 0)}
    assert len({thing.radius for thing in things if thing.size == "small"}) == 1


def test_scenes_are_found_by_their_layout():
    found = list(scenes.indices_of(["one", "row"], range(2000)))
    assert found == [i for i in range(2000) if scenes.scene(i).layout in ("one", "row")]
    assert {scenes.scene(i).layout for i in range(200)} == set(scenes.LAYOUTS)
    with pytest.raises(ValueError, match="no scene has the layout 'pile'; there are one, beside"):
        scenes.indices_of(["pile"], range(5))


def test_near_misses_differ_from_the_caption_and_stay_captions():
    words = {word for caption in scenes.captions(range(3000)) for word in re.findall("[a-z]+", caption)}
    for index in SAMPLE:
        one = scenes.scene(index)
        for wrong in scenes.near_misses(one, 4):
            assert wrong != one.caption
            assert set(re.findall("[a-z]+", wrong)) <= words
    assert scenes.near_misses(scenes.scene(3), 4) == scenes.near_misses(scenes.scene(3), 4)


def test_a_wrong_name_is_any_other():
    """Not by Zipf's law: half of the wrong names are of the rarer half."""
    wrong: Counter[str] = Counter()
    for one in many()[:4000]:
        true = [thing.name for thing in one.objects]
        for miss in scenes.near_misses(one, 2):
            told = [name for _, name in OBJECT.findall(miss)][: len(true)]
            if sorted(told) != sorted(true):
                wrong.update(set(told) - set(true))
    assert wrong.total() > 2000
    rare = sum(wrong[name] for name in scenes.NAMES[64:]) / wrong.total()
    assert rare == pytest.approx(0.5, abs=0.05)
