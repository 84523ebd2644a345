"""Measure the gate itself: `python -m benchmarks.gate [SECTION]...`.

How often does it fail what is as good as claimed, and pass what is worse by its margin; how surely does it
fail what is worse than that; how many images does it need? Measured on pools of images of the embedded
family (`python -m benchmarks.gate.pools` draws them), on independent seeds, and by simulation: draws with
replacement from a pool, whose true scores are known. Writes ``results/gate.json`` and ``results/gate.md``;
a section that is not asked for stays as it was found last.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import options
from benchmarks.gate.sections import SECTIONS
from benchmarks.gate.tables import report
from benchmarks.report import RESULTS, load, save
from pytest_sdbench.base.environment import timed_on


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure sections and write them beside those that were measured before."""
    parser = options.parser("gate", __doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} [all]")
    parser.add_argument("--runs", type=int, default=1000, help="of each simulated case [%(default)s]")
    parser.add_argument("--results", type=Path, default=RESULTS / "gate.json")
    asked = parser.parse_args(arguments)
    unknown = set(asked.sections) - SECTIONS.keys()
    if unknown:
        parser.error(f"no section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in asked.sections or SECTIONS:
        started = time.monotonic()
        rows = SECTIONS[name](asked.runs)
        known = load(asked.results)
        known[name] = {
            "date": datetime.date.today().isoformat(),
            "machine": timed_on("cpu"),
            "seconds": round(time.monotonic() - started, 1),
            "rows": rows,
        }
        known = {key: known[key] for key in SECTIONS if key in known}
        save(asked.results, known, report(known))
        print(f"{name}: {len(rows)} rows in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
