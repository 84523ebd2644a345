"""What a protocol says of a metric; the metric's definition says what may be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, create_model, model_validator

from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.imported import imported_metric
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.sections import Name, Statistics, StrictModel

Finite = Annotated[float, Field(allow_inf_nan=False)]


class MetricSpec(StrictModel):
    """A metric of a protocol; the options that its definition declares are attributes too."""

    model_config = ConfigDict(serialize_by_alias=True)

    metric: str
    extractor: Name
    """The network that it reads; CLIP score calls it `model`."""

    @property
    def column(self) -> tuple[str, str]:
        """Return the network and which output of it the metric reads: FID and KID may share one."""
        return self.extractor, METRICS[self.metric].output

    def __reduce__(self) -> tuple[Any, ...]:
        # Models that are made of a definition have no place that pickle could find them in.
        return read_spec, (self.model_dump(),)

    def identity(self) -> dict[str, Any]:
        """Return what of a metric moves its score; a checksum stands for the file that it is of."""
        content = self.model_dump()
        statistics = content.get("statistics")
        if statistics and statistics["sha256"]:
            del statistics["file"]
        return content


class ReferencedSpec(MetricSpec):
    """A metric that compares with real images."""

    statistics: Statistics


IMPORTED = "imported:"
"""Before the name of a metric: the extractor that stands for the tool whose values are imported."""


class ImportedSpec(MetricSpec):
    """A metric that the protocol itself declares, since another tool gives its values."""

    kind: Literal["imported"]
    label: Name
    higher_is_better: bool
    minimum: Finite | None = None
    maximum: Finite | None = None
    decimals: Annotated[int, Field(ge=0, le=9)] = 4

    @model_validator(mode="before")
    @classmethod
    def _of_the_tool(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        name = str(value.get("metric"))
        return {"label": name, **value, "extractor": f"{IMPORTED}{name}"}

    def definition(self) -> Metric:
        """Return the metric that is declared."""
        return imported_metric(
            self.metric,
            self.label,
            higher_is_better=self.higher_is_better,
            minimum=self.minimum,
            maximum=self.maximum,
            decimals=self.decimals,
        )


def is_imported(spec: object) -> bool:
    """Tell a metric that a protocol declares from one that is known, by what the protocol says of it."""
    return isinstance(spec, Mapping) and spec.get("kind") == "imported"


@cache
def spec_type(metric: Metric) -> type[MetricSpec]:
    """Return the model of what a protocol may say of a metric."""
    if metric.reads == "imported":
        return ImportedSpec
    types = get_type_hints(metric.options, include_extras=True)
    options: dict[str, Any] = {each.name: (types[each.name], each.default) for each in fields(metric.options)}
    options["metric"] = (Literal.__getitem__(metric.name), metric.name)
    return create_model(
        f"{metric.label.replace(' ', '')}Spec",
        __base__=MetricSpec if metric.reference == "none" else ReferencedSpec,
        extractor=(Name, Field(alias=metric.extractor_key)),
        **options,
    )


def read_spec(value: object) -> MetricSpec:
    """Return what a protocol says of the metric that ``metric`` names; raises pydantic's ValidationError."""
    if isinstance(value, MetricSpec):
        return value
    if is_imported(value):
        return ImportedSpec.model_validate(value)
    known = isinstance(value, Mapping) and METRICS.get(str(value.get("metric")))
    spec = (spec_type(known) if known else MetricSpec).model_validate(value)
    if known:
        options = known.options_of(spec)  # which raises for options that contradict each other
        if known.check is not None:
            known.check(options, spec.extractor)
    return spec
