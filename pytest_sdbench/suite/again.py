"""Say how a run is made again, without what is nobody's business."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from pytest_sdbench.base.options import OPTIONS
from pytest_sdbench.base.paths import told

_SELECT = ("-k", "-m")


def command_again(words: Iterable[str], folder: Path) -> str:
    """Return the command of a run that was started in a folder: cards, our options, and what selects.

    Options of others are left out, as they may hold anything; so are secrets of URLs and a user's folders.
    """
    return shlex.join(["python", "-m", "pytest", *map(told, _kept(iter(words), folder))])


def _kept(words: Iterator[str], folder: Path) -> Iterator[str]:
    for word in words:
        name = word.partition("=")[0]
        if name in OPTIONS or word in _SELECT:
            yield word
            takes = word in _SELECT or (name == word and OPTIONS[name].kind != "switch")
            if takes and (value := next(words, None)) is not None:
                yield value
        elif word[:2] in _SELECT or (not word.startswith("-") and (folder / word.split("::")[0]).exists()):
            yield word
