"""Describe a run before it is started: networks, steps, epochs, memory and disk."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

from pytest_sdbench.base.paths import told
from training.dry_run.memory import Amount, disk, memory
from training.dry_run.networks import Blueprint, blueprint
from training.errors import TrainingError
from training.recipes.load import require_data
from training.recipes.schema import Recipe

WIDTH = 24


def describe(recipe: Recipe, folder: Path) -> str:
    """Return the text of a dry run; load no weights and write nothing.

    Raise TrainingError where the processes of this launch do not divide the batch, or where the teacher is
    of a topology that no blocks can be removed from.
    """
    from training.run.processes import fsdp_is_wanted
    from training.run.step import Plan

    cut = Plan.of(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    plan = blueprint(recipe)
    sections = [
        f"{recipe.name}: {recipe.title}",
        _rows(_what(recipe, plan, folder)),
        "Networks\n" + _networks(plan),
        "Run\n" + _rows(_run(recipe, cut.micro, cut.parts, cut.world), indent=2),
        "Memory of each GPU\n"
        + _amounts(memory(recipe, plan, cut.micro, owners=cut.world if fsdp_is_wanted() else 1))
        + (_COUNTED if plan.student else _NOT),
        "Disk\n" + _amounts(disk(recipe, plan), total=recipe.data.pairs is not None or not recipe.data.cache),
    ]
    if plan.teacher is not None and recipe.student.remove != "none":
        from training.students.block_removal import account

        blocks = account(plan.teacher.unet, recipe.student.remove)
        sections.append("Blocks\n" + "\n".join(f"  {line}" for line in blocks.splitlines()))
    sections.append("Dry run: nothing was loaded, nothing was written.")
    return "\n\n".join(sections)


_NOT = "\n  Without activations: they are estimated for U-Nets alone."
_COUNTED = """
  Exact but for the activations, which are counted layer by layer. What lives for a moment only, workspaces
  and gaps of the allocator come on top, so leave room."""


def _what(recipe: Recipe, plan: Blueprint, folder: Path) -> list[tuple[str, str]]:
    student, random = recipe.student, recipe.teacher is None or recipe.student.init == "random"
    rows = [("teacher" if recipe.teacher else "networks", plan.origin)]
    if plan.teacher is not None:
        cut = "" if student.remove == "none" else f"blocks removed as in BK-SDM-{student.remove.title()}, "
        start = "random weights" if random else "the teacher's weights"
        rows.append(("student", f"{cut}starts from {start}"))
    rows += [("objective", _objective(recipe)), ("data", _data(recipe)), ("run folder", str(folder))]
    return rows


def _objective(recipe: Recipe) -> str:
    objective = recipe.objective
    if objective.kind == "distillation":
        weights = objective.weights
        return (
            f"distillation, pairs of layers as in {objective.pairing}; weights: noise {weights.task:g}, "
            f"output {weights.output:g}, features {weights.feature:g}"
        )
    if objective.kind == "consistency":
        low, high = objective.guidance
        return f"consistency on a grid of {objective.grid_steps} steps, guidance {low:g} to {high:g}"
    if objective.kind == "dreambooth":
        how = f"low-rank adapters of rank {objective.lora.rank}" if objective.lora else "all weights"
        return (
            f"DreamBooth, {how}; {objective.prompt!r}, prior {objective.prior_weight:g} with "
            f"{objective.class_images} images of {objective.class_prompt!r}"
        )
    return objective.kind


def _data(recipe: Recipe) -> str:
    data = recipe.data
    try:
        require_data(recipe)
    except TrainingError as error:
        where = f"to be named: {error.key}=..."
    else:
        named = getattr(data, "path", None) or getattr(data, "urls", None) or getattr(data, "name", None)
        where = ", ".join(map(told, named)) if isinstance(named, tuple) else told(named or "")
    words = [" ".join(filter(None, (data.kind, where)))]
    words.append(f"first {data.pairs:,} pairs" if data.pairs else "all pairs")
    words.append(f"{data.resolution} px" if data.resolution else "sizes as they are")
    words += ["half of them mirrored"] if data.flip else []
    words.append(
        "latents and text cached" if data.cache_text else "latents cached" if data.cache else "not cached"
    )
    return ", ".join(words)


def _networks(plan: Blueprint) -> str:
    lines = [f"  {'':<{WIDTH}}{'parameters':>14}{'tensors':>9}  "]
    for network in plan.networks:
        note = f", {network.note}" if network.note else ""
        lines.append(
            f"  {network.name:<{WIDTH}}{network.parameters:>14,}{network.tensors:>9,}  {network.role}{note}"
        )
    frozen = sum(network.parameters for network in plan.networks) - plan.learned
    lines.append(f"  {'together, learning':<{WIDTH}}{plan.learned:>14,}")
    lines.append(f"  {'together, fixed':<{WIDTH}}{frozen:>14,}")
    return "\n".join(line.rstrip() for line in lines)


def _run(recipe: Recipe, micro: int, parts: int, world: int) -> list[tuple[str, str]]:
    schedule, optimizer = recipe.schedule, recipe.optimizer
    processes = "1 process" if world == 1 else f"{world} processes"
    images = f"{schedule.batch:,} images" if schedule.batch > 1 else "1 image"
    cut = f"{images} = {processes} x {parts} in turn x {micro} at once"
    pairs, endless = recipe.data.pairs, recipe.data.kind == "scenes"
    unknown = "none: every scene is new" if endless else "unknown: data.pairs is not given"
    epochs = f"{recipe.images / pairs:,.1f} of {pairs:,} pairs" if pairs else unknown
    warmup = f"after {optimizer.warmup_steps:,} steps of warm-up" if optimizer.warmup_steps else "no warm-up"
    average = f"decay {recipe.ema.decay:g} a step" if recipe.ema else "none"
    speed = [name.replace("_", " ") for name, on in recipe.speed.model_dump().items() if on]
    return [
        ("steps", f"{schedule.steps:,}"),
        ("batch", cut),
        ("images", f"{recipe.images:,}"),
        ("epochs", epochs),
        ("learning rate", f"{optimizer.learning_rate:g}, {optimizer.schedule}, {warmup}"),
        ("moving average", average),
        ("precision", recipe.precision + ("" if recipe.precision == "fp32" else ", float32 master weights")),
        ("speed", ", ".join(speed) or "no switch is on"),
    ]


def _rows(rows: Sequence[tuple[str, str]], indent: int = 0) -> str:
    lines = []
    for label, text in rows:
        head = f"{' ' * indent}{label}".ljust(WIDTH + 2)
        lines += textwrap.wrap(text, 116, initial_indent=head, subsequent_indent=" " * (WIDTH + 2))
    return "\n".join(lines)


def _amounts(amounts: Sequence[Amount], *, total: bool = True) -> str:
    rows = list(amounts)
    if total and len(rows) > 1:
        rows.append(Amount("together", sum(amount.bytes for amount in amounts)))
    width = max(WIDTH, *(len(amount.label) + 2 for amount in rows))
    return "\n".join(
        f"  {amount.label:<{width}}{size(amount.bytes):>14}  {amount.note}".rstrip() for amount in rows
    )


def size(count: int) -> str:
    """Return a number of bytes with its unit, a power of 1024."""
    number, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1024, units[1:]
    return f"{number:.0f} {units[0]}" if units[0] == "B" else f"{number:,.1f} {units[0]}"
