"""Find the line of a card's file that says something."""

from __future__ import annotations

import re
from typing import Any

from pytest_sdbench.base.schema import Keys
from pytest_sdbench.cards.card import Card
from pytest_sdbench.cards.front_matter import FrontMatter

_PART = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_NETWORK: dict[str, Keys] = {
    "compute": ("sdbench", "compute", "unet_macs"),
    "speed": ("sdbench", "speed", "unet_ratio", "max"),
    "memory": ("sdbench", "memory", "peak_bytes", "max"),
}


def line_at(front: FrontMatter, keys: Keys) -> int:
    """Return the line of a file, from 1 on, in which a value stands; of an absent one that of what is around.

    A line ends as git and GitHub count them, with a line feed; YAML knows more ends.
    """
    node: Any = front.node
    found = front.start
    for key in keys:
        mark, node = _below(node, key)
        if mark is None:
            break
        found = front.start + mark.index
    return front.text.count("\n", 0, found) + 1


def _below(node: Any, key: str | int) -> tuple[Any, Any]:
    """Return where an entry of a mapping or a list begins, and its value; nothing where there is no such."""
    if node is None or isinstance(node.value, str):
        return None, None
    for at, item in enumerate(node.value):
        name, value = item if isinstance(item, tuple) else (None, item)
        if key == (at if name is None else str(name.value)):
            return (value if name is None else name).start_mark, value
    return None, None


def line_of_fault(front: FrontMatter | None, key: str | None) -> int:
    """Return the line that an error's key means, as `line 7` or ``model-index[0].name``; else the first."""
    if key and (told := re.fullmatch(r"line (\d+)", key)):
        return int(told[1])
    if front is None or not key:
        return 1
    parts = [int(number) if number else word for number, word in _PART.findall(key)]
    return line_at(front, tuple(parts))


def claim_keys(card: Card, test: str, name: str, where: Keys = ()) -> Keys | str:
    """Return the keys of what a test of a card judges, or as an error tells them.

    `name` is the claim's id or the component; `where` is protocol and metric of what no claim is of.
    """
    if test == "size":
        return ("sdbench", "size", name, "exact")
    if test == "speed" and card.speed is None:
        return ("sdbench", "speed", "unet_seconds", "max")
    if test in _NETWORK:
        return _NETWORK[test]
    for claim in (*card.claims, *(problem.claim for problem in card.problems if problem.claim)):
        if claim.id == name:
            return claim.place
    for problem in card.problems:
        if problem.id == name:
            return problem.error.key or ""
    return ("sdbench", "margins", *where)
