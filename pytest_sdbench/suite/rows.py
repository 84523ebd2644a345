"""Turn the end of a test into a row of results."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.errors import MESSAGE, Unavailable, cut
from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import card_name
from pytest_sdbench.cards.cases import Case
from pytest_sdbench.gate.ending import Ending, ending, outcome_of
from pytest_sdbench.gate.verdict import Outcome, Verdict
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.report.results import Row
from pytest_sdbench.suite.collection import card_of

PROPERTY = "sdbench_"
"""What the names of a row's user properties begin with."""


def conclude(item: pytest.Item, verdict: Verdict, **figures: Any) -> None:
    """File a verdict with its figures as the item's row, then pass, fail or skip.

    `figures` are fields of `Row`. A skip is never a pass: its reason says what would make it one.
    """
    row = _row(item, verdict, **figures)
    item.user_properties.extend(properties(row, item))
    session = item.config.pluginmanager.get_plugin("sdbench-session")
    end, reason = ending(verdict, session.settings.inconclusive if session is not None else "fail")
    reason = plain(reason)
    if end is Ending.SKIP:
        pytest.skip(reason)
    if end is Ending.XFAIL:
        pytest.xfail(reason)
    if end is not Ending.PASS:
        # Reached with --runxfail too, which turns an xfail into nothing: what is open never passes.
        pytest.fail(reason, pytrace=False)


def row_of_error(item: pytest.Item, error: BaseException, *, skipped: bool) -> Row:
    """Return the row of a test that ended before it had a verdict."""
    remedy = cut(error.remedy, MESSAGE) if isinstance(error, Unavailable) and error.remedy else ""
    extra = {"remedy": plain(remedy)} if remedy else {}
    return _row(item, Verdict(outcome_of(error, skipped=skipped), str(error)), extra=extra)


def row_of_crash(node_id: str, card: str, said: str) -> Row:
    """Return the row of a test whose process died, by its node id alone."""
    test, _, name = node_id.partition("::")[2].removeprefix("test_").partition("[")
    reason = cut(" ".join(said.split()), MESSAGE) or "the process died"
    return Row(node_id, card, test, name.removesuffix("]"), verdict=str(Outcome.ERROR), reason=reason)


def claim_figures(case: Case, protocol: Protocol | None) -> dict[str, Any]:
    """Return what a row says of a claim before anything is measured."""
    if not case.metric:
        return {}
    margin = None if protocol is None else protocol.margins.get(case.metric)
    figures: dict[str, Any] = {
        "metric": case.metric,
        "protocol": case.protocol or "unstated",
        "margin": margin,
    }
    if (claim := case.claim) is not None:
        figures |= {"claimed": claim.value, "claimed_text": claim.text, "kind": claim.kind}
        if claim.margin is not None:
            figures["margin"] = claim.margin
    return figures


def _row(item: pytest.Item, verdict: Verdict, **figures: Any) -> Row:
    module = card_of(item)
    assert module is not None
    session = item.config.pluginmanager.get_plugin("sdbench-session")
    names = session.names if session is not None else {}
    if variant := _variant(item):
        figures["extra"] = {**figures.get("extra", {}), "variant": variant}
    return Row(
        node_id=item.nodeid,
        card=names.get(module.path, card_name(module.path)),
        test=getattr(item, "originalname", item.name).removeprefix("test_"),
        name=_name(item),
        verdict=str(verdict.outcome),
        reason=cut(verdict.reason, MESSAGE),
        **figures,
    )


_OWN = ("sdbench_case", "sdbench_component", "sdbench_protocol")
"""The parameters of the suite's own tests."""


def _name(item: pytest.Item) -> str:
    """Return the claim, component or protocol of a test."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    own = next((params[key] for key in _OWN if key in params), "")
    return own.id if isinstance(own, Case) else str(own)


def _variant(item: pytest.Item) -> str:
    """Return what the node id says of other parameters: those of a project's fixtures."""
    if not hasattr(item, "callspec") or not item.callspec.params.keys() - set(_OWN):
        return ""
    said: str = item.callspec.id
    own = _name(item)
    return said.removeprefix(f"{own}-") if said.startswith(f"{own}-") else said.removesuffix(f"-{own}")


def properties(row: Row, item: pytest.Item) -> list[tuple[str, Any]]:
    """Return a row and its card as user properties, which reach junit files and the controller of xdist."""
    module = card_of(item)
    assert module is not None
    session = item.config.pluginmanager.get_plugin("sdbench-session")
    # The controller of xdist has none of the fixtures that say where images are.
    is_worker = hasattr(item.config, "workerinput")
    place = session.places.get(module.path) if session is not None and is_worker else None
    return [
        (PROPERTY + "file", plain(file_text(module))),
        *([(PROPERTY + "store", str(place[0])), (PROPERTY + "data", str(place[1] or ""))] if place else []),
        *(
            (PROPERTY + key, json.dumps(value) if isinstance(value, dict) else _shown(value))
            for key, value in row.to_dict().items()
            if value is not None
        ),
    ]


def file_text(module: pytest.Module) -> str:
    """Return the file of a card as reports have it: from the rootdir on, or from `~/`, where it is in one."""
    with suppress(ValueError):
        place = module.path.relative_to(module.config.rootpath).as_posix()
        return f"./{place}" if place.startswith("~") else place  # a name like any other
    with suppress(ValueError, RuntimeError):
        return f"~/{module.path.relative_to(Path.home()).as_posix()}"
    return str(module.path)


def _shown(value: Any) -> Any:
    """Return a text as readers of junit files may show it; other values as they are."""
    return plain(value) if isinstance(value, str) else value


def row_of(pairs: Iterable[tuple[str, Any]]) -> Row | None:
    """Return the row among user properties, or None."""
    found = {key.removeprefix(PROPERTY): value for key, value in pairs if key.startswith(PROPERTY)}
    if "verdict" not in found:
        return None
    if isinstance(found.get("extra"), str):
        found["extra"] = json.loads(found["extra"])
    return Row.from_dict(found)
