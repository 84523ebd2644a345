"""Parse the command line of a benchmark: options that several have in common stand here once."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from pytest_sdbench.base.paths import told

COMMON: dict[str, dict[str, Any]] = {
    "--device": {"help": "a torch device [%(default)s]"},
    "--full-size": {"action": "store_true", "help": "random weights of Stable Diffusion v1.4, 512 px"},
    "--set": {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "change the recipe"},
    "--smoke": {"action": "store_true", "help": "random weights of a few channels: to see it run"},
    "--threads": {"type": int, "default": os.cpu_count() or 1, "help": "threads of torch [%(default)s]"},
}


def parser(name: str, description: str | None, *common: str) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.NAME` with some of the common options.

    The first line of the docstring describes it; the device is the GPU where there is one.
    """
    first, _, _ = (description or "").partition("\n")
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=first)
    for option in common:
        made.add_argument(option, **COMMON[option])
    if "--device" in common:
        made.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    return made


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what reads names with commas between, each of them known."""
    names = list(known)

    def read(text: str) -> list[str]:
        found = text.split(",") if text else []
        for name in found:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(names)}")
        return found

    return read


def check(parser: argparse.ArgumentParser, device: str, *numbers: int) -> None:
    """Refuse a CUDA device where there is none, and numbers below 1."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: give --device cpu")
    if min(numbers) < 1:
        parser.error("numbers of rounds, steps and images have to be 1 or more")


def command(name: str, arguments: Sequence[str] | None) -> str:
    """Return the command as it was typed, or as `arguments` say it, for others to read."""
    words = sys.argv[1:] if arguments is None else arguments
    return f"python -m benchmarks.{name} {shlex.join(map(told, words))}".strip()


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments, and have torch use as many threads as they say."""
    found = parser.parse_args(arguments)
    if "threads" in found:
        torch.set_num_threads(found.threads)
    return found
