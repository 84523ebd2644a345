"""Draw each figure of a run over time, a small plot each, with the interval of every point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import COMPONENTS, REACH, figure, mebibytes, with_error
from pytest_sdbench.report.history import Measurement, Point, Run, Series, run_of, series_of
from pytest_sdbench.report.html.axes import Axis, axis_of
from pytest_sdbench.report.html.headline import JUDGED
from pytest_sdbench.report.results import VERDICTS, Row

MOST, LATEST = 24, 40
"""Plots of a page, and points of a plot."""
WIDTH, HEIGHT = 300, 130
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 8, 22
"""Of a plot, in its own units."""
_LARGEST = 1e100


@dataclass(frozen=True)
class Dot:
    """One point of a plot, and what it says."""

    x: float
    y: float
    low: float
    """Places of the interval's ends; `y` where no error is known."""
    high: float
    verdict: str
    text: str


@dataclass(frozen=True)
class Multiple:
    """One figure over time."""

    card: str
    title: str
    under: str
    dots: tuple[Dot, ...]
    line: str
    """Corners, as SVG's polyline has them."""
    y: Axis
    claim: float | None
    """Place of the latest claim; None where there is none."""
    edge: float | None
    """Place of the claim and its margin."""
    first: str
    """Dates of the ends."""
    last: str
    latest: str
    earlier: int
    """Points that are not shown."""


@dataclass(frozen=True)
class History:
    """The figures of a run over time."""

    multiples: tuple[Multiple, ...]
    runs: int
    more: int
    """Figures that are not shown."""
    once: int
    """Figures that were measured for the first time, and have nothing to be compared with."""


def history_of(rows: Sequence[Row], runs: Sequence[Run]) -> History | None:
    """Return the figures of a run's rows over all `runs`, oldest first, the last of which is this one.

    What fell is first. None where no run is known.
    """
    here = run_of(rows, {})
    if not runs or here is None:
        return None
    mine = {each.series for each in here.measurements}
    found = [series for series in series_of(runs) if series.about.series in mine]
    several = sorted((series for series in found if len(series.points) > 1 and _fits(series)), key=_rank)
    multiples = tuple(_multiple(series) for series in several[:MOST])
    return History(multiples, len(runs), len(several) - len(multiples), len(found) - len(several))


def _fits(series: Series) -> bool:
    """Return whether a plot can show a series: a file of a history holds whatever somebody wrote."""
    figures = [
        figure or 0.0
        for point in series.points
        for each in (point.measurement,)
        for figure in (each.value, each.standard_error, each.claimed, each.margin)
    ]
    return all(abs(figure) < _LARGEST for figure in figures)


def _rank(series: Series) -> tuple[int, bool]:
    verdict = series.about.verdict
    return JUDGED.index(verdict) if verdict in JUDGED else len(JUDGED), series.about.test != "quality"


def _multiple(series: Series) -> Multiple:
    about, points = series.about, series.points[-LATEST:]
    bounds = [_bounds(point.measurement) for point in points]
    limits = _limits(about)
    shown = [end for pair in bounds for end in pair] + [each for each in limits if each is not None]
    unit = _unit(about)
    y = axis_of([each * unit for each in shown], HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(points) - 1)
    dots = tuple(
        Dot(
            round(LEFT + at * step, 1),
            y.at(point.measurement.value * unit),
            y.at(low * unit),
            y.at(high * unit),
            point.measurement.verdict if point.measurement.verdict in VERDICTS else "",
            _text(series, point),
        )
        for at, (point, (low, high)) in enumerate(zip(points, bounds, strict=True))
    )
    claim, edge = (None if each is None else y.at(each * unit) for each in limits)
    return Multiple(
        card=about.card,
        title=_title(about),
        under=", ".join(filter(None, (about.protocol, series.apart))),
        dots=dots,
        line=" ".join(f"{dot.x},{dot.y}" for dot in dots),
        y=y,
        claim=claim,
        edge=edge,
        first=points[0].runs[0].date[:10],
        last=points[-1].runs[-1].date[:10],
        latest=_said(about),
        earlier=len(series.points) - len(points),
    )


def _bounds(each: Measurement) -> tuple[float, float]:
    """Return the ends of a figure's interval; a share lies between 0 and 1."""
    half = REACH * (each.standard_error or 0.0)
    low, high = each.value - half, each.value + half
    if each.metric in METRICS and METRICS[each.metric].share:
        return max(low, min(0.0, each.value)), min(high, max(1.0, each.value))
    return low, high


def _limits(about: Measurement) -> tuple[float | None, float | None]:
    """Return the claim, and the claim and its margin."""
    if about.claimed is None or about.test != "quality":
        return about.claimed, None
    if about.margin is None or about.metric not in METRICS:
        return about.claimed, None
    worse = -about.margin if METRICS[about.metric].higher_is_better else about.margin
    return about.claimed, about.claimed + worse


def _unit(about: Measurement) -> float:
    """Return what figures are multiplied by on the axis."""
    return {"size": 1e-6, "compute": 1e-6, "memory": 2.0**-20}.get(about.test, 1.0)


def _title(about: Measurement) -> str:
    if about.metric in METRICS:
        return f"{METRICS[about.metric].label} {METRICS[about.metric].arrow}"
    names = {
        "size": f"Parameters: {COMPONENTS.get(about.name, about.name)}, million",
        "compute": "MACs of a U-Net call, million",
        "speed": "Latency of a U-Net call beside the baseline's",
        "memory": "Peak memory, MiB",
    }
    return names.get(about.test, about.metric or about.test)


def _said(each: Measurement) -> str:
    if each.test == "memory":
        return mebibytes(each.value)
    if each.test != "quality":
        return figure(each.value, ".3f" if each.test == "speed" else ",.0f")
    decimals = METRICS[each.metric].decimals if each.metric in METRICS else 4
    shown = with_error(each.value, each.standard_error, decimals)
    return f"{shown}, predicted" if each.predicted_for else shown


def _text(series: Series, point: Point) -> str:
    first, times = point.runs[0], len(point.runs)
    where = " ".join((first.date[:16].replace("T", " "), first.source.get("commit", "")[:10])).strip()
    again = f", {times} runs" if times > 1 else ""
    return f"{where}: {_said(point.measurement)}{again}, {point.measurement.verdict}"
