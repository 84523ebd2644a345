"""Who makes which shard on a cluster, told of workers and a clock that are made up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from pytest_sdbench.base.errors import CheckpointError, EvidenceError
from pytest_sdbench.evaluation.executors.crew import Crew, Report, Station
from pytest_sdbench.evaluation.executors.dispatch import Dispatch, Shard
from pytest_sdbench.store.shard_folder import in_grid

DEATH = RuntimeError(
    "The actor died unexpectedly.\n\tpid: 7\nIts process got signal 9. Some common causes include"
)
Answer = Callable[["Hand", Any, range], object]


def whole(hand: Hand, job: Any, images: range) -> object:
    return Report()


@dataclass
class Cluster:
    """Workers that take a while for a shard, by a clock of their own."""

    seconds: Sequence[float] = (1.0,)
    """For a shard: of the first worker, the second and so on, and again from the beginning."""
    room: int = 2
    answer: Answer = whole
    stations: Sequence[Station] = (Station("a", "cpu", {}),)
    starts: bool = True
    now: float = 0.0
    hands: list[Hand] = field(default_factory=list)
    pending: dict[int, tuple[float, Hand, object]] = field(default_factory=dict)
    given: list[tuple[int, Any, range]] = field(default_factory=list)
    """The number of a worker, a job and images, in the order in which they were given."""
    most_held: int = 0

    def crew(self, **options: Any) -> Crew:
        return Crew(
            self.hire, self.wait, lambda: self.room, lambda: "1 GPU", clock=lambda: self.now, **options
        )

    def hire(self) -> Hand:
        self.hands.append(Hand(self, len(self.hands)))
        return self.hands[-1]

    def ask(self, at: float, hand: Hand, answer: object) -> int:
        number = len(self.pending) + len(self.given) + 1000 * len(self.hands)
        while number in self.pending:
            number += 1
        self.pending[number] = at, hand, answer
        return number

    def wait(self, calls: Sequence[int], seconds: float) -> Iterator[tuple[int, object]]:
        self.now += seconds
        for call in sorted(calls, key=lambda each: self.pending[each][0]):
            at, hand, answer = self.pending[call]
            if not hand.alive:
                yield call, DEATH
            elif at <= self.now:
                if isinstance(answer, Exception):
                    hand.alive = False
                yield call, answer


@dataclass
class Hand:
    cluster: Cluster
    number: int
    alive: bool = True
    free: float = 0.0
    """When it has made all that it was given."""

    def tell(self) -> int:
        never = 0.0 if self.cluster.starts else float("inf")
        stations = self.cluster.stations
        return self.cluster.ask(never, self, stations[self.number % len(stations)])

    def make(self, job: Any, images: range) -> int:
        cluster = self.cluster
        cluster.given.append((self.number, job, images))
        self.free = max(self.free, cluster.now) + cluster.seconds[self.number % len(cluster.seconds)]
        return cluster.ask(self.free, self, cluster.answer(self, job, images))

    def dismiss(self) -> None:
        self.alive = False


def shards(count: int) -> list[range]:
    return list(in_grid(64 * count))


def work(cluster: Cluster, *counts: int, **options: Any) -> tuple[Dispatch, list[int]]:
    """Have jobs of so many shards made, and return what became of them and the order in which they ended."""
    dispatch = Dispatch([shards(count) for count in counts])
    return dispatch, list(cluster.crew(**options).work(dispatch, [f"job{n}" for n in range(len(counts))]))


def test_a_fast_worker_makes_more_and_each_shard_is_given_once() -> None:
    cluster = Cluster(seconds=(1.0, 3.0))
    dispatch, ended = work(cluster, 40)
    assert (dispatch.made, ended) == ([2560], [0])
    assert sorted((images.start for _, _, images in cluster.given)) == list(range(0, 2560, 64))
    counts = Counter(number for number, _, _ in cluster.given)
    assert counts[0] == pytest.approx(3 * counts[1], abs=3)
    assert cluster.now < 40 * 0.75 + 6, "three quarters of a second a shard, and the last ones"


def test_a_worker_stays_with_its_job_while_that_has_shards() -> None:
    cluster = Cluster()
    dispatch, ended = work(cluster, 20, 12)
    assert dispatch.made == [1280, 768]
    assert ended == [1, 0], "the shorter one is done first"
    changes = sum(
        one != other
        for number in (0, 1)
        for jobs in [[job for who, job, _ in cluster.given if who == number]]
        for one, other in pairwise(jobs)
    )
    assert changes == 1


def test_near_the_end_nobody_holds_what_another_could_make() -> None:
    cluster = Cluster(room=4)
    work(cluster, 4)
    assert sorted(number for number, _, _ in cluster.given) == [0, 1, 2, 3]


def poison(how: object, *numbers: int) -> Answer:
    """Answer like this for shards of these numbers, and that all others are whole."""
    return lambda hand, job, images: how if images.start // 64 in numbers else Report()


@pytest.mark.parametrize(
    ("how", "tries"), [(DEATH, 5), (Report(fault="ValueError: no such thing (sampler.py, line 7)"), 3)]
)
def test_a_poison_shard_is_given_up_alone_and_last(how: object, tries: int) -> None:
    cluster = Cluster(answer=poison(how, 3))
    dispatch, _ = work(cluster, 12)
    assert dispatch.made == [11 * 64]
    ((shard, why),) = dispatch.lost.items()
    assert (shard, len(why)) == (Shard(0, range(192, 256)), tries)
    assert "signal 9" in why[0].cause or "no such thing" in why[0].cause
    assert "common causes" not in why[0].cause
    rest = [images.start // 64 for _, _, images in cluster.given]
    assert rest[-(tries - 2) :] == [3] * (tries - 2), "when all others are made"
    assert rest.count(3) == tries


def test_a_job_over_which_every_worker_breaks_down_is_given_up_and_the_other_goes_on() -> None:
    cluster = Cluster(answer=lambda hand, job, images: DEATH if job == "job0" else Report())
    dispatch, ended = work(cluster, 500, 10)
    assert dispatch.made == [0, 640]
    assert "10 workers broke down" in str(dispatch.failed[0])
    assert len(cluster.hands) < 20
    assert sorted(ended) == [0, 1]


def test_nodes_that_go_away_while_all_are_loading_do_not_end_the_job() -> None:
    cluster = Cluster(room=16, answer=lambda hand, job, images: DEATH if hand.number < 16 else Report())
    dispatch, _ = work(cluster, 100)
    assert (dispatch.made, dispatch.lost, dispatch.failed) == ([6400], {}, {})


def test_a_cluster_that_grows_keeps_the_workers_that_are_starting() -> None:
    cluster = Cluster(room=4, starts=False)

    def grow(text: str) -> None:
        cluster.room = min(20, 4 + int(cluster.now / 4))

    with pytest.raises(EvidenceError, match="no worker could be had"):
        list(cluster.crew(patience=100.0).work(Dispatch([shards(200)]), ["job"], note=grow))
    assert len(cluster.hands) == 20, "nobody was sent away and hired anew"


def test_a_damaged_checkpoint_fails_its_job_at_once() -> None:
    broken = Report(error=CheckpointError("torn"))
    cluster = Cluster(answer=lambda hand, job, images: broken if job == "job1" else Report())
    dispatch, ended = work(cluster, 10, 10)
    assert dispatch.made == [640, 0]
    assert str(dispatch.failed[1]) == "torn"
    assert ended == [1, 0]
    assert sum(job == "job1" for _, job, _ in cluster.given) <= 2
    assert len(cluster.hands) == 2, "nobody died of it"


def test_workers_that_die_are_replaced_and_nodes_that_join_are_used() -> None:
    def die_once(hand: Hand, job: Any, images: range) -> object:
        cluster.room = 3 if images.start > 640 else 2
        return DEATH if hand.number < 4 and images.start % 256 else Report()

    cluster = Cluster(answer=die_once)
    dispatch, _ = work(cluster, 40)
    assert (dispatch.made, dispatch.lost) == ([2560], {})
    assert len(cluster.hands) >= 7


@pytest.mark.parametrize(("most", "hired"), [(None, 2), (1, 1), (6, 6), (90, 8)])
def test_no_more_workers_are_asked_for_than_there_is_room_and_work(most: int | None, hired: int) -> None:
    cluster = Cluster()
    work(cluster, 8, most=most)
    assert len(cluster.hands) == hired, "a number that is asked for is a demand that a cluster may grow by"


@pytest.mark.parametrize("mixed", [False, True])
def test_workers_that_differ_are_refused_unless_they_may(mixed: bool) -> None:
    stations = [Station("a", "H100", {"torch": "2.9"}), Station("b", "H100", {"torch": "2.8"})]
    cluster = Cluster(stations=stations)
    if mixed:
        assert work(cluster, 8, mixed=True)[0].made == [512]
    else:
        with pytest.raises(EvidenceError, match=r"differ in torch: 2\.9 on a, 2\.8 on b.*--ray-mixed"):
            work(cluster, 8)
    assert mixed or not any(hand.alive for hand in cluster.hands)


def test_a_worker_that_cannot_be_had_is_waited_for_and_then_an_error() -> None:
    cluster, notes = Cluster(starts=False, room=0), []
    dispatch = Dispatch([shards(3)])
    with pytest.raises(EvidenceError, match="no worker could be had in 15 minutes: 1 GPU"):
        list(cluster.crew().work(dispatch, ["job"], note=notes.append))
    assert 900 < cluster.now < 910
    assert set(notes) == {"", "waiting for a worker: 1 GPU"}
    assert not any(hand.alive for hand in cluster.hands)


def test_workers_that_never_start_are_an_error() -> None:
    cluster = Cluster(stations=[ModuleNotFoundError("No module named 'pytest_sdbench'")])  # type: ignore[list-item]
    with pytest.raises(EvidenceError, match=r"died one after the other.*No module named.*on every node"):
        work(cluster, 3)
    assert cluster.now < 60


def test_a_worker_that_says_nothing_for_very_long_is_taken_for_dead() -> None:
    cluster = Cluster(seconds=(1.0, 1e9, 1.0))
    dispatch, _ = work(cluster, 12)
    assert (dispatch.made, dispatch.lost) == ([768], {})
    assert cluster.now < 2000


def test_the_pace_of_few_workers_is_told_one_by_one_and_that_of_many_in_sum() -> None:
    for room, told in ((2, "64 + 32/s"), (8, "8 workers")):
        cluster, notes = Cluster(seconds=(1.0, 2.0), room=room), []
        list(cluster.crew().work(Dispatch([shards(200)]), ["job"], note=notes.append))
        assert any(note.startswith(told) for note in notes), notes[-3:]


def test_a_crew_stays_for_the_next_piece_of_work() -> None:
    cluster = Cluster()
    crew = cluster.crew()
    for _ in range(3):
        assert list(crew.work(Dispatch([shards(5)]), ["job"])) == [0]
    assert len(cluster.hands) == 2
    crew.close()
    assert not any(hand.alive for hand in cluster.hands)
