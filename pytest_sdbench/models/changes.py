"""Say in what one checkpoint differs from another: configurations, tensors, vocabulary."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_sdbench.models.checkpoint import Checkpoint, scheduler_class
from pytest_sdbench.models.integrity import stored_parameters
from pytest_sdbench.models.weights import Tensor, open_tensors, read_shapes, read_tensors

if TYPE_CHECKING:
    import torch

_MOST, _LONG = 8, 80
"""Lines on one component, and characters of a value."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint consists of, in little room: eight bytes a tensor, and its configurations."""

    configs: Mapping[str, Mapping[str, Any]]
    """By component, and by file of the tokenizer."""
    vocabulary: Mapping[str, str]
    """Checksum of each file."""
    checksums: Mapping[str, NDArray[np.uint32]]
    """By component: of each tensor in float32, in the order of their names."""
    norms: Mapping[str, NDArray[np.float32]]
    """By component, in the same order."""


_described: dict[str, Description] = {}


def describe(checkpoint: Checkpoint) -> Description:
    """Return the description of a checkpoint; every weight is read, once in a process."""
    import torch

    if checkpoint.fingerprint in _described:
        return _described[checkpoint.fingerprint]
    checksums, norms = {}, {}
    for name in checkpoint.pipeline.components:
        found = {
            known: (zlib.crc32(value.numpy().tobytes()), float(torch.linalg.vector_norm(value)))
            for known, value in _parameters(checkpoint, name)
        }
        rows = [found[known] for known in sorted(found)]
        checksums[name] = np.array([row[0] for row in rows], np.uint32)
        norms[name] = np.array([row[1] for row in rows], np.float32)
    description = Description(_configs(checkpoint), checkpoint.vocabulary, checksums, norms)
    return _described.setdefault(checkpoint.fingerprint, description)


def changes(ours: Checkpoint, theirs: Checkpoint | Description, *, whose: str = "recorded") -> list[str]:
    """Return a line for each difference of a checkpoint from another one, which is called ``whose``.

    Of tensors: how many differ, by how much of their norm, and the three that differ most. Raise
    ``CheckpointError`` where one of them cannot be read.
    """
    described = describe(ours) if isinstance(theirs, Description) else None
    configs = theirs.configs if isinstance(theirs, Description) else _configs(theirs)
    mine, lines = _configs(ours), list[str]()
    for name in dict.fromkeys([*mine, *configs]):
        lines += _cut(_of_config(name, mine.get(name, {}), configs.get(name, {}), whose), name)
    # A component that one of them alone has differs in its whole configuration.
    for name in (each for each in ours.pipeline.components if each in configs):
        if isinstance(theirs, Description):
            assert described is not None
            lines += _of_description(sorted(_stored(ours, name)), name, described, theirs, whose)
        elif set(ours.file_digests(name)) != set(theirs.file_digests(name)):
            lines += _of_tensors(name, ours, theirs)
    vocabulary = theirs.vocabulary
    for file in sorted({*ours.vocabulary, *vocabulary}):
        if file not in vocabulary:
            lines.append(f"tokenizer: {_text(file)}, {whose} without it")
        elif ours.vocabulary.get(file) != vocabulary[file]:
            what = "with other content" if file in ours.vocabulary else "is missing"
            lines.append(f"tokenizer: {_text(file)} {what}")
    return lines or ["other files with the same content"]


def _configs(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = {
        name: checkpoint.settings(name) for name in (*checkpoint.pipeline.components, "scheduler")
    }
    configs["scheduler"]["_class_name"] = scheduler_class(checkpoint)
    if settings := checkpoint.pipeline_settings:
        configs["pipeline"] = dict(settings)
    return configs | checkpoint.tokenizer_settings


def _of_config(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], whose: str) -> Iterator[str]:
    for key in dict.fromkeys([*ours, *theirs]):
        forms = [json.dumps(each[key], sort_keys=True) if key in each else "" for each in (ours, theirs)]
        if forms[0] != forms[1]:
            at = next(i for i, (one, two) in enumerate(zip_longest(*forms)) if one != two)
            mine, other = (_text(each[key], at) if key in each else "not given" for each in (ours, theirs))
            where = f", from character {at + 1:,} on" if at and max(map(len, forms)) > _LONG else ""
            yield f"{_text(name.removesuffix('.json'))}.{_text(key)}: {mine}, {whose} {other}{where}"


def _cut(lines: Iterator[str], name: str) -> list[str]:
    found = list(lines)
    more = len(found) - _MOST
    return found if more <= 0 else [*found[:_MOST], f"{_text(name)}: {more} more keys differ"]


def _text(value: Any, at: int = 0) -> str:
    """Return a value of somebody else's file in one short line: of a long one what is around a position."""
    text, start = json.dumps(value, sort_keys=True), max(0, at - 20)
    if len(text) > _LONG:
        end = start + 60
        part = "..." * (start > 0) + text[start:end] + "..." * (end < len(text))
        return f"{part} ({len(text):,} characters)"
    # Quoted is what would read like a number or a constant.
    plain = r"(?!(true|false|null|NaN|Infinity)$)[A-Za-z_./][\w./+-]*"
    return value if isinstance(value, str) and re.fullmatch(plain, value, re.ASCII) else text


def _parameters(checkpoint: Checkpoint, component: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters of a component by their canonical names, in float32."""
    for name, _, value in read_tensors(checkpoint.weights(component)):
        for known in _named(component, name):
            yield known, value.float().contiguous()


def _named(component: str, name: str) -> list[str]:
    """Return the canonical name of a stored tensor; nothing for a buffer."""
    return list(stored_parameters(component, {name: Tensor((), Path())}))


def _stored(checkpoint: Checkpoint, component: str) -> dict[str, tuple[Tensor, str]]:
    """Return each parameter with the name that it is stored by."""
    found = read_shapes(checkpoint.weights(component))
    return {known: (tensor, name) for name, tensor in found.items() for known in _named(component, name)}


def _of_tensors(component: str, ours: Checkpoint, theirs: Checkpoint) -> list[str]:
    import torch

    known, read = _stored(theirs, component), open_tensors(theirs.weights(component))
    lines, differ, total, whole = [], {}, 0, 0.0
    mine = _stored(ours, component)
    common = {name for name in mine if name in known and mine[name][0].shape == known[name][0].shape}
    for words, names in (
        ("added", sorted(mine.keys() - known.keys())),
        ("missing", sorted(known.keys() - mine.keys())),
        ("of another shape", sorted((mine.keys() & known.keys()) - common)),
    ):
        if names:
            lines.append(f"{component}: {len(names):,} tensors {words}, e.g. {_text(names[0])}")
    for name, value in _parameters(ours, component):
        if name not in common:
            continue
        other = read(known[name][0].file, known[name][1]).double()
        total, whole = total + 1, whole + float(torch.linalg.vector_norm(other)) ** 2
        if less := float(torch.linalg.vector_norm(value.double() - other)):
            differ[name] = less
    if differ:
        norm = math.sqrt(math.fsum(less**2 for less in differ.values()))
        share = f"{norm / math.sqrt(whole):.2g}" if whole else "all"
        lines.append(_told(component, len(differ), total, differ, f", by {share} of the norm of all"))
    return lines or [f"{component}: other files with the same values"]


def _of_description(
    names: Sequence[str], component: str, ours: Description, theirs: Description, whose: str
) -> list[str]:
    sums = theirs.checksums[component]
    if len(names) != len(sums):
        return [f"{component}: {len(names):,} tensors, {whose} {len(sums):,}"]
    moved = np.abs(ours.norms[component] - theirs.norms[component])
    others = np.flatnonzero(ours.checksums[component] != sums).tolist()
    differ = {names[i]: float(moved[i]) for i in others}
    return [_told(component, len(differ), len(names), differ, "")] if differ else []


def _told(component: str, count: int, total: int, differ: Mapping[str, float], how: str) -> str:
    most: Sequence[str] = sorted(differ, key=lambda name: -differ[name])[:3]
    return f"{component}: {count:,} of {total:,} tensors differ{how}; most: {', '.join(map(_text, most))}"
