"""Compare the embedded family: `python -m benchmarks.family`.

The published table in miniature: quality, size and speed of the teacher and of its students. All are drawn
from the same prompts and seeds, so differences are also taken image by image, which is sharper than the
difference of two scores. Images that the evidence store holds are not made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import options
from benchmarks.family.comparison import draw_sheet, measure, report, score
from benchmarks.report import RESULTS, load, save
from pytest_sdbench.base.paths import user_cache


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write Markdown and JSON."""
    parser = options.parser("family", __doc__, "--threads")
    parser.add_argument("--protocol", default="scenes-5k")
    parser.add_argument("--rounds", type=int, default=40, help="0 scores anew and keeps the recorded times")
    parser.add_argument("--store", type=Path, default=user_cache() / "experiments" / "evidence")
    asked = options.parse(parser, arguments)
    path = RESULTS / "family"
    if asked.rounds:
        found = measure(asked.protocol, asked.store, asked.rounds)
        draw_sheet(path.with_suffix(".png"), asked.store)
    else:
        found = score(load(path), asked.store)
    save(path, found, report(found))
    print(report(found))


if __name__ == "__main__":
    main()
