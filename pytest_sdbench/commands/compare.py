"""Compare two checkpoints under one protocol, without any claim: which is better, and how sure is that."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from pytest_sdbench.base.environment import torch_device
from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands.shared import find_card_of, first_images, protocol_of, share, show, write_figures
from pytest_sdbench.commands.systems import KINDS, System, apart, lone, system_of
from pytest_sdbench.evaluation.evaluate import CUT, evaluate
from pytest_sdbench.evaluation.evidence import NothingToMeasure
from pytest_sdbench.evaluation.fidelity import pairs_of
from pytest_sdbench.evaluation.job import Extras
from pytest_sdbench.gate.binomial import lower_bound, repeats_of, trials_of, upper_bound
from pytest_sdbench.gate.fidelity import other_setups
from pytest_sdbench.gate.recorded import evidence_path, read_recorded
from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.difference import FEWEST_PROMPTS, Difference, difference
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import Groups, groups_of
from pytest_sdbench.models.changes import changes
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.pipeline import cut_prompts, load_tokenizer
from pytest_sdbench.models.specs import EMBEDDED
from pytest_sdbench.protocols.load import load_protocol, protocol_names
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.report.cells import plain_table, with_error


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    command.add_argument("first", metavar="A", help=f"{KINDS}; fidelity compares pictures with those of A")
    command.add_argument(
        "second", metavar="B", help=f"{KINDS}; a U-Net's folder alone is joined to the base of the other"
    )
    told = "a protocol's name or file [the first that the card of B, or else of A, has a record of]"
    command.add_argument("--protocol", metavar="NAME", help=told)
    names = ("--images", "--store", "--data", "--device", "--download", "--json", "--keep-images")
    share(command, *names)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    place = options.store, options.data, torch_device(options.device, option="--device")
    workspace = Workspace(*place, download=options.download, keep_images=options.keep_images)
    protocol = options.protocol or recorded_protocol(options.second, options.first)
    found = compare(options.first, options.second, protocol, workspace, images=options.images)
    show(comparison_table(found))
    write_figures(figures(found), options.json)
    return 0


LEVEL = 0.95
"""Of the intervals; at this level a difference is called one."""

Estimates = Mapping[str, Estimate | Undefined]
"""By metric."""


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints under one protocol."""

    names: tuple[str, str]
    protocol: Protocol
    estimates: tuple[Estimates, Estimates]
    differences: Mapping[str, Difference | None]
    """By metric: first less second. None of pairs, which are of both together."""
    intervals: Mapping[str, tuple[float, float]]
    """By metric of pairs, of the second's pictures beside the first's; without one whose error is unknown."""
    prompts: int
    """Different ones."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Side:
    name: str
    checkpoint: Checkpoint
    recorded: Path | None

    def find(self) -> Checkpoint:
        """Return the checkpoint, as a reference of others is found."""
        return self.checkpoint


def compare(
    first: str, second: str, protocol_name: str, workspace: Workspace, *, images: int | None = None
) -> Comparison:
    """Score two checkpoints on the same prompts and seeds and return their difference, image by image.

    Metrics of pairs are scores of the second, whose reference is the first. A card whose images are recorded
    for the protocol is not drawn again, unless pairs need its pictures. Each checkpoint is a card (its name
    or its file), a folder, or a name such as ``embedded:scenes-small``; a U-Net alone, a LoRA and a single
    file stand on the other one. Raises SdbenchError as `evaluate` and `resolve`.
    """
    protocol = protocol_of(protocol_name, beside=[path.parent for path in _cards(first, second)])
    if images is not None:
        protocol = first_images(protocol, images)
    # A whole checkpoint comes first: it may be the base of the other.
    if lone(second) is None:
        last = system_of(second, None, download=workspace.download)
        one = system_of(first, last.checkpoint, download=workspace.download)
    else:
        one = system_of(first, None, download=workspace.download)
        last = system_of(second, one.checkpoint, download=workspace.download)
    left, right = (_side(system, protocol) for system in apart([one, last]))
    prompts = load_prompts(protocol, workspace.data_root)[: protocol.n]
    # The second first: the first one's pictures are drawn for it, and its own scores come of them.
    theirs, more = _scored(right, protocol, workspace, prompts, beside=left)
    alone, groups = protocol.without(pairs_of(protocol)), groups_of(prompts)
    ours, notes = _alone(left, alone, workspace, prompts, needed=alone.metrics == protocol.metrics)
    differences: dict[str, Difference | None] = dict.fromkeys(alone.metrics)
    for metric in alone.metrics:
        a, b = ours.get(metric), theirs.get(metric)
        if isinstance(a, Estimate) and isinstance(b, Estimate):
            differences[metric] = difference(a, b, groups=groups)
    names, told = (left.name, right.name), list(dict.fromkeys([*notes, *more]))
    if left.checkpoint.fingerprint != right.checkpoint.fingerprint:
        differ = changes(left.checkpoint, right.checkpoint, whose=f"in {right.name}")
        told += [f"{left.name}: {each}" for each in differ]
    found = {metric: _interval(theirs.get(metric), groups) for metric in pairs_of(protocol)}
    known = {metric: interval for metric, interval in found.items() if interval is not None}
    return Comparison(names, protocol, (ours, theirs), differences, known, len(set(prompts)), tuple(told))


def recorded_protocol(*named: str) -> str:
    """Return the first protocol that a card of these has a record of; raise SdbenchError where none has."""
    for path in _cards(*named):
        with suppress(SdbenchError):
            if records := read_card(path).records:
                return records[0].protocol
    remedy = f"Give --protocol one of: {', '.join(protocol_names())}, or a file"
    raise SdbenchError("neither has a card with a record", found=" and ".join(named), remedy=remedy)


def _cards(*named: str) -> Iterator[Path]:
    """Yield the cards of the systems that have one."""
    for text in named:
        with suppress(SdbenchError):  # of a checkpoint without a card
            yield find_card_of(text.removeprefix(EMBEDDED))


def _interval(score: Estimate | Undefined | None, groups: Groups | None) -> tuple[float, float] | None:
    """Return the interval of a score of pairs, a share's by Clopper and Pearson; None where that is open."""
    if not isinstance(score, Estimate):
        return None
    if METRICS[score.metric].share:
        trials, repeats, level = trials_of(score.n, groups), repeats_of(groups), (1 - LEVEL) / 2
        count = score.value * trials
        return lower_bound(count, trials, level, repeats), upper_bound(count, trials, level, repeats)
    if score.standard_error is None:
        return None
    reach = NormalDist().inv_cdf(0.5 + LEVEL / 2) * score.standard_error
    return score.value - reach, score.value + reach


def _scored(
    side: _Side,
    protocol: Protocol,
    workspace: Workspace,
    prompts: Sequence[str],
    beside: _Side | None = None,
) -> tuple[Estimates, list[str]]:
    """Return the estimates of a checkpoint, from its recorded images where there are some, and notes."""
    recorded = _recorded(side, protocol, beside)
    if recorded is not None:
        tokenizers = [load_tokenizer(side.checkpoint, name) for name in side.checkpoint.pipeline.tokenizers]
        cut = sum(cut_prompts(tokenizers, prompts))
        notes = ["recorded images, none drawn", *([CUT.format(cut)] if cut else [])]
        return recorded, [f"{side.name}: {note}" for note in notes]
    extras = Extras(original=None if beside is None else beside.find)
    evaluation = evaluate(side.checkpoint, protocol, workspace, extras=extras)
    notes = [f"{side.name}: {note}" for note in (*evaluation.notes, *other_setups(evaluation))]
    notes += [f"{metric}: {reason}" for metric, reason in evaluation.lacking.items()]
    return evaluation.estimates, notes


def _alone(
    side: _Side, protocol: Protocol, workspace: Workspace, prompts: Sequence[str], *, needed: bool
) -> tuple[Estimates, list[str]]:
    """Return as `_scored`; nothing where the protocol has no metric, or none here and pairs are left."""
    if not protocol.metrics:
        return {}, []
    try:
        return _scored(side, protocol, workspace, prompts)
    except NothingToMeasure:
        if needed:
            raise
        return {}, []  # it lacks of the other side, too, and is told there


def comparison_table(found: Comparison) -> str:
    """Return a comparison as a table and a line on each metric, for a terminal."""
    reach = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    rows = []
    lines = [
        f"{found.protocol.name}: {found.protocol.n:,} images each; ± is one standard error; pairing: how "
        "many times smaller it is than that of two independent runs"
    ]
    for metric, each in found.differences.items():
        known, first, second = METRICS[metric], *(side.get(metric) for side in found.estimates)
        if each is None or not isinstance(first, Estimate) or not isinstance(second, Estimate):
            without = [name for name, s in zip(found.names, (first, second), strict=True) if s is None]
            nothing = f"not known of {' and '.join(without)}"
            reason = next((s.reason for s in (first, second) if isinstance(s, Undefined)), nothing)
            lines.append(f"{known.label}: {reason}")
            continue
        digits, error = f".{known.recorded_decimals}f", each.standard_error
        less = with_error(each.value, error, known.recorded_decimals, "+")
        interval = gain = ""
        call = "cannot tell: its error is unknown"
        if error is not None:
            low, high = each.value - reach * error, each.value + reach * error
            interval = f"{low:+{digits}} to {high:+{digits}}"
            gain = "" if each.gain is None or each.gain > 1000 else f"{each.gain:.1f}x"
            call = _call(known, low, high, found.names)
            if found.prompts < FEWEST_PROMPTS:
                call = "cannot tell: too few prompts"
        scores = [f"{side.value:{digits}}" for side in (first, second)]
        rows.append([f"{known.label} {known.arrow}", *scores, less, interval, gain, call])
    heading = ["", *found.names, "difference", f"{LEVEL:.0%} interval", "pairing", ""]
    tables = [plain_table(heading, rows, "lrrrrrl"), ""] if rows else []
    return "\n".join([*tables, *_pairs_table(found), *lines, *found.notes])


def _pairs_table(found: Comparison) -> list[str]:
    """Return a table of the scores of pairs and an empty line; nothing where there is none."""
    rows = []
    for metric in pairs_of(found.protocol):
        known, score = METRICS[metric], found.estimates[1].get(metric)
        if not isinstance(score, Estimate):
            continue  # a note says why
        digits = f".{known.recorded_decimals}f"
        value = with_error(score.value, score.standard_error, known.recorded_decimals)
        interval = found.intervals.get(metric)
        reach = "" if interval is None else f"{interval[0]:{digits}} to {interval[1]:{digits}}"
        rows.append([f"{known.label} {known.arrow}", value, reach, f"{known.perfect or 0:g}"])
    heading = [f"{found.names[1]} beside {found.names[0]}", "", f"{LEVEL:.0%} interval", "equal pictures"]
    return [plain_table(heading, rows, "lrrr"), ""] if rows else []


def figures(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data; the scores of pairs are the second's, beside the first."""
    return {
        "first": found.names[0],
        "second": found.names[1],
        "protocol": found.protocol.name,
        "n": found.protocol.n,
        "metrics": {
            metric: {
                "first": getattr(found.estimates[0].get(metric), "value", None),
                "second": getattr(found.estimates[1].get(metric), "value", None),
                "difference": each.value,
                "standard_error": each.standard_error,
                "unpaired_error": each.unpaired_error,
            }
            for metric, each in found.differences.items()
            if each is not None
        },
        "pairs": {
            metric: {
                "value": each.value,
                "standard_error": each.standard_error,
                "interval": found.intervals.get(metric),
            }
            for metric in pairs_of(found.protocol)
            if isinstance(each := found.estimates[1].get(metric), Estimate)
        },
    }


def _call(metric: Metric, low: float, high: float, names: tuple[str, str]) -> str:
    # Threads and libraries move the last digits of the same images.
    if all(round(end, metric.recorded_decimals) == 0 for end in (low, high)):
        return "no difference"
    if low <= 0 <= high:
        return "cannot tell"
    return f"{names[0] if (low > 0) == metric.higher_is_better else names[1]} is better"


def _side(system: System, protocol: Protocol) -> _Side:
    evidence = None if system.card is None else evidence_path(system.card.path, protocol.name)
    return _Side(system.name, system.checkpoint, evidence)


def _recorded(side: _Side, protocol: Protocol, beside: _Side | None) -> Estimates | None:
    """Return the recorded estimates of a card, where they are of these weights, protocol and images.

    Those of pairs are beside the card's own baseline: where the protocol has some, that must be the other.
    """
    found = read_recorded(side.recorded) if side.recorded is not None else None
    if found is None or found.checkpoint_fingerprint != side.checkpoint.fingerprint:
        return None
    whole = load_protocol(protocol.path)
    recorded, pairs = found.looks.get(protocol.n, {}), set(pairs_of(protocol))
    fits = beside is not None and found.reference_fingerprint == beside.checkpoint.fingerprint
    if pairs and not (fits and pairs <= set(recorded)):
        return None
    if found.protocol_fingerprint == whole.fingerprint:
        return recorded or None
    # Of before the protocol gained a metric: it will do where it has all that can be had of one checkpoint.
    alone = {metric for metric in protocol.metrics if METRICS[metric].reads == "image"}
    return recorded if whole.covers(found.protocol_fingerprint) and alone <= set(recorded) else None
