"""Rows, pictures and pages for the tests of the page of a run."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from pytest_sdbench.report.results import Row
from pytest_sdbench.store.pictures import Pictures
from pytest_sdbench.store.shards import Store

CANDIDATE, BASELINE, DRAW = "c" * 16, "b" * 16, "d" * 16


def row(test: str = "quality", card: str = "scenes-tiny-lcm", verdict: str = "pass", **values: Any) -> Row:
    """Return a row with a node id of its own."""
    name = values.get("name", "")
    known = {"node_id": f"{card}.md::test_{test}[{name}]", "card": card, "test": test, "verdict": verdict}
    return Row.from_dict(known | values)


def score(metric: str, worse: float, *, margin: float = 1.0, half: float = 0.1, **values: Any) -> Row:
    """Return the row of a score of SSIM's kind, higher being better, judged by its interval of +- `half`."""
    low, high = worse - half, worse + half
    verdict = "pass" if high <= margin else "fail" if low > margin else "inconclusive"
    extra = {
        "worse_by": worse,
        "at_least": low,
        "at_most": high,
        "checkpoint_fingerprint": CANDIDATE,
        "draw_fingerprint": DRAW,
        "reference_fingerprint": BASELINE,
        "reference": "the reference",
    }
    figures = {
        "name": f"scenes-lcm4-fidelity-{metric}",
        "metric": metric,
        "protocol": "scenes-lcm4-fidelity",
        "claimed": 1.0,
        "claimed_text": "1",
        "measured": 1.0 - worse,
        "standard_error": 0.01,
        "n": 100,
        "margin": margin,
        "verdict": verdict,
        "reason": f"{metric}: {verdict}",
        "kind": "identity",
    }
    return row(**figures | values | {"extra": extra | values.get("extra", {})})


def images_of(indices: list[int]) -> list[dict[str, Any]]:
    """Return what a row says of single images."""
    return [{"index": at, "prompt": f"prompt {at}", "value": 0.5, "reference": 1.0} for at in indices]


def keep(store: Path, checkpoint: str, images: range, side: int = 64, prompt: str = "prompt {}") -> None:
    """Keep pictures of a checkpoint in a store: noise, which takes the most room that pictures can take."""
    dice = np.random.default_rng(int(checkpoint[0], 16) + images.start)
    drawn = Pictures(
        np.array(images, np.int64),
        np.array(images, np.int64) + 1000,
        tuple(prompt.replace("{}", str(at)) for at in images),
        dice.integers(0, 256, (len(images), side, side, 3), np.uint8),
    )
    Store(store).open(checkpoint, DRAW, {"device": "cpu"}).write(images.start, {}, pictures=drawn)


class Tags(HTMLParser):
    """Take down the elements of a page with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    @property
    def text(self) -> str:
        return "".join(self.words)

    def values(self, *names: str) -> Iterator[str]:
        """Yield the values of some attributes."""
        for _, attributes in self.elements:
            yield from (value for key in names if (value := attributes.get(key)) is not None)


def read(page: str) -> Tags:
    """Return the elements of a page."""
    tags = Tags()
    tags.feed(page)
    tags.close()
    return tags
