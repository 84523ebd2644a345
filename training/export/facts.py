"""What a card tells of a training: figures of its recipe and of its run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_sdbench.base.text import duration
from pytest_sdbench.report.cells import code, markdown
from training.recipes.schema import Recipe
from training.run.status import read_log

REMOVED = {
    "base": "the second residual-attention pair of every level, going down and going up",
    "small": "the second residual-attention pair of every level, going down and going up, and the mid block",
    "tiny": "the second residual-attention pair of every level, the mid block and the whole innermost level",
}


@dataclass(frozen=True)
class Run:
    """What a card tells of a run besides its recipe."""

    folder: Path
    seen: int
    """Images."""
    told: Mapping[str, Any]
    """What its state tells: `hardware` and `libraries`, each in words, as far as it does."""
    seconds: float | None
    """How long it trained; None: not recorded."""
    pairs: int | None = None
    skipped: int = 0
    """Pairs that were left out: corrupt, or without a caption where the recipe passes over these."""


def facts(recipe: Recipe, run: Run) -> Iterator[tuple[str, str]]:
    """Yield what is worth knowing, each with its label."""
    schedule, optimizer, data = recipe.schedule, recipe.optimizer, recipe.data
    yield "Recipe", f"`{recipe.name}`"
    if recipe.teacher is not None:
        afresh = recipe.student.init == "random"
        learns = recipe.objective.kind in ("prediction", "dreambooth") and recipe.student.remove == "none"
        yield "Fine-tuned from" if learns and not afresh else "Teacher", shown_name(recipe.teacher)
        if recipe.student.remove != "none":
            yield "Blocks removed", f"`{recipe.student.remove}`: {REMOVED[recipe.student.remove]}"
        if recipe.student.remove != "none" or afresh:
            yield "Started from", "random weights" if afresh else "the teacher's weights"
    yield "Objective", _objective(recipe)
    yield "Training data", _data(recipe, run)
    if data.resolution is not None:
        flipped = ", mirrored at random" if data.flip else ""
        side = getattr(data, "close_up", None)
        seen = f", of which squares of {side} x {side} around the object" if side else ""
        yield "Resolution", f"{data.resolution} x {data.resolution}{seen}{flipped}"
    steps = run.seen // schedule.batch
    planned = "" if run.seen >= recipe.images else f" of {schedule.steps:,} planned"
    yield "Steps", f"{steps:,}{planned}"
    yield "Batch", f"{schedule.batch:,}"
    epochs = f", {run.seen / run.pairs:.3g} times each pair" if run.pairs else ""
    yield "Images seen", f"{run.seen:,}{epochs}"
    warmup = f" after {optimizer.warmup_steps:,} steps of warm-up" if optimizer.warmup_steps else ""
    clip = f", gradient norm at most {optimizer.clip:g}" if optimizer.clip else ""
    yield (
        "Optimiser",
        f"AdamW, {optimizer.schedule} learning rate {optimizer.learning_rate:g}{warmup}, betas "
        f"{optimizer.betas[0]:g} and {optimizer.betas[1]:g}, weight decay {optimizer.weight_decay:g}{clip}",
    )
    if recipe.ema is not None:
        yield "Weights", f"moving average, decay {recipe.ema.decay:g} a step"
    precision = run.told.get("precision", recipe.precision)
    changes = [f"{rate:g} from image {first:,} on" for first, rate, _ in run.told.get("rates", [])]
    if len(changes) > 1:
        yield "Learning rates", ", ".join(changes)
    yield (
        "Precision",
        {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
        + ("" if precision == "fp32" else " with float32 master weights"),
    )
    yield "Stored as", "float16" if recipe.export.half else "float32"
    yield "Hardware", str(run.told.get("hardware", "not recorded"))
    yield "Duration", "not recorded" if run.seconds is None else duration(run.seconds)
    yield "Libraries", str(run.told.get("libraries", "not recorded"))


def _objective(recipe: Recipe) -> str:
    objective = recipe.objective
    values = objective.model_dump(exclude={"kind", "network", "vision", "text"})
    return ", ".join([objective.kind, *_words(values)])


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        label = key.replace("_", " ")
        if isinstance(value, Mapping) and key != "class_model":
            yield f"{label} ({', '.join(_words(value))})"
        elif key == "class_model":
            yield f"class images by {'the teacher' if value is None else shown_name(value)}"
        elif key == "train_text_encoder":
            yield from ["the text encoder learns, too"] if value else []
        elif isinstance(value, bool):
            yield label if value else f"no {label}"
        elif isinstance(value, list | tuple):
            yield f"{label} {' to '.join(f'{item:g}' for item in value)}"
        elif isinstance(value, int | float):
            yield f"{label} {value:g}"
        elif value is not None:
            yield f"{label} {code(str(value))}" if " " in str(value) else f"{label} {markdown(str(value))}"


def _data(recipe: Recipe, run: Run) -> str:
    data = recipe.data
    pairs = run.pairs or data.pairs
    what = {"folder": "a folder of pictures", "webdataset": "WebDataset shards", "scenes": "scenes"}.get(
        data.kind, ""
    )
    if data.kind == "huggingface":
        here = data.name is not None and (is_local(data.name) or Path(data.name).exists())
        name = data.name if data.name and not here else "a dataset in Hugging Face's form"
        what = f"{name}, split {data.split}" + (f", revision {data.revision}" if data.revision else "")
    elif data.kind == "scenes":
        what = f"scenes, the embedded dataset, from index {data.first:,} on"
        if data.layouts:
            what += f", of the layout {' or '.join(data.layouts)} alone"
        if data.domain != "all":
            what += f", with {data.domain} alone"
    counted = f"{pairs:,} pairs of {what}" if pairs else what
    return counted + (f" ({run.skipped:,} left out)" if run.skipped else "")


def log_table(run: Run) -> Iterator[str]:
    """Tell the beginning and the end of the training log."""
    lines = read_log(run.folder)
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    if not rates:
        return
    reports = [line for line in lines if "loss" in line]
    told = ("seen", "images_per_second", "seconds", "memory_gib", "lr")
    names = [name for name in reports[-1] if name not in told]
    yield ""
    yield f"From the training log (median {statistics.median(rates):,.4g} images a second):"
    yield ""
    yield "| images | " + " | ".join(name.replace("_", " ") for name in names) + " |"
    yield "|" + "---:|" * (len(names) + 1)
    chosen = sorted({round(part * (len(reports) - 1) / 4) for part in range(5)})
    for report in (reports[place] for place in chosen):
        values = " | ".join(f"{report[name]:.4g}" if name in report else "" for name in names)
        yield f"| {report['seen']:,} | {values} |"


def shown_name(spec: Any, *, code: bool = True) -> str:
    """Name a checkpoint to a reader elsewhere; a folder of this machine by its last name alone."""
    parts = list(spec.values()) if isinstance(spec, Mapping) else [str(spec)]
    named = [Path(part).name if is_local(part) else part for part in parts]
    mark = "`" if code else ""
    if len(named) == 2:
        return f"{mark}{named[1]}{mark} on {mark}{named[0]}{mark}" if code else named[0]
    return f"{mark}{named[0]}{mark}"


def is_local(spec: str) -> bool:
    """Say whether a checkpoint or a dataset is named by a folder of this machine."""
    return spec.startswith((".", "/", "~"))
