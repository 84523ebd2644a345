"""Measure images per second of an evaluation: ours beside the published procedure, and each speed-up alone."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine, procedure
from benchmarks.resident import fill
from benchmarks.stages import Shares, watching
from pytest_sdbench.checkpoint import Checkpoint, scheduler_class
from pytest_sdbench.evaluation import evaluate
from pytest_sdbench.features import WIDTHS, feature_column, logits_column
from pytest_sdbench.metrics import FeatureStatistics
from pytest_sdbench.prompts import load_prompts
from pytest_sdbench.protocol import Protocol
from pytest_sdbench.skeleton import unet_inputs, unet_skeleton
from pytest_sdbench.statistics import load_references

try:
    from pytest_sdbench.engine import Tuning  # type: ignore[import-not-found,unused-ignore]

    TUNABLE = True
except ImportError:
    # Before there was an engine, the batch size was all that a caller could choose.
    @dataclass(frozen=True)
    class Tuning:  # type: ignore[no-redef]
        """How an evaluation is run; None: found automatically."""

        batch_size: int | None = None
        workers: int | None = None
        channels_last: bool = True
        remember_text: bool = True
        overlap: bool = True
        compile: bool | None = None

    TUNABLE = False

OURS, PUBLISHED, ALL_OFF = "ours", "published procedure", "ours, all off"
OFF = Tuning(batch_size=1, workers=1, channels_last=False, remember_text=False, overlap=False, compile=False)
LOGITS = {"inception-torch-fidelity": 1008, "scenes-classifier": 56}


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and where."""

    checkpoint: Checkpoint
    protocol: Protocol
    device: str = "cpu"
    data_root: Path | None = None

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
        """Return the seconds that the whole protocol would take: loading, every image, and what is done once."""
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


def our_turn(subject: Subject, images: int, tuning: Tuning = Tuning()) -> Turn:  # noqa: B008  frozen
    """Evaluate some images into a fresh store; then once more with all evidence there, which is the scoring."""
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
        for part, call in {
            "pass for FID": lambda: procedure.fid_features(loaded, copies),
            "pass for the Inception score": lambda: procedure.inception_score(loaded, many),
            "pass for the CLIP score": lambda: procedure.clip_score(loaded, copies, captions),
        }.items():
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
    say: Callable[[str], None] = print,
) -> EndToEnd:
    """Let ours and the published procedure take turns, AB BA AB, after one turn each that is not counted."""
    references = load_references(subject.protocol, subject.data_root)
    prompts = load_prompts(subject.protocol, subject.data_root)
    began = time.perf_counter()
    loaded = procedure.load(
        subject.checkpoint, subject.protocol, data_root=subject.data_root, device=subject.device
    )
    loading = time.perf_counter() - began

    def published() -> Turn:
        return replace(published_turn(loaded, prompts, published_images, passes), loading=loading)

    ways: dict[str, Callable[[], Turn]] = {
        PUBLISHED: published,
        OURS: lambda: our_turn(subject, images),
    }
    first = {name: way().rate for name, way in ways.items()}
    turns = _in_turn(ways, rounds, say)
    reference = references["fid"]
    assert isinstance(reference, FeatureStatistics)
    parts = {
        part: statistics.median(turn.parts[part] for turn in turns[PUBLISHED])
        for part in turns[PUBLISHED][0].parts
    }
    return EndToEnd(
        rates=_rates(turns, PUBLISHED),
        parts=parts,
        n=subject.protocol.n,
        once={PUBLISHED: root_once(reference), OURS: scoring_once(subject)},
        first=first,
    )


def ablation(
    subject: Subject,
    *,
    rounds: int,
    images: int,
    compiled: bool = False,
    say: Callable[[str], None] = print,
) -> list[Rate]:
    """Time our evaluation with each speed-up taken out, all in turn, beside ours with all of them."""
    ways = {name: _way(subject, images, tuning) for name, tuning in tunings(compiled).items()}
    for way in ways.values():
        way()
    return _rates(_in_turn(ways, rounds, say), OURS)


def tunings(compiled: bool = False) -> dict[str, Tuning]:
    """Return ours, ours less one speed-up each, and ours with none; before the engine, batch sizes alone."""
    without = {"batches": Tuning(batch_size=1)}
    if TUNABLE:
        without |= {
            "workers": Tuning(workers=1),
            "channels_last": Tuning(channels_last=False),
            "remember_text": Tuning(remember_text=False),
            "overlap": Tuning(overlap=False),
        }
    found = {OURS: Tuning(), **{f"without {name}": tuning for name, tuning in without.items()}}
    if compiled:
        found |= {"with compile": Tuning(compile=True), "without compile": Tuning(compile=False)}
    return found | {ALL_OFF: OFF}


def shares(subject: Subject, *, rounds: int, images: int, say: Callable[[str], None] = print) -> Shared:
    """Say where the time between the first prompt and the last shard goes, of the round in the middle."""
    peak, found = 0.0, []
    scheduler = subject.protocol.sampling.scheduler.name
    scheduler = scheduler_class(subject.checkpoint) if scheduler == "checkpoint" else scheduler
    our_turn(subject, images)
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


def _way(subject: Subject, images: int, tuning: Tuning) -> Callable[[], Turn]:
    return lambda: our_turn(subject, images, tuning)


def _evaluated(subject: Subject, images: int, tuning: Tuning, store: Path) -> float:
    options: dict[str, Any] = {"tuning": tuning} if TUNABLE else {"batch_size": tuning.batch_size}
    machine.wait(subject.kind)
    began = time.perf_counter()
    evaluate(
        subject.checkpoint,
        subject.protocol,
        store=store,
        data_root=subject.data_root,
        device=subject.device,
        samples=images,
        progress=False,
        **options,
    )
    machine.wait(subject.kind)
    return time.perf_counter() - began


def _in_turn(
    ways: dict[str, Callable[[], Turn]], rounds: int, say: Callable[[str], None]
) -> dict[str, list[Turn]]:
    """Run every way once a round: forwards, then backwards."""
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            turns[name].append(ways[name]())
        rates = ", ".join(f"{name} {own[-1].rate:.2f}" for name, own in turns.items())
        say(f"round {number + 1} of {rounds}, images/s: {rates}")
    return turns


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
