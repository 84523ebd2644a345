"""Time one U-Net call beside its baseline's, and read the memory it takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.environment import machine_lock, release_memory, synchronise
from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.base.progress import Progress
from pytest_sdbench.models.architectures import Config
from pytest_sdbench.models.skeleton import architecture_key, unet_inputs, unet_skeleton

if TYPE_CHECKING:
    import torch

BUDGET = 30.0
"""Seconds that one measurement may take, warm-up included; the fewest rounds may exceed it."""

MIN_ROUNDS, MAX_ROUNDS = 6, 50
"""Of fewer than six rounds of each no order is rarer than the rank test of a speed claim asks for."""

FEW_ROUNDS, WELL_WITHIN = 3, 0.9
"""Rounds of a network whose first call already takes less than this share of the longest that is allowed."""


@dataclass(frozen=True)
class Ratio:
    """Latency of one U-Net call, and its ratio to the baseline's."""

    seconds: tuple[float, ...]
    """The candidate's time in each round."""
    baseline_seconds: tuple[float, ...]
    """The baseline's time in the same rounds; empty where there was no baseline to time."""
    identical: bool = False
    """Whether both are one architecture: the ratio is then 1 by identity, not by measurement."""
    reused: bool = False
    """Whether the times were taken earlier in this session, for another card of the same architecture."""

    @property
    def rounds(self) -> int:
        return len(self.seconds)

    @property
    def candidate_median(self) -> float:
        """Median seconds of the candidate's call."""
        return statistics.median(self.seconds)

    @property
    def baseline_median(self) -> float | None:
        """Median seconds of the baseline's call."""
        return statistics.median(self.baseline_seconds) if self.baseline_seconds else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Candidate over baseline, round by round: a slow second of the machine falls on both."""
        return tuple(a / b for a, b in zip(self.seconds, self.baseline_seconds, strict=False))

    @property
    def ratio(self) -> float | None:
        """Median of the ratios; 1 for identical architectures; None without a baseline."""
        return 1.0 if self.identical else statistics.median(self.ratios) if self.ratios else None

    @property
    def spread(self) -> float | None:
        """Half the distance between the largest and the smallest ratio."""
        return (max(self.ratios) - min(self.ratios)) / 2 if self.ratios else None

    def enough_for(self, largest: float | None) -> bool:
        """Return whether the rounds can judge a claim: all may pass, and a fail needs six."""
        return self.rounds >= MIN_ROUNDS or (largest is not None and max(self.ratios) <= largest)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for ``benchmark.extra_info`` and the report."""
        names = ("candidate_median", "baseline_median", "ratio", "spread", "rounds")
        return {name: getattr(self, name) for name in names} | asdict(self)


class UnetCall:
    """One call of a U-Net with random weights; calling it waits until the device is done."""

    def __init__(
        self,
        architecture: str | Config,
        *,
        device: str,
        dtype: torch.dtype,
        batch: int = 1,
        compiled: bool = False,
    ) -> None:
        self.model = unet_skeleton(architecture, device=device, dtype=dtype)
        self.inputs = unet_inputs(architecture, device=device, dtype=dtype, batch=batch)
        self.device = device
        if compiled:
            # CUDA graphs, where there are any: launching kernels one by one is most of a small call.
            self.model.compile(mode="reduce-overhead", dynamic=False)

    def __call__(self) -> None:
        import torch

        with torch.inference_mode():
            self.model(**self.inputs)
        synchronise(self.device)

    def seconds(self) -> float:
        """Call once and return the time it took."""
        start = time.perf_counter()
        self()
        return time.perf_counter() - start


Cache = MutableMapping[tuple[str, str | None, str, str], Ratio]
"""Measurements of this session, by architecture of candidate and baseline, device and dtype."""


@dataclass(frozen=True)
class Effort:
    """How long a measurement may take, and the largest ratio that its claim allows."""

    budget: float = BUDGET
    """Seconds."""
    largest: float | None = None
    """None: there is no claim, or it is not of the ratio alone."""

    def rounds(self, warm_up: Sequence[float], again: Callable[[], Sequence[float]]) -> int:
        """Return how many rounds to take after the first calls of the networks, in seconds: candidate last.

        A first call allocates and picks kernels. Of small networks it takes many times as long as a round,
        so that a second one tells how many rounds there are time for.
        """
        spent = sum(warm_up)
        a_round = min(spent, sum(again())) if spent < self.budget / 10 else spent
        within = self.largest is not None and warm_up[-1] < WELL_WITHIN * self.largest * warm_up[0]
        least = FEW_ROUNDS if within and len(warm_up) > 1 else MIN_ROUNDS
        return min(MAX_ROUNDS, max(least, int((self.budget - spent) / a_round)))


def measure_latency(
    get_benchmark: Callable[[], Any],
    architecture: str | Config,
    baseline: str | Config | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    cache: Cache | None = None,
    effort: Effort | None = None,
    progress: bool = False,
) -> Ratio:
    """Measure one U-Net call through pytest-benchmark, in turn with one call of the baseline's network.

    ``get_benchmark`` returns pytest-benchmark's fixture, and is called only if there is something to time:
    a pair of architectures that ``cache`` holds is not timed twice. A network whose baseline has the same
    architecture has the ratio 1 by identity; it is timed alone, once: loading one network twice would
    measure nothing but noise. At most two networks are in memory, and none afterwards. One lock per machine
    keeps timings of other processes apart.

    The first calls of each network warm up and tell how many rounds fit the budget (6 to 50). Where a slow
    network's already lies well within the largest ratio, three are taken: only a fail needs the ranks of six.

    Raise ``Unavailable`` where pytest-benchmark does not measure (``--benchmark-disable``, ``-n``) or where
    another process keeps the lock. ``progress`` shows the rounds as they go.
    """
    import torch

    dtype = dtype or torch.float32
    key = architecture_key(architecture)
    baseline_key = architecture_key(baseline) if baseline is not None else None
    identical = key == baseline_key
    cache, effort = {} if cache is None else cache, effort or Effort()
    place = device, str(dtype)
    if baseline_key is None or identical:
        if taken := _taken(key, place, cache):
            return Ratio(taken, (), identical=identical, reused=True)
        baseline = baseline_key = None
    elif (known := cache.get((key, baseline_key, *place))) and known.enough_for(effort.largest):
        return replace(known, reused=True)

    benchmark = get_benchmark()
    if benchmark.disabled:
        raise Unavailable("timing is disabled", remedy="Run without --benchmark-disable and without -n")
    with machine_lock():
        try:
            result = _interleave(
                benchmark,
                UnetCall(architecture, device=device, dtype=dtype),
                UnetCall(baseline, device=device, dtype=dtype) if baseline is not None else None,
                effort,
                progress,
            )
        finally:
            release_memory(device)
    result = replace(result, identical=identical)
    benchmark.extra_info.update(
        result.as_dict(), device=device, dtype=str(dtype), threads=torch.get_num_threads()
    )
    cache[key, baseline_key, *place] = result
    return result


def _taken(key: str, place: tuple[str, str], cache: Cache) -> tuple[float, ...]:
    """Return the times of a network that was timed already, be it as another's baseline."""
    for (candidate, baseline, *where), ratio in cache.items():
        if tuple(where) == place and key in (candidate, baseline):
            return ratio.seconds if key == candidate else ratio.baseline_seconds
    return ()


def _interleave(
    benchmark: Any, candidate: UnetCall, baseline: UnetCall | None, effort: Effort, progress: bool
) -> Ratio:
    """Time ``candidate`` with pytest-benchmark; ``baseline`` runs and is timed in the setup of each round."""

    def call_all() -> list[float]:
        return [call.seconds() for call in (baseline, candidate) if call is not None]

    rounds = effort.rounds(call_all(), call_all)
    baseline_seconds: list[float] = []

    with Progress(rounds, "rounds", "latency of one U-Net call", shown=progress) as shower:

        def setup() -> None:
            if baseline is not None:
                baseline_seconds.append(baseline.seconds())
            shower.update()

        benchmark.pedantic(candidate, setup=setup, rounds=rounds)
    return Ratio(tuple(benchmark.stats.stats.data), tuple(baseline_seconds))


def peak_memory(architecture: str | Config, *, device: str, dtype: torch.dtype | None = None) -> int:
    """Return the bytes that one U-Net call holds at its peak, weights included, by CUDA's allocator.

    Raise ``Unavailable`` elsewhere: no other allocator counts what torch holds.
    """
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        remedy = "Run with --sdbench-device cuda"
        raise Unavailable("peak memory is read from CUDA's allocator", found=device, remedy=remedy)
    release_memory(device)
    held = torch.cuda.memory_allocated(device)
    call = UnetCall(architecture, device=device, dtype=dtype or torch.float32)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    peak = int(torch.cuda.max_memory_allocated(device)) - held
    del call
    release_memory(device)
    if peak <= 0:
        remedy = "Unset PYTORCH_NO_CUDA_MEMORY_CACHING"
        raise Unavailable("CUDA's allocator reports no memory", found=peak, remedy=remedy)
    return peak
