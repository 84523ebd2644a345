"""Read a recipe: everything that decides how one checkpoint is trained, typed and checked.

A recipe is a YAML file. Its figures carry their origin: ``sources`` says where each was published, ``unstated``
why we chose what the source does not say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pytest_sdbench.card_schema import suggestion
from training.errors import TrainingError
from training.recipe_errors import COMMAND_LINE, Problem, explain, raise_all, schema_keys

RECIPES = Path(__file__).parent / "recipes"


def _spec(value: Any) -> Any:
    """Let through what names a checkpoint: text, or a base and a U-Net."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Mapping) and set(value) == {"base", "unet"}:
        if all(isinstance(part, str) and part.strip() for part in value.values()):
            return dict(value)
    raise ValueError(
        "not a checkpoint: write org/name@revision, embedded:NAME, a folder, or {base: ..., unet: ...}"
    )


def _listed(value: Any) -> Any:
    """Turn a YAML list into a tuple, and a lone text into a tuple of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Word = Annotated[str, Field(min_length=1)]
Words = Annotated[tuple[Word, ...], BeforeValidator(_listed)]
Count = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Memory = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Range = Annotated[tuple[Finite, Finite], BeforeValidator(_listed)]
Spec = Annotated[str | dict[str, str], BeforeValidator(_spec)]
"""A checkpoint, as in cards: ``org/name@revision``, ``embedded:NAME``, a folder (relative to where the command
runs), or ``{base: ..., unet: ...}``."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Networks(_Part):
    """The networks of a checkpoint that is trained from scratch."""

    unet: dict[str, Any]
    """Constructor arguments of diffusers' ``UNet2DConditionModel``."""
    text_encoder: dict[str, Any] | None = None
    """Constructor arguments of transformers' ``CLIPTextConfig``; none: that of the checkpoint of ``vae``."""
    vae: Spec
    """The checkpoint that lends its autoencoder."""


class Student(_Part):
    """What learns, and what it starts from."""

    remove: Literal["none", "base", "small", "tiny"] = "none"
    """The blocks that are taken out of the teacher's U-Net."""
    init: Literal["teacher", "random"] = "teacher"
    networks: Networks | None = None


class Prediction(_Part):
    """Learn to predict the noise, or the velocity where the scheduler says so."""

    kind: Literal["prediction"]
    caption_dropout: Share = 0.0
    min_snr: Positive | None = None
    """Gamma of the min-SNR weights; none: every timestep counts the same."""
    train_text_encoder: bool = False


class Weights(_Part):
    """What each loss of a distillation counts."""

    task: NotNegative
    output: NotNegative
    feature: NotNegative


class Distillation(_Part):
    """Learn from the noise, from the teacher's prediction and from the output of its blocks."""

    kind: Literal["distillation"]
    pairing: Literal["bk-sdm", "segmind"]
    weights: Weights
    caption_dropout: Share = 0.0


class Consistency(_Part):
    """Learn to jump from any point of the teacher's guided trajectory to its end."""

    kind: Literal["consistency"]
    grid_steps: Count = 50
    guidance: Range = (5.0, 15.0)
    """Smallest and largest guidance scale that the student learns."""
    target_decay: Memory = 0.95
    huber: Positive = 1e-3
    timestep_scaling: Positive = 10.0
    sigma_data: Positive = 0.5
    embedding: Count = 256
    """Width of the embedding of the guidance scale."""


class Lora(_Part):
    """Low-rank updates in place of the weights themselves."""

    rank: Count
    alpha: Positive


class DreamBooth(_Part):
    """Learn one subject from a few pictures, and keep the class it belongs to."""

    kind: Literal["dreambooth"]
    prompt: Word
    class_prompt: Word
    class_images: Whole = 200
    class_model: Spec | None = None
    """The checkpoint that draws the class images; none: the teacher."""
    prior_weight: NotNegative = 1.0
    train_text_encoder: bool = True
    lora: Lora | None = None


class Autoencoder(_Part):
    """Learn to reconstruct pictures through latents."""

    kind: Literal["autoencoder"]
    squared_weight: NotNegative
    kl_weight: NotNegative
    network: dict[str, Any]


class Classifier(_Part):
    """Learn to read the objects of a scene."""

    kind: Literal["classifier"]
    network: dict[str, Any]


class Clip(_Part):
    """Learn to tell the caption of a picture from other captions and from near misses."""

    kind: Literal["clip"]
    near_misses: Whole
    embed_dim: Count
    vision: dict[str, Any]
    text: dict[str, Any]


Objective = Annotated[
    Prediction | Distillation | Consistency | DreamBooth | Autoencoder | Classifier | Clip,
    Field(discriminator="kind"),
]


class _Data(_Part):
    pairs: Count | None = None
    """Train on the first so many pairs; none: on all."""
    resolution: Count | None = None
    """Pixels of a side, after the short side is resized and the centre cropped; none: pictures as they are."""
    flip: bool = False
    cache: bool = False
    """Encode every picture once and keep the latents."""
    cache_text: bool = False
    """Encode every caption once and keep the states of the text encoder."""
    empty_captions: Literal["error", "keep", "skip"] = "error"
    upscale: bool = False
    """Enlarge pictures that are smaller than ``resolution`` instead of refusing them."""


class FolderData(_Data):
    """A folder of pictures with a file of captions."""

    kind: Literal["folder"]
    path: Word | None = None


class WebDatasetData(_Data):
    """Tar files of pictures and captions, here or behind a URL."""

    kind: Literal["webdataset"]
    urls: Words | None = None


class HuggingFaceData(_Data):
    """A dataset of the hub."""

    kind: Literal["huggingface"]
    name: Word | None = None
    split: Word = "train"
    image_column: Word = "image"
    caption_column: Word = "text"
    revision: Word | None = None


class ScenesData(_Data):
    """Procedural scenes, a pure function of their index."""

    kind: Literal["scenes"]
    first: Whole = 0
    """The training scene that is the first pair."""
    layouts: Words | None = None
    """Only scenes of these layouts; none: of all."""


Data = Annotated[FolderData | WebDatasetData | HuggingFaceData | ScenesData, Field(discriminator="kind")]


class Schedule(_Part):
    """How long, in which portions."""

    steps: Count
    batch: Count
    """Images of one step, over all processes."""
    micro_batch: Count
    """Images that one process computes at once."""
    seed: Whole = 0


class Optimizer(_Part):
    """AdamW."""

    learning_rate: Positive
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Whole = 0
    betas: Annotated[tuple[Memory, Memory], BeforeValidator(_listed)] = (0.9, 0.999)
    weight_decay: NotNegative = 0.01
    epsilon: Positive = 1e-8
    clip: Positive | None = 1.0
    """Largest norm of the gradient; none: any."""


class Ema(_Part):
    """A moving average of the weights, which is what is exported."""

    decay: Decay
    """Of one step, after a ramp: min(decay, (1 + step) / (10 + step))."""


class Speed(_Part):
    """What changes how fast a run is, and how much memory it takes, not what it learns."""

    channels_last: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False


class Watch(_Part):
    """How a run is followed."""

    save_minutes: Positive = 10.0
    report_seconds: Positive = 20.0
    preview_images: Whole = 0
    """Images between two grids of the fixed prompts; 0: none."""
    prompts: Words = ()
    guidance: NotNegative = 7.5
    sampling_steps: Count = 25
    validation_images: Whole = 0
    """Images between two measurements of the loss at fixed timesteps; 0: none."""
    validation_rows: Count = 64
    trackers: Annotated[
        tuple[
            Literal[
                "tensorboard",
                "wandb",
                "mlflow",
                "comet_ml",
                "aim",
                "clearml",
                "dvclive",
                "swanlab",
                "trackio",
            ],
            ...,
        ],
        BeforeValidator(_listed),
    ] = ()


class Scheduler(_Part):
    """The sampler that is exported with the weights."""

    class_: Word = Field(alias="class")
    """One of diffusers' scheduler classes."""
    config: dict[str, Any] = Field(default_factory=dict)
    """What differs from the teacher's scheduler."""


class Export(_Part):
    """What is written when the training is done."""

    unet_only: bool = False
    scheduler: Scheduler | None = None
    """None: the teacher's."""
    license: Word | None = None
    """None: that of the teacher's card."""
    half: bool = True
    """Weights as float16."""


class Recipe(_Part):
    """How one checkpoint is trained."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: Word
    teacher: Spec | None = None
    """None: from scratch."""
    student: Student = Student()
    objective: Objective
    data: Data
    schedule: Schedule
    optimizer: Optimizer
    ema: Ema | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    speed: Speed = Speed()
    watch: Watch = Watch()
    export: Export = Export()
    sources: dict[str, Word] = Field(default_factory=dict)
    """Where the figure of a dotted key, or of all keys below it, is published."""
    unstated: dict[str, Word] = Field(default_factory=dict)
    """Why a figure is what it is where the source does not say."""

    @property
    def images(self) -> int:
        """Images of the whole run, repeats counted."""
        return self.schedule.steps * self.schedule.batch


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a file, or a shipped one by its name, with ``key=value`` overrides.

    Keys of overrides are dotted (``optimizer.learning_rate=1e-4``), values YAML. Raise TrainingError that names
    file (or "command line"), key, what was found and what to do; it lists everything that is wrong.
    """
    path = find_recipe(name_or_path)
    return parse_recipe(_read(path), file=path, overrides=overrides)


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the file of a recipe; raise TrainingError, with the names there are, if there is none."""
    text = str(name_or_path)
    is_name = isinstance(name_or_path, str) and "/" not in text and not text.endswith((".yaml", ".yml"))
    path = RECIPES / f"{text}.yaml" if is_name else Path(text).expanduser()
    if path.is_file():
        return path
    known = recipe_names()
    raise TrainingError(
        "no such recipe",
        file=None if is_name else path,
        found=text,
        remedy=f"{suggestion(path.stem, known)}Give a file, or one of: {', '.join(known)}",
    )


def parse_recipe(
    values: Mapping[str, Any], *, file: str | Path = "recipe", overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe that plain values mean; raise TrainingError as ``load_recipe`` does."""
    values, given = _override(values, overrides)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise_all(explain(error, Recipe, values, given), file)
    raise_all([problem.place(given) for problem in _contradictions(recipe)], file)
    return recipe


def require_data(recipe: Recipe) -> None:
    """Raise TrainingError if the recipe leaves it to its user to say where the training data is."""
    data = recipe.data
    missing = {
        "folder": ("data.path", "a folder of pictures", "data.path=FOLDER"),
        "webdataset": ("data.urls", "tar files or their URLs", "'data.urls=shards/{00000..00099}.tar'"),
        "huggingface": ("data.name", "a dataset of the hub", "data.name=ORG/NAME"),
    }.get(data.kind)
    if missing is None:
        return
    key, what, example = missing
    if getattr(data, key.removeprefix("data.")):
        return
    origin = recipe.sources.get("data") or recipe.unstated.get("data")
    raise TrainingError(
        "the recipe needs training data that does not come with it",
        file=recipe.name,
        key=key,
        remedy=f"Name {what}: {example}" + (f". Published data: {origin}" if origin else ""),
    )


def _read(path: Path) -> Mapping[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError("cannot be read", file=path, found=str(error), remedy="Check the file") from error
    except YAMLError as error:
        line = error.problem_mark.line + 1 if isinstance(error, MarkedYAMLError) and error.problem_mark else 0
        what = (error.problem if isinstance(error, MarkedYAMLError) else None) or str(error)
        twice = isinstance(error, DuplicateKeyError)
        raise TrainingError(
            "a key stands twice" if twice else "not valid YAML",
            file=f"{path}, line {line}" if line else path,
            found=" ".join(what.split(" with value ")[0].split()) if twice else what,
            remedy="Keep one of the two" if twice else "Correct the YAML",
        ) from error
    if not isinstance(values, Mapping):
        raise TrainingError(
            "not a recipe", file=path, found=type(values).__name__, remedy="Write `key: value` lines"
        )
    return values


def _override(values: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values with the overrides in their places, and the dotted keys that they set."""
    from copy import deepcopy

    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    changed, given = deepcopy(dict(values)), []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key or not all(key.split(".")):
            raise TrainingError(
                "not an override",
                file=COMMAND_LINE,
                found=override,
                remedy="Write key=value, such as optimizer.learning_rate=1e-4",
            )
        try:
            value = YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise TrainingError(
                "the value is not valid YAML",
                file=COMMAND_LINE,
                key=key,
                found=text,
                remedy="Put quotes around it: 'key=\"...\"'",
            ) from error
        *parents, last = key.split(".")
        place = changed
        for position, part in enumerate(parents):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
            if not isinstance(place, dict):
                raise TrainingError(
                    f"{'.'.join(parents[: position + 1])} has no parts",
                    file=COMMAND_LINE,
                    key=key,
                    found=place,
                    remedy=f"Give it as a whole: {'.'.join(parents[: position + 1])}=...",
                )
        place[last] = value
        given.append(key)
    _disown(changed, given)
    return changed, given


def _disown(values: dict[str, Any], given: Sequence[str]) -> None:
    """Take back what the recipe says about the origin of figures that were replaced."""
    for name in ("sources", "unstated"):
        notes = values.get(name)
        if isinstance(notes, dict):
            values[name] = {
                note: text
                for note, text in notes.items()
                if not any(note == key or str(note).startswith(f"{key}.") for key in given)
            }
    notes = values.setdefault("unstated", {})
    if isinstance(notes, dict):
        notes.update(
            {
                key: "set on the command line"
                for key in given
                if key.split(".")[0] not in ("sources", "unstated")
            }
        )


def _contradictions(recipe: Recipe) -> list[Problem]:
    """Return what is wrong with values that are each fine alone."""
    return [*_of_schedule(recipe), *_of_networks(recipe), *_of_data(recipe), *_of_notes(recipe)]


def _of_schedule(recipe: Recipe) -> list[Problem]:
    schedule, optimizer, watch, found = recipe.schedule, recipe.optimizer, recipe.watch, []
    if schedule.batch % schedule.micro_batch:
        divisors = [n for n in range(1, schedule.micro_batch) if schedule.batch % n == 0]
        found.append(
            Problem(
                "schedule.micro_batch",
                f"does not divide the batch of {schedule.batch}",
                schedule.micro_batch,
                f"Take {divisors[-1] if divisors else schedule.batch}, or another batch",
            )
        )
    if optimizer.warmup_steps > schedule.steps:
        found.append(
            Problem(
                "optimizer.warmup_steps",
                f"longer than the run of {schedule.steps} steps",
                optimizer.warmup_steps,
                "Shorten it, or raise schedule.steps",
            )
        )
    if watch.preview_images and not watch.prompts:
        found.append(
            Problem(
                "watch.prompts", "no prompts to draw a preview of", None, "Give some, or preview_images: 0"
            )
        )
    return found


def _of_networks(recipe: Recipe) -> list[Problem]:
    objective, student, found = recipe.objective, recipe.student, []
    alone = objective.kind in ("autoencoder", "classifier", "clip")
    if recipe.teacher is None:
        if objective.kind in ("consistency", "distillation", "dreambooth"):
            found.append(
                Problem("teacher", f"{objective.kind} needs one", None, "Name a checkpoint: teacher=ORG/NAME")
            )
        if student.remove != "none":
            found.append(
                Problem(
                    "student.remove",
                    "there is no teacher to take blocks out of",
                    student.remove,
                    "Name a teacher, or leave the key out",
                )
            )
        if objective.kind == "prediction" and student.networks is None:
            found.append(
                Problem(
                    "student.networks",
                    "without a teacher nothing says which networks to train",
                    None,
                    "Give student.networks (unet, text_encoder, vae), or name a teacher",
                )
            )
    elif student.networks is not None or alone:
        what = "the networks come from the recipe" if alone or student.networks else ""
        found.append(
            Problem("teacher", f"{what} and not from a teacher", recipe.teacher, "Leave one of both out")
        )
    if alone and (student != Student()):
        found.append(Problem("student", f"{objective.kind} trains no U-Net", None, "Leave the key out"))
    if objective.kind in ("consistency", "dreambooth"):
        for key, value in (("remove", student.remove), ("init", student.init)):
            if value not in ("none", "teacher"):
                found.append(
                    Problem(
                        f"student.{key}",
                        f"{objective.kind} starts from the teacher as it is",
                        value,
                        "Leave the key out; make the smaller student first, by distillation",
                    )
                )
    if objective.kind == "distillation":
        if recipe.teacher is not None and student.remove == "none" and student.init == "teacher":
            found.append(
                Problem(
                    "student.remove",
                    "the student is the teacher: there is nothing to distil",
                    "none",
                    "Take base, small or tiny",
                )
            )
        if not any((objective.weights.task, objective.weights.output, objective.weights.feature)):
            found.append(Problem("objective.weights", "all are zero", None, "Give one of them some weight"))
    if objective.kind == "consistency" and objective.guidance[0] > objective.guidance[1]:
        found.append(
            Problem(
                "objective.guidance", "not a range", list(objective.guidance), "Write [smallest, largest]"
            )
        )
    if objective.kind == "consistency" and objective.embedding % 2:
        found.append(Problem("objective.embedding", "not even", objective.embedding, "Take an even width"))
    if objective.kind == "dreambooth" and objective.prior_weight and not objective.class_images:
        found.append(
            Problem(
                "objective.class_images",
                f"a prior weight of {objective.prior_weight:g} needs class images",
                0,
                "Give a number such as 200, or prior_weight: 0",
            )
        )
    return found


def _of_data(recipe: Recipe) -> list[Problem]:
    objective, data, found = recipe.objective, recipe.data, []
    if data.cache and objective.kind in ("autoencoder", "classifier", "clip"):
        found.append(
            Problem("data.cache", f"{objective.kind} learns from pictures", True, "Write cache: false")
        )
    if data.cache_text and not data.cache:
        found.append(
            Problem("data.cache_text", "text is cached together with latents", True, "Write cache: true too")
        )
    if data.cache_text and getattr(objective, "train_text_encoder", False):
        found.append(
            Problem(
                "data.cache_text",
                "the text encoder learns, so its states change",
                True,
                "Write cache_text: false, or objective.train_text_encoder: false",
            )
        )
    return found


def _of_notes(recipe: Recipe) -> list[Problem]:
    known, found = schema_keys(recipe), []
    for name, notes in (("sources", recipe.sources), ("unstated", recipe.unstated)):
        found += [
            Problem(
                f"{name}.{key}",
                "not a key of this recipe",
                key,
                f"{suggestion(key, known)}Write a dotted key, such as optimizer.learning_rate",
            )
            for key in notes
            if key not in known
        ]
    found += [
        Problem(f"unstated.{key}", "has a source too", key, "Keep one of both")
        for key in recipe.unstated
        if key in recipe.sources
    ]
    return found


def numbers(recipe: Recipe) -> dict[str, float]:
    """Return every number of a recipe by its dotted key, defaults included; those of lists under the list's key."""
    found: dict[str, float] = {}

    def collect(value: Any, key: str) -> None:
        if isinstance(value, Mapping):
            for name, part in value.items():
                collect(part, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list | tuple):
            for part in value:
                collect(part, key)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[key] = value

    collect(recipe.model_dump(by_alias=True, exclude={"sources", "unstated"}), "")
    return found
