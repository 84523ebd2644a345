"""Verdicts: which side of the margin passes, and what the reader is told."""

from __future__ import annotations

import math

import pytest

from pytest_sdbench.verdict import Outcome, judge_compute, judge_count, judge_ratio, judge_score, mismatch

FID = {"label": "FID", "claimed": 16.98, "margin": 0.45, "higher_is_better": False, "decimals": 2}
CLIP = {"label": "CLIP score", "claimed": 0.2677, "margin": 0.0008, "higher_is_better": True, "decimals": 4}


@pytest.mark.parametrize(
    ("claim", "measured", "outcome"),
    [
        (FID, 16.98, Outcome.PASS),
        (FID, 17.42, Outcome.PASS),
        (FID, 17.43, Outcome.PASS),  # on the margin, though 16.98 + 0.45 is not 17.43 in binary
        (FID, 17.44, Outcome.FAIL),
        (FID, 12.00, Outcome.PASS),
        (CLIP, 0.2677, Outcome.PASS),
        (CLIP, 0.2669, Outcome.PASS),
        (CLIP, 0.2668, Outcome.FAIL),
        (CLIP, 0.2958, Outcome.PASS),
    ],
)
def test_score_passes_up_to_the_margin_on_the_worse_side_only(claim, measured, outcome):
    assert judge_score(measured=measured, **claim).outcome is outcome


def test_score_verdict_states_claim_measurement_error_and_margin():
    reason = judge_score(measured=18.5, standard_error=0.125, **FID).reason
    for part in ("FID", "16.98", "18.50", "± 0.12", "worse by 1.52", "margin 0.45"):
        assert part in reason


def test_score_that_is_too_good_is_reported():
    assert "better by 4.98" in judge_score(measured=12.0, **FID).reason
    assert "better" not in judge_score(measured=16.9, **FID).reason


@pytest.mark.parametrize("measured", [math.nan, math.inf])
def test_score_that_is_not_finite_has_no_verdict(measured):
    with pytest.raises(ValueError, match="measured"):
        judge_score(measured=measured, **FID)


def test_negative_margin_has_no_verdict():
    with pytest.raises(ValueError, match="margin"):
        judge_score(measured=1.0, **{**FID, "margin": -0.1})


def test_counts_are_exact():
    assert judge_count(label="U-Net", claimed=482_346_884, measured=482_346_884).outcome is Outcome.PASS
    off_by_one = judge_count(label="U-Net", claimed=482_346_884, measured=482_346_885)
    assert off_by_one.outcome is Outcome.FAIL
    assert "482,346,884" in off_by_one.reason
    assert "+1" in off_by_one.reason


@pytest.mark.parametrize(
    ("measured", "passed"), [(255.4e9, True), (255.6e9, True), (255.7e9, False), (255.1e9, False)]
)
def test_compute_agrees_within_a_thousandth(measured, passed):
    assert (judge_compute(claimed=255.4e9, measured=measured).outcome is Outcome.PASS) is passed


def test_ratio_may_be_as_large_as_claimed():
    assert judge_ratio(label="1 s", largest=0.75, measured=0.75).outcome is Outcome.PASS
    assert judge_ratio(label="1 s", largest=0.75, measured=0.7501).outcome is Outcome.FAIL
    assert judge_ratio(label="1 s", largest=0.75, measured=0.1).outcome is Outcome.PASS


@pytest.mark.parametrize("measured", [0.0, -1.0, math.nan])
def test_ratio_of_nothing_is_refused(measured):
    with pytest.raises(ValueError, match="ratio"):
        judge_ratio(label="1 s", largest=0.75, measured=measured)


def test_mismatch_never_passes_and_says_what_differs():
    verdict = mismatch("512 images here, 30,000 in the claim")
    assert verdict.outcome is Outcome.MISMATCH
    assert verdict.reason == "not comparable: 512 images here, 30,000 in the claim"
