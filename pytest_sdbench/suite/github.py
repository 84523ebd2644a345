"""Say on GitHub what came of a run: the summary of its step, and annotations on the cards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.paths import told
from pytest_sdbench.suite.session import SdbenchSession


@dataclass(eq=False)  # pluggy keeps plugins in sets
class GithubReport:
    """What GitHub shows of one run."""

    session: SdbenchSession
    summary: Path | None
    """The file of the step's summary, to which others write too."""
    repository: Path | None
    """The root of the checkout."""

    @classmethod
    def of_run(cls, session: SdbenchSession, environment: Mapping[str, str]) -> GithubReport | None:
        """Return the plugin of a run, or None: it is not one of GitHub Actions, or is a worker of another."""
        worker = hasattr(session.config, "workerinput") or session.config.option.collectonly
        if worker or session.settings.github == "off" or environment.get("GITHUB_ACTIONS") != "true":
            return None
        summary, root = environment.get("GITHUB_STEP_SUMMARY"), environment.get("GITHUB_WORKSPACE")
        return cls(session, Path(summary) if summary else None, Path(root) if root else None)

    @pytest.hookimpl(trylast=True)  # when the exit status is known and the reports are written
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Append the summary of the run to that of the step."""
        if self.summary is None:
            return
        from pytest_sdbench.report.cells import code
        from pytest_sdbench.report.summary import SUMMARY, summary

        run = self.session
        reports = ", ".join(code(told(path)) for path in run.settings.report)
        try:
            before = self.summary.stat().st_size if self.summary.is_file() else 0
            text = summary(
                run.rows,
                run.cards,
                status=int(session.exitstatus),
                instead=run.replaced(),
                ending=[f"Written: {reports}"] if reports else [],
                room=SUMMARY - before - 1,
            )
            if not text:
                raise OSError(f"the step has one of {before:,} bytes already, and GitHub shows {SUMMARY:,}")
            with self.summary.open("ab") as file:
                # A blank line ends whatever the text before it is.
                file.write((b"\n" if before else b"") + text.encode("utf-8", "replace"))
        except OSError as error:
            run.written.append(f"the step's summary was NOT written: {error}")

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the annotations, which are lines of the log."""
        from pytest_sdbench.report.annotations import annotations_of

        run = self.session
        found = annotations_of(
            run.rows,
            run.cards,
            run.files,
            self.repository,
            open_fails=run.settings.inconclusive == "fail",
        )
        for each in found:
            terminalreporter.write_line(each.command)
