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
from unittest.mock import patch

import diffusers
import torch
from torch._dynamo.eval_frame import OptimizedModule
from transformers import CLIPTextModel

from pytest_sdbench.features.extractors import Extractors, open_extractors
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.image_steps import apply_image_steps
from pytest_sdbench.store.shards import Evidence

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
    _inside: threading.local = field(default_factory=threading.local)

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

    def clocked(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function with a clock around it."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._inside, "stage", None)
            # A stage within itself (a compiled network calls the plain one) counts once, and no clock is to
            # be compiled into a network.
            if torch.compiler.is_compiling() or outer == stage:
                return call(*args, **kwargs)
            self._inside.stage = stage
            span = Span(stage, threading.get_ident(), time.perf_counter())
            # torch has no types for this function, nor for events.
            if stage in ON_DEVICE and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                span.events = begin, end
                begin.record()
            if stage == UNET:
                span.samples = len(kwargs["sample"] if "sample" in kwargs else args[1])
            try:
                return call(*args, **kwargs)
            finally:
                if span.events is not None:
                    span.events[1].record()
                span.ended = time.perf_counter()
                self._inside.stage = outer
                self.spans.append(span)

        return timed

    def compiled(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call of a compiled network with the clock of what was compiled."""
        kinds = {diffusers.UNet2DConditionModel: UNET, diffusers.AutoencoderKL: VAE, CLIPTextModel: TEXT}
        ways = {kind: self.clocked(stage, call) for kind, stage in kinds.items()}

        @functools.wraps(call)
        def timed(module: Any, *args: Any, **kwargs: Any) -> Any:
            return ways.get(type(module._orig_mod), call)(module, *args, **kwargs)

        return timed


def covered(spans: list[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return total


@contextmanager
def watching(*, scheduler: str | None = None, only_loading: bool = False) -> Iterator[Watch]:
    """Note the stages of whatever evaluation runs inside; `scheduler` is its class's name in diffusers.

    With `only_loading` nothing is put around what is called for each image.
    """
    watch = Watch()
    functions: list[tuple[str, Callable[..., Any]]] = [(LOADING, load_pipeline), (LOADING, open_extractors)]
    methods: list[tuple[str | None, Any, str]] = []
    if not only_loading:
        functions.append((CODEC, apply_image_steps))
        methods = [
            (UNET, diffusers.UNet2DConditionModel, "__call__"),
            (TEXT, CLIPTextModel, "__call__"),
            (VAE, diffusers.AutoencoderKL, "decode"),
            (EXTRACTORS, Extractors, "extract"),
            (SHARDS, Evidence, "write"),
            (None, OptimizedModule, "__call__"),
        ]
        if scheduler is not None:
            methods.append((SCHEDULER, getattr(diffusers, scheduler), "step"))
    with ExitStack() as undo:
        for stage, owner, name in methods:
            call = getattr(owner, name)
            clock = watch.compiled(call) if stage is None else watch.clocked(stage, call)
            undo.enter_context(patch.object(owner, name, clock))
        for stage, function in functions:
            clock = watch.clocked(stage, function)
            for module, name in _imported(function):
                undo.enter_context(patch.object(module, name, clock))
        yield watch


def _imported(function: Any) -> list[tuple[Any, str]]:
    """Return every module of ours that has a function, and its name there."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "pytest_sdbench"]
    return [(module, key) for module in ours for key, found in vars(module).items() if found is function]
