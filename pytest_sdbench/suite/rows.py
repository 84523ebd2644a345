"""Turn the end of a test into a row of results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.gate.verdict import Outcome, Verdict
from pytest_sdbench.report.results import Row
from pytest_sdbench.suite.collection import card_of

_PROPERTY = "sdbench_"


def conclude(item: pytest.Item, verdict: Verdict, **figures: Any) -> None:
    """File a verdict with its figures as the item's row, then pass, fail or skip.

    `figures` are fields of `Row`. A skip is never a pass: its reason says what would make it one.
    """
    module = card_of(item)
    assert module is not None
    name = item.callspec.id if hasattr(item, "callspec") else ""
    row = Row(
        node_id=item.nodeid,
        card=module.card.name,
        test=getattr(item, "originalname", item.name).removeprefix("test_"),
        name=name,
        verdict=str(verdict.outcome),
        reason=verdict.reason,
        **figures,
    )
    item.user_properties.extend(properties(row, module.path))
    if verdict.outcome is Outcome.INCONCLUSIVE:
        session = item.config.pluginmanager.get_plugin("sdbench-session")
        if session is not None and session.settings.inconclusive == "xfail":
            pytest.xfail(f"{verdict.outcome}: {verdict.reason}")
        # Reached with --runxfail too, which turns an xfail into nothing: what is open never passes.
        pytest.fail(f"{verdict.outcome}: {verdict.reason}", pytrace=False)
    if verdict.outcome in (Outcome.FAIL, Outcome.ERROR):
        pytest.fail(verdict.reason, pytrace=False)
    if verdict.outcome is not Outcome.PASS:
        pytest.skip(f"{verdict.outcome}: {verdict.reason}")


def properties(row: Row, card: Path) -> list[tuple[str, Any]]:
    """Return a row and its card as user properties, which reach junit files and the controller of xdist."""
    return [
        (_PROPERTY + "file", str(card)),
        *(
            (_PROPERTY + key, json.dumps(value) if isinstance(value, dict) else value)
            for key, value in row.to_dict().items()
            if value is not None
        ),
    ]


def _row_of(pairs: Iterable[tuple[str, Any]]) -> Row | None:
    found = {key.removeprefix(_PROPERTY): value for key, value in pairs if key.startswith(_PROPERTY)}
    if "verdict" not in found:
        return None
    if isinstance(found.get("extra"), str):
        found["extra"] = json.loads(found["extra"])
    return Row.from_dict(found)
