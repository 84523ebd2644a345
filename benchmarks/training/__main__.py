"""Measure a recipe's training step beside the same step run the way the published script runs it.

`python -m benchmarks.training --recipe scenes-tiny`; benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from benchmarks import options
from benchmarks.report import paragraphs, place, save
from benchmarks.training.compare import measure, report, section
from benchmarks.training.scenario import Size, open_scenario
from benchmarks.training.ways import Way


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    common = ("--full-size", "--smoke", "--device", "--set")
    parser = options.parser("training", __doc__, *common)
    parser.add_argument("--recipe", action="append", help="may be repeated [scenes-tiny]")
    parser.add_argument("--steps", type=int, default=2, help="steps of one turn [%(default)s]")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each way [%(default)s]")
    parser.add_argument("--compile", action="store_true", help="torch.compile is one of our speed-ups")
    speed_ups = options.some_of(field.name for field in fields(Way))
    parser.add_argument("--speed-ups", type=speed_ups, help="which to switch alone [all of the recipe's]")
    parser.add_argument("--out", type=Path, help="where to write [benchmarks/results/training-DEVICE]")
    asked = options.parse(parser, arguments)
    options.check(parser, asked.device, asked.rounds, asked.steps)
    device = torch.device(asked.device)
    size: Size = "smoke" if asked.smoke else "full" if asked.full_size else "recipe"
    recipes = asked.recipe or (["bk-sdm-base", "bk-sdm-tiny"] if asked.full_size else ["scenes-tiny"])
    results = []
    for name in recipes:
        result = measure(
            open_scenario(name, size=size, device=device, overrides=asked.set),
            rounds=asked.rounds,
            steps=asked.steps,
            compiled=asked.compile,
            speed_ups=asked.speed_ups,
        )
        print(paragraphs(*section(result)))
        results.append(result)
    out = asked.out or place(f"training-{device.type}", smoke=asked.smoke)
    content = {"results": results}
    save(out, content, report(content))
    print(f"wrote {out.with_suffix('.json')} and {out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
