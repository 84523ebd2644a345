"""Set the page of a run as one HTML file: it asks for nothing, and words of others stand in it as text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import Card
from pytest_sdbench.report.html import cost, forest, multiples
from pytest_sdbench.report.html.headline import SIGNS
from pytest_sdbench.report.html.page import Page, page_of
from pytest_sdbench.report.html.pictures import MOST
from pytest_sdbench.report.html.run import NO_RUN, Run
from pytest_sdbench.report.results import Row

LARGEST = 8_000_000
"""Bytes of a page that mail and artifacts take."""


def results_html(
    cards: Sequence[Card], rows: Sequence[Row], run: Run = NO_RUN, *, beside: Sequence[Card] = ()
) -> str:
    """Return the page of a run as one file of HTML, of `LARGEST` bytes where its text alone is not longer."""
    room = MOST
    while True:
        page = page_of(cards, rows, run, beside=beside, room=room)
        text = render(page)
        over = len(text.encode("utf-8", "backslashreplace")) - LARGEST
        if over <= 0 or not page.groups or not room:
            return text
        room = max(0, room - over)  # what is long takes the place of pictures


def render(page: Page) -> str:
    """Return a page as HTML."""
    script, style = _asset("script.js"), _asset("style.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    # A file that is passed on must not be able to send anything, whatever stands in it.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("page.html.j2")
        .render(page=page, policy=policy, style=Markup(style), script=Markup(script))
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pytest_sdbench.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.globals |= {"forest": forest, "cost": cost, "multiples": multiples, "signs": SIGNS}
    return environment


def _shown(value: object) -> object:
    """Return a text as one line without what hides or turns it; markup of our own as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return plain(" ".join(value.split()))


def _asset(name: str) -> str:
    return (files("pytest_sdbench.report.html") / "templates" / name).read_text(encoding="utf-8")
