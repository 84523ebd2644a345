"""Measure a recipe's training step beside the same step run the way the published script runs it.

`python -m benchmarks.training --recipe scenes-tiny`; benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import options
from benchmarks.report import RESULTS, paragraphs, save
from benchmarks.training.compare import Settings, measure, resident_gib
from benchmarks.training.report import report, section
from benchmarks.training.scenario import Size, open_scenario
from benchmarks.training.ways import Way
from benchmarks.turns import in_a_process


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = options.parser("training", __doc__)
    parser.add_argument("--recipe", action="append", help="may be repeated [scenes-tiny]")
    options.add_sizes(parser)
    options.add_device(parser)
    parser.add_argument("--steps", type=int, default=2, help="steps of one turn [%(default)s]")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way [%(default)s]")
    parser.add_argument("--compile", action="store_true", help="torch.compile is one of our speed-ups")
    parser.add_argument("--headline", action="store_true", help="not each difference alone")
    parser.add_argument("--memory", action="store_true", help="on a CPU: one more process for each way")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--note", default="", help="a sentence to stand above the tables")
    parser.add_argument("--out", type=Path, help="where to write [benchmarks/results/training-DEVICE]")
    asked = options.parse(parser, arguments)
    options.check(parser, asked.device, asked.rounds, asked.steps)
    device = torch.device(asked.device)
    size: Size = "smoke" if asked.smoke else "full" if asked.full_size else "recipe"
    recipes = asked.recipe or (["bk-sdm-base", "bk-sdm-tiny"] if asked.full_size else ["scenes-tiny"])
    results = []
    for name in recipes:

        def memory(way: Way | None, name: str = name) -> float | None:
            if not asked.memory or device.type == "cuda":
                return None
            return in_a_process(resident_gib, way, name, size, asked.set)

        result = measure(
            open_scenario(name, size=size, device=device, overrides=asked.set),
            Settings(asked.rounds, asked.steps, park=device.type == "cuda"),
            compiled=asked.compile,
            alone=not asked.headline,
            memory=memory,
        )
        print(paragraphs(*section(result)))
        results.append(result)
    out = asked.out or RESULTS / f"training-{device.type}"
    content = {"note": asked.note, "results": results}
    save(out, content, report(content))
    print(f"wrote {out.with_suffix('.json')} and {out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
