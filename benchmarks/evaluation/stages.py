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


@dataclass
class Watch:
    """What was noted."""

    spans: list[Span] = field(default_factory=list)
    _inside: threading.local = field(default_factory=threading.local)

    def loading(self) -> float:
        """Return the seconds in which something was loaded, counted once where two were at one time."""
        return covered([(span.began, span.ended) for span in self.spans if span.stage == LOADING])

    def shares(self) -> dict[str, Any]:
        """Say where the time between the first call of the text encoder and the last shard went.

        `wall` are its seconds, `threads` how many called the U-Net, `seconds` those of each stage on these
        threads (with `REST` they come to threads x wall), `beside` those on other threads, `samples` the
        latents that went through the U-Net, `unet` the share of its own calls in threads x wall. Raises
        ValueError where no image was made.
        """
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        work = [span for span in self.spans if span.stage != LOADING]
        threads = {span.thread for span in work if span.stage == UNET}
        texts, shards = ([span for span in work if span.stage == stage] for stage in (TEXT, SHARDS))
        if not threads or not texts or not shards:
            raise ValueError("no image was made: there is nothing to share out")
        began, ended = min(span.began for span in texts), max(span.ended for span in shards)
        within = [span for span in work if began <= span.began and span.ended <= ended]
        seconds = _by_stage([span for span in within if span.thread in threads])
        whole = len(threads) * (ended - began)
        seconds[REST] = whole - sum(seconds.values())
        return {
            "wall": ended - began,
            "threads": len(threads),
            "seconds": dict(sorted(seconds.items(), key=lambda pair: -pair[1])),
            "beside": _by_stage([span for span in within if span.thread not in threads]),
            "samples": sum(span.samples for span in work),
            "unet": seconds.get(UNET, 0.0) / whole,
        }

    def clocked(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function with a clock around it."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._inside, "stage", None)
            # A stage within itself (a compiled network calls the plain one) counts once, and no clock is to
            # be compiled into a network.
            # What loading tries has no numbers, and is no work.
            tried = any(getattr(value, "is_meta", False) for value in (*args, *kwargs.values()))
            if torch.compiler.is_compiling() or outer == stage or tried:
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


def _by_stage(spans: list[Span]) -> dict[str, float]:
    """Return the seconds of each stage, the longest first."""
    stages = {span.stage for span in spans}
    sums = {stage: sum(span.seconds for span in spans if span.stage == stage) for stage in stages}
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))


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
    places = [(LOADING, *place) for call in (load_pipeline, open_extractors) for place in _imported(call)]
    if not only_loading:
        places += [(CODEC, *place) for place in _imported(apply_image_steps)]
        places += [
            (UNET, diffusers.UNet2DConditionModel, "__call__"),
            (TEXT, CLIPTextModel, "__call__"),
            (VAE, diffusers.AutoencoderKL, "decode"),
            (EXTRACTORS, Extractors, "extract"),
            (SHARDS, Evidence, "write"),
        ]
        if scheduler is not None:
            places.append((SCHEDULER, getattr(diffusers, scheduler), "step"))
    with ExitStack() as undo:
        for stage, owner, name in places:
            undo.enter_context(patch.object(owner, name, watch.clocked(stage, getattr(owner, name))))
        if not only_loading:
            call = watch.compiled(OptimizedModule.__call__)
            undo.enter_context(patch.object(OptimizedModule, "__call__", call))
        yield watch


def _imported(function: Any) -> list[tuple[Any, str]]:
    """Return every module of ours that has a function, and its name there."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "pytest_sdbench"]
    return [(module, key) for module in ours for key, found in vars(module).items() if found is function]
