"""The hooks of a run with ``--sdbench``: what to collect, what came of it, and what is written at the end."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.junitxml import xml_key

from pytest_sdbench.base.errors import SdbenchError, Unavailable
from pytest_sdbench.base.paths import reference, told
from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import Card, card_name, is_card, means, own_names
from pytest_sdbench.cards.front_matter import is_lost, says_card
from pytest_sdbench.gate.verdict import Outcome
from pytest_sdbench.models.hub import forget_failures
from pytest_sdbench.report.results import Row
from pytest_sdbench.suite.collection import MARKERS, SUITE, CardModule, card_of, is_broken
from pytest_sdbench.suite.rootdir import check_rootdir
from pytest_sdbench.suite.rows import PROPERTY, file_text, properties, row_of, row_of_crash, row_of_error
from pytest_sdbench.suite.settings import REFUSED, Settings, refuse

_MARKUP: dict[str, dict[str, bool]] = {
    Outcome.PASS: {"green": True},
    Outcome.FAIL: {"red": True, "bold": True},
    Outcome.ERROR: {"red": True, "bold": True},
}
"""How verdicts look; others are yellow, as what pytest skips."""


@dataclass(eq=False)  # pluggy keeps plugins in sets
class SdbenchSession:
    """One run: its settings and the rows of its results."""

    config: pytest.Config
    settings: Settings
    rows: list[Row] = field(default_factory=list)
    names: dict[Path, str] = field(default_factory=dict)
    """What each collected card is called: namesakes go by their folders."""
    files: dict[str, Path] = field(default_factory=dict)
    """The card of each node id: an id alone does not lead to a card outside the rootdir."""
    written: list[str] = field(default_factory=list)
    """Lines for the end of the terminal summary: files written, records refused."""
    diffs: list[str] = field(default_factory=list)
    told: dict[tuple[Path, str], str] = field(default_factory=dict)
    """The item that told an error of a card in full: the others, which fail by it too, refer to that one."""
    places: dict[Path, tuple[Path | str, Path | None]] = field(default_factory=dict)
    """By card: the store and the data root of its images, as the fixtures of this process gave them."""
    ends_with: pytest.ExitCode | None = None
    """What the run has to end with, whatever pytest makes of it: an error that a worker of xdist told."""
    status: int | None = None
    """What the run ends with, once that is known."""
    cards: Sequence[Card] = ()
    """The cards behind the rows, as the run found them: records are written into them at its end."""

    @classmethod
    def from_config(cls, config: pytest.Config) -> SdbenchSession:
        """Read the settings, register the markers and point pytest at the cards."""
        check_rootdir(config)
        session = cls(config, Settings.from_pytest_config(config))
        forget_failures()
        for name, text in MARKERS.items():
            config.addinivalue_line("markers", f"{name}: {text} (pytest-sdbench)")
        pytest.register_assert_rewrite(SUITE)
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            # Nothing was named: the cards replace testpaths, and the folder itself when there are none.
            config.args[:] = [_argument(path, config.invocation_params.dir) for path in session._cards()]
        if (worker := getattr(config, "workerinput", None)) is not None:
            # Before torch is imported: workers whose threads outnumber the cores wait for each other.
            threads = max(1, (os.cpu_count() or 1) // int(worker["workercount"]))
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        typed = any(str(word).startswith(("--dist", "-d")) for word in config.invocation_params.args)
        if getattr(config.option, "dist", None) == "load" and not typed:
            # A card's tests share its evidence and its networks: whole cards go to one worker.
            config.option.dist = "loadfile"
        return session

    def _cards(self) -> list[Path]:
        patterns = self.config.getini("sdbench_cards")
        if not patterns:
            return [reference() / "cards"]
        root = (self.config.inipath or self.config.rootpath / "x").parent
        cards: list[Path] = []
        for pattern in patterns:
            each = os.path.expanduser(pattern)
            found = [root / path for path in glob.glob(each, root_dir=root, recursive=True)]
            if glob.has_magic(pattern):  # as in a folder, a file is a card if it says so
                found = [path for path in found if path.is_dir() or says_card(path)]
            if not found:
                raise pytest.UsageError(f"sdbench_cards: nothing matches {pattern!r} below {root}")
            cards += sorted(found)
        return cards

    # --- collection ---

    @pytest.hookimpl
    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Take a Markdown file that was named, or whose front matter says that it is a card."""
        if file_path.suffix.lower() != ".md":
            return None
        if parent.session.isinitpath(file_path) or is_card(file_path):
            return self._card_module(file_path, parent)
        return None

    def _card_module(self, path: Path, parent: pytest.Collector) -> CardModule:
        try:
            place = os.path.relpath(path, self.config.rootpath).replace(os.sep, "/")
        except ValueError:  # on another drive of Windows
            place = path.as_posix()
        # pytest prints an id as it is, and gives cards outside the rootdir none, or all the same one.
        as_usual = plain(place) == place and path.is_relative_to(self.config.rootpath)
        more: Any = {} if as_usual else {"nodeid": plain(place)}
        module: CardModule = CardModule.from_parent(parent, path=path, **more)
        return module

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Keep what is broken where pytest does not look: links that lead nowhere, what `--lf` skips."""
        report = yield
        if report.outcome != "passed":
            return report
        if isinstance(collector, CardModule) and self.config.getoption("lf", False):
            known = {item.nodeid for item in report.result}
            lost = (item for item in collector.collect() if is_broken(item) and item.nodeid not in known)
            report.result = [*report.result, *lost]
        if isinstance(collector, pytest.Directory):
            report.result = [*report.result, *self._lost_cards(collector)]
        return report

    def _lost_cards(self, folder: pytest.Directory) -> Iterator[CardModule]:
        """Yield the cards of a folder whose links lead nowhere, as one into a cache that was emptied."""
        for path in sorted(folder.path.glob("*.[mM][dD]")):
            if is_lost(path):
                ignored = folder.ihook.pytest_ignore_collect(collection_path=path, config=self.config)
                if not ignored:
                    yield self._card_module(path, folder)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, None, None]:
        """Name the cards, and keep the broken ones: no selection by marker or word takes them out."""
        self.names = own_names({module.path: None for item in items if (module := card_of(item))})
        broken = [item for item in items if is_broken(item)]
        items[:] = [item for item in items if not is_broken(item)]
        yield
        unwanted = tuple(self.config.getoption("deselect", None) or ())  # by its node id it may be left out
        dropped = [item for item in broken if item.nodeid.startswith(unwanted)]
        if dropped:
            self.config.hook.pytest_deselected(items=dropped)
        items[:0] = [item for item in broken if item not in dropped]

    @pytest.hookimpl
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Refuse a ``--sdbench-weights`` that names none of the collected cards, or more than one."""
        paths = {module.path: None for item in session.items if (module := card_of(item))}
        # The ini file speaks of all cards of a project, the command line of those of this run.
        typed = bool(self.config.getoption("sdbench_weights"))
        for key in self.settings.weights:
            meant = [path for path in paths if self._means(key, path)]
            if not meant and typed:
                known = ", ".join(sorted(self.names[path] for path in paths)) or "none"
                refuse(
                    session, f"{key!r} is none of the cards of this run ({known}); name a card or its file"
                )
            if not meant and not typed:
                self._check_ini_key(session, key)
            if len(meant) > 1:
                files = ", ".join(told(path) for path in meant)
                refuse(session, f"{key!r} is the name of {len(meant)} cards: {files}. Give the file of one")

    def _check_ini_key(self, session: pytest.Session, key: str) -> None:
        """Refuse a key of the ini file that no card of the project has; say so where these are not known."""
        if not self.config.getini("sdbench_cards"):
            self.written.append(f"sdbench_weights: {key!r} is none of the cards of this run")
            return
        places = [each for path in self._cards() for each in (path.rglob("*") if path.is_dir() else [path])]
        names = own_names(filter(says_card, places))
        here, root = self.config.invocation_params.dir, self.config.rootpath
        if not any(means(key, path, name, here, root) for path, name in names.items()):
            refuse(session, f"{key!r} is none of the cards of sdbench_cards ({', '.join(names.values())})")

    def _means(self, key: str, path: Path) -> bool:
        """Return whether a key names a card, by its path from the working folder or the rootdir on too."""
        return means(key, path, self.names.get(path), self.config.invocation_params.dir, self.config.rootpath)

    def weights_for(self, path: Path) -> Path | None:
        """Return the checkpoint that replaces a card's own in this run, if any."""
        found = [folder for key, folder in self.settings.weights.items() if self._means(key, path)]
        return found[0] if found else None

    def replaced(self) -> dict[str, str]:
        """Return the checkpoint that stands in for a card's own, by card, as it is told."""
        found = {row.card: self.weights_for(self.files[row.node_id]) for row in self.rows}
        typed = {card: told(folder) for card, folder in found.items() if folder is not None}
        # A conftest may put one there, too.
        return {row.card: str(row.extra["instead"]) for row in self.rows if "instead" in row.extra} | typed

    @contextmanager
    def visible_progress(self) -> Iterator[bool]:
        """Let a progress bar through pytest's capturing; yield whether there is anybody to see it."""
        if hasattr(self.config, "workerinput"):
            yield False
            return
        capture = self.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            yield True

    # --- results ---

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Begin a test without a row: a plugin that runs it again leaves that of the first time."""
        item.user_properties[:] = [
            pair for pair in item.user_properties if pair[0][: len(PROPERTY)] != PROPERTY
        ]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Turn our own errors into a line: what is lacking skips the test, what is broken fails it."""
        report = yield
        module = card_of(item)
        if module is None or call.excinfo is None:
            return report
        error = call.excinfo.value
        if isinstance(error, Unavailable):
            # To pytest as well it is a skip: `--pdb` stops at errors alone.
            skip = pytest.skip.Exception(str(error)).with_traceback(error.__traceback__)
            call.excinfo = pytest.ExceptionInfo.from_exception(skip)
            report.outcome = "skipped"
            report.longrepr = (plain(file_text(module)), 1, f"Skipped: {error}")
        elif report.skipped and isinstance(report.longrepr, tuple):
            # What was skipped stands in the card, not in the suite.
            report.longrepr = (plain(file_text(module)), 1, report.longrepr[2])
        elif isinstance(error, SdbenchError):
            first = self.told.setdefault((module.path, str(error)), item.nodeid)
            report.longrepr = str(error) if first == item.nodeid else f"The same error as in {first}"
        # Whoever skips a claim, or fails it, has looked at it: `pytest.skip` raises no Exception.
        ended = isinstance(error, (Exception, pytest.skip.Exception, pytest.fail.Exception))
        if ended and (call.when == "teardown" or not row_of(report.user_properties)):
            row = row_of_error(item, error, skipped=report.outcome == "skipped")
            report.user_properties.extend(properties(row, item))
        return report

    @pytest.hookimpl
    def pytest_internalerror(self) -> None:
        """End with pytest's own status: xdist ends with 0 where a worker had such an error."""
        self.ends_with = pytest.ExitCode.INTERNAL_ERROR

    @pytest.hookimpl
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """End as without xdist where a worker refused the options: to xdist it is an interruption."""
        if str(excinfo.value).startswith(REFUSED):
            self.ends_with = pytest.ExitCode.USAGE_ERROR

    @pytest.hookimpl(trylast=True)  # after the junit plugin
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the row of a finished test; under xdist this happens in the controller."""
        row = row_of(report.user_properties)
        if row is None and report.failed and (path := self._card_at(report.nodeid)) is not None:
            # A worker of xdist that died says nothing but which test it was at.
            row = row_of_crash(report.nodeid, self.names.get(path, card_name(path)), str(report.longrepr))
            self.files[row.node_id] = path
        if row is not None and row.verdict == Outcome.INCONCLUSIVE and report.when == "call":
            self._mark_inconclusive(report)
        if row is not None and (report.when == "call" or report.outcome != "passed"):
            self.rows = [known for known in self.rows if known.node_id != row.node_id] + [row]
            found = dict(report.user_properties)
            if PROPERTY + "file" not in found:
                return
            file = str(found[PROPERTY + "file"])
            named = self.config.rootpath / (os.path.expanduser(file) if file.startswith("~/") else file)
            # A name that a report cannot show as it is stands there written out.
            near = self.names if named not in self.names else ()
            path = next((each for each in near if plain(each) == str(named)), named)
            self.files[row.node_id] = path
            self.names[path] = row.card  # the controller of xdist collects nothing
            if PROPERTY + "store" in found:
                data = found[PROPERTY + "data"]
                self.places[path] = str(found[PROPERTY + "store"]), Path(str(data)) if data else None

    def _card_at(self, node_id: str) -> Path | None:
        """Return the card that a node id is in; None for any other test."""
        path = self.config.rootpath / node_id.partition("::")[0]
        return path if path.suffix.lower() == ".md" and path.is_file() and is_card(path) else None

    def _mark_inconclusive(self, report: pytest.TestReport) -> None:
        """Give the failure in a junit file a type of its own: what cannot be told is no regression."""
        xml = self.config.stash.get(xml_key, None)
        if xml is not None:
            for node in xml.node_reporter(report).nodes:
                if node.tag == "failure":
                    node.set("type", str(Outcome.INCONCLUSIVE))

    # --- the end ---

    @pytest.hookimpl
    def pytest_report_header(self) -> str:
        """Say where this run looks for what."""
        chosen = self.settings
        parts = [
            f"device {chosen.device}",
            f"dtype {chosen.dtype}",
            f"store {told(chosen.store)}",
            f"data {told(chosen.data) if chosen.data else 'none (--sdbench-data)'}",
            f"download {'on' if chosen.download else 'off'}",
        ]
        if chosen.samples:
            parts.append(f"{chosen.samples} images only: nothing is comparable")
        if chosen.budget:
            parts.append(f"budget {chosen.budget:,} images")
        parts += [f"{card} = {told(path)}" for card, path in chosen.weights.items()]
        return plain("sdbench: " + ", ".join(parts))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: Any, exitstatus: int | pytest.ExitCode
    ) -> Generator[None, None, None]:
        """Show claimed beside measured and what was written, after all that others have to say."""
        yield
        # What pytest hands over is the status from before this run was finished.
        self._show_results(terminalreporter, int(exitstatus) if self.status is None else self.status)
        for line in self.written:
            terminalreporter.write_line(f"sdbench: {plain(told(line))}")

    def _show_results(self, terminalreporter: Any, status: int) -> None:
        if self.rows:
            from pytest_sdbench.report.terminal import terminal_tables

            terminalreporter.section("sdbench: claimed and measured")
            verbose = self.config.get_verbosity() > 0
            writer = self.config.get_terminal_writer()
            text = terminal_tables(
                self.rows,
                self.cards,
                verbose=verbose,
                width=writer.fullwidth,
                paint=lambda text, verdict: writer.markup(text, **_MARKUP.get(verdict, {"yellow": True})),
                status=status,
            )
            # Of a line that the terminal's encoding cannot show pytest writes out all, its end too.
            for line in text.split("\n"):
                terminalreporter.write_line(line)
        for diff in self.diffs:
            terminalreporter.section("sdbench: recorded", sep="-")
            terminalreporter.write_line("\n".join(map(plain, diff.rstrip().split("\n"))))
        if self.diffs:
            reason = "Records changed, so this run fails: review the diff, commit it, and run again."
            terminalreporter.write_line(reason)


def _argument(path: Path, here: Path) -> str:
    """Return a path as an argument of pytest, to which a bracket begins the parameters of a test."""
    with suppress(ValueError):  # on another drive of Windows
        return os.path.relpath(path, here) if "[" in str(path) else str(path)
    return str(path)
