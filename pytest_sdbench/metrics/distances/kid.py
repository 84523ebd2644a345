"""The kernel inception distance of a set of images, and its standard error."""

from __future__ import annotations

from pytest_sdbench.metrics.definition import Metric, NoOptions, Sample
from pytest_sdbench.metrics.distances.mmd import cubic, kernel_distance, mmd_estimate
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.metrics.moments import FeatureStatistics, Rows


def kid(features: Rows, reference: Rows) -> float:
    """Return the unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018), in float64.

    The full U-statistic over all pairs: no random subsets, so no draw to repeat. It may be slightly negative.
    Raises ValueError for fewer than two rows on a side or for different widths.
    """
    return mmd_estimate("kid", [features], reference, cubic).value


def estimate(sample: Sample, reference: FeatureStatistics | None, _: NoOptions) -> Estimate | Undefined:
    """Return the KID of features, [n, D]; undefined without reference features and for a single image."""
    return kernel_distance("kid", sample, reference, cubic)


KID = Metric(
    name="kid",
    label="KID",
    decimals=5,
    recorded_decimals=7,
    higher_is_better=False,
    estimate=estimate,
    output="features",
    reference="features",
    aliases=("kernel_inception_distance",),
    largest_published=1.0,  # pictures of noise alone come to less
    signed=True,
    scale="KID is a squared distance, not multiplied by 1000",
    often_multiplied_by=1000,
)
