"""Measure images per second of an evaluation: ours beside the published one, and each speed-up alone."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.evaluation import plain_script
from benchmarks.evaluation import published_procedure as procedure
from benchmarks.evaluation.memory import fill
from benchmarks.evaluation.stages import watching
from benchmarks.turns import Worker, spread, take_turns
from pytest_sdbench.base.environment import release_memory, synchronise
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.job import on_this_device
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.features import inception
from pytest_sdbench.features.extractors import column_widths
from pytest_sdbench.features.references import load_references
from pytest_sdbench.metrics.moments import FeatureStatistics
from pytest_sdbench.models.checkpoint import Checkpoint, scheduler_class
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shard_format import SHARD

OURS, PUBLISHED, PLAIN, ALL_OFF = "ours", "published procedure", "plain script", "ours, all off"
SAMPLE = "ours, as `sample` runs it"
"""In a process that makes images and then ends, and so may keep freed memory."""
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


@dataclass(frozen=True)
class Turn:
    """One timed piece of an evaluation."""

    images: int
    seconds: float
    """Of making and measuring these images: without loading, and without what is done once for all images."""
    loading: float
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds per image of each pass."""

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def our_turn(subject: Subject, images: int, tuning: Tuning) -> Turn:
    """Evaluate some images into a fresh store; then once more with all evidence there: the scoring."""
    with tempfile.TemporaryDirectory(prefix="sdbench-turn-") as store:
        with watching(only_loading=True) as watch:
            total = _evaluate(subject, images, tuning, Path(store))
        scoring = _evaluate(subject, images, tuning, Path(store))
    return Turn(images, total - watch.loading() - scoring, watch.loading())


def published_turn(ready: procedure.Procedure, prompts: Sequence[str], images: int, passes: int) -> Turn:
    """Make some images, and pass over `passes` files of them for each score.

    The passes start something of their own each time (a read-ahead, an extractor's first call): over as many
    files as the protocol has images that is what it is for one image of the protocol.
    """
    with tempfile.TemporaryDirectory(prefix="sdbench-turn-") as name:
        folder, many = Path(name) / "made", Path(name) / "many"
        folder.mkdir()
        many.mkdir()
        parts = {}
        began = time.perf_counter()
        files = procedure.generate(ready, prompts, folder, range(images))
        parts["images and files"] = (time.perf_counter() - began) / images
        numbers = range(max(passes, images))
        copies = [many / f"{number:06d}{files[0].suffix}" for number in numbers]
        for number, copy in zip(numbers, copies, strict=True):
            copy.hardlink_to(files[number % images])
        captions = [prompts[number % images] for number in numbers]
        scores: dict[str, Callable[[], object]] = {
            "pass for FID": lambda: procedure.fid_features(ready, copies),
            "pass for the Inception score": lambda: procedure.inception_score(ready, many),
            "pass for the CLIP score": lambda: procedure.clip_score(ready, copies, captions),
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
) -> dict[str, Any]:
    """Let ours, the published procedure and a plain script take turns, after one each that is not counted.

    Ours with every speed-up off stands beside them: it has to be near the procedure. Ours is as a test run
    has it; where the ways are `apart`, it also runs as the command `sample` does. `once` are the seconds
    that a way takes once for all images: scores from N rows, or the root of FID; `parts` the seconds per
    image of each pass of the procedure, median.
    """
    reference = load_references(subject.protocol, subject.data_root)["fid"]
    assert isinstance(reference, FeatureStatistics)
    ways: dict[str, tuple[Any, ...]] = {
        PUBLISHED: (start_published, subject, published_images, passes),
        PLAIN: (start_plain, subject, images),
        OURS: (start_ours, subject, images, Tuning()),
        ALL_OFF: (start_ours, subject, published_images, Tuning(**OFF)),
    }
    if apart:  # what it does to a process cannot be undone
        ways[SAMPLE] = (start_ours, subject, images, Tuning(keep_memory=True))
    turns = _in_turn(ways, rounds, apart)
    published, scoring = turns[PUBLISHED], scoring_once(subject)
    return {
        "rates": _rates(turns, PUBLISHED),
        "parts": {
            part: statistics.median(turn.parts[part] for turn in published) for part in published[0].parts
        },
        "n": subject.protocol.n,
        "once": dict.fromkeys((PUBLISHED, PLAIN), root_once(reference))
        | dict.fromkeys((OURS, SAMPLE, ALL_OFF), scoring),
    }


def ablation(
    subject: Subject,
    *,
    rounds: int,
    images: int,
    speed_ups: Sequence[str] = tuple(OFF),
    apart: bool = True,
) -> list[dict[str, Any]]:
    """Time our evaluation with each speed-up taken out, all in turn, beside ours with all of them."""
    ways = {
        name: (start_ours, subject, images, tuning)
        for name, tuning in tunings(subject.device == "cpu", speed_ups).items()
    }
    return _rates(_in_turn(ways, rounds, apart), OURS)


def tunings(on_cpu: bool, speed_ups: Sequence[str] = tuple(OFF)) -> dict[str, Tuning]:
    """Return ours, ours less one speed-up each (or with one that is off here by itself), and with none."""
    found = {OURS: Tuning()}
    for name in speed_ups:
        if name in ("compile", "keep_memory") or (name == "overlap" and on_cpu):
            found[f"with {name}"] = replace(Tuning(), **{name: True})
        elif on_cpu or name not in ON_CPU_ALONE:
            found[f"without {name}"] = replace(Tuning(), **{name: OFF[name]})
    return found | {ALL_OFF: Tuning(**OFF)}


def start_ours(subject: Subject, images: int, tuning: Tuning) -> Callable[[], Turn]:
    """Return what takes one turn of our evaluation; it loads everything anew each time, and says how long."""
    subject.settle()
    return lambda: our_turn(subject, images, tuning)


def start_published(subject: Subject, images: int, passes: int) -> Callable[[], Turn]:
    """Load the published procedure, and return what takes one turn of it."""
    ready, prompts, loading = _procedure(subject)
    return lambda: replace(published_turn(ready, prompts, images, passes), loading=loading)


def start_plain(subject: Subject, images: int) -> Callable[[], Turn]:
    """Load what the plain script needs, and return what takes one turn of it, in batches of a shard."""
    ready, prompts, loading = _procedure(subject)

    def turn() -> Turn:
        began = time.perf_counter()
        made = plain_script.make_images(ready, prompts[:images], min(images, SHARD))
        plain_script.measure(ready, made, prompts[:images])
        return Turn(images, time.perf_counter() - began, loading)

    return turn


def _procedure(subject: Subject) -> tuple[procedure.Procedure, Sequence[str], float]:
    """Return the networks as the libraries load them, the prompts, and the seconds of loading."""
    subject.settle()
    prompts = load_prompts(subject.protocol, subject.data_root)
    loading = 0.0
    for _ in range(2):  # the first time, libraries are imported and files read from the disk: not so in ours
        began = time.perf_counter()
        ready = procedure.load(
            subject.checkpoint, subject.protocol, data_root=subject.data_root, device=subject.device
        )
        loading = time.perf_counter() - began
    return ready, prompts, loading


def shares(subject: Subject, *, rounds: int, images: int) -> dict[str, Any]:
    """Say where the time between the first prompt and the last shard goes, of the round in the middle.

    `rounds` are the U-Net's shares of all rounds, `rate` the images per second of that round.
    """
    found = []
    scheduler = subject.protocol.sampling.scheduler.name
    scheduler = scheduler_class(subject.checkpoint) if scheduler == "checkpoint" else scheduler
    our_turn(subject, images, Tuning())
    for number in range(rounds):
        with (
            tempfile.TemporaryDirectory(prefix="sdbench-turn-") as store,
            watching(scheduler=scheduler) as watch,
        ):
            _evaluate(subject, images, Tuning(), Path(store))
        found.append(watch.shares())
        print(f"round {number + 1} of {rounds}: the U-Net's calls are {100 * found[-1]['unet']:.0f} %")
    middle = sorted(found, key=lambda each: each["unet"])[rounds // 2]
    return {
        "images": images,
        "rounds": [each["unet"] for each in found],
        "shares": middle,
        "rate": images / middle["wall"],
    }


def root_once(reference: FeatureStatistics) -> float:
    """Return the seconds of scipy's root at the reference's width, with covariances of full rank."""
    began = time.perf_counter()
    procedure.frechet_distance(reference.mu + 0.01, 1.1 * reference.sigma, reference.mu, reference.sigma)
    return time.perf_counter() - began


def scoring_once(subject: Subject) -> float:
    """Return the seconds of our scoring of all N images, on made-up rows of the protocol's widths."""
    columns = {name: width if width > 1 else 0 for name, width in column_widths(subject.protocol).items()}
    with tempfile.TemporaryDirectory(prefix="sdbench-rows-") as store:
        drawn = on_this_device(subject.protocol, subject.device)
        fill(Path(store), subject.checkpoint, drawn, columns)
        return _evaluate(subject, subject.protocol.n, Tuning(), Path(store))


def _evaluate(subject: Subject, images: int, tuning: Tuning, store: Path) -> float:
    synchronise(subject.device)
    began = time.perf_counter()
    evaluate(
        subject.checkpoint,
        subject.protocol,
        Workspace(store, subject.data_root, subject.device, progress=False),
        samples=images,
        tuning=tuning,
    )
    synchronise(subject.device)
    seconds = time.perf_counter() - began
    release_memory(subject.device)  # others take their turn on the same device
    return seconds


def _in_turn(ways: dict[str, tuple[Any, ...]], rounds: int, apart: bool) -> dict[str, list[Turn]]:
    """Let ways take turns, `apart` in processes, after one each that is not counted."""
    started: dict[str, Callable[[], Turn]] = {}
    with ExitStack() as ending:
        for name, (start, *arguments) in ways.items():
            if apart:
                started[name] = worker = Worker(start, *arguments)
                ending.callback(worker.close)
                worker.loaded.result()
            else:
                started[name] = start(*arguments)
        take_turns(started, 1)
        return take_turns(started, rounds, show=lambda turn: f"{turn.rate:.2f} images/s")


def _rates(turns: dict[str, list[Turn]], beside: str) -> list[dict[str, Any]]:
    """Return images per second of each way, and their ratios to those of another in the same round."""
    rates = {name: [turn.rate for turn in own] for name, own in turns.items()}
    return [
        {
            "name": name,
            "beside": beside,
            "images": own[0].images,
            "rate": statistics.median(rates[name]),
            **spread(rates[name], rates[beside]),
            "loading": statistics.median(turn.loading for turn in own),
        }
        for name, own in turns.items()
    ]
