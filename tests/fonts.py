"""Take the font of scenes away for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from unittest.mock import patch

from pytest_sdbench.protocols import scene_glyphs


@contextmanager
def installed(spec: ModuleSpec | None) -> Iterator[None]:
    """Let `spec` be all of matplotlib that is found; None: it is not installed."""
    with patch.object(scene_glyphs, "find_spec", lambda name: spec):
        scene_glyphs._checked.cache_clear()
        yield
    scene_glyphs._checked.cache_clear()
