"""Tell where the time of an evaluation goes: clocks around its stages, by thread, without changing the code.

While `watching` is open, the functions and methods that do the work of each stage note when they began and
ended, and on which thread. On CUDA, stages of the device are timed by events on its own stream.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

UNET, TEXT, VAE, SCHEDULER = "U-Net", "text encoder", "VAE", "scheduler"
CODEC, EXTRACTORS, SHARDS, LOADING = "codec and resize", "extractors", "shards", "loading"
REST = "Python and waiting"
ON_DEVICE = (UNET, TEXT, VAE, EXTRACTORS)


@dataclass
class Span:
    """One call of a stage."""

    stage: str
    thread: int
    began: float
    """By `time.perf_counter`, as `ended`."""
    ended: float = 0.0
    samples: int = 0
    """Latents in a call of the U-Net; 0 for other stages."""
    events: tuple[Any, Any] | None = None

    @property
    def seconds(self) -> float:
        """How long it took; of a stage on CUDA, how long on the device."""
        if self.events is None:
            return self.ended - self.began
        begin, end = self.events
        return float(begin.elapsed_time(end)) / 1e3


@dataclass(frozen=True)
class Shares:
    """Where the time between the first call of the text encoder and the last shard went."""

    wall: float
    """Seconds."""
    threads: int
    """That called the U-Net."""
    seconds: dict[str, float]
    """By stage, summed over the threads that called the U-Net; with `REST` they come to threads x wall."""
    beside: dict[str, float]
    """By stage, on other threads."""
    samples: int
    """Latents that went through the U-Net."""

    @property
    def unet(self) -> float:
        """The share of the U-Net's own calls in threads x wall."""
        return self.seconds.get(UNET, 0.0) / (self.threads * self.wall)


@dataclass
class Watch:
    """What was noted."""

    spans: list[Span] = field(default_factory=list)

    def loading(self) -> float:
        """Return the seconds in which something was loaded, counted once where two were at one time."""
        return covered([(span.began, span.ended) for span in self.spans if span.stage == LOADING])

    def shares(self) -> Shares:
        """Return where the time went; raises ValueError where no image was made."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        work = [span for span in self.spans if span.stage != LOADING]
        threads = {span.thread for span in work if span.stage == UNET}
        texts, shards = ([span for span in work if span.stage == stage] for stage in (TEXT, SHARDS))
        if not threads or not texts or not shards:
            raise ValueError("no image was made: there is nothing to share out")
        began, ended = min(span.began for span in texts), max(span.ended for span in shards)
        seconds: dict[str, float] = {}
        beside: dict[str, float] = {}
        for span in work:
            if began <= span.began and span.ended <= ended:
                where = seconds if span.thread in threads else beside
                where[span.stage] = where.get(span.stage, 0.0) + span.seconds
        seconds[REST] = len(threads) * (ended - began) - sum(seconds.values())
        return Shares(
            ended - began,
            len(threads),
            dict(sorted(seconds.items(), key=lambda pair: -pair[1])),
            dict(sorted(beside.items(), key=lambda pair: -pair[1])),
            sum(span.samples for span in work),
        )


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return total


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types for it


@contextmanager
def watching(*, scheduler: str | None = None, only_loading: bool = False) -> Iterator[Watch]:
    """Note the stages of whatever evaluation runs inside; `scheduler` is its class's name in diffusers.

    With `only_loading` nothing is put around what is called for each image.
    """
    import diffusers
    from torch._dynamo.eval_frame import OptimizedModule
    from transformers import CLIPTextModel

    from pytest_sdbench.features import extractors as features
    from pytest_sdbench.models import pipeline
    from pytest_sdbench.protocols import image_steps as image_path
    from pytest_sdbench.store.shards import Evidence

    watch = Watch()
    inside = threading.local()

    def clocked(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            # A stage within itself (a compiled network calls the plain one) counts once, and no clock is to
            # be compiled into a network.
            if torch.compiler.is_compiling() or getattr(inside, "stage", None) == stage:
                return call(*args, **kwargs)
            outer, inside.stage = getattr(inside, "stage", None), stage
            span = Span(stage, threading.get_ident(), time.perf_counter())
            # torch has no types for this function.
            if stage in ON_DEVICE and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                span.events = _event(), _event()
                span.events[0].record()
            if stage == UNET:
                sample = kwargs["sample"] if "sample" in kwargs else args[1]
                span.samples = len(sample)
            try:
                return call(*args, **kwargs)
            finally:
                if span.events is not None:
                    span.events[1].record()
                span.ended = time.perf_counter()
                inside.stage = outer
                watch.spans.append(span)

        return timed

    def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
        kinds = {diffusers.UNet2DConditionModel: UNET, diffusers.AutoencoderKL: VAE, CLIPTextModel: TEXT}
        ways = {stage: clocked(stage, call) for stage in kinds.values()}

        @functools.wraps(call)
        def timed(module: Any, *args: Any, **kwargs: Any) -> Any:
            stage = kinds.get(type(module._orig_mod))
            return (ways[stage] if stage else call)(module, *args, **kwargs)

        return timed

    with ExitStack() as undo:

        def method(owner: Any, name: str, stage: str) -> None:
            _replace(undo, owner, name, clocked(stage, getattr(owner, name)))

        for function in (pipeline.load_pipeline, features.open_extractors):
            _replace_everywhere(undo, function, clocked(LOADING, function))
        if not only_loading:
            method(diffusers.UNet2DConditionModel, "__call__", UNET)
            method(CLIPTextModel, "__call__", TEXT)
            method(diffusers.AutoencoderKL, "decode", VAE)
            method(features.Extractors, "extract", EXTRACTORS)
            method(Evidence, "write", SHARDS)
            if scheduler is not None:
                method(getattr(diffusers, scheduler), "step", SCHEDULER)
            _replace_everywhere(
                undo, image_path.apply_image_steps, clocked(CODEC, image_path.apply_image_steps)
            )
            _replace(undo, OptimizedModule, "__call__", compiled(OptimizedModule.__call__))
        yield watch


def _replace(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    own, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    if own:
        undo.callback(setattr, owner, name, before)
    else:
        undo.callback(delattr, owner, name)


def _replace_everywhere(undo: ExitStack, function: Any, value: Any) -> None:
    """Replace a function in every module of ours that imported it by name."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "pytest_sdbench":
            for key in [key for key, found in vars(module).items() if found is function]:
                _replace(undo, module, key, value)
