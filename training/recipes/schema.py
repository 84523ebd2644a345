"""What may stand in a recipe: typed, frozen, and nothing unknown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _spec(value: Any) -> Any:
    """Let through what names a checkpoint: text, or a base and a U-Net."""
    if isinstance(value, str) and value.strip():
        return value
    pair = isinstance(value, Mapping) and set(value) == {"base", "unet"}
    if pair and all(isinstance(part, str) and part.strip() for part in value.values()):
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
"""A checkpoint, as in cards: ``org/name@revision``, ``embedded:NAME``, a folder (relative to where the
command runs), or ``{base: ..., unet: ...}``."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Networks(_Part):
    """The networks of a checkpoint that is trained from scratch."""

    unet: dict[str, Any]
    """Constructor arguments of diffusers' ``UNet2DConditionModel``."""
    start: Literal["random", "straight"] = "random"
    """How the U-Net begins: as diffusers draws it, or so that its levels pass pictures on (`straight`)."""
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the U-Net predicts: the noise, or the velocity (Salimans and Ho 2022)."""
    text_encoder: Word | dict[str, Any] | None = None
    """The checkpoint that lends a trained one; or constructor arguments of transformers' ``CLIPTextConfig``;
    none: that of the checkpoint of ``vae``."""
    vae: Spec
    """The checkpoint that lends its autoencoder; a folder may hold it alone, in ``vae/``."""


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
    readout: NotNegative = 0.0
    """What counts, beside the prediction, how badly the picture can be read out of the inner levels alone."""
    dropped_skips: Share = 0.0
    """Share of the pictures in which the two innermost levels are handed no skips on the way up."""
    noisier_half: Share | None = None
    """Share of the pictures whose timestep is of the noisier half; none: all timesteps alike."""
    train_text_encoder: bool = False
    inner_captions: Share = 0.0
    """Share of the pictures of scenes whose whole caption the mid block alone hears: the other levels hear
    the words that objects' names are made of."""


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
    square: Count | None = None
    """Learn from one square of so many pixels of every picture, at a random place; none: from the whole."""
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


EXTRACTORS = ("autoencoder", "classifier", "clip")
"""Kinds of objectives that train what the U-Net, or the suite, takes as given."""


Objective = Annotated[
    Prediction | Distillation | Consistency | DreamBooth | Autoencoder | Classifier | Clip,
    Field(discriminator="kind"),
]


class _Data(_Part):
    pairs: Count | None = None
    """Train on the first so many pairs; none: on all."""
    resolution: Count | None = None
    """Pixels of a side, the short side resized and the centre cropped; none: pictures as they are."""
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
    close_up: Count | None = None
    """Only the latents of a square of so many pixels around the object, of scenes that hold one."""
    domain: Literal["all", "faces", "things"] = "all"
    """What the names of objects are taken from."""


Data = Annotated[FolderData | WebDatasetData | HuggingFaceData | ScenesData, Field(discriminator="kind")]


class Schedule(_Part):
    """How long, in which portions."""

    steps: Count
    batch: Count
    """Images of one step, over all processes."""
    micro_batch: Count
    """Images that one process computes at once."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


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


Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"
]


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
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(_listed)] = ()


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
