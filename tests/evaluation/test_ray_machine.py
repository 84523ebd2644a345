"""A real Ray on this machine alone: what Ctrl-C leaves behind, and who gets which part of which GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.workspace import Pool, Workspace
from pytest_sdbench.commands.main import main
from pytest_sdbench.evaluation.evidence import fulfil, request
from pytest_sdbench.evaluation.executors import ray as executor
from pytest_sdbench.evaluation.executors import ray_worker
from pytest_sdbench.evaluation.executors.crew import Station
from pytest_sdbench.evaluation.executors.ray_worker import RayWorker
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from tests.evaluation.test_ray import PATIENCE, make_mini, shards, wait_for, words
from tests.project import make_project

IMAGES = 64 * 8
MARK = "SDBENCH_TEST_MARK"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def card(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ray", reason='needs pip install "pytest-sdbench[ray]"')
    path = make_project(tmp_path_factory.mktemp("project"), pristine_checkpoint)
    make_mini(path, "mini", IMAGES)
    return path


@pytest.fixture(scope="module")
def undisturbed(card: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of a run without Ray."""
    store = str(tmp_path_factory.mktemp("undisturbed"))
    assert main(["sample", str(card), *words(store)]) == 0
    return shards(store)


def marked(mark: str) -> list[str]:
    """Return the command lines of the processes that were started with a mark, and their children's."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()) or process.name())
        except psutil.Error:  # gone by now, or somebody else's
            continue
    return found


@pytest.mark.skipif(
    not hasattr(os, "killpg"), reason="sends what a terminal sends: needs groups of processes"
)
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_all_workers_and_the_same_command_goes_on(
    card: Path, undisturbed: dict[str, bytes], tmp_path: Path, times: int
) -> None:
    store, mark = str(tmp_path / "store"), str(tmp_path)
    command = ["sample", str(card), *words(store, "--ray", "--ray-workers", "2", "--device", "cpu")]
    driver = subprocess.Popen(
        [sys.executable, "-m", "pytest_sdbench", *command],
        env=os.environ | {MARK: mark},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell has what it starts in the background ignore Ctrl-C, these tests maybe.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait_for(lambda: len(shards(store)) >= 2, "the first shards", driver)
        assert any("RayWorker" in line for line in marked(mark))
        for _ in range(times):  # a terminal tells all of its processes, and people are impatient
            os.killpg(driver.pid, signal.SIGINT)
            time.sleep(0.3)
        _, said = driver.communicate(timeout=PATIENCE)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        "interrupted: what is whole in the store is kept, and the same command goes on"
    )
    wait_for(lambda: not marked(mark), f"the end of {marked(mark)}")
    made = shards(store)
    assert 0 < len(made) < len(undisturbed)
    assert made.items() <= undisturbed.items()
    assert main(command) == 0
    assert shards(store) == undisturbed


class OnCpu(RayWorker):
    """A worker that Ray has given a GPU which is a number alone; it computes on the CPU."""

    def __init__(self, device: str) -> None:
        assert device == "cuda"
        super().__init__("cpu")

    def tell(self) -> Station:
        return replace(super().tell(), host=os.environ["CUDA_VISIBLE_DEVICES"])


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Ray of this process that believes in two GPUs."""
    import ray

    monkeypatch.setattr(ray_worker, "RayWorker", OnCpu)
    monkeypatch.setattr(executor, "_clusters", {})
    for name, value in executor._OWN.items():
        monkeypatch.setenv(name, value)
    ray.init("local", num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield ray
    finally:
        executor.close()
        ray.shutdown()


@pytest.mark.parametrize(("share", "there"), [(0.5, {"0": 2, "1": 2}), (None, {"0": 1, "1": 1})])
def test_workers_share_a_gpu_as_they_are_told_to_and_none_has_parts_of_two(
    two_gpus: Any, share: float | None, there: dict[str, int]
) -> None:
    pool, room = Pool(gpus=share), sum(there.values())
    crew = executor.cluster_of(pool).crew("cuda")
    assert crew.room() == room
    hired = [crew.hire() for _ in range(room + 1)]  # kept: an actor that nobody knows ends
    calls = [each.tell() for each in hired]
    told, waiting = two_gpus.wait(calls, num_returns=room, timeout=PATIENCE)
    assert Counter(two_gpus.get(call).host for call in told) == there
    assert two_gpus.wait(waiting, timeout=5.0) == ([], waiting), "there is no room for one more"


def test_images_made_on_halves_of_gpus_are_those_of_one_process(
    two_gpus: Any, card: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    protocol = load_protocol("mini", search=(card.parent,))
    workspace = Workspace(
        tmp_path / "store", device="cuda", progress=False, keep_images="all", pool=Pool(gpus=0.5)
    )
    checkpoint, tuning = resolve(str(card.parent / "mini-sd")), Tuning(batch_size=16)
    ((_, outcome),) = fulfil([request(checkpoint, protocol, workspace, tuning=tuning)])
    assert not isinstance(outcome, SdbenchError), outcome
    assert outcome.images_made == IMAGES
    assert shards(str(tmp_path / "store")) == undisturbed
