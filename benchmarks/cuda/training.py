"""How many images a second a training step takes: the published script, ours eager, ours compiled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.cuda.measurement import Measurement
from benchmarks.training import flops
from benchmarks.training.breakdown import breakdown
from benchmarks.training.compare import OURS, SCRIPT, Candidate, Comparison, Settings
from benchmarks.training.scenario import Scenario, open_scenario
from benchmarks.training.ways import Way, ours


def measure(asked: Measurement, recipe: str) -> None:
    """Ask each way for its rate in turn, on Stable Diffusion v1.4's networks with random weights."""
    asked.note = (
        f"A step of {recipe} at 512 px, random weights. `whole` is the share of the measured peak of matrix "
        "products that the needed operations come to. Losses of the first step must agree."
    )
    scenario = open_scenario(recipe, size="smoke" if asked.smoke else "full", device=asked.device)
    batch, micro = scenario.recipe.schedule.batch, scenario.recipe.schedule.micro_batch
    asked.keep({"what": scenario.networks, "batch": batch, "micro_batch": micro})
    comparison = Comparison(scenario, Settings(1, 1, park=not asked.smoke), lambda way: None, print)
    needed = flops.count(scenario).needed
    ways: list[tuple[str, Way | None, float]] = [
        (SCRIPT, None, 50),
        (OURS, ours(scenario.recipe, compiled=False), 40),
        (f"{OURS}, compiled", ours(scenario.recipe, compiled=True), 100),
    ]
    for name, way, seconds in ways:
        if way is not None and way.compiled and asked.smoke:
            continue
        asked.ask(name, seconds, partial(_rate, asked, comparison, scenario, name, way, needed))
    rates = {answer["what"]: answer["rate"] for answer in asked.answers if "rate" in answer}
    for name in rates.keys() - {SCRIPT}:
        if SCRIPT in rates:
            asked.keep({"what": f"{name}: ratio", "times_the_script": rates[name] / rates[SCRIPT]})


def _rate(
    asked: Measurement,
    comparison: Comparison,
    scenario: Scenario,
    name: str,
    way: Way | None,
    needed: int,
) -> Mapping[str, Any]:
    candidate: Candidate = comparison.load(name, way)
    turn = comparison.turn(candidate.run)
    batch = scenario.recipe.schedule.batch
    if way is not None:
        candidate.run.move(asked.device)
        for kind, seconds in breakdown(candidate.run, asked.device).items():
            asked.keep({"what": f"{name}: breakdown", "class": kind, "ms": 1e3 * seconds})
    return {
        "rate": batch / turn.seconds,
        "step_s": turn.seconds,
        "whole": needed * batch / turn.seconds / comparison.matmul_peak,
        "peak_gb": turn.memory / 1e9 if turn.memory else None,
        "first_loss": candidate.loss,
    }
