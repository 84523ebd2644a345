"""Read protocols: everything that fixes a score besides the weights, in one named YAML file.

A protocol has two fingerprints. The *draw* fingerprint covers what makes one row of evidence: prompts, seeds,
sampling, the way of the image and what the extractors say of it. It keys the evidence, so that runs of
512, 5,000 and 30,000 images share theirs. The *protocol* fingerprint adds N, the reference statistics and the
options that act on finished rows (splits, shuffling); it identifies what a claim claims. Neither covers
margins and prose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    StringConstraints,
    Tag,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from pytest_sdbench.base.errors import ProtocolError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.schema import faults, suggestion
from pytest_sdbench.metrics.names import METRICS

EMBEDDED = "embedded:"
"""How a file that ships with the package is written in a protocol: ``embedded:statistics/x.npz``."""

_FORMAT = 1
"""Counts changes of what a fingerprint covers; old evidence is then no longer taken for new."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, StringConstraints(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Source(_Model):
    """Where a protocol comes from."""

    name: _Name
    url: str | None = None


class CsvPrompts(_Model):
    """Prompts from a `metadata.csv`: header `file_name,text`, one caption per image."""

    kind: Literal["csv"]
    file: _Name
    """Under the data root; `./` is beside the protocol's own file, `embedded:` inside the package."""
    sha256: Sha256
    rows: PositiveInt
    """Captions in the file; a protocol uses the first N of them."""


Layout = Literal["one", "beside", "above", "row", "two-over-one", "one-over-two"]


class ScenesPrompts(_Model):
    """Captions of scenes, the embedded dataset."""

    kind: Literal["scenes"]
    first: Annotated[int, Field(ge=0)]
    """Index of the scene behind prompt 0."""
    rows: PositiveInt
    layouts: Annotated[tuple[Layout, ...], Field(strict=False, min_length=1)] | None = None
    """Only scenes of these layouts: prompt i is the caption of the i-th of them. None: every scene."""
    captions_sha256: Sha256
    """Of the first 512 captions, each ended by a line feed."""

    @field_validator("layouts", mode="after")
    @classmethod
    def _in_one_order(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        # A set of layouts: neither order nor repetition makes other prompts, nor another fingerprint.
        return value and tuple(sorted(set(value)))

    @model_serializer(mode="wrap")
    def _without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is not there moves no fingerprint: not that of protocols from before it could be.
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "layouts" or value is not None}


Prompts = Annotated[CsvPrompts | ScenesPrompts, Field(discriminator="kind")]


class PerImageSeeds(_Model):
    """One CPU generator per image, seeded from (seed, index): batch size and order do not matter."""

    kind: Literal["per-image"]
    seed: Annotated[int, Field(ge=0, lt=2**63)]


class SequentialSeeds(_Model):
    """One generator, consumed image by image in the order of the prompts."""

    kind: Literal["sequential"]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Literal["cpu", "cuda"]
    """Where the generator lives: a CUDA generator draws other noise than a CPU generator of the same seed."""


Seeds = Annotated[PerImageSeeds | SequentialSeeds, Field(discriminator="kind")]


class Scheduler(_Model):
    """The noise scheduler: the checkpoint's own, or a diffusers class with the checkpoint's settings."""

    name: Annotated[str, StringConstraints(pattern=r"^(checkpoint|[A-Z]\w*)$")] = "checkpoint"
    must_be: _Name | None = None
    """With `checkpoint`: the class that the checkpoint's scheduler has to be."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings that replace those of the checkpoint."""


class Sampling(_Model):
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


class Jpeg(_Model):
    """Encode as JPEG with Pillow at this quality, and decode again."""

    jpeg: Annotated[int, Field(ge=1, le=95)]


class Resize(_Model):
    """Resize to a square of this many pixels with Pillow, which low-passes before it shrinks."""

    resize: PositiveInt
    filter: Literal["pil-bicubic", "pil-bilinear", "pil-lanczos", "pil-box"]


def _step_kind(value: object) -> str:
    if isinstance(value, dict):
        return "jpeg" if "jpeg" in value else "resize"
    return "jpeg" if isinstance(value, Jpeg) else "resize"


ImageStep = Annotated[
    Annotated[Jpeg, Tag("jpeg")] | Annotated[Resize, Tag("resize")], Discriminator(_step_kind)
]


class Statistics(_Model):
    """Reference statistics: an npz file with `mu` and `sigma`, and `features` where KID is to be had."""

    file: _Name
    """Under the data root; `./` is beside the protocol's own file, `embedded:` inside the package."""
    sha256: Sha256 | None = None
    """None: the publisher's checksum is not known; the file is used, and reported as unverified."""
    images: PositiveInt
    """How many real images are behind it."""


class FidSpec(_Model):
    """Fréchet distance between the Gaussian of the features and that of the reference."""

    metric: Literal["fid"] = "fid"
    extractor: _Name
    statistics: Statistics


class KidSpec(_Model):
    """Kernel distance (cubic polynomial kernel) between the features and those of the reference."""

    metric: Literal["kid"] = "kid"
    extractor: _Name
    statistics: Statistics


class InceptionScoreSpec(_Model):
    """Exponential of the mean divergence of a picture's classes from all pictures' classes."""

    metric: Literal["inception_score"] = "inception_score"
    extractor: _Name
    splits: PositiveInt = 10
    shuffle_seed: int | None = None
    """Seed of the shuffle before splitting; None: in the order of the prompts."""


class ClipScoreSpec(_Model):
    """Mean cosine of image and raw caption: not times 100, not clipped."""

    metric: Literal["clip_score"] = "clip_score"
    model: _Name


MetricSpec = Annotated[FidSpec | KidSpec | InceptionScoreSpec | ClipScoreSpec, Field(discriminator="metric")]
METRIC_NAMES = tuple(METRICS)


class Protocol(_Model):
    """One protocol; `name` is the stem of its file and `path` where it was read."""

    name: str
    path: Path
    title: _Name
    description: str = ""
    source: Source | None = None
    n: PositiveInt
    prompts: Prompts
    seeds: Seeds
    sampling: Sampling
    image: Annotated[tuple[ImageStep, ...], Field(strict=False)] = ()
    metrics: Annotated[dict[str, MetricSpec], Field(min_length=1)]
    margins: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)

    @field_validator("metrics", mode="before")
    @classmethod
    def _name_metrics(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        for key in value:
            if key not in METRIC_NAMES:
                near = suggestion(str(key), METRIC_NAMES)
                raise ValueError(f"unknown metric {key!r}. {near}Known are {', '.join(METRIC_NAMES)}")
        return {
            key: {"metric": key, **spec} if isinstance(spec, Mapping) else spec for key, spec in value.items()
        }

    @model_validator(mode="after")
    def _fits_together(self) -> Protocol:
        if self.n > self.prompts.rows:
            raise ValueError(f"n is {self.n}, but there are only {self.prompts.rows} prompts")
        for key in self.margins:
            if key not in self.metrics:
                raise ValueError(f"margin of {key!r}, which is not a metric of this protocol")
        if self.sampling.scheduler.must_be and self.sampling.scheduler.name != "checkpoint":
            raise ValueError("scheduler.must_be is for the checkpoint's own scheduler; this one is named")
        return self

    @property
    def extractors(self) -> tuple[str, ...]:
        """Names of the networks that look at an image, sorted: feature extractors and CLIP models."""
        return tuple(sorted({_extractor(spec) for spec in self.metrics.values()}))

    @property
    def draw_fingerprint(self) -> str:
        """What makes one row of evidence, as 16 hex digits."""
        return _fingerprint(self._draw())

    @property
    def fingerprint(self) -> str:
        """What a claim under this protocol claims, as 16 hex digits."""
        metrics = {key: _identity(spec) for key, spec in self.metrics.items()}
        return _fingerprint({"draw": self._draw(), "n": self.n, "metrics": metrics})

    def with_samples(self, n: int) -> Protocol:
        """Return this protocol with another N: the same draw, another claim."""
        return self._changed(n=n)

    def with_dtype(self, dtype: str) -> Protocol:
        """Return this protocol with another precision of the networks: other images, another claim."""
        return self._changed(sampling={**self.sampling.model_dump(), "dtype": dtype})

    def with_seed(self, seed: int) -> Protocol:
        """Return this protocol with another seed: another draw of the same scores."""
        return self._changed(seeds={**self.seeds.model_dump(), "seed": seed})

    def with_seeds_on(self, device: str) -> Protocol:
        """Return this protocol with its sequential generator elsewhere: another draw of the same scores."""
        return self._changed(seeds={**self.seeds.model_dump(), "device": device})

    def locate(self, file: str, data_root: Path | None) -> Path | None:
        """Return the path of a prompt or statistics file; None if a data root is needed and none is given."""
        if file.startswith(EMBEDDED):
            return reference() / file.removeprefix(EMBEDDED)
        if file.startswith(("./", "../")) or Path(file).is_absolute():
            return self.path.parent / file
        return None if data_root is None else data_root / file

    def _draw(self) -> dict[str, Any]:
        # The checksum says what the prompts are; where they lie and how many more follow does not move a row.
        prompts = self.prompts.model_dump(exclude={"file", "rows"})
        return {
            "prompts": prompts,
            "seeds": self.seeds.model_dump(),
            "sampling": self.sampling.model_dump(),
            "image": [step.model_dump() for step in self.image],
            "columns": sorted({_column(spec) for spec in self.metrics.values()}),
        }

    def _changed(self, **fields: object) -> Protocol:
        return _validate({**self.model_dump(), **fields}, self.path)


def _validate(content: dict[str, Any], path: Path) -> Protocol:
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        found = faults(error, Protocol, content, unwritten=("name", "path"))
        first, more = found[0], f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        told = replace(first, message=first.message + more, remedy=f"{first.remedy}. {_SEE}")
        raise told.error(ProtocolError, path) from None


_SEE = "See reference/protocols/coco30k-bksdm.yaml for a complete protocol."


def _extractor(spec: FidSpec | KidSpec | InceptionScoreSpec | ClipScoreSpec) -> str:
    return spec.model if isinstance(spec, ClipScoreSpec) else spec.extractor


def _column(spec: FidSpec | KidSpec | InceptionScoreSpec | ClipScoreSpec) -> tuple[str, str]:
    """Return which output of which network a metric reads: FID and KID may share one."""
    output = {"fid": "features", "kid": "features", "inception_score": "logits", "clip_score": "cosine"}
    return _extractor(spec), output[spec.metric]


def _identity(spec: FidSpec | KidSpec | InceptionScoreSpec | ClipScoreSpec) -> dict[str, Any]:
    """Return what of a metric moves its score; a checksum stands for the file that it is of."""
    content = spec.model_dump()
    statistics = content.get("statistics")
    if statistics and statistics["sha256"]:
        del statistics["file"]
    return content


def _fingerprint(content: object) -> str:
    canonical = json.dumps([_FORMAT, content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
