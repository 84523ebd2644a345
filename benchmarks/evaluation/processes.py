"""Keep each way of an evaluation in a process of its own, loaded and waiting for its turn.

What one way changes of a process (how the C library keeps memory, which kernels are chosen, how many threads
there are) would help or hinder the others in it.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

Start = Callable[..., Callable[[], Any]]
"""Loads a way and returns what takes one turn of it; a function of a module, so that it can be sent."""


class Apart:
    """One way in a process of its own; calling it takes a turn there and returns what that measured."""

    def __init__(self, start: Start, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, torch.get_num_threads(), start, arguments), daemon=True
        )
        self._process.start()
        there.close()
        self._receive()

    def __call__(self) -> Any:
        self._here.send("go")
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join()

    def _receive(self) -> Any:
        try:
            problem, result = self._here.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a measuring process ended with {self._process.exitcode}") from None
        if problem:
            raise RuntimeError(f"a measuring process failed:\n{problem}")
        return result


def _serve(connection: Connection, threads: int, start: Start, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
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
