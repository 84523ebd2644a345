"""Write what was measured into a card, changing no other line.

A YAML writer reflows what it did not change, so nothing is dumped: the new text is put in the place of the
old, by the marks of the parsed document, and the result is read again before it replaces the file.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.files import write_atomically
from pytest_sdbench.cards.front_matter import FrontMatter, child, parse, read_text
from pytest_sdbench.cards.records import Entry, Record
from pytest_sdbench.cards.schema import check_value
from pytest_sdbench.metrics.registry import METRICS

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# Words of another type in YAML 1.1, and fingerprints: some of those are numbers, so all look alike in quotes.
_QUOTED = re.compile(r"(?i:y|n|yes|no|on|off|true|false|null)|[0-9a-f]{8,}")


def write_records(path: Path, records: Sequence[Entry]) -> str:
    """Write records into a card and return the unified diff; an empty diff leaves the file alone.

    A record replaces the one that is equal in its `key`, in its place; any other is appended. Comments,
    order, number formats and line endings of everything else stay. The file is replaced at once or not at
    all. Raises CardError if the card cannot be read, has no ``sdbench`` block, or cannot be edited in place.
    """
    path = Path(path)
    before = read_text(path)
    after = with_records(path, before, records)
    if after == before:
        return ""
    _replace(path, after)
    return _diff(path, before, after)


def with_records(path: Path, text: str, records: Sequence[Entry]) -> str:
    """Return a card's text with records put in; the file itself is not touched."""
    for record in records:
        figures = [getattr(record, name) for name in record.figures]
        if not all(figure is None or math.isfinite(figure) for figure in figures):
            raise CardError(
                "a figure that is not finite is no reference",
                file=path,
                key=f"sdbench.{record.place}",
                found=figures,
                remedy=f"Measure {' '.join(record.key)} again",
            )
        if isinstance(record, Record) and record.metric in METRICS:
            value = record.to_dict()["value"]
            check_value(path, f"sdbench.{record.place}", record.metric, value, recorded=True)
        front = parse(path, text)
        block = front.find("sdbench")
        if block is None or not isinstance(block.value, list) or not block.value:
            raise CardError(
                "there is no place for records: the card has no `sdbench` block",
                file=path,
                key="sdbench",
                remedy="`python -m pytest_sdbench draft FOLDER` writes one for a checkpoint",
            )
        edited = _edit(front, block, record)
        _check(front, edited, record)
        text = edited
    return text


def _edit(front: FrontMatter, block: Any, record: Entry) -> str:
    text, offset, new = front.text, front.start, record.to_dict()
    node: Any = child(block, record.place)
    if node is None:
        return _insert_key(front, block, record.place, new)
    if not isinstance(node.value, list):
        return _fill_empty(front, block, node, new)
    for item in node.value:
        if _key_of(item, record.names) == record.key:
            return _replace_entry(front, item, new)
    if not node.value:
        return _fill_empty(front, block, node, new)
    last = node.value[-1]
    if node.flow_style:
        end = offset + last.end_mark.index
        return text[:end] + ", " + _flow(new) + text[end:]
    end = _line_end(text, offset + _leaf_end(last))
    column = node.start_mark.column
    return text[:end] + front.newline + _block(new, column, front.newline) + text[end:]


def _insert_key(front: FrontMatter, block: Any, place: str, new: Mapping[str, Any]) -> str:
    text, offset = front.text, front.start
    if block.flow_style:
        end = offset + _leaf_end(block) - 1
        head = text[:end].rstrip().rstrip(",")
        return f"{head}, {place}: [{_flow(new)}]{text[end:]}"
    end = _line_end(text, offset + _leaf_end(block))
    column = block.start_mark.column
    lines = " " * column + f"{place}:" + front.newline + _block(new, column, front.newline)
    return f"{text[:end]}{front.newline}{lines}{text[end:]}"


def _fill_empty(front: FrontMatter, block: Any, node: Any, new: Mapping[str, Any]) -> str:
    """Put the first entry in the place of ``[]``, ``null`` or nothing; a comment behind it stays."""
    text, offset = front.text, front.start
    name = next(pair[0] for pair in block.value if pair[1] is node)
    start = text.index(":", offset + name.end_mark.index) + 1
    end = offset + node.end_mark.index if node.end_mark.index > node.start_mark.index else start
    if block.flow_style:
        return text[:start] + " [" + _flow(new) + "]" + text[end:]
    line = _line_end(text, end)
    rest = text[end:line]
    comment = " " * (end - start) + rest if rest.strip() else ""
    lines = front.newline + _block(new, block.start_mark.column, front.newline)
    return text[:start] + comment.rstrip() + lines + text[line:]


def _replace_entry(front: FrontMatter, item: Any, new: Mapping[str, Any]) -> str:
    """Change only the values that differ, or the whole entry where its keys do."""
    text, offset = front.text, front.start
    spans: list[tuple[int, int, str]] = []
    if _changes(item, new, spans):
        for start, end, value in sorted(spans, reverse=True):
            text = text[: offset + start] + value + text[offset + end :]
        return text
    start = offset + item.start_mark.index
    if item.flow_style:
        return text[:start] + _flow(new) + text[offset + item.end_mark.index :]
    end = _line_end(text, offset + _leaf_end(item))
    # The dash before the entry stays: its keys begin at the column where they stood.
    lines = _block(new, item.start_mark.column - 2, front.newline)
    return text[:start] + lines.lstrip(" ").removeprefix("- ") + text[end:]


def _changes(node: Any, new: Mapping[str, Any], spans: list[tuple[int, int, str]]) -> bool:
    """Collect the values to exchange; return whether old and new entry have the same keys."""
    old = {pair[0].value: pair[1] for pair in node.value}
    if set(old) != set(new):
        return False
    for key, value in new.items():
        was = old[key]
        if isinstance(value, Mapping):
            if not isinstance(was.value, list) or not _changes(was, value, spans):
                return False
        elif isinstance(was.value, list):
            return False
        elif not _same(was, value):
            spans.append((was.start_mark.index, was.end_mark.index, scalar(value)))
    return True


def _same(node: Any, value: Any) -> bool:
    if isinstance(value, str):
        return bool(node.value == value)
    with contextlib.suppress(ValueError):
        return float(node.value) == float(value)
    return False


def _key_of(item: Any, names: Sequence[str]) -> tuple[str, ...] | None:
    found = [str(node.value) for name in names if (node := child(item, name)) is not None]
    return tuple(found) if len(found) == len(names) else None


def _leaf_end(node: Any) -> int:
    """Return where a node's last value ends; a block's own end mark lies behind the comments below it."""
    if not isinstance(node.value, list) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    if not isinstance(last, tuple):
        return _leaf_end(last)
    key, value = last
    empty = value.end_mark.index <= value.start_mark.index
    return int(key.end_mark.index) + 1 if empty and not isinstance(value.value, list) else _leaf_end(value)


def _line_end(text: str, index: int) -> int:
    while index and text[index - 1] in "\r\n":
        index -= 1
    ends = [found for found in (text.find("\r", index), text.find("\n", index)) if found >= 0]
    return min(ends, default=len(text))


def _block(entry: Mapping[str, Any], column: int, newline: str) -> str:
    """Return an entry of a block sequence whose dash stands at a column, without the last line ending."""
    pad = " " * column
    return newline.join(f"{pad}{'  ' if at else '- '}{line}" for at, line in enumerate(_pairs(entry)))


def _flow(entry: Mapping[str, Any]) -> str:
    return "{" + ", ".join(_pairs(entry)) + "}"


def _pairs(entry: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {_flow(value) if isinstance(value, Mapping) else scalar(value)}"
        for key, value in entry.items()
    ]


def scalar(value: Any) -> str:
    """Return a value in a spelling that YAML 1.1 and 1.2 read alike, in block and in flow."""
    if isinstance(value, float):
        text = repr(value)
        mantissa, mark, exponent = text.partition("e")
        if not mark:
            return text
        # repr writes 1e-05; YAML 1.1 wants a dot.
        return (mantissa if "." in mantissa else mantissa + ".0") + "e" + exponent
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _WORD.fullmatch(text) and not _QUOTED.fullmatch(text):
        return text
    for char, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(char, escape)
    return f'"{text}"'


def _check(front: FrontMatter, text: str, record: Entry) -> None:
    """Read the edited text again: the record is in, nothing else changed its meaning."""

    def of_record(entry: Mapping[str, Any]) -> bool:
        return tuple(str(entry[name]) for name in record.names) == record.key

    try:
        after = parse(front.path, text).data
        before_block, after_block = dict(front.data["sdbench"]), dict(after["sdbench"])
        before_records = before_block.pop(record.place, None) or []
        after_records = after_block.pop(record.place)
        right = (
            {**front.data, "sdbench": before_block} == {**after, "sdbench": after_block}
            and [entry for entry in before_records if not of_record(entry)]
            == [entry for entry in after_records if not of_record(entry)]
            and [_comparable(entry) for entry in after_records if of_record(entry)]
            == [_comparable(record.to_dict())]
            and parse(front.path, text).body == front.body
        )
    except (CardError, KeyError, TypeError):
        right = False
    if not right:
        raise CardError(
            "the records cannot be edited in place",
            file=front.path,
            key=f"sdbench.{record.place}",
            remedy="Write it there as a plain list, without anchors, aliases or tags, and run again",
        )


def _comparable(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if key == "date" else value for key, value in entry.items()}


def _diff(path: Path, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.replace("\r\n", "\n").split("\n"),
        after.replace("\r\n", "\n").split("\n"),
        f"a/{_shown(path)}",
        f"b/{_shown(path)}",
        lineterm="",
    )
    return "\n".join(lines) + "\n"


def _shown(path: Path) -> str:
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.name


def _replace(path: Path, text: str) -> None:
    """Put a new text in the place of a file at once: readers see the old one or the new one."""
    try:
        write_atomically(path, text.encode("utf-8"))
    except OSError as error:
        raise CardError(
            "the card cannot be written; it is as it was",
            file=path,
            found=error.strerror or str(error),
            remedy="Free some space, or make the file and its folder writable, and run again",
        ) from None
