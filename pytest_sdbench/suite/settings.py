"""What a run was told: options and their ini twins, validated once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.files import why_unwritable
from pytest_sdbench.base.options import OPTIONS, weights_by_card
from pytest_sdbench.base.part import ALONE, Part
from pytest_sdbench.base.paths import told as shown
from pytest_sdbench.base.text import plain
from pytest_sdbench.base.workspace import Pool
from pytest_sdbench.cards.front_matter import is_card
from pytest_sdbench.gate.looks import UNASKED
from pytest_sdbench.store.folders import RemoteFolder, open_storage, place_of
from pytest_sdbench.suite.options import given, option


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
    keep_images: int | str
    """Images of each draw whose pictures are kept, `all` or `auto`."""
    report: tuple[Path, ...]
    history: Path | str | None
    """A folder, or an fsspec URL; None: this run is in no history."""
    github: str
    """``auto`` or ``off``: whether GitHub Actions shows what came of the run."""
    update: bool
    budget: int | None
    """Images of one checkpoint under one protocol that a run may look at, in growing numbers; None: all."""
    inconclusive: str
    """What becomes of a test that cannot tell: ``fail`` or ``xfail``."""
    calibrate: int | None
    """Runs with other seeds that calibrate each protocol; None: none."""
    part: Part = ALONE
    """This process among the workers of xdist, which are all on this machine."""
    pool: Pool | None = None
    """The workers of a cluster that make the images; None: this process does."""

    def limit(self, device: str) -> int | None:
        """Return how many new images a score may cost on a torch device, or None where there is no limit."""
        if isinstance(self.max_images, int):
            return self.max_images
        # Who names a number of images has asked for them.
        asked = any(number is not None for number in (self.samples, self.budget, self.calibrate))
        return UNASKED if self.max_images == "auto" and not asked and device.startswith("cpu") else None

    @classmethod
    def from_pytest_config(cls, config: pytest.Config) -> Settings:
        """Read the options; raise pytest.UsageError that names the option, what was found and what to do."""

        def start(dest: str) -> Path:
            # As pytest does it: a path on the command line starts here, one in the ini file at the ini file.
            file = None if given(config, dest) else config.inipath
            return config.invocation_params.dir if file is None else file.parent

        def place(dest: str, path: Path | str) -> Path:
            return (start(dest) / os.path.expanduser(path)).absolute()

        dests = [each.dest for each in OPTIONS.values() if each.dest != "sdbench"]
        told = {dest.removeprefix("sdbench_"): option(config, dest) for dest in dests}
        if told["samples"] is not None and told["budget"] is not None:
            raise pytest.UsageError(
                "--sdbench-samples and --sdbench-budget: give one. The first makes scores that are not "
                "comparable, the second predicts the claimed ones"
            )
        if told["calibrate"] is not None and (told["samples"] is not None or told["dtype"] != "auto"):
            raise pytest.UsageError(
                "--sdbench-calibrate: leave out --sdbench-samples and --sdbench-dtype. A protocol is "
                "calibrated by runs of all its images in its own precision"
            )
        data = place("sdbench_data", told["data"]) if told["data"] else None
        if data is not None and not os.path.isdir(data):
            raise pytest.UsageError(
                f"--sdbench-data: {data} is not a folder; give the data root: what belongs in it is told by "
                "python -m pytest_sdbench doctor"
            )
        try:
            weights = weights_by_card(told["weights"])
        except SdbenchError as error:
            raise pytest.UsageError(f"--sdbench-weights: {error}") from None
        weights = {card: place("sdbench_weights", folder) for card, folder in weights.items()}
        from pytest_sdbench.models.access import forbidden
        from pytest_sdbench.models.layout import no_checkpoint, replaces

        for card, folder in weights.items():
            try:
                if replaces(folder) is None:
                    raise no_checkpoint(folder, key=f"--sdbench-weights {card}")
            except PermissionError as error:
                raise pytest.UsageError(str(forbidden(Path(error.filename or folder)))) from None
            except SdbenchError as error:
                raise pytest.UsageError(str(error)) from None
        store = _place("--sdbench-store", told["store"], start("sdbench_store"))
        report = tuple(place("sdbench_report", path) for path in told["report"])
        for path in report:
            if reason := "it is a card" if os.path.isfile(path) and is_card(path) else why_unwritable(path):
                raise pytest.UsageError(f"--sdbench-report: {path} cannot be written: {reason}")
        history = _history(told["history"], start("sdbench_history")) if told["history"] else None
        places = {"data": data, "store": store, "report": report, "history": history}
        asked = [told.pop(name) for name in ("ray", "ray_gpus", "ray_workers", "ray_mixed")]
        own = {"weights": weights, "part": _part(config), "pool": _pool(config, *asked)}
        return cls(**told | own | places)


def _part(config: pytest.Config) -> Part:
    worker = getattr(config, "workerinput", None)
    if worker is None:
        return ALONE
    number, size = int(worker["workerid"].removeprefix("gw")), int(worker["workercount"])
    rank = number % size  # one that replaces a worker that died has a higher number
    return Part(rank, size, rank, size)


def _pool(config: pytest.Config, address: str | None, *asked: Any) -> Pool | None:
    """Return the pool that was asked for; raise pytest.UsageError where there can be none."""
    if address is None:
        return None
    if find_spec("ray") is None:
        raise pytest.UsageError('--sdbench-ray: Ray is not installed; pip install "pytest-sdbench[ray]"')
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None):
        raise pytest.UsageError("--sdbench-ray: the workers of the cluster share the work; leave out -n")
    return Pool(address, *asked)


def _place(flag: str, text: str, start: Path) -> Path | str:
    try:
        return place_of(text, start)
    except SdbenchError as error:
        raise pytest.UsageError(f"{flag}: {error}") from None


def _history(text: str, start: Path) -> Path | str:
    """Return the place of a history; raise pytest.UsageError for one that cannot be written."""
    place = _place("--sdbench-history", text, start)
    try:
        reason = "" if isinstance(open_storage(place), RemoteFolder) else why_unwritable(Path(place) / "run")
    except SdbenchError as error:
        reason = str(error)
    if reason:
        raise pytest.UsageError(f"--sdbench-history: {shown(place)} cannot be written: {reason}")
    return place


REFUSED = "--sdbench-weights: "
"""How a reason begins that is handed over so."""


def refuse(session: pytest.Session, text: str) -> None:
    """End a run of which `--sdbench-weights` makes no sense.

    A worker of xdist cannot raise there, and hands the reason to who started it.
    """
    text = f"{REFUSED}{plain(text)}"
    if not hasattr(session.config, "workerinput"):
        raise pytest.UsageError(text)
    session.items.clear()
    session.shouldfail = text
