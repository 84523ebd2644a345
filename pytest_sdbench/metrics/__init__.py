"""Quality metrics, streaming and in float64: FID, KID, Inception score, CLIP score."""

from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.metrics.cosine import clip_score
from pytest_sdbench.metrics.estimates import Estimate, Undefined, fid_estimate
from pytest_sdbench.metrics.frechet import Influence, fid, fid_influence
from pytest_sdbench.metrics.inception import InceptionScore, inception_score
from pytest_sdbench.metrics.kernel import kid, kid_influence, kid_subsets
from pytest_sdbench.metrics.moments import FeatureStatistics, Moments
from pytest_sdbench.metrics.spread import groups_of, standard_error

__all__ = [
    "Estimate",
    "FeatureStatistics",
    "InceptionScore",
    "Influence",
    "Moments",
    "Undefined",
    "clip_score",
    "estimate",
    "fid",
    "fid_estimate",
    "fid_influence",
    "groups_of",
    "inception_score",
    "kid",
    "kid_influence",
    "kid_subsets",
    "standard_error",
]
