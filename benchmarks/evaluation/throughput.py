"""Measure images per second of an evaluation: ours beside the published one, and each speed-up alone."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from benchmarks.evaluation import published_procedure as procedure
from benchmarks.evaluation.memory import fill
from benchmarks.evaluation.processes import Apart
from benchmarks.evaluation.stages import Shares, watching
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.features import inception
from pytest_sdbench.features.extractors import WIDTHS, feature_column, logits_column
from pytest_sdbench.features.references import load_references
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.models.checkpoint import Checkpoint, scheduler_class
from pytest_sdbench.models.skeleton import unet_inputs, unet_skeleton
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol

OURS, PUBLISHED, ALL_OFF = "ours", "published procedure", "ours, all off"
OFF: dict[str, Any] = {
    "batch_size": 1,
    "workers": 1,
    "channels_last": False,
    "remember_text": False,
    "keep_memory": False,
    "overlap": False,
    "compile": False,
}
"""Every speed-up of `Tuning`, and its value without it."""
ON_CPU_ALONE = ("workers", "channels_last")
LOGITS = {"inception-torch-fidelity": 1008, "scenes-classifier": 56}


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and where."""

    checkpoint: Checkpoint
    protocol: Protocol
    device: str = "cpu"
    data_root: Path | None = None
    inception_sha256: str | None = None
    """Of made-up Inception weights; None: the published ones."""

    def settle(self) -> None:
        """Have this process expect made-up Inception weights, where there are such."""
        if self.inception_sha256 is not None:
            inception.SHA256 = self.inception_sha256

    @property
    def kind(self) -> torch.device:
        return torch.device(self.device)

    @property
    def half(self) -> torch.dtype:
        """The type in which the device's peak is measured."""
        return torch.bfloat16 if self.kind.type == "cuda" else torch.float32


@dataclass(frozen=True)
class Turn:
    """One timed piece of an evaluation."""

    images: int
    seconds: float
    """Of making and measuring these images: without loading, and without what is done once for all images."""
    loading: float
    scoring: float = 0.0
    """From rows to estimates, of these images."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds per image of each pass."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Rate:
    """One way, timed turn by turn with another."""

    name: str
    beside: str
    images: int
    """Of a turn."""
    rate: float
    """Images per second, median over the rounds."""
    ratio: float
    """Of its rate to that of `beside` in the same round: median."""
    lowest: float
    highest: float
    loading: float
    """Seconds, median."""


@dataclass(frozen=True)
class EndToEnd:
    """Ours beside the published procedure."""

    rates: list[Rate]
    parts: dict[str, float]
    """Seconds per image of each pass of the published procedure, median."""
    n: int
    """Images of the whole protocol."""
    once: dict[str, float]
    """Seconds that a way takes once for N images, besides loading: scores from N rows, or the root of FID."""
    first: dict[str, float]
    """Images per second of the turn before the first one, which is not counted."""

    def whole(self, name: str) -> float:
        """Return the seconds of the whole protocol: loading, every image, and what is done once."""
        [own] = [rate for rate in self.rates if rate.name == name]
        return own.loading + self.n / own.rate + self.once[name]


@dataclass(frozen=True)
class Shared:
    """Where the time of our evaluation goes."""

    images: int
    rounds: list[float]
    """Share of the U-Net's own calls of threads x wall time in each round."""
    shares: Shares
    """Of the round in the middle."""
    rate: float
    """Images per second of that round."""
    flops_per_image: float
    """Of the U-Net's calls."""
    peak: float
    """Floating-point operations per second of the best matrix multiplication, in any round."""


def our_turn(subject: Subject, images: int, tuning: Tuning) -> Turn:
    """Evaluate some images into a fresh store; then once more with all evidence there: the scoring."""
    with tempfile.TemporaryDirectory(prefix="sdbench-turn-") as store:
        with watching(only_loading=True) as watch:
            total = _evaluated(subject, images, tuning, Path(store))
        scoring = _evaluated(subject, images, tuning, Path(store))
    loading = watch.loading()
    return Turn(images, total - loading - scoring, loading, scoring)


def published_turn(loaded: procedure.Procedure, prompts: Sequence[str], images: int, passes: int) -> Turn:
    """Make some images, and pass over `passes` files of them for each score.

    The passes start something of their own each time (a read-ahead, an extractor's first call): over as many
    files as the protocol has images that is what it is for one image of the protocol.
    """
    with tempfile.TemporaryDirectory(prefix="sdbench-turn-") as name:
        folder, many = Path(name) / "made", Path(name) / "many"
        folder.mkdir()
        many.mkdir()
        parts = {}
        machine.wait(torch.device(loaded.device))
        began = time.perf_counter()
        files = procedure.generate(loaded, prompts, folder, range(images))
        parts["images and files"] = (time.perf_counter() - began) / images
        copies = []
        for number in range(max(passes, images)):
            source = files[number % images]
            copies.append(many / f"{number:06d}{source.suffix}")
            copies[-1].hardlink_to(source)
        captions = [prompts[number % images] for number in range(len(copies))]
        scores: dict[str, Callable[[], object]] = {
            "pass for FID": lambda: procedure.fid_features(loaded, copies),
            "pass for the Inception score": lambda: procedure.inception_score(loaded, many),
            "pass for the CLIP score": lambda: procedure.clip_score(loaded, copies, captions),
        }
        for part, call in scores.items():
            began = time.perf_counter()
            call()
            parts[part] = (time.perf_counter() - began) / len(copies)
    return Turn(images, sum(parts.values()) * images, 0.0, parts=parts)


def end_to_end(
    subject: Subject,
    *,
    rounds: int,
    images: int,
    published_images: int,
    passes: int,
    apart: bool = True,
    say: Callable[[str], None] = print,
) -> EndToEnd:
    """Let ours and the published procedure take turns, AB BA AB, after one turn each that is not counted.

    Ours with every speed-up off stands beside them: it has to be near the procedure.
    """
    references = load_references(subject.protocol, subject.data_root)
    ways: dict[str, tuple[Any, ...]] = {
        PUBLISHED: (start_published, subject, published_images, passes),
        OURS: (start_ours, subject, images, Tuning()),
        ALL_OFF: (start_ours, subject, published_images, off()),
    }
    first, turns = _in_turn(ways, rounds, apart, say)
    reference = references["fid"]
    assert isinstance(reference, FeatureStatistics)
    parts = {
        part: statistics.median(turn.parts[part] for turn in turns[PUBLISHED])
        for part in turns[PUBLISHED][0].parts
    }
    scoring = scoring_once(subject)
    return EndToEnd(
        rates=_rates(turns, PUBLISHED),
        parts=parts,
        n=subject.protocol.n,
        once={PUBLISHED: root_once(reference), OURS: scoring, ALL_OFF: scoring},
        first={name: turn.rate for name, turn in first.items()},
    )


def ablation(
    subject: Subject,
    *,
    rounds: int,
    images: int,
    speed_ups: Sequence[str] = tuple(OFF),
    apart: bool = True,
    say: Callable[[str], None] = print,
) -> list[Rate]:
    """Time our evaluation with each speed-up taken out, all in turn, beside ours with all of them."""
    ways = {
        name: (start_ours, subject, images, tuning)
        for name, tuning in tunings(subject.kind.type == "cpu", speed_ups).items()
    }
    return _rates(_in_turn(ways, rounds, apart, say)[1], OURS)


def tunings(on_cpu: bool, speed_ups: Sequence[str] = tuple(OFF)) -> dict[str, Tuning]:
    """Return ours, ours less one speed-up each (or with one that is off here by itself), and with none."""
    found = {OURS: Tuning()}
    for name in speed_ups:
        if name in ("compile", "keep_memory") or (name == "overlap" and on_cpu):
            found[f"with {name}"] = replace(Tuning(), **{name: True})
        elif on_cpu or name not in ON_CPU_ALONE:
            found[f"without {name}"] = replace(Tuning(), **{name: OFF[name]})
    return found | {ALL_OFF: off()}


def off() -> Tuning:
    """Return ours with every speed-up off."""
    return replace(Tuning(), **OFF)


def start_ours(subject: Subject, images: int, tuning: Tuning) -> Callable[[], Turn]:
    """Return what takes one turn of our evaluation; it loads everything anew each time, and says how long."""
    subject.settle()
    return lambda: our_turn(subject, images, tuning)


def start_published(subject: Subject, images: int, passes: int) -> Callable[[], Turn]:
    """Load the published procedure, and return what takes one turn of it."""
    subject.settle()
    prompts = load_prompts(subject.protocol, subject.data_root)
    loading = 0.0
    for _ in range(2):  # the first time, libraries are imported and files read from the disk: not so in ours
        began = time.perf_counter()
        loaded = procedure.load(
            subject.checkpoint, subject.protocol, data_root=subject.data_root, device=subject.device
        )
        loading = time.perf_counter() - began
    return lambda: replace(published_turn(loaded, prompts, images, passes), loading=loading)


def shares(subject: Subject, *, rounds: int, images: int, say: Callable[[str], None] = print) -> Shared:
    """Say where the time between the first prompt and the last shard goes, of the round in the middle."""
    peak, found = 0.0, []
    scheduler = subject.protocol.sampling.scheduler.name
    scheduler = scheduler_class(subject.checkpoint) if scheduler == "checkpoint" else scheduler
    our_turn(subject, images, Tuning())
    for number in range(rounds):
        peak = max(peak, machine.matmul_peak(subject.kind, subject.half, seconds=0.3))
        with (
            tempfile.TemporaryDirectory(prefix="sdbench-turn-") as store,
            watching(scheduler=scheduler) as watch,
        ):
            _evaluated(subject, images, Tuning(), Path(store))
        found.append(watch.shares())
        say(f"round {number + 1} of {rounds}: the U-Net's calls are {100 * found[-1].unet:.0f} %")
    middle = sorted(found, key=lambda each: each.unet)[rounds // 2]
    return Shared(
        images,
        [each.unet for each in found],
        middle,
        images / middle.wall,
        flops_of_a_latent(subject) * middle.samples / images,
        peak,
    )


def flops_of_a_latent(subject: Subject) -> int:
    """Return the floating-point operations of the U-Net for one latent, at the protocol's resolution."""
    config = {**subject.checkpoint.unet_config, "sample_size": subject.protocol.sampling.resolution // 8}
    with FlopCounterMode(display=False) as counter:
        unet_skeleton(config)(**unet_inputs(config))
    return int(counter.get_total_flops())


def root_once(reference: FeatureStatistics) -> float:
    """Return the seconds of scipy's root at the reference's width, with covariances of full rank."""
    began = time.perf_counter()
    procedure.frechet_distance(reference.mu + 0.01, 1.1 * reference.sigma, reference.mu, reference.sigma)
    return time.perf_counter() - began


def scoring_once(subject: Subject) -> float:
    """Return the seconds of our scoring of all N images, on made-up rows of the protocol's widths."""
    columns = {}
    for spec in subject.protocol.metrics.values():
        if spec.metric == "clip_score":
            columns["clip_score"] = 0
        elif spec.metric == "inception_score":
            columns[logits_column(spec.extractor)] = LOGITS[spec.extractor]
        else:
            columns[feature_column(spec.extractor)] = WIDTHS[spec.extractor]
    with tempfile.TemporaryDirectory(prefix="sdbench-rows-") as store:
        drawn = subject.protocol
        if drawn.seeds.kind == "sequential" and subject.kind.type != "cuda":
            drawn = drawn.with_seeds_on("cpu")
        fill(Path(store), subject.checkpoint, drawn, columns)
        return _evaluated(subject, subject.protocol.n, Tuning(), Path(store))


def _evaluated(subject: Subject, images: int, tuning: Tuning, store: Path) -> float:
    machine.wait(subject.kind)
    began = time.perf_counter()
    evaluate(
        subject.checkpoint,
        subject.protocol,
        Workspace(store, subject.data_root, subject.device, progress=False),
        samples=images,
        tuning=tuning,
    )
    machine.wait(subject.kind)
    seconds = time.perf_counter() - began
    if subject.kind.type == "cuda":
        # Others take their turn on the same device.
        gc.collect()
        torch.cuda.empty_cache()
    return seconds


def _in_turn(
    ways: dict[str, tuple[Any, ...]], rounds: int, apart: bool, say: Callable[[str], None]
) -> tuple[dict[str, Turn], dict[str, list[Turn]]]:
    """Run every way once a round, forwards, then backwards; return the first turns, and those that count."""
    started = {
        name: Apart(start, *arguments) if apart else start(*arguments)
        for name, (start, *arguments) in ways.items()
    }
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    try:
        first = {name: way() for name, way in started.items()}
        for number in range(rounds):
            for name in ways if number % 2 == 0 else reversed(ways):
                turns[name].append(started[name]())
            rates = ", ".join(f"{name} {own[-1].rate:.2f}" for name, own in turns.items())
            say(f"round {number + 1} of {rounds}, images/s: {rates}")
    finally:
        for way in started.values():
            if isinstance(way, Apart):
                way.close()
    return first, turns


def _rates(turns: dict[str, list[Turn]], beside: str) -> list[Rate]:
    found = []
    for name, own in turns.items():
        ratios = [mine.rate / theirs.rate for mine, theirs in zip(own, turns[beside], strict=True)]
        found.append(
            Rate(
                name,
                beside,
                own[0].images,
                statistics.median(turn.rate for turn in own),
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                statistics.median(turn.loading for turn in own),
            )
        )
    return found
