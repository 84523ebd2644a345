"""Repeat the published experiments in miniature: `python -m benchmarks.family.experiments NAME`.

An experiment is a list of runs of `python -m training`, stopped at some points to be scored by the suite's
own evaluation. What is trained and scored already is not done again: a killed experiment goes on where it
was. Its result is a JSON file, a table and, where there is something to see, a plot under
`benchmarks/results`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import options
from benchmarks.family.experiment_list import EXPERIMENTS, Run
from benchmarks.family.members import BASE, METRICS, Quality, difference, identify, quality, train
from benchmarks.report import RESULTS, Cell, load, paragraphs, save, table
from pytest_sdbench.base.paths import user_cache
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.protocol import Protocol

Row = dict[str, Any]
KEY = ("run", "made_by", "images_seen", "draw", "protocol_fingerprint")
"""What tells rows apart."""


def made_by(run: Run) -> str:
    """Identify what a run's scores depend on: its recipe, or its checkpoint."""
    if run.recipe is None:
        return resolve(run.checkpoint).fingerprint
    return identify(run.recipe, run.overrides)


def export(run: Run, stop: int, folder: Path, threads: int) -> Path:
    """Train until `stop` images, unless that is done; return the folder of the exported U-Net."""
    assert run.recipe is not None
    out = folder / f"at-{stop:09d}"
    if not (out / "README.md").is_file():
        where = ("--folder", str(folder / "run"))
        train(run.recipe, run.overrides, threads, *where, "--stop-at", str(stop))
        train(run.recipe, run.overrides, threads, *where, "--export-only", "--out", str(out))
    return out


def perform(name: str, *, samples: int, folder: Path, threads: int, only: str = "") -> list[Row]:
    """Train and score what is missing of an experiment; return all rows.

    A row says how its scores differ, image by image, from the first run's after as many images.
    """
    experiment, store = EXPERIMENTS[name], folder / "evidence"
    first, makers = experiment.runs[0], {run.label: made_by(run) for run in experiment.runs}
    known = {tuple(row[each] for each in KEY): row for row in load(RESULTS / name).get("rows", [])}

    def scored(run: Run, stop: int, protocol: Protocol) -> Quality:
        checkpoint: Any = run.checkpoint
        if checkpoint is None:
            own = folder / name / makers[run.label]
            checkpoint = {"base": BASE, "unet": str(export(run, stop, own, threads))}
        return quality(checkpoint, protocol, store)

    # Scores of a recipe, a checkpoint or a protocol that has changed since are found under no key.
    places = {}
    for run, stop, draw in experiment.places():
        protocol = draw.of(samples)
        key = (run.label, makers[run.label], stop, draw.label, protocol.fingerprint)
        places[key] = run, stop, protocol
    rows = {key: known[key] for key in places if key in known}
    for key, (run, stop, protocol) in places.items():
        if key not in rows and only in run.label:
            rows[key] = {**dict(zip(KEY, key, strict=True)), **scored(run, stop, protocol).scores}
            figures = ", ".join(f"{metric} {rows[key][metric]:.4f}" for metric in METRICS)
            print(f"{run.label}, {stop:,} images, {rows[key]['draw']}: {figures}", flush=True)
            keep(name, list(rows.values()))
    references = {(key[2], key[4]) for key in rows if key[0] == first.label}
    for key, row in rows.items():
        run, stop, protocol = places[key]
        if run is not first and "difference" not in row and (stop, protocol.fingerprint) in references:
            row["difference"] = difference(scored(run, stop, protocol), scored(first, stop, protocol))
    keep(name, list(rows.values()))
    return list(rows.values())


def keep(name: str, rows: list[Row]) -> None:
    """Write the rows of an experiment and their table."""
    experiment = EXPERIMENTS[name]
    content = {"title": experiment.title, "source": experiment.source, "rows": rows}
    save(RESULTS / name, content, report(name, rows))


def report(name: str, rows: Sequence[Row]) -> str:
    """Return the table of an experiment as Markdown."""
    experiment = EXPERIMENTS[name]
    places = [(run.label, stop, draw.label) for run, stop, draw in experiment.places()]
    rows = sorted(rows, key=lambda row: places.index((row["run"], row["images_seen"], row["draw"])))
    compared = any("difference" in row for row in rows)
    columns: list[tuple[str, Cell]] = [("run", "{run}")]
    columns += [("images seen", "{images_seen:,}")] * any(row["images_seen"] for row in rows)
    columns += [("drawn", "{draw}")] * (len({row["draw"] for row in rows}) > 1)
    columns += [
        ("N", "{n}"),
        ("FID ↓", lambda row: _figure(row, "fid", 2)),
        ("KID ↓", lambda row: _figure(row, "kid", 4)),
        ("IS ↑", lambda row: _figure(row, "inception_score", 2)),
        ("CLIP score ↑", lambda row: _figure(row, "clip_score", 4)),
    ]
    if compared:
        columns += [
            ("FID, difference", lambda row: _figure(row.get("difference"), "fid", 3, "+")),
            ("CLIP score, difference", lambda row: _figure(row.get("difference"), "clip_score", 4, "+")),
        ]
    differences = (
        "Differences are from the first run, after as many images and drawn alike, image by image. "
        "± is one standard error over images; each run was trained once."
    )
    return paragraphs(
        f"# {experiment.title}",
        f"In miniature: {experiment.source}.",
        table(rows, columns),
        differences if compared else "",
        experiment.notes,
        f"![over training]({name}.png)" if _over_training(rows) else "",
    )


def _figure(row: Row | None, metric: str, decimals: int, sign: str = "") -> str:
    if row is None:
        return ""
    error = row.get(f"{metric}_se")
    return f"{row[metric]:{sign}.{decimals}f}" + (f" ± {error:.{decimals}f}" if error else "")


def _over_training(rows: Sequence[Row]) -> bool:
    return len({row["images_seen"] for row in rows}) > 1


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw FID, IS and CLIP score over training, a line for each run, bars of one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    labels = list(dict.fromkeys(row["run"] for row in rows))
    colours = pyplot.get_cmap("viridis")([0.85 * i / max(1, len(labels) - 1) for i in range(len(labels))])
    shown = {"fid": "FID ↓", "inception_score": "IS ↑", "clip_score": "CLIP score ↑"}
    for axis, (metric, name) in zip(axes, shown.items(), strict=True):
        for place, (label, colour) in enumerate(zip(labels, colours, strict=True)):
            # One and a half thousand images apart, so that bars can be told from another.
            shift = 1.5 * (place - (len(labels) - 1) / 2)
            own = sorted((row for row in rows if row["run"] == label), key=lambda row: row["images_seen"])
            x = [row["images_seen"] / 1000 + shift for row in own]
            errors = [row[f"{metric}_se"] or 0.0 for row in own]
            style = {"label": label, "color": colour, "marker": "o", "capsize": 2}
            axis.errorbar(x, [row[metric] for row in own], yerr=errors, **style)
        axis.set(xlabel="thousand images seen", title=name)
        axis.grid(alpha=0.3)
    axes[2].legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Perform an experiment and print its table."""
    parser = options.parser("family.experiments", __doc__, "--threads")
    parser.add_argument("name", choices=sorted(EXPERIMENTS))
    parser.add_argument("--samples", type=int, default=512, help="images that each score is of [%(default)s]")
    parser.add_argument("--only", default="", metavar="TEXT", help="only runs whose label contains this")
    parser.add_argument("--report", action="store_true", help="only write the table again")
    parser.add_argument("--folder", type=Path, default=user_cache() / "experiments")
    asked = options.parse(parser, arguments)
    if asked.report:
        rows = load(RESULTS / asked.name)["rows"]
        keep(asked.name, rows)
    else:
        how = {"samples": asked.samples, "folder": asked.folder, "threads": asked.threads}
        rows = perform(asked.name, only=asked.only, **how)
    if _over_training(rows):
        plot(rows, EXPERIMENTS[asked.name].title, RESULTS / f"{asked.name}.png")
    print(report(asked.name, rows))


if __name__ == "__main__":
    main()
