"""Decide what is due after a step, the same in all processes of a run."""

from __future__ import annotations

import time

from accelerate import Accelerator

from training.recipes.schema import Recipe
from training.run.processes import agree

_SLOW_STEP = 0.5
"""Seconds; the host may wait for a device after each step that takes longer."""


class Agenda:
    """What is due: reports and saves by the clock, validation and previews by the images seen."""

    stop = report = save = validate = preview = False

    def __init__(self, recipe: Recipe, accelerator: Accelerator, seen: int, end: int) -> None:
        """Begin after `seen` images of a run that ends after `end`."""
        self._watch, self._batch = recipe.watch, recipe.schedule.batch
        self._accelerator, self._seen, self._end = accelerator, seen, end
        self._reported = self._saved = self._looked = time.monotonic()
        self._stride = 1

    def look(self, seen: int, stop: bool) -> bool:
        """Find what is due after `seen` images; `stop` is this process's wish to stop.

        Returns False where nothing is looked at: whatever is due waits for the device, so on a GPU with quick
        steps only every tenth step is followed by a look.
        """
        on_cpu = self._accelerator.device.type == "cpu"
        if not on_cpu and seen // self._batch % self._stride and seen < self._end:
            return False
        now, watch = time.monotonic(), self._watch
        self.stop, report, self.save, slow = agree(
            self._accelerator,
            stop,
            now - self._reported >= watch.report_seconds or seen >= self._end,
            now - self._saved >= 60 * watch.save_minutes,
            now - self._looked > _SLOW_STEP * self._stride,
        )
        # Waiting costs little where steps are long, and whoever sends SIGTERM does not wait long.
        self._looked, self._stride = now, 1 if slow else 10
        self.report = report or self.stop
        if self.report:
            self._reported = now
        self.validate = _passed(self._seen, seen, watch.validation_images)
        self.preview = _passed(self._seen, seen, watch.preview_images)
        self._seen = seen
        return True

    def saved(self) -> None:
        """Count the time to the next save from now."""
        self._saved = time.monotonic()


def _passed(before: int, seen: int, interval: int) -> bool:
    """Say whether a multiple of the interval lies between two numbers of images; 0 is never."""
    return interval > 0 and seen // interval > before // interval
