"""Say how a run is made again, without what is nobody's business."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence

from pytest_sdbench.base.options import OPTIONS
from pytest_sdbench.base.paths import told

_SELECT = ("-k", "-m", "-c", "-o", "--config-file", "--deselect", "--ignore", "--override-ini", "--rootdir")
"""Options of pytest that say which tests of which project run; each has a value."""


def command_again(words: Sequence[str], named: Collection[str]) -> str:
    """Return the command of a run: the cards that were named, our options, and what selects.

    Options of others are left out, as they may hold anything; so are secrets of URLs and a user's folders.
    """
    return shlex.join(["python", "-m", "pytest", *map(told, _kept(words, named))])


def _kept(words: Sequence[str], named: Collection[str]) -> Iterator[str]:
    takes = False
    for word in words:
        if word.startswith("@"):  # a file of arguments: pytest tells which cards it named
            yield from (each for each in named if each not in words)
            continue
        is_value, takes = takes and not word.startswith("-"), False
        name = word.partition("=")[0]
        if is_value or word in named or word[:2] in ("-k", "-m", "-c", "-o"):
            yield word
            takes = not is_value and word in _SELECT
        elif name in _SELECT or name in OPTIONS:
            yield word
            takes = name == word and (name in _SELECT or OPTIONS[name].kind != "switch")
