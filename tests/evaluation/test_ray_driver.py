"""The driver of a Ray cluster from end to end, with threads of this process in the place of Ray's workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sdbench.commands.main import main
from pytest_sdbench.evaluation.executors import ray as executor
from tests.evaluation.test_ray import make_mini, shards, words
from tests.project import make_card, make_project

pytestmark = pytest.mark.usefixtures("one_thread")


class Threads:
    """As much of Ray as the driver asks for."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(RayError=RuntimeError)
        self.orders: list[Any] = []
        self.is_up = False
        self.actors = 0
        self.pool = ThreadPoolExecutor(16)

    def init(self, address: str, **options: Any) -> None:
        assert address == "local"
        self.is_up = True

    def is_initialized(self) -> bool:
        return self.is_up

    def shutdown(self) -> None:
        self.is_up = False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    available_resources = cluster_resources

    def put(self, order: Any) -> int:
        self.orders.append(order)
        return len(self.orders) - 1

    def get(self, reference: Any) -> Any:
        return reference.result() if isinstance(reference, Future) else self.orders[reference]

    def wait(
        self, calls: list[Future[Any]], *, num_returns: int, timeout: float
    ) -> tuple[list[Any], list[Any]]:
        done, left = wait(calls, timeout)
        return list(done), list(left)

    def kill(self, actor: Any) -> None:
        self.actors -= 1

    def remote(self, **options: Any) -> Any:
        assert options["num_cpus"] == 1.0
        return lambda kind: SimpleNamespace(remote=lambda device: self._actor(kind(device)))

    def _actor(self, worker: Any) -> Any:
        self.actors += 1
        submit = self.pool.submit
        return SimpleNamespace(
            tell=SimpleNamespace(remote=lambda: submit(worker.tell)),
            make=SimpleNamespace(remote=lambda order, images: submit(worker.make, order, images)),
        )


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    threads = Threads()
    monkeypatch.setitem(sys.modules, "ray", threads)
    monkeypatch.setattr(executor, "_clusters", {})
    yield threads
    threads.pool.shutdown()


@pytest.mark.slow
def test_two_cards_of_one_pool_have_the_evidence_of_a_local_run(
    threads: Threads, pristine_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = make_project(tmp_path, pristine_checkpoint)
    make_mini(card, "mini", 64 * 2 + 10)
    make_mini(card, "more", 64 * 3)
    cards = [str(card), str(make_card(card.with_name("more.md"), protocol="more"))]
    assert main(["sample", *cards, *words(str(tmp_path / "local"))]) == 0
    local = capsys.readouterr().out
    assert main(["sample", *cards, *words(str(tmp_path / "ray"), "--ray")]) == 0
    assert "138 images in the store" in local
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(local.splitlines())
    assert shards(str(tmp_path / "ray")) == shards(str(tmp_path / "local"))
    assert (threads.is_up, threads.actors) == (False, 0)
    assert len(threads.orders) == 2
