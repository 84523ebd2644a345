"""Make the figures of the documentation: ``python -m benchmarks.family.figures [FOLDER]``.

Three commands that anybody can run. The history is an example of thirty runs with invented figures and one
drop; everything else is what the packaged cards publish and record, and what their checkpoints draw.
"""

from __future__ import annotations

import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.report import ROOT
from pytest_sdbench.commands.main import main as command
from pytest_sdbench.report.history import Measurement, Run, write_run

SCORES = (
    # Metric, value, standard error, and what happens at the twentieth run.
    ("fid", 1.9, 0.09, 0.6),
    ("clip_score", 0.92, 0.0012, -0.008),
    ("inception_score", 72.6, 1.7, 0.0),
)
SHEET = {
    "scenes-sd": "scenes-5k",
    "scenes-base": "scenes-5k",
    "scenes-small": "scenes-5k",
    "scenes-tiny": "scenes-5k",
    "scenes-tiny-lcm": "scenes-lcm4-quick",
}
"""Systems, and what each is drawn under."""


def write_history(place: Path) -> None:
    """Write thirty runs of as many invented checkpoints."""
    noise = random.Random(19)
    for day in range(1, 31):
        about = Measurement("scenes-tiny", "quality", 0.0, protocol="scenes-quick", n=512, draw="example")
        measured = tuple(
            replace(
                about,
                metric=metric,
                value=value + noise.gauss(0, error) + drop * (day >= 20),
                standard_error=error,
                checkpoint=f"{day:016x}",
            )
            for metric, value, error, drop in SCORES
        )
        write_run(place, Run(f"example-{day:02}", f"2026-10-{day:02}T10:00:00Z", measured))


def main() -> None:
    """Draw each figure; stop at the first that cannot be drawn."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs"
    with tempfile.TemporaryDirectory() as folder:
        history, store = Path(folder, "history"), Path(folder, "store")
        write_history(history)
        protocols = [word for name in SHEET.values() for word in ("--protocol", name)]
        for name, words in {
            "sheet": [*SHEET, *protocols, "--count", "3", "--store", str(store), "--device", "cpu"],
            "frontier": [
                "--protocol",
                "coco30k-bksdm",
                "--protocol",
                "scenes-5k",
                "--cost",
                "size",
                "--cost",
                "compute",
            ],
            "history": [str(history), "--store", str(store)],
        }.items():
            if command(["figure", name, *words, "--out", str(out / f"figure-{name}.svg")]):
                raise SystemExit(f"the figure {name} could not be drawn")


if __name__ == "__main__":
    main()
