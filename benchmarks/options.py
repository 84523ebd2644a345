"""Arguments that several benchmarks have in common."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

import torch


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.NAME`, described by the first line of its docstring."""
    first, _, _ = (description or "").partition("\n")
    return argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=first)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads."""
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads of torch [%(default)s]"
    )


def add_device(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add --device; the default is the GPU where there is one."""
    default = default or ("cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--device", default=default, help="a torch device [%(default)s]")


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add --full-size and --smoke."""
    parser.add_argument(
        "--full-size", action="store_true", help="random weights of Stable Diffusion v1.4, 512 px"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="random weights of a few channels: to see it run"
    )


def check(parser: argparse.ArgumentParser, device: str, *numbers: int) -> None:
    """Refuse a CUDA device where there is none, and numbers below 1."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: give --device cpu")
    if min(numbers) < 1:
        parser.error("numbers of rounds, steps and images have to be 1 or more")


def command(name: str, arguments: Sequence[str] | None) -> str:
    """Return the command as it was typed, or as `arguments` say it."""
    words = sys.argv[1:] if arguments is None else arguments
    return f"python -m benchmarks.{name} {shlex.join(words)}".strip()


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments, and have torch use as many threads as they say."""
    found = parser.parse_args(arguments)
    if "threads" in found:
        torch.set_num_threads(found.threads)
    return found
