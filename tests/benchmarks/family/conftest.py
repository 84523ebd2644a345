"""Networks that tests of the family read."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.students.networks import Parts, load_parts


@pytest.fixture(scope="session")
def parts(pristine_checkpoint: Path) -> Parts:
    """The networks of the tiny checkpoint, which no test changes."""
    return load_parts(str(pristine_checkpoint))
