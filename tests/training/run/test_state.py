"""The state of a run: a file that is the old one or the new one, and says so when it is neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from tests.training.helpers import (
    Toy,
    assert_same_state,
    files_no_longer_than,
    log_lines,
    tiny_recipe,
    train_toy,
)
from training.data.batch import NoPairs
from training.errors import TrainingError
from training.run.processes import start
from training.run.state import FILE, identity, load_state, read_state, save_state, told
from training.run.step import Learner, prepare

SAVE_ALWAYS = "watch.save_minutes=1e-9"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_full_disk_leaves_the_state_of_before(tmp_path: Path, share: float) -> None:
    settings = ("ema.decay=0.9", SAVE_ALWAYS)
    train_toy(tmp_path / "run", *settings, toy=Toy(width=256), stop_at=16)
    before = (tmp_path / "run" / FILE).read_bytes()
    with (
        # The log, which is short, has room left even where the state finds none.
        files_no_longer_than(max(2000, int(share * len(before)))),
        pytest.raises(TrainingError, match=r"cannot be saved; the last state is whole.*Free some space"),
    ):
        train_toy(tmp_path / "run", *settings, toy=Toy(width=256))
    assert (tmp_path / "run" / FILE).read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["log.jsonl", FILE]
    train_toy(tmp_path / "run", *settings, toy=Toy(width=256))
    train_toy(tmp_path / "whole", *settings, toy=Toy(width=256))
    assert_same_state(tmp_path / "run", tmp_path / "whole")


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    def with_pairs(count: int) -> Toy:
        toy = Toy()
        toy.inputs = SimpleNamespace(pairs=NoPairs(count))  # type: ignore[attr-defined]
        return toy

    train_toy(tmp_path, toy=with_pairs(12), stop_at=8)
    with pytest.raises(TrainingError, match=r"12 pairs then.*'13 pairs'"):
        train_toy(tmp_path, toy=with_pairs(13))
    assert train_toy(tmp_path, toy=with_pairs(12))[0] == 48


def test_a_full_disk_at_the_first_save_says_that_nothing_is_there(tmp_path: Path) -> None:
    with files_no_longer_than(2000), pytest.raises(TrainingError, match="nothing was saved before"):
        train_toy(tmp_path, SAVE_ALWAYS, toy=Toy(width=256))
    assert not (tmp_path / FILE).exists()


def test_a_log_that_finds_no_room_is_a_clear_error(tmp_path: Path) -> None:
    train_toy(tmp_path, SAVE_ALWAYS, stop_at=8)
    with (
        files_no_longer_than((tmp_path / "log.jsonl").stat().st_size),
        pytest.raises(TrainingError, match=r"log\.jsonl: the disk is full: the log of the run"),
    ):
        train_toy(tmp_path, SAVE_ALWAYS)
    assert train_toy(tmp_path, SAVE_ALWAYS)[0] == 48
    assert [line["seen"] for line in log_lines(tmp_path)] == [8, 16, 24, 32, 40, 48]


@pytest.mark.parametrize(
    "content", [0.0, 0.3, 0.9, 0.999, [1, 2], {"weights": 1}, {"identity": "x", "seen": 1, "model": {}}]
)
def test_a_truncated_state_and_a_file_that_is_none_are_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / FILE
    if isinstance(content, float):
        train_toy(tmp_path, stop_at=8)
        path.write_bytes(path.read_bytes()[: int(content * path.stat().st_size)])
    else:
        torch.save(content, path)
    with pytest.raises(TrainingError, match=r"state\.pt: the state of the run cannot be read.*--restart"):
        train_toy(tmp_path)


def test_a_state_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save(Evil(), tmp_path / FILE)
    with pytest.raises(TrainingError, match="cannot be read"):
        read_state(tmp_path / FILE)
    assert not (tmp_path / "touched").exists()


class Dropping(Toy):
    """Its network draws from the generator of the process."""

    def __init__(self) -> None:
        super().__init__()
        self.model.insert(2, torch.nn.Dropout(0.5))


@pytest.mark.parametrize("toy", [Toy, Dropping])
def test_a_run_goes_on_where_it_was_beside_half_a_file_of_a_killed_save(
    tmp_path: Path, toy: type[Toy]
) -> None:
    train_toy(tmp_path / "run", toy=toy(), stop_at=24)
    (tmp_path / "run" / (FILE + ".tmp")).write_bytes(b"half a file")
    torch.randn(5)
    train_toy(tmp_path / "run", toy=toy())
    train_toy(tmp_path / "whole", toy=toy())
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    assert not (tmp_path / "run" / (FILE + ".tmp")).exists()


def test_the_state_has_plain_names_and_what_is_frozen_stays_out(tmp_path: Path) -> None:
    toy = Toy()
    toy.model[0].requires_grad_(False)
    frozen = toy.model[0].weight.detach().clone()
    train_toy(tmp_path, "ema.decay=0.9", toy=toy)
    state = read_state(tmp_path / FILE)
    assert set(state["model"]) == {"2.weight", "2.bias"} == set(state["average"])
    assert torch.equal(toy.model[0].weight, frozen)


def test_a_scaled_run_is_loaded_before_any_loss_was_scaled(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    accelerator = start(recipe, tmp_path, "cpu")

    def learner(scale: float) -> Learner:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        plain = prepare(Toy(), recipe, accelerator)
        optimizer = torch.optim.AdamW(plain.parameters)
        return replace(plain, optimizer=AcceleratedOptimizer(optimizer, scaler=accelerator.scaler))

    one = learner(8.0)
    accelerator.scaler.scale(one.model(torch.ones(1, 4)).sum()).backward()
    one.optimizer.step()
    one.optimizer.zero_grad()
    save_state(tmp_path, one, seen=1)

    other = learner(2.0)
    assert load_state(tmp_path, other) == 1
    torch.testing.assert_close(other.model.state_dict(), one.model.state_dict(), rtol=0, atol=0)
    states = [each.optimizer.state_dict()["state"] for each in (other, one)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert accelerator.scaler.get_scale() == 8.0


def test_a_rate_that_proved_too_high_is_lowered_and_told(tmp_path: Path) -> None:
    train_toy(tmp_path, stop_at=16)
    for _ in range(2):  # a rate is told once, however often the run goes on
        train_toy(tmp_path, "optimizer.learning_rate=1e-5", stop_at=24)
    assert train_toy(tmp_path, "optimizer.learning_rate=1e-5")[0] == 48
    assert told(tmp_path)["rates"] == [[0, 1e-3, 1.0], [16, 1e-5, 1.0]]


def test_what_differs_is_named_and_what_has_a_default_does_not(tmp_path: Path) -> None:
    train_toy(tmp_path, stop_at=8)
    with pytest.raises(TrainingError, match=r"optimizer\.weight_decay: .* 0\.01 then.*found '?0\.5"):
        train_toy(tmp_path, "optimizer.weight_decay=0.5")
    state = read_state(tmp_path / FILE)
    del state["settings"]["optimizer.epsilon"]  # as a version wrote that did not know the key
    torch.save(state, tmp_path / FILE)
    with pytest.raises(TrainingError, match=r"optimizer\.epsilon: .*not given then"):
        train_toy(tmp_path, "optimizer.epsilon=1e-3")
    assert train_toy(tmp_path)[0] == 48


def test_other_pairs_in_the_same_number_are_other_data(tmp_path: Path) -> None:
    def of(content: str) -> Toy:
        toy = Toy()
        toy.inputs = SimpleNamespace(pairs=NoPairs(12, fingerprint=content))  # type: ignore[attr-defined]
        return toy

    train_toy(tmp_path, toy=of("a"), stop_at=8)
    with pytest.raises(TrainingError, match="the data has changed since: a, of names"):
        train_toy(tmp_path, toy=of("b"))
    assert train_toy(tmp_path, toy=of("a"))[0] == 48


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    train_toy(tmp_path, stop_at=8)
    state = read_state(tmp_path / FILE)
    del state["settings"], state["told"]["rates"]
    torch.save({**state, "identity": identity(tiny_recipe())}, tmp_path / FILE)
    with pytest.raises(TrainingError, match="another recipe, by an earlier version"):
        train_toy(tmp_path, "schedule.seed=4")
    assert train_toy(tmp_path)[0] == 48
    assert told(tmp_path)["rates"] == [[0, 1e-3, 1.0]]
