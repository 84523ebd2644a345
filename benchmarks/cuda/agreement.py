"""Do precisions, batches, kills and company change what is measured? With the embedded family's weights."""

from __future__ import annotations

import gc
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cuda.measurement import Measurement
from benchmarks.cuda.process import failed, running
from benchmarks.evaluation.stages import UNET, watching
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.evidence import make_evidence
from pytest_sdbench.evaluation.sampler import Sampler
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import SequentialSeeds
from pytest_sdbench.store.shard_format import SHARD
from pytest_sdbench.store.shards import Evidence

CARD = "scenes-tiny"
SPEC = f"base: embedded:scenes-sd, unet: embedded:{CARD}"
PRECISIONS = (
    ("float16", False),
    ("bfloat16", False),
    ("float32", True),
    ("float16", True),
    ("bfloat16", True),
)
"""Types, eager and compiled, that are held against eager float32."""
_ENDING = 20.0
"""Seconds that pytest is given to write what it has found."""


def precision(asked: Measurement) -> None:
    """Ask by how much each precision moves each score, in standard errors at 5,000 images."""
    asked.note = (
        f"{CARD} under scenes-5k: the same prompts and noise in each. `errors` is the difference from eager "
        "float32 in standard errors of the score; a tenth is allowed."
    )
    if asked.smoke:
        torch.compiler.set_stance("force_eager")
    checkpoint, protocol = resolve(SPEC), _protocol(asked, "scenes-5k")
    found: dict[str, Mapping[str, Estimate | Undefined]] = {}
    with tempfile.TemporaryDirectory(prefix="sdbench-cuda-") as folder:

        def score(dtype: str, compiled: bool) -> Mapping[str, Any]:
            place = Path(folder) / f"{dtype}-{compiled}"
            workspace = Workspace(place, None, str(asked.device), dtype=dtype, progress=False)
            evaluation = evaluate(checkpoint, protocol, workspace, tuning=Tuning(compile=compiled))
            found.setdefault("float32", evaluation.estimates)
            worst = 0.0
            for name, estimate in evaluation.estimates.items():
                beside = found["float32"][name]
                if isinstance(estimate, Undefined) or isinstance(beside, Undefined):
                    asked.keep({"what": _name(dtype, compiled), "metric": name, "problem": "undefined"})
                    continue
                difference = estimate.value - beside.value
                errors = abs(difference) / beside.standard_error if beside.standard_error else None
                worst = max(worst, errors or 0.0)
                if estimate is not beside:
                    asked.keep(
                        {
                            "what": _name(dtype, compiled),
                            "metric": name,
                            "value": estimate.value,
                            "difference": difference,
                            "errors": errors,
                        }
                    )
            rate = evaluation.images_made / evaluation.seconds
            return {"images": evaluation.n, "rate_with_loading": rate, "largest_of_errors": worst}

        for dtype, compiled in (("float32", False), *(PRECISIONS[1:3] if asked.smoke else PRECISIONS)):
            asked.ask(_name(dtype, compiled), 30, partial(score, dtype, compiled))


def evidence(asked: Measurement) -> None:
    """Ask whether generator, kills, company and lack of memory leave every row as it was."""
    asked.note = f"{CARD} under scenes-quick; rows are compared bit for bit with those of an undisturbed run."
    checkpoint, protocol = resolve(SPEC), _protocol(asked, "scenes-quick")
    with tempfile.TemporaryDirectory(prefix="sdbench-cuda-") as name:
        folder = Path(name)
        undisturbed: list[Evidence] = []

        def draw() -> Mapping[str, Any]:
            made = make_evidence(checkpoint, protocol, _workspace(asked, folder / "undisturbed"))
            undisturbed.append(made.evidence)
            return {"images": made.images_made}

        def equal_after(disturb: Callable[[Path], Mapping[str, Any]], store: Path) -> Mapping[str, Any]:
            told = disturb(store)
            made = make_evidence(checkpoint, protocol, _workspace(asked, store))
            differing = _differences(undisturbed[0], made.evidence, protocol.n)
            return {**told, "made_afterwards": made.images_made, "columns_that_differ": differing}

        asked.ask("undisturbed", 15, draw)
        asked.ask("the generator in batches", 15, partial(_generator, asked, checkpoint, protocol))
        for what, disturb in (("killed", _killed), ("two processes", _two_processes)):
            asked.ask(what, 60, partial(equal_after, partial(disturb, asked), folder / what))
        if asked.device.type == "cuda":
            call = partial(_too_little, asked, checkpoint, protocol, folder, undisturbed)
            asked.ask("too little memory", 30, call)


def cards(asked: Measurement) -> None:
    """Ask what the suite says of speed and memory of every card."""
    asked.note = "`pytest --sdbench -m 'speed or memory'`: the report is NAME-report.json."
    report = asked.folder / f"{asked.name}-report.json"

    def judge() -> Mapping[str, Any]:
        selected = ["-k", CARD] if asked.smoke else []
        output = asked.folder / f"{asked.name}-output.txt"
        arguments = [
            *("-p", "pytest_sdbench.plugin", "--sdbench", "-q"),
            *("-m", "speed or memory", "--sdbench-device", str(asked.device)),
            *("--sdbench-json", str(report), "-p", "no:cacheprovider", *selected),
        ]
        code = f"import sys, pytest; sys.exit(pytest.main({arguments!r}))"
        with running(code, output) as process:
            try:
                status = process.wait(timeout=max(1.0, asked.left() - _ENDING))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # what pytest has found is then reported
                status = process.wait(timeout=_ENDING)
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return {"exit": status, "last_line": lines[-1] if lines else ""}

    asked.ask("speed and memory of the cards", 60, judge)


def _name(dtype: str, compiled: bool) -> str:
    return f"{dtype}, {'compiled' if compiled else 'eager'}"


def _protocol(asked: Measurement, name: str) -> Protocol:
    protocol = load_protocol(name)
    if not asked.smoke:
        return protocol
    sampling = protocol.sampling.model_copy(update={"steps": 1})
    return protocol.with_samples(SHARD + 40).model_copy(update={"sampling": sampling})


def _workspace(asked: Measurement, store: Path) -> Workspace:
    return Workspace(store, None, str(asked.device), progress=False)


def _differences(one: Evidence, other: Evidence, n: int) -> int:
    """Return how many columns of how many shards differ in a bit."""
    differing = 0
    for mine, theirs in zip(one.rows(n), other.rows(n), strict=True):
        differing += sum(not np.array_equal(mine[name], theirs[name], equal_nan=True) for name in mine)
    return differing


def _generator(asked: Measurement, checkpoint: Checkpoint, protocol: Protocol) -> Mapping[str, Any]:
    """Compare the noise of the first images: our batch, and diffusers' own pipeline one by one."""
    seeds = SequentialSeeds(kind="sequential", seed=1234, device=asked.device.type)  # type: ignore[arg-type]
    protocol = protocol.model_copy(update={"seeds": seeds})
    pipeline = load_pipeline(checkpoint, device=str(asked.device), dtype=protocol.sampling.dtype)
    prompts = load_prompts(protocol)[:8]
    seen: list[Any] = []

    def note(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(named.get("sample", arguments[0] if arguments else None))

    hook = pipeline.unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        Sampler(pipeline, protocol, prompts).draw(range(len(prompts)))
        batch = seen[0][len(prompts) :]  # the half without guidance has the same noise
        generator = torch.Generator(asked.device).manual_seed(seeds.seed)
        single = []
        for prompt in prompts:
            seen.clear()
            pipeline(
                prompt,
                num_inference_steps=1,
                guidance_scale=protocol.sampling.guidance,
                height=protocol.sampling.resolution,
                width=protocol.sampling.resolution,
                generator=generator,
                output_type="latent",
            )
            single.append(seen[0][1:])
    finally:
        hook.remove()
    differing = sum(not torch.equal(one, other) for one, other in zip(batch.split(1), single, strict=True))
    return {"images": len(prompts), "that_differ": differing}


def draw(device: str, smoke: bool, store: str) -> None:
    """Draw what is compared, as one of several processes."""
    asked = Measurement("draw", Path(store), torch.device(device), 10, smoke)
    make_evidence(resolve(SPEC), _protocol(asked, "scenes-quick"), _workspace(asked, Path(store)))


def _drawing(asked: Measurement, store: Path, number: int = 0) -> Any:
    """Draw in a process of its own."""
    arguments = f"{str(asked.device)!r}, {asked.smoke}, {str(store)!r}"
    return running(f"from benchmarks.cuda.agreement import draw; draw({arguments})", _output(store, number))


def _output(store: Path, number: int = 0) -> Path:
    """Return where what a process prints goes: beside its store."""
    return store.with_name(f"{store.name}-{number}.txt")


def _killed(asked: Measurement, store: Path) -> Mapping[str, Any]:
    """Kill a process that draws as soon as a shard of it is there."""
    with _drawing(asked, store) as process:
        while not list(store.rglob("shard-*")):
            if process.poll() is not None:
                raise failed(f"exit status {process.returncode} before the first shard", _output(store))
            time.sleep(0.05)
        process.kill()
    return {"shards_at_the_kill": len(list(store.rglob("shard-*")))}


def _two_processes(asked: Measurement, store: Path) -> Mapping[str, Any]:
    """Let two processes draw at once on one device."""
    with _drawing(asked, store) as one, _drawing(asked, store, 1) as other:
        for number, process in enumerate((one, other)):
            if process.wait(timeout=max(1.0, asked.left())):
                raise failed(f"exit status {process.returncode}", _output(store, number))
    return {"processes": 2}


def _too_little(
    asked: Measurement,
    checkpoint: Checkpoint,
    protocol: Protocol,
    folder: Path,
    undisturbed: Sequence[Evidence],
) -> Mapping[str, Any]:
    """Draw with a whole batch in the memory that lies halfway between what it needs and what an eighth needs.

    `unet_batches` are the numbers of latents in the U-Net's calls, with those that failed: halves of the
    first say that memory did run out.
    """
    some = protocol.with_samples(SHARD)

    def draw(batch: int, place: str) -> tuple[Evidence, int]:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        tuning = Tuning(batch_size=batch)
        made = make_evidence(checkpoint, some, _workspace(asked, folder / place), tuning=tuning)
        return made.evidence, torch.cuda.max_memory_reserved()

    (_, least), (_, most) = draw(SHARD // 8, "small"), draw(SHARD, "whole")
    allowed = (least + most) / 2
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(asked.device).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        with watching() as watch:
            made, _ = draw(SHARD, "halved")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    batches = sorted({span.samples for span in watch.spans if span.stage == UNET}, reverse=True)
    return {
        "allowed_gb": allowed / 1e9,
        "whole_gb": most / 1e9,
        "unet_batches": ", ".join(map(str, batches)),
        # Another batch rounds otherwise: how far, not whether, is the question here.
        "largest_relative": _apart(undisturbed[0], made, SHARD),
    }


def _apart(one: Evidence, other: Evidence, n: int) -> float:
    """Return the largest difference of a column of numbers, over the largest number in it."""
    largest = 0.0
    for mine, theirs in zip(one.rows(n), other.rows(n), strict=True):
        for name, values in mine.items():
            if np.issubdtype(values.dtype, np.floating):
                scale = float(np.abs(values).max()) or 1.0
                largest = max(largest, float(np.abs(values - theirs[name]).max()) / scale)
    return largest
