"""The loop: however a run is cut, stopped, or continued, it is the same run."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from tests.training.helpers import (
    Toy,
    assert_same_state,
    begin,
    begin_pair,
    finish,
    log_lines,
    tiny_recipe,
    train_toy,
)
from training.errors import TrainingError
from training.run import processes
from training.run.loop import train
from training.run.processes import shard_on_cpus, sharded, start
from training.run.randomness import Dice
from training.run.state import FILE, load_trained, read_state
from training.run.step import Plan, learning_rate
from training.run.task import Piece

EMA = ("ema.decay=0.9", "optimizer.schedule=cosine", "optimizer.warmup_steps=2")


def assert_close_weights(run: Path, wanted: Path) -> None:
    """Assert that two runs learned the same, to rounding: weights and average."""
    first, second = weights(wanted), weights(run)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-5, atol=1e-6)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = read_state(folder / FILE)
    average = state.get("average") or {}
    return {**state["model"], **{f"average {name}": value for name, value in average.items()}}


# --- the same run, cut otherwise ------------------------------------------


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_accumulation_is_the_whole_batch(tmp_path: Path, micro: int) -> None:
    train_toy(tmp_path / "whole", *EMA)
    train_toy(tmp_path / "cut", *EMA, f"schedule.micro_batch={micro}")
    for whole, cut in zip(log_lines(tmp_path / "whole"), log_lines(tmp_path / "cut"), strict=True):
        for name in ("loss", "error", "part", "gradient_norm"):
            assert cut[name] == pytest.approx(whole[name], rel=1e-5), name
    assert_close_weights(tmp_path / "cut", tmp_path / "whole")


def shared_toy(folder: str, overrides: tuple[str, ...], stop_at: int | None) -> None:
    train_toy(Path(folder), *overrides, stop_at=stop_at)


def test_two_processes_are_one(tmp_path: Path) -> None:
    train_toy(tmp_path / "one", *EMA)
    pair = begin_pair(shared_toy, str(tmp_path / "two"), (*EMA, "schedule.micro_batch=2"), None)
    assert finish(pair) == [0, 0]
    curves = [[line["loss"] for line in log_lines(tmp_path / name)] for name in ("one", "two")]
    assert len(curves[0]) == 6
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert_close_weights(tmp_path / "two", tmp_path / "one")


def sharded_toy(folder: str, stop_at: int | None) -> None:
    """Train with FSDP, which accelerate itself leaves to GPUs."""
    recipe = tiny_recipe(*EMA, "schedule.micro_batch=2")
    accelerator = start(recipe, Path(folder), "cpu")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="no_wrap", cpu_ram_efficient_loading=False
    )
    shard_on_cpus(accelerator, plugin)
    toy = Toy()
    train(toy, recipe, Path(folder), accelerator, stop_at=stop_at, say=lambda _line: None)
    assert sharded(accelerator)
    assert all(isinstance(value, DTensor) for value in toy.model.parameters())


@pytest.mark.slow
def test_sharded_weights_are_saved_whole_and_learn_the_same(tmp_path: Path) -> None:
    assert finish(begin_pair(sharded_toy, str(tmp_path / "sharded"), 24)) == [0, 0]
    assert finish(begin_pair(sharded_toy, str(tmp_path / "sharded"), None)) == [0, 0]
    _, one = train_toy(tmp_path / "one", *EMA)
    assert_close_weights(tmp_path / "sharded", tmp_path / "one")
    exported = Toy()
    assert load_trained(exported, tiny_recipe(*EMA), tmp_path / "sharded") == 48
    for name, value in exported.model.state_dict().items():
        torch.testing.assert_close(value, one.model.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_alone_and_the_other_way_round(tmp_path: Path) -> None:
    assert finish(begin_pair(shared_toy, str(tmp_path / "two"), EMA, 24)) == [0, 0]
    assert train_toy(tmp_path / "two", *EMA)[0] == 48
    train_toy(tmp_path / "one", *EMA, stop_at=24)
    assert finish(begin_pair(shared_toy, str(tmp_path / "one"), EMA, None)) == [0, 0]
    train_toy(tmp_path / "whole", *EMA)
    for run in ("one", "two"):
        assert_close_weights(tmp_path / run, tmp_path / "whole")


# --- stopped and continued ------------------------------------------------


@pytest.mark.parametrize("stops", [(8,), (16, 40), (8, 16, 24, 32, 40)])
def test_stopped_and_resumed_is_uninterrupted(tmp_path: Path, stops: tuple[int, ...]) -> None:
    _, whole = train_toy(tmp_path / "whole", *EMA)
    for stop in stops:
        assert train_toy(tmp_path / "parts", *EMA, stop_at=stop)[0] == stop
    assert train_toy(tmp_path / "parts", *EMA)[0] == 48
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    assert not torch.equal(whole.followed, torch.zeros(()))
    lines = [log_lines(tmp_path / name) for name in ("whole", "parts")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def test_a_constant_rate_may_train_longer(tmp_path: Path) -> None:
    train_toy(tmp_path / "longer", "schedule.steps=3")
    assert train_toy(tmp_path / "longer")[0] == 48
    train_toy(tmp_path / "whole")
    assert_same_state(tmp_path / "longer", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_after_the_step(tmp_path: Path, number: signal.Signals) -> None:
    def at(first: int, _losses: Any) -> None:
        if first == 16:
            os.kill(os.getpid(), number)
            time.sleep(0)  # the handler runs between two instructions

    before = signal.getsignal(number)
    assert train_toy(tmp_path / "parts", *EMA, toy=Toy(at=at))[0] == 24
    assert signal.getsignal(number) is before
    assert read_state(tmp_path / "parts" / FILE)["seen"] == 24
    train_toy(tmp_path / "parts", *EMA)
    train_toy(tmp_path / "whole", *EMA)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_a_second_interrupt_interrupts(tmp_path: Path) -> None:
    def at(first: int, _losses: Any) -> None:
        if first == 16:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0)

    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path, toy=Toy(at=at))
    assert train_toy(tmp_path)[0] == 48


def slow_toy(folder: str) -> None:
    def at(_first: int, _losses: Any) -> None:
        time.sleep(0.02)

    train_toy(Path(folder), "schedule.steps=100000", toy=Toy(at=at))


@pytest.mark.parametrize("count", [1, 2])
def test_terminated_processes_end_well_at_the_same_step(tmp_path: Path, count: int) -> None:
    processes = [begin(slow_toy, str(tmp_path))] if count == 1 else begin_pair(slow_toy, str(tmp_path))
    until = time.monotonic() + 60
    while not (tmp_path / "log.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.02)
    processes[-1].terminate()  # one alone: it tells the other
    assert finish(processes) == [0] * count
    assert read_state(tmp_path / FILE)["seen"] == log_lines(tmp_path)[-1]["seen"] > 0


# --- what goes wrong ------------------------------------------------------


@pytest.mark.parametrize("broken", ["loss", "part"])
def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path, broken: str) -> None:
    def at(first: int, losses: dict[str, torch.Tensor]) -> None:
        if first == 24:
            losses[broken] *= math.nan
            losses["loss"] *= math.nan

    save_always = "watch.save_minutes=1e-9"
    with pytest.raises(TrainingError, match=rf"at step 4 {broken} .*state\.pt is the last good state"):
        train_toy(tmp_path, save_always, toy=Toy(at=at))
    assert read_state(tmp_path / FILE)["seen"] == 24
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path).values())
    assert train_toy(tmp_path, save_always)[0] == 48
    train_toy(tmp_path / "whole", save_always)
    assert_same_state(tmp_path, tmp_path / "whole")


def test_a_run_that_breaks_before_it_was_saved_says_so(tmp_path: Path) -> None:
    def at(_first: int, losses: dict[str, torch.Tensor]) -> None:
        losses["loss"] *= math.inf

    with pytest.raises(TrainingError, match=r"at step 1 loss .*nothing was saved before"):
        train_toy(tmp_path, toy=Toy(at=at))
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("rate", [1e30, 1e39])
def test_a_rate_that_blows_up_leaves_no_broken_state(tmp_path: Path, rate: float) -> None:
    """At 1e39 the weights overflow in a step whose loss and gradient were fine."""
    with pytest.raises(TrainingError, match="not a finite number"):
        train_toy(tmp_path, "watch.save_minutes=1e-9", f"optimizer.learning_rate={rate}")
    if (tmp_path / FILE).exists():
        assert all(bool(value.isfinite().all()) for value in weights(tmp_path).values())


def broken_in_one(folder: str) -> None:
    def at(first: int, losses: dict[str, torch.Tensor]) -> None:
        if first == 20:  # the second process, third step
            losses["loss"] *= math.nan

    with pytest.raises(TrainingError, match="at step 3 loss"):
        train_toy(Path(folder), toy=Toy(at=at))


@pytest.mark.slow
def test_a_loss_that_breaks_in_one_process_ends_both(tmp_path: Path) -> None:
    assert finish(begin_pair(broken_in_one, str(tmp_path))) == [0, 0]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"schedule\.batch: 3 processes.*found 8"):
        Plan.of(tiny_recipe(), 3)
    with pytest.raises(TrainingError, match=r"schedule\.batch"):
        Plan.of(tiny_recipe(), 16)
    assert Plan.of(tiny_recipe("schedule.micro_batch=2"), 2) == Plan(8, 2, 2, 2)
    assert Plan.of(tiny_recipe(), 4) == Plan(8, 2, 1, 4)


@pytest.mark.parametrize(("micro", "world"), [(8, 1), (2, 2), (1, 4), (4, 2)])
def test_a_plan_covers_a_step_once(micro: int, world: int) -> None:
    plan = Plan.of(tiny_recipe(f"schedule.micro_batch={micro}"), world)
    rows = [
        plan.first(part, rank) + row
        for part in range(plan.parts)
        for rank in range(world)
        for row in range(plan.micro)
    ]
    assert sorted(rows) == list(range(8))


@pytest.mark.parametrize(
    ("override", "device", "words"),
    [
        ("precision=fp16", "cpu", r"precision: float16 training needs a GPU.*bf16 or fp32"),
        ("precision=fp32", "cuda", r"--device: .*no CUDA device.*cpu or auto"),
        ("watch.trackers=[wandb]", "cpu", r"watch\.trackers: .*not installed.*wandb"),
    ],
)
def test_what_is_not_available_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, device: str, words: str
) -> None:
    monkeypatch.setattr(processes, "get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=words):
        start(tiny_recipe(override), tmp_path, device)


def test_tensorboard_shows_the_curve_of_the_log(tmp_path: Path) -> None:
    train_toy(tmp_path, "watch.trackers=[tensorboard]", stop_at=24)
    train_toy(tmp_path, "watch.trackers=[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown: dict[int, float] = {}
    for folder in {file.parent for file in tmp_path.rglob("events.out.tfevents*")}:
        events = EventAccumulator(str(folder)).Reload()
        if "loss" in events.Tags()["scalars"]:
            shown |= {event.step: event.value for event in events.Scalars("loss")}
    assert shown == pytest.approx({line["seen"]: line["loss"] for line in log_lines(tmp_path)})
    assert sorted(shown) == [8, 16, 24, 32, 40, 48]


def test_state_of_another_recipe_is_refused_and_kept(tmp_path: Path) -> None:
    train_toy(tmp_path, stop_at=8)
    before = (tmp_path / FILE).read_bytes()
    for change in ("optimizer.betas=[0.5, 0.9]", "schedule.seed=4", "schedule.batch=16", "ema.decay=0.5"):
        with pytest.raises(TrainingError, match=r"state\.pt: .*another recipe.*--folder.*--restart"):
            train_toy(tmp_path, change)
    assert (tmp_path / FILE).read_bytes() == before


# --- learning rate, average, log ------------------------------------------


def test_learning_rate_at_its_ends() -> None:
    cosine = tiny_recipe("schedule.steps=100", "optimizer.schedule=cosine", "optimizer.warmup_steps=10")
    rates = [learning_rate(cosine, 8 * step) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4, rel=1e-3)
    assert max(rates) <= 1e-3
    assert rates[9] == pytest.approx(1e-3, rel=0.03)
    assert rates[100] == pytest.approx(1e-5)
    assert rates[50] == pytest.approx((0.01 + 0.99 / 2) * 1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    constant = tiny_recipe("optimizer.warmup_steps=4")
    assert [learning_rate(constant, 8 * step) * 1e3 for step in range(6)] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 1]
    )
    assert learning_rate(tiny_recipe(), 0) == 1e-3


def test_the_average_follows_the_weights_step_by_step(tmp_path: Path) -> None:
    at_start = Toy().model.state_dict()
    average = {name: value.double() for name, value in at_start.items()}
    for step in range(1, 7):
        train_toy(tmp_path, "ema.decay=0.5", stop_at=8 * step)
        keep = min(0.5, (1 + step) / (10 + step))
        for name, value in read_state(tmp_path / FILE)["model"].items():
            average[name] = keep * average[name] + (1 - keep) * value.double()
    state = read_state(tmp_path / FILE)
    for name, value in state["average"].items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, state["model"][name])


def test_one_step_is_that_of_a_plain_adamw(tmp_path: Path) -> None:
    settings = ("schedule.steps=3", "optimizer.clip=0.1", "optimizer.weight_decay=0.3")
    _, toy = train_toy(tmp_path, *settings)
    plain = Toy()
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=1e-3, weight_decay=0.3, fused=False)
    for step, line in enumerate(log_lines(tmp_path)):
        losses = plain.losses(plain.model, Piece(8 * step, 8, Dice(3, 8 * step, 8, 0, 8)))
        optimizer.zero_grad()
        losses["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 0.1)
        optimizer.step()
        assert line["loss"] == pytest.approx(float(losses["loss"].detach()), rel=1e-6)
        assert line["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)
    for ours, theirs in zip(toy.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_finished_run_trains_no_further_and_leaves_the_average_in_the_model(tmp_path: Path) -> None:
    _, toy = train_toy(tmp_path, *EMA)
    state, (seen, again), loaded = read_state(tmp_path / FILE), train_toy(tmp_path, *EMA), Toy()
    assert load_trained(loaded, tiny_recipe(*EMA), tmp_path) == seen == 48
    assert len(log_lines(tmp_path)) == 6
    for name, value in state["average"].items():
        assert not torch.equal(value, state["model"][name]), name
        for each in (toy, again, loaded):
            assert torch.equal(each.model.state_dict()[name], value), name
    assert torch.equal(loaded.followed, toy.followed)


def test_a_trained_network_is_missing_or_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="python -m training tiny"):
        load_trained(Toy(), tiny_recipe(), tmp_path)
    train_toy(tmp_path)
    with pytest.raises(TrainingError, match=r"state\.pt"):
        load_trained(Toy(width=8), tiny_recipe(), tmp_path)


@pytest.mark.parametrize(
    "tail", ["\n", '\n{"seen": 24, "loss"', '\n{"seen": 24, "loss": 1.0}', "\n\n", "\n\0\0", ""]
)
def test_what_a_kill_left_in_the_log_is_dropped(tmp_path: Path, tail: str) -> None:
    train_toy(tmp_path, stop_at=16)
    path = tmp_path / "log.jsonl"
    lost = json.dumps({"seen": 24, "loss": 1.0}) + tail if tail else ""
    whole = path.read_text(encoding="utf-8")
    # Without a tail the last line has lost its end, and must not be glued to the next.
    path.write_text(whole + lost if tail else whole.removesuffix("\n"), encoding="utf-8")
    train_toy(tmp_path)
    assert [line["seen"] for line in log_lines(tmp_path)] == [8, 16, 24, 32, 40, 48]


def test_log_and_status_line_say_how_it_goes(tmp_path: Path) -> None:
    said: list[str] = []
    recipe, run = tiny_recipe(), tmp_path / "run"
    train(Toy(), recipe, run, start(recipe, run, "cpu"), say=said.append)
    assert "0 of 48 images seen" in said[0]
    assert "97 parameters learn" in said[0]
    for word in ("run: 48/48 images", "/s", "loss", "part", "lr 0.001", "gradient norm", "GiB", "left"):
        assert word in said[-1]
    lines = log_lines(run)
    assert [line["seen"] for line in lines] == [8, 16, 24, 32, 40, 48]
    assert lines[0].keys() >= {"lr", "gradient_norm", "images_per_second", "memory_gib"}
    assert lines[0]["loss"] == pytest.approx(lines[0]["error"] + lines[0]["part"])
