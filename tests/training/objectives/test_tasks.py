"""What a recipe trains: every objective on tiny networks, from a checkpoint to trained weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline
from torch import Tensor

from tests.tiny_checkpoint import make_checkpoint
from tests.training.helpers import assert_same_state, log_lines, tiny_recipe, train_real
from training.build import build_task
from training.errors import TrainingError
from training.objectives.inputs import mirrored
from training.recipes.schema import Recipe
from training.run.processes import start
from training.run.randomness import Dice
from training.run.state import FILE, read_state
from training.run.task import Piece
from training.students.feature_taps import feature_pairs

OBJECTIVES = ("prediction", "distillation", "consistency")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher; runs in it share their cache."""
    folder = tmp_path_factory.mktemp("runs")
    make_checkpoint(folder / "sd")
    return folder


def built(place: Path, *overrides: str, objective: str = "prediction") -> Any:
    recipe = tiny_recipe(*overrides, teacher=place / "sd", objective=objective)
    accelerator = start(recipe, place / "built", "cpu")
    return build_task(recipe, folder=place / "built", accelerator=accelerator, say=lambda _line: None)


def piece(seen: int = 0, count: int = 4, first: int = 0, total: int = 4) -> Piece:
    return Piece(seen + first, count, Dice(3, seen, total, first, count))


def short(place: Path, objective: str, *overrides: str) -> Recipe:
    """Return a recipe of three steps of four."""
    sizes = ("schedule.steps=3", "schedule.batch=4", "schedule.micro_batch=4", "ema.decay=0.9")
    return tiny_recipe(*sizes, *overrides, teacher=place / "sd", objective=objective)


@pytest.fixture(scope="module")
def whole(place: Path) -> Callable[[str], Path]:
    """The folder of a short run of an objective, which was not interrupted."""

    def of(objective: str) -> Path:
        folder = place / f"whole-{objective}"
        if not folder.exists():
            train_real(folder, short(place, objective))
        return folder

    return of


def curve(folder: Path) -> list[float]:
    return [line["loss"] for line in log_lines(folder) if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_resumed_equals_uninterrupted(place: Path, whole: Any, objective: str) -> None:
    recipe = short(place, objective)
    train_real(place / f"parts-{objective}", recipe, stop_at=4)
    train_real(place / f"parts-{objective}", recipe)
    assert_same_state(whole(objective), place / f"parts-{objective}")
    assert len(curve(whole(objective))) == 3
    assert all(math.isfinite(loss) for loss in curve(whole(objective)))


@pytest.mark.parametrize(
    "objective", ["distillation", *(pytest.param(name, marks=pytest.mark.slow) for name in OBJECTIVES[::2])]
)
def test_pieces_average_to_the_whole_step(place: Path, objective: str) -> None:
    task = built(place, objective=objective)
    whole = task.losses(task.model, piece(seen=8))
    parts = [task.losses(task.model, piece(seen=8, count=2, first=first)) for first in (0, 2)]
    for name, value in whole.items():
        mean = sum(float(part[name].detach()) for part in parts) / 2
        assert mean == pytest.approx(float(value.detach()), rel=1e-5), name


def test_a_share_of_the_timesteps_is_of_the_noisier_half(place: Path) -> None:
    task = built(place, "objective.noisier_half=0.75")
    seen: list[Tensor] = []
    task.model.unet.register_forward_pre_hook(lambda _unet, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        for step in range(32):
            task.losses(task.model, piece(seen=step * 64, count=64, total=64))
    steps = torch.cat(seen)
    # Of 2,048 coins the share strays by 0.0096; quarters of the range are even within each half.
    shares = [float(((steps >= low) & (steps < low + 250)).float().mean()) for low in range(0, 1000, 250)]
    assert shares == pytest.approx([0.125, 0.125, 0.375, 0.375], abs=0.04)


def test_the_outer_levels_hear_the_names_of_objects_in_a_share_of_the_pictures(place: Path) -> None:
    wanted = ("objective.inner_captions=0.75", "objective.train_text_encoder=true", "data.cache_text=false")
    task = built(place, *wanted, "teacher=embedded:scenes-sd")
    whole: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda _model, inputs: whole.append(inputs[5].whole))
    with torch.no_grad():
        for step in range(4):
            task.losses(task.model, piece(seen=step * 32, count=32, total=32))
    # Of 128 coins the share strays by 0.038.
    assert float(torch.cat(whole).float().mean()) == pytest.approx(0.25, abs=0.16)
    with pytest.raises(TrainingError, match=r"objective\.inner_captions: .*same pieces \(found 'red'\)"):
        built(place, *wanted).losses(task.model, piece())


def test_readouts_count_beside_the_prediction_and_learn(place: Path) -> None:
    task = built(place, "objective.readout=0.5", "objective.min_snr=5.0")
    first = task.losses(task.model, piece())
    plain = built(place, "objective.min_snr=5.0")
    alone = plain.losses(plain.model, piece())
    torch.testing.assert_close(first["loss"], alone["loss"] + 0.5 * first["readout"])
    optimizer = torch.optim.Adam(task.model.parameters(), 1e-2)
    for _ in range(30):
        losses = task.losses(task.model, piece())
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses["readout"] < 0.9 * first["readout"]


def test_readouts_take_latents_that_do_not_halve_evenly(place: Path) -> None:
    task = built(place, "objective.readout=0.5", "data.resolution=48")
    losses = task.losses(task.model, piece())
    losses["loss"].backward()
    assert math.isfinite(float(losses["readout"]))


@pytest.mark.slow
def test_validation_does_not_change_the_course(place: Path, whole: Any) -> None:
    watched = ("watch.validation_images=4", "watch.validation_rows=5")
    train_real(place / "watched", short(place, "distillation", *watched))
    assert_same_state(whole("distillation"), place / "watched")
    measured = [line for line in log_lines(place / "watched") if "error_at_50" in line]
    assert [line["seen"] for line in measured] == [4, 8, 12]
    assert {f"error_at_{step}" for step in (50, 250, 450, 650, 850)} <= set(measured[0])


@pytest.mark.slow
def test_validation_measures_the_same_thing_every_time(place: Path) -> None:
    task = built(place, "watch.validation_rows=5")
    first = task.validate(task.model)
    task.losses(task.model, piece())
    torch.randn(3)
    assert task.validate(task.model) == first
    # Against the definition, at one step.
    examples = task.inputs.pairs.take(range(5))
    dice = Dice(3, 0, 5, 0, 5)
    clean = (examples.mean.float() + examples.deviation.float() * dice.normal(4, 8, 8)) * 0.18215
    noise = dice.normal(4, 8, 8)
    signal = task.parts.scheduler.alphas_cumprod[450].double()
    noisy = signal.sqrt().float() * clean + (1 - signal).sqrt().float() * noise
    with torch.no_grad():
        guess = task.parts.unet(noisy, 450, examples.text.float()).sample
    assert first["error_at_450"] == pytest.approx(float((guess - noise).square().mean()), rel=1e-4)


def test_a_cast_for_speed_does_not_round_what_is_exported(place: Path) -> None:
    task = built(place, "precision=bf16", "data.cache=false", "data.cache_text=false")
    before = task.parts.vae.encoder.conv_in.weight.clone()
    examples = task.inputs.read((0, 2))
    task.inputs.latents(examples, piece(count=2).dice)
    assert torch.equal(task.parts.vae.encoder.conv_in.weight, before)


def test_a_consistency_model_teaches_nobody_here(place: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "lcm", unet={"time_cond_proj_dim": 8})
    recipe = tiny_recipe(teacher=tmp_path / "lcm")
    with pytest.raises(TrainingError, match=r"teacher: .*a consistency model.*time_cond_proj_dim: 8"):
        build_task(recipe, folder=tmp_path / "run", accelerator=start(recipe, tmp_path, "cpu"))


def test_pictures_that_the_vae_does_not_divide_are_refused_uncached_too(place: Path) -> None:
    with pytest.raises(TrainingError, match=r"data\.resolution: the VAE divides pictures by"):
        built(place, "data.cache=false", "data.cache_text=false", "data.resolution=63")


@pytest.mark.slow
def test_bfloat16_trains_float32_weights_on_a_cpu(place: Path, whole: Any) -> None:
    task = train_real(place / "bf16", short(place, "distillation", "precision=bf16"))
    state = read_state(place / "bf16" / FILE)
    assert {value.dtype for value in state["model"].values()} == {torch.float32}
    assert {value.dtype for value in task.teacher.parameters()} == {torch.bfloat16}
    assert curve(place / "bf16") == pytest.approx(curve(whole("distillation")), rel=0.02)
    assert curve(place / "bf16") != curve(whole("distillation"))


@pytest.mark.slow
def test_a_student_of_all_losses_learns(place: Path) -> None:
    train_real(place / "learns", short(place, "distillation", "schedule.steps=10"))
    lines = log_lines(place / "learns")
    for name in ("output", "feature"):
        assert sum(line[name] for line in lines[-3:]) < 0.9 * sum(line[name] for line in lines[:3]), name
    for line in lines:
        assert line["loss"] == pytest.approx(line["task"] + line["output"] + line["feature"], rel=1e-5)


def test_a_distillation_step_is_what_its_parts_say(place: Path) -> None:
    """Latents, noise and steps from the dice; both networks on the same; features of the published pairs."""
    task = built(place, objective="distillation")
    losses = task.losses(task.model, piece(seen=8))
    dice = Dice(3, 8, 4, 0, 4)
    examples = task.inputs.read((8, 4))
    clean = (examples.mean.float() + examples.deviation.float() * dice.normal(4, 8, 8)) * 0.18215
    noise, steps = dice.normal(4, 8, 8), dice.integers(1000)
    signal = task.parts.scheduler.alphas_cumprod.double()[steps].view(-1, 1, 1, 1)
    noisy = (signal.sqrt() * clean + (1 - signal).sqrt() * noise).float()
    caught: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    networks = {"student": task.model.unet, "teacher": task.teacher.unet}
    guesses = {}
    for who, network in networks.items():
        for tap in [pair[who == "student"] for pair in feature_pairs("bk-sdm", "tiny")]:

            def keep(_m: Any, _i: Any, output: Any, into: list[Tensor] = caught[who]) -> None:
                into.append(output[0] if isinstance(output, tuple) else output)

            network.get_submodule(tap).register_forward_hook(keep)
        with torch.no_grad():
            guesses[who] = network(noisy, steps, examples.text.float()).sample
    wanted = {
        "task": (guesses["student"] - noise).square().mean(),
        "output": (guesses["student"] - guesses["teacher"]).square().mean(),
        "feature": sum(
            (mine - theirs).square().mean()
            for mine, theirs in zip(caught["student"], caught["teacher"], strict=True)
        ),
    }
    for name, value in wanted.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.slow
def test_the_target_follows_the_student_and_the_teacher_stays(place: Path) -> None:
    fresh = built(place, objective="consistency")
    task = train_real(place / "target", short(place, "consistency"), stop_at=4)
    name = "unet.conv_in.weight"
    start = fresh.model.state_dict()[name].double()
    student = read_state(place / "target" / FILE)["model"][name].double()
    target = task.target.state_dict()[name].double()
    torch.testing.assert_close(target, 0.8 * start + 0.2 * student, rtol=1e-6, atol=1e-8)
    assert not torch.equal(start, student)
    torch.testing.assert_close(task.teacher.state_dict(), fresh.teacher.state_dict(), rtol=0, atol=0)


def test_the_teacher_is_called_once_for_both_branches(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = built(place, objective="consistency")
    calls: list[tuple[Tensor, ...]] = []
    task.teacher.unet.register_forward_pre_hook(lambda _module, inputs: calls.append(inputs))
    encoded: list[int] = []
    task.parts.text_encoder.register_forward_pre_hook(lambda _module, inputs: encoded.append(1))
    for seen in (0, 8):
        task.losses(task.model, piece(seen=seen))
    assert len(calls) == 2
    assert len(encoded) == 1  # the empty prompt; captions are cached
    noisy, steps, text = calls[0]
    assert torch.equal(noisy[:4], noisy[4:])
    assert torch.equal(steps[:4], steps[4:])
    assert not torch.equal(text[:4], text[4:])
    tokenizer, encoder = task.parts.tokenizer, task.parts.text_encoder
    empty = tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    torch.testing.assert_close(text[4:], encoder(empty).last_hidden_state.expand(4, -1, -1))


def test_a_consistency_step_is_what_its_parts_say(place: Path) -> None:
    task = built(place, objective="consistency")
    loss = task.losses(task.model, piece(seen=8))["loss"].item()
    dice = Dice(3, 8, 4, 0, 4)
    examples = task.inputs.read((8, 4))
    clean = (examples.mean.float() + examples.deviation.float() * dice.normal(4, 8, 8)) * 0.18215
    noise, index, uniform = dice.normal(4, 8, 8), dice.integers(50), dice.uniform()
    config = task.parts.scheduler.config
    ddim = DDIMScheduler.from_config(
        config, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing", steps_offset=0
    )
    ddim.set_timesteps(50)
    lcm = LCMScheduler.from_config(config)
    lcm.set_timesteps(4)
    steps, w = 20 * index + 19, 5 + 10 * uniform
    noisy = ddim.add_noise(clean, noise, steps)
    tokenizer, encoder = task.parts.tokenizer, task.parts.text_encoder
    empty = tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    embedded = StableDiffusionPipeline.get_guidance_scale_embedding(None, w, 8)

    def clean_of(network: Any, latents: Tensor, at: Tensor, text: Tensor, row: int) -> Tensor:
        output = network(latents, at, text, timestep_cond=embedded[row : row + 1]).sample
        signal = ddim.alphas_cumprod[at].view(-1, 1, 1, 1)
        predicted = (latents - (1 - signal).sqrt() * output) / signal.sqrt()
        skip, out = lcm.get_scalings_for_boundary_condition_discrete(at)
        return out * predicted + skip * latents

    errors = []
    with torch.no_grad():
        nothing = encoder(empty).last_hidden_state
        for row in range(4):
            at, latents = steps[row : row + 1], noisy[row : row + 1]
            text = examples.text[row : row + 1].float()
            with_prompt = task.teacher.unet(latents, at, text).sample
            without = task.teacher.unet(latents, at, nothing).sample
            guided = with_prompt + w[row] * (with_prompt - without)
            before = ddim.step(guided, int(at), latents, eta=0.0).prev_sample
            mine = clean_of(task.model.unet, latents, at, text, row)
            aim = clean_of(task.target.unet, before, (at - 20).clamp(min=0), text, row)
            errors.append((((mine - aim) ** 2 + 1e-6).sqrt() - 1e-3).mean())
    assert loss == pytest.approx(float(torch.stack(errors).mean()), rel=1e-3)


def test_dropped_captions_become_the_empty_prompt(place: Path) -> None:
    task = built(place)
    inputs, dice = task.inputs, Dice(0, 0, 1000, 0, 1000)
    text, nothing = torch.ones(1000, 7, 2), torch.zeros(1, 7, 2)
    dropped = inputs.drop_captions(text, nothing, 0.2, dice)
    share = float((dropped[:, 0, 0] == 0).float().mean())
    assert share == pytest.approx(0.2, abs=0.05)
    assert {float(row.float().mean()) for row in dropped} == {0.0, 1.0}
    assert inputs.drop_captions(text, nothing, 0.0, dice) is text


def test_latents_vary_as_the_posterior_says(place: Path) -> None:
    """A picture is not one frozen sample: its mean and deviation are kept, and drawn from anew."""
    task = built(place)
    examples = task.inputs.pairs.take([0] * 400)
    latents = task.inputs.latents(examples, Dice(1, 0, 400, 0, 400)) / 0.18215
    error = (latents.mean(0) - examples.mean[0].float()) / (examples.deviation[0].float() / 20)
    assert float(error.abs().max()) < 5
    ratio = latents.std(0) / examples.deviation[0].float()
    assert 0.8 < float(ratio.min()) <= float(ratio.max()) < 1.2


@pytest.mark.slow
def test_live_pictures_give_the_latents_of_the_cache(place: Path) -> None:
    losses = []
    for overrides in (["data.cache=false", "data.cache_text=false"], []):
        task = built(place, *overrides)
        losses.append(task.losses(task.model, piece())["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # the cache is float16


def test_mirrored_pictures_are_half_and_fixed_by_their_place() -> None:
    sides = [mirrored(3, ordinal) for ordinal in range(4000)]
    assert sum(sides) == pytest.approx(2000, abs=150)
    assert sides == [mirrored(3, ordinal) for ordinal in range(4000)]
    assert sides != [mirrored(4, ordinal) for ordinal in range(4000)]


@pytest.mark.slow
def test_text_encoder_that_learns_is_trained_and_saved(place: Path) -> None:
    settings = ("objective.train_text_encoder=true", "data.cache_text=false", "schedule.steps=1")
    fresh = built(place, *settings).model.text_encoder.state_dict()
    train_real(place / "text", short(place, "prediction", *settings))
    state = read_state(place / "text" / FILE)["model"]
    moved = [name for name, value in fresh.items() if not torch.equal(state[f"text_encoder.{name}"], value)]
    assert len(moved) > len(fresh) / 2


@pytest.mark.slow
def test_speed_settings_change_nothing_that_is_learned(place: Path, whole: Any) -> None:
    settings = ("speed.channels_last=true", "speed.gradient_checkpointing=true")
    train_real(place / "quick", short(place, "distillation", *settings))
    assert curve(place / "quick") == pytest.approx(curve(whole("distillation")), rel=1e-5)
