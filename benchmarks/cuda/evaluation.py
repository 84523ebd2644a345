"""How many images a second: the published procedure, a good plain script, and ours, eager and compiled."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cuda.measurement import Measurement
from benchmarks.cuda.peaks import copy_peak, matmul_peak
from benchmarks.cuda.random_networks import Networks, make_networks
from benchmarks.cuda.roofline import roofline
from benchmarks.evaluation import plain_script
from benchmarks.evaluation.stages import UNET, watching
from benchmarks.evaluation.throughput import published_turn
from pytest_sdbench.base.environment import synchronise
from pytest_sdbench.evaluation.engine import Setup, make
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.models.skeleton import unet_inputs, unet_skeleton
from pytest_sdbench.store.shard_format import SHARD
from pytest_sdbench.store.shards import Store

PUBLISHED, PLAIN, EAGER, COMPILED = "published procedure", "plain script", "ours, eager", "ours, compiled"
NOTE = """\
Random weights, synthetic prompts; the protocol is coco30k-bksdm in every step (LCM: four steps, a generator
for each picture). Rates leave out loading, compilation and the first batch. `whole` and `unet` are shares of
the measured peak of matrix products: over the whole time, and within the U-Net's calls."""


def measure(asked: Measurement, architecture: str) -> None:
    """Ask each way for its rate in turn, twice if the minutes allow, then for the roofline of the U-Net."""
    asked.note = NOTE
    if asked.smoke:
        # Compiling a network of eight channels takes a CPU minutes: all but the compiler is rehearsed.
        torch.compiler.set_stance("force_eager")
    with tempfile.TemporaryDirectory(prefix="sdbench-cuda-") as name:
        folder = Path(name)
        began = time.monotonic()
        networks = make_networks(architecture, folder, asked.device, smoke=asked.smoke)
        half = networks.procedure.pipeline.unet.dtype
        peak = matmul_peak(asked.device, half, seconds=0.3 if asked.smoke else 1.5)
        copy = copy_peak(asked.device)
        asked.keep(
            {"what": f"networks of {architecture}", "took": time.monotonic() - began}
            | {"tflops_peak": peak / 1e12, "gb_per_s_peak": copy / 1e9}
        )
        flops = _flops(networks)
        batch = 2 if asked.smoke else SHARD
        ways: list[tuple[str, float, Callable[[], Mapping[str, Any]]]] = [
            (PUBLISHED, 25, partial(_published, networks, 1 if asked.smoke else 12)),
            (PLAIN, 25, partial(_plain, networks, batch, asked)),
            (EAGER, 40, partial(_ours, networks, folder, batch, asked, peak, flops, compiled=False)),
            (COMPILED, 90, partial(_ours, networks, folder, batch, asked, peak, flops, compiled=True)),
        ]
        for way, seconds, call in ways:
            asked.ask(way, seconds, call)
        for kind, run in _calls(networks, 2 * batch).items():
            done = 2 * batch * flops if kind == UNET else None
            asked.ask(f"roofline of the {kind}", 10, partial(_roofline, asked, kind, run, done, peak, copy))
        # A second turn says how much to trust the first.
        for way, seconds, call in [] if asked.smoke else ways:
            asked.ask(f"{way}, again", seconds, call)
    _compare(asked)


def _compare(asked: Measurement) -> None:
    rates = {answer["what"]: answer["rate"] for answer in asked.answers if "rate" in answer}
    for way in (EAGER, COMPILED):
        ratios = {
            f"times_the_{beside.replace(' ', '_')}": rates[way] / rates[beside]
            for beside in (PUBLISHED, PLAIN)
            if way in rates and beside in rates
        }
        if ratios:
            asked.keep({"what": f"{way}: ratios", **ratios})


def _published(networks: Networks, images: int) -> Mapping[str, Any]:
    published_turn(networks.procedure, networks.prompts, 1, 2)
    _forget_peak(networks)
    turn = published_turn(networks.procedure, networks.prompts, images, images)
    return {"images": images, "rate": turn.rate, "peak_gb": _peak_gb(networks)}


def _plain(networks: Networks, batch: int, asked: Measurement) -> Mapping[str, Any]:
    """Find the largest batch that fits, and time it."""
    ready, prompts = networks.procedure, networks.prompts
    while True:
        try:
            plain_script.make_images(ready, prompts[:batch], batch)
            break
        except torch.OutOfMemoryError:
            batch //= 2
            torch.cuda.empty_cache()
    plain_script.measure(ready, plain_script.make_images(ready, prompts[:2], 2), prompts[:2])
    _forget_peak(networks)
    images = batch * (1 if asked.smoke else 2)
    synchronise(str(asked.device))
    began = time.perf_counter()
    made = plain_script.make_images(ready, prompts[:images], batch)
    plain_script.measure(ready, made, prompts[:images])
    seconds = time.perf_counter() - began
    return {"images": images, "rate": images / seconds, "batch": batch, "peak_gb": _peak_gb(networks)}


def _ours(
    networks: Networks,
    folder: Path,
    batch: int,
    asked: Measurement,
    peak: float,
    flops: int,
    *,
    compiled: bool,
) -> Mapping[str, Any]:
    """Run the engine over some batches; what counts begins when the first one is done."""
    images = 2 * batch if asked.smoke else 4 * batch
    ready, stamps = networks.procedure, [(time.perf_counter(), 0)]
    _forget_peak(networks)
    with tempfile.TemporaryDirectory(dir=folder) as store:
        evidence = Store(Path(store)).open("random", "weights", {"device": str(asked.device)})
        evidence.prepare()
        tuning = Tuning(batch_size=batch, compile=compiled, overlap=True)
        scheduler = type(ready.pipeline.scheduler).__name__
        with watching(scheduler=scheduler) as watch:
            make(
                evidence,
                networks.protocol,
                networks.prompts,
                iter(evidence.gaps(images)),
                Setup(ready.pipeline, networks.extractors, str(asked.device), tuning),
                n=images,
                count=lambda some: stamps.append((time.perf_counter(), some)),
            )
    (start, _), (first, early), *_, (last, _) = stamps
    steady = sum(some for _, some in stamps) - early
    found: dict[str, Any] = {
        "images": steady,
        "rate": steady / (last - first),
        "batch": early,
        "before_the_first": first - start,
        "peak_gb": _peak_gb(networks),
    }
    calls = [span for span in watch.spans if span.stage == UNET][-_calls_of(networks, steady, early) :]
    within = sum(span.samples for span in calls) * flops / sum(span.seconds for span in calls)
    whole = sum(span.samples for span in calls) * flops / (last - first)
    return found | {"whole": whole / peak, "unet": within / peak}


def _calls_of(networks: Networks, images: int, batch: int) -> int:
    """Return how often the U-Net was called for the last batches."""
    sampling = networks.protocol.sampling
    extra = 1 if type(networks.procedure.pipeline.scheduler).__name__ == "PNDMScheduler" else 0
    return (sampling.steps + extra) * -(-images // batch)


def _calls(networks: Networks, samples: int) -> dict[str, Callable[[], object]]:
    """Return one call of the U-Net with so many samples, and of the VAE's decoder with half of them."""
    pipeline = networks.procedure.pipeline
    config = _unet_config(networks)
    inputs = unet_inputs(config, device=pipeline.device, dtype=pipeline.unet.dtype, batch=samples)
    latents = inputs["sample"][: max(1, samples // 16)]
    return {
        "U-Net": lambda: pipeline.unet(**inputs),
        "VAE's decoder": lambda: pipeline.vae.decode(latents, return_dict=False),
    }


def _roofline(
    asked: Measurement, kind: str, call: Callable[[], object], flops: int | None, peak: float, copy: float
) -> Mapping[str, Any]:
    """Keep a row for each class of operation; return what a call takes without clocks in it."""
    rows = roofline(call, asked.device, flops_peak=peak, bytes_peak=copy)
    for row in rows:
        asked.keep({"what": kind, **row})
    calls = 1 if asked.smoke else 3
    with torch.inference_mode():
        synchronise(str(asked.device))
        began = time.perf_counter()
        for _ in range(calls):
            call()
        synchronise(str(asked.device))
    alone = (time.perf_counter() - began) / calls
    share = {"share": flops / alone / peak} if flops else {}
    return {"ms_of_the_classes": sum(row["ms"] for row in rows), "ms_alone": 1e3 * alone, **share}


def _flops(networks: Networks) -> int:
    """Return the floating-point operations of the U-Net for one latent at the protocol's resolution."""
    config = _unet_config(networks)
    with FlopCounterMode(display=False) as counter:
        unet_skeleton(config)(**unet_inputs(config))
    return int(counter.get_total_flops())


def _unet_config(networks: Networks) -> dict[str, Any]:
    from pytest_sdbench.models.skeleton import known_keys

    side = networks.protocol.sampling.resolution // 8
    return {**known_keys(networks.procedure.pipeline.unet.config), "sample_size": side}


def _forget_peak(networks: Networks) -> None:
    if networks.procedure.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def _peak_gb(networks: Networks) -> float | None:
    on_cuda = networks.procedure.device.startswith("cuda")
    return torch.cuda.max_memory_allocated() / 1e9 if on_cuda else None
