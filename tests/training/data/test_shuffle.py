"""The order: every row once in each epoch, resumable anywhere, mixed across shards, never the same twice."""

from __future__ import annotations

import pytest

from training.data.shuffle import Order
from training.errors import TrainingError

SHARDS = [7, 0, 13, 5, 11, 3, 17, 2, 9]


@pytest.mark.parametrize("sizes", [[20], SHARDS, [1], [1, 1, 1]])
@pytest.mark.parametrize("window", [1, 2, 100])
def test_every_row_comes_exactly_once_in_each_epoch(sizes, window):
    order, total = Order(sizes, seed=3, window=window), sum(sizes)
    for epoch in range(4):
        assert sorted(order.rows(epoch * total, total)) == list(range(total))


def test_any_part_of_the_run_is_the_same_however_it_is_asked_for():
    whole = Order(SHARDS, seed=1).rows(0, 300)
    assert Order(SHARDS, seed=1).rows(0, 300) == whole
    for step in (1, 4, 32):
        fresh = Order(SHARDS, seed=1)
        assert [row for first in range(0, 300, step) for row in fresh.rows(first, step)][:300] == whole
    jumping = Order(SHARDS, seed=1)
    for first in (250, 3, 130, 66, 67, 0, 299):
        assert jumping.rows(first, 1) == [whole[first]]


def test_epochs_and_seeds_differ():
    order, total = Order([500], seed=0), 500
    orders = [tuple(order.rows(epoch * total, total)) for epoch in range(5)]
    orders += [tuple(Order([500], seed=seed).rows(0, total)) for seed in (1, 2, 12345, -1)]
    assert len(set(orders)) == len(orders)
    assert tuple(range(500)) not in orders


def test_each_place_of_the_permutation_is_as_likely():
    # Where row 0 stands first, over many seeds: chi-square with 9 degrees of freedom, 99.9 % quantile 27.9.
    counts = [0] * 10
    for seed in range(1000):
        counts[Order([10], seed=seed).rows(0, 10).index(0)] += 1
    assert sum((count - 100) ** 2 / 100 for count in counts) < 27.9


def test_rows_come_from_a_window_of_shards_at_a_time():
    sizes = [50] * 12
    rows = Order(sizes, seed=5, window=3).rows(0, 600)
    parts = [{row // 50 for row in rows[first : first + 150]} for first in range(0, 600, 150)]
    assert [len(part) for part in parts] == [3, 3, 3, 3]
    assert set().union(*parts) == set(range(12))
    # Inside a window the shards are mixed, not one after the other.
    assert len({row // 50 for row in rows[:20]}) == 3
    # And the shards meet others in the next epoch.
    later = Order(sizes, seed=5, window=3).rows(600, 150)
    assert {row // 50 for row in later} not in parts


def splitmix64(state: int, count: int) -> list[int]:
    """The generator of Steele, Lea and Flood (2014), in plain integers."""
    mask, outputs = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        value = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(value ^ (value >> 31))
    return outputs


def test_the_order_is_the_one_that_is_written_down():
    # A run that is resumed with another version of this project or of numpy goes on in the same order.
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    sizes, seed, epoch, window = [3, 4, 2, 5], 7, 2, 2
    [mixed] = splitmix64(seed, 1)
    [salt] = splitmix64(mixed ^ epoch, 1)
    groups = sorted(range(4), key=splitmix64(salt, 4).__getitem__)
    keys = splitmix64(splitmix64(salt, 1)[0], 14)
    starts, expected = [0, 3, 7, 9], []
    for first in (0, 2):
        rows = [starts[g] + place for g in groups[first : first + window] for place in range(sizes[g])]
        expected += sorted(rows, key=keys.__getitem__)
    assert Order(sizes, seed=seed, window=window).rows(epoch * 14, 14) == expected


def test_an_empty_source_is_an_error():
    with pytest.raises(TrainingError, match="no training pairs"):
        Order([0, 0], seed=0)
