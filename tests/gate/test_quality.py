"""What a claim is judged by: the noise of both figures, recorded images, and the whole card's claims."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_sdbench.base.errors import DataError, EvidenceError
from pytest_sdbench.cards.card import Card, read_card
from pytest_sdbench.gate.calibration import Calibration, calibration_path, read_calibration, write_calibration
from pytest_sdbench.gate.quality import Judgement, claim_errors, judge
from pytest_sdbench.gate.recorded import RecordedEvidence, evidence_path, write_recorded
from pytest_sdbench.gate.verdict import Outcome, Verdict, smallest_margin
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.protocols.load import load_protocol
from tests.gate.helpers import evaluation
from tests.project import make_card, make_protocol

N = 200
CLAIM = "mini-clip_score"
OTHER, OWN = "00" * 8, "ff" * 8
"""Checkpoints: a candidate, and the one whose images are recorded."""
SEEDS = [0.3 + sign * 0.004 * math.sqrt(3 / 4) for sign in (1, -1, 1, -1)]
"""Scores of runs with other seeds, whose standard deviation is 0.004."""


def images(value: float, error: float, *, metric: str = "clip_score", n: int = N, seed: int = 0) -> Estimate:
    """Return an estimate whose images scatter so that its standard error is just this."""
    drawn = np.random.default_rng(seed).normal(size=n)
    drawn -= drawn.mean()
    influence = drawn * error * math.sqrt(n * (n - 1)) / np.linalg.norm(drawn)
    return Estimate(metric, value, error, n, value, influence=influence)


class Desk:
    """A card, its protocol of N images, and what lies beside them."""

    def __init__(self, folder: Path) -> None:
        self.protocol = load_protocol(make_protocol(folder / "protocols" / "mini.yaml", n=N, margins={}))
        self.card = folder / "mini.md"
        self.evidence = evidence_path(self.card, "mini")

    def claim(self, margin: float, value: float = 0.3, *records: dict[str, Any], **claims: float) -> None:
        """Write a card of a CLIP score and of other claims with this margin."""
        claimed = {"clip_score": value} | claims
        make_card(self.card, claims=claimed, margins=dict.fromkeys(claimed, margin), records=list(records))

    def record(self, value: float, error: float | None = None, **changes: Any) -> dict[str, Any]:
        """Return an entry of a card's records."""
        entry = {"protocol": "mini", "metric": "clip_score", "value": value, "n": N, "standard_error": error}
        entry |= {"protocol_fingerprint": self.protocol.fingerprint} | changes
        return {key: each for key, each in entry.items() if each is not None}

    def calibrate(self, *scores: float, fingerprint: str | None = None) -> None:
        about = (self.protocol.name, fingerprint or self.protocol.fingerprint, "some runs")
        write_calibration(self.protocol, Calibration(*about, {"clip_score": list(scores)}))

    def keep(self, *estimates: Estimate, fingerprint: str | None = None) -> None:
        """Write the recorded images of the card's own checkpoint."""
        found = {N: {each.metric: each for each in estimates}}
        write_recorded(self.evidence, RecordedEvidence(OWN, fingerprint or self.protocol.fingerprint, found))

    def judge(
        self, *estimates: Estimate, checkpoint: str = OTHER, card: Card | None = None
    ) -> Mapping[str, Judgement]:
        found = evaluation(self.protocol, {each.metric: each for each in estimates}, checkpoint)
        return judge(card or read_card(self.card), self.protocol, lambda samples: found)

    def verdict(self, *estimates: Estimate, name: str = CLAIM, checkpoint: str = OTHER) -> Verdict:
        return self.judge(*estimates, checkpoint=checkpoint)[name].verdict


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "cards")


class TestErrorOfAClaim:
    """A claim is a measurement too, and its own error belongs to the difference."""

    OURS = 0.003

    def error(self, desk: Desk, *records: dict[str, Any]) -> float:
        desk.claim(0.1, 0.3, *records)
        return desk.verdict(images(0.3, self.OURS)).figures["error"]

    def test_it_is_what_the_record_says(self, desk: Desk) -> None:
        desk.calibrate(0.1, 0.2, 0.3, 0.4)
        assert self.error(desk, desk.record(0.31, 0.001)) == pytest.approx(math.hypot(self.OURS, 0.001))
        # A candidate is taken for no less uncertain than the checkpoint of the claim.
        assert self.error(desk, desk.record(0.31, 0.004)) == pytest.approx(0.004 * math.sqrt(2))

    def test_without_a_record_it_is_how_runs_with_other_seeds_scatter(self, desk: Desk) -> None:
        desk.calibrate(*SEEDS)
        assert self.error(desk) == pytest.approx(0.005)
        # A record that does not know its own error leaves it at that.
        assert self.error(desk, desk.record(0.31)) == pytest.approx(0.005)

    def test_without_either_it_is_as_large_as_ours(self, desk: Desk) -> None:
        ours = pytest.approx(math.sqrt(2) * self.OURS)
        assert self.error(desk) == ours
        # Three runs and runs of another protocol calibrate nothing.
        desk.calibrate(*SEEDS[:3])
        assert self.error(desk) == ours
        desk.calibrate(*SEEDS, fingerprint="an older one")
        assert self.error(desk) == ours

    def test_a_broken_calibration_is_named(self, desk: Desk) -> None:
        desk.calibrate(0.3, 0.4)
        place = calibration_path(desk.protocol)
        place.write_text(place.read_text(encoding="utf-8").replace("clip_score", "clap_score"))
        with pytest.raises(DataError, match=re.escape(str(place))):
            self.error(desk)

    def test_what_a_margin_needs_is_known_before_any_run(self, desk: Desk) -> None:
        desk.claim(0.1)
        assert claim_errors(read_card(desk.card), desk.protocol) == {}
        desk.calibrate(*SEEDS)
        for records, error in (((), 0.004), ((desk.record(0.31, 0.003),), 0.003)):
            desk.claim(0.1, 0.3, *records)
            found = claim_errors(read_card(desk.card), desk.protocol)
            assert found == {"clip_score": pytest.approx(error * math.sqrt(2))}


@pytest.mark.parametrize("margin", [0.0001, 0.02])
def test_a_margin_below_the_noise_is_refused_with_the_figure_that_would_do(desk: Desk, margin: float) -> None:
    """Such a margin would fail identical checkpoints: it is the card's fault."""
    desk.claim(margin)
    verdict = desk.verdict(images(0.3, 0.01))
    assert verdict.outcome is Outcome.ERROR
    for part in (str(desk.card), "sdbench.margins", "CLIP score under mini", f"{margin:g}"):
        assert part in verdict.reason
    found = re.search(r"Give at least ([0-9.]+)$", verdict.reason)
    assert found
    # Claim and score have an error of 0.01 each. The figure is rounded up.
    least = smallest_margin(0.01 * math.sqrt(2))
    assert least <= float(found[1]) < 1.05 * least
    desk.claim(float(found[1]))
    assert desk.verdict(images(0.3, 0.01)).outcome is Outcome.PASS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "margin", "passes", "fails"),
    [
        # An identical checkpoint, and the smallest margin: 80 % pass, hardly any fails.
        (0.3, 0.036, (0.77, 0.86), (0, 0.005)),
        # A checkpoint that is worse by just the margin: 5 % to each side of it.
        (0.26, 0.04, (0.03, 0.07), (0.03, 0.07)),
    ],
)
def test_wrong_calls_are_as_rare_as_promised(
    desk: Desk, score: float, margin: float, passes: tuple[float, float], fails: tuple[float, float]
) -> None:
    desk.claim(margin)
    scores = score + 0.01 * math.sqrt(2) * np.random.default_rng(1).normal(size=1500)
    card = read_card(desk.card)
    found = [desk.judge(images(each, 0.01), card=card)[CLAIM].verdict for each in scores.tolist()]
    outcomes = [verdict.outcome for verdict in found]
    for outcome, (least, most) in ((Outcome.PASS, passes), (Outcome.FAIL, fails)):
        assert least <= outcomes.count(outcome) / len(outcomes) < most, outcome


class TestPairing:
    """Recorded images of the card's own checkpoint: the noise that both share cancels."""

    @pytest.fixture
    def own(self, desk: Desk) -> Estimate:
        """The recorded images, which score 0.3."""
        own = images(0.3, 0.01)
        desk.keep(own)
        return own

    def test_an_untouched_checkpoint_passes_a_margin_below_the_noise(self, desk: Desk, own: Estimate) -> None:
        desk.claim(0.0001, 0.3, desk.record(0.3, 0.01, device="here"))
        verdict = desk.verdict(own, checkpoint=OWN)
        assert verdict.outcome is Outcome.PASS
        assert "paired" in verdict.reason
        assert verdict.figures["error"] < 1e-8

    @pytest.mark.parametrize("lacking", ["fid", "clip_score"])
    def test_what_was_recorded_before_the_protocol_gained_a_metric_is_of_it(
        self, desk: Desk, lacking: str
    ) -> None:
        metrics = {name: spec for name, spec in desk.protocol.metrics.items() if name != lacking}
        earlier = desk.protocol.model_copy(update={"metrics": metrics}).fingerprint
        own, score = (
            images(0.3, 0.01, metric="fid" if lacking == "clip_score" else "clip_score"),
            images(0.3, 0.01),
        )
        desk.keep(own, fingerprint=earlier)
        desk.calibrate(*SEEDS, fingerprint=earlier)
        desk.claim(0.1, 0.3, desk.record(0.3, 0.01, device="here", protocol_fingerprint=earlier))
        verdict = desk.verdict(score, checkpoint=OWN)
        if lacking == "fid":
            assert verdict.figures["error"] < 1e-8, "paired with the images of the record"
        else:  # nothing can be recorded of a metric that the protocol did not have
            assert "paired" not in verdict.reason
        assert read_calibration(desk.protocol) is not None

    @pytest.mark.parametrize(("worse", "outcome"), [(0.0005, Outcome.PASS), (0.0125, Outcome.FAIL)])
    def test_a_small_change_of_every_image_is_told_from_the_margin(
        self, desk: Desk, own: Estimate, worse: float, outcome: Outcome
    ) -> None:
        desk.claim(0.01)
        changed, value = images(0.3 - worse, 0.0005, seed=1).influence, 0.3 - worse
        assert changed is not None
        assert own.influence is not None
        candidate = Estimate("clip_score", value, 0.01, N, value, influence=own.influence + changed)
        verdict = desk.verdict(candidate)
        assert verdict.outcome is outcome
        assert verdict.figures["error"] == pytest.approx(0.0005, rel=1e-3)

    def test_another_checkpoint_may_fail_where_no_image_shows_it(self, desk: Desk, own: Estimate) -> None:
        """Its images are the recorded ones, and 200 of them rule out few failures as bad as the worst."""
        desk.claim(0.003, 0.3, desk.record(0.3, 0.01, device="here"))
        assert desk.verdict(own, checkpoint=OWN).outcome is Outcome.PASS
        open_ = desk.verdict(own)
        assert open_.outcome is Outcome.INCONCLUSIVE
        assert own.influence is not None
        assert open_.figures["at_most"] == pytest.approx(1.645**2 * -own.influence.min() / N, rel=1e-3)

    @pytest.mark.parametrize(
        "made", [{"device": "elsewhere"}, {"device": "here", "versions": {"torch": "0.1"}}, None]
    )
    def test_so_may_the_same_checkpoint_on_another_device_or_with_other_libraries(
        self, desk: Desk, own: Estimate, made: dict[str, Any] | None
    ) -> None:
        """An upgrade that blackens one image in a thousand shows in none of 200."""
        desk.claim(0.003, 0.3, *([] if made is None else [desk.record(0.3, 0.01, **made)]))
        verdict = desk.verdict(own, checkpoint=OWN)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "paired" in verdict.reason

    def test_independent_images_gain_nothing_and_are_no_more_certain(self, desk: Desk, own: Estimate) -> None:
        desk.claim(0.05)
        verdict = desk.verdict(images(0.3, 0.01, seed=7))
        assert verdict.figures["error"] == pytest.approx(0.01 * math.sqrt(2), rel=0.2)

    @pytest.mark.parametrize("claimed", [0.5, 0.31])
    def test_a_claim_that_is_not_the_recorded_score_is_not_as_certain_as_its_images(
        self, desk: Desk, own: Estimate, claimed: float
    ) -> None:
        desk.claim(0.05, claimed)
        verdict = desk.verdict(own)
        assert "paired" not in verdict.reason
        assert verdict.figures["error"] == pytest.approx(0.01 * math.sqrt(2))

    @pytest.mark.parametrize(("claimed", "outcome"), [(0.5, Outcome.INCONCLUSIVE), (1.0, Outcome.PASS)])
    def test_a_made_up_better_figure_does_not_pass(
        self, desk: Desk, claimed: float, outcome: Outcome
    ) -> None:
        own = images(1.0, 0.1, metric="fid")
        desk.keep(own)
        make_card(desk.card, claims={"fid": claimed}, margins={"fid": 0.4})
        assert desk.verdict(own, name="mini-fid").outcome is outcome

    @pytest.mark.parametrize(
        ("metric", "recorded", "claimed", "paired"),
        [("clip_score", 0.30004, "0.3000", True), ("kid", 0.02, "5.0e-05", False)],
    )
    def test_the_digits_of_a_claim_tell_whether_it_is_the_recorded_score(
        self, desk: Desk, metric: str, recorded: float, claimed: str, paired: bool
    ) -> None:
        own = images(recorded, 0.001, metric=metric)
        desk.keep(own)
        make_card(desk.card, claims={metric: 0.25}, margins={metric: 0.1})
        text = desk.card.read_text(encoding="utf-8").replace("value: 0.25}", f"value: {claimed}}}")
        desk.card.write_text(text, encoding="utf-8")
        assert read_card(desk.card).claims[0].value == float(claimed)
        assert ("paired" in desk.verdict(own, name=f"mini-{metric}").reason) is paired

    @pytest.mark.parametrize(
        ("recorded", "owner", "paired"), [(0.3001, OWN, True), (0.3002, OWN, False), (0.3001, None, False)]
    )
    def test_a_record_of_these_images_may_differ_in_its_last_digits(
        self, desk: Desk, own: Estimate, recorded: float, owner: str | None, paired: bool
    ) -> None:
        """As another batch size moves them; that difference is part of the error."""
        entry = desk.record(recorded, 0.01, checkpoint_fingerprint=owner)
        make_card(desk.card, claims={}, margins={"clip_score": 0.05}, records=[entry])
        verdict = desk.verdict(own, name=f"{CLAIM}-recorded")
        assert ("paired with" in verdict.reason) is paired
        assert ("which are not the claim's" in verdict.reason) is not paired
        if paired:
            assert verdict.figures["error"] == pytest.approx(0.0001)

    def test_images_of_another_protocol_are_left_aside(self, desk: Desk) -> None:
        own = images(0.3, 0.01)
        desk.keep(own, fingerprint="0123456789abcdef")
        desk.claim(0.05)
        verdict = desk.verdict(own)
        assert "paired" not in verdict.reason
        assert "of another protocol: --sdbench-update renews them" in verdict.reason
        assert verdict.figures["error"] == pytest.approx(0.01 * math.sqrt(2))

    def test_a_metric_that_was_not_recorded_is_judged_all_the_same(self, desk: Desk, own: Estimate) -> None:
        desk.claim(0.05, kid=0.1)
        found = desk.judge(own, images(0.1, 0.01, metric="kid"))
        assert "paired" in found[CLAIM].verdict.reason
        assert "paired" not in found["mini-kid"].verdict.reason
        # Nothing is recorded of it that could be another claim's.
        assert "recorded images" not in found["mini-kid"].verdict.reason
        assert found["mini-kid"].verdict.outcome is Outcome.PASS

    def test_damaged_evidence_is_named(self, desk: Desk, own: Estimate) -> None:
        desk.claim(0.05)
        content = desk.evidence.read_bytes()
        newer = content.replace(b'\\"format\\": 1', b'\\"format\\": 9')
        assert newer != content
        for damage in (content[:-9], b"no tensors at all", b"", newer):
            desk.evidence.write_bytes(damage)
            with pytest.raises(EvidenceError, match=re.escape(str(desk.evidence))) as error:
                desk.judge(own)
            assert "--sdbench-update" in str(error.value)


class TestFamily:
    """A card fails by one score, so a score among many must be the clearer to fail it."""

    # 2.33 standard errors beyond the margin: a chance of 1 %, above 5 % / 8 and below 5 %.
    MARGIN = 0.05
    CLIP = images(0.9 - MARGIN - 2.33 * 0.01 * math.sqrt(2), 0.01)

    def test_claims_under_another_protocol_count(self, desk: Desk) -> None:
        make_protocol(desk.card.parent / "protocols" / "other.yaml", n=N, title="Other")
        claims = {"fid": 9.0, "kid": 1.0, "inception_score": 9.0, "clip_score": 0.9}
        desk.claim(self.MARGIN, 0.9)
        alone = desk.card.read_text(encoding="utf-8")
        results = "".join(
            f"  - task: {{type: text-to-image}}\n    dataset: {{type: scenes, name: S, config: {name}}}\n"
            f"    metrics: {json.dumps([{'type': key, 'value': claims[key]} for key in metrics])}\n"
            for name, metrics in (("mini", ["clip_score"]), ("other", list(claims)), ("scenes-5k", ["fid"]))
        )
        before, after = alone.index("model-index:"), alone.index("sdbench:")
        text = f"{alone[:before]}model-index:\n- name: Mini\n  results:\n{results}{alone[after:]}"
        desk.card.write_text(text, encoding="utf-8")
        assert len(read_card(desk.card).claims) == 6
        assert desk.verdict(self.CLIP).outcome is Outcome.INCONCLUSIVE

    def test_the_only_claim_of_a_card_fails_and_counts_once_where_it_is_recorded_too(
        self, desk: Desk
    ) -> None:
        desk.claim(self.MARGIN, 0.9)
        assert desk.verdict(self.CLIP).outcome is Outcome.FAIL
        desk.claim(self.MARGIN, 0.9, desk.record(0.9, 0.01))
        outcomes = {name: each.verdict.outcome for name, each in desk.judge(self.CLIP).items()}
        assert outcomes == {CLAIM: Outcome.FAIL, f"{CLAIM}-recorded": Outcome.FAIL}

    @pytest.mark.parametrize(("other", "outcome"), [(1.0, Outcome.INCONCLUSIVE), (9.0, Outcome.FAIL)])
    def test_what_fails_clearly_makes_room_for_the_next(
        self, desk: Desk, other: float, outcome: Outcome
    ) -> None:
        claims = {"clip_score": 0.9, "fid": 1.0}
        make_card(desk.card, claims=claims, margins={"clip_score": self.MARGIN, "fid": 0.5})
        # Between 2.5 % and 5 %: alone it fails, beside a score that holds it does not.
        clip = images(0.9 - self.MARGIN - 1.8 * 0.01 * math.sqrt(2), 0.01)
        assert desk.verdict(clip, images(other, 0.1, metric="fid")).outcome is outcome


@pytest.mark.parametrize(("claimed", "margin"), [(4.0, 3.0), (4.0, 3.9), (1.0, 0.1)])
def test_a_margin_that_reaches_the_least_inception_score_is_refused(
    desk: Desk, claimed: float, margin: float
) -> None:
    entry = desk.record(claimed, 0.01, metric="inception_score")
    make_card(desk.card, claims={}, margins={"inception_score": margin}, records=[entry])
    (found,) = desk.judge(images(1.0, 0.01, metric="inception_score")).values()
    assert found.verdict.outcome is Outcome.ERROR
    assert "would pass nearly anything" in found.verdict.reason


def test_a_margin_of_the_protocol_that_is_too_wide_is_answered_by_one_of_the_card(desk: Desk) -> None:
    make_card(desk.card, claims={"inception_score": 4.0})
    desk.protocol = load_protocol(make_protocol(desk.protocol.path, n=N, margins={"inception_score": 3.0}))
    verdict = desk.verdict(images(1.0, 0.01, metric="inception_score"), name="mini-inception_score")
    assert verdict.outcome is Outcome.ERROR
    assert "mini.yaml: margins: " in verdict.reason
    assert f"Give one well below 3, as sdbench.margins.inception_score of {desk.card}" in verdict.reason


def test_a_claim_that_so_few_images_cannot_judge_is_told_so(desk: Desk) -> None:
    """No margin is both above the noise and below what passes anything."""
    make_card(desk.card, claims={"inception_score": 4.0}, margins={"inception_score": 0.5})
    verdict = desk.verdict(images(4.0, 1.0, metric="inception_score"), name="mini-inception_score")
    assert verdict.outcome is Outcome.ERROR
    assert "So few images cannot judge a claim of 4.0: take a protocol of more" in verdict.reason


def test_a_score_without_a_standard_error_is_inconclusive_and_says_so(desk: Desk) -> None:
    make_card(desk.card, claims={"fid": 20.0}, margins={"fid": 1.0})
    verdict = desk.verdict(Estimate("fid", 10.0, None, N), name="mini-fid")
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "standard error" in verdict.reason


def test_a_checkpoint_that_scatters_more_than_the_claim_is_no_fault_of_the_margin(desk: Desk) -> None:
    """The margin suits the claim; what is far below it fails, however uneven its images are."""
    for records in ([desk.record(0.93, 0.003)], []):
        desk.claim(0.02, 0.93, *records)
        assert desk.verdict(images(0.4, 0.03)).outcome is Outcome.FAIL
