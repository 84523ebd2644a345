"""Compute what will be asked next while the asker is busy with what it has."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Prefetcher(Generic[Key, Value]):
    """`get(key)` is `take(key)`, most often computed already, in a background thread.

    Keys are numbers, or tuples of numbers, that are expected to go on as the last two did. At most `depth`
    results wait at a time. A wrong guess costs time, never a wrong result. An error in `take` is raised by
    the `get` of its key.
    """

    def __init__(self, take: Callable[[Key], Value], depth: int = 2) -> None:
        self._take, self._depth = take, depth
        self._waiting: OrderedDict[Key, Future[Value]] = OrderedDict()
        self._last: Key | None = None
        self._lock = threading.Lock()
        # One thread: results come in the order in which they are needed.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead") if depth else None

    def get(self, key: Key) -> Value:
        """Return `take(key)`, and begin with what comes after it."""
        with self._lock:
            future = self._waiting.pop(key, None)
            if future is not None and future.cancel():
                # It has not begun: computing it here is as fast, and needs no waiting for what is before it.
                future = None
            expected = self._expect(key)
            self._last = key
            for guess in [guess for guess in self._waiting if guess not in expected]:
                self._waiting.pop(guess).cancel()
        value = self._take(key) if future is None else future.result()
        with self._lock:
            if self._pool is not None:
                for guess in expected:
                    if guess not in self._waiting:
                        self._waiting[guess] = self._pool.submit(self._take, guess)
        return value

    def close(self) -> None:
        """Drop what waits and end the thread; `get` still works, without looking ahead."""
        with self._lock:
            pool, self._pool = self._pool, None
            waiting, self._waiting = self._waiting, OrderedDict()
        for future in waiting.values():
            future.cancel()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher[Key, Value]:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _expect(self, key: Key) -> list[Key]:
        expected: list[Key] = []
        before, now = self._last, key
        while len(expected) < self._depth and (guess := _extrapolate(before, now)) is not None:
            expected.append(guess)
            before, now = now, guess
        return expected


def _extrapolate(before: Any, now: Any) -> Any:
    """Return what comes after `now` if the steps stay the same; None where that cannot be told."""
    if isinstance(now, tuple):
        if not isinstance(before, tuple) or len(before) != len(now):
            return None
        parts = [_extrapolate(old, new) for old, new in zip(before, now, strict=True)]
        return None if None in parts else tuple(parts)
    if isinstance(before, int) and isinstance(now, int):
        return now + (now - before)
    return None
