"""What a claim is judged by: the noise of both figures, recorded images, and the whole card's claims."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pytest_sdbench.base.errors import DataError, EvidenceError
from pytest_sdbench.cards.card import Card, read_card
from pytest_sdbench.evaluation.evaluate import Evaluation
from pytest_sdbench.gate.calibration import Calibration, calibration_path, write_calibration
from pytest_sdbench.gate.pairing import RecordedEvidence, evidence_path, write_recorded
from pytest_sdbench.gate.quality import Judgement, claim_errors, judge
from pytest_sdbench.gate.verdict import Outcome
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from tests.project import make_card, make_protocol

N = 200
CLAIM = "mini-clip_score"


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    return load_protocol(make_protocol(tmp_path / "cards" / "protocols" / "mini.yaml", n=N, margins={}))


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return tmp_path / "cards" / "mini.md"


def images(value: float, error: float, *, metric: str = "clip_score", n: int = N, seed: int = 0) -> Estimate:
    """Return an estimate whose images scatter so that its standard error is just this."""
    drawn = np.random.default_rng(seed).normal(size=n)
    drawn -= drawn.mean()
    influence = drawn * error * math.sqrt(n * (n - 1)) / np.linalg.norm(drawn)
    return Estimate(metric, value, error, n, value, influence=influence)


OTHER, OWN = "00" * 8, "ff" * 8
"""Checkpoints: a candidate, and the one whose images are recorded."""


def measured(protocol: Protocol, *estimates: Estimate, checkpoint: str = OTHER) -> Evaluation:
    """Return an evaluation of all images of a protocol."""
    return Evaluation(
        estimates={each.metric: each for each in estimates},
        lacking={},
        protocol=protocol,
        requested=protocol.n,
        complete=True,
        checkpoint_fingerprint=checkpoint,
        device="here",
        versions={},
        seconds=1.0,
        images_made=protocol.n,
        blacked_out=0,
        truncated=0,
        notes=(),
    )


def judged(
    card: Path | Card, protocol: Protocol, *estimates: Estimate, checkpoint: str = OTHER
) -> Mapping[str, Judgement]:
    card = read_card(card) if isinstance(card, Path) else card
    return judge(card, protocol, lambda samples: measured(protocol, *estimates, checkpoint=checkpoint))


def record(protocol: Protocol, value: float, standard_error: float | None = None) -> dict[str, object]:
    entry: dict[str, object] = {"protocol": "mini", "metric": "clip_score", "value": value, "n": N}
    entry |= {"protocol_fingerprint": protocol.fingerprint}
    return entry if standard_error is None else entry | {"standard_error": standard_error}


def calibrated(protocol: Protocol, *scores: float, fingerprint: str | None = None) -> None:
    found = Calibration(
        protocol.name, fingerprint or protocol.fingerprint, "some runs", {"clip_score": list(scores)}
    )
    write_calibration(protocol, found)


SEEDS = [0.3 + sign * 0.004 * math.sqrt(3 / 4) for sign in (1, -1, 1, -1)]


class TestErrorOfAClaim:
    """A claim is a measurement too, and its own error belongs to the difference."""

    OURS = 0.003

    def error(self, card: Path, protocol: Protocol, *records: dict[str, object]) -> float:
        make_card(card, claims={"clip_score": 0.3}, margins={"clip_score": 0.1}, records=list(records))
        (found,) = [
            each
            for name, each in judged(card, protocol, images(0.3, self.OURS)).items()
            if not name.endswith("-recorded")
        ]
        return found.verdict.figures["error"]

    def test_it_is_what_the_record_says(self, card: Path, protocol: Protocol) -> None:
        calibrated(protocol, 0.1, 0.2, 0.3, 0.4)
        found = self.error(card, protocol, record(protocol, 0.31, 0.001))
        assert found == pytest.approx(math.hypot(self.OURS, 0.001))
        # A candidate is taken for no less uncertain than the checkpoint of the claim.
        found = self.error(card, protocol, record(protocol, 0.31, 0.004))
        assert found == pytest.approx(0.004 * math.sqrt(2))

    def test_without_a_record_it_is_how_runs_with_other_seeds_scatter(
        self, card: Path, protocol: Protocol
    ) -> None:
        calibrated(protocol, *SEEDS)  # their standard deviation is 0.004
        assert self.error(card, protocol) == pytest.approx(0.005)
        # A record that does not know its own error leaves it at that.
        assert self.error(card, protocol, record(protocol, 0.31)) == pytest.approx(0.005)

    def test_without_either_it_is_as_large_as_ours(self, card: Path, protocol: Protocol) -> None:
        ours = pytest.approx(math.sqrt(2) * self.OURS)
        assert self.error(card, protocol) == ours
        # Three runs and runs of another protocol calibrate nothing.
        calibrated(protocol, *SEEDS[:3])
        assert self.error(card, protocol) == ours
        calibrated(protocol, *SEEDS, fingerprint="an older one")
        assert self.error(card, protocol) == ours

    def test_a_broken_calibration_is_named(self, card: Path, protocol: Protocol) -> None:
        calibrated(protocol, 0.3, 0.4)
        place = calibration_path(protocol)
        place.write_text(place.read_text(encoding="utf-8").replace("clip_score", "clap_score"))
        with pytest.raises(DataError, match=re.escape(str(place))):
            self.error(card, protocol)

    def test_what_a_margin_needs_is_known_before_any_run(self, card: Path, protocol: Protocol) -> None:
        make_card(card, claims={"clip_score": 0.3})
        assert claim_errors(read_card(card), protocol) == {}
        calibrated(protocol, *SEEDS)
        assert claim_errors(read_card(card), protocol) == {"clip_score": pytest.approx(0.004 * math.sqrt(2))}
        make_card(card, claims={"clip_score": 0.3}, records=[record(protocol, 0.31, 0.003)])
        assert claim_errors(read_card(card), protocol) == {"clip_score": pytest.approx(0.003 * math.sqrt(2))}


class TestMarginBelowTheNoise:
    """Such a margin would fail identical checkpoints: it is the card's fault, and the remedy is a figure."""

    def suggested(self, card: Path, protocol: Protocol, margin: float) -> float:
        make_card(card, claims={"clip_score": 0.3}, margins={"clip_score": margin})
        verdict = judged(card, protocol, images(0.3, 0.01))[CLAIM].verdict
        assert verdict.outcome is Outcome.ERROR
        for part in (str(card), "sdbench.margins", "CLIP score under mini", f"{margin:g}"):
            assert part in verdict.reason
        found = re.search(r"Give at least ([0-9.]+)$", verdict.reason)
        assert found
        return float(found[1])

    @pytest.mark.parametrize("margin", [0.0001, 0.02])
    def test_it_is_refused_and_the_figure_that_would_do_does(
        self, card: Path, protocol: Protocol, margin: float
    ) -> None:
        enough = self.suggested(card, protocol, margin)
        make_card(card, claims={"clip_score": 0.3}, margins={"clip_score": enough})
        assert judged(card, protocol, images(0.3, 0.01))[CLAIM].verdict.outcome is Outcome.PASS

    def test_with_that_figure_four_of_five_identical_checkpoints_pass_and_hardly_any_fails(
        self, card: Path, protocol: Protocol
    ) -> None:
        enough = self.suggested(card, protocol, 0.001)
        make_card(card, claims={"clip_score": 0.3}, margins={"clip_score": enough})
        outcomes = self.outcomes(card, protocol, 0.3)
        assert (
            0.77 < outcomes.count(Outcome.PASS) / len(outcomes) < 0.86
        )  # 80 %, and the figure is rounded up
        assert outcomes.count(Outcome.FAIL) / len(outcomes) < 0.005

    def test_a_checkpoint_that_is_worse_by_the_margin_hardly_ever_passes(
        self, card: Path, protocol: Protocol
    ) -> None:
        make_card(card, claims={"clip_score": 0.3}, margins={"clip_score": 0.04})
        outcomes = self.outcomes(card, protocol, 0.26)
        for wrong in (Outcome.PASS, Outcome.FAIL):
            assert 0.03 < outcomes.count(wrong) / len(outcomes) < 0.07  # 5 % to each side of the margin

    def outcomes(self, card: Path, protocol: Protocol, score: float) -> list[Outcome]:
        """Judge many runs of a checkpoint with this score by one claim."""
        claimed, rng = read_card(card), np.random.default_rng(1)
        # Claim and score have an error of 0.01 each, so their difference scatters by the root of two of it.
        scores = score + 0.01 * math.sqrt(2) * rng.normal(size=1500)
        return [
            judged(claimed, protocol, images(score, 0.01))[CLAIM].verdict.outcome for score in scores.tolist()
        ]


class TestPairing:
    """Recorded images of the card's own checkpoint: the noise that both share cancels."""

    @pytest.fixture
    def own(self, card: Path, protocol: Protocol) -> Estimate:
        """The recorded images, which score 0.3."""
        own = images(0.3, 0.01)
        self.write(card, protocol, own)
        return own

    def write(self, card: Path, protocol: Protocol, *estimates: Estimate, fingerprint: str = "") -> Path:
        place = evidence_path(card, "mini", "mini")
        found = {N: {each.metric: each for each in estimates}}
        write_recorded(place, RecordedEvidence(OWN, fingerprint or protocol.fingerprint, found))
        return place

    def claim(
        self, card: Path, protocol: Protocol, margin: float, made: dict[str, object] | None = None
    ) -> None:
        """Claim the recorded score with this margin, and record where it was made."""
        records = [] if made is None else [record(protocol, 0.3, 0.01) | made]
        make_card(card, claims={"clip_score": 0.3}, margins={"clip_score": margin}, records=records)

    def test_an_untouched_checkpoint_passes_with_no_error_and_a_margin_below_the_noise(
        self, card: Path, protocol: Protocol, own: Estimate
    ) -> None:
        self.claim(card, protocol, 0.0001, {"device": "here"})
        verdict = judged(card, protocol, own, checkpoint=OWN)[CLAIM].verdict
        assert verdict.outcome is Outcome.PASS
        assert "paired" in verdict.reason
        assert verdict.figures["error"] < 1e-8

    @pytest.mark.parametrize(("worse", "outcome"), [(0.0005, Outcome.PASS), (0.0125, Outcome.FAIL)])
    def test_a_small_change_of_every_image_is_told_from_the_margin(
        self, card: Path, protocol: Protocol, own: Estimate, worse: float, outcome: Outcome
    ) -> None:
        self.claim(card, protocol, 0.01)
        changed, value = images(0.3 - worse, 0.0005, seed=1).influence, 0.3 - worse
        assert changed is not None
        assert own.influence is not None
        candidate = Estimate("clip_score", value, 0.01, N, value, influence=own.influence + changed)
        verdict = judged(card, protocol, candidate)[CLAIM].verdict
        assert verdict.outcome is outcome
        assert verdict.figures["error"] == pytest.approx(0.0005, rel=1e-3)

    def test_another_checkpoint_may_fail_where_no_image_shows_it(
        self, card: Path, protocol: Protocol, own: Estimate
    ) -> None:
        """Its images are the recorded ones, and 200 of them rule out few failures as bad as the worst."""
        self.claim(card, protocol, 0.003, {"device": "here"})
        assert judged(card, protocol, own, checkpoint=OWN)[CLAIM].verdict.outcome is Outcome.PASS
        open_ = judged(card, protocol, own)[CLAIM].verdict
        assert open_.outcome is Outcome.INCONCLUSIVE
        assert own.influence is not None
        assert open_.figures["at_most"] == pytest.approx(1.645**2 * -own.influence.min() / N, rel=1e-3)

    @pytest.mark.parametrize(
        "made", [{"device": "elsewhere"}, {"device": "here", "versions": {"torch": "0.1"}}, None]
    )
    def test_so_may_the_same_checkpoint_on_another_device_or_with_other_libraries(
        self, card: Path, protocol: Protocol, own: Estimate, made: dict[str, object] | None
    ) -> None:
        """An upgrade that blackens one image in a thousand shows in none of 200."""
        self.claim(card, protocol, 0.003, made)
        verdict = judged(card, protocol, own, checkpoint=OWN)[CLAIM].verdict
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "paired" in verdict.reason

    @pytest.mark.parametrize(("claimed", "margin"), [(4.0, 3.0), (4.0, 3.9), (1.0, 0.1)])
    def test_a_margin_that_reaches_the_least_inception_score_is_refused(
        self, card: Path, protocol: Protocol, claimed: float, margin: float
    ) -> None:
        own = images(1.0, 0.01, metric="inception_score")
        record_of = record(protocol, claimed, 0.01) | {"metric": "inception_score"}
        make_card(card, claims={}, margins={"inception_score": margin}, records=[record_of])
        ((_, found),) = judged(card, protocol, own).items()
        verdict = found.verdict
        assert verdict.outcome is Outcome.ERROR
        assert "would pass nearly anything" in verdict.reason

    def test_independent_images_gain_nothing_and_are_no_more_certain(
        self, card: Path, protocol: Protocol, own: Estimate
    ) -> None:
        self.claim(card, protocol, 0.05)
        verdict = judged(card, protocol, images(0.3, 0.01, seed=7))[CLAIM].verdict
        assert verdict.figures["error"] == pytest.approx(0.01 * math.sqrt(2), rel=0.2)

    @pytest.mark.parametrize("claimed", [0.5, 0.31])
    def test_a_claim_that_is_not_the_recorded_score_is_not_as_certain_as_its_images(
        self, card: Path, protocol: Protocol, own: Estimate, claimed: float
    ) -> None:
        make_card(card, claims={"clip_score": claimed}, margins={"clip_score": 0.05})
        verdict = judged(card, protocol, own)[CLAIM].verdict
        assert "paired" not in verdict.reason
        assert verdict.figures["error"] == pytest.approx(0.01 * math.sqrt(2))

    def test_a_made_up_better_figure_does_not_pass(self, card: Path, protocol: Protocol) -> None:
        own = images(1.0, 0.1, metric="fid")
        self.write(card, protocol, own)
        make_card(card, claims={"fid": 0.5}, margins={"fid": 0.4})
        assert judged(card, protocol, own)["mini-fid"].verdict.outcome is Outcome.INCONCLUSIVE
        make_card(card, claims={"fid": 1.0}, margins={"fid": 0.4})
        assert judged(card, protocol, own)["mini-fid"].verdict.outcome is Outcome.PASS

    def test_the_recorded_score_in_fewer_digits_is_that_score(self, card: Path, protocol: Protocol) -> None:
        own = images(0.30004, 0.01)
        self.write(card, protocol, own)
        make_card(card, claims={"clip_score": 0.3000}, margins={"clip_score": 0.01})
        card.write_text(card.read_text(encoding="utf-8").replace("value: 0.3}", "value: 0.3000}"))
        assert "paired" in judged(card, protocol, own)[CLAIM].verdict.reason

    @pytest.mark.parametrize(("recorded", "paired"), [(0.3001, True), (0.3002, False)])
    @pytest.mark.parametrize("owner", [OWN, None])
    def test_a_record_of_these_images_may_differ_in_its_last_digits(
        self, card: Path, protocol: Protocol, own: Estimate, recorded: float, paired: bool, owner: str | None
    ) -> None:
        """As another batch size moves them; that difference is part of the error."""
        entry = record(protocol, recorded, 0.01)
        entry |= {} if owner is None else {"checkpoint_fingerprint": owner}
        make_card(card, claims={}, margins={"clip_score": 0.05}, records=[entry])
        ((_, found),) = [each for each in judged(card, protocol, own).items() if each[0].endswith("recorded")]
        assert ("paired with" in found.verdict.reason) is (paired and owner is not None)
        assert ("which are not the claim's" in found.verdict.reason) is not (
            "paired with" in found.verdict.reason
        )
        if paired and owner is not None:
            assert found.verdict.figures["error"] == pytest.approx(0.0001)

    def test_images_of_another_protocol_are_left_aside(self, card: Path, protocol: Protocol) -> None:
        own = images(0.3, 0.01)
        self.write(card, protocol, own, fingerprint="0123456789abcdef")
        self.claim(card, protocol, 0.05)
        verdict = judged(card, protocol, own)[CLAIM].verdict
        assert "paired" not in verdict.reason
        assert "of another protocol: --sdbench-update renews them" in verdict.reason
        assert verdict.figures["error"] == pytest.approx(0.01 * math.sqrt(2))

    def test_a_metric_that_was_not_recorded_is_judged_all_the_same(
        self, card: Path, protocol: Protocol, own: Estimate
    ) -> None:
        claims = {"clip_score": 0.3, "kid": 0.1}
        make_card(card, claims=claims, margins={"clip_score": 0.01, "kid": 0.05})
        found = judged(card, protocol, own, images(0.1, 0.01, metric="kid"))
        assert "paired" in found[CLAIM].verdict.reason
        assert "paired" not in found["mini-kid"].verdict.reason
        # Nothing is recorded of it that could be another claim's.
        assert "recorded images" not in found["mini-kid"].verdict.reason
        assert found["mini-kid"].verdict.outcome is Outcome.PASS

    def test_damaged_evidence_is_named(self, card: Path, protocol: Protocol, own: Estimate) -> None:
        self.claim(card, protocol, 0.05)
        place = evidence_path(card, "mini", "mini")
        content = place.read_bytes()
        newer = content.replace(b'\\"format\\": 1', b'\\"format\\": 9')
        assert newer != content
        for damage in (content[:-9], b"no tensors at all", b"", newer):
            place.write_bytes(damage)
            with pytest.raises(EvidenceError, match=re.escape(str(place))) as error:
                judged(card, protocol, own)
            assert "--sdbench-update" in str(error.value)


class TestFamily:
    """A card fails by one score, so a score among many must be the clearer to fail it."""

    # 2.33 standard errors beyond the margin: a chance of 1 %, above 5 % / 8 and below 5 %.
    MARGIN, WORSE = 0.05, 0.05 + 2.33 * 0.01 * math.sqrt(2)

    def outcome(self, card: Path, protocol: Protocol, *others: Estimate) -> Outcome:
        return judged(card, protocol, images(0.9 - self.WORSE, 0.01), *others)[CLAIM].verdict.outcome

    def test_claims_under_another_protocol_count(self, card: Path, protocol: Protocol) -> None:
        make_protocol(card.parent / "protocols" / "other.yaml", n=N, title="Other")
        claims = {"fid": 9.0, "kid": 1.0, "inception_score": 9.0, "clip_score": 0.9}
        make_card(card, claims={"clip_score": 0.9}, margins={"clip_score": self.MARGIN})
        alone = card.read_text(encoding="utf-8")
        results = "".join(
            f"  - task: {{type: text-to-image}}\n    dataset: {{type: scenes, name: S, config: {name}}}\n"
            f"    metrics: {json.dumps([{'type': key, 'value': claims[key]} for key in metrics])}\n"
            for name, metrics in (("mini", ["clip_score"]), ("other", list(claims)), ("scenes-5k", ["fid"]))
        )
        before, after = alone.index("model-index:"), alone.index("sdbench:")
        text = f"{alone[:before]}model-index:\n- name: Mini\n  results:\n{results}{alone[after:]}"
        card.write_text(text, encoding="utf-8")
        assert len(read_card(card).claims) == 6
        assert self.outcome(card, protocol) is Outcome.INCONCLUSIVE

    def test_the_only_claim_of_a_card_fails_and_counts_once_where_it_is_recorded_too(
        self, card: Path, protocol: Protocol
    ) -> None:
        claim = {"claims": {"clip_score": 0.9}, "margins": {"clip_score": self.MARGIN}}
        make_card(card, **claim)
        assert self.outcome(card, protocol) is Outcome.FAIL
        make_card(card, **claim, records=[record(protocol, 0.9, 0.01)])
        found = judged(card, protocol, images(0.9 - self.WORSE, 0.01))
        outcomes = {name: each.verdict.outcome for name, each in found.items()}
        assert outcomes == {CLAIM: Outcome.FAIL, f"{CLAIM}-recorded": Outcome.FAIL}

    def test_what_fails_clearly_makes_room_for_the_next(self, card: Path, protocol: Protocol) -> None:
        claims = {"clip_score": 0.9, "fid": 1.0}
        make_card(card, claims=claims, margins={"clip_score": self.MARGIN, "fid": 0.5})
        near, far = images(1.0, 0.1, metric="fid"), images(9.0, 0.1, metric="fid")
        # Between 2.5 % and 5 %: alone it fails, beside a score that holds it does not.
        clip = images(0.9 - (0.05 + 1.8 * 0.01 * math.sqrt(2)), 0.01)
        assert judged(card, protocol, clip, near)[CLAIM].verdict.outcome is Outcome.INCONCLUSIVE
        assert judged(card, protocol, clip, far)[CLAIM].verdict.outcome is Outcome.FAIL


def test_a_score_without_a_standard_error_is_inconclusive_and_says_so(card: Path, protocol: Protocol) -> None:
    make_card(card, claims={"fid": 20.0}, margins={"fid": 1.0})
    verdict = judged(card, protocol, Estimate("fid", 10.0, None, N))["mini-fid"].verdict
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "standard error" in verdict.reason


def test_a_checkpoint_that_scatters_more_than_the_claim_is_no_fault_of_the_margin(
    card: Path, protocol: Protocol
) -> None:
    """The margin suits the claim; what is far below it fails, however uneven its images are."""
    records = [record(protocol, 0.93, 0.003)]
    make_card(card, claims={"clip_score": 0.93}, margins={"clip_score": 0.02}, records=records)
    verdict = judged(card, protocol, images(0.4, 0.03))[CLAIM].verdict
    assert verdict.outcome is Outcome.FAIL
    make_card(card, claims={"clip_score": 0.93}, margins={"clip_score": 0.02})
    assert judged(card, protocol, images(0.4, 0.03))[CLAIM].verdict.outcome is Outcome.FAIL


def test_digits_of_a_claim_in_scientific_notation_count(card: Path, protocol: Protocol) -> None:
    own = images(0.02, 0.001, metric="kid")
    found = RecordedEvidence("ff" * 8, protocol.fingerprint, {N: {"kid": own}})
    write_recorded(evidence_path(card, "mini", "mini"), found)
    make_card(card, claims={"kid": 0.001}, margins={"kid": 0.01})
    text = card.read_text(encoding="utf-8").replace("0.001}", "5.0e-05}")
    card.write_text(text, encoding="utf-8")
    assert read_card(card).claims[0].value == 5e-5
    verdict = judged(card, protocol, own)["mini-kid"].verdict
    assert "paired" not in verdict.reason
