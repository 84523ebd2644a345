"""Compare two checkpoints under one protocol, without any claim: which is better, and how sure is that."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import is_card, read_card
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands.shared import find_card_of, first_images, share, show, write_figures
from pytest_sdbench.evaluation.evaluate import CUT, evaluate
from pytest_sdbench.gate.pairing import evidence_path, read_recorded
from pytest_sdbench.metrics.definition import Metric
from pytest_sdbench.metrics.difference import FEWEST_PROMPTS, Difference, difference
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import groups_of
from pytest_sdbench.models.changes import changes
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.layout import holds_unet, no_checkpoint, replaces
from pytest_sdbench.models.pipeline import cut_prompts, load_tokenizer
from pytest_sdbench.models.specs import EMBEDDED, embedded_folder
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.report.cells import plain_table


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    what = "a card (name or file), a folder in diffusers layout, or embedded:NAME"
    command.add_argument("first", metavar="A", help=what)
    command.add_argument(
        "second", metavar="B", help=f"{what}; a U-Net's folder alone is joined to the base of the other"
    )
    names = ("--protocol", "--images", "--store", "--data", "--device", "--download", "--json")
    share(command, *names, "--keep-images", device="cpu")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    place = options.store, options.data, options.device
    workspace = Workspace(*place, download=options.download, keep_images=options.keep_images)
    found = compare(options.first, options.second, options.protocol, workspace, images=options.images)
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
    """By metric: first less second."""
    prompts: int
    """Different ones."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Side:
    name: str
    checkpoint: Checkpoint
    recorded: Path | None


def compare(
    first: str, second: str, protocol_name: str, workspace: Workspace, *, images: int | None = None
) -> Comparison:
    """Score two checkpoints on the same prompts and seeds and return their difference, image by image.

    A card whose images are recorded for the protocol is not drawn again. Each checkpoint is a card (its name
    or its file), a folder, or a name such as ``embedded:scenes-small``; a U-Net alone, a LoRA and a single
    file stand on the other one. Raises SdbenchError as `evaluate` and `resolve`.
    """
    protocol = load_protocol(protocol_name, search=(Path.cwd(), Path.cwd() / "cards"))
    if images is not None:
        protocol = first_images(protocol, images)
    # A whole checkpoint comes first: it may be the base of the other.
    if _lone(second) is None:
        right = _side(second, protocol, None, workspace.download)
        left = _side(first, protocol, right, workspace.download)
    else:
        left = _side(first, protocol, None, workspace.download)
        right = _side(second, protocol, left, workspace.download)
    prompts = load_prompts(protocol, workspace.data_root)[: protocol.n]
    (ours, notes), (theirs, more) = (_scored(side, protocol, workspace, prompts) for side in (left, right))
    groups = groups_of(prompts)
    differences: dict[str, Difference | None] = dict.fromkeys(protocol.metrics)
    for metric in protocol.metrics:
        a, b = ours.get(metric), theirs.get(metric)
        if isinstance(a, Estimate) and isinstance(b, Estimate):
            differences[metric] = difference(a, b, groups=groups)
    names, notes = (left.name, right.name), list(dict.fromkeys([*notes, *more]))
    if left.checkpoint.fingerprint != right.checkpoint.fingerprint:
        differ = changes(left.checkpoint, right.checkpoint, whose=f"in {right.name}")
        notes += [f"{left.name}: {each}" for each in differ]
    return Comparison(names, protocol, (ours, theirs), differences, len(set(prompts)), tuple(notes))


def _scored(
    side: _Side, protocol: Protocol, workspace: Workspace, prompts: Sequence[str]
) -> tuple[Estimates, list[str]]:
    """Return the estimates of a checkpoint, from its recorded images where there are some, and notes."""
    recorded = _recorded(side, protocol)
    if recorded is not None:
        tokenizers = [load_tokenizer(side.checkpoint, name) for name in side.checkpoint.pipeline.tokenizers]
        cut = sum(cut_prompts(tokenizers, prompts))
        notes = ["recorded images, none drawn", *([CUT.format(cut)] if cut else [])]
        return recorded, [f"{side.name}: {note}" for note in notes]
    evaluation = evaluate(side.checkpoint, protocol, workspace)
    notes = [f"{side.name}: {note}" for note in evaluation.notes]
    notes += [f"{metric}: {reason}" for metric, reason in evaluation.lacking.items()]
    return evaluation.estimates, notes


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
        less, interval, gain = f"{each.value:+{digits}}", "", ""
        call = "cannot tell: its error is unknown"
        if error is not None:
            low, high = each.value - reach * error, each.value + reach * error
            less += f" ± {error:{digits}}"
            interval = f"{low:+{digits}} to {high:+{digits}}"
            gain = "" if each.gain is None or each.gain > 1000 else f"{each.gain:.1f}x"
            call = _call(known, low, high, found.names)
            if found.prompts < FEWEST_PROMPTS:
                call = "cannot tell: too few prompts"
        scores = [f"{side.value:{digits}}" for side in (first, second)]
        rows.append([f"{known.label} {known.arrow}", *scores, less, interval, gain, call])
    heading = ["", *found.names, "difference", f"{LEVEL:.0%} interval", "pairing", ""]
    return "\n".join([plain_table(heading, rows, "lrrrrrl"), "", *lines, *found.notes])


def figures(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain data."""
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
    }


def _call(metric: Metric, low: float, high: float, names: tuple[str, str]) -> str:
    # Threads and libraries move the last digits of the same images.
    if all(round(end, metric.recorded_decimals) == 0 for end in (low, high)):
        return "no difference"
    if low <= 0 <= high:
        return "cannot tell"
    return f"{names[0] if (low > 0) == metric.higher_is_better else names[1]} is better"


def _lone(text: str) -> Path | None:
    """Return the path of what stands on a base: a U-Net alone, a LoRA, a single file; None for others."""
    embedded = text.startswith(EMBEDDED)
    path = embedded_folder(text) if embedded else Path(text)
    if path.is_dir() and holds_unet(path):
        return path
    return path if path.exists() and replaces(path) in ("lora", "file") else None


def _side(text: str, protocol: Protocol, other: _Side | None, download: bool) -> _Side:
    path = Path(text)
    is_name = ":" not in text and not path.exists()
    if is_name and len(path.parts) > 1:
        raise SdbenchError("there is no such file or folder", file=text, remedy="Check the path")
    if is_name or (path.is_file() and is_card(path)):
        card = read_card(find_card_of(text))
        evidence = evidence_path(card.path, card.name, protocol.name)
        return _Side(card.name, checkpoint_of(card, download=download), evidence)
    lone = _lone(text)
    if path.is_file() and lone is None:
        raise no_checkpoint(path)
    weights = path if path.is_dir() else None
    if lone is not None:
        if other is None:
            remedy = "Compare it with a whole checkpoint, which lends the other parts, or give its card"
            kind = {"lora": "LoRA", "file": "single file"}.get(replaces(lone) or "", "U-Net")
            raise SdbenchError(f"this is a {kind} alone", file=text, remedy=remedy)
        checkpoint = resolve(other.checkpoint, card=text, weights=lone, download=download)
    else:
        checkpoint = resolve(None if weights else text, card=text, weights=weights, download=download)
    verify(checkpoint)
    return _Side(text, checkpoint, None)


def _recorded(side: _Side, protocol: Protocol) -> Estimates | None:
    """Return the recorded estimates of a card, where they are of these weights, protocol and images."""
    found = read_recorded(side.recorded) if side.recorded is not None else None
    if found is None or found.checkpoint_fingerprint != side.checkpoint.fingerprint:
        return None
    whole = load_protocol(protocol.path)
    # Pairs are those beside the card's own baseline.
    looks = found.looks.get(protocol.n, {})
    recorded = {metric: each for metric, each in looks.items() if METRICS[metric].reads != "pair"}
    if found.protocol_fingerprint == whole.fingerprint:
        return recorded or None
    # Of before the protocol gained a metric: it will do where it has all that can be had of one checkpoint.
    alone = {metric for metric in protocol.metrics if METRICS[metric].reads == "image"}
    return recorded if whole.covers(found.protocol_fingerprint) and alone <= set(recorded) else None
