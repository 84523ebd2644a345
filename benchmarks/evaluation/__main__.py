"""Measure an evaluation beside the same evaluation run the way it is published.

`python -m benchmarks.evaluation`; benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.evaluation import memory as resident
from benchmarks.evaluation import random_models, solvers, throughput
from benchmarks.evaluation.report import SECTIONS, Circumstances, write
from benchmarks.evaluation.throughput import Subject
from benchmarks.report import RESULTS
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.store.shard_format import SHARD

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "torch-fidelity", "scipy", "numpy")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", help=f"parts, with commas between: {', '.join(SECTIONS)}; default: all")
    parser.add_argument(
        "--checkpoint",
        default="base: embedded:scenes-sd, unet: embedded:scenes-tiny",
        help="as a card names it",
    )
    parser.add_argument("--protocol", help="default: scenes-quick; with --full-size coco30k-bksdm")
    parser.add_argument(
        "--full-size", action="store_true", help="random weights of Stable Diffusion v1.4, 512 px, float16"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="random weights of a few channels, few images: to see it run"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, help="folder of prompts, statistics and Inception weights")
    parser.add_argument("--rounds", type=int, help="turns of each way; default: 5")
    parser.add_argument("--images", type=int, help="of one turn of ours; default: 64 a core")
    parser.add_argument("--published-images", type=int, help="of one turn of the procedure; default: 16")
    parser.add_argument("--passes", type=int, help="files that its scores pass over; default: N, 512 at most")
    parser.add_argument("--steps", type=int, help="sample in fewer steps than the protocol: to see it run")
    parser.add_argument(
        "--speed-ups", help="which to switch, with commas between; default: all, torch.compile on CUDA alone"
    )
    parser.add_argument("--note", default="", help="a sentence to stand above the tables")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/evaluation-DEVICE")
    options = parser.parse_args(arguments)
    wanted = list(SECTIONS) if options.only is None else options.only.split(",")
    for name in wanted:
        if name not in SECTIONS:
            parser.error(f"--only: {name!r} is no part; there are {', '.join(SECTIONS)}")
    on_cuda = options.device.startswith("cuda")
    speed_ups = [name for name in throughput.OFF if on_cuda or name != "compile"]
    if options.speed_ups is not None:
        speed_ups = options.speed_ups.split(",")
    for name in speed_ups:
        if name not in throughput.OFF:
            parser.error(f"--speed-ups: {name!r} is none; there are {', '.join(throughput.OFF)}")
    if on_cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: give --device cpu")
    smoke = options.smoke
    rounds = options.rounds or (1 if smoke else 5)
    images = options.images or (8 if smoke else SHARD * max(2, torch.get_num_threads()))
    published_images = options.published_images or (2 if smoke else 16)
    if min(rounds, images, published_images) < 1:
        parser.error("--rounds, --images and --published-images have to be 1 or more")
    words = sys.argv[1:] if arguments is None else arguments
    command = f"python -m benchmarks.evaluation {shlex.join(words)}".strip()
    with tempfile.TemporaryDirectory(prefix="sdbench-models-") as made:
        subject, remarks = _subject(options, Path(made))
        passes = options.passes or min(subject.protocol.n, 8 if smoke else 512)
        ways: dict[str, Callable[[], Any]] = {
            "end-to-end": lambda: throughput.end_to_end(
                subject,
                rounds=rounds,
                images=images,
                published_images=published_images,
                passes=passes,
                apart=not smoke,
            ),
            "unet-share": lambda: throughput.shares(subject, rounds=rounds, images=images),
            "ablation": lambda: throughput.ablation(
                subject, rounds=rounds, images=images, speed_ups=speed_ups, apart=not smoke
            ),
            "memory": lambda: resident.measure(
                *(((100, 300), (8,)) if smoke else ((1000, 5000, 30000), (64, 256)))
            ),
            "solver": lambda: solvers.measure(64 if smoke else 2048, rounds),
        }
        for name in SECTIONS:
            if name not in wanted:
                continue
            print(f"{name}:", flush=True)
            began = os.getloadavg()[0]
            found = ways[name]()
            about = Circumstances(
                command=command,
                device=machine.describe(subject.kind),
                cores=os.cpu_count() or 1,
                checkpoint=remarks or subject.checkpoint.spec,
                protocol=subject.protocol.name,
                precision=subject.protocol.sampling.dtype,
                rounds=rounds,
                versions={library: version(library) for library in LIBRARIES},
                date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
                load=(began, os.getloadavg()[0]),
            )
            # Written after each part: a long run that is stopped keeps what it has.
            out = options.out or RESULTS / f"evaluation-{subject.kind.type}"
            written = write({name: (about, found)}, out, options.note)
    for path in written:
        print(f"wrote {path}")
    print(written[1].read_text(encoding="utf-8"))


def _subject(options: argparse.Namespace, made: Path) -> tuple[Subject, str]:
    """Return what is to be evaluated, and what its weights are where they are made up."""
    protocol = load_protocol(options.protocol or ("coco30k-bksdm" if options.full_size else "scenes-quick"))
    remarks, data_root, inception = "", options.data, None
    if options.full_size or options.smoke:
        size: random_models.Size = "full" if options.full_size else "smoke"
        checkpoint = random_models.write_checkpoint(made, size, dtype=protocol.sampling.dtype)
        remarks = f"random weights, {random_models.NAMES[size]}"
        if protocol.prompts.kind == "csv":
            protocol, data_root, absent, inception = random_models.complete(protocol, made, options.data)
            remarks += f"; {absent}" if absent else ""
    else:
        checkpoint = resolve(options.checkpoint)
    steps = options.steps or (1 if options.smoke else None)
    if steps:
        protocol = protocol.model_copy(
            update={"sampling": protocol.sampling.model_copy(update={"steps": steps})}
        )
        remarks = f"{remarks or checkpoint.spec}; {steps} steps"
    subject = Subject(checkpoint, protocol, options.device, data_root, inception)
    subject.settle()
    return subject, remarks


if __name__ == "__main__":
    main()
