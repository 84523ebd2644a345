"""Draw figures for papers and pages: pictures side by side, quality against cost, scores over time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.environment import torch_device
from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.commands.shared import check_counts, named_cards, results_of, share, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pytest_sdbench.cards.card import Card
    from pytest_sdbench.gate.trends import Trend
    from pytest_sdbench.report.figures.frontier import Panel
    from pytest_sdbench.report.figures.history import Panel as HistoryPanel
    from pytest_sdbench.report.results import Row

_WIDTHS = (2.0, 20.0)
"""Inches that a figure may be wide."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    kinds = command.add_subparsers(title="figures", required=True, metavar="FIGURE", dest="figure")
    _add_sheet(kinds.add_parser("sheet", help="pictures: a row for each prompt, a column for each system"))
    _add_frontier(kinds.add_parser("frontier", help="quality against cost, a point for each card"))
    _add_history(kinds.add_parser("history", help="scores over the runs of a history, with their changes"))
    for each in kinds.choices.values():
        told = "a file that ends in .png or .svg; repeated: the same figure in each form"
        each.add_argument(
            "-o", "--out", action="append", type=_figure_file, required=True, metavar="FILE", help=told
        )
        told = "inches that it is wide at most; text is as large as in print [%(default)s]"
        each.add_argument("--width", type=float, default=6.5, metavar="INCHES", help=told)


def _add_sheet(command: argparse.ArgumentParser) -> None:
    from pytest_sdbench.commands.systems import KINDS

    told = f"{KINDS}; a U-Net's folder alone is joined to the base of the first whole one"
    command.add_argument("systems", nargs="+", metavar="SYSTEM", help=told)
    told = "for all systems; repeated: one for each, or several for one system; default: the card's"
    command.add_argument("--protocol", action="append", default=[], metavar="NAME", help=told)
    told = "draw in so many steps, a column for each number, such as 1,2,4,8; default: the protocol's"
    command.add_argument("--steps", type=_numbers(1), default=[], metavar="N,N,...", help=told)
    told = "what stands over a system's column; repeated: one for each"
    command.add_argument("--label", action="append", default=[], metavar="TEXT", help=told)
    told = "these prompts, counted from 0, such as 0,5,9"
    command.add_argument("--prompts", type=_numbers(0), default=[], metavar="N,N,...", help=told)
    command.add_argument("--count", type=int, default=8, metavar="N", help="so many prompts [%(default)s]")
    told = "the prompts at which pictures lost most of this metric against the first system's"
    command.add_argument("--worst", default="", metavar="METRIC", help=told)
    told = "with --worst: look among the first N alone"
    share(command, "--store", "--data", "--device", "--download")
    command.add_argument("--images", type=int, metavar="N", help=told)


def _add_frontier(command: argparse.ArgumentParser) -> None:
    share(command, "cards")
    told = "a results.json: show what was measured there"
    command.add_argument("--results", type=Path, metavar="FILE", help=told)
    defaults = {"protocol": "those of two cards or more", "metric": "the first of each protocol"}
    for name, default in defaults.items():
        told = f"default: {default}"
        command.add_argument(f"--{name}", action="append", default=[], metavar="NAME", help=told)
    told = "default: each that is known of two cards or more"
    command.add_argument(
        "--cost", action="append", default=[], choices=("size", "compute", "speed"), help=told
    )


def _add_history(command: argparse.ArgumentParser) -> None:
    from pytest_sdbench.commands.history import add_choice

    add_choice(command)


def _figure_file(text: str) -> Path:
    if Path(text).suffix.lower() not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} ends neither in .png nor in .svg")
    return Path(text)


def _numbers(least: int) -> Callable[[str], list[int]]:
    """Return a function that reads numbers with commas between them, each once."""

    def numbers(text: str) -> list[int]:
        found = [int(part) for part in text.split(",") if part.strip().isdecimal()]
        if len(found) != text.count(",") + 1 or min(found) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r}: give numbers from {least} on, with commas between them"
            )
        return list(dict.fromkeys(found))

    return numbers


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.report.figures.canvas import check_matplotlib

    check_matplotlib()
    if not _WIDTHS[0] <= options.width <= _WIDTHS[1]:
        remedy = f"Give {_WIDTHS[0]:g} to {_WIDTHS[1]:g} inches"
        raise SdbenchError("no width of a figure", key="--width", found=options.width, remedy=remedy)
    status: int = {"sheet": _sheet, "frontier": _frontier, "history": _history}[options.figure](options)
    return status


def _save(options: argparse.Namespace, draw: Callable[[], Figure], title: str, description: str) -> None:
    from pytest_sdbench.report.figures.canvas import save, style

    with style():
        figure = draw()
        notes = save(figure, options.out, title, description)
        wide, high = (round(each) for each in figure.bbox.size)
    for path in options.out:
        size = path.stat().st_size / 1000
        pixels = f"{wide:,} x {high:,} pixels, " if path.suffix.lower() == ".png" else ""
        show(f"{path}: {pixels}{size:,.0f} kB")
    for note in notes:
        show(note)


def _sheet(options: argparse.Namespace) -> int:
    from pytest_sdbench.commands.figure_sheet import Choice, collect, columns_of
    from pytest_sdbench.report.figures.sheet import LONGEST, MOST_COLUMNS, MOST_ROWS, draw_sheet, layout

    check_counts(options, "count", "images")
    chosen = [f"--{name}" for name in ("prompts", "worst") if vars(options)[name]]
    if len(chosen) > 1:
        raise SdbenchError("both choose the prompts", key=" ".join(chosen), remedy="Give one of the two")
    rows = len(options.prompts) or options.count
    if rows > MOST_ROWS:
        remedy = f"A sheet has at most {MOST_ROWS} rows: make several"
        raise SdbenchError("too many prompts for a sheet", found=rows, remedy=remedy)
    place = options.store, options.data, torch_device(options.device, option="--device")
    workspace = Workspace(*place, download=options.download)
    columns = columns_of(
        options.systems,
        options.protocol,
        options.steps,
        options.label,
        metric=options.worst,
        download=options.download,
    )
    if len(columns) >= MOST_COLUMNS:
        remedy = f"A sheet has at most {MOST_COLUMNS}, the real scene included: make several"
        raise SdbenchError("too many columns for a sheet", found=len(columns), remedy=remedy)
    choice = Choice(options.prompts, options.worst, options.count, options.images)
    sheet, told = collect(columns, choice, workspace)

    def draw() -> Figure:
        places = layout(sheet, options.width)
        if places.cell < sheet.side:
            why = f"no side of a sheet has more than {LONGEST:,}"
            told.append(f"pictures of {sheet.side:,} pixels are shown with {places.cell:,}: {why}")
        return draw_sheet(sheet, places)

    _save(options, draw, "Pictures side by side", sheet.described)
    for line in told:
        show(line)
    return 0


def _frontier(options: argparse.Namespace) -> int:
    from pytest_sdbench.report.figures.frontier import describe, draw_frontier

    rows = [] if options.results is None else results_of(options.results)
    panels = list(_panels(named_cards(options.cards), rows, options))
    if not panels:
        asked = ", ".join([*options.protocol, *options.metric, *options.cost]) or "any score"
        remedy = "Name cards that share a protocol, or leave out --protocol, --metric and --cost"
        raise SdbenchError("no two cards have quality and cost", found=asked, remedy=remedy)
    _save(options, lambda: draw_frontier(panels, options.width), "Quality against cost", describe(panels))
    return 0


def _panels(cards: Sequence[Card], rows: Sequence[Row], options: argparse.Namespace) -> Iterable[Panel]:
    """Yield a panel for each score and cost that two cards or more have."""
    from pytest_sdbench.base.schema import suggestion
    from pytest_sdbench.metrics.registry import METRICS, metric_name
    from pytest_sdbench.report.figures.frontier import Panel
    from pytest_sdbench.report.frontier import (
        COSTS,
        claimed,
        claimed_costs,
        incomparable,
        measured_costs,
        measured_points,
        published_points,
        recorded_points,
        recorded_times,
        scored,
    )

    names = [metric_name(metric) or metric for metric in options.metric]
    if unknown := [name for name in names if name not in METRICS]:
        remedy = f"{suggestion(unknown[0], list(METRICS))}Known metrics: {', '.join(METRICS)}"
        raise SdbenchError("unknown metric", key="--metric", found=unknown[0], remedy=remedy)
    asked: dict[str, list[str]] = {}
    for protocol, metric in scored(rows) if rows else claimed(cards):
        metrics = asked.setdefault(protocol, [])
        if metric in names or (not names and not metrics):
            metrics.append(metric)
    ran = {row.card for row in rows}
    for protocol, metrics in asked.items():
        if options.protocol and protocol not in options.protocol:
            continue
        for metric in metrics:
            for note in incomparable(cards, protocol, metric):
                show(f"note: {note}", sys.stderr)
            for kind in COSTS:
                if options.cost and kind not in options.cost:
                    continue
                own, where = measured_costs(rows, kind), ""
                costs = claimed_costs(cards, kind) | own
                if kind == "speed" and not own:
                    where, costs = recorded_times(cards)
                others = [card for card in cards if card.name not in ran]
                points = [
                    *published_points(cards, protocol, metric, costs),
                    *recorded_points(others, protocol, metric, costs),
                    *measured_points(rows, protocol, metric, costs),
                ]
                if len({point.card for point in points}) > 1:
                    yield Panel(protocol, metric, kind, points, where)


def _history(options: argparse.Namespace) -> int:
    from pytest_sdbench.commands.history import KeptEvidence, read_chosen
    from pytest_sdbench.gate.trends import trends
    from pytest_sdbench.metrics.change_points import ERROR
    from pytest_sdbench.report.figures.history import MOST, describe, draw_history

    runs, chosen, problems = read_chosen(options)
    evidence = KeptEvidence(Workspace(options.store, options.data, progress=False))
    found = [trend for trend in trends(chosen, evidence) if len(trend.series.points) > 1]
    if not 0 < len(found) <= MOST:
        what = "no series has more than one point" if not found else f"{len(found)} series have points"
        remedy = f"A figure has at most {MOST}: choose with --card, --metric or --protocol"
        if not found:
            remedy = "A figure shows what changes from run to run: add runs of other checkpoints"
        raise SdbenchError(what, file=options.place, remedy=remedy)
    note = (
        f"{len(runs)} runs. Bars: 95 % intervals. Dashed: a called change; shaded: where it may lie; "
        f"black: the level between changes. The chance of any wrong call in all is {100 * ERROR:.0f} %."
    )
    panels = [_panel_of(trend) for trend in found]
    _save(
        options, lambda: draw_history(panels, note, options.width), "Scores over time", describe(panels, note)
    )
    for line in [
        *(f"not paired: {why}" for why in evidence.notes),
        *(f"not read: {why}" for why in problems),
    ]:
        show(line)
    return int(bool(problems))


def _panel_of(trend: Trend) -> HistoryPanel:
    """Return a trend as a figure shows it: memory in MiB, everything else as it is."""
    from pytest_sdbench.commands.history import difference_text, series_text
    from pytest_sdbench.report.figures.history import Call
    from pytest_sdbench.report.figures.history import Panel as HistoryPanel

    series, about = trend.series, trend.series.about
    scale = 2.0**-20 if about.test == "memory" else 1.0
    measured = [point.measurement for point in series.points]
    calls = [
        Call(
            change.at,
            change.first,
            change.last,
            trend.worse(change),
            difference_text(series, change.value, change.standard_error),
        )
        for change in trend.changes
    ]
    return HistoryPanel(
        (about.card, series_text(series) + (", MiB" if about.test == "memory" else "")),
        [scale * each.value for each in measured],
        [None if series.exact else each.standard_error for each in measured],
        [point.runs[0].date[:10] for point in series.points],
        calls,
        trend.silent,
    )
