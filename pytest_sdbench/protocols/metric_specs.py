"""What a protocol says of a metric; the metric's definition says what may be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, Field, create_model

from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.sections import Name, Statistics, StrictModel


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


@cache
def spec_type(metric: Metric) -> type[MetricSpec]:
    """Return the model of what a protocol may say of a metric."""
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
    known = isinstance(value, Mapping) and METRICS.get(str(value.get("metric")))
    return (spec_type(known) if known else MetricSpec).model_validate(value)
