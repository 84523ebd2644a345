"""What a call of a published U-Net takes on this device, as the cards record it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cuda.measurement import Measurement
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card, write_records
from pytest_sdbench.cards.network import named_network
from pytest_sdbench.commands import device
from pytest_sdbench.models.skeleton import architecture_key

CARDS = {
    "sd-v1": "stable-diffusion-v1-4",
    "bk-sdm-base": "bk-sdm-base",
    "bk-sdm-small": "bk-sdm-small",
    "bk-sdm-tiny": "bk-sdm-tiny",
    "bk-sdm-tiny-lcm": "tiny-sd-lcm-6400",
}
"""A card of each network; the others with the same network get the same records."""


def measure(asked: Measurement, network: str) -> None:
    """Ask for latency, throughput and memory in each precision, eager and compiled."""
    asked.note = f"The records stand as a patch of the cards in {asked.name}.diff: `git apply` writes them."
    with tempfile.TemporaryDirectory(prefix="sdbench-cards-") as name:
        copies = Path(name)
        for path in _alike("scenes-tiny" if asked.smoke else CARDS[network]):
            shutil.copy(path, copies)
        patches: dict[str, str] = {path.name: path.read_text("utf-8") for path in copies.iterdir()}
        on_cuda = asked.device.type == "cuda"
        for dtype in ("float16", "bfloat16") if on_cuda else ("float32",):
            best: list[int] = []
            for mode in ("eager", "compiled") if on_cuda else ("eager",):
                seconds = 90 if mode == "compiled" else 40
                asked.ask(f"{dtype}, {mode}", seconds, partial(_ask, asked, copies, dtype, mode, best))
                _write_patch(asked, copies, patches)


def _alike(name: str) -> list[Path]:
    """Return the packaged cards whose network is that of a card."""
    folder = reference() / "cards"
    wanted = architecture_key(named_network(read_card(folder / f"{name}.md")).unet)
    found = []
    for path in sorted(folder.glob("*.md")):
        if architecture_key(named_network(read_card(path)).unet) == wanted:
            found.append(path)
    return found


def _ask(asked: Measurement, copies: Path, dtype: str, mode: str, best: list[int]) -> Mapping[str, Any]:
    """Measure and record one way; `best` takes the fastest batch from the eager way to the compiled one.

    Each batch that is tried compiled costs a compilation.
    """
    cards = [read_card(path) for path in sorted(copies.glob("*.md"))]
    seconds, largest = (0.1, 2) if asked.smoke else (1.5, 64)
    records = 0
    for found in device.measure(
        cards,
        device=str(asked.device),
        dtypes=[dtype],
        modes=[mode],
        seconds=seconds,
        largest=largest,
        batch=best[0] if best else 1 if mode == "compiled" else None,
    ):
        best += [record.batch for record in found.records if record.measures == "throughput"]
        for record in found.records:
            records += 1
            asked.keep(
                {
                    "what": f"{dtype}, {mode}",
                    "measures": record.measures,
                    "batch": record.batch,
                    "ms": 1e3 * record.seconds,
                    "samples_per_s": record.samples_per_second,
                    "tflops": 2 * record.macs_per_second / 1e12,
                    "peak_gb": record.peak_bytes and record.peak_bytes / 1e9,
                }
            )
        for card in found.cards:
            write_records(card.path, found.records)
        if found.problems:
            raise RuntimeError("; ".join(found.problems))
    return {"records": records}


def _write_patch(asked: Measurement, copies: Path, before: Mapping[str, str]) -> None:
    import difflib

    lines: list[str] = []
    for name, old in before.items():
        new, place = (copies / name).read_text("utf-8"), f"reference/cards/{name}"
        lines += difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{place}", f"b/{place}"
        )
    (asked.folder / f"{asked.name}.diff").write_text("".join(lines), encoding="utf-8")
