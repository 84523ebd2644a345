"""Make a small project around a card: a tiny checkpoint, a tiny protocol, and a claim."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pytest_sdbench.base.paths import reference

PROTOCOL = "mini"
IMAGES = 194
"""Twice the width of FID's features and a few more: every score has a standard error."""
MARGINS = {"fid": 4.0, "kid": 0.3, "inception_score": 7.0, "clip_score": 0.2}
"""None below what so few images of random weights can tell."""
PASSES = {"inception_score": 12.0}
"""With the margin above, images of random weights reach it: they score 8 to 20, whatever the seed."""
FAILS = {"clip_score": 0.99}
"""No image of random weights reaches it."""


def make_project(root: Path, checkpoint: Path, **changes: Any) -> Path:
    """Write ``cards/mini.md``, its checkpoint beside it and the protocol that it names; return the card.

    The protocol is scenes-quick with fewer images and steps. ``changes`` are those of `make_card`.
    """
    cards = root / "cards"
    cards.mkdir(parents=True, exist_ok=True)
    shutil.copytree(checkpoint, cards / "mini-sd")
    make_protocol(cards / "protocols" / f"{PROTOCOL}.yaml")
    return make_card(cards / "mini.md", **changes)


def make_protocol(path: Path, **changes: Any) -> Path:
    """Write a protocol for random weights: a few images of two steps, and the metrics that suit so few."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load((reference() / "protocols" / "scenes-quick.yaml").read_text(encoding="utf-8"))
    metrics = {metric: content["metrics"][metric] for metric in MARGINS}
    content |= {"n": IMAGES, "title": "Mini", "metrics": metrics, "margins": MARGINS}
    content["sampling"] |= {"steps": 2, "guidance": 1.0}
    content |= changes
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    return path


def make_card(
    path: Path,
    *,
    claims: dict[str, float] | None = None,
    protocol: str = PROTOCOL,
    title: str = "Mini",
    **block: Any,
) -> Path:
    """Write a card; ``claims`` maps metrics to values, ``block`` replaces keys of the ``sdbench`` block."""
    claimed = PASSES if claims is None else claims
    metrics = [{"type": metric, "value": value} for metric, value in claimed.items()]
    front: dict[str, Any] = {"license": "apache-2.0", "library_name": "diffusers"}
    if metrics:
        result = {
            "task": {"type": "text-to-image"},
            "dataset": {"type": "scenes", "name": "Scenes", "config": protocol},
            "metrics": metrics,
        }
        front["model-index"] = [{"name": title, "results": [result]}]
    front["sdbench"] = {
        "checkpoint": "./mini-sd",
        "protocols": [protocol],
        "margins": {},
        "records": [],
    } | block
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(front, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\n{text.getvalue()}---\n\n# {title}\n", encoding="utf-8")
    return path
