"""Read what pictures of scenes show, and estimate the share of objects that are the ones of the caption.

An extractor and two metrics of the benchmarks' own: the classifier of scenes, which was trained on real
scenes alone, reads name and colour of every object that a caption tells of. So the share is an estimate as
the CLIP score is: with a standard error, and paired image by image with that of another checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytest_sdbench.features import classifier
from pytest_sdbench.features.definition import Extractor, Measure
from pytest_sdbench.features.extractors import EXTRACTORS, register_extractor
from pytest_sdbench.metrics.definition import Metric, NoOptions, Sample, column
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics, Rows
from pytest_sdbench.metrics.registry import register_metric
from pytest_sdbench.metrics.standard_error import standard_error
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.image_steps import Images
from pytest_sdbench.protocols.protocol import Protocol

NAME, OUTPUT = "scenes-reader", "read"
SLOTS = scenes.MAX_OBJECTS
COLUMN = column(NAME, OUTPUT)
NO_OBJECT = -1.0
"""What a row has of a slot that the caption leaves empty."""

MEANING = (
    "Names right: the share of objects whose name is read, at the place that the caption gives it, by a "
    "classifier that was trained on real scenes alone; and colours: name and colour."
)
"""What tables say of the two metrics."""

# The longer of two names comes first, so that no name is taken for the beginning of another.
_NAMED = "|".join(sorted(scenes.NAMES, key=len, reverse=True))
_OBJECT = re.compile(rf"(?:small|little|large|big) ({'|'.join(scenes.COLOURS)}) ({_NAMED})\b")


def told(caption: str) -> list[tuple[str, str]]:
    """Return name and colour of every object that a caption of scenes tells of, in its order."""
    return [(name, colour) for colour, name in _OBJECT.findall(caption)]


def readings(names: torch.Tensor, colours: torch.Tensor, captions: Sequence[str]) -> Rows:
    """Tell of every slot whether its name is read, then of every slot whether its colour is.

    `names` [B, 3, 129] and `colours` [B, 3, 9] are logits of the classifier. Returns float32 [B, 6]: 1 for
    right, 0 for wrong, -1 where the caption has no such object.
    """
    rows = np.full((len(captions), 2 * SLOTS), NO_OBJECT, np.float32)
    read_names, read_colours = names.argmax(-1).tolist(), colours.argmax(-1).tolist()
    for row, caption in enumerate(captions):
        for slot, (name, colour) in enumerate(told(caption)):
            rows[row, slot] = classifier.NAME_LABELS[read_names[row][slot]] == name
            rows[row, SLOTS + slot] = classifier.COLOUR_LABELS[read_colours[row][slot]] == colour
    return rows


def right(rows: Rows, *, colour: bool) -> tuple[Rows, Rows]:
    """Tell of every slot whether it is right, and whether there is an object: bool [B, 3] each.

    With `colour` both its name and its colour must be right.
    """
    there = rows[:, :SLOTS] != NO_OBJECT
    hit = rows[:, :SLOTS] == 1
    if colour:
        hit &= rows[:, SLOTS:] == 1
    return hit & there, there


def share(
    metric: str, colour: bool, sample: Sample, _: FeatureStatistics | None, __: NoOptions
) -> Estimate | Undefined:
    """Return the share of all objects that are right, given rows of `readings`, [n, 6].

    It is a ratio of two means, right objects and objects of an image: its influence is that of the delta
    method. Undefined without objects.
    """
    if not sample.n:
        return Undefined(metric, "no images", 0)
    hit, there = (each.sum(axis=1).astype(np.float64) for each in right(sample.rows(), colour=colour))
    if not there.any():
        return Undefined(metric, "no caption tells of an object of scenes", sample.n)
    value = float(hit.sum() / there.sum())
    influence = (hit - value * there) / there.mean()
    error = standard_error(influence, sample.groups)
    return Estimate(metric, value, error, sample.n, value, influence=influence)


def _metric(name: str, label: str, *, colour: bool) -> Metric:
    return Metric(
        name=name,
        label=label,
        decimals=3,
        recorded_decimals=6,
        higher_is_better=True,
        estimate=partial(share, name, colour),
        output=OUTPUT,
        minimum=0.0,
        maximum=1.0,
        extractors=(NAME,),
    )


NAMES_RIGHT = _metric("names_right", "names right", colour=False)
OBJECTS_RIGHT = _metric("objects_right", "names and colours right", colour=True)
READINGS = (NAMES_RIGHT, OBJECTS_RIGHT)


def _load(name: str, *, data_root: Path | None, device: str, download: bool) -> tuple[Measure, str]:
    known = EXTRACTORS[classifier.NAME]
    looks, weights = known.load(classifier.NAME, data_root=data_root, device=device, download=download)

    def measure(images: Images, prompts: Sequence[str]) -> dict[str, Any]:
        seen = looks(images, prompts)
        return {OUTPUT: readings(seen["name"], seen["colour"], prompts)}

    return measure, weights


READER = Extractor(
    name=NAME,
    outputs={OUTPUT: 2 * SLOTS},
    size=64,
    load=_load,
    weights=lambda name: EXTRACTORS[classifier.NAME].weights(classifier.NAME),
    describe=lambda name, root: EXTRACTORS[classifier.NAME].describe(classifier.NAME, root),
)


def with_readings(protocol: Protocol, metrics: Sequence[str]) -> Protocol:
    """Return a protocol of scenes with these of its metrics alone, and the shares of what is read right.

    The draw is the same, so whatever a store has of it counts.
    """
    register_extractor(READER)
    for metric in READINGS:
        register_metric(metric)
    content = protocol.model_dump()
    kept = {name: spec for name, spec in content["metrics"].items() if name in metrics}
    own = {metric.name: {"metric": metric.name, "extractor": NAME} for metric in READINGS}
    margins = {name: margin for name, margin in content["margins"].items() if name in kept}
    return type(protocol).model_validate({**content, "metrics": kept | own, "margins": margins})
