"""The random numbers of a step: the same however the step is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from training.run.randomness import Dice


def numbers(dice: Dice) -> list[torch.Tensor]:
    return [dice.normal(3, 2), dice.integers(1000), dice.uniform(), dice.normal(), dice.integers(5, 2)]


@pytest.mark.parametrize("cuts", [[12], [6, 6], [1] * 12, [3, 4, 5]])
def test_pieces_together_are_the_whole(cuts: list[int]) -> None:
    whole = numbers(Dice(7, 240, 12, 0, 12))
    first, pieces = 0, []
    for count in cuts:
        pieces.append(numbers(Dice(7, 240, 12, first, count)))
        first += count
    for position, wanted in enumerate(whole):
        assert torch.equal(torch.cat([piece[position] for piece in pieces]), wanted)


def test_every_step_and_every_seed_has_its_own_numbers() -> None:
    """Also where they differ beyond the 32 bits that torch's generator reads."""
    places = [(0, 0), (0, 8), (1, 0), (2**32, 0), (1 + 2**32, 0), (2**40, 0), (0, 2**32), (2**31, 8)]
    draws = {tuple(Dice(seed, seen, 4, 0, 4).normal().tolist()) for seed, seen in places}
    assert len(draws) == len(places)
    # A seed and a position may not be mistaken for another pair, such as 1 and 23 for 12 and 3.
    assert not torch.equal(Dice(1, 23, 4, 0, 4).normal(), Dice(12, 3, 4, 0, 4).normal())


def test_nothing_touches_the_generator_of_the_process() -> None:
    before = torch.get_rng_state()
    numbers(Dice(0, 0, 4, 0, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_distributions() -> None:
    dice = Dice(3, 0, 20_000, 0, 20_000)
    assert stats.kstest(dice.normal().double().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(dice.uniform().double().numpy(), "uniform").pvalue > 1e-3
    assert stats.chisquare(np.bincount(dice.integers(50).numpy(), minlength=50)).pvalue > 1e-3


def test_first_numbers_of_consecutive_steps_are_uniform() -> None:
    """Neighbouring seeds must not give neighbouring numbers."""
    first = [float(Dice(0, 8 * step, 1, 0, 1).uniform()) for step in range(2000)]
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1


def test_rows_outside_the_step_are_refused() -> None:
    with pytest.raises(ValueError, match="rows 3 to 6 of 5"):
        Dice(0, 0, 5, 3, 3)
