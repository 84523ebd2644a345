"""Show what runs measured over time, and call the changes."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import SdbenchError, Unavailable
from pytest_sdbench.base.text import plain
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.commands.shared import protocol_of, share, show, write_figures, write_text
from pytest_sdbench.evaluation.job import on_this_device
from pytest_sdbench.evaluation.known import known_estimate
from pytest_sdbench.gate.trends import Trend, trends
from pytest_sdbench.metrics.change_points import ERROR, Change
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.registry import METRICS, metric_name
from pytest_sdbench.metrics.standard_error import Groups, groups_of
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.report.cells import NONE, plain_table, with_error
from pytest_sdbench.report.history import Measurement, Point, Run, Series, read_runs, series_of
from pytest_sdbench.store.folders import place_of

_FORMATS = {"customSmallerIsBetter": False, "customBiggerIsBetter": True}
"""What github-action-benchmark calls its inputs, and whether higher is better there."""
_BARS = "▁▂▃▄▅▆▇█"


def add_choice(command: argparse.ArgumentParser) -> None:
    """Declare where a history lies, and which of its series are wanted."""
    told = "what --sdbench-history named: a folder or an fsspec URL"
    command.add_argument("place", metavar="FOLDER|URL", help=told)
    for name in ("card", "metric", "protocol"):
        told = f"this {name} alone; may be repeated"
        command.add_argument(f"--{name}", action="append", default=[], metavar="NAME", help=told)
    share(command, "--store", "--data")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_choice(command)
    share(command, "--json", "--out")
    command.add_argument(
        "--format",
        choices=("text", *_FORMATS),
        default="text",
        help="customSmallerIsBetter or customBiggerIsBetter: the latest run as github-action-benchmark takes "
        "it, lower or higher being better [text]",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status: 1 where a file is not a run's."""
    runs, chosen, problems = read_chosen(options)
    evidence = KeptEvidence(Workspace(options.store, options.data, progress=False))
    found = trends(chosen, evidence) if options.format == "text" or options.json else []
    if options.format in _FORMATS:
        wanted = {each.about.series: each.apart for each in chosen}
        latest = next(run for run in reversed(runs) if any(m.series in wanted for m in run.measurements))
        entries = _exported(latest, wanted, options.format)
        write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", options.out)
        scores = (each for each in latest.measurements if each.series in wanted and each.test == "quality")
        for name in sorted({each.metric for each in scores if each.gains_upward is None}):
            show(f"left out: {name}: nothing here says whether higher is better", sys.stderr)
    else:
        named = bool(options.card or options.metric or options.protocol)
        text = history_text(found, len(runs), detailed=named, notes=evidence.notes)
        if options.out is None:
            show(text)
        else:
            write_text(text + "\n", options.out)
    write_figures(figures(found), options.json)
    for problem in problems:
        show(f"not read: {problem}", sys.stderr)
    return int(bool(problems))


def read_chosen(options: argparse.Namespace) -> tuple[list[Run], list[Series], list[str]]:
    """Return the runs of a history, those of its series that are wanted, and a line on each other file.

    Raises SdbenchError where there are none, or none that is wanted.
    """
    runs, problems = read_runs(place_of(options.place))
    chosen = [each for each in series_of(runs) if _is_chosen(each.about, options)]
    if not runs and not problems:
        remedy = "`pytest --sdbench --sdbench-history PLACE` writes them"
        raise SdbenchError("there are no runs here", file=options.place, remedy=remedy)
    if not runs:  # there are files, and none can be read
        raise SdbenchError("no run can be read", file=options.place, found=problems[0])
    if not chosen:
        for problem in problems:
            show(f"not read: {problem}", sys.stderr)
        known = ", ".join(sorted({each.card for run in runs for each in run.measurements})) or "none"
        what = f"nothing here is of these cards, metrics and protocols; the cards are {known}"
        raise SdbenchError(what, file=options.place, remedy="Leave out --card, --metric or --protocol")
    return runs, chosen, problems


def _is_chosen(each: Measurement, options: argparse.Namespace) -> bool:
    pairs = (
        (options.card, {each.card, each.card.rpartition("/")[2], each.file}),
        ({metric_name(name) or name for name in options.metric}, {each.metric or each.test}),
        (options.protocol, {each.protocol}),
    )
    return all(not wanted or said & set(wanted) for wanted, said in pairs)


class KeptEvidence:
    """Finds the estimates of measurements in a store, and notes why one is not there."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.notes: dict[str, None] = {}
        self._groups: dict[tuple[str, int], Groups | None] = {}

    def __call__(self, said: Measurement) -> tuple[Estimate, Groups | None] | None:
        """Return the estimate of a measurement and which images share a prompt; None where it is not kept."""
        if said.evidence is None or said.n is None:
            return None
        try:
            drawn = _protocol_of(said, said.n)
            key = said.draw, said.n
            if key not in self._groups:
                self._groups[key] = groups_of(load_prompts(drawn, self.workspace.data_root)[: said.n])
            found = known_estimate(
                *(said.checkpoint, drawn, said.metric, self.workspace),
                groups=self._groups[key],
                reference=said.reference or None,
            )
        except SdbenchError as why:
            self.notes[str(why)] = None
            return None
        return (found, self._groups[key]) if isinstance(found, Estimate) else None


def _protocol_of(said: Measurement, n: int) -> Protocol:
    """Return the protocol of a measurement as it was drawn; raise SdbenchError where it is not here."""
    if Path(said.protocol).name == said.protocol:  # the words of a history lead to no file elsewhere
        protocol = protocol_of(said.protocol)
        if said.metric in protocol.metrics and 2 <= n <= protocol.n:
            asked = protocol.with_samples(n)
            named = asked.only(said.metric).fingerprint == said.score_fingerprint
            for drawn in (asked, on_this_device(asked, "cpu")):
                if named and drawn.draw_fingerprint == said.draw:
                    return drawn
    raise Unavailable("the protocol of the run is another one, or not here", key=said.protocol)


def history_text(found: Sequence[Trend], runs: int, *, detailed: bool, notes: Mapping[str, None]) -> str:
    """Return series as an overview, with the points of those that were named or that changed."""
    several = [trend for trend in found if len(trend.series.points) > 1]
    rows = []
    for trend in several:
        about, points = trend.series.about, trend.series.points
        ends = [_value(trend.series, point.measurement) for point in (points[0], points[-1])]
        rows.append(
            [about.card, series_text(trend.series), str(len(points)), *ends, _bars(points), _calls(trend)]
        )
    heading = ["card", "score", "points", "first", "latest", "", "changes"]
    parts = [plain_table(heading, rows, "llrrrll")] if rows else []
    parts += [_detail(trend) for trend in several if detailed or trend.changes]
    called = sum(len(trend.changes) for trend in found)
    count, series = f"{called or 'no'} change{'s' * (called != 1)}", f"{len(found)} series"
    once = len(found) - len(several)
    parts.append(
        f"{runs} run{'s' * (runs != 1)}: {count} called in {series}; the chance of any wrong call in all of "
        f"them is {100 * ERROR:.0f} %. ± is one standard error."
        + (f" {once} of them have one point, and nothing to compare." if once else "")
    )
    for silent in dict.fromkeys(trend.silent for trend in several if trend.silent):
        of = sum(trend.silent == silent for trend in several)
        parts.append(f"not called in {of} of them: {silent}")
    if notes:
        parts.append("\n".join(f"not paired: {note}" for note in notes))
    return "\n\n".join(parts)


def series_text(series: Series) -> str:
    """Return what a series is of, and what tells it from its namesakes."""
    return ", ".join(filter(None, (score_text(series.about), series.apart)))


def score_text(about: Measurement, arrow: bool = True) -> str:
    """Return what a series is of."""
    metric = METRICS.get(about.metric)
    label = about.metric if metric is None else f"{metric.label}{f' {metric.arrow}' * arrow}"
    return f"{label}, {about.protocol}" if label else f"{about.test} {about.name}".strip()


def _value(series: Series, each: Measurement) -> str:
    if series.exact:
        return f"{each.value:,.0f}"
    if each.test == "memory":
        return f"{each.value / 2**20:,.0f} MiB"
    return with_error(each.value, each.standard_error, _decimals(series))


def _bars(points: Sequence[Point]) -> str:
    """Return the latest 24 figures as bars, from the least to the largest of them."""
    values = [point.measurement.value for point in points[-24:]]
    low, high = min(values), max(values)
    return "".join(_BARS[round(7 * (value - low) / (high - low)) if high > low else 0] for value in values)


def _calls(trend: Trend) -> str:
    if trend.silent:
        return NONE
    return "; ".join(_call(trend, change) for change in trend.changes) or "none"


def _call(trend: Trend, change: Change) -> str:
    points = trend.series.points
    size = difference_text(trend.series, change.value, change.standard_error)
    kind = {True: "worse ", False: "better ", None: ""}[trend.worse(change)]
    at = _when(points[change.at])
    if change.last - change.first > 1:
        at += f" (after {_when(points[change.first])}, no later than {_when(points[change.last])})"
    return f"{kind}{size} at {at}"


def _when(point: Point) -> str:
    first = point.runs[0]
    commit = first.source.get("commit", "")[:10]
    return f"{first.date[:10]} {commit}".strip()


def difference_text(series: Series, value: float, error: float | None) -> str:
    """Return a change of a series as tables print it."""
    if series.exact:
        return f"{value:+,.0f}"
    # Two digits of the error: a figure that is small everywhere is not printed as none.
    size = error or abs(value)
    fine = 1 - math.floor(math.log10(size)) if 0 < size < math.inf else 0
    return with_error(value, error, min(max(_decimals(series) + 1, fine), 12), sign="+")


def _decimals(series: Series) -> int:
    metric = METRICS.get(series.about.metric)
    return 3 if metric is None else metric.decimals


def _detail(trend: Trend) -> str:
    """Return every point of a series with what it differs by from the one before."""
    series, rows = trend.series, []
    words = {True: "worse", False: "better", None: "changed"}
    called = {change.at: words[trend.worse(change)] for change in trend.changes}
    for i, point in enumerate(series.points):
        each, first = point.measurement, point.runs[0]
        step = trend.steps[i - 1] if i else None
        less = NONE if step is None else difference_text(series, step.value, step.standard_error)
        less += " paired" if step is not None and step.paired else ""
        where = first.source.get("commit", "")[:10], each.checkpoint[:8], str(len(point.runs))
        rows.append(
            [first.date[:16].replace("T", " "), *where, _value(series, each), less, called.get(i, "")]
        )
    heading = ["run", "commit", "checkpoint", "runs", "value", "less the one before", "called"]
    images = f", {series.about.n:,} images" if series.about.n and "images" not in series.apart else ""
    title = f"{series.about.card}: {series_text(series)}{images}"
    return f"{plain(title)}\n{plain_table(heading, rows, 'lllrrll')}"


def figures(found: Sequence[Trend]) -> dict[str, Any]:
    """Return trends as plain data."""

    def point_of(trend: Trend, i: int) -> dict[str, Any]:
        point = trend.series.points[i]
        each, first = point.measurement, point.runs[0]
        step = vars(trend.steps[i - 1]) if i else None
        evidence = {"checkpoint": each.checkpoint, "draw": each.draw}
        score = {"value": each.value, "standard_error": each.standard_error, "verdict": each.verdict}
        runs = [run.id for run in point.runs]
        return {"date": first.date, **first.source, "runs": runs, **score, **evidence, "step": step}

    names = ("card", "test", "name", "metric", "protocol", "n", "unit", "device", "dtype", "reference")
    return {
        "error": ERROR,
        "series": [
            {
                **{name: getattr(trend.series.about, name) for name in names},
                "points": [point_of(trend, i) for i in range(len(trend.series.points))],
                "changes": [vars(change) | {"worse": trend.worse(change)} for change in trend.changes],
                "not_called": trend.silent,
            }
            for trend in found
        ],
    }


def _exported(latest: Run, wanted: Mapping[tuple[str, ...], str], form: str) -> list[dict[str, Any]]:
    """Return a run's figures of these series in the form that github-action-benchmark reads."""
    entries = []
    for each in latest.measurements:
        metric = METRICS.get(each.metric)
        upward = each.gains_upward if each.test == "quality" else False
        if each.series in wanted and upward is _FORMATS[form]:
            about = [f"{each.n:,} images"] if each.n else []
            about += [f"predicted for {each.predicted_for:,}"] if each.predicted_for else []
            about += [
                f"{key} {plain(value)}" for key in ("checkpoint", "draw") if (value := getattr(each, key))
            ]
            apart = wanted[each.series]
            name = f"{each.card}: {score_text(each, arrow=False)}{f', {apart}' if apart else ''}"
            unit = each.unit or (metric.label if metric else each.metric) or each.test
            entry: dict[str, Any] = {"name": plain(name), "unit": plain(unit), "value": each.value}
            if each.standard_error is not None:
                entry["range"] = f"± {each.standard_error:.3g}"
            entries.append(entry | ({"extra": "\n".join(about)} if about else {}))
    return entries
