"""Measure an evaluation beside the same evaluation run the way it is published.

`python -m benchmarks.evaluation`; benchmarks/README.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, options
from benchmarks.evaluation import memory, random_models, solvers, throughput
from benchmarks.evaluation.report import SECTIONS, report
from benchmarks.evaluation.throughput import Subject
from benchmarks.report import load, place, save
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.store.shard_format import SHARD

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "torch-fidelity", "scipy", "numpy")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    asked = _options(arguments)
    out = asked.out or place(f"evaluation-{torch.device(asked.device).type}", smoke=asked.smoke)
    with tempfile.TemporaryDirectory(prefix="sdbench-models-") as folder:
        subject, remarks = _subject(asked, Path(folder))
        parts = _parts(subject, asked)
        for name in [name for name in SECTIONS if name in asked.only]:
            print(f"{name}:", flush=True)
            began = os.getloadavg()[0]
            found = parts[name]()
            circumstances = {
                "command": options.command("evaluation", arguments),
                "checkpoint": remarks or subject.checkpoint.spec,
                "protocol": subject.protocol.name,
                "precision": subject.protocol.sampling.dtype,
                "rounds": asked.rounds,
                **machine.facts(asked.device, LIBRARIES, began),
            }
            # Written after each part: a long run that is stopped keeps what it has.
            known = load(out).get("parts", {}) | {name: {"circumstances": circumstances, "found": found}}
            content = {"parts": {each: known[each] for each in SECTIONS if each in known}}
            save(out, content, report(content))
    print(f"wrote {out.with_suffix('.json')} and {out.with_suffix('.md')}")
    print(out.with_suffix(".md").read_text(encoding="utf-8"))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options.parser("evaluation", __doc__, "--full-size", "--smoke", "--device")
    parser.add_argument("--only", type=options.some_of(SECTIONS), help=f"of {', '.join(SECTIONS)} [all]")
    family = "base: embedded:scenes-sd, unet: embedded:scenes-tiny"
    parser.add_argument("--checkpoint", default=family, help="as a card names it [%(default)s]")
    parser.add_argument("--protocol", help="default: scenes-quick; with --full-size coco30k-bksdm")
    parser.add_argument("--data", type=Path, help="folder of prompts, statistics and Inception weights")
    parser.add_argument("--rounds", type=int, help="turns of each way [5]")
    parser.add_argument("--images", type=int, help="of one turn of ours [64 a core]")
    parser.add_argument("--published-images", type=int, help="of one turn of the procedure [16]")
    parser.add_argument("--passes", type=int, help="files that its scores pass over [N, 512 at most]")
    parser.add_argument(
        "--speed-ups",
        type=options.some_of(throughput.OFF),
        help="which to switch [all, torch.compile on CUDA alone]",
    )
    parser.add_argument("--out", type=Path, help="where to write [benchmarks/results/evaluation-DEVICE]")
    asked = options.parse(parser, arguments)
    smoke, on_cuda = asked.smoke, asked.device.startswith("cuda")
    asked.only = asked.only or list(SECTIONS)
    if asked.speed_ups is None:
        asked.speed_ups = [name for name in throughput.OFF if on_cuda or name != "compile"]
    asked.rounds = asked.rounds or (1 if smoke else 5)
    asked.images = asked.images or (8 if smoke else SHARD * max(2, torch.get_num_threads()))
    asked.published_images = asked.published_images or (2 if smoke else 16)
    options.check(parser, asked.device, asked.rounds, asked.images, asked.published_images)
    return asked


def _parts(subject: Subject, asked: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """Return what measures each part."""
    smoke, turns = asked.smoke, {"rounds": asked.rounds, "images": asked.images}
    passes = asked.passes or min(subject.protocol.n, 8 if smoke else 512)
    sizes = {"published_images": asked.published_images, "passes": passes}
    numbers = ((100, 300), (8,)) if smoke else ((1000, 5000, 30000), (64, 256))
    return {
        "end-to-end": partial(throughput.end_to_end, subject, **turns, **sizes, apart=not smoke),
        "unet-share": partial(throughput.shares, subject, **turns),
        "ablation": partial(
            throughput.ablation, subject, **turns, speed_ups=asked.speed_ups, apart=not smoke
        ),
        "memory": partial(memory.measure, *numbers),
        "solver": partial(solvers.measure, 64 if smoke else 2048, asked.rounds),
    }


def _subject(asked: argparse.Namespace, folder: Path) -> tuple[Subject, str]:
    """Return what is to be evaluated, and what its weights are where they are made up."""
    protocol = load_protocol(asked.protocol or ("coco30k-bksdm" if asked.full_size else "scenes-quick"))
    remarks, data_root, inception = "", asked.data, None
    if asked.full_size or asked.smoke:
        size, dtype = "full" if asked.full_size else "smoke", protocol.sampling.dtype
        checkpoint = random_models.write_checkpoint(folder, size, dtype=dtype)
        remarks = checkpoint.spec
        if protocol.prompts.kind == "csv":
            protocol, data_root, absent, inception = random_models.complete(protocol, folder, asked.data)
            remarks += f"; {absent}" if absent else ""
    else:
        checkpoint = resolve(asked.checkpoint)
    if asked.smoke:
        sampling = protocol.sampling.model_copy(update={"steps": 1})
        protocol = protocol.model_copy(update={"sampling": sampling})
        remarks += "; 1 step"
    subject = Subject(checkpoint, protocol, asked.device, data_root, inception)
    subject.settle()
    return subject, remarks


if __name__ == "__main__":
    main()
