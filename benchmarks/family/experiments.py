"""Repeat the published experiments in miniature: `python -m benchmarks.family.experiments NAME`.

An experiment is a list of runs of `python -m training`, stopped at some points to be scored by the suite's
own evaluation. What is trained and scored already is not done again: a killed experiment goes on where it
was. Its result is a JSON file, a table and, where there is something to see, a plot under
`benchmarks/results`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.family.quality import METRICS, difference, quality
from benchmarks.report import RESULTS, ROOT
from pytest_sdbench.base.paths import user_cache
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol, Scheduler

BASE = "embedded:scenes-sd"


@dataclass(frozen=True)
class Draw:
    """One way to draw from a checkpoint: a protocol, and what it departs in."""

    label: str
    protocol: str = "scenes-quick"
    steps: int | None = None
    scheduler: Scheduler | None = None


@dataclass(frozen=True)
class Run:
    """One training run, or a checkpoint that is there already."""

    label: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    stops: tuple[int, ...] = ()
    """Images after which the run is scored; the last one ends it."""
    checkpoint: str | dict[str, str] | None = None
    draws: tuple[Draw, ...] = (Draw("PNDM 25"),)


@dataclass(frozen=True)
class Experiment:
    """What is compared, and in whose miniature."""

    title: str
    source: str
    runs: tuple[Run, ...]
    notes: str = ""


def growing_data() -> Experiment:
    """Train Small on growing numbers of pairs, everything else the same."""
    sizes, stops = (532, 2128, 7092, 22565), (32_000, 64_000, 96_000, 128_000)
    runs = [
        Run(f"{size:,} pairs", "scenes-small", (f"data.pairs={size}", "schedule.steps=4000"), stops)
        for size in sizes
    ]
    return Experiment(
        "Growing data: scenes-small on four numbers of pairs, 128,000 images each",
        "BK-SDM, ablation of the data size for Small: IS and CLIP improve over training with more pairs",
        tuple(runs),
        notes=(
            "532 pairs seem too few: from 96,000 images on they lie behind all others, by one to two "
            "standard errors. More than 2,128 bring nothing that could be told apart."
        ),
    )


def ablation() -> Experiment:
    """Take initialisation, output and feature distillation away, at the same budget."""
    budget = ("schedule.steps=1000", "data.pairs=22565", "watch.validation_images=0")
    plain = (32_000,)

    def run(label: str, *overrides: str) -> Run:
        return Run(label, "scenes-small", (*budget, *overrides), plain)

    no_output, no_feature = "objective.weights.output=0.0", "objective.weights.feature=0.0"
    return Experiment(
        "What helps: initialisation, output and feature distillation; scenes-small, 32,000 images",
        "BK-SDM, ablation of the components for Small",
        (
            run("teacher weights, output and feature distillation"),
            run("teacher weights, output distillation", no_feature),
            run("teacher weights, feature distillation", no_output),
            run("teacher weights, no distillation", no_output, no_feature),
            run("random weights, output and feature distillation", "student.init=random"),
            run("random weights, no distillation", "student.init=random", no_output, no_feature),
            run("all of it, no caption dropped", "objective.caption_dropout=0.0"),
        ),
        notes=(
            "The teacher's weights are worth most by far, then dropped captions, then distillation; "
            "output and feature distillation do nearly the same alone. A student with random weights "
            "has not got far in 32,000 images, with distillation or without. Guidance subtracts the "
            "prediction for the empty prompt, which a student without dropped captions is never shown."
        ),
    )


def consistency() -> Experiment:
    """Draw from the consistency model in 1, 2, 4 and 8 steps, and from its teacher with PNDM."""
    lcm = {"base": BASE, "unet": "embedded:scenes-tiny-lcm"}
    tiny = {"base": BASE, "unet": "embedded:scenes-tiny"}
    # Its defaults cut latents off at 1, as if they were pixels, and with the teacher's spacing it would begin
    # below the timestep of pure noise.
    ddim = Scheduler(
        name="DDIMScheduler",
        config={"clip_sample": False, "timestep_spacing": "trailing", "steps_offset": 0},
    )
    few = tuple(Draw(f"LCM {steps}", "scenes-lcm4-quick", steps) for steps in (1, 2, 4, 8))
    return Experiment(
        "Few steps: scenes-tiny-lcm beside scenes-tiny",
        "LCM (Luo et al. 2023), and tiny-sd-lcm-6400",
        (
            Run("scenes-tiny-lcm", checkpoint=lcm, draws=few),
            Run(
                "scenes-tiny",
                checkpoint=tiny,
                draws=(
                    Draw("PNDM 4", steps=4),
                    Draw("PNDM 8", steps=8),
                    Draw("PNDM 25"),
                    *(Draw(f"DDIM {steps}", steps=steps, scheduler=ddim) for steps in (1, 2, 4, 8)),
                ),
            ),
        ),
        notes=(
            "Guidance 2. A step is one U-Net call for scenes-tiny-lcm, which knows the guidance, and two for "
            "scenes-tiny (PNDM takes one step more). PNDM is what the family is evaluated with; in few steps "
            "it breaks down, so DDIM stands beside it, from pure noise on (trailing spacing): it needs eight "
            "calls for what the consistency model does in two to four. That one is at its best in two to "
            "four steps and loses CLIP score in eight."
        ),
    )


def finetuning() -> Experiment:
    """Draw pictures of one object from the model that was fine-tuned to them, and from its teacher."""
    draws = (Draw("one object", "scenes-portrait-quick"), Draw("all scenes"))
    return Experiment(
        "Fine-tuning: scenes-portrait beside scenes-tiny, on pictures of one object and on all",
        "segmind/portrait-finetuned: tiny-sd fine-tuned to portraits",
        tuple(
            Run(name, checkpoint={"base": BASE, "unet": f"embedded:{name}"}, draws=draws)
            for name in ("scenes-tiny", "scenes-portrait")
        ),
        notes=(
            "Fine-tuning gains nothing here: scenes of one object are a quarter of what scenes-tiny learned "
            "from already."
        ),
    )


EXPERIMENTS = {
    "growing-data": growing_data,
    "ablation": ablation,
    "consistency": consistency,
    "finetuning": finetuning,
}


@dataclass
class Results:
    """The scores of an experiment, kept after each one."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what an earlier call scored."""
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
        return cls(path, rows)

    def find(self, made_by: str, seen: int, protocol: Protocol) -> dict[str, Any] | None:
        """Return a row that is there already."""
        wanted = {"made_by": made_by, "images_seen": seen, "protocol_fingerprint": protocol.fingerprint}
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def add(self, row: dict[str, Any], experiment: Experiment) -> None:
        """Keep a row."""
        self.rows.append(row)
        self.write(experiment)

    def write(self, experiment: Experiment) -> None:
        """Keep all rows."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"title": experiment.title, "source": experiment.source, "rows": self.rows}
        self.path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def made_by(run: Run) -> str:
    """Identify what a run's scores depend on: its recipe, or its checkpoint."""
    from pytest_sdbench.models.checkpoint import resolve

    if run.recipe is None:
        return resolve(run.checkpoint).fingerprint
    from training.recipes.load import load_recipe
    from training.run.state import identity

    recipe = load_recipe(run.recipe, run.overrides)
    assert recipe.teacher is not None
    return f"{identity(recipe)}-{resolve(recipe.teacher).fingerprint}"


def train(run: Run, stop: int, folder: Path, threads: int) -> Path:
    """Train until `stop` images, unless that is done; return the folder of the exported U-Net."""
    assert run.recipe is not None
    out = folder / f"at-{stop:09d}"
    if (out / "README.md").is_file():
        return out
    command = [sys.executable, "-m", "training", run.recipe, *run.overrides, "--device", "cpu"]
    command += ["--threads", str(threads), "--folder", str(folder / "run")]
    subprocess.run([*command, "--stop-at", str(stop)], cwd=ROOT, check=True)
    subprocess.run([*command, "--export-only", "--out", str(out)], cwd=ROOT, check=True)
    return out


def drawing(draw: Draw, samples: int) -> Protocol:
    """Return the protocol of a way to draw."""
    protocol = load_protocol(draw.protocol)
    if draw.steps is not None:
        sampling = protocol.sampling.model_copy(update={"steps": draw.steps})
        if draw.scheduler is not None:
            sampling = sampling.model_copy(update={"scheduler": draw.scheduler})
        protocol = protocol.model_copy(update={"sampling": sampling})
    return protocol.with_samples(min(samples, protocol.n))


def compare(experiment: Experiment, results: Results, where: Callable[[Run, int], Any], store: Path) -> None:
    """Add to each score how it differs, image by image, from the first run's after as many images."""
    first = experiment.runs[0]
    runs = {run.label: run for run in experiment.runs}
    references = {
        (row["images_seen"], row["protocol_fingerprint"]) for row in results.rows if row["run"] == first.label
    }
    for row in results.rows:
        stop = row["images_seen"]
        has_reference = (stop, row["protocol_fingerprint"]) in references
        if row["run"] == first.label or "difference" in row or not has_reference:
            continue
        run = runs[row["run"]]
        draw = next(one for one in run.draws if one.label == row["draw"])
        protocol = drawing(draw, row["n"])
        one, two = (quality(where(which, stop), protocol, store) for which in (run, first))
        row["difference"] = difference(one, two)
    results.write(experiment)


def perform(name: str, *, samples: int, folder: Path, threads: int, only: str | None) -> Results:
    """Train and score what is missing of an experiment."""
    experiment = EXPERIMENTS[name]()
    results = Results.load(RESULTS / f"{name}.json")
    makers = {run.label: made_by(run) for run in experiment.runs}
    # Scores of a recipe, a checkpoint or a protocol that has changed since are worth nothing.
    protocols = {
        (run.label, draw.label): drawing(draw, samples).fingerprint
        for run in experiment.runs
        for draw in run.draws
    }
    results.rows = [
        row
        for row in results.rows
        if makers.get(row["run"]) == row["made_by"]
        and protocols.get((row["run"], row["draw"])) == row["protocol_fingerprint"]
    ]
    store = folder / "evidence"

    def where(run: Run, stop: int) -> Any:
        if run.checkpoint is not None:
            return run.checkpoint
        out = train(run, stop, folder / name / makers[run.label], threads)
        return {"base": BASE, "unet": str(out)}

    for run in experiment.runs:
        if only and only not in run.label:
            continue
        maker = makers[run.label]
        for stop in run.stops or (0,):
            for draw in run.draws:
                protocol = drawing(draw, samples)
                if results.find(maker, stop, protocol):
                    continue
                row = {
                    "run": run.label,
                    "made_by": maker,
                    "images_seen": stop,
                    "draw": draw.label,
                    "protocol_fingerprint": protocol.fingerprint,
                    **quality(where(run, stop), protocol, store).scores,
                }
                results.add(row, experiment)
                print(_line(row), flush=True)
    compare(experiment, results, where, store)
    return results


def report(name: str, results: Results) -> str:
    """Return the table of an experiment, and write it and its plot."""
    experiment = EXPERIMENTS[name]()
    places = [
        (run.label, stop, draw.label)
        for run in experiment.runs
        for stop in run.stops or (0,)
        for draw in run.draws
    ]
    results.rows.sort(key=lambda row: places.index((row["run"], row["images_seen"], row["draw"])))
    several = len({row["draw"] for row in results.rows}) > 1
    training = any(row["images_seen"] for row in results.rows)
    headers = ["run"] + ["images seen"] * training + ["drawn"] * several
    headers += ["N", "FID ↓", "KID ↓", "IS ↑", "CLIP score ↑"]
    compared = any("difference" in row for row in results.rows)
    headers += ["FID, difference", "CLIP score, difference"] * compared
    lines = []
    for row in results.rows:
        cells = [row["run"]] + [f"{row['images_seen']:,}"] * training + [row["draw"]] * several
        cells += [row["n"], _figure(row, "fid", 2), _figure(row, "kid", 4)]
        cells += [_figure(row, "inception_score", 2), _figure(row, "clip_score", 4)]
        if compared:
            cells += [
                _figure(row.get("difference"), name, d, "+") for name, d in (("fid", 3), ("clip_score", 4))
            ]
        lines.append(cells)
    table = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    text = f"# {experiment.title}\n\nIn miniature: {experiment.source}.\n\n{table}\n"
    if compared:
        text += (
            "\nDifferences are from the first run, after as many images and drawn alike, image by image. "
            "± is one standard error over images; each run was trained once.\n"
        )
    if experiment.notes:
        text += f"\n{experiment.notes}\n"
    if len({row["images_seen"] for row in results.rows}) > 1:
        plot(results.rows, experiment.title, RESULTS / f"{name}.png")
        text += f"\n![over training]({name}.png)\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    return text


def plot(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw FID, IS and CLIP score over training, a line for each run, bars of one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    labels = list(dict.fromkeys(row["run"] for row in rows))
    colours = pyplot.get_cmap("viridis")([0.85 * i / max(1, len(labels) - 1) for i in range(len(labels))])
    apart = 1.5  # thousand images, so that bars can be told from another
    for axis, metric, name in zip(
        axes, ("fid", "inception_score", "clip_score"), ("FID ↓", "IS ↑", "CLIP score ↑"), strict=True
    ):
        for place, (label, colour) in enumerate(zip(labels, colours, strict=True)):
            shift = apart * (place - (len(labels) - 1) / 2)
            own = sorted((row for row in rows if row["run"] == label), key=lambda row: row["images_seen"])
            errors = [row[f"{metric}_se"] or 0.0 for row in own]
            axis.errorbar(
                [row["images_seen"] / 1000 + shift for row in own],
                [row[metric] for row in own],
                yerr=errors,
                label=label,
                color=colour,
                marker="o",
                capsize=2,
            )
        axis.set(xlabel="thousand images seen", title=name)
        axis.grid(alpha=0.3)
    axes[2].legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Perform an experiment and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family.experiments", description=__doc__)
    parser.add_argument("name", choices=sorted(EXPERIMENTS))
    parser.add_argument("--samples", type=int, default=512, help="images that each score is of")
    parser.add_argument("--only", help="only runs whose label contains this")
    parser.add_argument("--report", action="store_true", help="only write the table again")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=user_cache() / "experiments")
    options = parser.parse_args(arguments)
    if options.report:
        results = Results.load(RESULTS / f"{options.name}.json")
    else:
        import torch

        torch.set_num_threads(options.threads)
        results = perform(
            options.name,
            samples=options.samples,
            folder=options.folder,
            threads=options.threads,
            only=options.only,
        )
    print(report(options.name, results))


def _figure(row: dict[str, Any] | None, metric: str, decimals: int, sign: str = "") -> str:
    if row is None:
        return ""
    error = row.get(f"{metric}_se")
    return f"{row[metric]:{sign}.{decimals}f}" + (f" ± {error:.{decimals}f}" if error else "")


def _line(row: dict[str, Any]) -> str:
    figures = ", ".join(f"{metric} {row[metric]:.4f}" for metric in METRICS)
    return f"{row['run']}, {row['images_seen']:,} images, {row['draw']}: {figures}"


if __name__ == "__main__":
    main()
