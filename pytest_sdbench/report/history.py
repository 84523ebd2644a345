"""One small object a run, in a folder or behind a URL, and the series that they make together.

A place holds a file for each run, ``run-DATE-RANDOM.json``, and nothing else: no index that two writers could
overwrite for each other. An object names the evidence of its figures, and does not hold it.
"""

from __future__ import annotations

import datetime
import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pytest_sdbench.base.errors import EvidenceError, SdbenchError, first_line
from pytest_sdbench.base.files import json_mapping
from pytest_sdbench.cards.records import nearly
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.results import VERDICTS, Row
from pytest_sdbench.store.folders import open_storage

SCHEMA_VERSION = 1
"""Of a run's object; it rises when a reader of the old form would misread the new one."""
_MOST = 32 << 20
"""Bytes of a file that is taken for a run's."""


@dataclass(frozen=True)
class Measurement:
    """One figure of a run, and what names its evidence."""

    card: str
    test: str
    """As in results: ``quality``, ``size``, ``compute``, ``speed`` or ``memory``."""
    value: float
    name: str = ""
    """Of a size the component; of a score nothing: metric and protocol say what it is."""
    metric: str = ""
    protocol: str = ""
    standard_error: float | None = None
    n: int | None = None
    """Images."""
    prompts: int | None = None
    """Different prompts of the images, where some have one prompt."""
    predicted_for: int | None = None
    """Images that the value is a prediction for, where that is not of the `n` alone."""
    unit: str = ""
    claimed: float | None = None
    margin: float | None = None
    verdict: str = ""
    checkpoint: str = ""
    """Fingerprint; empty where nothing identifies what was measured."""
    file: str = ""
    """Of the card, as node ids have it: its name depends on which others a run has. Empty elsewhere."""
    draw: str = ""
    """Key of the images: evidence lies in the store's folder ``CHECKPOINT-DRAW``."""
    protocol_fingerprint: str = ""
    score_fingerprint: str = ""
    """Of the protocol with this metric alone: it stays where the protocol gains others."""
    reference: str = ""
    """Fingerprint of the checkpoint that pairs are compared with."""
    device: str = ""
    dtype: str = ""
    """Of a latency or a peak of memory."""
    versions: Mapping[str, str] = field(default_factory=dict)
    higher_is_better: bool | None = None
    """Of a score, as the run had its metric: a later reader may not have a protocol or a conftest of it."""

    @property
    def gains_upward(self) -> bool | None:
        """Whether more of a score is better; None for what is no score, and where nobody knows its metric."""
        metric = METRICS.get(self.metric)
        return self.higher_is_better if metric is None else metric.higher_is_better

    @property
    def series(self) -> tuple[str, ...]:
        """What the figures of one series have in common."""
        where = f"{self.device} {self.dtype}" if self.test in ("speed", "memory") else ""
        of = self.score_fingerprint or self.protocol_fingerprint
        n = f"for {self.predicted_for}" if self.predicted_for else str(self.n or "")
        return (
            self.file or self.card,
            self.test,
            self.name,
            self.metric,
            self.protocol,
            of,
            n,
            self.reference,
            where,
        )

    @property
    def evidence(self) -> tuple[str, str] | None:
        """What makes the images: those of two runs with the same are the same, and so is their noise."""
        return (self.checkpoint, self.draw) if self.checkpoint and self.draw else None


@dataclass(frozen=True)
class Run:
    """What one run measured."""

    id: str
    date: str
    """When it ended: UTC, as 2026-11-28T16:24:11Z."""
    measurements: tuple[Measurement, ...]
    source: Mapping[str, str] = field(default_factory=dict)
    """``commit``, ``branch``, ``url`` and ``changed``, as far as they are known."""

    @property
    def ended(self) -> datetime.datetime:
        """When it ended, whatever the zone its date is written in; UTC where it says none."""
        found = datetime.datetime.fromisoformat(self.date)
        return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)

    def to_json(self) -> str:
        """Return the object of the run; what is empty is left out."""
        measurements = [
            {key: value for key, value in asdict(each).items() if value not in ("", None, {})}
            for each in self.measurements
        ]
        about = {"schema_version": SCHEMA_VERSION, "id": self.id, "date": self.date}
        content = {**about, "source": dict(self.source), "measurements": measurements}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, content: bytes) -> Run:
        """Return the run of an object; keys of a later version are left out. Raises ValueError for others."""
        found = json_mapping(content)
        if (version := found.get("schema_version")) != SCHEMA_VERSION:
            raise ValueError(f"schema version {version!r}, and this version reads {SCHEMA_VERSION}")
        measurements, source = found.get("measurements"), found.get("source", {})
        if not isinstance(measurements, list) or not _is_words(source):
            raise ValueError("no list of measurements with the words of their source")
        measured = tuple(_measurement(each) for each in measurements)
        run = cls(_word(found, "id"), _word(found, "date"), measured, source)
        run.ended.timestamp()  # ValueError for no date, OverflowError for one that no clock has
        return run


def _word(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r:.100}, and not a text")
    return value


def _is_words(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _measurement(found: object) -> Measurement:
    """Return a measurement of plain data; raise ValueError where a key has another type."""
    if not isinstance(found, dict):
        raise ValueError(f"a measurement is {found!r:.100}, and not an object")
    values = {each.name: found[each.name] for each in fields(Measurement) if each.name in found}
    counts = {"n", "prompts", "predicted_for"}
    numbers = {"value", "standard_error", "claimed", "margin", *counts}
    for key, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        right = (
            number if key in numbers else _is_words(value) if key == "versions" else isinstance(value, str)
        )
        if key in counts:
            right = type(value) is int and value > 0
        if key == "higher_is_better":
            right = isinstance(value, bool)
        if not right or (key == "standard_error" and value < 0):
            raise ValueError(f"a measurement's {key} is {value!r:.100}")
    for key in ("card", "test", "value"):
        if key not in values:
            raise ValueError(f"a measurement has no {key}")
    return Measurement(**values)


def run_of(rows: Iterable[Row], source: Mapping[str, str]) -> Run | None:
    """Return what the history keeps of a run's rows; None where nothing was measured.

    A figure that several claims are of is one measurement; its verdict is the first that is no pass.
    """
    found: dict[tuple[str, ...], Measurement] = {}
    for row in rows:
        if row.measured is None or not math.isfinite(row.measured) or row.verdict not in VERDICTS:
            continue
        each = _of_row(row)
        known = found.setdefault(each.series, each)
        if known.verdict == "pass":
            found[each.series] = each
    now = datetime.datetime.now(datetime.UTC)
    name = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:12]}"
    return Run(name, f"{now:%Y-%m-%dT%H:%M:%SZ}", tuple(found.values()), source) if found else None


def _file(node_id: str) -> str:
    """Return the file of a node id; empty for one outside the project, whose path is this machine's alone."""
    file = PurePosixPath(node_id.partition("::")[0])
    outside = file.is_absolute() or file.parts[:1] == ("..",) or "site-packages" in file.parts
    return "" if outside else str(file)


def _of_row(row: Row) -> Measurement:
    assert row.measured is not None
    names = {
        "checkpoint": "checkpoint_fingerprint",
        "draw": "draw_fingerprint",
        "reference": "reference_fingerprint",
        **{key: key for key in ("protocol_fingerprint", "score_fingerprint", "device")},
        **({"dtype": "dtype"} if row.test in ("speed", "memory") else {}),
    }
    about = {key: row.extra.get(name) for key, name in names.items()}
    versions: Any = row.extra.get("versions")
    metric = METRICS.get(row.metric)
    return Measurement(
        card=row.card,
        test=row.test,
        value=row.measured,
        file=_file(row.node_id),
        name=f"{'' if row.test == 'quality' else row.name}{row.variant}".strip(),
        metric=row.metric,
        protocol=row.protocol,
        standard_error=row.standard_error,
        n=row.n,
        prompts=row.extra.get("prompts"),
        predicted_for=row.extra.get("predicted_for"),
        unit=row.unit,
        claimed=row.claimed,
        margin=row.margin,
        verdict=row.verdict,
        versions=dict(versions) if _is_words(versions) else {},
        higher_is_better=None if metric is None else metric.higher_is_better,
        **{key: value for key, value in about.items() if isinstance(value, str)},
    )


def write_run(place: Path | str, run: Run) -> str:
    """Write a run's object and return where it lies; nothing that is there is touched.

    Raises SdbenchError for a place that cannot be written.
    """
    try:
        storage = open_storage(place)
        name = f"run-{run.id}.json"
        storage.create(name, run.to_json().encode("utf-8", "backslashreplace"))
        return str(storage.where(name))
    except EvidenceError as error:
        raise _elsewhere(error) from None


def read_runs(place: Path | str) -> tuple[list[Run], list[str]]:
    """Return the runs of a place, oldest first, and a line on each file that is not such an object.

    Raises SdbenchError for a place that cannot be read.
    """
    runs, problems = [], []
    try:
        storage = open_storage(place)
        for name in sorted(storage.files()):
            if not (name.startswith("run-") and name.endswith(".json")):
                continue
            try:
                runs.append(Run.from_json(storage.read(name, _MOST)))
            except (FileNotFoundError, ValueError, TypeError, OverflowError) as error:
                problems.append(f"{storage.where(name)}: no object of a run: {first_line(error)}")
    except EvidenceError as error:
        raise _elsewhere(error) from None
    return sorted(runs, key=lambda run: (run.ended, run.id)), problems


def _elsewhere(error: EvidenceError) -> SdbenchError:
    """Return what is wrong with a place in words that suit a history."""
    message = error.message.replace("evidence", "the history", 1)
    remedy = "Check the place and its permissions, or give another one"
    return SdbenchError(message, file=error.file, key=error.key, found=error.found, remedy=remedy)


@dataclass(frozen=True)
class Point:
    """One figure of a series, and the runs that measured it one after the other on the same evidence."""

    measurement: Measurement
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Series:
    """The figures of one score over time: same file of a card, metric, protocol and number of images."""

    points: tuple[Point, ...]
    apart: str = ""
    """What tells it from namesakes: file of the card, protocol, images, reference, device; or empty."""

    @property
    def about(self) -> Measurement:
        """The latest measurement, which says what all are of."""
        return self.points[-1].measurement

    @property
    def decimals(self) -> int | None:
        """Decimals that a change shows in; None where they are not the same for all figures."""
        metric = METRICS.get(self.about.metric)
        return None if metric is None else metric.recorded_decimals

    @property
    def exact(self) -> bool:
        """Whether the figures are counted, and not estimated."""
        return self.about.test in ("size", "compute")


def series_of(runs: Sequence[Run]) -> list[Series]:
    """Return the series of runs that are given oldest first.

    A checkpoint that is measured again on the same images is no further draw of their noise: it adds no
    point, unless another one came between, or another device or library moved its figure.
    """
    found: dict[tuple[str, ...], list[Point]] = {}
    files: dict[str, set[str]] = {}
    for each in (each for run in runs for each in run.measurements if each.file):
        files.setdefault(each.card, set()).add(each.file)
    for run in runs:
        for each in run.measurements:
            if not each.file and len(known := files.get(each.card, set())) == 1:
                each = replace(each, file=min(known))  # of a run elsewhere, or of an earlier version
            points = found.setdefault(each.series, [])
            if points and continues(points[-1].measurement, each):
                points[-1] = Point(each, (*points[-1].runs, run))
            else:
                points.append(Point(each, (run,)))
    apart = _apart([points[-1].measurement for points in found.values()])
    return [Series(tuple(points), apart[key]) for key, points in found.items()]


def _apart(latest: Iterable[Measurement]) -> dict[tuple[str, ...], str]:
    """Return by key of a series in what its latest measurement differs from those of its namesakes."""
    namesakes: dict[tuple[str, ...], list[Measurement]] = {}
    for each in latest:
        namesakes.setdefault((each.card, *each.series[1:5]), []).append(each)
    told = {}
    for group in namesakes.values():
        values = zip(*(each.series for each in group), strict=True)
        file, *_, of, n, reference, where = (len(set(each)) > 1 for each in values)
        for each in group:
            number = each.predicted_for or each.n
            images = f"predicted for {number:,} images" if each.predicted_for else f"{number or 0:,} images"
            parts = [
                (file, each.file),
                (of, f"protocol {each.series[5][:8]}" if each.series[5] else ""),
                (n, images if number else ""),
                (reference, f"beside {each.reference[:8]}" if each.reference else ""),
                (where, each.series[-1]),
            ]
            told[each.series] = ", ".join(part for differs, part in parts if differs and part)
    return told


def continues(known: Measurement, new: Measurement) -> bool:
    """Return whether a measurement has another one's evidence, and its figure but for the last digits."""
    if known.test in ("size", "compute"):
        return known.value == new.value
    # Of what nothing identifies the same figure tells that it is the same.
    same = (known.checkpoint, known.draw) == (new.checkpoint, new.draw)
    metric = METRICS.get(new.metric)
    last = 0.0 if metric is None else 10.0**-metric.recorded_decimals
    return same and (nearly(known.value, new.value) or abs(known.value - new.value) <= last)
