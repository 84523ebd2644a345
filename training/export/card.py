"""Write the card of a trained checkpoint: how it was made, under which licence, how to verify it."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.environment import versions
from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import find_card, read_card
from pytest_sdbench.cards.draft import base_card, is_of_scenes, sdbench_block
from pytest_sdbench.cards.edit import scalar
from pytest_sdbench.cards.front_matter import BLOCK, parse, read_text
from pytest_sdbench.models.checkpoint import EMBEDDED, Checkpoint, resolve, scheduler_class
from pytest_sdbench.models.hub import HUB_ID
from training.recipes.schema import Recipe
from training.students.networks import Parts

if TYPE_CHECKING:
    from training.export.facts import Run

Spec = str | dict[str, str]

REMOVED = {
    "base": "the second residual-attention pair of every level, going down and going up",
    "small": "the second residual-attention pair of every level, going down and going up, and the mid block",
    "tiny": "the second residual-attention pair of every level, the mid block and the whole innermost level",
}
_KINDS = {
    "prediction": ("fine-tuned", "learned from noise that is added to latents"),
    "distillation": (
        "distilled",
        "learned from the noise, from the predictions of the teacher and from its features",
    ),
    "consistency": ("consistency-distilled", "learned to jump to the end of the teacher's guided trajectory"),
    "dreambooth": (
        "personalised",
        "learned one subject from a few pictures, keeping the class it belongs to",
    ),
}
_TAGS = {
    "prediction": (),
    "distillation": ("knowledge-distillation",),
    "consistency": ("latent-consistency-model",),
    "dreambooth": ("dreambooth",),
}


def card_spec(recipe: Recipe, near: Path) -> Spec:
    """Return how the card of a checkpoint in the folder `near` names it."""
    if not recipe.export.unet_only:
        return "./"
    return {"base": _lender(recipe, near), "unet": "./"}


def write_card(folder: Path, recipe: Recipe, run: Run, *, name: str, near: Path, parts: Parts) -> Path:
    """Write README.md into the folder of a checkpoint that will lie at `near`, and return it.

    Adapters alone, without networks that could be measured, get a card without an ``sdbench`` block.
    """
    spec = card_spec(recipe, near)
    whole = (folder / "unet").is_dir()
    block = None
    if whole:
        checkpoint = resolve(spec, near=folder)
        block = sdbench_block(
            checkpoint,
            place=spec,
            shown="README.md",
            base=teacher_card(recipe),
            protocols=protocols_of(checkpoint, recipe),
        )
    licence = teacher_license(recipe, parts)
    text = "\n".join(
        [*_front(recipe, licence, block), "", *_body(recipe, run, licence, spec, whole, name), ""]
    )
    path = folder / "README.md"
    path.write_text(text, encoding="utf-8")
    return path


def teacher_card(recipe: Recipe) -> str | None:
    """Return the packaged card of the teacher; where it is a U-Net on a base, rather that of the U-Net."""
    teacher = recipe.teacher
    if isinstance(teacher, Mapping):
        return base_card(teacher, teacher["unet"], teacher["base"])
    return base_card(teacher)


def teacher_license(recipe: Recipe, parts: Parts | None = None) -> str | None:
    """Return the licence of the teacher: its packaged card's, or that in the README.md of its folder."""
    name = teacher_card(recipe)
    if name is not None:
        return read_card(find_card(name, reference() / "cards")).license
    checkpoint = parts.checkpoint if parts is not None and recipe.teacher is not None else None
    folders = [] if checkpoint is None else _folders(checkpoint)
    for folder in folders:
        readme = folder / "README.md"
        if not readme.is_file():
            continue
        try:
            text = read_text(readme)
            found = parse(readme, text).data.get("license") if BLOCK.match(text) else None
        except CardError:
            continue  # what is wrong with the teacher's card is no reason to lose a training
        if isinstance(found, str):
            return found
    return None


def protocols_of(checkpoint: Checkpoint, recipe: Recipe) -> list[str]:
    """Return the protocols of scenes that fit the sampler and the scenes that were trained on."""
    if not is_of_scenes(checkpoint):
        return []
    scheduler = scheduler_class(checkpoint)
    if scheduler == "LCMScheduler":
        return ["scenes-lcm4-quick", "scenes-lcm4-5k"]
    if scheduler != "PNDMScheduler":
        return []
    layouts = getattr(recipe.data, "layouts", None)
    family = "scenes-portrait" if layouts == ("one",) else "scenes"
    return [f"{family}-quick", f"{family}-5k"]


def _folders(checkpoint: Checkpoint) -> list[Path]:
    """Return where the card of a checkpoint may lie; that of its U-Net first."""
    unet = [checkpoint.unet_folder, checkpoint.unet_folder.parent] if checkpoint.unet_folder else []
    return [*unet, checkpoint.folder]


def _lender(recipe: Recipe, near: Path) -> str:
    """Return the checkpoint that lends a U-Net its other components, as a card at `near` names it."""
    networks = recipe.student.networks
    spec = recipe.teacher if recipe.teacher is not None else networks.vae if networks is not None else None
    assert spec is not None, "a U-Net alone, and nothing to stand on"
    base = spec["base"] if isinstance(spec, Mapping) else spec
    if base.startswith(EMBEDDED) or re.fullmatch(HUB_ID, base):
        return base
    # A folder is meant from where the command runs; a card tells it from where the card lies.
    place = Path(os.path.relpath(Path(base).expanduser().resolve(), near.resolve())).as_posix()
    return place if place.startswith(".") else f"./{place}"


# --- the front matter --------------------


def _front(recipe: Recipe, licence: str | None, block: str | None) -> Iterator[str]:
    yield "---"
    stated = recipe.export.license or licence
    if stated is None:
        yield "# license: ID  # the teacher's, whose card was not at hand: it goes with this checkpoint"
    else:
        yield f"license: {stated if re.fullmatch(r'[a-z][a-z0-9+.-]+', stated) else scalar(stated)}"
    yield "library_name: diffusers"
    yield "pipeline_tag: text-to-image"
    if hub := _hub_name(recipe.teacher):
        yield f"base_model: {hub}"
    adapters = getattr(recipe.objective, "lora", None) is not None
    tags = ["stable-diffusion", *_TAGS.get(recipe.objective.kind, ()), *(["lora"] if adapters else [])]
    yield f"tags: [{', '.join(tags)}]"
    if block is not None:
        yield block
    yield "---"


def _hub_name(spec: Any) -> str | None:
    if isinstance(spec, Mapping):
        spec = spec["unet"]
    name = str(spec or "").partition("@")[0]
    return name if not _is_local(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def _is_local(spec: str) -> bool:
    return spec.startswith((".", "/", "~"))


# --- the body --------------------


def _body(recipe: Recipe, run: Run, licence: str | None, spec: Spec, whole: bool, name: str) -> Iterator[str]:
    done, how = _KINDS.get(recipe.objective.kind, ("trained", "was trained"))
    if recipe.teacher is None:
        done, origin = "trained from scratch", ""
    else:
        origin = f" from {_told(recipe.teacher)}"
    yield f"# {recipe.title}"
    yield ""
    yield f"A text-to-image latent diffusion model, {done}{origin}: it {how}."
    yield ""
    yield from (f"- {label}: {text}" for label, text in _facts(recipe, run))
    yield ""
    yield from _licence(recipe, licence)
    yield from _use(recipe, spec, whole, name)
    yield "## How it was made"
    yield ""
    yield f"`python -m training {recipe.name}` rebuilds it. Its figures, and where they come from:"
    yield ""
    yield from (f"- `{key}`: {text}" for key, text in recipe.sources.items())
    if recipe.unstated:
        yield ""
        yield "What no source states, and why it is as it is:"
        yield ""
        yield from (f"- `{key}`: {text}" for key, text in recipe.unstated.items())
    yield from _log(run)


def _facts(recipe: Recipe, run: Run) -> Iterator[tuple[str, str]]:
    schedule, optimizer, data = recipe.schedule, recipe.optimizer, recipe.data
    yield "Recipe", f"`{recipe.name}`"
    if recipe.teacher is not None:
        learns = recipe.objective.kind in ("prediction", "dreambooth") and recipe.student.remove == "none"
        yield "Fine-tuned from" if learns else "Teacher", _told(recipe.teacher)
    if recipe.student.remove != "none":
        yield "Blocks removed", f"`{recipe.student.remove}`: {REMOVED[recipe.student.remove]}"
        start = "the teacher's weights" if recipe.student.init == "teacher" else "random weights"
        yield "Started from", start
    yield "Objective", _objective(recipe)
    yield "Training data", _data(recipe, run)
    if data.resolution is not None:
        flipped = ", mirrored at random" if data.flip else ""
        yield "Resolution", f"{data.resolution} x {data.resolution}{flipped}"
    steps = run.seen // schedule.batch
    planned = "" if run.seen >= recipe.images else f" of {schedule.steps:,} planned"
    yield "Steps", f"{steps:,}{planned}"
    yield "Batch", f"{schedule.batch:,} ({schedule.micro_batch:,} at once in a process)"
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
    yield (
        "Precision",
        {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[recipe.precision]
        + ("" if recipe.precision == "fp32" else " with float32 master weights"),
    )
    yield "Stored as", "float16" if recipe.export.half else "float32"
    yield "Hardware", run.hardware
    yield "Duration", _duration(run.seconds)
    yield "Libraries", ", ".join(f"{library} {number}" for library, number in _libraries().items())


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
            yield f"class images by {'the teacher' if value is None else _told(value)}"
        elif key == "train_text_encoder":
            yield from ["the text encoder learns, too"] if value else []
        elif isinstance(value, bool):
            yield label if value else f"no {label}"
        elif isinstance(value, list | tuple):
            yield f"{label} {' to '.join(f'{item:g}' for item in value)}"
        elif isinstance(value, int | float):
            yield f"{label} {value:g}"
        elif value is not None:
            yield f'{label} "{value}"' if " " in str(value) else f"{label} {value}"


def _data(recipe: Recipe, run: Run) -> str:
    data = recipe.data
    pairs = run.pairs or data.pairs
    what = {"folder": "a folder of pictures", "webdataset": "WebDataset shards", "scenes": "scenes"}.get(
        data.kind, ""
    )
    if data.kind == "huggingface":
        name = data.name if data.name and not _is_local(data.name) else "a dataset in Hugging Face's form"
        what = f"{name}, split {data.split}" + (f", revision {data.revision}" if data.revision else "")
    elif data.kind == "scenes":
        what = f"scenes, the embedded dataset, from index {data.first:,} on"
        if data.layouts:
            what += f", of the layout {' or '.join(data.layouts)} alone"
    counted = f"{pairs:,} pairs of {what}" if pairs else what
    return counted + (f" ({run.skipped:,} corrupt ones left out)" if run.skipped else "")


def _licence(recipe: Recipe, licence: str | None) -> Iterator[str]:
    stated = recipe.export.license or licence
    if recipe.teacher is not None and any("rail" in (one or "").lower() for one in (licence, stated)):
        rail = licence if licence and "rail" in licence.lower() else stated
        yield (
            f"Licence: the teacher is under `{rail}`. It passes to derivatives, distilled ones among them: "
            "its use restrictions (Attachment A of the licence) apply to this checkpoint, and have to be "
            "passed on with it."
        )
    elif stated is None:
        yield (
            "Licence: unknown, since the teacher's card was not at hand; "
            "that of the teacher goes with this checkpoint."
        )
    else:
        yield f"Licence: `{stated}`"
    yield ""


def _use(recipe: Recipe, spec: Spec, whole: bool, name: str) -> Iterator[str]:
    """Say how to draw with it."""
    if getattr(recipe.objective, "lora", None) is not None and not whole:
        base = _told(recipe.teacher, code=False)
        lines = [
            f'pipeline = DiffusionPipeline.from_pretrained("{base}")',
            f'pipeline.load_lora_weights("{name}")',
        ]
    elif isinstance(spec, Mapping):
        pair = json.dumps({"base": _shown_base(spec["base"]), "unet": f"./{name}"})
        lines = [f"pipeline = load_pipeline(resolve({pair}))"]
    else:
        lines = [f'pipeline = DiffusionPipeline.from_pretrained("{name}")']
    settings = f"num_inference_steps={recipe.watch.sampling_steps}, guidance_scale={recipe.watch.guidance:g}"
    prompt = json.dumps(recipe.watch.prompts[0]) if recipe.watch.prompts else '"..."'
    yield "```python"
    if isinstance(spec, Mapping) and whole:
        yield "from pytest_sdbench import load_pipeline, resolve"
    else:
        yield "from diffusers import DiffusionPipeline"
    yield ""
    yield from lines
    yield f"pipeline({prompt}, {settings}).images[0]"
    yield "```"
    yield ""


def _shown_base(base: str) -> str:
    return base if not base.startswith(".") else f"./{Path(base).name}"


def _log(run: Run) -> Iterator[str]:
    """Tell the beginning and the end of the training log."""
    lines = _reports(run.folder / "log.jsonl")
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


def _reports(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            report = json.loads(line)
        except ValueError:
            continue  # cut short by a kill
        if isinstance(report, dict) and "seen" in report:
            found.append(report)
    return found


def _told(spec: Any, *, code: bool = True) -> str:
    """Name a checkpoint to a reader elsewhere; a folder of this machine by its last name alone."""
    parts = list(spec.values()) if isinstance(spec, Mapping) else [str(spec)]
    named = [Path(part).name if _is_local(part) else part for part in parts]
    mark = "`" if code else ""
    if len(named) == 2:
        return f"{mark}{named[1]}{mark} on {mark}{named[0]}{mark}" if code else named[0]
    return f"{mark}{named[0]}{mark}"


def _libraries() -> dict[str, str]:
    found = versions()
    for library in ("accelerate", "peft"):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not recorded"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
