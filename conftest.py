"""Options and profiles of the project's own test run."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import configuration, settings

settings.register_profile("steady", derandomize=True, database=None, deadline=None, max_examples=50)
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "5000"))
settings.register_profile(
    "explore",
    derandomize=False,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    report_multiple_bugs=False,
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Share the cores among the workers and choose the profile of the property tests.

    Two workers with two threads each are slower than with one. Property tests try the same examples in
    every run; ``HYPOTHESIS_PROFILE=explore`` tries many new ones.
    """
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
    configuration.set_hypothesis_home_dir(config.rootpath / ".pytest_cache" / "hypothesis")
    atexit.register(gc.unfreeze)  # libraries report what is alive when Python ends


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the garbage collector what collecting imports: most of a million objects that stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
