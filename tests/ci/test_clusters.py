"""The files for clusters in the documentation are what their readers want; their commands are ours."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pytest_sdbench.commands.main import COMMANDS, main, parser
from tests.project import make_project, make_protocol

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs" / "clusters"
NAMES = ("kuberay", "skypilot")
SCRIPTS = ("sample", "training")
SBATCH = {
    **dict.fromkeys(("array", "output", "job-name", "time", "signal"), r"\S+"),
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "gpus", "gpus-per-node", "cpus-per-task"), r"\d+"),
    "open-mode": "append|truncate",
    "requeue": "",
}
"""Options of sbatch, and the form of their values here: https://slurm.schedmd.com/sbatch.html"""


def content(name: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe", pure=True).load((FILES / f"{name}.yaml").read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_file_has_the_form_that_its_reader_wants(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")
    schema = json.loads(Path(__file__).with_name(f"{name}.schema.json").read_text("utf-8"))
    checker = jsonschema.Draft202012Validator(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert [error.message for error in checker.iter_errors(content(name))] == []
    assert list(checker.iter_errors(content(name) | {"other": 1})), "the schema tells what is wrong"


@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_a_file_is_one_that_is_understood(name: str) -> None:
    found = content(name)
    text = found["spec"]["entrypoint"] if name == "kuberay" else found["run"]
    (command,) = re.findall(r"python -m pytest_sdbench ([^\n]*)", text)
    options = parser(*COMMANDS).parse_args(shlex.split(command))
    assert (options.command, options.device) == ("sample", "cuda")
    assert options.ray is not None


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_for_slurm_is_one_that_bash_and_sbatch_read(name: str) -> None:
    path = FILES / f"{name}.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text("utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert options
    for option in options:
        key, _, value = option.removeprefix("--").partition("=")
        assert option.startswith("--")
        assert re.fullmatch(SBATCH[key], value), option
    first = next(place for place, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:]), (
        "sbatch reads no option after a command"
    )


@pytest.mark.slow
def test_the_tasks_of_an_array_make_what_one_process_makes(tmp_path: Path, pristine_checkpoint: Path) -> None:
    """Run the script as Slurm does, twice, for two tasks of three; the third is never started."""
    card = make_project(tmp_path, pristine_checkpoint, claims={"clip_score": 0.99})
    metrics = {"clip_score": {"model": "local:scenes-clip"}}
    make_protocol(card.parent / "protocols" / "mini.yaml", n=64 * 6, metrics=metrics, margins={})
    words = [str(card), "--device", "cpu", "--workers", "1", "--batch-size", "16", "--images", str(64 * 4)]
    assert main(["sample", *words, "--store", str(tmp_path / "one")]) == 0

    def task(number: int) -> subprocess.Popen[str]:
        array = {"TASK_ID": number, "TASK_COUNT": 3, "TASK_MIN": 1, "TASK_MAX": 3, "TASK_STEP": 1}
        environment = {f"SLURM_ARRAY_{name}": str(value) for name, value in array.items()}
        environment |= {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "OMP_NUM_THREADS": "1"}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        command = ["bash", str(FILES / "sample.sbatch"), *words, "--store", str(tmp_path / "array")]
        return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)

    tasks = [task(number) for number in (1, 3)]
    told = [task.communicate(timeout=600)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert [line[:3] for line in told] == ["[0]", "[2]"]
    assert all("256 images in the store" in line for line in told)
    assert files(tmp_path / "array") == files(tmp_path / "one")


def files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("*/*-0*")}
