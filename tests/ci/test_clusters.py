"""The files for clusters in the documentation are what KubeRay and SkyPilot read; their commands are ours."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pytest_sdbench.commands.main import COMMANDS, parser

FILES = Path(__file__).parents[2] / "docs" / "clusters"
NAMES = ("kuberay", "skypilot")


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
