"""Read protocols: everything that fixes a score besides the weights, in one named YAML file.

A protocol has two fingerprints. The *draw* fingerprint covers what makes a picture: prompts, seeds, sampling
and the way of the image. It keys the evidence: runs of 512, 5,000 and 30,000 images share theirs, and a
metric can be added to it. The *protocol* fingerprint adds N and the metrics, with their extractors, reference
statistics and the options that act on finished rows (splits, shuffling); it identifies what a claim claims.
What was recorded before a protocol gained a metric is known by `Protocol.covers`. Neither fingerprint covers
margins and prose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import (
    Field,
    PlainValidator,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from pytest_sdbench.base.errors import ProtocolError, SdbenchError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.schema import faults, suggestion
from pytest_sdbench.metrics.registry import METRICS, register_metric
from pytest_sdbench.protocols.metric_specs import ImportedSpec, MetricSpec, is_imported, read_spec, spec_type
from pytest_sdbench.protocols.sections import ImageStep, Name, Prompts, Sampling, Seeds, Source, StrictModel

EMBEDDED = "embedded:"
"""How a file that ships with the package is written in a protocol: ``embedded:statistics/x.npz``."""

_FORMAT = 1
"""Counts changes of what a fingerprint covers; old evidence is then no longer taken for new."""


DRAWN = {"prompts", "seeds", "sampling", "image"}
"""Parts of a protocol that say how its pictures are made."""


class Protocol(StrictModel):
    """One protocol; `name` is the stem of its file and `path` where it was read."""

    name: str
    path: Path
    title: Name
    description: str = ""
    source: Source | None = None
    n: PositiveInt
    prompts: Prompts
    seeds: Seeds
    sampling: Sampling
    image: Annotated[tuple[ImageStep, ...], Field(strict=False)] = ()
    metrics: Annotated[
        dict[str, SerializeAsAny[Annotated[MetricSpec, PlainValidator(read_spec)]]], Field(min_length=1)
    ]
    margins: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)

    @field_validator("metrics", mode="before")
    @classmethod
    def _name_metrics(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        for key, spec in value.items():
            if key not in METRICS and not is_imported(spec):
                near = suggestion(str(key), list(METRICS))
                own = "What a conftest.py registers is known to pytest alone; an entry point, everywhere"
                raise ValueError(f"unknown metric {key!r}. {near}Known are {', '.join(METRICS)}. {own}")
        named = {key: {"metric": key, **spec} for key, spec in value.items() if isinstance(spec, Mapping)}
        return {**value, **named}

    @model_validator(mode="after")
    def _fits_together(self) -> Protocol:
        if self.n > self.prompts.rows:
            raise ValueError(f"n is {self.n}, but there are only {self.prompts.rows} prompts")
        for key in self.margins:
            if key not in self.metrics:
                raise ValueError(f"margin of {key!r}, which is not a metric of this protocol")
        for spec in self.metrics.values():
            if isinstance(spec, ImportedSpec):
                _declare(spec)
        if self.sampling.scheduler.must_be and self.sampling.scheduler.name != "checkpoint":
            raise ValueError("scheduler.must_be is for the checkpoint's own scheduler; this one is named")
        return self

    @property
    def extractors(self) -> tuple[str, ...]:
        """Names of the networks that look at an image, sorted: feature extractors and CLIP models."""
        return tuple(sorted({spec.extractor for spec in self.metrics.values()}))

    @property
    def draw_fingerprint(self) -> str:
        """What makes a picture, as 16 hex digits."""
        return draw_fingerprint(self.model_dump(mode="json", include=DRAWN))

    @property
    def fingerprint(self) -> str:
        """What a claim under this protocol claims, as 16 hex digits."""
        return next(self._fingerprints())[0]

    def covers(self, fingerprint: str, metric: str | None = None) -> bool:
        """Return whether a fingerprint is of this protocol, or was before it had all of its metrics.

        It must have had `metric` by then. Of 65,536 parts of a protocol at most, the largest, this is known:
        of all that lack any of 16 metrics.
        """
        own = self.fingerprint
        if fingerprint != own and own not in _parts:
            _parts[own] = dict(islice(self._fingerprints(), _PARTS))
        metrics = frozenset(self.metrics) if fingerprint == own else _parts[own].get(fingerprint)
        return metrics is not None and metric in (None, *metrics)

    def with_samples(self, n: int) -> Protocol:
        """Return this protocol with another N: the same draw, another claim."""
        return self._changed(n=n)

    def with_dtype(self, dtype: str) -> Protocol:
        """Return this protocol with another precision of the networks: other images, another claim."""
        return self._changed(sampling={**self.sampling.model_dump(), "dtype": dtype})

    def with_steps(self, steps: int) -> Protocol:
        """Return this protocol with another number of steps: other images, another claim."""
        return self._changed(sampling={**self.sampling.model_dump(), "steps": steps})

    def with_seed(self, seed: int) -> Protocol:
        """Return this protocol with another seed: another draw of the same scores."""
        return self._changed(seeds={**self.seeds.model_dump(), "seed": seed})

    def with_seeds_on(self, device: str) -> Protocol:
        """Return this protocol with its sequential generator elsewhere: another draw of the same scores."""
        return self._changed(seeds={**self.seeds.model_dump(), "device": device})

    def without(self, metrics: Collection[str]) -> Protocol:
        """Return this protocol without some of its metrics: the same draw."""
        left = {name: spec for name, spec in self.metrics.items() if name not in metrics}
        return self.model_copy(update={"metrics": left})

    def only(self, metric: str) -> Protocol:
        """Return this protocol with one of its metrics alone."""
        return self.without([name for name in self.metrics if name != metric])

    def locate(self, file: str, data_root: Path | None) -> Path | None:
        """Return the path of a prompt or statistics file; None if a data root is needed and none is given."""
        if file.startswith(EMBEDDED):
            return reference() / file.removeprefix(EMBEDDED)
        if file.startswith(("./", "../", "~")) or Path(file).is_absolute():
            return self.path.parent / Path(file).expanduser()
        return None if data_root is None else data_root / file

    def _fingerprints(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield the fingerprint of this protocol, then of it with ever fewer metrics, and those metrics."""
        # Each part is encoded once, as `_canonical` would: there are thousands of ways to put them together.
        draw = _canonical(_draw(self.model_dump(mode="json", include=DRAWN))).removeprefix("{")
        columns = {spec.column: _canonical(spec.column) for spec in self.metrics.values()}
        specs = {
            name: f'"{name}":{_canonical(self.metrics[name].identity())}' for name in sorted(self.metrics)
        }
        for size in range(len(specs), 0, -1):
            for names in combinations(specs, size):
                read = ",".join(
                    columns[each] for each in sorted({self.metrics[name].column for name in names})
                )
                said = ",".join(specs[name] for name in names)
                content = f'{{"draw":{{"columns":[{read}],{draw},"metrics":{{{said}}},"n":{self.n}}}'
                yield _digest(content), frozenset(names)

    def _changed(self, **fields: object) -> Protocol:
        return validate({**self.model_dump(), **fields}, self.path)


def _declare(spec: ImportedSpec) -> None:
    """Make a metric known that a protocol declares; raise ValueError where another one has its name."""
    try:
        register_metric(spec.definition())
    except SdbenchError:
        message = f"{spec.metric} is another metric elsewhere, in this package or in another protocol"
        raise ValueError(f"{message}. Give it another name, or declare both alike") from None


def validate(content: dict[str, Any], path: Path) -> Protocol:
    """Return the protocol that a file's content describes; raises ProtocolError with the first fault."""
    try:
        return Protocol.model_validate(content)
    except ValidationError as error:
        found = faults(error, _shape(), content, unwritten=("name", "path"))
        first, more = found[0], f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        told = replace(first, message=first.message + more, remedy=f"{first.remedy}. {SEE}")
        raise told.error(ProtocolError, path) from None


def _shape() -> type[Protocol]:
    """Return the form of a protocol with all metrics that are known, for messages."""
    specs: Any = Union.__getitem__((*map(spec_type, METRICS.values()), ImportedSpec))
    return create_model("Protocol", __base__=Protocol, metrics=(dict[str, specs], ...))


SEE = "See reference/protocols/coco30k-bksdm.yaml for a complete protocol."


_PARTS = 1 << 16
_parts: dict[str, dict[str, frozenset[str]]] = {}
"""By the fingerprint of a protocol: that of each of its parts, and the metrics that are in it."""


def draw_fingerprint(content: Mapping[str, Any]) -> str:
    """Return the fingerprint of a draw, given a protocol, or what a manifest says of one, as plain data."""
    return _digest(_canonical(_draw(content)))


def _draw(content: Mapping[str, Any]) -> dict[str, Any]:
    # The checksum says what the prompts are; where they lie and how many more follow does not move a row.
    prompts = {key: value for key, value in content["prompts"].items() if key not in ("file", "rows")}
    return {"prompts": prompts, **{key: content[key] for key in ("seeds", "sampling", "image")}}


def _canonical(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def _digest(canonical: str) -> str:
    return hashlib.sha256(f"[{_FORMAT},{canonical}]".encode()).hexdigest()[:16]
