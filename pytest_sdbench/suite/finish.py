"""Finish a run: write its history, its records and its reports, and say what it ends with."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.source import source
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.gate.ending import compared
from pytest_sdbench.gate.verdict import Outcome
from pytest_sdbench.report import history
from pytest_sdbench.report.html.run import Run
from pytest_sdbench.report.write import printable, read_cards, write_reports
from pytest_sdbench.suite.again import command_again
from pytest_sdbench.suite.recording import write_evidence_of, write_records_of
from pytest_sdbench.suite.session import SdbenchSession

UNTOLD = 6
"""Exit status of a run that passed but for what is inconclusive, where that is not a failure, or that
compared a checkpoint with nothing."""

_LOOKS = (
    *("collectonly", "setupplan", "setuponly", "showfixtures", "show_fixtures_per_test", "cacheshow"),
    "help",
)
"""Options, as pytest calls them, under which nothing is tested: no report is replaced by an empty one."""


@dataclass(eq=False)  # pluggy keeps plugins in sets
class Finish:
    """What is written when a run ends."""

    run: SdbenchSession

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Write reports and records, in the controller alone; what is recorded, or cannot be, fails it."""
        config = self.run.config
        looked = any(getattr(config.option, name, None) not in (None, False) for name in _LOOKS)
        if not hasattr(config, "workerinput") and not looked:
            _finish(self.run, session)
        return (yield)


def _finish(run: SdbenchSession, session: pytest.Session) -> None:
    """Write what a run has found, the reports last: they tell what it ends with."""

    def fail() -> None:
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    if run.ends_with is not None:
        session.exitstatus = run.ends_with
    run.cards = read_cards(run.rows, run.files)
    if (rows := printable(run.rows, run.cards)) != run.rows:
        fail()
    run.rows = rows
    if not _add_to_history(run):
        fail()
    if run.settings.update and _record(run, session):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    unjudged = _unjudged(run)
    instead = "was compared with the checkpoint that replaces its own. This is no success"
    run.written += [f"no claim of {card} {instead}" for card in unjudged]
    untold = unjudged or any(row.verdict == Outcome.INCONCLUSIVE for row in run.rows)
    if untold and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = UNTOLD
    told = _told(run, int(session.exitstatus))
    lines, whole = write_reports(run.settings.report, run.rows, run.cards, told)
    run.written += lines
    if not whole:
        fail()
    run.status = int(session.exitstatus)


def _record(run: SdbenchSession, session: pytest.Session) -> bool:
    """Write records and evidence; return whether anything changed, or could not be written."""
    finished = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    finished = finished and not (session.shouldstop or session.shouldfail)  # -x, --maxfail
    replaced = frozenset(run.replaced())
    diffs, refused, unwritten = write_records_of(
        run.rows, finished=finished, files=run.files, replaced=replaced
    )
    usual, lines = (run.settings.store, run.settings.data), list[str]()
    placed = [(row, run.places.get(run.files[row.node_id], usual)) for row in run.rows]
    for place in dict.fromkeys(place for _, place in placed):
        rows = [row for row, its in placed if its == place]
        workspace = Workspace(*place, progress=False)
        lines += write_evidence_of(rows, workspace, finished=finished, files=run.files, replaced=replaced)
    run.diffs += diffs
    run.written += [*refused, *unwritten, *lines]
    return bool(diffs or unwritten or lines)


def _unjudged(run: SdbenchSession) -> list[str]:
    """Return the cards with claims of which none was compared with the checkpoint in its place."""
    if run.settings.samples:
        return []  # so few images were asked for, and compare with nothing
    found = []
    for card in sorted(run.replaced()):
        rows = [row for row in run.rows if row.card == card and row.test == "quality"]
        if not rows or compared(row.verdict for row in rows):
            continue
        with suppress(SdbenchError):  # it is told of what is wrong with it
            if read_card(run.files[rows[0].node_id]).claims:
                found.append(card)
    return found


def _told(run: SdbenchSession, status: int) -> Run:
    """Return what a page says of a run."""
    config = run.config
    typed = config.args_source is pytest.Config.ArgsSource.ARGS
    words = [str(word) for word in config.invocation_params.args]
    again = command_again(words, config.args if typed else ())
    stores = dict.fromkeys([run.settings.store, *(store for store, _ in run.places.values())])
    return Run(again, tuple(stores), run.replaced(), _past(run), status)


def _past(run: SdbenchSession) -> Sequence[history.Run]:
    """Return what a page shows of the history; what cannot be read of it is said."""
    if run.settings.history is None or all(path.suffix != ".html" for path in run.settings.report):
        return ()
    try:
        runs, problems = history.read_runs(run.settings.history)
    except SdbenchError as error:
        run.written.append(f"history NOT read: {error}")
        return ()
    run.written += [f"history: not read: {problem}" for problem in problems]
    return runs


def _add_to_history(run: SdbenchSession) -> bool:
    """Write what was measured where a history was named; return whether nothing failed."""
    if run.settings.history is None:
        return True
    measured = history.run_of(run.rows, source(run.config.rootpath))
    if measured is None:
        run.written.append("nothing was measured, and the history has no object of this run")
        return True
    try:
        run.written.append(f"history: added {history.write_run(run.settings.history, measured)}")
    except SdbenchError as error:
        run.written.append(f"history NOT written: {error}")
        return False
    return True
