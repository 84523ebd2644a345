"""Repeat the published experiments in miniature: `python -m benchmarks.family.experiments NAME`.

An experiment is a list of runs of `python -m training`, stopped at some points to be scored by the suite's
own evaluation. What is trained and scored already is not done again: a killed experiment goes on where it
was. Its result is a JSON file, a table and, where there is something to see, a plot under
`benchmarks/results`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import options
from benchmarks.family import order
from benchmarks.family.experiment_list import EXPERIMENTS, Draw, Run
from benchmarks.family.members import BASE, METRICS, Quality, difference, identify, quality, train
from benchmarks.family.reading import MEANING, with_readings
from benchmarks.report import RESULTS, Cell, load, paragraphs, save, table
from pytest_sdbench.base.paths import user_cache
from pytest_sdbench.models.checkpoint import resolve
from training.run.state import FILE, read_state

Row = dict[str, Any]
Place = tuple[Run, int, Draw]
"""What is scored: a run, after how many images, and how it is drawn from."""
KEY = ("run", "made_by", "images_seen", "draw", "protocol_fingerprint")
"""What tells rows apart."""
Key = tuple[str, str, int, str, str]


def made_by(run: Run) -> str:
    """Identify what a run's scores depend on: its recipe, or its checkpoint."""
    if run.recipe is None:
        return resolve(run.checkpoint).fingerprint
    return identify(run.recipe, run.overrides)


def export(run: Run, stop: int, folder: Path, threads: int) -> Path:
    """Train until `stop` images, unless that is done; return the folder of the exported U-Net.

    All runs lie side by side in `folder/runs`, so that they share what is encoded.
    """
    assert run.recipe is not None
    maker = made_by(run)
    out = folder / "exports" / maker / f"at-{stop:09d}"
    if not (out / "README.md").is_file():
        where = ("--folder", str(folder / "runs" / maker))
        train(run.recipe, run.overrides, threads, *where, "--stop-at", str(stop))
        seen = read_state(folder / "runs" / maker / FILE, mapped=True)["seen"]
        if seen != stop:  # it was trained further than what is asked for now
            raise SystemExit(
                f"runs/{maker} has seen {seen:,} images, not {stop:,}: move it away, and run again"
            )
        train(run.recipe, run.overrides, threads, *where, "--export-only", "--out", str(out))
    return out


def trained(name: str, *, folder: Path, threads: int, only: str = "") -> list[tuple[Run, int, Path]]:
    """Train what is missing of an experiment, and return where each export lies; checkpoints need none."""
    return [
        (run, stop, export(run, stop, folder, threads))
        for run in EXPERIMENTS[name].runs
        if run.recipe is not None and only in run.label
        for stop in run.stops
    ]


def perform(name: str, *, images: int, folder: Path, threads: int, only: str = "") -> list[Row]:
    """Train and score what is missing of an experiment; return all rows.

    A row says how its scores differ, image by image, from those of the run that the experiment names. Runs of
    the same recipe and teacher share their training, whichever experiments they are of.
    """
    experiment, found = EXPERIMENTS[name], load(RESULTS / name)
    makers = {run.label: made_by(run) for run in experiment.runs}

    def key_of(place: Place) -> Key:
        run, stop, draw = place
        fingerprint = with_readings(draw.of(images), METRICS).fingerprint
        return run.label, makers[run.label], stop, draw.label, fingerprint

    places = {key_of(place): place for place in experiment.places()}
    # Scores of a recipe, a checkpoint or a protocol that has changed since are found under no key.
    known = {tuple(row[each] for each in KEY): row for row in found.get("rows", [])}
    rows = {key: known[key] for key in places if key in known}

    @cache
    def scored(key: Key) -> Quality:
        run, stop, draw = places[key]
        checkpoint: Any = run.checkpoint
        if checkpoint is None:
            checkpoint = {"base": BASE, "unet": str(export(run, stop, folder, threads))}
        return quality(checkpoint, draw.of(images), folder / "evidence")

    for key, (run, stop, draw) in places.items():
        if key not in rows and only in run.label:
            rows[key] = {**dict(zip(KEY, key, strict=True)), **scored(key).scores}
            print(f"{run.label}, {stop:,} images, {draw.label}: {_told(rows[key])}", flush=True)
            keep(name, list(rows.values()))
    for key, row in rows.items():
        first = experiment.counterpart(*places[key])
        if first is None or (other := key_of(first)) not in rows:
            continue
        if row.get("difference", {}).get("of") != list(other):
            row["difference"] = difference(scored(key), scored(other)) | {"of": list(other)}
    pairs = []
    if name == "order" and rows.keys() == places.keys():
        pairs = order.compare({run.label: scored(key) for key, (run, _, _) in places.items()})
    keep(name, list(rows.values()), pairs)
    return list(rows.values())


def _told(row: Row) -> str:
    return ", ".join(f"{metric} {row[metric]:.4f}" for metric in METRICS if metric in row)


def keep(name: str, rows: list[Row], pairs: Sequence[Row] = ()) -> None:
    """Write the rows of an experiment and their table."""
    experiment = EXPERIMENTS[name]
    content: dict[str, Any] = {"title": experiment.title, "source": experiment.source, "rows": rows}
    if pairs:
        content["pairs"] = pairs
    save(RESULTS / name, content, report(name, content))


def report(name: str, found: Row) -> str:
    """Return the table of an experiment as Markdown, given what `keep` writes."""
    experiment = EXPERIMENTS[name]
    places = [(run.label, stop, draw.label) for run, stop, draw in experiment.places()]
    rows = sorted(found["rows"], key=lambda row: places.index((row["run"], row["images_seen"], row["draw"])))
    compared = any("difference" in row for row in rows)
    columns: list[tuple[str, Cell]] = [("run", "{run}")]
    columns += [("images seen", "{images_seen:,}")] * _over_training(rows)
    columns += [("drawn", "{draw}")] * (len({row["draw"] for row in rows}) > 1)
    columns += [
        ("N", "{n:,}"),
        ("FID ↓", lambda row: _figure(row, "fid", 3)),
        ("KID ↓", lambda row: _figure(row, "kid", 4)),
        ("IS ↑", lambda row: _figure(row, "inception_score", 2)),
        ("CLIP score ↑", lambda row: _figure(row, "clip_score", 4)),
        ("names right ↑", lambda row: _figure(row, "names_right", 4)),
        ("and colours ↑", lambda row: _figure(row, "objects_right", 4)),
    ]
    if compared:
        columns += [
            ("FID, difference", lambda row: _figure(row.get("difference"), "fid", 4, "+")),
            ("CLIP score, difference", lambda row: _figure(row.get("difference"), "clip_score", 5, "+")),
            ("names right, difference", lambda row: _figure(row.get("difference"), "names_right", 4, "+")),
        ]
    how = f"drawn by {experiment.against_draw}" if experiment.against_draw else "drawn alike"
    after = "after as many images, " if _over_training(rows) else ""
    differences = (
        f"Differences are from {experiment.against}, {after}{how}, image by image. ± is one standard error "
        f"over images; it says nothing of how two trainings differ. {MEANING}"
    )
    return paragraphs(
        f"# {experiment.title}",
        f"In miniature: {experiment.source}.",
        table(rows, columns),
        differences if compared else "",
        order.report(found.get("pairs", [])),
        experiment.notes,
        f"![over training]({name}.png)" if _over_training(rows) else "",
    )


def _figure(row: Row | None, metric: str, decimals: int, sign: str = "") -> str:
    if row is None or metric not in row:
        return ""
    error = row.get(f"{metric}_se")
    return f"{row[metric]:{sign}.{decimals}f}" + (f" ± {error:.{decimals}f}" if error else "")


def _over_training(rows: Sequence[Row]) -> bool:
    return len({row["images_seen"] for row in rows if row["images_seen"]}) > 1


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw scores over training, a line for each run, bars of one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(17, 4), layout="constrained")
    labels = list(dict.fromkeys(row["run"] for row in rows))
    colours = pyplot.get_cmap("viridis")([0.85 * i / max(1, len(labels) - 1) for i in range(len(labels))])
    shown = {
        "fid": "FID ↓",
        "inception_score": "IS ↑",
        "clip_score": "CLIP score ↑",
        "names_right": "names right ↑",
    }
    for axis, (metric, name) in zip(axes, shown.items(), strict=True):
        for place, (label, colour) in enumerate(zip(labels, colours, strict=True)):
            # Some hundred images apart, so that bars can be told from another.
            shift = 0.6 * (place - (len(labels) - 1) / 2)
            own = sorted((row for row in rows if row["run"] == label), key=lambda row: row["images_seen"])
            x = [row["images_seen"] / 1000 + shift for row in own]
            errors = [row[f"{metric}_se"] or 0.0 for row in own]
            style = {"label": label, "color": colour, "marker": "o", "capsize": 2}
            axis.errorbar(x, [row[metric] for row in own], yerr=errors, **style)
        axis.set(xlabel="thousand images seen", title=name)
        axis.grid(alpha=0.3)
    axes[-1].legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Perform an experiment and print its table."""
    parser = options.parser("family.experiments", __doc__, "--threads")
    parser.add_argument("name", choices=sorted(EXPERIMENTS))
    parser.add_argument("--images", type=int, default=512, help="that each score is of [%(default)s]")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs whose label contains this")
    parser.add_argument("--train-only", action="store_true", help="train, and score nothing")
    parser.add_argument("--report", action="store_true", help="only write the table again")
    parser.add_argument("--folder", type=Path, default=user_cache() / "experiments")
    asked = options.parse(parser, arguments)
    where = {"folder": asked.folder, "threads": asked.threads, "only": asked.only}
    if asked.train_only:
        for run, stop, place in trained(asked.name, **where):
            print(f"{run.label}, {stop:,} images: {place}")
        return
    if asked.report:
        found = load(RESULTS / asked.name)
        keep(asked.name, found["rows"], found.get("pairs", ()))
    else:
        perform(asked.name, images=asked.images, **where)
    found = load(RESULTS / asked.name)
    if _over_training(found["rows"]):
        plot(found["rows"], EXPERIMENTS[asked.name].title, RESULTS / f"{asked.name}.png")
    print(report(asked.name, found))


if __name__ == "__main__":
    main()
