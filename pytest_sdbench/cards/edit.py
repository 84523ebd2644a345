"""Write what was measured into a card, changing no other line.

A YAML writer reflows what it did not change, so nothing is dumped: the new text is put in the place of the
old, by the marks of the parsed document, and the result is read again before it replaces the file.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.base.files import write_atomically
from pytest_sdbench.base.paths import shown
from pytest_sdbench.cards.front_matter import FrontMatter, below, parse, read_text
from pytest_sdbench.cards.records import Entry, Record
from pytest_sdbench.cards.schema import check_value
from pytest_sdbench.metrics.registry import METRICS, metric_name

_ENDING = re.compile(r"[\r\n]")
_COMMENT = re.compile(r"#[^\r\n]*")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# Words of another type in YAML 1.1, and fingerprints: some of those are numbers, so all look alike in quotes.
_QUOTED = re.compile(r"(?i:y|n|yes|no|on|off|true|false|null)|[0-9a-f]{8,}")


def write_records(path: Path, records: Sequence[Entry]) -> str:
    """Write records into a card and return the unified diff; an empty diff leaves the file alone.

    A record replaces the one that is equal in its `key`, in its place; any other is appended. Comments,
    order, number formats and line endings of everything else stay. The file is replaced at once or not at
    all. Raises CardError if the card cannot be read, has no ``sdbench`` block, or cannot be edited in place.
    """
    before = read_text(path)
    after = with_records(path, before, records)
    if after == before:
        return ""
    try:
        write_atomically(path, after.encode("utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "Free some space, or make the file and its folder writable, and run again"
        raise CardError(f"cannot be written: {reason}. It is as it was", file=path, remedy=remedy) from None
    old, new = (text.replace("\r\n", "\n").split("\n") for text in (before, after))
    lines = difflib.unified_diff(old, new, f"a/{shown(path)}", f"b/{shown(path)}", lineterm="")
    return "\n".join(lines) + "\n"


def with_records(path: Path, text: str, records: Sequence[Entry]) -> str:
    """Return a card's text with records put in; the file itself is not touched."""
    for record in records:
        front, new = parse(path, text), record.to_dict()
        place = ("sdbench", record.place)
        figures = [getattr(record, name) for name in record.figures]
        if not all(figure is None or math.isfinite(figure) for figure in figures):
            remedy = f"Measure {' '.join(record.key)} again"
            raise front.error(place, "a figure that is not finite is no reference", figures, remedy)
        if isinstance(record, Record) and record.metric in METRICS:
            check_value(path, place, record.metric, new["value"], recorded=True)
        block = front.find("sdbench")
        if block is None or not below(block):
            message, remedy = "the card's block is empty", "Write `sdbench: {records: []}`, and run again"
            if block is None:
                message = "the card has no `sdbench` block for records"
                remedy = "`python -m pytest_sdbench draft FOLDER` writes one for a checkpoint"
            raise front.error(place[:1], message, None, remedy)
        text = _edit(front, block, record, new)
        if not _is_right(front, text, record, new):
            remedy = "Write it there as a plain list, without anchors, aliases, tags, folded texts (>-) and "
            remedy += "comments in braces, and run again"
            raise front.error(place, "the records cannot be edited in place", None, remedy)
    return text


def _edit(front: FrontMatter, block: Any, record: Entry, new: Mapping[str, Any]) -> str:
    text, offset, newline = front.text, front.start, front.newline
    node: Any = below(block).get(record.place)
    if node is None:
        end = offset + _leaf_end(block)
        if block.flow_style:
            head = text[: end - 1].rstrip().rstrip(",")
            return f"{head}, {record.place}: [{_flow(new)}]{text[end - 1 :]}"
        end, column = _line_end(text, end), block.start_mark.column
        lines = f"{' ' * column}{record.place}:{newline}{_block(new, column, newline)}"
        return f"{text[:end]}{newline}{lines}{text[end:]}"
    if not below(node):
        return _fill_empty(front, block, node, new)
    for item, entry in zip(node.value, front.data["sdbench"][record.place], strict=False):
        if _is_of(entry, record):
            return _replace_entry(front, item, entry, new)
    end = offset + _leaf_end(node.value[-1])
    if node.flow_style:
        return f"{text[:end]}, {_flow(new)}{text[end:]}"
    end = _line_end(text, end)
    return text[:end] + newline + _block(new, node.start_mark.column, newline) + text[end:]


def _fill_empty(front: FrontMatter, block: Any, node: Any, new: Mapping[str, Any]) -> str:
    """Put the first entry in the place of ``[]``, ``null`` or nothing; a comment behind it stays."""
    text, offset = front.text, front.start
    name = next(key for key, value in block.value if value is node)
    start = text.index(":", offset + name.end_mark.index) + 1
    end = offset + node.end_mark.index if node.end_mark.index > node.start_mark.index else start
    if block.flow_style:
        return f"{text[:start]} [{_flow(new)}]{text[end:]}"
    line = _line_end(text, end)
    rest = text[end:line]
    comment = " " * (end - start) + rest if rest.strip() else ""
    lines = front.newline + _block(new, block.start_mark.column, front.newline)
    return text[:start] + comment.rstrip() + lines + text[line:]


def _replace_entry(front: FrontMatter, item: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Change only the lines of what differs; the whole entry where it is in braces, or merges another."""
    text, offset = front.text, front.start
    if _alike(item, old, new):
        return _exchange(text, offset, item, _plain_dates(old), new)
    if not item.flow_style and old.keys() == below(item).keys() and next(iter(below(item))) in new:
        return _exchange_lines(front, item, _plain_dates(old), new)
    start, end = offset + item.start_mark.index, offset + _leaf_end(item)
    if item.flow_style:
        return text[:start] + _flow(new) + text[end:]
    # The dash before the entry stays: its keys begin at the column where they stood.
    lines = _block(new, item.start_mark.column - 2, front.newline)
    return text[:start] + lines.lstrip(" ").removeprefix("- ") + text[_line_end(text, end) :]


def _alike(node: Any, old: Any, new: Any) -> bool:
    """Return whether two mappings have the same keys, all of which stand in the node: merged ones do not."""
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    return both and not getattr(node, "merge", None) and old.keys() == new.keys() == below(node).keys()


def _exchange(text: str, offset: int, node: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    pairs = {str(key.value): (key, value) for key, value in node.value}
    # From the last one on, so that the marks before it stay true.
    for name in sorted(new, key=lambda name: pairs[name][0].start_mark.index, reverse=True):
        text = _exchange_value(text, offset, pairs[name], old[name], new[name])
    return text


def _exchange_value(text: str, offset: int, pair: tuple[Any, Any], old: Any, new: Any) -> str:
    key, node = pair
    if _alike(node, old, new):
        return _exchange(text, offset, node, old, new)
    if old == new:
        return text
    if node.end_mark.index == node.start_mark.index:
        colon = text.index(":", offset + key.end_mark.index) + 1
        return f"{text[:colon]} {_value(new)}{text[colon:]}"
    return text[: offset + node.start_mark.index] + _value(new) + text[offset + _leaf_end(node) :]


def _exchange_lines(front: FrontMatter, item: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Put values in the place of others, new keys below the last one, and take the lines of old ones out."""
    text, offset, column = front.text, front.start, item.start_mark.column
    names = list(map(str, below(item)))
    last = next(name for name in reversed(names) if name in new)
    for name, pair in zip(reversed(names), reversed(item.value), strict=True):
        start, end = offset + pair[0].start_mark.index, _line_end(text, offset + _pair_end(*pair))
        if name not in new:
            text = re.sub(r"(\r\n|\r|\n)\Z", "", text[: start - column]) + text[end:]
            continue
        if name == last:
            more = "".join(
                f"{front.newline}{' ' * column}{key}: {_value(new[key])}" for key in new if key not in names
            )
            text = text[:end] + more + text[end:]
        text = _exchange_value(text, offset, pair, old[name], new[name])
    return text


def _leaf_end(node: Any) -> int:
    """Return where a node's last value ends; a block's own end mark lies behind the comments below it."""
    if not below(node) or node.flow_style:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _pair_end(*last) if isinstance(last, tuple) else _leaf_end(last)


def _pair_end(key: Any, value: Any) -> int:
    if value.end_mark.index > value.start_mark.index:
        return _leaf_end(value)
    return int(key.end_mark.index) + 1  # no value: its marks lie anywhere behind the colon


def _line_end(text: str, index: int) -> int:
    index = len(text[:index].rstrip("\r\n"))
    end = _ENDING.search(text, index)
    return end.start() if end else len(text)


def _block(entry: Mapping[str, Any], column: int, newline: str) -> str:
    """Return an entry of a block sequence whose dash stands at a column, without the last line ending."""
    pad = " " * column
    pairs = [f"{key}: {_value(value)}" for key, value in entry.items()]
    return newline.join(f"{pad}{'  ' if at else '- '}{line}" for at, line in enumerate(pairs))


def _flow(entry: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_value(value)}" for key, value in entry.items()) + "}"


def _value(value: Any) -> str:
    return _flow(value) if isinstance(value, Mapping) else scalar(value)


def scalar(value: Any) -> str:
    """Return a value in a spelling that YAML 1.1 and 1.2 read alike, in block and in flow."""
    if isinstance(value, float):
        # repr writes 1e-05; YAML 1.1 wants a dot.
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")
    text = str(value)
    if isinstance(value, int) or (_WORD.fullmatch(text) and not _QUOTED.fullmatch(text)):
        return text
    return json.dumps(text, ensure_ascii=False)


def _is_right(front: FrontMatter, text: str, record: Entry, new: Mapping[str, Any]) -> bool:
    """Read the edited text again: the record is in, nothing else changed its meaning, no comment is lost."""
    try:
        after = parse(front.path, text)
        before_rest, _ = _apart(front, record)
        after_rest, found = _apart(after, record)
    except (CardError, AttributeError, LookupError, TypeError):
        return False
    is_same = before_rest == after_rest and found == [new] and after.body == front.body
    return is_same and not _comments(front) - _comments(after)


def _comments(front: FrontMatter) -> Counter[str]:
    """Return the comments of a front matter: what stands between its tokens behind a hash."""
    text = front.text[front.start : front.end]
    found, end = Counter[str](), 0
    for token in YAML(typ="safe", pure=True).scan(text):
        found.update(_COMMENT.findall(text, end, max(end, token.start_mark.index)))
        end = max(end, token.end_mark.index)
    return found


def _apart(front: FrontMatter, record: Entry) -> tuple[Any, list[dict[str, Any]]]:
    """Return all that a card has but the entries of a record, and these."""
    block = dict(front.data["sdbench"])
    entries = block.pop(record.place, None) or []
    others = [entry for entry in entries if not _is_of(entry, record)]
    return ({**front.data, "sdbench": block}, others), [
        _plain_dates(entry) for entry in entries if _is_of(entry, record)
    ]


def _is_of(entry: Mapping[str, Any], record: Entry) -> bool:
    """Return whether an entry of a card is the record's older self."""
    found = {name: str(entry.get(name)) for name in record.names}
    if "metric" in found:  # a card may spell it in another way
        found["metric"] = metric_name(found["metric"]) or found["metric"]
    return tuple(found.values()) == record.key


def _plain_dates(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry with its date as text: YAML reads it as a date unless it is quoted."""
    return {key: str(value) if key == "date" else value for key, value in entry.items()}
