"""One row per claim or measurement, and the file of them all: ``results.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pytest_sdbench.base.files import json_mapping

SCHEMA_VERSION = 1
"""Of ``results.json``; it rises when a reader of the old form would misread the new one."""

VERDICTS = ("pass", "fail", "inconclusive", "mismatch", "uncalibrated", "unavailable", "error")


@dataclass(frozen=True)
class Row:
    """What one test of one card claimed, measured and concluded."""

    node_id: str
    card: str
    test: str
    """``size``, ``compute``, ``speed``, ``memory`` or ``quality``."""
    name: str = ""
    """The claim's id, or the component that was counted."""
    metric: str = ""
    protocol: str = ""
    claimed: float | None = None
    claimed_text: str = ""
    """The claim as its source prints it."""
    measured: float | None = None
    standard_error: float | None = None
    n: int | None = None
    unit: str = ""
    margin: float | None = None
    verdict: str = "error"
    reason: str = ""
    kind: str = ""
    """``published`` or ``recorded``, for a claim."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Device, versions, fingerprints, date and whatever else explains the figure."""

    @property
    def variant(self) -> str:
        """The parameters that a project's fixtures give a test, as the node id has them: `` (fp16)``."""
        return f" ({said})" if (said := self.extra.get("variant")) else ""

    @property
    def title(self) -> str:
        """The claim's id or the component, else the test, and the variant."""
        return f"{self.name or self.test}{self.variant}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a figure that is not finite becomes None, since JSON has no NaN."""
        return {key: _finite(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """Return the row of `to_dict`'s values; keys of a later version are left out."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


def results_json(
    rows: Sequence[Row],
    environment: Mapping[str, Any],
    untested: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Return ``results.json``: schema version, environment, a count of verdicts, and every row.

    `untested` says by card what it leaves untested, and why.
    """
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in VERDICTS}
    content = {
        "schema_version": SCHEMA_VERSION,
        "environment": _finite(dict(environment)),
        "summary": {verdict: count for verdict, count in counts.items() if count},
        "results": [row.to_dict() for row in rows],
        "untested": {card: list(notes) for card, notes in (untested or {}).items()},
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def read_results(text: str) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows and the environment of a ``results.json``; keys of a later version are left out.

    Raises ValueError if the text is not such a file, or one of another schema version.
    """
    content = json_mapping(text.encode())
    if (version := content.get("schema_version")) != SCHEMA_VERSION:
        raise ValueError(
            f"not a results.json of schema version {SCHEMA_VERSION} (found {version!r}); "
            "write it anew with --sdbench-report results.json"
        )
    rows, environment = content.get("results"), content.get("environment")
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise ValueError("results: no list of rows")
    if not isinstance(environment, dict):
        raise ValueError("environment: not what it is of every run, an object")
    try:
        return [Row.from_dict(row) for row in rows], environment
    except TypeError as error:
        raise ValueError(f"results: a row without all that a row has ({error})") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
