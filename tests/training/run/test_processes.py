"""What the processes of a run have to agree on before the first step."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.helpers import begin, begin_pair, finish, tiny_recipe, train_toy
from training.errors import TrainingError
from training.run import processes, state
from training.run.processes import check_shared, lost_process, start, started_again
from training.run.state import FILE, read_state


def with_folders(work: object, *folders: Path) -> list[int | None]:
    """Run `work` in as many processes as there are folders, each as if on a host of its own."""
    return finish(begin_pair(on_own_host, work, tuple(map(str, folders)), LOCAL_WORLD_SIZE="1"))


def on_own_host(work: object, folders: tuple[str, ...]) -> None:
    assert callable(work)
    processes.FRESH_SECONDS = state.FRESH_SECONDS = 2.0
    state._PAUSE = 0.5
    work(Path(folders[int(os.environ["RANK"])]))


def refuse_different_states(folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"different states \(found '.* here, (no state|8 images) to 24"):
        train_toy(folder)


def refuse_a_folder_of_its_own(folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"do not share this folder.*--folder RUN_FOLDER"):
        check_shared(folder, start(tiny_recipe(), folder, "cpu"))


def share(folder: Path) -> None:
    check_shared(folder, start(tiny_recipe(), folder, "cpu"))


@pytest.mark.parametrize("other", ["older", "none"])
def test_processes_that_find_different_states_do_not_start(tmp_path: Path, other: str) -> None:
    train_toy(tmp_path / "new", stop_at=24)
    if other == "older":
        train_toy(tmp_path / "other", stop_at=8)
    assert with_folders(refuse_different_states, tmp_path / "new", tmp_path / "other") == [0, 0]
    assert read_state(tmp_path / "new" / FILE)["seen"] == 24


def find_the_new_state_late(folder: Path) -> None:
    """As on a host that sees a folder of the network as it was."""
    if folder.is_symlink():

        def appear() -> None:
            time.sleep(0.7)
            new = folder.with_name("link")
            new.symlink_to(folder.with_name("new"))
            new.replace(folder)

        threading.Thread(target=appear).start()
    assert train_toy(folder, stop_at=32)[0] == 32


def test_a_process_that_sees_the_state_of_before_looks_again(tmp_path: Path) -> None:
    train_toy(tmp_path / "new", stop_at=24)
    train_toy(tmp_path / "old", stop_at=8)
    (tmp_path / "seen").symlink_to(tmp_path / "old")
    assert with_folders(find_the_new_state_late, tmp_path / "new", tmp_path / "seen") == [0, 0]
    assert read_state(tmp_path / "new" / FILE)["seen"] == 32


def test_hosts_share_the_folder_of_a_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    apart = (tmp_path / "a" / "run", tmp_path / "b" / "run")
    assert with_folders(refuse_a_folder_of_its_own, *apart) == [0, 0]
    assert with_folders(share, apart[0], apart[0]) == [0, 0]
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b"}


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer", True),
        ("NCCL communicator was aborted on rank 1", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_the_error_of_a_process_that_waits_for_one_that_is_gone_is_explained(words: str, lost: bool) -> None:
    error = lost_process(RuntimeError(words))
    assert (error is not None) == lost
    if error is not None:
        assert "is gone, or does not answer" in str(error)
        assert "goes on from the last state" in str(error)


@pytest.mark.parametrize(
    ("variables", "again"),
    [
        ({}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, True),
        ({"SLURM_RESTART_COUNT": "1"}, True),
    ],
)
def test_a_launcher_tells_that_it_starts_a_run_again(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], again: bool
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started_again() is again


def refuse_a_shared_store(folder: str) -> None:
    with pytest.raises(TrainingError, match=r"TORCH_DISABLE_SHARE_RDZV_TCP_STORE: .*Set it to 1"):
        start(tiny_recipe(), Path(folder), "cpu")


def test_a_store_that_several_hosts_share_between_restarts_is_refused(tmp_path: Path) -> None:
    launcher = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"}
    process = begin(refuse_a_shared_store, str(tmp_path), **launcher, GROUP_WORLD_SIZE="2")
    assert finish([process]) == [0]


def accumulate_once(folder: str) -> None:
    assert start(tiny_recipe(), Path(folder), "cpu").gradient_accumulation_steps == 1


def refuse_deepspeed(folder: str) -> None:
    with pytest.raises(TrainingError, match="DeepSpeed is not supported"):
        start(tiny_recipe(), Path(folder), "cpu")


@pytest.mark.parametrize(
    ("what", "variables"),
    [
        (accumulate_once, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}),
        (refuse_deepspeed, {"ACCELERATE_USE_DEEPSPEED": "true"}),
    ],
)
def test_settings_of_accelerate_do_not_change_a_run_unseen(
    tmp_path: Path, what: Callable[[str], None], variables: dict[str, str]
) -> None:
    assert finish([begin(what, str(tmp_path), **variables)]) == [0]


def test_a_float16_run_is_exported_without_a_gpu(tmp_path: Path) -> None:
    recipe = tiny_recipe("precision=fp16")
    assert start(recipe, tmp_path, "cpu", trains=False).mixed_precision == "no"
