"""Name sets of scenes that statistics are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.sections import Prompts


@dataclass(frozen=True)
class SceneSet:
    """Scenes of a range: all or those of some layouts, with names of a domain."""

    indices: range
    layouts: Sequence[str] = ()
    domain: str = "all"

    def chosen(self) -> Sequence[int]:
        """Return the indices of the scenes. Raises ValueError for a layout that does not exist."""
        return list(scenes.indices_of(self.layouts, self.indices)) if self.layouts else self.indices

    @property
    def kind(self) -> str:
        """What they are besides their range; empty for all scenes."""
        told = f" of layout {', '.join(sorted(set(self.layouts)))}" if self.layouts else ""
        return told + ("" if self.domain == "all" else f" with {self.domain} alone")

    @property
    def source(self) -> str:
        """The words of the command `stats` that name them."""
        told = f"scenes:{self.indices.start}-{self.indices.stop - 1}"
        told += f" --layouts {' '.join(sorted(set(self.layouts)))}" if self.layouts else ""
        return told + ("" if self.domain == "all" else f" --domain {self.domain}")

    def __str__(self) -> str:
        return f"scenes {self.indices.start} to {self.indices.stop - 1}{self.kind}"


def scenes_like(prompts: Prompts) -> SceneSet | None:
    """Return scenes like those that a protocol shows, which nothing else uses; None for other prompts."""
    if prompts.kind != "scenes":
        return None
    return SceneSet(scenes.REFERENCE, prompts.layouts or (), prompts.domain)
