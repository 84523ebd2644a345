"""Let the ways of doing one thing take turns, so that all of them see the same machine."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def take_turns(
    ways: Mapping[str, Callable[[], T]],
    rounds: int,
    show: Callable[[T], str] | None = None,
) -> dict[str, list[T]]:
    """Call every way once a round, forwards, then backwards: AB BA AB; return what each call returned.

    `show` makes a line of every round.
    """
    turns: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            turns[name].append(ways[name]())
        if show is not None:
            latest = ", ".join(f"{name} {show(own[-1])}" for name, own in turns.items())
            print(f"round {number + 1} of {rounds}: {latest}", flush=True)
    return turns


def spread(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Return the ratio of two figures of the same round: median, lowest and highest over the rounds."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


class Worker:
    """One way in a process of its own: `start` loads it there and returns what takes a turn of it.

    What one way changes of a process (how the C library keeps memory, which kernels are chosen, how many
    threads there are) would help or hinder the others in it. Errors of the process are raised here.
    """

    def __init__(
        self,
        start: Callable[..., Callable[[], Any]],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = _process(environment or {})
        self.loaded = self._process.submit(_load, start, arguments)

    def __call__(self) -> Any:
        """Take a turn and return what it measured."""
        return self.begin().result()

    def begin(self) -> Future[Any]:
        """Begin a turn, without waiting for it."""
        return self._process.submit(_take_turn)

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()


def in_a_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function once, in a fresh process, and return its result."""
    with _process({}) as process:
        return process.submit(function, *arguments).result()


def _process(environment: Mapping[str, str]) -> ProcessPoolExecutor:
    threads = int(environment.get("OMP_NUM_THREADS", torch.get_num_threads()))
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, _prepare, (threads, environment))


_way: list[Callable[[], Any]] = []
"""Of a worker's own process: what takes a turn."""


def _prepare(threads: int, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(threads)


def _load(start: Callable[..., Callable[[], Any]], arguments: Sequence[Any]) -> None:
    _way.append(start(*arguments))


def _take_turn() -> Any:
    return _way[0]()
