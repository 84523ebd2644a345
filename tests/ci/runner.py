"""Run the steps of an action, a workflow or a GitLab job as their files have them, with bash.

Steps that use actions of others do here what those do: a folder is the cache, another one the artifacts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PULL_REQUEST = {
    "number": 7,
    "head": {"sha": "0123456789abcdef0123456789abcdef01234567", "repo": {"full_name": "owner/models"}},
}
GH = """\
import json, os, pathlib, subprocess, sys
words, state = sys.argv[1:], pathlib.Path(os.environ["GH_STATE"])
known = json.loads(state.read_text()) if state.exists() else []
option = lambda name: words[words.index(name) + 1] if name in words else ""
assert words[0] == "api" and os.environ["GH_TOKEN"] == "a-token"
if os.environ.get("GH_REFUSES") in ("all", option("-X")):
    sys.exit("gh: Resource not accessible by integration (HTTP 403)")
if method := option("-X"):
    body = pathlib.Path(option("-F").removeprefix("body=@")).read_text(encoding="utf-8")
    if method == "POST":
        assert words[-3] == "repos/owner/models/issues/7/comments"
        known.append({"id": 100 + len(known), "user": {"login": "github-actions[bot]"}, "body": body})
    else:
        next(each for each in known if f"/comments/{each['id']}" in words[-3])["body"] = body
    state.write_text(json.dumps(known))
else:
    asked = subprocess.run(["jq", "-r", option("--jq")], input=json.dumps(known), text=True, check=True)
"""


@dataclass
class Step:
    """What came of one step."""

    name: str
    status: int
    log: str
    summary: str
    outputs: dict[str, str]


@dataclass
class Runner:
    """A machine of GitHub with one checkout."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    pull_request: Mapping[str, Any] | None = field(default_factory=lambda: PULL_REQUEST)
    steps: list[Step] = field(default_factory=list)
    caches: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in (self.workspace, self.temporary, self.artifacts, self.programs):
            folder.mkdir(parents=True)
        self.program("gh", f"#!{sys.executable}\n{GH}")
        # The tests run in an environment that already has what is to be installed, and nothing changes it.
        self.program("python", f'#!/bin/bash\n[[ "$1 $2" == "-m pip" ]] || exec {sys.executable} "$@"\n')

    def program(self, name: str, text: str) -> Path:
        """Write a program that the steps find before any other of its name."""
        path = self.programs / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return path

    @property
    def workspace(self) -> Path:
        return self.home / "workspace"

    @property
    def temporary(self) -> Path:
        return self.home / "temp"

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def programs(self) -> Path:
        return self.home / "bin"

    @property
    def comments(self) -> list[dict[str, Any]]:
        """The comments on the pull request."""
        state = self.home / "comments.json"
        return list(json.loads(state.read_text(encoding="utf-8"))) if state.exists() else []

    @property
    def summary(self) -> str:
        return "".join(step.summary for step in self.steps)

    def step(self, name: str) -> Step:
        """Return the step of a name."""
        return next(step for step in self.steps if step.name == name)

    def workflow(self, path: Path) -> int:
        """Run the jobs of a workflow and return the exit status of the first step that failed."""
        found = [self._run_steps(job["steps"], {}, job.get("env", {})) for job in load(path)["jobs"].values()]
        return next(filter(None, found), 0)

    def action(self, **inputs: str) -> int:
        """Run the action with some inputs and return the exit status of the step that failed."""
        whole = load(ROOT / "action.yml")
        known = {name: each.get("default", "") for name, each in whole["inputs"].items()}
        assert inputs.keys() <= known.keys()
        return self._run_steps(whole["runs"]["steps"], known | inputs, {})

    def gitlab(self, path: Path, job: str) -> int:
        """Run the script of a GitLab job, which is one shell."""
        script = "\n".join(load(path)[job]["script"])
        return self._bash({"run": script, "name": job}, {}, ["bash", "-eo", "pipefail"]).status

    def _run_steps(self, steps: list[dict[str, Any]], inputs: Mapping[str, str], env: Mapping) -> int:
        outputs: dict[str, dict[str, str]] = {}
        context = {
            "inputs": inputs,
            "steps": {},
            "github": {
                "token": "a-token",
                "repository": "owner/models",
                "event": {"pull_request": self.pull_request},
            },
        }
        failed = 0
        for step in steps:
            condition = str(step.get("if", "true")).removeprefix("${{").removesuffix("}}")
            if not _true(condition, context) or (failed and "always()" not in condition):
                continue
            done = self._used(step, context) if "uses" in step else self._step(step, context, env)
            self.steps.append(done)
            outputs[step.get("id", "")] = done.outputs
            context["steps"] = {key: {"outputs": each} for key, each in outputs.items()}
            failed = failed or done.status
        return failed

    def _step(self, step: dict[str, Any], context: Mapping[str, Any], env: Mapping[str, str]) -> Step:
        values = {key: filled(str(value), context) for key, value in {**env, **step.get("env", {})}.items()}
        assert "${{" not in step["run"]
        return self._bash(step, values, ["bash", "--noprofile", "--norc", "-eo", "pipefail"])

    def _bash(self, step: dict[str, Any], values: Mapping[str, str], shell: list[str]) -> Step:
        files = {name: self.home / name for name in ("script", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for name, file in files.items():
            file.write_text(step["run"] if name == "script" else "", encoding="utf-8")
        environment = {
            "PATH": os.pathsep.join(map(str, (self.programs, BIN, os.environ["PATH"]))),
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_REPOSITORY": "owner/models",
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_RUN_ID": "42",
            "RUNNER_TEMP": str(self.temporary),
            "PIP_TARGET": str(self.home / "site"),
            "GH_STATE": str(self.home / "comments.json"),
            **{name: str(file) for name, file in files.items() if name != "script"},
            **self.environment,
            **values,
        }
        ran = subprocess.run(
            [*shell, str(files["script"])],
            cwd=self.workspace,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        said = (line.partition("=") for line in files["GITHUB_OUTPUT"].read_text("utf-8").splitlines())
        outputs = {name: value for name, _, value in said}
        name = step.get("name", step["run"])
        return Step(
            name, ran.returncode, ran.stdout, files["GITHUB_STEP_SUMMARY"].read_text("utf-8"), outputs
        )

    def _used(self, step: dict[str, Any], context: Mapping[str, Any]) -> Step:
        values = {key: filled(_text(value), context) for key, value in step.get("with", {}).items()}
        action = step["uses"].partition("@")[0]
        name, status, outputs = step.get("name", step["uses"]), 0, {}
        if action == "OWNER/pytest-sdbench":
            status = self.action(**values)
        elif action == "actions/cache/restore":
            (prefix,) = values["restore-keys"].split()
            if kept := [key for key in self.caches if key.startswith(prefix)]:
                shutil.copytree(self.caches[kept[-1]], self.workspace / values["path"], dirs_exist_ok=True)
                outputs = {"cache-matched-key": kept[-1]}
        elif action == "actions/cache/save":
            assert values["key"] not in self.caches
            folder = self.home / "caches" / values["key"]
            self.caches[values["key"]] = Path(shutil.copytree(self.workspace / values["path"], folder))
        elif action == "actions/upload-artifact":
            outputs = self._upload(values)
        else:
            assert action == "actions/checkout"
        return Step(name, status, "", "", outputs)

    def _upload(self, values: Mapping[str, str]) -> dict[str, str]:
        source = self.workspace / values["path"]
        if not source.exists():
            return {}
        if values.get("archive") == "false":
            assert source.is_file()
            name = source.name
            shutil.copy(source, self.artifacts)
        else:
            name = values["name"]
            shutil.copytree(source, self.artifacts / name, dirs_exist_ok=True)
        return {"artifact-url": f"https://github.com/owner/models/actions/runs/42/artifacts/{name}"}


def load(path: Path) -> Any:
    """Return the content of a YAML file."""
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def filled(text: str, context: Mapping[str, Any]) -> str:
    """Return a text with its expressions filled in, as GitHub writes their values."""

    def value(found: re.Match[str]) -> str:
        said = _value(found[1], context)
        return "" if said is None else _text(said)

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


def _text(value: Any) -> str:
    """Return a value as GitHub writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _true(expression: str, context: Mapping[str, Any]) -> bool:
    return bool(_value(expression, context))


def _value(expression: str, context: Mapping[str, Any]) -> Any:
    """Return the value of an expression of GitHub: a way of keys, `!=`, `==`, `!`, `&&` and two functions."""
    said = expression.replace("&&", " and ").replace("||", " or ")
    said = re.sub(r"!(?!=)", " not ", said).replace("true", "True")
    said = re.sub(r"\b(?:inputs|steps|github)(?:\.[\w-]+)+", lambda way: f"at({way[0]!r})", said)

    def at(way: str) -> Any:
        found: Any = context
        for key in way.split("."):
            found = (found or {}).get(key)
        return "" if found is None else found

    known = {"at": at, "always": lambda: True, "contains": lambda whole, part: part in whole}
    return eval(said.replace("'True'", "'true'"), {"__builtins__": {}}, known)
