"""Compare the members of the embedded family: quality, size, speed, and what the teacher's blocks say."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.family import blocks
from benchmarks.family.members import BASE, FAMILY, difference, quality, spec
from benchmarks.family.reading import MEANING
from benchmarks.report import paragraphs, table
from benchmarks.turns import spread, take_turns
from pytest_sdbench.base.environment import timed_on, versions
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands.main import main as command
from pytest_sdbench.protocols.load import load_protocol
from training.students.networks import load_parts

PAIRS = (
    ("scenes-base", "scenes-sd"),
    ("scenes-small", "scenes-base"),
    ("scenes-tiny", "scenes-base"),
    ("scenes-tiny", "scenes-small"),
    ("scenes-small-2m", "scenes-small"),
)
BATCHES = (1, 32)
"""Of the U-Net calls that are timed: one picture without guidance, and what the suite draws at once."""


def latencies(batch: int, rounds: int) -> dict[str, list[float]]:
    """Time one U-Net call of every member, in turn; seconds of each round."""
    unets = {name: load_parts(spec(name)).unet.eval() for name in FAMILY}
    config = unets["scenes-sd"].config
    sample = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size)
    states = torch.randn(batch, 77, config.cross_attention_dim)
    calls = max(1, 64 // batch)

    def call(unet: Callable[..., object]) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            unet(sample, 500, states)
        return (time.perf_counter() - start) / calls

    ways = {n: partial(call, unet.to(memory_format=torch.channels_last)) for n, unet in unets.items()}
    with torch.inference_mode():
        take_turns(ways, 2)  # warms up
        return take_turns(ways, rounds)


def measure(protocol: str, store: Path, rounds: int) -> dict[str, Any]:
    """Measure everything that the tables show."""
    parts = load_parts(BASE)
    unet: Any = parts.unet
    members: list[dict[str, Any]] = []
    for name in FAMILY:
        card = read_card(reference() / "cards" / f"{name}.md")
        # Multiply-accumulates are those of one call at batch 1.
        members.append({"name": name, "unet": card.size["unet"].exact, "macs": int(card.unet_macs or 0)})
    for batch in BATCHES:
        seconds = latencies(batch, rounds)
        for row in members:
            over = spread(seconds[row["name"]], seconds["scenes-sd"])
            row[f"milliseconds_{batch}"] = 1000 * statistics.median(seconds[row["name"]])
            row[f"ratio_{batch}"] = over["ratio"]
            row[f"ratio_{batch}_range"] = [over["lowest"], over["highest"]]
    found = {
        "protocol": protocol,
        "rounds": rounds,
        "machine": timed_on("cpu"),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "members": members,
        "pairs": [],
        "side": int(unet.config.sample_size),
        "scenes": len(blocks.UNSEEN),
        "blocks": blocks.measure(parts, blocks.UNSEEN),
    }
    return score(found, store)


def score(found: dict[str, Any], store: Path) -> dict[str, Any]:
    """Return results with their scores computed anew."""
    protocol = load_protocol(found["protocol"])
    scored = {name: quality(spec(name), protocol, store) for name in FAMILY}
    members = [{**row, **scored[row["name"]].scores} for row in found["members"]]
    pairs = [
        {"first": first, "second": second, **difference(scored[first], scored[second])}
        for first, second in PAIRS
    ]
    return {**found, "members": members, "pairs": pairs}


def report(found: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    members = table(
        found["members"],
        [
            ("", "{name}"),
            ("U-Net", lambda row: f"{row['unet'] / 1e6:.2f} M"),
            ("MACs", lambda row: f"{row['macs'] / 1e6:.1f} M"),
            *((f"time, batch {batch}", f"{{ratio_{batch}:.2f}}") for batch in BATCHES),
            ("FID ↓", "{fid:.3f} ± {fid_se:.3f}"),
            ("KID ↓", "{kid:.5f}"),
            ("IS ↑", "{inception_score:.2f}"),
            ("CLIP score ↑", "{clip_score:.4f} ± {clip_score_se:.4f}"),
            ("names right ↑", "{names_right:.4f} ± {names_right_se:.4f}"),
            ("and colours ↑", "{objects_right:.4f} ± {objects_right_se:.4f}"),
        ],
    )
    pairs = table(
        found["pairs"],
        [
            ("difference, image by image", "{first} - {second}"),
            ("FID", "{fid:+.4f} ± {fid_se:.4f}"),
            ("CLIP score", "{clip_score:+.5f} ± {clip_score_se:.5f}"),
            ("names right", "{names_right:+.4f} ± {names_right_se:.4f}"),
        ],
    )
    return paragraphs(
        "# The embedded family: quality, size and speed",
        "In miniature: BK-SDM, table 1 (Base, Small and Tiny beside their teacher).",
        members,
        f"Protocol `{found['protocol']}`, {found['members'][0]['n']:,} images each, the same prompts and "
        "seeds; ± is one standard error. MACs: one U-Net call at batch 1. Time: one U-Net call over "
        f"the teacher's, median of {found['rounds']} rounds in which all take turns; "
        f"{found['machine']}, float32.",
        pairs,
        "FID: difference of the scores; its error is that of the mean of differences of influence values.",
        MEANING,
        blocks.report(found["blocks"], found["side"], found["scenes"]),
        "![The same prompts and seeds](family.png)",
    )


def draw_sheet(path: Path, store: Path) -> None:
    """Draw some captions with every member, from the same noise, beside the real scenes."""
    words = ["figure", "sheet", *FAMILY, "scenes-tiny-lcm", "--count", "10", "--device", "cpu"]
    protocols = ["--protocol", "scenes-5k"] * len(FAMILY) + ["--protocol", "scenes-lcm4-quick"]
    if command([*words, *protocols, "--store", str(store), "--out", str(path)]):
        raise SystemExit(f"{path.name} could not be drawn")
