"""Draw training pairs from scenes, the embedded dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import cached_property

from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.splitmix import Dice
from training.data.source import Sample, Source
from training.errors import TrainingError

WIDTH = 64
"""Pixels of a side of the scenes that close-ups are cut out of: the places of objects are told in these."""
_STRAY = 4
"""How far the object of a close-up stands off its middle at most, in pixels."""


class ScenesSource(Source):
    """`pairs` scenes from index `first` on, or those of certain layouts, drawn `size` pixels wide.

    Their names are those of a domain. A close-up is a square of so many pixels around the only object of a
    scene, which stands within four pixels of its middle; its latents alone are learned from. Raises
    TrainingError for a layout or domain that there is none, for close-ups of several objects or wider than
    scenes, and where the indices leave `scenes.TRAINING`: the scenes beyond are those that checkpoints are
    judged on.
    """

    def __init__(
        self,
        pairs: int | None,
        *,
        first: int = 0,
        layouts: Collection[str] | None = None,
        domain: str = "all",
        size: int = 64,
        close_up: int | None = None,
    ) -> None:
        if close_up is not None and (set(layouts or ()) != {"one"} or size != WIDTH or close_up > size):
            raise TrainingError(
                f"a close-up is cut around the only object of a scene that is {WIDTH} pixels wide",
                key="data.close_up",
                found=close_up,
                remedy=f"Write layouts: [one] and resolution: {WIDTH}, and a close-up that is no wider",
            )
        self._close_up = close_up
        self._size, self._layouts = size, None if layouts is None else frozenset(layouts)
        for layout in self._layouts or ():
            if layout not in scenes.LAYOUTS:
                raise TrainingError(
                    "unknown layout",
                    key="data.layouts",
                    found=layout,
                    remedy=f"Known: {', '.join(scenes.LAYOUTS)}",
                )
        self._domain = domain
        if domain not in scenes.DOMAINS:
            known = f"Known: {', '.join(scenes.DOMAINS)}"
            raise TrainingError("unknown domain", key="data.domain", found=domain, remedy=known)
        if first < 0 or (pairs is not None and pairs < 1):
            raise TrainingError(
                "not a range of scenes",
                key="data.first" if first < 0 else "data.pairs",
                found=first if first < 0 else pairs,
                remedy="Indices start at 0, and one pair is the least",
            )
        self._indices = self._choose(first, pairs)

    def _choose(self, first: int, pairs: int | None) -> Sequence[int]:
        last = scenes.TRAINING.stop
        if self._layouts is None:
            wanted = range(first, first + pairs if pairs is not None else max(first + 1, last))
            if wanted.stop > last:
                raise _beyond(f"{wanted.start} to {wanted.stop - 1}")
            return wanted
        chosen = []
        for index in range(first, last):
            if scenes.scene(index).layout in self._layouts:
                chosen.append(index)
                if len(chosen) == pairs:
                    return chosen
        if pairs is not None or not chosen:
            raise _beyond(f"{len(chosen)} scenes of {', '.join(sorted(self._layouts))} from {first} on")
        return chosen

    @property
    def name(self) -> str:
        told = f"scenes {self._indices[0]} to {self._indices[-1]}"
        return told if self._domain == "all" else f"{told} with {self._domain} alone"

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the indices, and of some drawn scenes: they change when the drawing of scenes does."""
        layouts = None if self._layouts is None else sorted(self._layouts)
        ends = f"{self._indices[0]} {self._indices[-1]}"
        told = f"scenes {len(self)} {ends} {layouts} {self._domain} {self._size}"
        if self._close_up:
            told += f" close-up {self._close_up}"
        digest = hashlib.sha256(told.encode())
        some = [self._indices[place * (len(self) - 1) // 15] for place in range(16)]
        digest.update(repr(scenes.captions(some, self._domain)).encode())
        digest.update(scenes.render_batch(some, self._size, self._domain).tobytes())
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, row: int) -> Sample:
        """Draw the scene of a row."""
        scene = scenes.scene(self._indices[row], self._domain)
        window = None if self._close_up is None else _around(scene, self._close_up)
        return Sample(f"scene {scene.index}", scenes.render(scene, self._size), scene.caption, window)


def _around(scene: scenes.Scene, side: int) -> tuple[int, int, int]:
    """Return top, left and side of a square within a scene that holds its only object."""
    dice, (thing,) = Dice(scene.index, stream=3), scene.objects
    left, top = (
        min(max(middle + dice.pick((-_STRAY, 0, _STRAY)) - side // 2, 0), WIDTH - side)
        for middle in (thing.x, thing.y)
    )
    return top, left, side


def _beyond(found: str) -> TrainingError:
    return TrainingError(
        f"scenes beyond {scenes.TRAINING.stop - 1}, the last that training may draw",
        key="data.pairs",
        found=found,
        remedy="Lower data.first or data.pairs",
    )
