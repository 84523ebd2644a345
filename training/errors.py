"""What goes wrong in a training: an error that names file, key, what was found and what to do."""

from __future__ import annotations

from pytest_sdbench.base.errors import SdbenchError


class TrainingError(SdbenchError):
    """A recipe, training data or run that cannot be used as it is."""
