"""The sections of a protocol: prompts, seeds, sampling, image steps, reference statistics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    StringConstraints,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

Sha256 = Annotated[
    str,
    BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    StringConstraints(pattern=r"^[0-9a-f]{64}$"),
]
"""Hex digits; some programs print them in capitals."""
Name = Annotated[str, StringConstraints(min_length=1)]


class StrictModel(BaseModel):
    """Refuses unknown keys and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(StrictModel):
    """Where a protocol comes from."""

    name: Name
    url: str | None = None


class CsvPrompts(StrictModel):
    """Prompts from a `metadata.csv`: header `file_name,text`, one caption per image."""

    kind: Literal["csv"]
    file: Name
    """Under the data root; `./` is beside the protocol's own file, `embedded:` inside the package."""
    sha256: Sha256
    rows: PositiveInt
    """Captions in the file; a protocol uses the first N of them."""


Domain = Literal["all", "faces", "things"]
Layout = Literal["one", "beside", "above", "row", "two-over-one", "one-over-two"]


class ScenesPrompts(StrictModel):
    """Captions of scenes, the embedded dataset."""

    kind: Literal["scenes"]
    first: Annotated[int, Field(ge=0)]
    """Index of the scene behind prompt 0."""
    rows: PositiveInt
    layouts: Annotated[tuple[Layout, ...], Field(strict=False, min_length=1)] | None = None
    """Only scenes of these layouts: prompt i is the caption of the i-th of them. None: every scene."""
    domain: Domain = "all"
    """What objects' names are taken from: the captions of the same scenes, with other names."""
    captions_sha256: Sha256
    """Of the first 512 captions, each ended by a line feed."""

    @field_validator("layouts", mode="after")
    @classmethod
    def _in_one_order(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        # A set of layouts: neither order nor repetition makes other prompts, nor another fingerprint.
        return value and tuple(sorted(set(value)))

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is not there moves no fingerprint: not that of protocols from before it could be.
        content: dict[str, Any] = handler(self)
        absent = {"layouts": None, "domain": "all"}
        return {key: value for key, value in content.items() if key not in absent or value != absent[key]}


Prompts = Annotated[CsvPrompts | ScenesPrompts, Field(discriminator="kind")]


class PerImageSeeds(StrictModel):
    """One CPU generator per image, seeded from (seed, index): batch size and order do not matter."""

    kind: Literal["per-image"]
    seed: Annotated[int, Field(ge=0, lt=2**63)]


class SequentialSeeds(StrictModel):
    """One generator, consumed image by image in the order of the prompts."""

    kind: Literal["sequential"]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Literal["cpu", "cuda"]
    """Where the generator lives: a CUDA generator draws other noise than a CPU generator of the same seed."""


Seeds = Annotated[PerImageSeeds | SequentialSeeds, Field(discriminator="kind")]


class Scheduler(StrictModel):
    """The noise scheduler: the checkpoint's own, or a diffusers class with the checkpoint's settings."""

    name: Annotated[str, StringConstraints(pattern=r"^(checkpoint|[A-Z]\w*)$")] = "checkpoint"
    must_be: Name | None = None
    """With `checkpoint`: the class that the checkpoint's scheduler has to be."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings that replace those of the checkpoint."""


class Sampling(StrictModel):
    """How a prompt and its noise become an image."""

    scheduler: Scheduler = Scheduler()
    steps: PositiveInt
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    negative_prompt: str | None = None
    resolution: Annotated[int, Field(ge=8, multiple_of=8)]
    dtype: Literal["float16", "bfloat16", "float32"]

    @field_validator("scheduler", mode="before")
    @classmethod
    def _bare_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class _Step(StrictModel):
    @model_validator(mode="before")
    @classmethod
    def _is_one(cls, value: object) -> object:
        if isinstance(value, dict) and {"jpeg", "resize"} <= value.keys():
            raise ValueError("two steps in one entry: begin each with a dash of its own")
        return value


class Jpeg(_Step):
    """Encode as JPEG with Pillow at this quality, and decode again."""

    jpeg: Annotated[int, Field(ge=1, le=100)]


class Resize(_Step):
    """Resize to a square of this many pixels with Pillow, which low-passes before it shrinks."""

    resize: PositiveInt
    filter: Literal["pil-bicubic", "pil-bilinear", "pil-lanczos", "pil-box"]


def _step_kind(value: object) -> str:
    return "jpeg" if isinstance(value, Jpeg) or (isinstance(value, dict) and "jpeg" in value) else "resize"


ImageStep = Annotated[
    Annotated[Jpeg, Tag("jpeg")] | Annotated[Resize, Tag("resize")], Discriminator(_step_kind)
]


class Statistics(StrictModel):
    """Reference statistics: an npz file with `mu` and `sigma`, and `features` where KID is to be had."""

    file: Name
    """Under the data root; `./` is beside the protocol's own file, `embedded:` inside the package."""
    sha256: Sha256 | None = None
    """None: the publisher's checksum is not known; the file is used, and reported as unverified."""
    images: PositiveInt
    """How many real images are behind it."""
