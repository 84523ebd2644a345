"""A project that merely has the plugin installed sees nothing of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "pydantic", "diffusers", "transformers", "ruamel.yaml", "huggingface_hub", "PIL")


def test_plain_pytest_imports_nothing_heavy(pytester: pytest.Pytester):
    pytester.makepyfile("def test_one(): pass")
    pytester.makeconftest(
        f"""
        import sys

        def pytest_unconfigure(config):
            loaded = [name for name in {HEAVY!r} if name in sys.modules]
            ours = [name for name in sys.modules if name.startswith("pytest_sdbench")]
            print("LOADED", loaded, sorted(ours))
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:benchmark", "-p", "no:xdist", "-s")
    names = ("base", "base.errors", "base.options", "plugin", "suite", "suite.options")
    light = ["pytest_sdbench", *(f"pytest_sdbench.{name}" for name in names)]
    assert f"LOADED [] {light}" in result.stdout.str()


def test_plain_pytest_shows_no_header_no_marker_and_collects_no_card(pytester: pytest.Pytester):
    pytester.makefile(".md", card="---\nmodel-index: []\nsdbench: {}\n---\n")
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*sdbench:*")
    assert "pytest-sdbench" not in pytester.runpytest("--markers").stdout.str()


def test_help_has_one_group_with_every_option(pytester: pytest.Pytester):
    text = pytester.runpytest("--help").stdout.str()
    start = text.index("sdbench: model cards as tests")
    group = text[start : text.index("\n\n", start)]
    names = ["weights", "data", "download", "samples", "device", "dtype", "store", "report", "update"]
    names += ["budget", "inconclusive", "calibrate", "max-images"]
    for name in ("", *(f"-{name}" for name in names)):
        assert f"--sdbench{name}" in group
        assert f"sdbench{name.replace('-', '_')} (" in text  # the ini twin


def test_the_plugin_module_needs_only_pytest_and_the_standard_library():
    program = (
        "import sys, pytest; before = set(sys.modules); import pytest_sdbench.plugin; "
        "print({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "{'pytest_sdbench'}"
