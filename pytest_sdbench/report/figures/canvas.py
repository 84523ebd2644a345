"""What all figures share: how they look, how wide text is, and files that equal figures make equal bytes of.

A word that is not ours is shown as text: `shown` writes out what would turn or break it, and matplotlib reads
no mathematics.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from pytest_sdbench.base.errors import SdbenchError, Unavailable
from pytest_sdbench.base.files import write_atomically
from pytest_sdbench.base.text import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")
INK, QUIET, GRID = "#1a1a1a", "#5f6368", "#d9dbde"
BLUE, WORSE, BETTER = "#0b5394", "#b3400a", "#00695c"
"""The last two differ in lightness and hue for those who see red and green alike, and never stand alone."""
PALE: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4}
"""What a word within a plot stands on: no line of the grid runs through it."""
SMALL, TEXT, HEADING = 6.5, 7.5, 8.5
"""Sizes of text in points, at the size that a figure is printed in."""
WIDTH = 6.5
"""Inches: the text of a page of a paper."""
DPI = 220
_STYLE: dict[str, Any] = {
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": HEADING,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    # The first one comes with matplotlib; the second is as wide, for an SVG where that is not installed.
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": TEXT,
    "image.composite_image": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sdbench",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "xtick.labelsize": SMALL,
    "ytick.color": QUIET,
    "ytick.labelsize": SMALL,
}
_ABSENT = re.compile(r"Glyph (\d+) ")

Measure = Callable[[str], float]
"""Returns the width of a text."""


def check_matplotlib() -> None:
    """Raise Unavailable where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        remedy = 'Install it: pip install "pytest-sdbench[figures]"'
        raise Unavailable("figures are drawn with matplotlib, which is not installed", remedy=remedy)


@contextmanager
def style() -> Iterator[None]:
    """Draw as all figures are drawn, whatever the settings of matplotlib on this machine are."""
    import matplotlib

    settings: Any = matplotlib.rcParams
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings.update(_STYLE)
        yield


def shown(text: object) -> str:
    """Return somebody else's text as one line that any XML may hold, and that turns nothing around it."""
    return re.sub("[\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):x}", plain(text))


def measure(dpi: float, size: float = TEXT, weight: str = "normal") -> Measure:
    """Return a function from a text to its width in pixels; to be used within `style`."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    agg: Any = RendererAgg
    renderer, font = agg(1, 1, dpi), FontProperties(size=size, weight=weight)

    def width(text: str) -> float:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_ABSENT.pattern)  # `save` says so
            return float(renderer.get_text_width_height_descent(text, font, False)[0])

    return width


def wrap(text: str, most: float, width: Measure) -> list[str]:
    """Break a text into lines that are at most so wide: at spaces, long words after signs, else anywhere."""
    lines = [""]

    def add(piece: str, level: int = 0) -> None:
        if width(lines[-1] + piece) <= most:
            lines[-1] += piece
        elif width(piece.strip()) <= most or level == len(_PIECES):
            lines.append(piece.lstrip())
        else:
            for part in re.findall(_PIECES[level], piece):
                add(part, level + 1)

    add(text)
    return [line.strip() for line in lines if line.strip()] or [""]


_PIECES = (r"\s*\S+", r"[^-_/.,:@]*[-_/.,:@]+|[^-_/.,:@]+", ".")


def save(figure: Figure, paths: Sequence[Path], title: str, description: str) -> list[str]:
    """Write a figure as each file's ending says, and return what its reader should know; within `style`.

    Neither date nor version is in the files. An SVG holds text as text, and says what it shows in its title
    and description. Raises SdbenchError for a file that cannot be written.
    """
    title, description = shown(title), "\n".join(map(shown, description.split("\n")))
    absent: dict[str, None] = {}
    for path in paths:
        file = io.BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        told = {"Title": title, "Software": None, "Description": description}
        if kind == "svg":
            told = {"Title": title, "Date": None, "Creator": None}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figure.savefig(file, format=kind, dpi=figure.dpi, metadata=told)
        for warning in caught:
            if found := _ABSENT.search(str(warning.message)):
                absent[chr(int(found[1]))] = None
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        content = file.getvalue()
        if kind == "svg":
            content = _told(content.decode(), description).encode()
        try:
            write_atomically(path, content)
        except OSError as error:
            found_, remedy = error.strerror, "Name a file in a folder that exists"
            raise SdbenchError("cannot be written", file=path, found=found_, remedy=remedy) from None
    if not absent:
        return []
    return [f"the font of figures lacks {' '.join(absent)}: a PNG has boxes there, an SVG its reader's font"]


def _told(svg: str, description: str) -> str:
    """Return an SVG that is one picture to a screen reader, with its title and description."""
    svg = svg.replace("<svg ", '<svg role="img" aria-labelledby="title description" ', 1)
    svg = svg.replace("<title>", '<title id="title">', 1)
    told = f'</title>\n <desc id="description">{escape(description)}</desc>'
    return svg.replace("</title>", told, 1)
