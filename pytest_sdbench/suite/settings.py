"""What a run was told: options and their ini twins, validated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.gate.looks import UNASKED, WEIGHTS
from pytest_sdbench.store.folders import place_of
from pytest_sdbench.suite.options import option

_DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """The options of one run."""

    weights: Mapping[str, Path]
    """By a card's name or path: the checkpoint to judge in place of the card's own."""
    data: Path | None
    download: bool
    samples: int | None
    max_images: int | str
    """New images of one checkpoint under one protocol; `all` is no limit, `auto` depends on the device."""
    device: str
    dtype: str
    store: Path | str
    """A folder, or an fsspec URL."""
    reports: tuple[Path, ...]
    update: bool
    budget: int | None = None
    """Images of one checkpoint under one protocol that a run may look at, in growing numbers; None: all."""
    inconclusive: str = "fail"
    """What becomes of a test that cannot tell: ``fail`` or ``xfail``."""
    calibrate: int | None = None
    """Runs with other seeds that calibrate each protocol; None: none."""

    def limit(self, device: str) -> int | None:
        """Return how many new images a score may cost on a torch device, or None where there is no limit."""
        if isinstance(self.max_images, int):
            return self.max_images
        # Who names a number of images has asked for them.
        asked = any(given is not None for given in (self.samples, self.budget, self.calibrate))
        unasked = self.max_images == "auto" and not asked and device.startswith("cpu")
        return UNASKED if unasked else None

    @classmethod
    def from_pytest_config(cls, config: pytest.Config) -> Settings:
        """Read the options; raise pytest.UsageError that names the option, what was found and what to do."""

        def start(dest: str) -> Path:
            # As pytest does it: a path on the command line starts here, one in the ini file at the ini file.
            given = bool(config.getoption(dest))
            return config.invocation_params.dir if given else (config.inipath or config.rootpath / "x").parent

        def place(dest: str, text: str) -> Path:
            return (start(dest) / Path(text).expanduser()).absolute()

        def path(dest: str) -> Path | None:
            text = option(config, dest)
            return place(dest, text) if text else None

        samples, budget = option(config, "sdbench_samples"), option(config, "sdbench_budget")
        if samples is not None and budget is not None:
            raise pytest.UsageError(
                "--sdbench-samples and --sdbench-budget: give one. The first makes scores that are not "
                "comparable, the second predicts the claimed ones"
            )
        calibrate = option(config, "sdbench_calibrate")
        if calibrate is not None and (samples is not None or option(config, "sdbench_dtype") != "auto"):
            raise pytest.UsageError(
                "--sdbench-calibrate: leave out --sdbench-samples and --sdbench-dtype. A protocol is "
                "calibrated by runs of all its images in its own precision"
            )
        inconclusive = option(config, "sdbench_inconclusive")
        if inconclusive not in ("fail", "xfail"):
            raise pytest.UsageError(f"sdbench_inconclusive: found {inconclusive!r}; give fail or xfail")
        dtype = option(config, "sdbench_dtype")
        if dtype not in _DTYPES:
            raise pytest.UsageError(f"sdbench_dtype: found {dtype!r}; give one of {', '.join(_DTYPES)}")
        reports = tuple(place("sdbench_report", text) for text in option(config, "sdbench_report"))
        for report in reports:
            if report.suffix not in (".md", ".json"):
                raise pytest.UsageError(
                    f"--sdbench-report: {report.name!r} ends in neither .md (a table) nor .json (everything)"
                )
        data = path("sdbench_data")
        if data is not None and not data.is_dir():
            raise pytest.UsageError(
                f"--sdbench-data: {data} is not a folder; give the data root (see the README)"
            )
        store = str(option(config, "sdbench_store"))
        if not store:
            raise pytest.UsageError(
                "--sdbench-store: the name is empty; give a folder or a URL, or leave the option out"
            )
        return cls(
            weights=_weights(option(config, "sdbench_weights"), lambda text: place("sdbench_weights", text)),
            data=data,
            download=bool(option(config, "sdbench_download")),
            samples=None if samples is None else _count("sdbench_samples", samples),
            max_images=_max_images(str(option(config, "sdbench_max_images"))),
            device=str(option(config, "sdbench_device")),
            dtype=str(dtype),
            store=place_of(store, start("sdbench_store")),
            reports=reports,
            update=bool(option(config, "sdbench_update")),
            budget=None if budget is None else _count("sdbench_budget", budget, min(WEIGHTS)),
            inconclusive=inconclusive,
            calibrate=None if calibrate is None else _count("sdbench_calibrate", calibrate, 2),
        )


def _count(name: str, value: int | str, least: int = 1) -> int:
    if (isinstance(value, str) and not value.strip().isdecimal()) or int(value) < least:
        raise pytest.UsageError(f"{name}: found {value!r}; give a whole number of at least {least}")
    return int(value)


def _max_images(text: str) -> int | str:
    if text in ("auto", "all"):
        return text
    if not text.isdecimal():
        raise pytest.UsageError(
            f"sdbench_max_images: found {text!r}; give a whole number of images, all or auto"
        )
    return int(text)


def _weights(pairs: list[str], place: Any) -> dict[str, Path]:
    weights: dict[str, Path] = {}
    for pair in pairs:
        card, found, folder = pair.partition("=")
        if not (card and found and folder):
            raise pytest.UsageError(
                f"--sdbench-weights: found {pair!r}; give CARD=PATH, such as bk-sdm-small=./my-model"
            )
        if card in weights:
            raise pytest.UsageError(
                f"--sdbench-weights: {card} is given twice; one run judges one checkpoint a card"
            )
        weights[card] = place(folder)
        if not weights[card].is_dir():
            raise pytest.UsageError(
                f"--sdbench-weights: {card}={folder}: no such folder; give a diffusers or a U-Net folder"
            )
    return weights
