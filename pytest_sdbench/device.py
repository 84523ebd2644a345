"""Measure what a U-Net call takes on one device: absolute figures, which hold on that device alone."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from pytest_sdbench.architectures import Config
from pytest_sdbench.compute import unet_macs
from pytest_sdbench.engine import out_of_memory
from pytest_sdbench.environment import timed_on, versions
from pytest_sdbench.networks import named_network
from pytest_sdbench.records import DeviceRecord
from pytest_sdbench.skeleton import architecture_key
from pytest_sdbench.speed import UnetCall, machine_lock, release_memory

if TYPE_CHECKING:
    from pytest_sdbench.card import Card

SECONDS = 3.0
"""That the rounds of one call may take, once it is warm; the fewest rounds may exceed it."""

FEWEST, MOST = 3, 50
"""Rounds."""

_WARM = 3
"""Calls of a compiled network before the first that counts: it compiles, records its graph, and plays it."""

_GAIN = 1.03
"""By how much a batch of twice the size has to be faster, sample by sample, for a larger one to be tried."""

MODES = ("eager", "compiled")


@dataclass(frozen=True)
class Measured:
    """What the U-Net of one or more cards takes, in every way that was asked for."""

    cards: tuple[str, ...]
    """Names of those that have this network."""
    records: tuple[DeviceRecord, ...]
    problems: tuple[str, ...] = ()
    """A line for each way in which the network does not run here."""


def dtypes_of(device: str) -> tuple[str, ...]:
    """Return the precisions that a network is run in on a device, unless others are asked for."""
    return ("float32",) if device.startswith("cpu") else ("float16", "bfloat16")


def modes_of(device: str) -> tuple[str, ...]:
    """Return the ways to run a network on a device, unless others are asked for."""
    return MODES if device.startswith("cuda") else MODES[:1]


def measure(
    cards: Sequence[Card],
    *,
    device: str,
    dtypes: Sequence[str] = (),
    modes: Sequence[str] = (),
    seconds: float = SECONDS,
    largest: int = 64,
    tell: Callable[[str], object] = lambda line: None,
) -> list[Measured]:
    """Measure one U-Net call of each card, of one sample and of the batch that is fastest by the sample.

    The weights are random. Cards of one architecture are measured once. The batch is doubled, up to
    `largest`, until a sample gets no faster or memory runs out, in eager mode; the compiled network runs the
    same batch. `tell` hears what comes next. Raises Unavailable for a card that names no network, and where
    another process keeps the machine's lock for timings.
    """
    networks: dict[str, list[Card]] = {}
    for card in cards:
        networks.setdefault(architecture_key(named_network(card).unet), []).append(card)
    found = []
    for alike in networks.values():
        records: list[DeviceRecord] = []
        problems: list[str] = []
        network, names = named_network(alike[0]).unet, tuple(card.name for card in alike)
        with machine_lock():
            for dtype in dtypes or dtypes_of(device):
                best = 1
                for mode in modes or modes_of(device):
                    tell(f"{', '.join(names)}: {dtype}, {mode}, on {timed_on(device)}")
                    call = partial(_measure, network, device, dtype, mode, seconds)
                    try:
                        if mode == "eager":
                            taken = fastest(call, largest)
                        else:
                            taken = [call(batch) for batch in sorted({1, best})]
                    except RuntimeError as error:
                        first = (str(error).strip() or type(error).__name__).splitlines()[0]
                        problems.append(f"{', '.join(names)}: does not run in {dtype}, {mode}: {first}")
                        continue
                    records += taken
                    best = taken[-1].batch
        found.append(Measured(names, tuple(records), tuple(problems)))
    return found


def fastest(call: Callable[[int], DeviceRecord], largest: int) -> list[DeviceRecord]:
    """Return the call of one sample and, where it is another, that of the batch with most samples a second.

    A batch that does not fit ends the search; a single sample that does not fit raises what it raised.
    """
    found = [call(1)]
    while (batch := 2 * found[-1].batch) <= largest:
        try:
            found.append(call(batch))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            break
        if found[-1].samples_per_second < _GAIN * found[-2].samples_per_second:
            break
    best = max(found, key=lambda record: record.samples_per_second)
    return [found[0]] if best is found[0] else [found[0], best]


@lru_cache(maxsize=64)
def _macs(key: str) -> int:
    return unet_macs(json.loads(key)).total


def _measure(
    network: str | Config, device: str, dtype: str, mode: str, seconds: float, batch: int
) -> DeviceRecord:
    import torch

    release_memory(device)
    counted = device.startswith("cuda")
    held = torch.cuda.memory_allocated(device) if counted else 0
    if counted:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        call = UnetCall(
            network,
            device=device,
            dtype=getattr(torch, dtype),
            batch=batch,
            compiled=mode == "compiled",
        )
        for _ in range(_WARM if mode == "compiled" else 1):
            call()
        first = call.seconds()
        rounds = min(MOST, max(FEWEST, int(seconds / first)))
        taken = statistics.median([first, *(call.seconds() for _ in range(rounds - 1))])
        peak = int(torch.cuda.max_memory_allocated(device)) - held if counted else None
        del call
    finally:
        if mode == "compiled":
            torch.compiler.reset()  # else each batch counts towards the recompilations that are allowed
        release_memory(device)
    return DeviceRecord(
        device=timed_on(device),
        dtype=dtype,
        mode=mode,
        batch=batch,
        seconds=taken,
        samples_per_second=batch / taken,
        macs_per_second=batch * _macs(architecture_key(network)) / taken,
        peak_bytes=peak or None,
        versions={name: number for name, number in versions().items() if name in ("torch", "diffusers")},
        date=datetime.date.today().isoformat(),
    )
