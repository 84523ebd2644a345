"""Answer one question on a GPU, in a few minutes: `python -m benchmarks.cuda NAME --out FOLDER`.

README.md beside this file says what each measurement answers.
"""

from __future__ import annotations

import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import options
from benchmarks.cuda import agreement, evaluation, records, resume, training
from benchmarks.cuda.measurement import Measurement
from pytest_sdbench.evaluation.tuning import NotCompiled

MEASUREMENTS: Mapping[str, Callable[[Measurement], None]] = {
    "evaluation": partial(evaluation.measure, architecture="sd-v1"),
    "evaluation-tiny": partial(evaluation.measure, architecture="bk-sdm-tiny"),
    "evaluation-lcm": partial(evaluation.measure, architecture="bk-sdm-tiny-lcm"),
    "training-base": partial(training.measure, recipe="bk-sdm-base"),
    "training-tiny": partial(training.measure, recipe="bk-sdm-tiny"),
    "training-resume": partial(resume.measure, recipe="bk-sdm-tiny"),
    "precision": agreement.precision,
    "evidence": agreement.evidence,
    "cards": agreement.cards,
    **{f"records-{network}": partial(records.measure, network=network) for network in records.CARDS},
}
"""In the order in which they are to be asked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and return 1 if an answer is a problem."""
    began = time.monotonic()
    parser = options.parser("cuda", __doc__, "--smoke", "--device")
    parser.add_argument("name", choices=MEASUREMENTS)
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument("--minutes", type=float, default=4.0, help="for all of it [%(default)s]")
    asked = options.parse(parser, arguments)
    options.check(parser, asked.device, 1)
    asked.out.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(
        asked.name, asked.out, torch.device(asked.device), asked.minutes, asked.smoke, began=began
    )
    # The engine goes on without a compiler that fails. An eager figure is no answer about compiled networks.
    warnings.filterwarnings("error", category=NotCompiled)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        MEASUREMENTS[asked.name](measurement)
    finally:
        signal.signal(signal.SIGTERM, before)
        if measurement.answers:
            print((asked.out / f"{asked.name}.md").read_text(encoding="utf-8"))
    return 1 if measurement.problems else 0


def _end(_signal: int, _frame: object) -> None:
    """End as an error does: processes that were started end, temporary files go, the table is printed."""
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main())
