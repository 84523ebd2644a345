"""Cells of text, and what all tables of a run are made of.

Names, labels and reasons are not ours: `markdown` and `plain` let them through as text, each on its medium.
A figure keeps the digits that its source printed and a missing one is an en dash.
An arrow in a heading points to the better side.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal, InvalidOperation
from urllib.parse import quote, urlsplit

from tabulate import tabulate

from pytest_sdbench.base.text import columns, plain
from pytest_sdbench.cards.card import Card
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.results import VERDICTS, Row

NONE = "–"  # noqa: RUF001 - an en dash is what a table has where there is nothing
COMPONENTS = {
    "unet": "U-Net",
    "text_encoder": "Text encoder",
    "image_decoder": "Image decoder",
    "whole": "Whole",
}
REACH = 1.96
"""Standard errors on either side of a 95 % interval."""
NETWORK = ("size", "compute", "speed", "memory")
"""The tests of a network; those of scores are ``quality`` and ``calibration``."""
# Within a word an underscore is one; a link needs its opening bracket, its colon or its dot.
_MARKUP = re.compile(
    r"[\\`*\[\]<|~$]|&(?=[#\w]+;)|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.", re.IGNORECASE
)
# At the beginning of a line: a heading, a list, a quotation.
_FIRST = re.compile(r"\A(\d*)(#+(?=\s|\Z)|[-+](?=\s|\Z)|>|(?<=\d)[.)](?=\s|\Z))")

# Of what names somebody or something of GitHub: nobody is to be told of a run by the text of a card.
_MENTION = re.compile(r"(?<![a-z0-9_])@(?=\w)|#(?=\d)|(?<=\bGH)-(?=\d)", re.IGNORECASE)


class Markup(str):
    """Text that is Markdown already: it comes into a report as it is, any other one escaped."""

    __slots__ = ()


def markdown(text: str) -> Markup:
    """Return a text as GitHub Markdown shows it: one line, without markup, links and HTML of its own."""
    if isinstance(text, Markup):
        return text
    said = _MARKUP.sub(r"\\\g<0>", plain(" ".join(text.split())))
    # An invisible space keeps its first sign apart from the name.
    return Markup(_MENTION.sub(r"\g<0>&#8203;", _FIRST.sub(r"\1\\\2", said)))


def bold(text: str) -> Markup:
    """Return a text in bold letters."""
    return Markup(f"**{markdown(text)}**")


def code(text: str) -> Markup:
    """Return words that somebody types, on one line; nothing but a backtick ends them, so there is none."""
    return Markup(f"`{plain(' '.join(text.split())).replace('`', chr(39)) or ' '}`")


def link(text: str, url: str | None) -> Markup:
    """Return a text that leads to a page of the web, or the text alone where that is none."""
    try:
        leads = url is not None and urlsplit(url).scheme in ("http", "https")
    except ValueError:  # a bracket in the place of a host
        leads = False
    if url is None or not leads:
        return markdown(text)
    return Markup(f"[{markdown(text)}]({quote(url, safe=':/?#@!$&+,;=%~')})")


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return a GitHub table; all columns but those of `left` are set right."""
    first, *cells = ([markdown(cell) for cell in row] for row in (heading, *rows))
    align = ["left" if column in left else "right" for column in range(len(heading))]
    return tabulate(cells, first, tablefmt="pipe", disable_numparse=True, colalign=align)


Paint = Callable[[str, str], str]
"""Colours a text by the verdict that it stands for."""


def unpainted(text: str, verdict: str) -> str:
    """Return a text as it is."""
    return text


def plain_table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], align: str, paint: Paint = unpainted
) -> str:
    """Return a table for a terminal; `align` has a letter a column, l or r. A heading may have two lines.

    A cell that is a verdict is painted as one.
    """
    lines = max((words.count("\n") + 1 for words in heading), default=1)
    heads = [([""] * lines + [plain(word) for word in words.split("\n")])[-lines:] for words in heading]
    first = [list(line) for line in zip(*heads, strict=True)]
    cells = [*first, *([plain(cell) for cell in row] for row in rows)]
    widths = [max(columns(row[at]) for row in cells) for at in range(len(heading))]

    def line(row: Sequence[str]) -> str:
        parts = []
        for text, width, side in zip(row, widths, align, strict=True):
            room = " " * (width - columns(text))
            shown = paint(text, text) if text in VERDICTS else text
            parts.append(shown + room if side == "l" else room + shown)
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([*map(line, first), rule, *map(line, cells[lines:])])


def titles(cards: Iterable[Card]) -> dict[str, str]:
    """Return the title of each card by its name; where titles repeat, the names tell them apart."""
    found = {card.name: card.title for card in cards}
    count = Counter(found.values())
    return {name: title if count[title] == 1 else f"{title} ({name})" for name, title in found.items()}


def billions(text: str) -> str:
    """Return a printed count in billions with the digits that it was printed with: 0.860e+9 is 0.860B.

    One that is printed in another way, as 0x1BCF08, is returned as it is.
    """
    try:
        return f"{Decimal(text.replace('_', '')).scaleb(-9):f}B"
    except InvalidOperation:
        return text


def figure(value: float | None, form: str = ",.0f", unit: str = "") -> str:
    """Return a figure in a format; a missing one is an en dash."""
    return NONE if value is None else f"{value:{form}}{unit}"


def mebibytes(size: float | None) -> str:
    """Return a number of bytes in MiB."""
    return figure(None if size is None else size / 2**20, unit=" MiB")


def in_order(cards: Iterable[Card]) -> list[Card]:
    """Return each teacher before its students, and among equals larger before smaller, then by name."""
    known = {card.name: card for card in cards}
    students: dict[str | None, list[Card]] = {}
    for card in sorted(known.values(), key=_by_size):
        students.setdefault(card.base if card.base in known else None, []).append(card)
    ordered: dict[str, Card] = {}
    waiting = [*reversed(known.values()), *reversed(students.get(None, []))]
    while waiting:
        card = waiting.pop()
        if card.name not in ordered:
            ordered[card.name] = card
            waiting += reversed(students.get(card.name, []))
    return list(ordered.values())


def _by_size(card: Card) -> tuple[int, str]:
    unet = card.size.get("unet")
    return -(unet.exact or 0) if unet else 0, card.name


def counts(rows: Sequence[Row]) -> str:
    """Return how many rows have each verdict."""
    found = [row.verdict for row in rows]
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found)


def of_card(rows: Sequence[Row], card: str, *tests: str) -> list[Row]:
    """Return the rows of some tests of a card."""
    return [row for row in rows if row.card == card and row.test in tests]


NOT_HELD = ("fail", "error", "inconclusive")
"""Verdicts of claims that were looked at and do not hold, the worst first."""


def telling(rows: Iterable[Row]) -> Row | None:
    """Return the row whose figures a cell shows, of several variants the first that does not hold."""
    order = {verdict: place for place, verdict in enumerate(NOT_HELD)}
    return min(rows, key=lambda row: order.get(row.verdict, len(order)), default=None)


def size(rows: Sequence[Row], card: str, component: str, wrong: Callable[[str], str] = str) -> str:
    """Return a component's parameters, in brackets what its source prints; `wrong` marks a wrong count."""
    row = telling(row for row in of_card(rows, card, "size") if row.name == component)
    if row is None or row.measured is None:
        return NONE
    shown = figure(row.measured)
    if row.claimed_text:
        shown += f" ({billions(row.claimed_text)})"
    if row.verdict == "fail" and row.claimed is not None:
        shown = wrong(f"{shown}, not {row.claimed:,.0f}")
    return shown


def call_cells(rows: Sequence[Row], card: str) -> list[str]:
    """Return MACs, seconds, latency ratio, allowed ratio and peak memory of one U-Net call.

    The seconds of two runs are not comparable, ratios are.
    """
    row = {test: telling(of_card(rows, card, test)) for test in NETWORK}
    found = {test: each.measured if each else None for test, each in row.items()}
    macs, speed = found["compute"], row["speed"]
    most = speed.claimed if speed else None
    return [
        figure(macs / 1e9, ".1f", " G") if macs and macs >= 1e9 else figure(macs and macs / 1e6, ".1f", " M"),
        figure(speed.extra.get("candidate_median") if speed else None, ".3g"),
        figure(found["speed"], ".3f"),
        figure(most, ".2f" if most is None or most == round(most, 2) else ".4g"),
        mebibytes(found["memory"]),
    ]


def verdicts(rows: Sequence[Row]) -> str:
    """Return one verdict where all that was measured agree, else what differs from a pass."""
    # What this machine cannot measure is an en dash in its own column, and its reason stands below the table.
    rows = [row for row in rows if row.verdict != "unavailable"] or rows
    found = list(dict.fromkeys(row.verdict for row in rows))
    if len(found) == 1:
        return found[0]
    parts = [
        f"{verdict} ({', '.join(dict.fromkeys(row.test for row in rows if row.verdict == verdict))})"
        for verdict in VERDICTS
        if verdict in found and verdict != "pass"
    ]
    return ", ".join(parts) + (", else pass" if "pass" in found else "")


def claimed(row: Row) -> str:
    """Return a claimed score as its source prints it."""
    return row.claimed_text or figure(row.claimed, f".{decimals(row)}f")


def measured(row: Row) -> str:
    """Return a measured score with its standard error."""
    if row.measured is None:
        return NONE
    shown = with_error(row.measured, row.standard_error, decimals(row))
    return f"{shown}, predicted" if "predicted_for" in row.extra else shown


def with_error(value: float, error: float | None, digits: int, sign: str = "") -> str:
    """Return a value, and its standard error where that is known, with as many decimals each.

    There are more where the error would be nothing but zeros. One that is zero is none that is known: of a
    share that no image has it says nothing. A zero has no minus.
    """
    known = error is not None and error > 1e-9  # what is less is what rounding left
    if error and known and not round(error, digits):
        digits = -math.floor(math.log10(error))
    shown = f"{value:{sign}z.{digits}f}"
    return f"{shown} ± {error:.{digits}f}" if known else shown


def decimals(row: Row) -> int:
    """Return as many decimals as the claim has, and no fewer than the metric's usual ones; at most eight."""
    _, _, digits = row.claimed_text.partition(".")
    usual = METRICS[row.metric].decimals if row.metric in METRICS else 2
    return max(usual, min(8, len(digits)) if digits.isdigit() else 0)


def decimals_beside(row: Row) -> int:
    """Return the decimals of what is compared with the margin: as many as that has, too."""
    _, _, digits = ("" if row.margin is None else f"{row.margin:g}").partition(".")
    return max(decimals(row), min(8, len(digits)) if digits.isdigit() else 0)


def images(row: Row) -> str:
    """Return the images behind a score, and how many the claim is of where these are fewer."""
    wanted = row.extra.get("requested")
    fewer = row.n is not None and wanted is not None and row.n < wanted
    return f"{figure(row.n)} of {figure(wanted)}" if fewer else figure(row.n)


_OWN_WEIGHTS = re.compile(r"--sdbench-weights \S+=")


def reasons(rows: Sequence[Row], show: Callable[[str], str] = plain) -> str:
    """Return each reason once, with the checks that it holds for; `show` is the medium's.

    What lacks in one way in many places, weights that are not in the hub's cache, is one reason.
    """
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        if reason := " ".join(row.reason.split()):
            place, _, rest = reason.partition(": ")
            alike = _OWN_WEIGHTS.sub("--sdbench-weights CARD=", rest)
            lacks = row.verdict == "unavailable" and rest and " " not in place
            found.setdefault((row.verdict, alike if lacks else reason), {}).setdefault(reason, []).append(row)
    lines = []
    for (verdict, alike), group in found.items():
        reason, *others = group
        if others:
            reason = f"{reason.partition(': ')[0]} and {len(others)} more: {alike}"
        whose = _whose([row for those in group.values() for row in those], show)
        lines.append(f"- {show(verdict)}: {whose}: {show(reason)}")
    return "\n".join(lines)


def _whose(rows: Sequence[Row], show: Callable[[str], str]) -> str:
    """Return what a reason is about: checks of one card, or one check of many."""
    cards = dict.fromkeys(row.card for row in rows)
    if len(cards) > 4:
        return f"{' and '.join(dict.fromkeys(show(row.test) for row in rows))} of {len(cards)} cards"
    # Nothing but a backtick ends what stands between two of them.
    names = (plain(row.name).replace("`", "'") for row in rows)
    checks = dict.fromkeys(
        f"`{name}`" if name else show(row.test) for name, row in zip(names, rows, strict=True)
    )
    return f"{', '.join(map(show, cards))}: {', '.join(checks)}"


def changes(rows: Sequence[Row], show: Callable[[str], str] = plain) -> str:
    """Return in what each card's checkpoint differs from the one that its figures are recorded of."""
    found = {row.card: row.extra["changes"] for row in rows if "changes" in row.extra}
    return "\n".join(f"- {show(card)}: {show(change)}" for card, lines in found.items() for change in lines)


def untested(cards: Sequence[Card], show: Callable[[str], str] = plain) -> str:
    """Return a list of what cannot be tested, each reason once; `show` is the medium's."""
    users: dict[str, list[str]] = {}
    for card in cards:
        for note in card.explained:
            users.setdefault(note, []).append(card.name)
    return "\n".join(f"- {', '.join(map(show, names))}: {show(note)}" for note, names in users.items())
