"""The former place of two public names, which model cards that are out still import from here.

New code imports them from `pytest_sdbench`. There is no warning, since who runs a card did not write it.
"""

from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.pipeline import load_pipeline

__all__ = ["load_pipeline", "resolve"]
