"""Tell what was measured of the gate: a heading, what the columns mean, a table for each section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.stats import binomtest

from benchmarks.gate.pools import POOL, QUICK, SEED_SETS
from benchmarks.gate.sections import BIG, DRAWS, LABELS, SHUFFLES, WIDTH
from benchmarks.report import Cell, paragraphs, table


def chance_of(count: int, runs: int) -> tuple[float, float]:
    """Return the 95 % interval of the chance of what came in `count` of `runs` (Clopper, Pearson 1934)."""
    interval = binomtest(count, runs).proportion_ci()
    return float(interval.low), float(interval.high)


def rate(count: int, runs: int) -> str:
    """Return how often something happened, with the 95 % interval of its chance."""
    low, high = chance_of(count, runs)
    return f"{count / runs:.1%} ({low:.1%} to {high:.1%})"


def _yes(word: str) -> Callable[[Any], str]:
    return lambda row: word if row["paired"] else "no"


RATES: list[tuple[str, Cell]] = [
    ("runs", "{runs}"),
    ("passed", lambda row: rate(row["passed"], row["runs"])),
    ("failed", lambda row: rate(row["failed"], row["runs"])),
]
SEQUENCES = (
    "scenes-small is judged by claims of scenes-sd that are moved so that the true differences are those "
    "of the table: draws with replacement from the pools, whose true scores are known. FID, IS and CLIP "
    "score. Paired: same prompts and seeds. Margin: in standard errors of an unpaired difference of "
    "30,000 images each. Fewer: against a fixed run of 30,000."
)
SEQUENCE_COLUMNS: list[tuple[str, Cell]] = [
    ("paired", _yes("yes")),
    ("margin", "{margin} SE"),
    ("worse by the margin", "{worse}"),
    *RATES,
    ("images", "{mean_images:,}"),
    ("fewer", lambda row: f"{BIG / row['mean_images']:.1f}x"),
]
TABLES: dict[str, tuple[str, str, Sequence[tuple[str, Cell]]]] = {
    "predictions": (
        f"FID of {POOL:,} images, predicted from fewer",
        f"The bias-corrected FID with the bias of {POOL:,} images put back. The images are the first of the "
        "pool; off: how far the prediction lies from what the pool came to, in its standard errors.",
        [
            ("", "{member}"),
            ("images", "{n:,}"),
            ("their FID", "{raw:.4f}"),
            ("predicted", "{predicted:.4f} ± {standard_error:.4f}"),
            ("measured", "{measured:.4f}"),
            ("off", "{off:+.2f}"),
        ],
    ),
    "pairing": (
        "Pairing on prompts and seeds, 5,000 images",
        "",
        [
            ("", "{member} - scenes-sd"),
            ("", lambda row: LABELS[row["metric"]]),
            ("difference", "{value:+.5f}"),
            ("SE unpaired", "{unpaired_error:.5f}"),
            ("SE paired", "{standard_error:.5f}"),
            ("gain", lambda row: f"{row['unpaired_error'] / row['standard_error']:.1f}x"),
        ],
    ),
    "seeds": (
        f"Independent seeds: {SEED_SETS} sets of 512 images",
        f"Whole cards of four scores; a margin is {WIDTH} standard errors of the difference of two "
        "independent runs. Each set is judged by another one of the same checkpoint. Worse: which scores are "
        "worse than the claim by just the margin, by claims that are better by so much. A pass there is a "
        "wrong one; so is a fail where none is worse. In brackets the 95 % interval of the chance.",
        [
            ("", "{member}"),
            ("paired", _yes("by prompt")),
            ("worse by the margin", "{worse}"),
            *RATES,
        ],
    ),
    "parts": (
        f"Parts of one pool: {SHUFFLES} times {POOL // QUICK} disjoint parts of {QUICK} images",
        f"Drawn without replacement from {POOL:,} images, which lessens the variance of a part by "
        f"{QUICK / POOL:.1%} and makes two parts differ by as much more; the parts of one shuffle are "
        "disjoint, those of two are not, so the intervals are a little too narrow. Where a student is judged "
        "by its teacher, claims are moved so that the differences of the whole pools are those of the "
        "table.",
        [
            ("", "{candidate} by {claimed}"),
            ("paired", _yes("by prompt and seed")),
            ("worse by the margin", "{worse}"),
            *RATES,
        ],
    ),
    "power": (
        "Power: FID beyond claim and margin by a tenth of the claim, 5,000 images",
        "Draws with replacement from the pools. The card has four scores; beyond: by how much the true FID "
        "lies beyond the margin, which is to be seen against the standard error of the difference.",
        [
            ("", "{candidate} by {claimed}"),
            ("paired", _yes("yes")),
            ("claim", "{claim:.4f}"),
            ("beyond", "{beyond:.4f}"),
            ("SE", "{error:.4f}"),
            *RATES,
        ],
    ),
    "students": (
        f"Students under their teacher's card: {DRAWS} random draws each",
        "Draws with replacement from the pools, student and teacher of the same prompts and seeds. FID, KID, "
        "IS and CLIP score of the teacher's draw are claimed, with the margins of the protocol.",
        [
            ("", "{member}"),
            ("protocol", "`{protocol}`"),
            ("images", "{n:,}"),
            *RATES,
        ],
    ),
    "paired-sequences": ("Sequences, paired: cards of 30,000 images", SEQUENCES, SEQUENCE_COLUMNS),
    "unpaired-sequences": ("Sequences, unpaired: cards of 30,000 images", SEQUENCES, SEQUENCE_COLUMNS),
}
"""By section: its title, what its columns mean, and the columns."""


def report(found: Mapping[str, Any]) -> str:
    """Return the tables of the measured sections as Markdown."""
    pieces = []
    for name, (title, text, columns) in TABLES.items():
        if name in found:
            about = found[name]
            pieces += [f"## {title}", text, table(about["rows"], columns)]
            pieces.append(f"{about['date']}, {about['machine']}, {about['seconds']:.0f} s.")
    return paragraphs("# The gate, measured", *pieces)
