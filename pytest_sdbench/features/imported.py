"""Stand for the tools whose scores are imported: their columns are filled by ``import``, never computed."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.features.definition import Extractor
from pytest_sdbench.metrics.imported import OUTPUT
from pytest_sdbench.protocols.metric_specs import IMPORTED


def load(name: str, *, data_root: Path | None, device: str, download: bool) -> NoReturn:
    """Raise Unavailable: another tool gives these values."""
    describe(name, data_root)


def describe(name: str, data_root: Path | None) -> NoReturn:
    """Raise Unavailable with the command that brings the values in."""
    metric = name.removeprefix(IMPORTED)
    raise Unavailable(
        f"another tool gives the values of {metric}, and those of some images were not imported",
        remedy=f"python -m pytest_sdbench import SCORES --metric {metric} --protocol PROTOCOL --card CARD",
    )


IMPORTED_VALUES = Extractor(IMPORTED, {OUTPUT: 1}, load, weights=lambda name: "1", describe=describe)
