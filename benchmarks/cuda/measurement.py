"""Keep the answers of one measurement as they come, within the minutes that it has."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.report import paragraphs, save, table

LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "torch-fidelity", "numpy")
SHARES = ("whole", "unet", "share", "of_bound")
"""Answers that are told in percent."""


@dataclass
class Measurement:
    """One question on one device; every answer is on the disk as soon as it is known."""

    name: str
    folder: Path
    """Where the answers go."""
    device: torch.device
    minutes: float
    """Of the whole command, from the start of the process."""
    smoke: bool = False
    """Networks of a few channels and a few images: to see it run."""
    note: str = ""
    """How the answers were got, for people."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    problems: int = 0
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds until the end."""
        return 60 * self.minutes - (time.monotonic() - self.began)

    def keep(self, answer: Mapping[str, Any]) -> None:
        """Add an answer, and write all of them."""
        self.answers.append(dict(answer))
        print(f"[{60 * self.minutes - self.left():5.0f} s] {_line(answer)}", flush=True)
        self._save()

    def ask(self, what: str, seconds: float, call: Callable[[], Mapping[str, Any]]) -> None:
        """Keep what a call finds, if about so many seconds are left for it.

        A call that fails leaves its error as the answer, and the next one is asked.
        """
        if self.left() < seconds:
            self.keep({"what": what, "problem": f"not asked: {self.left():.0f} s were left"})
            return
        started = time.monotonic()
        try:
            found = call()
        except Exception as error:
            self.problems += 1
            self.keep({"what": what, "problem": f"{type(error).__name__}: {error}"})
            # One file for all of them: few files come back from where a GPU is lent.
            with (self.folder / f"{self.name}-problems.txt").open("a", encoding="utf-8") as file:
                file.write(f"{what}\n{traceback.format_exc()}\n")
        else:
            self.keep({"what": what, **found, "took": time.monotonic() - started})
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _save(self) -> None:
        content = {
            "measurement": self.name,
            "smoke": self.smoke,
            "note": self.note,
            **machine.facts(str(self.device), LIBRARIES, os.getloadavg()[0]),
            "answers": self.answers,
        }
        save(self.folder / self.name, content, describe(content))


def describe(content: Mapping[str, Any]) -> str:
    """Return what was found as Markdown."""
    # Answers of one form stand in one table.
    tables: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in content["answers"]:
        tables.setdefault(tuple(name for name in row if name != "took"), []).append(row)
    return paragraphs(
        f"# {content['measurement']}{', smoke' if content['smoke'] else ''}",
        content["note"],
        f"{content['device']}. {machine.libraries_and_load(content)}",
        *(_table(names, rows) for names, rows in tables.items()),
    )


def _table(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    columns: list[tuple[str, Any]] = [
        ("" if name == "what" else name.replace("_", " "), partial(_cell, name)) for name in names
    ]
    return table(rows, columns)


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    return f"{100 * value:.1f} %" if name in SHARES else figure(value)


def figure(value: object) -> str:
    """Return a figure to four digits, any other value as it is, and nothing for None."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _line(answer: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {figure(value)}" for name, value in answer.items())
