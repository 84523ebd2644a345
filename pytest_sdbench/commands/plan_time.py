"""Estimate how long an image takes before one is made: the U-Net is timed, the rest is reckoned.

An image takes the U-Net's calls (as many as its scheduler asks for, each twice under guidance), the VAE's
decoding, reckoned at the U-Net's pace by the multiply-accumulates of both, and `ALLOWANCE` on top of it for
all else: text encoder, codec, extractors, writing.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.environment import (
    devices_of,
    halve_to_fit,
    machine_lock,
    release_memory,
    shared_threads,
    synchronise,
)
from pytest_sdbench.base.errors import ProtocolError, Unavailable, first_line
from pytest_sdbench.evaluation.tuning import Tuning, arranged, default_batch_size, worker_count
from pytest_sdbench.models.architectures import SD_V1_SCHEDULER, SD_V1_VAE, Config
from pytest_sdbench.models.counts import decoder_macs, unet_macs
from pytest_sdbench.models.skeleton import architecture_key, unet_config, unet_inputs, unet_skeleton
from pytest_sdbench.protocols.protocol import Protocol

if TYPE_CHECKING:
    import torch

    from pytest_sdbench.cards.network import Network

ALLOWANCE = 0.1
"""What text encoder, codec, extractors and writing add, as a fraction of U-Net and decoding."""

_LARGE = 128
"""Pixels to a side from which a CPU is timed with one sample: a full batch of a full-size network takes
minutes, and costs as much a sample."""

_LONG = 2.0
"""Seconds from which a first call is timing enough: warming up is a small part of it."""

_PATIENCE = 120.0
"""Seconds to wait for another process's timing to end."""


def unet_calls(protocol: Protocol, network: Network) -> int:
    """Return how often the U-Net is called for a batch: what the scheduler makes of the steps.

    The scheduler is the checkpoint's, or where that is not at hand the one that the protocol demands with the
    settings of Stable Diffusion v1. Raises what `scheduler_factory` raises, and ProtocolError for a scheduler
    that cannot take so many steps.
    """
    import diffusers

    from pytest_sdbench.evaluation.schedulers import scheduler_factory
    from pytest_sdbench.models.checkpoint import scheduler_class

    if network.checkpoint is not None:
        name, config = scheduler_class(network.checkpoint), network.checkpoint.config("scheduler")
    else:
        name, config = protocol.sampling.scheduler.must_be or "PNDMScheduler", dict(SD_V1_SCHEDULER)
    kind: Any = getattr(diffusers, name, diffusers.PNDMScheduler)
    pipeline: Any = SimpleNamespace(scheduler=kind.from_config(config))
    scheduler = scheduler_factory(pipeline, protocol)()
    try:
        scheduler.set_timesteps(protocol.sampling.steps)
    except ValueError as error:
        message, steps = f"{type(scheduler).__name__}: {error}", protocol.sampling.steps
        raise ProtocolError(message, file=protocol.path, key="sampling.steps", found=steps) from error
    return len(scheduler.timesteps)


def samples_per_image(protocol: Protocol, config: Config) -> int:
    """Return 2 where each step calls the U-Net with and without the prompt, else 1."""
    from pytest_sdbench.evaluation.sampler import is_guided

    return 2 if is_guided(protocol, config) else 1


@dataclass
class Stopwatch:
    """Times each network once, however many cards and protocols have it."""

    device: str
    tell: Callable[[str], object] = lambda line: None
    """Called before each timing, which may take half a minute."""
    _seconds: dict[tuple[object, ...], float] = field(default_factory=dict, repr=False)

    def seconds_per_image(self, protocol: Protocol, network: Network, *, name: str = "a network") -> float:
        """Estimate the seconds of one image of a protocol, on this device with the engine's own tuning.

        `name` is what `tell` hears. Raises what `time_unet`, `unet_calls` and building the network raise.
        """
        config = dict(unet_config(network.unet))
        vae = SD_V1_VAE if network.checkpoint is None else network.checkpoint.config("vae")
        # diffusers builds an autoencoder of one level where its configuration gives no widths.
        levels = len(vae.get("block_out_channels") or (64,))
        side = protocol.sampling.resolution // 2 ** (levels - 1)
        config["sample_size"] = side
        calls, doubled = unet_calls(protocol, network), samples_per_image(protocol, config)
        sample = self._sample(protocol, config, doubled, name)
        decoding = _decoder_share(architecture_key(config), json.dumps(dict(vae)), side)
        return sample * (calls * doubled + decoding) * (1 + ALLOWANCE) / len(devices_of(self.device))

    def dtype(self, protocol: Protocol) -> str:
        """Return the precision that is timed: on a CPU float32 stands for float16, which is no faster there.

        It is emulated on most, and a single call would then take minutes.
        """
        wanted = protocol.sampling.dtype
        return "float32" if self.device.startswith("cpu") and wanted == "float16" else wanted

    def _sample(self, protocol: Protocol, config: Config, doubled: int, name: str) -> float:
        """Return the seconds of the U-Net for one sample of a batch."""
        workers = worker_count(protocol, protocol.n, self.device, Tuning())
        batch = min(default_batch_size(protocol, self.device), math.ceil(protocol.n / workers)) * doubled
        if self.device.startswith("cpu") and protocol.sampling.resolution > _LARGE:
            batch = 1
        dtype = self.dtype(protocol)
        key = (architecture_key(config), batch, workers, dtype)
        if key not in self._seconds:
            self.tell(f"timing the U-Net of {name}: {batch} at a time, {dtype}, on {self.device}")
            self._seconds[key] = time_unet(
                config, batch=batch, workers=workers, device=self.device, dtype=dtype
            )
        return self._seconds[key]


@lru_cache(maxsize=64)
def _decoder_share(unet: str, vae: str, side: int) -> float:
    """Return the work of decoding a picture in U-Net samples; both networks are given as JSON."""
    return decoder_macs(json.loads(vae), side) / unet_macs(json.loads(unet)).total


def time_unet(config: Config, *, batch: int, workers: int, device: str, dtype: str) -> float:
    """Return the seconds that one sample costs where `workers` threads call a U-Net beside each other.

    The weights are random, the arrangement is the engine's; a batch that does not fit is halved. One lock per
    machine keeps timings of other processes apart. Raises Unavailable where another process keeps it, and
    where a single sample cannot be computed on this device.
    """
    with machine_lock(_PATIENCE):
        try:
            return _time(config, batch, workers, device, dtype)
        except RuntimeError as error:
            found = first_line(error)
            raise Unavailable(f"the U-Net does not run in {dtype} on {device}", found=found) from error
        finally:
            release_memory(device)


def _time(config: Config, batch: int, workers: int, device: str, dtype: str) -> float:
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    model: Any = unet_skeleton(config, device=device, dtype=kind)

    def attempt(batch: int) -> float:
        inputs = unet_inputs(config, device=device, dtype=kind, batch=batch)

        def call() -> None:
            with torch.inference_mode():
                model(**inputs)
            synchronise(device)

        return _beside(call, workers, device)

    with arranged(SimpleNamespace(unet=model, device=torch.device(device)), Tuning()):
        seconds, batch = halve_to_fit(attempt, batch, device)
    return seconds / (batch * workers)


def _beside(call: Callable[[], None], workers: int, device: str) -> float:
    """Return the seconds from the start of the first of the calls to the end of the last."""
    barrier = threading.Barrier(workers)

    def one(_: int) -> tuple[float, float]:
        barrier.wait()
        start = time.perf_counter()
        call()
        return start, time.perf_counter()

    def together() -> float:
        spans = list(pool.map(one, range(workers)))
        return max(end for _, end in spans) - min(start for start, _ in spans)

    on_cpu = device.startswith("cpu")
    with shared_threads(workers) if on_cpu else nullcontext(), ThreadPoolExecutor(workers) as pool:
        first = together()
        return first if first > _LONG else min(first, together())
