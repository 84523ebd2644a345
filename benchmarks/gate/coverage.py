"""Count how often a score's interval holds the truth: `python -m benchmarks.gate.coverage`.

Images are replaced by draws from a population whose score is known: its FID from its moments, its Inception
score from a sample far larger than any that is judged, its KID from all pairs of a finite pool, its CLIP
score by construction. Every cell draws many sets of images, asks the public code for `corrected` and
`standard_error` and counts the intervals of 1.96 standard errors to both sides that hold the truth. Shares
of lost pictures have exact intervals instead.

There are three tables, and each cell is written to its own. What is done already is not done again: a killed
run goes on where it was, and several may run side by side on different cells (`--only fid-64 --only kid`).
"""

from __future__ import annotations

import datetime
import math
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from benchmarks import options
from benchmarks.gate import coverage_cells
from benchmarks.gate.coverage_cells import Cell, Found, Interval
from benchmarks.gate.coverage_features import feature_cells
from benchmarks.gate.coverage_pairs import pair_cells
from benchmarks.gate.tables import chance_of
from benchmarks.report import RESULTS, grid, load, paragraphs, save
from pytest_sdbench.base.text import duration
from pytest_sdbench.metrics.estimates import Undefined

Z, ONE_SIDED = 1.959964, 1.644854
"""Standard errors to each side of a 95 % interval; to the one side at which the gate looks."""

HOLDS = (0.92, 0.98)
"""Coverage that is called right: a nominal 95 % give or take what nobody would decide by."""

NOMINAL = 0.95
"""Coverage that an exact interval has at least."""

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
    wrong: int | None = None
    """Replicates better than the truth by more than ONE_SIDED errors; None where not counted."""
    raw: float = 0.0
    """Of the uncorrected value, over all replicates."""
    corrected: float = 0.0
    corrected_squares: float = 0.0
    error_squares: float = 0.0
    seconds: float = 0.0
    date: str = ""

    def add(self, found: Found, *, higher_is_better: bool = False) -> None:
        """Count one replicate."""
        self.replicates += 1
        if isinstance(found, Undefined):
            return
        self.raw += found.value - self.truth
        if isinstance(found, Interval):
            off, error = found.value - self.truth, (found.high - found.low) / (2 * Z)
            is_held, is_wrong = found.low <= self.truth <= found.high, found.one_sided < self.truth
        elif found.corrected is None or found.standard_error is None:
            return
        else:
            off, error = found.corrected - self.truth, found.standard_error
            is_held = abs(off) <= Z * error
            is_wrong = (off if higher_is_better else -off) > ONE_SIDED * error
        self.supported += 1
        self.held += is_held
        if self.wrong is not None:
            self.wrong += is_wrong
        self.corrected += off
        self.corrected_squares += off**2
        self.error_squares += error**2


TAILS = (
    "Tails: `gaussian`; `heavy` and `heavier`, Student's t with 5 and 3 degrees of freedom, one scale per "
    "image; `skewed`, exponential; `rectified`, zero where a Gaussian is below zero; `clusters`, around ten "
    "centres."
)


@dataclass(frozen=True)
class Table:
    """Cells that are shown together, in a file of this name."""

    title: str
    cells: Callable[[], list[Cell]]
    about: str
    """What the names of the cells mean."""


TABLES = {
    "coverage": Table(
        "of FID, KID, Inception score and CLIP score",
        coverage_cells.all_cells,
        "Cells: metric; width (FID, KID), classes (IS) or tail (CLIP); distance from the reference, or a "
        "reference of low rank; tail of the features; number of images (FID: as a multiple of the width). "
        f"{TAILS} Populations: see `benchmarks/gate/coverage_cells.py`.",
    ),
    "coverage-features": Table(
        "of the newer distances of features, and of diversity",
        feature_cells,
        "Cells: metric; generator; number of images; images a prompt, where it is not one. FD-DINOv2 and "
        "KD-DINOv2: width, distance from the reference, tail, number of images (FD-DINOv2: as a multiple of "
        f"the width). Generators: of ten modes, `good` or `heavy`, `dropping` five, or `noisy`. {TAILS} "
        "Populations: see `benchmarks/gate/coverage_features.py`.",
    ),
    "coverage-pairs": Table(
        "of means, paired differences and shares of images",
        pair_cells,
        "Cells of means: metric and what its scores look like; images a prompt; number of images. `equal` "
        "and `rare`: a tenth and a hundredth of the pictures equal the reference's, at the cap of 100 dB; "
        "`failures`: a hundredth are black; `skewed`: log-normal; `heavy` and `heavier`: Student's t with 5 "
        "and 3 degrees of freedom; `votes`: yes or no. `difference`: candidate less recorded checkpoint, "
        "same prompts and noise. HPSv2.1, PickScore, the aesthetic score and the CLIP score are the same "
        "mean. Cells of `lost`: true share; whether prompts have one picture, two (lost together, or "
        "`alone`), or one and three by turns; number of images. Fewer than 20 prompts are unsupported: the "
        "gate calls nothing of them. Populations: see `benchmarks/gate/coverage_pairs.py`.",
    ),
}


def all_cells() -> dict[str, list[Cell]]:
    """Return the cells of every table."""
    return {name: table.cells() for name, table in TABLES.items()}


def run(cell: Cell, path: Path, replicates: int | None = None) -> None:
    """Bring a cell to its number of replicates; what is done goes to the disk now and then."""
    wanted = cell.replicates if replicates is None else replicates
    done = cells_at(path).get(cell.name)
    if done is not None and done.replicates >= wanted:
        return
    truth = cell.truth()
    sums = done or Sums(truth, wrong=0)
    if not math.isclose(sums.truth, truth, rel_tol=1e-6):
        # Another machine's rounding is no other population; this is.
        raise SystemExit(f"{cell.name}: was measured with another population; remove {path}")
    began = saved = time.perf_counter()
    while sums.replicates < wanted:
        # Each replicate has a seed of its own: a run that was killed gives what it would have given.
        rng = np.random.default_rng([zlib.crc32(cell.name.encode()), sums.replicates])
        sums.add(cell.measure(rng), higher_is_better=cell.higher_is_better)
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
        save(path, {"cells": {key: asdict(cell) for key, cell in found.items()}}, report(path.stem, found))


def report(table: str, found: Mapping[str, Sums]) -> str:
    """Return a table as Markdown."""
    if not found:
        return ""
    cells = {cell.name: (place, cell) for place, cell in enumerate(TABLES[table].cells())}
    # Whatever is there no more is not shown.
    names = sorted(found.keys() & cells.keys(), key=lambda name: cells[name][0])
    dates = sorted({sums.date for sums in found.values()})
    return paragraphs(
        f"# Coverage: how often the interval holds the truth, {TABLES[table].title}",
        grid(
            [_row(cells[name][1], found[name]) for name in names],
            [
                *("cell", "truth", "bias", "corrected", "SE / SD", "coverage", "its interval"),
                *("wrong passes", "verdict"),
            ],
        ),
        TABLES[table].about,
        "Bias: of the value as printed and of the corrected one, mean over the replicates, in standard "
        "errors. SE / SD: root mean square of the standard errors over the standard deviation of the "
        "corrected value. Coverage: share of the intervals, corrected value ± 1.96 standard errors, that "
        "hold the truth, with its own 95 % interval (Clopper and Pearson). Wrong passes: share of the "
        "replicates whose corrected value is better than the truth by more than 1.645 standard errors, 5 % "
        "by design, where it was counted; these pass what is worse by just the margin, if the value is put "
        "to an exact claim. Verdict: `holds` where the interval of the coverage meets 92 to 98 %, `misses` "
        "below, `conservative` above; `exact` where the interval is that of Clopper and Pearson, which holds "
        "the truth in 95 % or more by construction, and in more than 98 % (`exact, conservative`) where few "
        "are expected; `unsupported` where the code gives no corrected value or no standard error in 95 % of "
        "the replicates or more. In other cells coverage is that of the replicates with both.",
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; "
        f"{sum(sums.replicates for sums in found.values()):,} replicates in "
        f"{duration(sum(sums.seconds for sums in found.values()))} of one thread.",
    )


def _row(cell: Cell, sums: Sums) -> list[str]:
    n, k, name, wanted = sums.supported, sums.held, cell.name, cell.replicates
    unsupported = f"unsupported ({n} of {sums.replicates} escape)"
    if not n:
        return [name, f"{sums.truth:.5g}", "", "", "", "", "", "", unsupported]
    error = math.sqrt(sums.error_squares / n)
    mean = sums.corrected / n
    spread = math.sqrt(max(sums.corrected_squares - n * mean**2, 0.0) / (n - 1)) if n > 1 else math.nan
    low, high = chance_of(k, n)
    least, usual = (NOMINAL, "exact") if cell.exact else (HOLDS[0], "holds")
    verdict = "misses" if high < least else usual
    if low > HOLDS[1]:
        verdict = "exact, conservative" if cell.exact else "conservative"
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
        "" if sums.wrong is None else f"{100 * sums.wrong / n:.1f} %",
        verdict,
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, write Markdown and JSON."""
    parser = options.parser("gate.coverage", __doc__)
    parser.add_argument("--only", action="append", metavar="PREFIX", help="cells whose name begins so")
    parser.add_argument("--replicates", type=int, help="of every cell, instead of its own number")
    parser.add_argument("--again", action="store_true", help="forget what these cells found")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="of the tables")
    asked = parser.parse_args(arguments)
    only = tuple(asked.only or ("",))
    cells = {
        name: [cell for cell in known if cell.name.startswith(only)] for name, known in all_cells().items()
    }
    if not any(cells.values()):
        raise SystemExit(f"no cell begins with {' or '.join(only)}")
    for name, some in cells.items():
        path = asked.results / f"{name}.json"
        for cell in some:
            if asked.again:
                keep(path, cell.name, None)
            run(cell, path, asked.replicates)
            sums = cells_at(path)[cell.name]
            row = "  ".join(_row(cell, sums))
            print(f"{row}  {sums.seconds:.0f} s", file=sys.stderr, flush=True)
        if some:
            print(report(name, cells_at(path)))


if __name__ == "__main__":
    main()
