"""Show how far a long job is: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

from pytest_sdbench.base.text import plain

T = TypeVar("T")

_QUIET_SECONDS = 30.0


class Progress:
    """A counter that shows itself with rate and time left; a context manager.

    On a terminal it is a tqdm bar. In a log it is one line to stderr every 30 seconds and one at the end, and
    nothing for a job that is done before the first line is due.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        description: str,
        *,
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._unit, self._description = total, unit, plain(description)
        self._stream, self._clock = stream or sys.stderr, clock
        self._done, self._spoke, self._start, self._note = 0, False, clock(), ""
        self._due = self._start + _QUIET_SECONDS
        self._shown, self._bar = shown, None
        if shown and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                unit=f" {unit}",
                desc=self._description,
                file=self._stream,
                dynamic_ncols=True,
                leave=False,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._spoke and kind is None:
            self._say("done")

    def update(self, n: int = 1) -> None:
        """Count n more units."""
        self._done += n
        if self._bar is not None:
            self._bar.update(n)
        else:
            self._say_if_due()

    def note(self, text: str) -> None:
        """Show a text beside the counter, such as what is waited for, until there is another."""
        changed, self._note = text != self._note, text
        if self._bar is None:
            self._say_if_due()
        elif changed:
            self._bar.set_postfix_str(plain(text))

    def _say_if_due(self) -> None:
        if self._shown and self._clock() >= self._due:
            self._say()
            self._due = self._clock() + _QUIET_SECONDS

    def _say(self, end: str = "") -> None:
        self._spoke = True
        seconds = max(self._clock() - self._start, 1e-9)
        rate = self._done / seconds
        of = f"/{self._total:,}" if self._total is not None else ""
        after = f", took {_minutes(seconds)}" if end else ""
        if self._total and rate and not end:
            after = f", {_minutes((self._total - self._done) / rate)} left"
        if self._note and not end:
            after += f" ({plain(self._note)})"
        text = f"{self._description}: {self._done:,}{of} {self._unit}, {rate:.3g} {self._unit}/s{after}"
        print(text, file=self._stream, flush=True)


def progress(
    items: Iterable[T],
    total: int | None,
    unit: str,
    description: str,
    *,
    count: Callable[[T], int] = lambda item: 1,
    shown: bool = True,
) -> Iterator[T]:
    """Yield the items and show how far they are; `count` says how many units an item is."""
    with Progress(total, unit, description, shown=shown) as shower:
        for item in items:
            yield item
            shower.update(count(item))


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
