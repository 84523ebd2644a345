"""Read YAML that somebody else wrote, within bounds of time and memory."""

from __future__ import annotations

import re
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import first_line
from pytest_sdbench.base.files import read_bounded

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

LARGEST = 1 << 20
"""Characters of a document: reading so many takes seconds."""
DEEPEST = 64
"""Lists and mappings in each other."""
MOST = 100_000
"""Values, those behind an alias counted wherever it stands: nine lines of aliases can stand for a billion."""

_SURELY_TOO_DEEP = 1000
"""Brackets that are open at once; some may stand in quotes."""
_MANY_DASHES = re.compile(rf"(?:[-?][ \t]+){{{_SURELY_TOO_DEEP}}}")
_BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}


class YamlFault(Exception):
    """Why a text is not read: `line` counts from 0 and is None where no line is to blame."""

    def __init__(self, message: str, remedy: str, line: int | None = None, found: str = "") -> None:
        super().__init__(message)
        self.message, self.remedy, self.line, self.found = message, remedy, line, found


def read_yaml_file(path: Path) -> Any:
    """Return the plain Python values of a file; raise OSError, UnicodeDecodeError or YamlFault."""
    return read_yaml(read_bounded(path, 4 * LARGEST).decode("utf-8"))[0]


def read_yaml(text: str) -> tuple[Any, Node | None]:
    """Return plain Python values, and the same as a tree of nodes, whose marks count from the beginning.

    Raises YamlFault for whatever is wrong with the text, and for one that is larger, deeper or longer, with
    its aliases written out, than anything that a person writes.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import MarkedYAMLError

    if len(text) > LARGEST:
        message = f"{len(text):,} characters of YAML, and at most {LARGEST:,} are read"
        raise YamlFault(message, "Keep here what belongs here")
    # The library takes minutes to find out that brackets or dashes by the thousand are too many.
    steps = (_BRACKETS.get(char, 0) for char in text)
    open_brackets = accumulate(steps, lambda count, step: max(0, count + step), initial=0)
    if max(open_brackets) > _SURELY_TOO_DEEP or _MANY_DASHES.search(text):
        raise _too_deep()
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
        _check_bounds(node)
        return None if node is None else yaml.constructor.construct_document(node), node
    except YamlFault:
        raise
    except DuplicateKeyError as error:
        # The library quotes both values, at any length.
        key = str(error.problem).removeprefix('found duplicate key "').partition('"')[0]
        line = error.problem_mark.line if error.problem_mark else None
        raise YamlFault("a key stands twice in one mapping", "Keep one of the two", line, key) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if error.context_mark and "end of stream" in str(error.problem):
            mark = error.context_mark  # where the quote was opened that nothing closes
        line = mark.line if mark else None
        told = "".join(text.splitlines()[line : line + 1]).strip() if line is not None else ""
        remedy = "Correct the YAML of that line (or of the one above it)"
        raise YamlFault(f"not valid YAML: {error.problem or error.context}", remedy, line, told) from None
    except RecursionError:
        raise _too_deep() from None
    except Exception as error:  # values that no type holds: a month 13, an integer of 5,000 digits
        message = f"not valid YAML: {first_line(error)}"
        raise YamlFault(message, "Correct the value, or put it in quotes") from None


def _check_bounds(root: Node | None) -> None:
    """Raise YamlFault for a tree that is too deep, or too long with its aliases written out."""
    counted: dict[int, int] = {}
    above: set[int] = set()

    def count(node: Any) -> int:
        if isinstance(node.value, str):
            return 1
        if id(node) in above:
            raise YamlFault(
                "an alias stands in what it stands for", "Write the values out", node.start_mark.line
            )
        if len(above) >= DEEPEST:
            raise _too_deep()
        if id(node) not in counted:
            above.add(id(node))
            parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
            counted[id(node)] = 1 + sum(map(count, parts))
            above.discard(id(node))
        return counted[id(node)]

    if root is not None and (values := count(root)) > MOST:
        message = f"{values:,} values with its aliases written out, and at most {MOST:,} are read"
        raise YamlFault(message, "Write out what you mean, without aliases of aliases")


def _too_deep() -> YamlFault:
    return YamlFault(f"more than {DEEPEST} lists and mappings in each other", "Write it flatter")
