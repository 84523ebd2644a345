"""Collect a card: a pytest module whose functions are the suite's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from pytest_sdbench.base.errors import CardError, SdbenchError, first_line
from pytest_sdbench.cards.card import Card, check_lineage, read_card
from pytest_sdbench.cards.cases import as_candidate

SUITE = "pytest_sdbench.suite.tests"
MARKERS = {
    "size": "exact parameter counts of a card's networks",
    "compute": "multiply-accumulates of one U-Net call",
    "speed": "latency of one U-Net call as a ratio to the baseline's, measured side by side",
    "memory": "peak memory of one U-Net call",
    "quality": "scores of generated images under the protocol of each claim",
}


class CardModule(pytest.Module):
    """A card as a test module: its functions are the suite's, spread over the card's claims."""

    card: Card

    def _getobj(self) -> ModuleType:
        return import_module(SUITE)

    def funcnamefilter(self, name: str) -> bool:
        """Take the suite's functions by their own names, whatever the project's python_functions says."""
        return name.startswith("test_")

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Read the card and yield one item per claim, or one failing item that says what is wrong with it."""
        session = self.config.pluginmanager.get_plugin("sdbench-session")
        try:
            self.card = read_card(self.path)
            check_lineage(self.card)
            if session is not None and session.weights_for(self.path) is not None:
                self.card = as_candidate(self.card)
            items = list(super().collect())
        except (Exception, pytest.fail.Exception) as error:
            if not isinstance(error, SdbenchError):
                message = f"the card cannot be collected: {type(error).__name__}: {first_line(error)}"
                read = "card" in self.__dict__  # what a conftest or a plugin makes of its tests comes after
                remedy = "Look at what parametrizes its tests: a conftest or a plugin"
                remedy = remedy if read else "Correct its front matter"
                error = CardError(message, file=self.path, remedy=remedy)
            items = [BrokenCard.from_parent(self, name=name, error=error) for name in self._asked()]
        if session is None or session.settings.calibrate is None:
            # Calibration is made when it is asked for.
            items = [item for item in items if getattr(item, "originalname", "") != "test_calibration"]
        for item in items:
            # The claim stands in the card: its node id needs no "<- suite.py" behind it.
            if isinstance(item, pytest.Item):
                item.__dict__["location"] = (item.nodeid.partition("::")[0], 0, item.name)
        return items

    def _asked(self) -> list[str]:
        """Return the tests of this card that were named one by one: a broken card fails as each of them."""
        here = self.config.invocation_params.dir
        arguments = [str(argument).partition("::") for argument in self.config.args]
        named = [
            name for file, _, name in arguments if name and os.path.abspath(here / file) == str(self.path)
        ]
        return list(dict.fromkeys(named)) or ["card"]


class BrokenCard(pytest.Item):
    """The item of a card that cannot be read: it fails and says why, and the other cards still run."""

    def __init__(self, *, error: SdbenchError, **rest: object) -> None:
        super().__init__(**rest)  # type: ignore[arg-type]
        self.error = error

    def runtest(self) -> None:
        """Raise what is wrong with the card."""
        raise self.error

    def reportinfo(self) -> tuple[Path, int, str]:
        """Place the failure in the card."""
        return self.path, 0, self.name


def is_broken(item: pytest.Item | pytest.Collector) -> bool:
    """Return whether an item is of something that cannot be: no selection takes it out of a run."""
    case = (
        item.callspec.params.get("sdbench_case")
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else None
    )
    problem = getattr(case, "problem", None)
    return isinstance(item, BrokenCard) or (problem is not None and problem.fails)


def card_of(item: pytest.Item) -> CardModule | None:
    """Return the card module that an item belongs to, or None for any other test."""
    return item.getparent(CardModule)
