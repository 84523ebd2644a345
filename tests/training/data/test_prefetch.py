"""The look-ahead gives what a plain call would give, sooner."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time

import pytest

from training.data.prefetch import Prefetcher


def ahead_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_what_comes_next_is_computed_while_the_caller_is_busy():
    begun = {key: threading.Event() for key in range(12)}

    def take(key: int) -> int:
        begun[key].set()
        return key * key

    with Prefetcher(take, depth=2) as ahead:
        assert [ahead.get(key) for key in (0, 1)] == [0, 1]
        # Nobody has asked for these yet.
        assert begun[2].wait(10)
        assert begun[3].wait(10)
        assert not begun[4].is_set()
        assert [ahead.get(key) for key in range(2, 8)] == [key * key for key in range(2, 8)]


def test_regular_keys_need_no_hint():
    taken: list[tuple[int, int]] = []
    done = threading.Event()

    def take(key: tuple[int, int]) -> int:
        taken.append(key)
        if key == (24, 8):
            done.set()
        return sum(key)

    with Prefetcher(take, depth=1) as ahead:
        assert ahead.get((0, 8)) == 8
        assert ahead.get((12, 8)) == 20
        assert done.wait(10)
        assert ahead.get((24, 8)) == 32
    assert taken[:3] == [(0, 8), (12, 8), (24, 8)]


def test_each_result_is_that_of_its_key_in_any_order():
    keys = [0, 1, 2, 7, 8, 9, 3, 3, 0, 100, 50, 51, 52]
    with Prefetcher(lambda key: key * 10, depth=3) as ahead:
        assert [ahead.get(key) for key in keys] == [key * 10 for key in keys]


def test_an_error_surfaces_at_the_get_of_its_key():
    def take(key: int) -> int:
        if key == 3:
            raise ValueError(f"broken {key}")
        return key

    with Prefetcher(take, depth=2) as ahead:
        assert [ahead.get(key) for key in (0, 1, 2)] == [0, 1, 2]
        with pytest.raises(ValueError, match="broken 3"):
            ahead.get(3)
        assert ahead.get(4) == 4


def test_no_more_than_depth_results_wait():
    taken: list[int] = []
    before = ahead_threads()
    with Prefetcher(lambda key: taken.append(key) or key, depth=2) as ahead:
        assert [ahead.get(key) for key in (0, 1)] == [0, 1]
        time.sleep(0.05)
        assert set(taken) <= {0, 1, 2, 3}
    with Prefetcher(lambda key: taken.append(key) or key, depth=0) as plain:
        taken.clear()
        assert [plain.get(key) for key in (5, 6)] == [5, 6]
        assert taken == [5, 6]
        assert ahead_threads() == before


def test_no_thread_is_left_behind():
    before = set(ahead_threads())
    ahead = Prefetcher(lambda key: key, depth=2)
    assert [ahead.get(key) for key in (0, 1)] == [0, 1]
    assert set(ahead_threads()) > before
    ahead.close()
    assert set(ahead_threads()) <= before
    assert ahead.get(2) == 2

    forgotten = Prefetcher(lambda key: key, depth=2)
    assert [forgotten.get(key) for key in (0, 1)] == [0, 1]
    threads = set(ahead_threads()) - before
    del forgotten
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_program_that_forgets_it_ends():
    program = (
        "from training.data.prefetch import Prefetcher\n"
        "ahead = Prefetcher(lambda key: key, depth=2)\n"
        "print(ahead.get(0), ahead.get(1))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "0 1\n"), done.stderr
