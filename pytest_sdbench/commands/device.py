"""Measure what a U-Net call takes on one device: absolute figures, which hold on that device alone."""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_sdbench.base.environment import machine_lock, out_of_memory, release_memory, timed_on, versions
from pytest_sdbench.base.errors import SdbenchError, first_line
from pytest_sdbench.base.options import DTYPES
from pytest_sdbench.cards.network import named_network
from pytest_sdbench.cards.records import DeviceRecord
from pytest_sdbench.commands.shared import named_cards, share, show
from pytest_sdbench.models.architectures import Config
from pytest_sdbench.models.counts import unet_macs
from pytest_sdbench.models.latency import UnetCall
from pytest_sdbench.models.skeleton import architecture_key

if TYPE_CHECKING:
    from pytest_sdbench.cards.card import Card


MODES = ("eager", "compiled")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    share(command, "cards", "--device")
    told = "may be repeated; default: float16 and bfloat16, on a CPU float32"
    command.add_argument("--dtype", action="append", default=[], choices=DTYPES, help=told)
    told = "may be repeated; default: both on CUDA, elsewhere eager"
    command.add_argument("--mode", action="append", default=[], choices=MODES, help=told)
    told = "largest batch that is tried for throughput [%(default)s]"
    command.add_argument("--largest-batch", type=int, default=64, metavar="N", help=told)
    told = "seconds of timing for each figure [%(default)s]"
    command.add_argument("--seconds", type=float, default=3.0, metavar="S", help=told)
    command.add_argument("--update", action="store_true", help="record the figures in the cards")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    from pytest_sdbench.base.environment import torch_device
    from pytest_sdbench.cards.card import write_records
    from pytest_sdbench.report.devices import device_tables

    for key, value in (("--largest-batch", options.largest_batch), ("--seconds", options.seconds)):
        if not value > 0:
            raise SdbenchError("give more than 0", key=key, found=value)
    measuring = measure(
        named_cards(options.cards),
        device=torch_device(options.device, option="--device"),
        dtypes=options.dtype,
        modes=options.mode,
        seconds=options.seconds,
        largest=options.largest_batch,
        tell=lambda line: show(line, sys.stderr),
    )
    found: list[Measurement] = []
    problems: list[str] = []
    try:
        for each in measuring:  # a network takes minutes: what is measured is not lost with the next one
            found.append(each)
            problems += each.problems
            for card in each.cards if options.update else ():
                try:
                    if diff := write_records(card.path, each.records):
                        show(diff.rstrip("\n"))
                except SdbenchError as error:
                    problems.append(str(error))
    finally:
        print(device_tables([(each.names, each.records) for each in found]))
        for line in problems:
            show(line, sys.stderr)
    return 1 if problems else 0


FEWEST, MOST = 3, 50
"""Rounds of a call."""

_WARM = 3
"""Calls of a compiled network before the first that counts: it compiles, records its graph, and plays it."""

_GAIN = 1.03
"""By how much a batch of twice the size has to be faster, sample by sample, for a larger one to be tried."""


@dataclass(frozen=True)
class Measurement:
    """What the U-Net of one or more cards takes, in every way that was asked for."""

    cards: tuple[Card, ...]
    """That have this network."""
    records: tuple[DeviceRecord, ...]
    problems: tuple[str, ...] = ()
    """A line for each call that did not run here."""

    @property
    def names(self) -> str:
        """The cards' names."""
        return ", ".join(card.name for card in self.cards)


def measure(
    cards: Sequence[Card],
    *,
    device: str,
    dtypes: Sequence[str] = (),
    modes: Sequence[str] = (),
    seconds: float = 3.0,
    largest: int = 64,
    batch: int | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Iterator[Measurement]:
    """Measure the U-Net call of each card: its latency with one sample, and its throughput.

    Throughput is that of the batch with most samples a second. In eager mode the batch is doubled, up to
    `largest`, until a sample gets no faster or memory runs out; the compiled network runs the same one. A
    given `batch` is taken as that one. The weights are random; cards of one architecture are measured once.
    Without `dtypes` these are float16 and bfloat16 on CUDA, else float32; without `modes` both on CUDA, else
    eager. `seconds` is what the rounds of one call may take, the fewest rounds apart; `tell` hears what comes
    next. Raises Unavailable for a card of no network, and where another process keeps the machine's lock for
    timings.
    """
    on_cuda = device.startswith("cuda")
    dtypes = dtypes or (("float16", "bfloat16") if on_cuda else ("float32",))
    modes = [mode for mode in MODES if mode in (modes or (MODES if on_cuda else ("eager",)))]
    alike: dict[str, tuple[str | Config, list[Card]]] = {}
    for card in cards:
        network = named_network(card).timed
        alike.setdefault(architecture_key(network), (network, []))[1].append(card)
    for network, those in alike.values():
        macs, found = unet_macs(network).total, Measurement(tuple(those), ())
        with machine_lock():
            for dtype in dtypes:
                doubled, best = [2**power for power in range(largest.bit_length())], batch or 0
                for mode in modes:
                    tell(f"{found.names}: {dtype}, {mode}, on {timed_on(device)}")
                    call = partial(_measure, network, macs, device, dtype, mode, seconds)
                    taken, problem = fastest(call, sorted({1, best}) if best else doubled, growing=not best)
                    if taken and mode == "eager":
                        best = taken[-1].batch
                    problems = [f"{found.names}: {dtype}, {mode}, {problem}"] if problem else []
                    found = replace(
                        found, records=(*found.records, *taken), problems=(*found.problems, *problems)
                    )
        yield found


def fastest(
    call: Callable[[int], DeviceRecord], batches: Sequence[int], *, growing: bool = True
) -> tuple[tuple[DeviceRecord, ...], str]:
    """Return latency and throughput of a call, and what was wrong with a batch that did not run.

    `batches` begin with 1. Where they are `growing`, the first that gains nothing or finds no memory is the
    last, and the latter is nothing wrong.
    """
    found: list[DeviceRecord] = []
    problem = ""
    for batch in batches:
        try:
            found.append(call(batch))
        except RuntimeError as error:
            if not (growing and found and out_of_memory(error)):
                problem = f"a batch of {batch} does not run: {first_line(error)}"
            break
        if growing and batch > 1 and found[-1].samples_per_second < _GAIN * found[-2].samples_per_second:
            break
    if not found:
        return (), problem
    best = max(found, key=lambda record: record.samples_per_second)
    return (found[0], replace(best, measures="throughput")), problem


def _measure(
    network: str | Config, macs: int, device: str, dtype: str, mode: str, seconds: float, batch: int
) -> DeviceRecord:
    import torch

    release_memory(device)
    counted = device.startswith("cuda")
    held = torch.cuda.memory_allocated(device) if counted else 0
    try:
        call = UnetCall(
            network, device=device, dtype=getattr(torch, dtype), batch=batch, compiled=mode == "compiled"
        )
        if counted:
            torch.cuda.reset_peak_memory_stats(device)
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
        measures="latency",
        batch=batch,
        seconds=taken,
        samples_per_second=batch / taken,
        macs_per_second=batch * macs / taken,
        peak_bytes=peak or None,
        versions={name: number for name, number in versions().items() if name in ("torch", "diffusers")},
        date=datetime.date.today().isoformat(),
    )
