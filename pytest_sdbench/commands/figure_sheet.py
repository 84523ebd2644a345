"""Collect the pictures of `figure sheet`: rows prompts, columns systems, the same noise across a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.commands.sample import protocols_of
from pytest_sdbench.commands.shared import protocol_of
from pytest_sdbench.commands.systems import System, apart, lone, system_of
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.job import Extras
from pytest_sdbench.evaluation.kept_pictures import Album
from pytest_sdbench.gate.fidelity import image_scores
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.prompts import load_prompts, scenes_behind
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.scene_glyphs import font_file
from pytest_sdbench.protocols.scenes import Scene, render
from pytest_sdbench.report.figures.sheet import Row, Sheet
from pytest_sdbench.store.shard_format import SHARD

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Column:
    """One system under one protocol."""

    label: str
    checkpoint: Checkpoint
    protocol: Protocol


@dataclass(frozen=True)
class Choice:
    """Which prompts are shown: these, else the worst of a metric, else the first."""

    prompts: Sequence[int] = ()
    worst: str = ""
    count: int = 8
    images: int | None = None
    """Of so many images the worst are looked for; None: of all of the protocol."""


def columns_of(
    names: Sequence[str],
    protocols: Sequence[str] = (),
    steps: Sequence[int] = (),
    labels: Sequence[str] = (),
    *,
    metric: str = "",
    download: bool = False,
) -> list[Column]:
    """Return a column for each system, under each protocol, in each number of steps.

    One protocol is every system's, one system is drawn under every protocol, and of as many protocols as
    systems one belongs to each. Without any a card has its own, one with `metric` where that is given, and
    what is no card has that of the first card. `labels` take the place of the names of systems. Raises
    SdbenchError for numbers that do not fit, and for a card of several draws; else as `system_of` and
    `load_protocol`.
    """
    systems = _systems(names, download)
    _check_number("--label", labels, systems, "Give a label for each, in their order")
    if len(protocols) > 1 and len(systems) > 1:
        _check_number("--protocol", protocols, systems, "Give one protocol, or one for each of them")
    shown = [*(labels or [system.name for system in systems])]
    if len(protocols) > 1 and len(systems) == 1:
        systems, shown = systems * len(protocols), [f"{shown[0]}\n{name}" for name in protocols]
    wanted = [*protocols] if len(protocols) > 1 else [protocols[0] if protocols else ""] * len(systems)
    first = next((system for system in systems if system.card is not None), None)
    found = []
    for system, name, label in zip(systems, wanted, shown, strict=True):
        protocol = _protocol(system if system.card is not None else first, name, metric)
        found += [
            Column(
                f"{label}\n{number} step{'s' * (number != 1)}", system.checkpoint, protocol.with_steps(number)
            )
            for number in steps
        ] or [Column(label, system.checkpoint, protocol)]
    return found


def _systems(names: Sequence[str], download: bool) -> list[System]:
    """Return systems by their names; the first that is whole lends what others lack."""
    whole = next((name for name in names if lone(name) is None), None)
    base = None if whole is None else system_of(whole, None, download=download)
    lends = None if base is None else base.checkpoint
    return apart(
        [
            base if base is not None and name == whole else system_of(name, lends, download=download)
            for name in names
        ]
    )


def _check_number(option: str, given: Sequence[str], systems: Sequence[System], remedy: str) -> None:
    if given and len(given) != len(systems):
        message = f"there {'is 1 system' if len(systems) == 1 else f'are {len(systems)} systems'}"
        raise SdbenchError(message, key=option, found=len(given), remedy=remedy)


def _protocol(of: System | None, name: str, metric: str) -> Protocol:
    """Return the protocol of this name, else that of a card with most images."""
    if of is None or of.card is None:
        if not name:
            remedy = "Name one: --protocol NAME"
            raise SdbenchError("no card says under which protocol to draw", key="--protocol", remedy=remedy)
        return protocol_of(name)
    found = protocols_of(of.card, [name] if name else ())
    if metric:
        found = [protocol for protocol in found if metric in protocol.metrics] or found
    if len({protocol.draw_fingerprint for protocol in found}) > 1:
        names = ", ".join(protocol.name for protocol in found)
        message, remedy = "the card is judged by protocols of several draws", "Name one: --protocol NAME"
        raise SdbenchError(message, file=of.card.path, key="--protocol", found=names, remedy=remedy)
    return max(found, key=lambda protocol: protocol.n)


def collect(columns: Sequence[Column], choice: Choice, workspace: Workspace) -> tuple[Sheet, list[str]]:
    """Return the sheet of some columns, and a line on each of them: how many pictures were drawn for it.

    What the store does not keep is drawn, and kept. The real scene is the first column where there is one;
    without the font that draws it, a line says so.
    Raises SdbenchError for columns of other prompts or other noise, and for prompts that there are not; else
    as `evaluate` and `make_evidence`.
    """
    _check_noise(columns)
    notes: dict[int, str] = {}
    if choice.worst:
        notes = _worst(columns, choice, workspace)
    else:
        notes = dict.fromkeys(choice.prompts or range(choice.count), "")
    n = max(notes) + 1
    prompts = _prompts(columns, n, notes, workspace)
    first = columns[0].protocol
    headings, pictures, told = [], [], []
    behind, lack = _behind(first, notes)
    told += [lack] if lack else []
    if behind:
        side = first.sampling.resolution
        headings.append("real scene")
        pictures.append([render(behind[index], side) for index in notes])
    for column in columns:
        album = Album(column.checkpoint, column.protocol.with_samples(n), workspace)
        headings.append(column.label)
        pictures.append([_picture(album, index, n) for index in notes])
        name = ", ".join(column.label.split("\n"))
        shown = f"{len(notes)} picture{'s' * (len(notes) != 1)} of {column.protocol.name}"
        told.append(f"{name}: {shown}, {album.drawn:,} drawn now")
    rows = [
        Row(prompts[index], of_row, f"prompt {index:,}{f', {note}' if note else ''}")
        for (index, note), of_row in zip(notes.items(), zip(*pictures, strict=True), strict=True)
    ]
    return Sheet(headings, rows, _footnote(columns)), told


def _behind(protocol: Protocol, wanted: Iterable[int]) -> tuple[dict[int, Scene], str]:
    """Return the scenes behind prompts, and why they are not shown, in which case there are none."""
    found = scenes_behind(protocol, wanted)
    try:
        if found:
            font_file()
    except SdbenchError as error:
        return {}, f"no real scenes beside the pictures: {error}"
    return found, ""


def _picture(album: Album, index: int, n: int) -> Any:
    start = index - index % SHARD
    return album.read(range(start, min(start + SHARD, n))).images[index - start]


def _footnote(columns: Sequence[Column]) -> str:
    protocols = [column.protocol for column in columns]
    parts = [
        f"{', '.join(dict.fromkeys(protocol.name for protocol in protocols))}: seed {protocols[0].seeds.seed}"
    ]
    for name in ("steps", "guidance"):
        values = {getattr(protocol.sampling, name) for protocol in protocols}
        if len(values) == 1:
            parts.append(f"{name} {values.pop():g}")
    return f"Across a row: the same prompt and the same noise. {', '.join(parts)}."


def _check_noise(columns: Sequence[Column]) -> None:
    """Raise SdbenchError where columns do not begin with the same noise."""
    first = columns[0].protocol
    for protocol in (column.protocol for column in columns[1:]):
        for key, mine, other in (
            ("seeds", first.seeds, protocol.seeds),
            ("resolution", first.sampling.resolution, protocol.sampling.resolution),
        ):
            if mine != other:
                what = f"the noise of {protocol.name} is not that of {first.name}: {key} {mine} there"
                remedy = "Put protocols of the same seeds and resolution side by side"
                raise SdbenchError(what, file=protocol.path, key=key, found=str(other), remedy=remedy)


def _prompts(
    columns: Sequence[Column], n: int, wanted: Iterable[int], workspace: Workspace
) -> tuple[str, ...]:
    """Return the first n prompts, of which all columns have the wanted ones; raise SdbenchError else."""
    found: dict[str, tuple[str, ...]] = {}
    for protocol in (column.protocol for column in columns):
        if n > protocol.n:
            message, remedy = (
                f"{protocol.name} has {protocol.n:,} prompts, counted from 0",
                "Choose among these",
            )
            raise SdbenchError(message, key="--prompts", found=n - 1, remedy=remedy)
        found.setdefault(protocol.name, load_prompts(protocol.with_samples(n), workspace.data_root))
    first = columns[0].protocol.name
    for name, prompts in found.items():
        for index in wanted:
            if prompts[index] != found[first][index]:
                message = f"prompt {index} of {name} is not that of {first}"
                remedy = "Put protocols of the same prompts side by side"
                raise SdbenchError(message, key="--protocol", found=prompts[index][:80], remedy=remedy)
    return found[first]


def _worst(columns: Sequence[Column], choice: Choice, workspace: Workspace) -> dict[int, str]:
    """Return the prompts where a column lost most against the first, worst first, and what it has there."""
    metric, protocol = choice.worst, columns[0].protocol
    _check_worst(metric, columns)
    one = protocol.with_samples(min(choice.images or protocol.n, protocol.n)).only(metric)
    losses, words = np.full(one.n, -np.inf), [""] * one.n
    for column in columns[1:]:
        lost, values = _losses(columns[0], column, one, workspace)
        for index in np.flatnonzero(lost > losses):
            losses[index] = lost[index]
            value = f"{METRICS[metric].label} {values[index]:.{METRICS[metric].decimals}f}"
            words[index] = value if len(columns) == 2 else f"{value} of {' '.join(column.label.split())}"
    order = [int(index) for index in np.argsort(-losses, kind="stable") if losses[index] > 0]
    if not order:
        what = f"no picture is worse in {metric} than the first system's"
        raise SdbenchError(
            what, key="--worst", found=metric, remedy="Choose prompts with --prompts or --count"
        )
    return {index: words[index] for index in order[: choice.count]}


def _check_worst(metric: str, columns: Sequence[Column]) -> None:
    protocol = columns[0].protocol
    per_image = [name for name in protocol.metrics if METRICS[name].per_image]
    if metric not in per_image:
        known = ", ".join(per_image) or "none"
        message = f"{protocol.name} has no such score of single pictures; it has {known}"
        remedy = "Choose one of these, or a protocol that has it: --protocol NAME"
        raise SdbenchError(message, file=protocol.path, key="--worst", found=metric, remedy=remedy)
    if len(columns) < 2 or any(column.protocol != protocol for column in columns):
        message = "the worst are those of other systems against the first, all under one protocol"
        found = ", ".join(dict.fromkeys(column.protocol.name for column in columns))
        remedy = "Name two systems or more and one protocol, without --steps of several"
        raise SdbenchError(message, key="--worst", found=found, remedy=remedy)


def _losses(first: Column, other: Column, protocol: Protocol, workspace: Workspace) -> tuple[Any, Any]:
    """Return by how much each picture is worse than the first column's, and what it has, [n] each."""
    (metric,) = protocol.metrics
    pairs = METRICS[metric].reads == "pair"
    extras = Extras(original=lambda: first.checkpoint) if pairs else Extras()
    evaluation = evaluate(other.checkpoint, protocol, workspace, extras=extras)
    estimate = evaluation.estimates.get(metric)
    if not isinstance(estimate, Estimate):
        raise evaluation.lacking.get(metric) or SdbenchError(f"{metric} is not known of {other.label}")
    if pairs:
        scores = image_scores(estimate, evaluation, None)
        assert scores is not None
        return scores.losses, scores.values
    mine, theirs = (_values(each, protocol, workspace) for each in (first, other))
    return (mine - theirs if METRICS[metric].higher_is_better else theirs - mine), theirs


def _values(column: Column, protocol: Protocol, workspace: Workspace) -> Any:
    """Return what each picture of a column has of the only metric of a protocol, [n]."""
    (metric,) = protocol.metrics
    estimate = evaluate(column.checkpoint, protocol, workspace).estimates.get(metric)
    if not isinstance(estimate, Estimate) or estimate.influence is None:
        raise SdbenchError(f"{metric} is not known of {column.label}", key="--worst")
    return estimate.value + estimate.influence
