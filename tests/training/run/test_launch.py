"""Runs of several processes under their launchers: one is killed, and the run ends as if it had not been.

The command lines are those of the documentation, with two CPU processes of this machine for eight GPUs.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests.training.helpers import assert_same_state, begin_pair, finish, log_lines, recipe_of
from training.cli import main
from training.run.state import FILE, read_state

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
PAGE = ROOT / "docs" / "training-on-many-gpus.md"
SRUN = """\
import os, signal, subprocess, sys, time
words = sys.argv[1:]
assert words.pop(0) == "--kill-on-bad-exit=1"
tasks = [
    subprocess.Popen(words, env={**os.environ, "SLURM_PROCID": str(number), "SLURM_NODEID": str(number)})
    for number in range(int(os.environ["SLURM_JOB_NUM_NODES"]))
]
def end(number=signal.SIGTERM, frame=None):
    for task in tasks:
        if task.poll() is None:
            task.send_signal(number)
signal.signal(signal.SIGTERM, end)
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):
        end(signal.SIGKILL)
    time.sleep(0.1)
sys.exit(max(abs(task.returncode) for task in tasks))
"""
SCONTROL = """\
import os, pathlib, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
if sys.argv[1:] == ["show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]:
    print("\\n".join(["localhost"] * int(os.environ["SLURM_JOB_NUM_NODES"])))
else:
    assert sys.argv[1:] == ["requeue", os.environ["SLURM_JOB_ID"]]
    pathlib.Path(os.environ["REQUEUED"]).touch()
"""


@pytest.fixture(scope="module")
def recipe(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a recipe for two processes; every step is reported and saved."""
    mini = recipe_of(
        pristine_checkpoint,
        name="mini",
        data={"kind": "scenes", "pairs": 8, "resolution": 64, "cache": True, "cache_text": True},
        schedule={"steps": 12, "batch": 2, "micro_batch": 1},
        ema={"decay": 0.9},
        watch={"report_seconds": 1e-9, "save_minutes": 1e-9},
    )
    path = tmp_path_factory.mktemp("launch") / "mini.yaml"
    YAML().dump(mini.model_dump(mode="json", by_alias=True), path)
    return path


def train_here(recipe: str, folder: str) -> None:
    assert main([recipe, "--device", "cpu", "--folder", folder]) == 0


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "mini"
    assert finish(begin_pair(train_here, str(recipe), str(folder))) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def cut_undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run where each process holds a part of the weights (FSDP2)."""
    folder = tmp_path_factory.mktemp("cut") / "mini"
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    assert finish(begin_pair(train_here, str(recipe), str(folder), **fsdp)) == [0, 0]
    return folder


class Launch:
    """A launcher that runs, with the file of what it and its processes print."""

    def __init__(self, process: subprocess.Popen[bytes], printed: Path, folder: Path) -> None:
        self.process, self.printed, self.folder = process, printed, folder

    @property
    def text(self) -> str:
        return self.printed.read_text(encoding="utf-8", errors="replace")

    def status(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(900)

    def wait_for(self, images: int) -> None:
        """Wait until so many images are in a saved state: the line of the step after is in the log."""
        self.wait_until(lambda: _lines(self.folder) > images // 2)

    def wait_until(self, true: Callable[[], object]) -> None:
        until = time.monotonic() + 600
        while not true():
            assert self.process.poll() is None, self.text[-5000:]
            assert time.monotonic() < until, self.text[-5000:]
            time.sleep(0.05)

    def kill(self, rank: int) -> None:
        """Kill the process of that rank."""
        found = [each for each in self.family() if each.environ().get("RANK") == str(rank)]
        assert found, f"no process of rank {rank}"
        found[0].kill()

    def family(self) -> list[psutil.Process]:
        """Return all processes that the launcher started."""
        return psutil.Process(self.process.pid).children(recursive=True)


def _lines(folder: Path) -> int:
    path = folder / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@contextmanager
def launched(command: Sequence[str], folder: Path, **environment: str) -> Iterator[Launch]:
    """Start a launcher; whatever is left of it at the end is killed."""
    printed = folder.with_name("printed.txt")
    variables = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **environment}
    with printed.open("ab") as file:
        process = subprocess.Popen(command, env=variables, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield Launch(process, printed, folder)
    finally:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                each.kill()
        process.wait()


def documented(launcher: str, recipe: Path, folder: Path) -> list[str]:
    """Return the command of the documentation that begins so, for this recipe on two CPU processes."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    (found,) = re.findall(rf"^\$ ({launcher} .*)$", text, re.MULTILINE)
    words = shlex.split(found)
    kept = words[: next(i for i, word in enumerate(words) if word.startswith("bk-sdm"))]
    command = ["2" if word == "8" else word for word in kept]
    return [*command, str(recipe), "--device", "cpu", "--folder", str(folder)]


def assert_same_run(folder: Path, other: Path) -> None:
    """Assert that two runs learned the same by the same steps, bit for bit."""
    assert_same_state(folder, other)
    curves = [[(line["seen"], line["loss"]) for line in log_lines(each)] for each in (folder, other)]
    assert curves[0] == curves[1]


def assert_outlives_two_kills(launch: Launch) -> None:
    """Kill each rank once, and assert that every time the run goes on from the last state, to its end."""
    for rank, images in ((1, 4), (0, 14)):
        launch.wait_for(images)
        launch.kill(rank)
    assert launch.status() == 0, launch.text[-5000:]
    began = re.findall(r"mini: (\d+) of 24 images seen", launch.text)
    assert len(began) == 3
    assert int(began[1]) >= 4
    assert int(began[2]) >= 14


def test_torchrun_restarts_all_processes_and_they_go_on_from_the_last_state(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mini"
    with launched(documented("torchrun --standalone", recipe, folder), folder) as launch:
        assert_outlives_two_kills(launch)
    assert "timed out connecting" not in launch.text
    assert_same_run(folder, undisturbed)


def test_accelerate_launch_names_the_process_that_died_and_the_same_command_goes_on(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mini"
    command = documented("accelerate launch --multi_gpu", recipe, folder)
    with launched(command, folder) as launch:
        launch.wait_for(4)
        launch.kill(1)
        assert launch.status() != 0
    assert re.search(r"exitcode: -9\W+local_rank: 1", launch.text)
    assert re.search(r"rank +: 1 .*exitcode +: -9", launch.text, re.DOTALL)
    with launched(command, folder) as launch:
        assert launch.status() == 0, launch.text[-5000:]
    assert_same_run(folder, undisturbed)


def test_a_slurm_job_stops_before_its_time_is_over_and_goes_on_when_it_is_requeued(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder, programs, requeued = tmp_path / "mini", tmp_path / "bin", tmp_path / "requeued"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(f"#!{sys.executable}\n{text}", encoding="utf-8")
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    job |= {"SLURM_GPUS_ON_NODE": "1", "REQUEUED": str(requeued)}
    job["PATH"] = f"{programs}:{BIN}:{os.environ['PATH']}"
    command = ["bash", *documented("sbatch", recipe, folder)[1:]]
    with launched(command, folder, **job) as launch:
        launch.wait_for(4)
        launch.kill(1)
        launch.wait_for(12)
        launch.process.send_signal(signal.SIGUSR1)
        launch.status()
        assert requeued.is_file(), launch.text[-5000:]
    stopped = int(read_state(folder / FILE)["seen"])
    assert f"stopped after {stopped} of 24 images" in launch.text
    requeued.unlink()
    with launched(command, folder, **job, SLURM_RESTART_COUNT="1") as launch:
        assert launch.status() == 0, launch.text[-5000:]
    assert not requeued.exists()
    assert_same_run(folder, undisturbed)


def test_weights_that_are_cut_over_the_processes_outlive_these(
    recipe: Path, undisturbed: Path, cut_undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mini"
    with launched(documented("accelerate launch --use_fsdp", recipe, folder), folder) as launch:
        assert_outlives_two_kills(launch)
    shared = re.findall(r"mini: \d+ of 24 images seen.*2 processes, which share the weights", launch.text)
    assert len(shared) == 3
    assert_same_run(folder, cut_undisturbed)
    assert_same_export(folder, cut_undisturbed)
    curves = [[line["loss"] for line in log_lines(each)] for each in (folder, undisturbed)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def assert_same_export(folder: Path, other: Path) -> None:
    """Assert that two runs exported the same weights, byte for byte."""
    weights = [
        {path.relative_to(each): path.read_bytes() for path in each.glob("export/**/*.safetensors")}
        for each in (folder, other)
    ]
    assert weights[0]
    assert weights[0] == weights[1]
