"""Annotations of GitHub Actions: what fell, on the line of the card that claims it.

A line of the log is a command to the runner (actions/toolkit, ``core/src/command.ts``):
``::error file=F,line=N,title=T::MESSAGE``. A step shows ten errors and ten warnings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_sdbench.base.errors import SdbenchError, cut
from pytest_sdbench.base.paths import real, told
from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import Card, check_lineage, read_card
from pytest_sdbench.cards.front_matter import FrontMatter, parse, read_text
from pytest_sdbench.cards.places import claim_keys, line_at, line_of_fault
from pytest_sdbench.report.cells import NETWORK
from pytest_sdbench.report.html.claims import ClaimLine, claim_lines, labels_of, share_rows
from pytest_sdbench.report.results import Row

MOST = 10
"""Annotations of one level that GitHub shows of a step."""
_MESSAGE, _TITLE = 4000, 200
"""Characters; the runner cuts a message at 4,096."""
_SAYS = {"fail": "fell", "error": "cannot be judged", "inconclusive": "is too close to call"}


@dataclass(frozen=True)
class Annotation:
    """One message on a line of a file of the repository."""

    level: str
    """``error`` or ``warning``."""
    title: str
    message: str
    file: str = ""
    """From the root of the repository on; empty where the card lies outside."""
    line: int = 1

    @property
    def command(self) -> str:
        """Return the line of the log that makes it."""
        place = {"file": self.file, "line": str(self.line)} if self.file else {}
        told = place | {"title": self.title}
        properties = ",".join(f"{key}={_property(value)}" for key, value in told.items())
        return f"::{self.level} {properties}::{_data(self.message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def annotations_of(
    rows: Sequence[Row],
    cards: Sequence[Card],
    files: Mapping[str, Path],
    repository: Path | None,
    *,
    open_fails: bool = True,
) -> list[Annotation]:
    """Return what GitHub is to show of the claims that did not hold, the worst first, ten of a level at most.

    `files` has the card of each node id. What holds for many claims of a card in the same words is one.
    `open_fails` says whether a claim that is too close to call is an error, or a warning.
    """
    rows, twins = share_rows([row for row in rows if row.verdict in _SAYS])
    known = {row.node_id: row for row in rows}
    found: dict[tuple[str, str], list[Annotation]] = {}
    for line in claim_lines(rows, twins, labels_of(cards)):
        row = known[line.node_ids[0]]
        level = "error" if open_fails or row.verdict != "inconclusive" else "warning"
        path = files[row.node_id]
        place, number = _place(path, repository), _line(row, path)
        message = cut(plain(" ".join(row.reason.split())), _MESSAGE)
        if not place:
            message = cut(plain(f"{told(path)}, line {number}: {message}"), _MESSAGE)
        title = cut(plain(_title(row, line)), _TITLE)
        found.setdefault((row.card, row.reason), []).append(Annotation(level, title, message, place, number))
    each = [_together(same) for same in found.values()]
    return [kept for level in ("error", "warning") for kept in _few(level, each)]


def _title(row: Row, line: ClaimLine) -> str:
    if row.test not in (*NETWORK, "quality", "calibration"):
        return f"{row.card} cannot be read"
    return f"{row.card}: {line.title} {_SAYS[row.verdict]}"


def _together(same: Sequence[Annotation]) -> Annotation:
    first, *others = same
    return replace(first, title=f"{first.title}, and {len(others)} more") if others else first


def _few(level: str, found: Sequence[Annotation]) -> list[Annotation]:
    """Return the annotations of a level; the last one counts those that GitHub would not show."""
    mine = [each for each in found if each.level == level]
    if len(mine) <= MOST:
        return mine
    rest = len(mine) - MOST + 1
    more = Annotation(level, f"{rest} more", f"{rest} more are in the summary and in the report of this run")
    return [*mine[: MOST - 1], more]


def _place(path: Path, repository: Path | None) -> str:
    """Return a card's path from the root of the repository on; empty where it lies elsewhere."""
    if repository is None:
        return ""
    # A checkout may lie in a folder of the workspace.
    above = [folder for folder in path.absolute().parents if folder.is_relative_to(repository)]
    repository = next((folder for folder in above if (folder / ".git").exists()), repository)
    for place, root in ((Path(os.path.abspath(path)), repository), (real(path), real(repository))):
        # What is installed into a folder of the checkout is no part of the repository.
        if place.is_relative_to(root) and "site-packages" not in (within := place.relative_to(root)).parts:
            return within.as_posix()
    return ""


def _line(row: Row, path: Path) -> int:
    """Return the line of a card's file that a row is of; 1 where the file cannot be read."""
    front: FrontMatter | None = None
    try:
        front = parse(path, read_text(path))
        card = read_card(path)
        check_lineage(card)
    except SdbenchError as error:
        # It may be of another file: of the baseline's, or of a protocol.
        own = error.file is not None and Path(error.file) == path
        return line_of_fault(front, error.key) if own else 1
    keys = claim_keys(card, row.test, row.name, (row.protocol, row.metric))
    return line_of_fault(front, keys) if isinstance(keys, str) else line_at(front, keys)
