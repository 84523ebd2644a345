"""Let the ways of doing one thing take turns, so that all of them see the same machine."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Start = Callable[..., Callable[[], Any]]
"""Loads a way and returns what takes one turn of it; a function of a module, so that it can be sent."""


def take_turns(
    ways: Mapping[str, Callable[[], T]],
    rounds: int,
    say: Callable[[str], None] = print,
    show: Callable[[T], str] = "{:.2f}".format,
) -> dict[str, list[T]]:
    """Call every way once a round, forwards, then backwards: AB BA AB; return what each call returned."""
    turns: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            turns[name].append(ways[name]())
        latest = ", ".join(f"{name} {show(own[-1])}" for name, own in turns.items())
        say(f"round {number + 1} of {rounds}: {latest}")
    return turns


def spread(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Return the ratio of two figures of the same round: median, lowest and highest over the rounds."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


class Worker:
    """One way in a process of its own, loaded and waiting; calling it takes a turn there.

    What one way changes of a process (how the C library keeps memory, which kernels are chosen, how many
    threads there are) would help or hinder the others in it.
    """

    def __init__(self, start: Start, *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(there, torch.get_num_threads(), environment or {}, start, arguments),
            daemon=True,
        )
        self._process.start()
        there.close()

    def __call__(self) -> Any:
        """Take a turn and return what it measured; raises RuntimeError with what failed there."""
        self.go()
        return self.result()

    def go(self) -> None:
        """Begin a turn, without waiting for it."""
        self._here.send("go")

    def result(self) -> Any:
        """Wait for loading (the first time) or for a turn, and return its result."""
        try:
            problem, result = self._here.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a measuring process ended with {self._process.exitcode}") from None
        if problem:
            raise RuntimeError(f"a measuring process failed:\n{problem}")
        return result

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join()


def loaded(start: Start, *arguments: Any) -> Worker:
    """Return a way in a process of its own when it is ready for its first turn."""
    worker = Worker(start, *arguments)
    worker.result()
    return worker


def in_a_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function once, in a fresh process, and return its result."""
    worker = loaded(partial, function, *arguments)
    try:
        result: T = worker()
        return result
    finally:
        worker.close()


def _serve(
    connection: Connection,
    threads: int,
    environment: Mapping[str, str],
    start: Start,
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", threads)))
    try:
        take_turn = start(*arguments)
        connection.send((None, None))
        while True:
            connection.recv()
            connection.send((None, take_turn()))
    except EOFError:  # the other side is done
        return
    except Exception:
        connection.send((traceback.format_exc(), None))
