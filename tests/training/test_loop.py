"""The loop: a killed and resumed run is the run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from training import loop

SCHEDULE = loop.Schedule(images=64, batch=8, learning_rate=0.01, warmup=16, average=32)


class Toy:
    """Learn the sum of random rows; batch norm gives it buffers, too."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.modules = nn.ModuleDict({"net": self.net})

    def losses(self, start, count, generator):
        rows = torch.randn(count, 4, generator=generator)
        return {"loss": (self.net(rows)[:, 0] - rows.sum(1)).square().mean()}

    def export(self, folder):
        raise NotImplementedError


def quiet(_line: str) -> None:
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "state.pt", weights_only=True)
    return {**state["modules"], **{"average " + name: value for name, value in state["average"].items()}}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    loop.train(Toy(), SCHEDULE, tmp_path / "whole", say=quiet)
    assert loop.train(Toy(), SCHEDULE, tmp_path / "parts", stop_at=24, say=quiet) == 24
    assert loop.train(Toy(), SCHEDULE, tmp_path / "parts", say=quiet) == 64
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_loop import SCHEDULE, Toy, quiet
from training import loop

class Doomed(Toy):
    def losses(self, start, count, generator):
        if start == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(start, count, generator)

loop.train(Doomed(), SCHEDULE, Path({folder!r}), save_seconds=0.0, say=quiet)
"""


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "killed"))
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "state.pt", weights_only=True)["seen"] == 40
    loop.train(Toy(), SCHEDULE, tmp_path / "killed", say=quiet)
    loop.train(Toy(), SCHEDULE, tmp_path / "whole", say=quiet)
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_unfinished_save_leaves_the_old_state(tmp_path):
    loop.train(Toy(), SCHEDULE, tmp_path, stop_at=24, say=quiet)
    (tmp_path / "state.pt.tmp").write_bytes(b"half a file")
    assert loop.train(Toy(), SCHEDULE, tmp_path, say=quiet) == 64


def test_sigterm_saves_and_ends(tmp_path):
    class Interrupted(Toy):
        def losses(self, start, count, generator):
            if start == 16:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)
            return super().losses(start, count, generator)

    assert loop.train(Interrupted(), SCHEDULE, tmp_path, say=quiet) == 24
    assert torch.load(tmp_path / "state.pt", weights_only=True)["seen"] == 24


def test_finished_stage_carries_the_average(tmp_path):
    stage = Toy()
    loop.train(stage, SCHEDULE, tmp_path, say=quiet)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert_equal(dict(stage.modules.state_dict()), state["average"])
    again = Toy()
    assert loop.load_trained(again, SCHEDULE, tmp_path) == 64
    assert_equal(dict(again.modules.state_dict()), state["average"])
    assert not torch.equal(state["average"]["net.0.weight"], state["modules"]["net.0.weight"])


def test_learning_rate_climbs_and_falls():
    schedule = loop.Schedule(images=1000, batch=10, learning_rate=1.0, warmup=100)
    rates = [loop.learning_rate(schedule, seen) for seen in range(0, 1001, 10)]
    peak = rates.index(max(rates))
    assert rates[0] == pytest.approx(0.1)
    assert 5 <= peak <= 15
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.01)


def test_log_is_json_lines(tmp_path):
    loop.train(Toy(), SCHEDULE, tmp_path, say=quiet)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["seen"] == 64
    assert {"images_per_second", "seconds", "loss"} <= last.keys()


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path):
    class Broken(Toy):
        def losses(self, start, count, generator):
            return {"loss": super().losses(start, count, generator)["loss"] * float("nan")}

    with pytest.raises(FloatingPointError, match="the loss is nan"):
        loop.train(Broken(), SCHEDULE, tmp_path, say=quiet)
    assert not (tmp_path / "state.pt").exists()


def test_unknown_recipe_lists_the_known():
    with pytest.raises(FileNotFoundError, match="the recipes are: classifier, clip, teacher, vae"):
        loop.read_recipe("nonsense")


def test_untrained_stage_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m training toy"):
        loop.load_trained(Toy(), SCHEDULE, tmp_path / "toy")


SHARED = """
import sys
from pathlib import Path
import torch
from torch import distributed
sys.path.insert(0, {tests!r})
from test_loop import SCHEDULE, Toy, quiet
from training import loop

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), Path({folder!r})
distributed.init_process_group("gloo", init_method="file://" + {folder!r} + "/meet", rank=rank, world_size=2)
stage = Toy()
loop.train(stage, SCHEDULE, folder / "state", say=quiet)
torch.save(list(stage.net.parameters())[0].detach(), folder / f"weight{{rank}}.pt")
distributed.destroy_process_group()
"""


def test_processes_that_share_a_batch_stay_equal(tmp_path):
    code = SHARED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    root = str(Path(__file__).parents[2])
    running = [subprocess.Popen([sys.executable, "-c", code, rank], cwd=root) for rank in ("0", "1")]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    first, second = (torch.load(tmp_path / f"weight{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    assert torch.load(tmp_path / "state" / "state.pt", weights_only=True)["seen"] == 64


def test_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_grouped", lambda: True)
    monkeypatch.setattr(loop.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(loop.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="a batch of 8 cannot be shared by 3 processes"):
        loop.train(Toy(), SCHEDULE, tmp_path, say=quiet)
