"""Write the card of a trained checkpoint: how it was made, under which licence, how to verify it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.paths import real, reference
from pytest_sdbench.cards.card import find_card, read_card
from pytest_sdbench.cards.draft import base_card, is_of_scenes, sdbench_block
from pytest_sdbench.cards.edit import scalar
from pytest_sdbench.cards.front_matter import BLOCK, parse, read_text
from pytest_sdbench.models.checkpoint import Checkpoint, resolve, scheduler_class
from pytest_sdbench.models.hub import HUB_ID
from pytest_sdbench.models.specs import EMBEDDED
from training.export.facts import Run, facts, is_local, log_table, shown_name
from training.recipes.load import OVERRIDDEN, load_recipe, recipe_names
from training.recipes.schema import Consistency, Distillation, DreamBooth, Recipe
from training.students.networks import Parts

Spec = str | dict[str, str]

_KINDS = {
    "prediction": "fine-tuned",
    "distillation": "distilled",
    "consistency": "consistency-distilled",
    "dreambooth": "personalised",
}
_TAGS = {
    "distillation": "knowledge-distillation",
    "consistency": "latent-consistency-model",
    "dreambooth": "dreambooth",
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


def teacher_license(recipe: Recipe, parts: Parts) -> str | None:
    """Return the licence of the teacher: its packaged card's, or that in the README.md of its folder."""
    name = teacher_card(recipe)
    if name is not None:
        return read_card(find_card(name, reference() / "cards")).license
    checkpoint = parts.checkpoint
    if checkpoint is None or recipe.teacher is None:
        return None
    unet = checkpoint.unet_folder
    for folder in [*([unet, unet.parent] if unet else []), checkpoint.folder]:  # the U-Net's own card first
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


def protocols_of(checkpoint: Checkpoint, recipe: Recipe) -> list[str] | None:
    """Return the protocols of scenes that fit the sampler and the scenes that were trained on.

    None for what knows other words: a draft names what fits its size.
    """
    if not is_of_scenes(checkpoint):
        return None
    scheduler = scheduler_class(checkpoint)
    if scheduler == "LCMScheduler":
        return ["scenes-lcm4-quick", "scenes-lcm4-5k"]
    if scheduler != "PNDMScheduler":
        return []
    if getattr(recipe.data, "domain", "all") == "faces":
        return ["scenes-portrait-quick", "scenes-portrait-5k"]
    # What it keeps of its teacher's pictures; of other prompts it is to draw others.
    beside = ["scenes-fidelity"] if teacher_card(recipe) is not None else []
    return ["scenes-quick", *beside, "scenes-5k"]


def _lender(recipe: Recipe, near: Path) -> str:
    """Return the checkpoint that lends a U-Net its other components, as a card at `near` names it."""
    networks = recipe.student.networks
    spec = recipe.teacher if recipe.teacher is not None else networks.vae if networks is not None else None
    assert spec is not None, "a U-Net alone, and nothing to stand on"
    base = spec["base"] if isinstance(spec, Mapping) else spec
    if base.startswith(EMBEDDED) or re.fullmatch(HUB_ID, base):
        return base
    # A folder is meant from where the command runs; a card tells it from where the card lies.
    place = Path(os.path.relpath(real(base), real(near))).as_posix()
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
    lora = "lora" if getattr(recipe.objective, "lora", None) is not None else None
    tags = filter(None, ["stable-diffusion", _TAGS.get(recipe.objective.kind), lora])
    yield f"tags: [{', '.join(tags)}]"
    if block is not None:
        yield block
    yield "---"


def _hub_name(spec: Any) -> str | None:
    if isinstance(spec, Mapping):
        spec = spec["unet"]
    name = str(spec or "").partition("@")[0]
    return name if not is_local(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


# --- the body --------------------


def _body(recipe: Recipe, run: Run, licence: str | None, spec: Spec, whole: bool, name: str) -> Iterator[str]:
    origin = "trained from scratch"
    if recipe.teacher:
        shown, afresh = shown_name(recipe.teacher), recipe.objective.kind == "prediction" and _anew(recipe)
        done = "trained from random weights, with parts" if afresh else _KINDS[recipe.objective.kind]
        origin = f"{done} {'of' if afresh else 'from'} {shown}"
    yield f"# {recipe.title}\n"
    yield f"A text-to-image latent diffusion model, {origin}: it {_learned(recipe)}.\n"
    yield from (f"- {label}: {text}" for label, text in facts(recipe, run))
    yield f"\n{_licence(recipe, licence)}\n"
    yield from _use(recipe, spec, whole, name)
    yield "\n## How it was made\n"
    changed = OVERRIDDEN in recipe.unstated.values()
    of_itself = recipe.teacher == f"embedded:{recipe.name}"  # what it makes is what it would start from
    if recipe.name in recipe_names() and recipe == load_recipe(recipe.name) and not of_itself:
        yield f"`python -m training {recipe.name}` rebuilds it. Its figures, and where they come from:\n"
    else:
        how = ", with what is told below as set on the command line" if changed else ""
        yield f"It was made by the recipe `{recipe.name}`{how}. Its figures, and where they come from:\n"
    yield from (f"- `{key}`: {text}" for key, text in recipe.sources.items())
    if recipe.unstated:
        yield "\nWhat no source states, and why it is as it is:\n"
        yield from (f"- `{key}`: {text}" for key, text in recipe.unstated.items())
    yield from log_table(run)


def _anew(recipe: Recipe) -> bool:
    return recipe.student.init == "random"


def _learned(recipe: Recipe) -> str:
    """Say what a model learned from, as far as that counted."""
    objective = recipe.objective
    if isinstance(objective, Distillation):
        weights = objective.weights
        sources = {
            "the noise": weights.task,
            "the teacher's predictions": weights.output,
            "the teacher's features": weights.feature,
        }
        *others, last = [source for source, weight in sources.items() if weight] or ["nothing"]
        return f"learned from {', '.join(others)} and {last}" if others else f"learned from {last}"
    if isinstance(objective, DreamBooth):
        keeps = (
            ", keeping the class it belongs to" if objective.class_images and objective.prior_weight else ""
        )
        return f"learned one subject from a few pictures{keeps}"
    if isinstance(objective, Consistency):
        return "learned to jump to the end of the teacher's guided trajectory"
    return "learned from noise that is added to latents"


def _prompt(recipe: Recipe) -> str:
    """Return the prompt of the example: for a subject one that calls it."""
    objective, prompts = recipe.objective, recipe.watch.prompts
    if isinstance(objective, DreamBooth):
        return next((prompt for prompt in prompts if objective.prompt in prompt), objective.prompt)
    return prompts[0] if prompts else "..."


def _licence(recipe: Recipe, licence: str | None) -> str:
    stated = recipe.export.license or licence
    rail = next((one for one in (licence, stated) if one and "rail" in one.lower()), None)
    if recipe.teacher is not None and rail is not None:
        whose = "the teacher is under " if rail == licence else ""
        return (
            f"Licence: {whose}`{rail}`. It passes to derivatives, distilled ones among them: "
            "its use restrictions (Attachment A of the licence) apply to this checkpoint, and have to be "
            "passed on with it."
        )
    if stated is None:
        return (
            "Licence: unknown, since the teacher's card was not at hand; "
            "that of the teacher goes with this checkpoint."
        )
    return f"Licence: `{stated}`"


def _use(recipe: Recipe, spec: Spec, whole: bool, name: str) -> Iterator[str]:
    """Say how to draw with it."""
    library = "from diffusers import DiffusionPipeline"
    loading = f'pipeline = DiffusionPipeline.from_pretrained("{name}")'
    if getattr(recipe.objective, "lora", None) is not None and not whole:
        base = shown_name(recipe.teacher, code=False)
        loading = f'pipeline = DiffusionPipeline.from_pretrained("{base}")\n'
        loading += f'pipeline.load_lora_weights("{name}")'
    elif isinstance(spec, Mapping):
        base = spec["base"]
        shown = f"./{Path(base).name}" if base.startswith(".") else base
        library = "from pytest_sdbench import load_pipeline, resolve"
        loading = f"pipeline = load_pipeline(resolve({json.dumps({'base': shown, 'unet': f'./{name}'})}))"
    settings = f"num_inference_steps={recipe.watch.sampling_steps}, guidance_scale={recipe.watch.guidance:g}"
    prompt = json.dumps(_prompt(recipe))
    yield f"```python\n{library}\n\n{loading}\npipeline({prompt}, {settings}).images[0]\n```"
