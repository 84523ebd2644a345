"""Count how often a score's interval holds the truth: `python -m benchmarks.gate.coverage`.

Images are replaced by draws from a population whose score is known: its FID from its moments, its Inception
score from a sample far larger than any that is judged, its KID from all pairs of a finite pool, its CLIP
score by construction. Every cell draws many sets of images, asks the public code for `corrected` and
`standard_error` and counts the intervals of 1.96 standard errors to both sides that hold the truth.

What is done already is not done again: a killed run goes on where it was, and several may run side by side on
different cells (`--only fid-64 --only kid`).
"""

from __future__ import annotations

import datetime
import math
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from benchmarks import options
from benchmarks.gate import coverage_cells
from benchmarks.gate.coverage_cells import Cell, Found
from benchmarks.gate.coverage_features import feature_cells
from benchmarks.gate.tables import chance_of
from benchmarks.report import RESULTS, grid, load, paragraphs, save
from pytest_sdbench.metrics.estimates import Undefined

Z, ONE_SIDED = 1.959964, 1.644854
"""Standard errors to each side of a 95 % interval; to the one side at which the gate looks."""

HOLDS = (0.92, 0.98)
"""Coverage that is called right: a nominal 95 % give or take what nobody would decide by."""

ESCAPE = 0.05
"""Share of the replicates that the code may stand for by mistake in a cell that is called unsupported."""

EVERY = 60.0
"""Seconds between two looks at the disk."""


@dataclass
class Sums:
    """Of deviations from the truth, over the replicates so far; so a cell can go on where it was."""

    truth: float
    replicates: int = 0
    supported: int = 0
    """Replicates with both a corrected value and a standard error."""
    held: int = 0
    below: int | None = None
    """Replicates whose value lies below the truth by more than ONE_SIDED errors; None where not counted."""
    raw: float = 0.0
    """Of the uncorrected value, over all replicates."""
    corrected: float = 0.0
    corrected_squares: float = 0.0
    error_squares: float = 0.0
    seconds: float = 0.0
    date: str = ""

    def add(self, found: Found) -> None:
        """Count one replicate."""
        self.replicates += 1
        if isinstance(found, Undefined):
            return
        self.raw += found.value - self.truth
        if found.corrected is None or found.standard_error is None:
            return
        off = found.corrected - self.truth
        self.supported += 1
        self.held += abs(off) <= Z * found.standard_error
        if self.below is not None:
            self.below += off < -ONE_SIDED * found.standard_error
        self.corrected += off
        self.corrected_squares += off**2
        self.error_squares += found.standard_error**2


def all_cells() -> list[Cell]:
    """Return the cells of every metric."""
    return coverage_cells.all_cells() + feature_cells()


def run(cell: Cell, path: Path, replicates: int | None = None) -> None:
    """Bring a cell to its number of replicates; what is done goes to the disk now and then."""
    wanted = cell.replicates if replicates is None else replicates
    done = cells_at(path).get(cell.name)
    if done is not None and done.replicates >= wanted:
        return
    truth = cell.truth()
    sums = done or Sums(truth, below=0)
    if not math.isclose(sums.truth, truth, rel_tol=1e-6):
        # Another machine's rounding is no other population; this is.
        raise SystemExit(f"{cell.name}: was measured with another population; remove {path}")
    began = saved = time.perf_counter()
    while sums.replicates < wanted:
        # Each replicate has a seed of its own: a run that was killed gives what it would have given.
        rng = np.random.default_rng([zlib.crc32(cell.name.encode()), sums.replicates])
        sums.add(cell.measure(rng))
        now = time.perf_counter()
        if now - saved > EVERY or sums.replicates == wanted:
            sums.seconds += now - began
            sums.date = datetime.date.today().isoformat()
            began = saved = now
            keep(path, cell.name, sums)


def cells_at(path: Path) -> dict[str, Sums]:
    """Return what was found of each cell."""
    return {name: Sums(**cell) for name, cell in load(path).get("cells", {}).items()}


def keep(path: Path, name: str, sums: Sums | None) -> None:
    """Write what was found of one cell beside the others; None forgets it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Other runs write other cells of the same file. The lock lies elsewhere: results are committed.
    with FileLock(Path(tempfile.gettempdir()) / f"{zlib.crc32(str(path.resolve()).encode()):x}.lock"):
        found = cells_at(path)
        found.pop(name, None) if sums is None else found.update({name: sums})
        save(path, {"cells": {key: asdict(cell) for key, cell in found.items()}}, report(found))


def report(found: Mapping[str, Sums]) -> str:
    """Return the table as Markdown."""
    if not found:
        return ""
    cells = {cell.name: (place, cell.replicates) for place, cell in enumerate(all_cells())}
    names = sorted(found, key=lambda name: cells.get(name, (len(cells), 0)))
    dates = sorted({sums.date for sums in found.values()})
    return paragraphs(
        "# Coverage: how often the interval holds the truth",
        grid(
            [_row(name, found[name], cells.get(name, (0, 0))[1]) for name in names],
            ["cell", "truth", "bias", "corrected", "SE / SD", "coverage", "its interval", "below", "verdict"],
        ),
        "Cells: metric; width (FID, KID), classes (IS) or tail (CLIP); distance from the reference, or a "
        "reference of low rank; tail of the features; number of images (FID: as a multiple of the width). "
        "Tails: `gaussian`; `heavy` and `heavier`, Student's t with 5 and 3 degrees of freedom, one scale "
        "per image; `skewed`, exponential; `rectified`, zero where a Gaussian is below zero; `clusters`, "
        "around ten centres. Populations: see `benchmarks/gate/coverage_cells.py`.",
        "Bias: of the value as printed and of the corrected one, mean over the replicates, in standard "
        "errors. SE / SD: root mean square of the standard errors over the standard deviation of the "
        "corrected value. Coverage: share of the intervals, corrected value ± 1.96 standard errors, that "
        "hold the truth, with its own 95 % interval (Clopper and Pearson). Below: share of the replicates "
        "whose corrected value lies below the truth by more than 1.645 standard errors, 5 % by design, "
        "where it was counted; of FID these are wrong passes at the very margin, if the value is put to an "
        "exact claim. Verdict: `holds` where the interval of the coverage meets 92 to 98 %, `misses` below, "
        "`conservative` above; `unsupported` where the code gives no corrected value or no standard error "
        "in 95 % of the replicates or more. In other cells coverage is that of the replicates with both.",
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; "
        f"{sum(sums.replicates for sums in found.values()):,} replicates in "
        f"{sum(sums.seconds for sums in found.values()) / 3600:.1f} hours of one thread.",
    )


def _row(name: str, sums: Sums, wanted: int) -> list[str]:
    n, k = sums.supported, sums.held
    unsupported = f"unsupported ({n} of {sums.replicates} escape)"
    if not n:
        return [name, f"{sums.truth:.5g}", "", "", "", "", "", "", unsupported]
    error = math.sqrt(sums.error_squares / n)
    mean = sums.corrected / n
    spread = math.sqrt(max(sums.corrected_squares - n * mean**2, 0.0) / (n - 1)) if n > 1 else math.nan
    low, high = chance_of(k, n)
    verdict = "misses" if high < HOLDS[0] else "conservative" if low > HOLDS[1] else "holds"
    if n <= ESCAPE * sums.replicates:
        verdict = unsupported
    elif n < sums.replicates:
        verdict += f"; {sums.replicates - n} of {sums.replicates} unsupported"
    if sums.replicates < wanted:
        verdict = f"unfinished: {sums.replicates} of {wanted}"
    return [
        name,
        f"{sums.truth:.5g}",
        f"{sums.raw / sums.replicates / error:+.2f}",
        f"{mean / error:+.2f}",
        f"{error / spread:.2f}",
        f"{100 * k / n:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        "" if sums.below is None else f"{100 * sums.below / n:.1f} %",
        verdict,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, write Markdown and JSON."""
    parser = options.parser("gate.coverage", __doc__)
    parser.add_argument("--only", action="append", metavar="PREFIX", help="cells whose name begins so")
    parser.add_argument("--replicates", type=int, help="of every cell, instead of its own number")
    parser.add_argument("--again", action="store_true", help="forget what these cells found")
    parser.add_argument("--results", type=Path, default=RESULTS / "coverage.json")
    asked = parser.parse_args(arguments)
    cells = [cell for cell in all_cells() if not asked.only or cell.name.startswith(tuple(asked.only))]
    if not cells:
        raise SystemExit(f"no cell begins with {' or '.join(asked.only)}")
    for cell in cells:
        if asked.again:
            keep(asked.results, cell.name, None)
        run(cell, asked.results, asked.replicates)
        sums = cells_at(asked.results)[cell.name]
        row = "  ".join(_row(cell.name, sums, cell.replicates))
        print(f"{row}  {sums.seconds:.0f} s", file=sys.stderr, flush=True)
    print(report(cells_at(asked.results)))


if __name__ == "__main__":
    main()
