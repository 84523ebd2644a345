"""What a team imports from the package itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pytest_sdbench

PUBLIC = {
    *("Card", "read_card", "Protocol", "load_protocol", "Checkpoint", "resolve", "load_pipeline"),
    *("Workspace", "evaluate", "Evaluation", "Estimate", "Undefined", "Outcome", "Verdict"),
    *("SdbenchError", "Unavailable"),
    *("Metric", "Sample", "FeatureStatistics", "standard_error", "register_metric"),
    *("Extractor", "register_extractor"),
}


def test_the_public_names_are_these_and_each_explains_itself():
    assert set(pytest_sdbench.__all__) == PUBLIC
    assert set(pytest_sdbench.__all__) <= set(dir(pytest_sdbench))
    for name in PUBLIC:
        docstring = getattr(pytest_sdbench, name).__doc__ or ""
        assert docstring.strip(), f"{name} has no docstring"
        assert not docstring.startswith(f"{name}("), f"{name} has the docstring that dataclasses make"


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Cards'"):
        _ = pytest_sdbench.Cards  # type: ignore[attr-defined]


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, pytest_sdbench; "
        "print([name for name in ('torch', 'numpy', 'pydantic', 'diffusers') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
