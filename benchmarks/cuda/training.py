"""How many images a second a training step takes: the published script, ours eager, ours compiled."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cuda.breakdown import breakdown
from benchmarks.cuda.measurement import Measurement
from benchmarks.cuda.peaks import matmul_peak
from benchmarks.training.compare import OURS, SCRIPT
from benchmarks.training.scenario import Scenario, open_scenario
from benchmarks.training.ways import Way, ours, start
from pytest_sdbench.base.environment import synchronise
from pytest_sdbench.models.skeleton import known_keys, unet_inputs, unet_skeleton
from training.students.block_removal import student_config


def measure(asked: Measurement, recipe: str) -> None:
    """Ask each way for its rate in turn, on Stable Diffusion v1.4's networks with random weights."""
    asked.note = (
        f"A step of {recipe} at its resolution, random weights. `whole` is the share of the measured peak of "
        "matrix products that the needed operations come to: teacher, student and its gradient. The losses "
        "of the first step have to agree."
    )
    scenario = open_scenario(recipe, size="smoke" if asked.smoke else "full", device=asked.device)
    schedule = scenario.recipe.schedule
    peak = matmul_peak(asked.device, scenario.half, seconds=0.3 if asked.smoke else 1.5)
    asked.keep(
        {"what": scenario.networks, "batch": schedule.batch, "micro_batch": schedule.micro_batch}
        | {"tflops_peak": peak / 1e12}
    )
    flops = needed_flops(scenario)
    ways: list[tuple[str, Way | None, float]] = [
        (SCRIPT, None, 50),
        (OURS, ours(scenario.recipe, compiled=False), 40),
        (f"{OURS}, compiled", ours(scenario.recipe, compiled=True), 100),
    ]
    for name, way, seconds in ways:
        if way is None or not (way.compiled and asked.smoke):
            call = partial(_rate, asked, scenario, name, way, peak / flops)
            asked.ask(f"{name}: all of it", seconds, call)
    rates = {answer["what"]: answer["rate"] for answer in asked.answers if "rate" in answer}
    for name in [name for name in rates if name != SCRIPT and SCRIPT in rates]:
        asked.keep({"what": f"{name}: ratio", "times_the_script": rates[name] / rates[SCRIPT]})


def needed_flops(scenario: Scenario) -> int:
    """Return the floating-point operations an image that a step cannot do without.

    Two for each multiplication and addition of a product: teacher, student and the student's gradient.
    """
    teacher = known_keys(scenario.parts.unet.config)
    student = known_keys(student_config(scenario.parts.unet.config, scenario.recipe.student.remove))
    side = scenario.pixels.shape[-1] // 8
    total = 0
    for config, trained in ((teacher, False), (student, True)):
        config = {**config, "sample_size": side}
        network = unet_skeleton(config).requires_grad_(trained)
        with FlopCounterMode(display=False) as counter:
            predicted = network(**unet_inputs(config)).sample
            if trained:
                predicted.sum().backward()
        total += int(counter.get_total_flops())
    return total


def _rate(
    asked: Measurement, scenario: Scenario, name: str, way: Way | None, most: float
) -> Mapping[str, Any]:
    """Return images a second of a way; `most` are those at the device's peak."""
    run = start(way, scenario)
    run.step()  # allocates the states of the optimiser, and compiles
    loss = run.losses["loss"]
    run.step()
    synchronise(str(asked.device))
    on_cuda = asked.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    steps = 1 if asked.smoke else 2
    began = time.perf_counter()
    for _ in range(steps):
        run.step()
    synchronise(str(asked.device))
    seconds = (time.perf_counter() - began) / steps
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_cuda else None
    rate = scenario.recipe.schedule.batch / seconds
    # Kept before the profiler begins: it may fail, and time may be up.
    asked.keep(
        {"what": name, "rate": rate, "step_s": seconds, "whole": rate / most}
        | {"peak_gb": peak, "first_loss": loss}
    )
    for kind, own in breakdown(run, asked.device).items():
        asked.keep({"what": f"{name}: breakdown", "class": kind, "ms": 1e3 * own})
    return {"steps": steps}
