"""Define a metric: everything that cards, protocols, features, verdicts and tables ask about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics, Rows
from pytest_sdbench.metrics.standard_error import Groups


@dataclass(frozen=True)
class Sample:
    """What an extractor said of the images of one checkpoint, in the order of their prompts."""

    batches: Iterable[Rows]
    """Rows of one column, [B, D] or [B], as often as they are asked for."""
    n: int
    """Images."""
    groups: Groups | None = None
    """Which images share a prompt, [n]; None where no two do."""

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.batches)

    def rows(self) -> Rows:
        """Return all rows at once, [n, D] or [n]; raises ValueError where there is no image."""
        if not self.n:
            raise ValueError("no images")
        return next(self.parts(self.n))

    def parts(self, most: int) -> Iterator[Rows]:
        """Yield the rows in parts of at most so many images, whose sizes differ by one at most."""
        count = -(-self.n // most)
        return self._cut(self.n * (k + 1) // count - self.n * k // count for k in range(count))

    def blocks(self, size: int) -> Iterator[Rows]:
        """Yield the rows in blocks of one size; the last may be smaller."""
        return self._cut(min(size, self.n - start) for start in range(0, self.n, size))

    def _cut(self, sizes: Iterable[int]) -> Iterator[Rows]:
        """Yield rows in blocks of these sizes, whatever batches they come in.

        Raises ValueError where there are fewer.
        """
        batches, left = iter(self.batches), None
        for size in sizes:
            block, filled = None, 0
            while block is None or filled < size:
                while left is None or not len(left):
                    if (left := next(batches, None)) is None:
                        raise ValueError(f"fewer rows than the {self.n} images")
                taken, left = left[: size - filled], left[size - filled :]
                if block is None:
                    # In place: a list of what came and all of it joined would take twice the memory.
                    whole = len(taken) == size
                    block = taken if whole else np.empty((size, *taken.shape[1:]), taken.dtype)
                if block is not taken:
                    block[filled : filled + len(taken)] = taken
                filled += len(taken)
            yield block


@dataclass(frozen=True)
class NoOptions:
    """A metric that a protocol can set nothing of."""


@dataclass(frozen=True)
class Metric:
    """One metric: its name and its bounds, what it needs, and how rows become an estimate."""

    name: str
    """As protocols and node ids have it."""
    label: str
    """As tables have it."""
    decimals: int
    """Decimals in a table."""
    recorded_decimals: int
    """Decimals in a record: enough to see a drift, few enough to read."""
    higher_is_better: bool
    estimate: Callable[[Sample, FeatureStatistics | None, Any], Estimate | Undefined]
    """Turn a sample into an estimate, given the reference statistics (where `reference` wants them) and the
    protocol's options. Raises ValueError for rows that cannot be of this metric."""
    output: str
    """What it reads of its extractor: ``features``, ``logits``, ``cosine``, or another output by name."""
    reads: Literal["image", "pair", "imported"] = "image"
    """One column of each image; of pairs of candidate and baseline; or a column that another tool filled."""
    reference: Literal["none", "moments", "features"] = "none"
    """What must be known of the real images: nothing, mean and covariance, or features of some of them."""
    options: type[Any] = NoOptions
    """Frozen dataclass of what a protocol may set; its fields have defaults, and types that are checked."""
    check: Callable[[Any, str], None] | None = None
    """Raises ValueError for options that do not suit an extractor, by its name."""
    extractor_key: str = "extractor"
    """How protocols call the network that the metric reads."""
    aliases: tuple[str, ...] = ()
    """Other names in model cards, in lower case with underscores."""
    minimum: float | None = None
    maximum: float | None = None
    largest_published: float = math.inf
    """A published value beyond it is on another scale, and no claim."""
    signed: bool = False
    """Whether an unbiased estimate may fall to zero or below it."""
    scale: str = ""
    """What the reader of a value out of bounds should know."""
    often_multiplied_by: float | tuple[float, ...] | None = None
    """Factors that other tools print the metric with, the usual one first."""
    extractors: tuple[str, ...] = ()
    """What the names of the extractors that it may read begin with; empty: any that has its output."""
    per_image: bool = False
    """Whether the score is the mean of what each image has."""
    perfect: float | None = None
    """What pictures that equal the reference's have; None for a metric that does not read pairs."""
    unlike: float = 0.0
    """What pictures of pairs that have nothing in common have, about: a threshold beyond it loses none."""
    foretells: bool = True
    """Whether the score of fewer images says what that of more will be."""
    share: bool = False
    """Whether it is a share of images, which the exact binomial distribution judges."""

    def column(self, extractor: str) -> str:
        """Return the column of evidence that the metric reads."""
        return column(extractor, self.output)

    def options_of(self, spec: object) -> Any:
        """Return the options of a protocol's entry, which has them as attributes."""
        return self.options(**{each.name: getattr(spec, each.name) for each in fields(self.options)})

    def rescaled(self, value: float) -> float | None:
        """Return what a value out of bounds means, by a usual factor; None where that is none within them."""
        usual = self.often_multiplied_by or ()
        low = -math.inf if self.minimum is None else self.minimum
        high = min(math.inf if self.maximum is None else self.maximum, self.largest_published)
        meant = [value / each for each in (usual if isinstance(usual, tuple) else (usual,))]
        return next((each for each in meant if low <= each <= high), None)

    def room(self, score: float) -> float:
        """Return how far a score is from the worst there is; a distance has no worst, and is its own room.

        That of pairs, and one that may fall to zero or below it, may be claimed to be nothing: its room is
        that up to the largest value there is, or else that is met, where that is more.
        """
        if self.higher_is_better:
            worst = self.minimum if self.signed else self.minimum or 0.0
            return math.inf if worst is None else score - worst
        if self.perfect is None and not self.signed:
            return score
        most = self.largest_published if self.perfect is None else self.unlike
        return max((most if self.maximum is None else self.maximum) - score, score)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value that there is."""
        least = -math.inf if self.minimum is None else self.minimum
        return least, math.inf if self.maximum is None else self.maximum

    @property
    def arrow(self) -> str:
        """Return the arrow that points to the better side."""
        return "↑" if self.higher_is_better else "↓"


def column(extractor: str, output: str) -> str:
    """Return the name in rows of the column that holds an output of an extractor."""
    return extractor if output == "features" else f"{extractor}-{output}"
