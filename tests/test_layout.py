"""The code stays readable: short modules, short functions, few entries, and nothing of one machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("pytest_sdbench", "training", "benchmarks")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LINES_OF_A_MODULE, LINES_OF_A_FUNCTION, ENTRIES = 400, 60, 17
MACHINE_PATH = re.compile(r"""(?<![\w.~/:-])/(?:home|root|Users|work|mnt|srv|opt)/\w""")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= LINES_OF_A_MODULE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = (node.end_lineno or first) - first + 1
            assert length <= LINES_OF_A_FUNCTION, f"{node.name} has {length} lines"


def test_the_package_has_few_entries() -> None:
    entries = [path.name for path in (ROOT / "pytest_sdbench").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= ENTRIES, sorted(entries)


def test_no_file_names_a_path_of_one_machine() -> None:
    found = [
        f"{name(path)}: {line.strip()}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*"))
        if path.is_file() and path.suffix in {".py", ".md", ".yaml", ".json", ".toml", ".txt", ".typed"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if MACHINE_PATH.search(line)
    ]
    assert not found
