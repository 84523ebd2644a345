"""Who makes which shards, and what becomes of those of a process that dies."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.errors import CheckpointError, SdbenchError
from pytest_sdbench.base.part import Part
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evidence import Request, fulfil, request
from pytest_sdbench.evaluation.executors import local, static
from pytest_sdbench.evaluation.executors.static import shards_of
from pytest_sdbench.evaluation.job import Extras
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.store.shard_folder import in_grid
from tests.project import make_protocol

N = 64 * 5 + 10
Ask = Callable[..., Request]


class World:
    """Processes that each take a shard in turn; what one takes is there when it comes back for more."""

    def __init__(self, size: int, shards: int, *, dead: Sequence[int] = ()) -> None:
        self.grid = list(in_grid(64 * shards))
        self.made: list[tuple[int, range]] = []
        self._making: dict[int, range] = {}
        self.elsewhere = [0] * size
        self._ranks = {rank: self._shards(rank, size) for rank in range(size) if rank not in dead}

    def _shards(self, rank: int, size: int) -> Iterator[range]:
        part = Part(rank, size)
        own, others = part.slice(self.grid)

        def count(images: int) -> None:
            self.elsewhere[rank] += images

        return shards_of(part, list(own), list(others), self._left, count)

    def _left(self, wanted: Sequence[range]) -> list[range]:
        there = {images for _, images in self.made}
        return [images for images in wanted if images not in there]

    def take(self, rank: int) -> bool:
        """Have a process finish its shard, and take the next; return whether there was one."""
        if rank in self._making:
            self.made.append((rank, self._making.pop(rank)))
        images = next(self._ranks[rank], None)
        if images is not None:
            self._making[rank] = images
        return images is not None

    def run(self, order: Callable[[int], Sequence[int]]) -> None:
        """Have processes take shards in an order, which may depend on the turn, until nothing is left."""
        left, turn = set(self._ranks), 0
        while left:
            for rank in order(turn):
                if rank in left and not self.take(rank):
                    left.discard(rank)
            turn += 1


@pytest.mark.parametrize("size", [1, 2, 4, 7])
@pytest.mark.parametrize("shards", [1, 3, 8, 100])
def test_processes_of_one_pace_make_everything_and_hardly_anything_twice(size: int, shards: int) -> None:
    world = World(size, shards)
    world.run(lambda turn: range(size))
    made = [images for _, images in world.made]
    assert set(made) == set(world.grid)
    assert len(made) <= shards + 2 * (size - 1), "at the very end, two may make the same"
    for rank in range(size):
        mine = {images for each, images in world.made if each == rank}
        assert world.elsewhere[rank] + 64 * len(mine) >= 64 * shards, "a bar comes to its end"


def test_each_begins_with_its_part_and_helps_from_the_back() -> None:
    world = World(2, 8)
    world.run(lambda turn: [0] if turn % 4 else [0, 1])
    mine = [images.start // 64 for rank, images in world.made if rank == 0]
    assert mine[:4] == [0, 1, 2, 3]
    assert mine[4] == 7
    assert [images.start // 64 for rank, images in world.made if rank == 1][:1] == [4]


@pytest.mark.parametrize("dead", [[1], [0, 3], [0, 1, 2]])
def test_what_a_dead_process_leaves_is_shared_among_the_others(dead: list[int]) -> None:
    world, alive = World(4, 64, dead=dead), 4 - len(dead)
    world.run(lambda turn: range(4))
    counts = [sum(rank == each for each, _ in world.made) for rank in range(4) if rank not in dead]
    assert {images for _, images in world.made} == set(world.grid)
    assert len(world.made) <= 64 + 2 * alive
    assert max(counts) - min(counts) <= 2


def test_a_process_that_is_a_hundred_times_slower_holds_nobody_up() -> None:
    world = World(2, 50)
    world.run(lambda turn: [0, 1] if turn % 100 == 0 else [0])
    assert sum(rank == 1 for rank, _ in world.made) == 1


def test_a_store_that_takes_long_to_list_is_listed_for_a_twentieth_of_the_time() -> None:
    grid, made, listings = list(in_grid(64 * 200)), set[range](), 0
    mine = list[range]()

    def left(wanted: Sequence[range]) -> list[range]:
        nonlocal listings
        listings += 1
        made.update(grid[-5 * listings :])  # somebody else makes five meanwhile, from the back
        return [images for images in wanted if images not in made]

    def clock() -> float:
        return 5.0 * listings + 10.0 * len(mine)

    for images in static.shards_of(Part(), grid, [], static.sparing(left, clock)):
        made.add(images)
        mine.append(images)
    assert made == set(grid)
    assert len(mine) == len(set(mine))
    assert 5.0 * (listings - 1) <= clock() / 20
    assert len(mine) < len(grid) - 5 * (listings - 2), "what others have made is found out all the same"


@pytest.fixture
def ask(tmp_path: Path, pristine_checkpoint: Path) -> Ask:
    """Return what asks for the pictures of a small draw, in a store."""
    sampling: dict[str, Any] = {"steps": 1, "guidance": 1.0, "resolution": 64, "dtype": "float32"}

    def ask(store: str, checkpoint: Path = pristine_checkpoint, metric: str = "clip_score") -> Request:
        words = {"n": N, "sampling": sampling, "metrics": {metric: {"model": "local:scenes-clip"}}}
        protocol = load_protocol(make_protocol(tmp_path / "mini.yaml", margins={}, **words))
        workspace = Workspace(tmp_path / store, progress=False, keep_images="all")
        tuning, extras = Tuning(batch_size=32, workers=1), Extras(columns={})
        return request(Checkpoint("tiny", checkpoint), protocol, workspace, tuning=tuning, extras=extras)

    return ask


def files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("*/*-0*"))}


def test_a_job_can_be_sent_to_another_process(ask: Ask, tmp_path: Path) -> None:
    job = ask("store").job
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    assert static.make(again, again.evidence()).images == N
    assert ask("store").job.gaps == ()


@pytest.mark.slow
def test_a_process_for_each_gpu_makes_the_bits_of_one(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, one),) = fulfil([ask("one")])
    assert not isinstance(one, SdbenchError)
    monkeypatch.setattr(local, "devices_of", lambda device: ["cpu", "cpu"])
    ((_, two),) = fulfil([ask("two")])
    assert not isinstance(two, SdbenchError)
    assert two.images_made >= one.images_made == N, "two may make the last shard"
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert one.evidence.pace()
    assert two.evidence.pace()


@pytest.mark.slow
def test_what_the_process_of_one_gpu_leaves_the_others_make(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the system kills one that takes too much memory."""
    monkeypatch.setattr(local, "devices_of", lambda device: ["cpu", "cpu:doomed"])
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(doomed(tmp_path)), os.environ.get("PYTHONPATH", "")])
    )
    with pytest.warns(local.FewerProcesses, match=f"made up for it.*signal {signal.SIGKILL}"):
        ((_, found),) = fulfil([ask("store")])
    assert not isinstance(found, SdbenchError)
    assert found.images_made == N
    monkeypatch.setattr(local, "devices_of", lambda device: ["cpu:doomed", "cpu:doomed"])
    ((_, error),) = fulfil([ask("other")])
    assert isinstance(error, SdbenchError)
    assert f"the process that drew on cpu:doomed ended with signal {signal.SIGKILL}" in str(error)


def doomed(folder: Path) -> Path:
    """Return a folder whose sitecustomize has a process on the device ``cpu:doomed`` kill itself."""
    text = """
import os, signal
from pytest_sdbench.evaluation.executors import local
child = local._child
def kill(job, parent):
    if job.workspace.device == "cpu:doomed":
        os.kill(os.getpid(), signal.SIGKILL)
    child(job, parent)
local._child = kill
"""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(text, encoding="utf-8")
    return folder / "site"


@pytest.mark.slow
def test_what_a_conftest_registers_is_computed_in_its_own_process(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "devices_of", lambda device: ["cpu", "cpu"])
    monkeypatch.setattr(METRICS, "_loaded", {**METRICS})
    METRICS.register(replace(METRICS["clip_score"], name="own_score"))
    with pytest.warns(local.FewerProcesses, match="own_score is registered in a conftest"):
        ((_, found),) = fulfil([ask("store", metric="own_score")])
    assert not isinstance(found, SdbenchError)
    assert found.images_made == N


@pytest.mark.slow
def test_what_fails_on_every_gpu_is_told_as_it_would_be_of_one(
    ask: Ask, tmp_path: Path, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    shutil.copytree(pristine_checkpoint, tmp_path / "checkpoint")
    asked = ask("store", tmp_path / "checkpoint")
    assert asked.job.checkpoint.fingerprint
    (weights,) = (tmp_path / "checkpoint" / "unet").glob("*.safetensors")
    weights.write_bytes(b"damaged")
    monkeypatch.setattr(local, "devices_of", lambda device: ["cpu", "cpu"])
    ((_, error),) = fulfil([asked])
    assert isinstance(error, CheckpointError)
    assert weights.name in str(error)
