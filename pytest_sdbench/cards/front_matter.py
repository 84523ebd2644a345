"""Read the YAML front matter of a model card, with the place of every value in the file.

The hub reads cards with PyYAML, which is YAML 1.1; ruamel.yaml reads YAML 1.2. A value that the two read
differently is an error here, so that a card means the same to everybody who reads it.
"""

from __future__ import annotations

import codecs
import math
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.files import open_regular, read_bounded
from pytest_sdbench.base.schema import Keys, dotted
from pytest_sdbench.base.yaml import YamlFault, read_yaml

if TYPE_CHECKING:
    from ruamel.yaml.nodes import Node

# The hub's own pattern, so that what it finds and what we find is the same block.
BLOCK = re.compile(r"\A(\s*---(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)---[ \t]*(\r\n|\n|\Z))")
# What a person sees as front matter, and the hub does not: behind a byte order mark, or between longer rules.
_SEEN = re.compile(
    r"\A(\ufeff?\s*-{3,}[ \t]*(?:\r\n|\r|\n))([\S\s]*?)((?:\r\n|\r|\n)-{3,}[ \t]*(\r\n|\n|\Z))"
)
EMPTY_BLOCK = re.compile(r"\A\ufeff?\s*-{3,}[ \t]*(?:\r\n|\r|\n)-{3,}[ \t]*(?:\r\n|\n|\Z)")
_OURS = re.compile(r"""^(?:\{\s*)?(["']?)(?:model-index|sdbench)\1\s*:""", re.MULTILINE)
_WORDS = re.compile(r"model-index|sdbench|\\[uUx]")

_INT_IN_BOTH = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)")
_FLOAT_IN_BOTH = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_NOT_TEXT_IN_1_1 = re.compile(
    r"(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
)
_LARGEST = 1 << 25
"""Bytes of a card."""
_AS_UTF_8 = "Save the file as UTF-8 without a byte order mark"


@dataclass(frozen=True)
class FrontMatter:
    """The text of a card file and the parsed YAML block at its head."""

    path: Path
    text: str
    """The whole file, line endings as they are."""
    start: int
    """Where the YAML begins in ``text``."""
    end: int
    data: dict[str, Any]
    """Plain Python values."""
    node: Node | None
    """The same as a tree of nodes, None where comments are all there is; their marks count from ``start``."""

    @property
    def newline(self) -> str:
        """Return the line ending that the front matter is written with."""
        first = re.search(r"\r\n|\r|\n", self.text[: self.end])
        return first.group() if first else "\n"

    @cached_property
    def body(self) -> str:
        """Return what stands below the front matter."""
        match = find_block(self.text)
        return self.text[match.end() :] if match else ""

    @property
    def hidden(self) -> CardError | None:
        """Return why the hub does not find what stands here, or None: it does."""
        if BLOCK.match(self.text):
            return None
        if self.text.startswith("\ufeff"):
            message = "the card begins with a byte order mark, behind which the hub finds no front matter"
            return CardError(message, file=self.path, key="byte 0", found="\ufeff", remedy=_AS_UTF_8)
        message, remedy = "the hub finds no front matter between such lines", "Write both as `---` alone"
        rules = self.text[: self.start].strip(), self.text[self.end :].lstrip().splitlines()[0].rstrip()
        return CardError(message, file=self.path, key="line 1", found=" and ".join(rules), remedy=remedy)

    def error(self, keys: Keys, message: str, found: object, remedy: str) -> CardError:
        """Return an error of what stands at a path of keys."""
        return CardError(message, file=self.path, key=dotted(keys), found=found, remedy=remedy)

    def find(self, *keys: str | int) -> Node | None:
        """Return the node at a path of keys and positions, or None."""
        node: Node | None = self.node
        for key in keys:
            node = below(node).get(key)
        return node

    def scalar(self, *keys: str | int) -> str | None:
        """Return a scalar exactly as the file prints it, or None."""
        node = self.find(*keys)
        return node.value if node is not None and isinstance(node.value, str) else None


def below(node: Any) -> dict[str | int, Node]:
    """Return the nodes in a mapping by key, in a list by position; a scalar and None have none."""
    if node is None or isinstance(node.value, str):
        return {}
    pairs = (item if isinstance(item, tuple) else (None, item) for item in node.value)
    return {at if key is None else str(key.value): value for at, (key, value) in enumerate(pairs)}


def find_block(text: str) -> re.Match[str] | None:
    """Return the match of a text's front matter, group 2 its YAML; None where it has none or an empty one."""
    return None if EMPTY_BLOCK.match(text) else BLOCK.match(text) or _SEEN.match(text)


def is_card(path: str | Path) -> bool:
    """Return whether a file's front matter has ``model-index`` or ``sdbench``; reads YAML where it must."""
    try:
        with open_regular(Path(path)) as file:
            head = file.read(_LARGEST)
    except (OSError, ValueError) as error:
        # What may not be read may be a card: nobody is to be told that all is well.
        return isinstance(error, PermissionError)
    wide = head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    text = head.decode("utf-16" if wide else "utf-8-sig", errors="replace")
    block = find_block(text)
    # Front matter that is never closed is a broken card, to be told of, and no other file.
    front = block.group(2) if block else text if text.lstrip().startswith("---") else ""
    if _OURS.search(dedent(front)):
        return True
    if not _WORDS.search(front):
        return False
    try:  # JSON, or another way to write a key
        data, _ = read_yaml(front)
    except YamlFault:
        return False
    return isinstance(data, dict) and not data.keys().isdisjoint(("model-index", "sdbench"))


def is_lost(path: Path) -> bool:
    """Return whether a card's file is a link that leads nowhere; an editor's lock, ``.#x.md``, is no card."""
    return path.is_symlink() and not path.exists() and not path.name.startswith(".")


def says_card(path: Path) -> bool:
    """Return whether a file is one that folders are searched for: a card, or a link to a lost one."""
    return path.suffix.lower() == ".md" and (is_card(path) or is_lost(path))


def read_text(path: Path) -> str:
    """Return a card's text with its line endings untouched."""
    try:
        return read_bounded(path, _LARGEST).decode("utf-8")
    except UnicodeDecodeError as error:
        key, found = f"byte {error.start}", error.object[error.start : error.start + 4]
        raise CardError(
            "the card is not UTF-8 text", file=path, key=key, found=found, remedy=_AS_UTF_8
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise CardError(f"the card cannot be read: {reason}", file=path, remedy="Check the path") from None


# A card is read by itself, as a baseline and in each lineage.
@lru_cache(maxsize=64)
def parse(path: Path, text: str) -> FrontMatter:
    """Return the front matter of a card's text; broken YAML is an error that names the line."""
    if (match := find_block(text)) is None:
        begins = text.strip().split("\n", 1)[0][:60].rstrip("\r")
        remedy = (
            "Begin with `---`, the YAML, and `---`; `python -m pytest_sdbench draft FOLDER` writes a card"
        )
        if begins.rstrip() == "---" and not EMPTY_BLOCK.match(text):
            message = "the front matter is not closed: no line behind the YAML is `---` alone"
            raise CardError(
                message, file=path, key="line 1", found=begins, remedy="Write that line, not indented"
            )
        raise CardError("the card has no front matter", file=path, key="line 1", found=begins, remedy=remedy)
    block, first_line = match.group(2), text[: match.start(2)].count("\n") + 1
    try:
        data, node = read_yaml(block)
    except YamlFault as fault:
        key = None if fault.line is None else f"line {fault.line + first_line}"
        message, found = f"the front matter: {fault.message}", fault.found or None
        raise CardError(message, file=path, key=key, found=found, remedy=fault.remedy) from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        message, found = "the front matter is not a mapping of keys to values", type(data).__name__
        remedy = "Write `key: value` lines between the two `---`"
        raise CardError(message, file=path, key=f"line {first_line}", found=found, remedy=remedy)
    return FrontMatter(path, text, match.start(2), match.end(2), data, node)


def check_yaml_1_1(front: FrontMatter, path: Keys) -> None:
    """Raise where a value at a path, or below it, means something else in YAML 1.1, as the hub reads it."""
    _check_node(front, front.find(*path), path)


def _check_node(front: FrontMatter, node: Any, path: Keys) -> None:
    for key, item in below(node).items():
        _check_node(front, item, (*path, key))
    if node is None or not isinstance(node.value, str) or node.style is not None:
        return
    text, tag = node.value, str(node.tag).rsplit(":", 1)[-1]
    if tag == "int" and not _INT_IN_BOTH.fullmatch(text):
        remedy = f"Write a plain decimal number, or quote it: {text!r}"
    elif tag == "float" and not _FLOAT_IN_BOTH.fullmatch(text):
        remedy = f"Write {spelled(text)}, with a dot before and a sign in the exponent"
        if not math.isfinite(float(text)):
            remedy = "Write a number that is finite"
    elif tag == "str" and _NOT_TEXT_IN_1_1.fullmatch(text):
        remedy = f'Quote it: "{text}"'
    else:
        return
    if path[-1:] == ("value",) and tag != "float":  # text is no figure, in quotes or without
        remedy = "Write a plain decimal number"
    other = "no text" if tag == "str" else "text or another number"
    raise front.error(path, f"to the hub (YAML 1.1) this is {other}", text, remedy)


def spelled(text: str) -> str:
    """Return a number in the spelling that both YAML versions read as a float."""
    sign = "-" if text.startswith("-") else ""
    mantissa, mark, exponent = text.lstrip("+-").lower().partition("e")
    mantissa = mantissa if "." in mantissa else mantissa + ".0"
    mantissa = "0" + mantissa if mantissa.startswith(".") else mantissa
    exponent = exponent if not exponent or exponent[0] in "+-" else "+" + exponent
    return sign + mantissa + mark + exponent
