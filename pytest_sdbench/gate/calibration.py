"""What a protocol's scores scatter by when only the seeds change, as measured or as published.

A file ``calibration/PROTOCOL.json`` beside the folder of protocols holds one figure a run and metric.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import DataError, first_line
from pytest_sdbench.base.files import json_mapping, read_bounded, write_atomically
from pytest_sdbench.cards.card import Card
from pytest_sdbench.cards.claims import margin_of
from pytest_sdbench.gate.verdict import ALPHA, Outcome, Score, Verdict, judge_score, uncalibrated
from pytest_sdbench.metrics.difference import difference
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import Groups
from pytest_sdbench.protocols.protocol import Protocol

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.evaluate import Evaluation

FOLDER = "calibration"
_WRITABLE = "Make the folder writable, or calibrate a copy of the protocol beside your card"
_LARGEST = 1 << 24
"""Bytes of a calibration."""
FEWEST = 4
"""Runs that a spread needs before it counts as the uncertainty of a claim."""


@dataclass(frozen=True)
class Calibration:
    """Runs of one checkpoint under one protocol that differ in the draw alone."""

    protocol: str
    protocol_fingerprint: str
    checkpoint: str
    """What was run, in words."""
    values: Mapping[str, Sequence[float]]
    """By metric: the score of each run."""
    seeds: Sequence[int] = ()
    standard_errors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By metric: what each run said that its standard error is."""
    false_alarms: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By metric: how many pairs of runs passed, failed and were inconclusive when one was judged by the
    other."""
    scatter: Mapping[str, float] = field(default_factory=dict)
    """By metric: what paired differences of two runs scatter by, in their standard errors; 1 is right."""
    source: str = "pytest-sdbench"
    date: str | None = None

    def spread(self, metric: str) -> float | None:
        """Return the standard deviation of a metric over the runs, or None where too few are known."""
        values = self.values.get(metric, ())
        return statistics.stdev(values) if len(values) >= FEWEST else None

    def verdict(self) -> Verdict:
        """Say what was found; a fail where runs of one checkpoint fail each other too often to be chance."""
        if not self.values:
            return uncalibrated(f"{len(self.seeds)} runs, and no score that could be computed here")
        parts = []
        for name, values in self.values.items():
            label, form = METRICS[name].label, f".{METRICS[name].recorded_decimals}f"
            scatter = statistics.stdev(values)
            parts.append(f"{label} {statistics.fmean(values):{form}} scatters by {scatter:{form}}")
        failed = sum(counts.get(Outcome.FAIL, 0) for counts in self.false_alarms.values())
        pairs = sum(sum(counts.values()) for counts in self.false_alarms.values())
        told = f"{len(self.seeds)} runs: {', '.join(parts)}; {failed} of {pairs} false alarms"
        # Differences scatter by their standard errors; that is known as well as runs are many.
        limit = 1 + 2 / math.sqrt(len(self.seeds) - 1)
        wide = [metric for metric, scatter in self.scatter.items() if scatter > limit]
        if wide:
            shown = ", ".join(f"{METRICS[metric].label} by {self.scatter[metric]:.1f}" for metric in wide)
            told += f"; differences scatter by more than their standard errors say: {shown} of them"
        return Verdict(Outcome.FAIL if wide or (pairs and failed / pairs > ALPHA) else Outcome.PASS, told)


def calibrate(
    card: Card,
    protocol: Protocol,
    evaluate: Callable[[Protocol], Evaluation],
    runs: int,
    first_seed: int | None = None,
) -> Calibration:
    """Return what the scores of a card's checkpoint scatter by when only the seeds change.

    The runs take the protocol's prompts with seeds from `first_seed` on, by default those that follow its
    own. Each is judged by each other as if that one's scores were the claims, paired by prompt. A metric
    without a margin is not judged.
    """
    first = protocol.seeds.seed + 1 if first_seed is None else first_seed
    seeds = range(first, first + runs)
    found = [evaluate(protocol.with_seed(seed)) for seed in seeds]
    estimates = {
        metric: [each for run in found if isinstance(each := run.estimates.get(metric), Estimate)]
        for metric in protocol.metrics
    }
    estimates = {metric: each for metric, each in estimates.items() if len(each) == runs}
    groups = found[0].groups
    scatter = {metric: _scatter(each, groups) for metric, each in estimates.items()}
    margins = protocol.margins | {
        metric: own
        for metric in estimates
        if (own := margin_of(card.margins, protocol.name, metric)) is not None
    }
    return Calibration(
        protocol=protocol.name,
        protocol_fingerprint=protocol.fingerprint,
        checkpoint=calibrator(card, found[0].checkpoint_fingerprint),
        values={metric: [_short(run.value) for run in each] for metric, each in estimates.items()},
        seeds=list(seeds),
        standard_errors={
            metric: [_short(run.standard_error) for run in each if run.standard_error is not None]
            for metric, each in estimates.items()
        },
        false_alarms={
            metric: _false_alarms(each, margins[metric], groups)
            for metric, each in estimates.items()
            if metric in margins
        },
        scatter={metric: _short(each) for metric, each in scatter.items() if each is not None},
        date=datetime.date.today().isoformat(),
    )


def _scatter(runs: Sequence[Estimate], groups: Groups | None) -> float | None:
    """Return the root mean square of the differences of any two runs, in their standard errors."""
    found = [difference(*pair, groups=groups) for pair in combinations(runs, 2)]
    squares = [
        (each.value / each.standard_error) ** 2 for each in found if each is not None and each.standard_error
    ]
    return math.sqrt(statistics.fmean(squares)) if squares else None


def _short(figure: float) -> float:
    return float(f"{figure:.6g}")


def _false_alarms(runs: Sequence[Estimate], margin: float, groups: Groups | None) -> dict[str, int]:
    outcomes: Counter[str] = Counter()
    for claimed, run in permutations(runs, 2):
        metric, found = METRICS[run.metric], difference(run, claimed, groups=groups)
        assert found is not None
        score = Score(
            label=metric.label,
            claimed=claimed.value,
            measured=run.value,
            margin=margin,
            higher_is_better=metric.higher_is_better,
            decimals=metric.decimals,
            error=found.standard_error,
        )
        outcomes[str(judge_score(score).outcome)] += 1
    return dict(outcomes)


def calibration_path(protocol: Protocol) -> Path:
    """Return where a protocol's calibration lies, or would."""
    folder = protocol.path.parent
    return (folder.parent if folder.name == "protocols" else folder) / FOLDER / f"{protocol.name}.json"


def read_calibration(protocol: Protocol) -> Calibration | None:
    """Return the calibration of a protocol, or None where there is none or the protocol has changed since.

    Metrics that the protocol has gained since change nothing of the others.

    Raises DataError for a file that is none.
    """
    path = calibration_path(protocol)
    if not path.is_file():
        return None
    try:
        found = Calibration(**json_mapping(read_bounded(path, _LARGEST)))
        for metric, values in found.values.items():
            if metric not in METRICS:
                raise ValueError(f"unknown metric {metric!r}")
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{metric} holds a figure that is not finite")
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"not a calibration: {first_line(error)}",
            file=path,
            remedy="Delete it, and measure it again with --sdbench-calibrate",
        ) from None
    return found if protocol.covers(found.protocol_fingerprint) else None


def calibrator(card: Card, fingerprint: str) -> str:
    """Return what a calibration calls the checkpoint that it was run with."""
    return f"{card.name} ({fingerprint})"


def check_calibration(protocol: Protocol, checkpoint: str, runs: int) -> None:
    """Raise DataError, before an image is made, where so many runs of a checkpoint could not be recorded."""
    path = calibration_path(protocol)
    _refuse_to_replace(read_calibration(protocol), checkpoint, dict.fromkeys(protocol.metrics, runs), path)
    place = next(each for each in (path, *path.parents) if each.exists())
    if not os.access(place, os.W_OK):
        raise DataError("the calibration cannot be written", file=path, remedy=_WRITABLE)


def write_calibration(protocol: Protocol, calibration: Calibration) -> Path:
    """Write a calibration into its place and return that.

    Raises DataError where another checkpoint has calibrated the protocol: that one is not overwritten.
    """
    path = calibration_path(protocol)
    runs = {metric: len(values) for metric, values in calibration.values.items()}
    _refuse_to_replace(read_calibration(protocol), calibration.checkpoint, runs, path)
    text = json.dumps(asdict(calibration), indent=2, ensure_ascii=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode("utf-8"))
    except OSError as error:
        raise DataError(
            f"the calibration cannot be written: {error.strerror or error}",
            file=path,
            remedy=_WRITABLE,
        ) from error
    return path


def _refuse_to_replace(
    known: Calibration | None, checkpoint: str, runs: Mapping[str, int], path: Path
) -> None:
    """Raise DataError where a calibration is by another checkpoint, or by more runs."""
    if known is None:
        return
    if known.checkpoint != checkpoint:
        raise DataError(
            "the protocol is calibrated by another checkpoint",
            file=path,
            found=known.checkpoint,
            remedy=f"Calibrate a copy of the protocol beside your card, or delete the file for {checkpoint}",
        )
    for metric, values in known.values.items():
        if (own := runs.get(metric, 0)) < len(values):
            raise DataError(
                f"{METRICS[metric].label} is calibrated by more runs than these {own}",
                file=path,
                found=f"{len(values)} runs",
                remedy=f"Ask for {len(values)} or more where its references are, or delete the file",
            )


def record_calibration(protocol: Protocol, calibration: Calibration) -> tuple[Verdict, Path | None]:
    """Return the verdict of a calibration, and the file that it is written to where it passes."""
    verdict = calibration.verdict()
    if verdict.outcome is not Outcome.PASS:
        return verdict, None
    try:
        path = write_calibration(protocol, calibration)
    except DataError as error:  # the runs may have taken days: what they found is told all the same
        what = f"{error.message}; measured: {verdict.reason}"
        raise DataError(what, file=error.file, found=error.found, remedy=error.remedy) from error
    return replace(verdict, reason=f"{verdict.reason}; recorded in {path}"), path
