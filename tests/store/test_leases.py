"""Processes that share a store share the work: nothing twice, and nothing is left when one dies."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.store.leases import lease_name
from pytest_sdbench.store.shard_format import SHARD
from pytest_sdbench.store.shards import Evidence, Store
from tests.store.remote import S3, in_threads, s3_line

N = 10 * SHARD
BORDERS = [range(start, start + SHARD) for start in range(0, N, SHARD)]

WORKER = """
import sys, time
import numpy as np
from pytest_sdbench.store.shards import Store
root, n, seconds, start_at, beat = sys.argv[1], *map(float, sys.argv[2:])
store = Store(root, lease_seconds=3.0, beat=beat)
evidence = store.open("c", "d", {})
evidence.prepare()
for images in evidence.work(int(n), start_at=start_at):
    print("start", images.start, flush=True)
    time.sleep(seconds)
    evidence.write(images.start, {"value": np.array(images, np.float32)})
    print("done", images.start, flush=True)
"""


Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(root: str) -> Iterator[Launch]:
    """Return a function that starts a process which makes shards."""
    running: list[subprocess.Popen[str]] = []

    def start(
        *, seconds: float = 0.0, start_at: float = 0.0, n: int = N, beat: float = 0.3
    ) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", WORKER, root, *map(str, (n, seconds, start_at, beat))]
        running.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def evidence_of(root: str | Path, *, seconds: float = 3.0, beat: float = 0.2) -> Evidence:
    return Store(root, lease_seconds=seconds, beat=beat).open("c", "d", {})


def rows_of(images: range) -> dict[str, np.ndarray]:
    return {"value": np.array(images, np.float32)}


def starts(process: subprocess.Popen[str], word: str = "start") -> list[int]:
    out, _ = process.communicate(timeout=60)
    return [int(line.split()[1]) for line in out.splitlines() if line.startswith(word)]


def leases(evidence: Evidence) -> list[str]:
    return [name for name in evidence.storage.files() if name.startswith("lease-")]


def until(is_so: Callable[[], object]) -> None:
    """Wait for what a thread beside this one is about to do."""
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def make_all(evidence: Evidence, n: int = N, pause: float = 0.0) -> list[range]:
    """Make the shards that are missing, and return which."""
    made = []
    for images in evidence.work(n):
        made.append(images)
        time.sleep(pause)
        evidence.write(images.start, rows_of(images))
    return made


def is_whole(evidence: Evidence, n: int = N) -> bool:
    return np.concatenate([rows["value"] for rows in evidence.read(n)]).tolist() == list(range(n))


def test_processes_share_the_work(root: str, launch: Launch) -> None:
    workers = [launch(seconds=0.1, start_at=place / 2) for place in range(2)]
    made = [starts(worker) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(itertools.chain(*made)) == [images.start for images in BORDERS]
    assert is_whole(evidence_of(root))
    assert leases(evidence_of(root)) == []


def test_a_killed_process_is_replaced(root: str, launch: Launch) -> None:
    """Its lease is of a process of this system that does not run: nobody waits for the time of a lease."""
    doomed = launch(seconds=600)
    assert doomed.stdout is not None
    assert doomed.stdout.readline() == "start 0\n"
    evidence = evidence_of(root, seconds=1e6)
    assert leases(evidence) == [lease_name(BORDERS[0])]
    doomed.send_signal(signal.SIGKILL)
    doomed.wait()
    assert make_all(evidence) == [*BORDERS[1:], BORDERS[0]]  # what nobody had leased comes first
    assert is_whole(evidence)
    assert leases(evidence) == []


@pytest.mark.slow
@pytest.mark.parametrize("root", ["local"], indirect=True)
def test_what_another_process_makes_is_waited_for(root: str, launch: Launch) -> None:
    other = launch(seconds=1.5, n=SHARD)
    assert other.stdout is not None
    assert other.stdout.readline() == "start 0\n"
    evidence = evidence_of(root)
    assert make_all(evidence, 2 * SHARD) == [range(SHARD, 2 * SHARD)]
    assert is_whole(evidence, 2 * SHARD)


@pytest.mark.slow
@pytest.mark.parametrize("root", ["local"], indirect=True)
def test_a_process_that_was_stopped_is_replaced_and_does_no_harm(root: str, launch: Launch) -> None:
    """As a host that sleeps: it runs, but renews nothing. Awake again, it finishes what nobody needs."""
    sleeper = launch(seconds=1.5, n=2 * SHARD, beat=0.2)
    assert sleeper.stdout is not None
    assert sleeper.stdout.readline() == "start 0\n"
    sleeper.send_signal(signal.SIGSTOP)
    evidence = evidence_of(root, seconds=0.5)
    make_all(evidence, 2 * SHARD)
    assert is_whole(evidence, 2 * SHARD)
    before = {name: evidence.storage.read(name) for name in evidence.storage.files()}
    sleeper.send_signal(signal.SIGCONT)
    assert starts(sleeper, "done") == [0]
    assert sleeper.returncode == 0
    assert {name: evidence.storage.read(name) for name in evidence.storage.files()} == before


def lease_of_another_host(evidence: Evidence, images: range, beat: int = 0) -> None:
    content = {"host": "far away", "pid": 1, "id": "somebody", "beat": beat}
    evidence.storage.write(lease_name(images), json.dumps(content).encode())


@pytest.mark.slow
def test_a_lease_of_another_host_counts_while_it_is_renewed(root: str) -> None:
    evidence = evidence_of(root, seconds=0.7)
    lease_of_another_host(evidence, BORDERS[0])
    gone = threading.Event()

    def renew() -> None:
        for beat in range(1, 7):
            time.sleep(0.2)
            lease_of_another_host(evidence, BORDERS[0], beat)
        gone.set()

    renewing = threading.Thread(target=renew)
    renewing.start()
    work = evidence.work(SHARD)
    assert next(work) == BORDERS[0]
    assert gone.is_set(), "taken while its owner was alive"
    renewing.join()
    work.close()


def test_clocks_of_hosts_need_not_agree(tmp_path: Path) -> None:
    """What counts is how long this process has seen no change, not what the file's time says."""
    evidence = evidence_of(tmp_path, seconds=0.5)
    lease_of_another_host(evidence, BORDERS[0])
    path = tmp_path / "c-d" / lease_name(BORDERS[0])
    for moment in (0, time.time() + 1e6):
        os.utime(path, (moment, moment))
        assert not evidence.leases.take(BORDERS[0], evidence.storage.files())
    time.sleep(0.6)
    assert evidence.leases.take(BORDERS[0], evidence.storage.files())
    evidence.leases.release(BORDERS[0])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}'])
def test_a_torn_lease_is_watched_too(content: bytes, tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, seconds=0.2)
    evidence.storage.write(lease_name(BORDERS[0]), content)
    assert list(evidence.work(SHARD)) == [BORDERS[0]]


def test_a_lease_is_renewed_while_its_owner_works(root: str) -> None:
    evidence = evidence_of(root, beat=0.1)
    with closing(evidence.work(N)) as work:
        name = lease_name(next(work))
        first = evidence.storage.files()[name]
        until(lambda: evidence.storage.files()[name] != first)
    assert leases(evidence) == []
    assert not evidence.leases.holds(BORDERS[0])


def test_a_lease_that_was_lost_is_left_to_its_new_owner(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, beat=0.1)
    work = evidence.work(N)
    images = next(work)
    lease_of_another_host(evidence, images)
    until(lambda: not evidence.leases.holds(images))
    work.close()
    assert leases(evidence) == [lease_name(images)]


def test_work_that_is_left_is_free_for_others(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path)
    for _ in evidence.work(N):
        break
    assert leases(evidence) == []


def test_who_waits_is_freed_when_the_work_is_closed(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, seconds=1e6)
    lease_of_another_host(evidence, BORDERS[0])
    work = evidence.work(SHARD)
    found: list[range] = []
    waiting = threading.Thread(target=lambda: found.extend(work))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    work.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert found == []


def test_an_earlier_attempt_of_this_process_is_not_waited_for(tmp_path: Path) -> None:
    """An error keeps its frames, and they keep the work that was left."""
    earlier = evidence_of(tmp_path, seconds=1e6)
    left = earlier.work(SHARD)
    assert next(left) == BORDERS[0]
    assert list(evidence_of(tmp_path, seconds=1e6).work(SHARD)) == [BORDERS[0]]
    left.close()


def test_a_lease_whose_reply_was_lost_is_held(s3: S3, tmp_path: Path) -> None:
    """The request is repeated, and the answer is that the lease is there: it is one's own."""
    with s3_line(s3) as line:
        evidence = evidence_of(f"{s3.url}/{tmp_path.name}", beat=60)
        assert evidence.storage.files() == {}
        line.breaks = 1
        assert evidence.leases.take(BORDERS[0], {})
        assert line.breaks == 0
        assert evidence.leases.holds(BORDERS[0])
        evidence.leases.release(BORDERS[0])
        assert leases(evidence) == []


def test_threads_share_one_iterator(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path)
    evidence.prepare()
    work = evidence.work(N)
    made: list[range] = []

    def make() -> None:
        for images in work:
            made.append(images)
            time.sleep(0.01)
            evidence.write(images.start, rows_of(images))

    in_threads(4, lambda _: make())
    assert sorted(made, key=lambda images: images.start) == BORDERS
    assert is_whole(evidence)
    until(lambda: not leases(evidence))  # a beat may write one that was just released, and remove it again


@pytest.mark.parametrize(("start_at", "first"), [(0.0, 0), (0.5, 5), (0.99, 9)])
def test_work_begins_where_it_is_told_to(start_at: float, first: int, tmp_path: Path) -> None:
    made = list(evidence_of(tmp_path).work(N, start_at=start_at))
    assert made == BORDERS[first:] + BORDERS[:first]


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path)
    make_all(evidence, 100)
    assert list(evidence.work(100)) == []
    assert list(evidence.work(150)) == [range(64, 128), range(128, 150)]


def test_a_store_that_takes_no_leases_is_worked_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = evidence_of(tmp_path)

    def refuse(*_: object) -> bool:
        raise EvidenceError("no")

    monkeypatch.setattr("pytest_sdbench.store.folders.LocalFolder.create", refuse)
    assert make_all(evidence) == BORDERS
    assert is_whole(evidence)
