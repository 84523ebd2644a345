"""Images made on a Ray cluster whose nodes, workers and driver are killed: the evidence is the same.

`SDBENCH_TEST_KILLS=10` kills workers oftener than the few times that a test run has time for.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from pytest_sdbench.base.errors import CheckpointError, EvidenceError, SdbenchError, Unavailable
from pytest_sdbench.base.workspace import Pool, Workspace
from pytest_sdbench.commands.main import main
from pytest_sdbench.evaluation.evidence import fulfil, request
from pytest_sdbench.evaluation.executors import ray as executor
from pytest_sdbench.evaluation.executors import ray_worker
from pytest_sdbench.evaluation.executors.crew import Report
from pytest_sdbench.evaluation.executors.ray_worker import Order, RayWorker, open_maker
from pytest_sdbench.evaluation.job import Job
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from tests.project import make_card, make_project, make_protocol
from tests.store.remote import s3_server

KILLS = int(os.environ.get("SDBENCH_TEST_KILLS", "2"))
IMAGES = 64 * (2 * KILLS + 4) + 10
PATIENCE = 900.0
"""Seconds after which a test takes for a hang what it waits for."""
ROOT = Path(__file__).parents[2]
Shards = dict[str, bytes]

pytestmark = pytest.mark.usefixtures("one_thread")


def shards(store: str) -> Shards:
    """Return the shards of a store, rows and pictures, by folder and name."""
    system, root = fsspec.core.url_to_fs(store, use_listings_cache=False)
    paths = [path for kind in ("safetensors", "tar") for path in system.glob(f"{root}/*/*.{kind}")]
    return {path.removeprefix(f"{root}/"): system.cat_file(path) for path in paths}


@pytest.fixture(scope="module")
def card(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card of a protocol that takes as little as possible an image."""
    path = make_project(tmp_path_factory.mktemp("project"), pristine_checkpoint)
    make_mini(path, "mini", IMAGES)
    return path


def make_mini(card: Path, name: str, images: int) -> None:
    sampling = {"scheduler": {"name": "checkpoint"}, "steps": 1, "guidance": 1.0, "negative_prompt": None}
    sampling |= {"resolution": 64, "dtype": "float32"}
    metrics = {"clip_score": {"model": "local:scenes-clip"}}
    path = card.parent / "protocols" / f"{name}.yaml"
    make_protocol(path, n=images, sampling=sampling, metrics=metrics, margins={"clip_score": 0.2})


def words(store: str, *more: str) -> list[str]:
    return ["--batch-size", "16", "--keep-images", "all", "--store", store, *more]


# A cluster of two nodes on this machine.


@pytest.fixture(params=["folder", "s3"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Return what makes an empty store: a folder, or a bucket of a server on this machine."""
    if request.param == "folder":
        yield lambda name: str(tmp_path / name)
        return
    with s3_server() as server:
        yield lambda name: f"{server.url}/{name}"


@pytest.fixture
def cluster(new_store: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one processor each; what they start knows the server of the store."""
    for name, value in executor._OWN.items():  # before Ray reads them
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    utils = pytest.importorskip("ray.cluster_utils", reason='needs pip install "pytest-sdbench[ray]"')
    cluster = started(lambda: utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1}))
    try:
        started(lambda: cluster.add_node(num_cpus=1))
        yield cluster
    finally:
        cluster.shutdown()


def started(start: Callable[[], Any]) -> Any:
    """Start something of Ray's, which gives its processes 15 seconds: a busy machine may need more tries."""
    for left in reversed(range(8)):
        try:
            return start()
        except Exception:
            if not left:
                raise
    return None


def workers(cluster: Any) -> list[int]:
    """Return the processes of the cluster's actors."""
    raylets = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if "RayWorker" in (folder / "cmdline").read_text(errors="replace"):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                found += [int(folder.name)] * (parent in raylets)
        except OSError:  # gone by now
            continue
    return found


def wait_for(ready: Callable[[], object], what: str, driver: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, f"waited too long for {what}"
        assert driver is None or driver.poll() is None, f"the driver ended before {what}"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes as Linux shows them")
def test_killed_workers_a_lost_node_and_a_killed_driver_leave_the_evidence_of_an_undisturbed_run(
    card: Path, cluster: Any, new_store: Callable[[str], str], tmp_path: Path
) -> None:
    undisturbed, store, rng = str(tmp_path / "undisturbed"), new_store("disturbed"), random.Random(KILLS)
    assert main(["sample", str(card), *words(undisturbed)]) == 0
    expected = shards(undisturbed)
    assert len(expected) == 2 * (2 * KILLS + 5)

    def drive() -> subprocess.Popen[str]:
        command = ["sample", str(card), *words(store, "--ray", cluster.address, "--device", "cpu")]
        return subprocess.Popen(
            [sys.executable, "-m", "pytest_sdbench", *command], stdout=subprocess.PIPE, text=True
        )

    system, root = fsspec.core.url_to_fs(store, use_listings_cache=False)

    def rows() -> int:
        """Look quickly: on a busy machine all would be made before ten have been killed."""
        return len(system.glob(f"{root}/*/shard-*.safetensors"))

    driver = drive()
    try:
        for kill in range(KILLS):
            done = rows()
            wait_for(lambda done=done: rows() > done and workers(cluster), "a shard more", driver)
            os.kill(rng.choice(workers(cluster)), signal.SIGKILL)
            if kill == KILLS // 2:
                (node,) = cluster.worker_nodes
                cluster.remove_node(node, allow_graceful=False)
                started(lambda: cluster.add_node(num_cpus=1))
        driver.send_signal(signal.SIGKILL)
        driver.wait(PATIENCE)
        assert rows() < len(expected) // 2, "there has to be something left"
        driver = drive()
        told, _ = driver.communicate(timeout=PATIENCE)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 0
    assert f"{IMAGES:,} images in the store" in told
    assert shards(store) == expected
    wait_for(lambda: not workers(cluster), "the end of all workers")


# This machine alone.


@pytest.fixture
def small_cards(card: Path) -> tuple[Path, Path]:
    """Two cards, the checkpoint of the second of which is damaged in a way that loading alone finds."""
    make_mini(card, "small", 64 * 3)
    folder = card.parent / "broken-sd"
    if not folder.exists():
        subprocess.run(["cp", "-r", str(card.parent / "mini-sd"), str(folder)], check=True)
        config = folder / "unet" / "config.json"
        changed = json.loads(config.read_text(encoding="utf-8"))
        changed["layers_per_block"] += 1
        config.write_text(json.dumps(changed), encoding="utf-8")
    broken = make_card(card.parent / "broken.md", protocol="small", checkpoint="./broken-sd", title="Broken")
    return make_card(card.parent / "small.md", protocol="small", title="Small"), broken


@pytest.mark.slow
def test_a_poison_shard_and_a_damaged_checkpoint_are_named_and_all_else_is_made(
    small_cards: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ray")
    small, broken = small_cards

    class Poisoned(RayWorker):
        """One that dies over a shard."""

        def make(self, order: list[Any], images: range) -> Report:
            if images.start == 64:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().make(order, images)

    monkeypatch.setattr(ray_worker, "RayWorker", Poisoned)
    cards = [str(small), str(broken)]
    assert main(["sample", *cards, *words(str(tmp_path), "--ray", "--ray-workers", "2")]) == 1
    said = capsys.readouterr()
    assert "small: not sampled: " in said.err
    assert "images 64 to 127 killed 5 workers" in said.err
    assert "broken: not sampled: " in said.err
    assert "unet" in said.err
    made = [name.rpartition("/")[2][:23] for name in shards(str(tmp_path)) if "shard" in name]
    assert sorted(made) == ["shard-00000000-00000064", "shard-00000128-00000192"]
    assert not sys.modules["ray"].is_initialized()


@pytest.mark.slow
def test_a_run_of_pytest_has_one_pool_for_its_cards(
    pytester: pytest.Pytester, pristine_checkpoint: Path
) -> None:
    pytest.importorskip("ray")
    card = make_project(pytester.path, pristine_checkpoint, claims={"clip_score": 0.99})
    make_mini(card, "mini", 70)
    result = pytester.runpytest_subprocess(
        *("--sdbench", "cards", "-m", "quality", "--sdbench-device=cpu", "--sdbench-max-images=all"),
        *("--sdbench-ray-workers=2", "--sdbench-report=r.json", "--sdbench-ray"),
    )
    result.assert_outcomes(failed=1)
    (row,) = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
    assert row["extra"]["images_made"] == 70
    wait_for(lambda: not left_of(pytester.path), "the end of the cluster")


def left_of(folder: Path) -> list[str]:
    """Return the processes that still work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += [process.name] * (process / "cwd").resolve(strict=True).is_relative_to(folder)
    return [pid for pid in found if pid != str(os.getpid())]


@pytest.mark.slow
def test_nobody_who_does_not_ask_for_ray_imports_it(card: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pytest_sdbench.commands.main import main; "
        "assert main(sys.argv[1:]) == 0; print([name for name in sys.modules if name.startswith('ray')])"
    )
    command = ["sample", str(card), *words(str(tmp_path), "--images", "4")]
    told = subprocess.run(
        [sys.executable, "-c", program, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    assert told.stdout.splitlines()[-1] == "[]"


def test_without_the_extra_the_option_names_it(
    card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=r'--ray: .*pip install "pytest-sdbench\[ray\]"'):
        executor.cluster_of(Pool("nowhere:1"))
    result = pytester.runpytest_inprocess("--sdbench", str(card), "--sdbench-ray")
    result.stderr.fnmatch_lines(['*--sdbench-ray: *pip install "pytest-sdbench?ray?"*'])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ray", "--workers", "2"], "--ray-workers"),
        (["--ray", "--part", "1/2"], "--part"),
        (["--ray", "card.md"], "cards before the option"),
        (["--ray", "--ray-gpus", "1.5"], "a share of a GPU"),
    ],
)
def test_options_at_odds_are_explained(
    arguments: list[str], said: str, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    with suppress(SystemExit):
        assert main(["sample", str(card), *arguments]) != 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there", "gpus", "device", "room"),
    [
        ({"CPU": 8.0, "GPU": 2.0}, None, "cuda", 2),
        ({"CPU": 8.0, "GPU": 2.0}, 0.4, "cuda", 4),
        ({"CPU": 1.0, "GPU": 8.0}, 0.1, "cuda", 80),
        ({"CPU": 8.0, "GPU": 3.0}, 2.0, "cuda", 1),
        ({"CPU": 7.5}, None, "cpu", 7),
        ({"memory": 1e9}, None, "cpu", 0),
    ],
)
def test_no_worker_has_parts_of_two_gpus(
    there: dict[str, float], gpus: float | None, device: str, room: int
) -> None:
    needs = executor._needs(Pool(gpus=gpus), device)
    assert executor._fits(there, needs) == room


# One worker, without a cluster.


@pytest.fixture
def orders(card: Path, tmp_path: Path) -> Callable[..., Order]:
    """Return what makes an order of some images."""

    def make(images: int = 130) -> Order:
        protocol = load_protocol("mini", search=(card.parent,)).with_samples(images)
        workspace = Workspace(tmp_path / "store", progress=False)
        checkpoint = resolve(str(card.parent / "mini-sd"))
        job = request(checkpoint, protocol, workspace, tuning=Tuning(batch_size=16)).job
        evidence = job.evidence()
        evidence.prepare()
        return Order(job, checkpoint.fingerprint, f"manifest-{evidence.writer}.json")

    return make


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayWorker]:
    """A worker that takes orders themselves for references to them."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))
    worker = RayWorker("cpu")
    yield worker
    worker.stop()


def ask(worker: RayWorker, order: Order, *numbers: int) -> list[Report]:
    wanted = [order.job.missing[number] for number in numbers]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda images: worker.make([order], images), wanted))


@pytest.mark.slow
def test_a_worker_makes_what_this_process_makes(
    worker: RayWorker, orders: Callable[..., Order], tmp_path: Path
) -> None:
    order = orders()
    there = worker.tell()
    assert (there.device, there.versions) == (
        order.job.evidence().manifest["device"],
        order.job.evidence().manifest["versions"],
    )
    assert ask(worker, order, 0, 1) == [Report(), Report()]
    time.sleep(1.5 * ray_worker.IDLE)
    assert ask(worker, order, 2) == [Report()], "it works on after a rest"
    made = shards(str(tmp_path / "store"))
    job = replace(order.job, workspace=replace(order.job.workspace, store=tmp_path / "local"))
    ((_, local),) = fulfil([request(job.checkpoint, job.protocol, job.workspace, tuning=job.tuning)])
    assert not isinstance(local, SdbenchError)
    assert shards(str(tmp_path / "local")) == made


@pytest.mark.slow
def test_an_exception_is_told_of_all_that_was_begun_and_an_error_of_ours_as_it_is(
    worker: RayWorker, orders: Callable[..., Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = orders()

    def fail(error: Exception) -> None:
        def make(maker: Any, given: Iterator[range], **_: Any) -> None:
            next(given)
            raise error

        monkeypatch.setattr("pytest_sdbench.evaluation.maker.Maker.make", make)

    fail(ZeroDivisionError("division by zero"))
    (report,) = ask(worker, order, 0)
    assert report.error is None
    assert report.fault.startswith("ZeroDivisionError: division by zero (test_ray.py, line ")
    fail(CheckpointError("torn"))
    (report,) = ask(worker, order, 0)
    assert (type(report.error), str(report.error), report.fault) == (CheckpointError, "torn", "")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))
    assert ask(worker, order, 0) == [Report()], "and it works on"


@pytest.mark.slow
def test_what_is_found_before_the_first_shard_is_told_of_all_that_are_asked_for(
    worker: RayWorker, orders: Callable[..., Order]
) -> None:
    order = replace(orders(), checkpoint="0" * 16)
    assert {type(report.error) for report in ask(worker, order, 0, 1)} == {CheckpointError}


def test_another_store_or_checkpoint_than_the_drivers_is_refused(
    orders: Callable[..., Order], tmp_path: Path
) -> None:
    order = orders()
    with pytest.raises(CheckpointError, match=r"another one than the driver's.*shared folder"):
        open_maker(replace(order, checkpoint="0" * 16), "cpu")
    elsewhere: Job = replace(order.job, workspace=replace(order.job.workspace, store=tmp_path / "other"))
    with pytest.raises(EvidenceError, match=r"another one than the driver's.*a bucket, or a folder that all"):
        open_maker(replace(order, job=elsewhere), "cpu", patience=0.0)
