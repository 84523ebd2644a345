"""Sampling by any number of processes that are killed at any moment: the evidence comes out the same.

`SDBENCH_TEST_KILLS=20` kills oftener than the few times that a test run has time for.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands.main import main
from pytest_sdbench.commands.plan_cost import plan
from pytest_sdbench.commands.sample import protocols_of
from tests.project import make_card, make_project, make_protocol
from tests.store.remote import S3, s3_server

KILLS = int(os.environ.get("SDBENCH_TEST_KILLS", "2"))
IMAGES = 64 * (KILLS + 2) + 10
Shards = dict[str, bytes]

RUNS = """
import contextlib, json, os, sys, traceback
os.environ["OMP_NUM_THREADS"] = "1"
import torch
torch.set_num_threads(1)
import pytest_sdbench.evaluation.evaluate, pytest_sdbench.evaluation.sampler
import pytest_sdbench.features.clip, pytest_sdbench.features.classifier
from pytest_sdbench.commands.main import main

# Everything is imported by now: a child is killed while it works, and not while it starts.
for line in sys.stdin:
    order = json.loads(line)
    if order.get("finish"):
        ended = {}
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.wait()
                ended[pid] = os.waitstatus_to_exitcode(status)
        print(json.dumps(ended), flush=True)
        continue
    if pid := os.fork():
        print(pid, flush=True)
        continue
    os.environ.update(order["environment"])
    os.dup2(2, 1)
    try:
        status = main(["sample", *order["arguments"]])
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stderr.flush()
    os._exit(status)
"""


class Runner:
    """Starts `sample` in processes of its own."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, store: str, *cards: str, **environment: str) -> int:
        """Start a process and return its id."""
        server = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        order = {
            "arguments": [*cards, *self.arguments, "--store", store],
            "environment": {**server, **environment},
        }
        return int(self._ask(order))

    def finish(self) -> dict[int, int]:
        """Wait for all processes that were started, and return the exit status of each."""
        return {int(pid): status for pid, status in json.loads(self._ask({"finish": True})).items()}

    def run(self, store: str, *cards: str) -> int:
        """Return the exit status of a process that nothing happens to."""
        pid = self.start(store, *cards)
        return self.finish()[pid]

    def _ask(self, order: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.communicate(timeout=60)


def shards(store: str) -> Shards:
    """Return the shards of a store, rows and pictures, by name; there is one folder of evidence in it."""
    system, root = fsspec.core.url_to_fs(store, use_listings_cache=False)
    paths = [path for kind in ("safetensors", "tar") for path in system.glob(f"{root}/*/*.{kind}")]
    return {path.rpartition("/")[2]: system.cat_file(path) for path in paths}


@pytest.fixture(scope="module")
def card(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    path = make_project(root, pristine_checkpoint)
    sampling = {"scheduler": {"name": "checkpoint"}, "steps": 2, "guidance": 1.0, "negative_prompt": None}
    sampling |= {"resolution": 64, "dtype": "float32"}
    make_protocol(path.parent / "protocols" / "mini.yaml", n=IMAGES, sampling=sampling)
    return path


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return what makes an empty store: a folder, or a bucket of a server on this machine."""
    if request.param == "folder":
        return lambda name: str(tmp_path / name)
    url = request.getfixturevalue("s3").url
    return lambda name: f"{url}/{name}"


@pytest.fixture
def s3() -> Iterator[S3]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def runner(card: Path) -> Iterator[Runner]:
    runner = Runner(str(card), "--batch-size", "16", "--keep-images", "all")
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def timed(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shards, float]:
    """What a run makes that nothing happens to, and how many seconds it takes."""
    store, began = str(tmp_path_factory.mktemp("undisturbed")), time.monotonic()
    assert runner.run(store) == 0
    return shards(store), time.monotonic() - began


@pytest.fixture
def undisturbed(timed: tuple[Shards, float]) -> Shards:
    return timed[0]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kills_and_damage_leave_the_evidence_of_an_undisturbed_run(
    runner: Runner, new_store: Callable[[str], str], timed: tuple[Shards, float]
) -> None:
    store, rng, (expected, seconds) = new_store("killed"), random.Random(KILLS), timed
    assert len(expected) == 2 * (KILLS + 3)
    for kill in range(KILLS):
        pid = runner.start(store)
        # So soon that there is work left for the last kill too.
        time.sleep(rng.uniform(0, 6 * seconds / len(expected)))
        os.kill(pid, signal.SIGKILL)
        if kill == KILLS // 2:
            damage(store, rng)
    assert runner.run(store) == 0
    assert shards(store) == expected
    damage(store, rng)
    assert runner.run(store) == 0
    assert shards(store) == expected


def damage(store: str, rng: random.Random) -> None:
    """Cut a shard, change a byte of another, empty a third; as many as there are."""
    system, root = fsspec.core.url_to_fs(store, use_listings_cache=False)
    paths = sorted(system.glob(f"{root}/*/shard-*.safetensors"))
    for path, way in zip(rng.sample(paths, min(3, len(paths))), ("cut", "byte", "empty"), strict=False):
        content = bytearray(system.cat_file(path))
        if way == "byte":
            content[rng.randrange(len(content))] ^= 0x10
        system.pipe_file(path, {"cut": content[:-5], "byte": content, "empty": b""}[way])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_four_processes_one_of_them_killed_make_what_one_makes(
    runner: Runner, new_store: Callable[[str], str], undisturbed: Shards
) -> None:
    store = new_store("four")
    world = [
        runner.start(store, RANK=str(rank), WORLD_SIZE="4", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="4")
        for rank in range(4)
    ]
    while not shards(store):
        time.sleep(0.05)
    os.kill(world[1], signal.SIGKILL)
    assert runner.finish() == {pid: -signal.SIGKILL if pid == world[1] else 0 for pid in world}
    assert shards(store) == undisturbed


ARRAY = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "4"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        [{"RANK": "0", "WORLD_SIZE": "1"}],
        [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)],
        [{"SLURM_ARRAY_TASK_ID": str(task), **ARRAY} for task in (3, 4)],
    ],
    ids=["alone", "two", "slurm array"],
)
def test_any_world_makes_the_bits_of_one(
    runner: Runner, undisturbed: Shards, tmp_path: Path, world: list[dict[str, str]]
) -> None:
    for environment in world:
        runner.start(str(tmp_path), **environment)
    assert set(runner.finish().values()) == {0}
    assert shards(str(tmp_path)) == undisturbed


@pytest.mark.slow
def test_a_broken_card_damage_and_a_world_of_two_leave_the_same_evidence(
    card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in this process, which nobody kills."""
    make_protocol(card.parent / "protocols" / "small.yaml", n=130)
    small = make_card(card.with_name("small.md"), protocol="small")

    def made(name: str, *cards: Path, status: int = 0) -> Shards:
        store = str(tmp_path / name)
        words = ["--batch-size", "16", "--store", store]
        assert main(["sample", str(small), *map(str, cards), *words]) == status
        return shards(store)

    broken = make_card(tmp_path / "broken.md", checkpoint="./not-there", protocol="scenes-quick")
    expected = made("one", broken, status=1)
    assert len(expected) == 3 + 1, "three shards, and the pictures of the first one"
    damage(str(tmp_path / "one"), random.Random(0))
    assert made("one") == expected
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        made("two")
    assert shards(str(tmp_path / "two")) == expected


def test_a_card_is_sampled_under_what_it_is_judged_by(card: Path) -> None:
    assert [protocol.name for protocol in protocols_of(read_card(card))] == ["mini"]
    assert [protocol.name for protocol in protocols_of(read_card(card), ["scenes-5k"])] == ["scenes-5k"]
    with pytest.raises(Unavailable, match="--protocol"):
        protocols_of(read_card(make_card(card.parent / "bare.md", claims={}, protocols=[])))


def test_no_image_is_made_that_no_claim_can_be_compared_with(card: Path) -> None:
    """A figure of another number of images is a mismatch, whatever is sampled today."""
    path = make_card(card.parent / "old.md", claims={"clip_score": 0.3}, protocols=[])
    text = path.read_text(encoding="utf-8")
    assert "type: scenes}" in text
    path.write_text(text.replace("type: scenes}", "type: scenes, args: {num_samples: 5000}}"), "utf-8")
    with pytest.raises(Unavailable, match="as it is today"):
        protocols_of(read_card(path))
    assert [row.protocol for row in plan([path], Workspace(card.parent / "store"), timing=False).rows] == [""]


def test_images_are_made_to_renew_a_record_of_what_the_protocol_once_was(card: Path) -> None:
    record = {"protocol": "mini", "metric": "clip_score", "value": 0.3, "n": 128}
    record["protocol_fingerprint"] = "0123456789abcdef"
    named = read_card(make_card(card.parent / "old.md", claims={}, protocols=[], records=[record]))
    assert [protocol.name for protocol in protocols_of(named)] == ["mini"]


@pytest.mark.slow
def test_pictures_that_others_are_compared_with_are_made_where_nothing_else_is_asked_for(
    tmp_path: Path, pristine_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = make_project(tmp_path, pristine_checkpoint, claims={}).parent
    metrics = {"psnr": {"extractor": "psnr"}}
    make_protocol(cards / "protocols" / "pairs.yaml", n=3, metrics=metrics, margins={})
    store = tmp_path / "store"
    assert main(["sample", str(cards), "--protocol", "pairs", "--store", str(store)]) == 0
    assert [*store.glob("*/pictures-00000000-00000003.tar")]
    told = capsys.readouterr().out
    assert "3 images in the store, 3 made here" in told
    assert "PSNR are told when the card is judged, and need the reference's pictures, too" in told
