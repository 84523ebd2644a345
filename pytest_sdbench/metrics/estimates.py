"""What a metric makes of images: a figure and how sure it is, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_sdbench.metrics.moments import Array


@dataclass(frozen=True)
class Estimate:
    """A measured figure."""

    metric: str
    value: float
    standard_error: float | None
    """Standard error of the value; None where it is not known, which is not zero."""
    n: int
    """Images behind the value."""
    corrected: float | None = None
    """The value without its bias, as of infinitely many images; None where it cannot be told: of too few
    images, or where a few outweigh the rest."""
    slope: float = 0.0
    """The bias times the number of images: n images are expected to come to corrected + slope / n."""
    influence: Array | None = field(default=None, compare=False, repr=False)
    """How much each image moves the value, [n], centred; None where the standard error is not known."""
    degenerate: float = field(default=0.0, compare=False, repr=False)
    """Variance of the second-order part of the value (see `standard_error`)."""
    looked_at: Array | None = field(default=None, compare=False, repr=False)
    """Of a share of images: what each has of that which decides whether it counts, [n]."""

    def __post_init__(self) -> None:
        """Make numbers of numpy and torch Python's own, which every report and every worker can write.

        Raises TypeError that names the metric for what is no number.
        """
        for name in ("value", "standard_error", "corrected", "slope", "degenerate"):
            found = getattr(self, name)
            if found is None or type(found) is float:
                continue
            try:
                object.__setattr__(self, name, float(found))
            except (TypeError, ValueError, OverflowError) as error:
                raise TypeError(f"{self.metric}: {name} is {found!r:.100}, and not a number") from error

    def at(self, n: int) -> float | None:
        """Predict the value of another number of images of the same checkpoint; None where that is open."""
        if n == self.n:
            return self.value
        return None if self.corrected is None else self.corrected + self.slope / n


@dataclass(frozen=True)
class Undefined:
    """A figure that these images do not define, and why."""

    metric: str
    reason: str
    n: int
