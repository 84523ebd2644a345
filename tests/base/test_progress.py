"""What long jobs show: a bar on a terminal, few lines in a log."""

from __future__ import annotations

import io

import pytest

from pytest_sdbench.base.progress import Progress, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_every_half_minute_and_one_at_the_end() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(100, "images", "sampling", stream=log, clock=clock) as shower:
        for _ in range(10):
            clock.now += 10.0
            shower.update(10)
    assert log.getvalue().splitlines() == [
        "sampling: 30/100 images, 1 images/s, 1:10 left",
        "sampling: 60/100 images, 1 images/s, 0:40 left",
        "sampling: 90/100 images, 1 images/s, 0:10 left",
        "sampling: 100/100 images, 1 images/s, took 1:40",
    ]


def test_a_short_job_leaves_no_trace_in_a_log() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(3, "images", "sampling", stream=log, clock=clock) as shower:
        clock.now += 29.0
        shower.update(3)
    assert log.getvalue() == ""


def test_an_unknown_total_shows_what_is_done() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(None, "files", "reading", stream=log, clock=clock) as shower:
        clock.now += 7200.0
        shower.update(3600)
    assert log.getvalue().splitlines() == [
        "reading: 3,600 files, 0.5 files/s",
        "reading: 3,600 files, 0.5 files/s, took 2:00:00",
    ]


def test_a_failed_job_does_not_say_that_it_is_done() -> None:
    log, clock = io.StringIO(), Clock()

    def fail() -> None:
        with Progress(9, "images", "sampling", stream=log, clock=clock) as shower:
            clock.now += 40.0
            shower.update()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        fail()
    assert "took" not in log.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    terminal = Terminal()
    with Progress(4, "images", "sampling", stream=terminal) as shower:
        shower.update(4)
    assert "sampling" in terminal.getvalue()
    assert "\r" in terminal.getvalue()


def test_a_hidden_one_shows_nothing() -> None:
    terminal = Terminal()
    with Progress(4, "images", "sampling", shown=False, stream=terminal) as shower:
        shower.update(4)
    assert terminal.getvalue() == ""


def test_items_pass_through_unchanged() -> None:
    batches = [[1, 2], [3]]
    assert list(progress(batches, 3, "images", "sampling", count=len)) == batches
    assert list(progress([], 0, "images", "sampling")) == []
