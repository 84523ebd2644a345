"""A checkpoint beside its reference, picture by picture: verdicts, what is lost, which images are worst."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from benchmarks.family.reports import rounded
from pytest_sdbench.base.errors import CheckpointError, SdbenchError, Unavailable
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.cases import as_candidate, is_beside_baseline, quality_cases
from pytest_sdbench.cards.network import baseline_checkpoint
from pytest_sdbench.evaluation import maker
from pytest_sdbench.evaluation.engine import Work
from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.evaluation.fidelity import Reference
from pytest_sdbench.features.extractors import open_extractors
from pytest_sdbench.features.fidelity.ssim import ssim
from pytest_sdbench.features.references import load_references
from pytest_sdbench.gate.fidelity import image_scores
from pytest_sdbench.gate.quality import beside, judge, judge_unclaimed
from pytest_sdbench.gate.recorded import (
    RecordedEvidence,
    evidence_path,
    read_recorded,
    record_evidence,
    write_recorded,
)
from pytest_sdbench.gate.verdict import Score, judge_score
from pytest_sdbench.metrics.definition import NoOptions, Sample
from pytest_sdbench.metrics.difference import difference, worst_loss
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from tests.gate.helpers import evaluation, report
from tests.project import IMAGES, make_card, make_project, make_protocol
from tests.project import MARGINS as MINI

PAIRS = {"psnr": {"extractor": "psnr"}, "lost": {"extractor": "ssim", "below": 0.9}}
MARGINS = {"psnr": 65, "lost": 0.07}
SETUP = frozenset({("AMD", "2.9", "0.40", "5.0")})
SETUPS = {
    "H200": frozenset({("H200", "2.9", "0.40", "5.0")}),
    "2.8": frozenset({("AMD", "2.8", "0.40", "5.0")}),
}


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    make_protocol(tmp_path / "pairs.yaml", n=48, metrics=PAIRS, margins=MARGINS)
    return load_protocol("pairs", search=(tmp_path,))


def pairs(protocol: Protocol, psnr: Any, lost: int | list[int] = 0, **changes: Any) -> Any:
    """Return an evaluation of these decibels, and so many pictures lost, or those."""
    spread = np.linspace(-3, 3, protocol.n).astype(np.float32)
    lost = list(range(lost)) if isinstance(lost, int) else lost
    columns = {
        "psnr": psnr + spread,
        "lost": np.isin(np.arange(protocol.n), lost, invert=True).astype(np.float32),
    }
    found = {
        metric: METRICS[metric].estimate(
            Sample([values], protocol.n), None, METRICS[metric].options_of(protocol.metrics[metric])
        )
        for metric, values in columns.items()
    }
    known = Reference("the card's own", "f" * 16, SETUP)
    prompts = tuple(f"prompt {index}" for index in range(protocol.n))
    changes = {"reference": known, "setups": SETUP, "prompts": prompts} | changes
    return evaluation(protocol, found, "c" * 16, **changes)


def record(metric: str, value: float, protocol: Protocol, **more: Any) -> dict[str, Any]:
    known = {"protocol": "pairs", "metric": metric, "value": value, "n": protocol.n}
    return known | {"standard_error": 0.1, "protocol_fingerprint": protocol.fingerprint} | more


@pytest.mark.parametrize(
    ("psnr", "lost", "changes", "outcomes", "says"),
    [
        (50, 0, {}, "pass pass", "the bound must lie within 35"),
        (25, 24, {}, "fail fail", "beside the card's own"),
        (35, 3, {}, "inconclusive inconclusive", "cannot tell"),
        # What another device moves is no fault of the weights, and no pass is in doubt for it.
        (
            25,
            24,
            {"setups": SETUPS["H200"]},
            "inconclusive inconclusive",
            "H200",
        ),
        (50, 0, {"setups": SETUPS["2.8"]}, "pass pass", "different set-ups"),
    ],
)
def test_a_candidate_is_claimed_to_draw_the_pictures_of_its_reference(
    protocol: Protocol, tmp_path: Path, psnr: float, lost: int, changes: Any, outcomes: str, says: str
) -> None:
    card = read_card(make_card(tmp_path / "card.md", claims={}, protocol="pairs"))
    ids = sorted(case.id for case in quality_cases(as_candidate(card)))
    assert ids == ["pairs-lost", "pairs-psnr"]
    found = judge(as_candidate(card), protocol, lambda n: pairs(protocol, psnr, lost, **changes))
    assert " ".join(str(found[each].verdict.outcome) for each in ids) == outcomes
    assert says in found["pairs-psnr"].verdict.reason


def test_a_candidate_is_held_to_what_its_card_claims_beside_the_baseline(
    protocol: Protocol, tmp_path: Path
) -> None:
    """A student that is trained anew draws other pictures, and keeps as much of its teacher's."""
    recorded = [record("psnr", 30.0, protocol)]
    path = make_card(tmp_path / "card.md", claims={}, protocol="pairs", records=recorded)
    card = as_candidate(read_card(path))
    assert is_beside_baseline(card, "pairs")
    assert {claim.value for claim in card.claims} == {30.0}
    assert [case.id for case in quality_cases(card)] == ["pairs-psnr-recorded", "pairs-lost"]


@pytest.mark.parametrize(
    ("claims", "fingerprint", "candidate"),
    [
        ({}, "0" * 16, {"pairs-psnr": 100.0, "pairs-lost": 0.0}),
        # Published figures of another number of images keep their names.
        ({"psnr": 30.0}, "0" * 16, {"pairs-psnr-candidate": 100.0, "pairs-lost": 0.0}),
        ({}, None, {}),
    ],
)
def test_claims_of_a_protocol_that_has_changed_switch_no_gate_off(
    protocol: Protocol, tmp_path: Path, claims: Any, fingerprint: str | None, candidate: Any
) -> None:
    more = {} if fingerprint is None else {"protocol_fingerprint": fingerprint}
    recorded = [record("psnr", 30.0, protocol, **more)]
    path = make_card(tmp_path / "card.md", claims=claims, protocol="pairs", records=recorded)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("type: scenes}", "type: scenes, args: {num_samples: 5000}}"), "utf-8")
    card = read_card(path)
    assert is_beside_baseline(card, "pairs") == (not candidate)
    known = {claim.id for claim in card.claims}
    new = [claim for claim in as_candidate(card).claims if claim.kind == "identity"]
    assert {claim.id: claim.value for claim in new} == candidate
    assert not known & candidate.keys()


@pytest.mark.parametrize(
    ("records", "remedy"), [(0, "Name one, or compare .*--sdbench-weights card=FOLDER$"), (1, "Name one$")]
)
def test_a_card_without_a_baseline_is_told_what_fits(
    protocol: Protocol, tmp_path: Path, records: int, remedy: str
) -> None:
    recorded = [record("psnr", 30.0, protocol)][:records]
    card = read_card(make_card(tmp_path / "card.md", claims={}, protocol="pairs", records=recorded))
    with pytest.raises(Unavailable, match=remedy):
        baseline_checkpoint(card, None, "pairs")


@pytest.mark.parametrize(
    ("value", "margin", "outcome", "says"),
    [
        (0, 0.07, "pass", "at most 0 of 48 lost pass"),
        (0, 0.06, "error", "Give at least 0.061"),
        (6, 0.07, "error", "loses 0.125 again, cannot pass with 48 images. Give at least 0.11"),
        (6, 0.11, "pass", "at most 6 of 48 lost pass"),
    ],
)
def test_the_checkpoint_of_a_record_of_lost_pictures_passes_or_the_margin_is_refused(
    protocol: Protocol, tmp_path: Path, value: int, margin: float, outcome: str, says: str
) -> None:
    recorded = [record("lost", value / 48, protocol)]
    path = make_card(
        tmp_path / "card.md", claims={}, protocol="pairs", records=recorded, margins={"lost": margin}
    )
    found = judge(read_card(path), protocol, lambda n: pairs(protocol, 50.0, lost=value))
    (verdict,) = (each.verdict for each in found.values())
    assert verdict.outcome == outcome
    assert says in verdict.reason
    # What is surely worse fails, however small the margin is.
    (worse,) = judge(read_card(path), protocol, lambda n: pairs(protocol, 50.0, lost=30)).values()
    assert worse.verdict.outcome == "fail"


@pytest.mark.parametrize(("kind", "outcome"), [(CheckpointError, "error"), (Unavailable, "unavailable")])
def test_a_damaged_reference_is_an_error_and_one_that_is_not_here_a_skip(
    protocol: Protocol, tmp_path: Path, kind: type[SdbenchError], outcome: str
) -> None:
    recorded = [record("psnr", 50.0, protocol), record("lost", 0.0, protocol)]
    card = read_card(make_card(tmp_path / "card.md", claims={}, protocol="pairs", records=recorded))
    whole = pairs(protocol, 50.0)
    left = {"lost": whole.estimates["lost"]}
    found = judge(
        card, protocol, lambda n: replace(whole, estimates=left, lacking={"psnr": kind("a flipped bit")})
    )
    judged = {claim.metric: found[claim.id].verdict for claim in card.claims}
    assert (str(judged["psnr"].outcome), judged["psnr"].reason) == (outcome, "a flipped bit")
    assert judged["lost"].outcome == "pass"


@pytest.mark.parametrize(("made", "outcome"), [("f" * 16, "pass"), ("e" * 16, "mismatch"), (None, "pass")])
def test_a_record_is_one_of_its_reference(
    protocol: Protocol, tmp_path: Path, made: str | None, outcome: str
) -> None:
    more = {} if made is None else {"reference_fingerprint": made}
    recorded = [record("psnr", 50.0, protocol, **more), record("lost", 0.0, protocol, **more)]
    margins = {"psnr": 2.0, "lost": 0.07}
    card = read_card(
        make_card(tmp_path / "card.md", claims={}, protocol="pairs", records=recorded, margins=margins)
    )
    found = judge(card, protocol, lambda n: pairs(protocol, 50.0))
    assert {str(each.verdict.outcome) for each in found.values()} == {outcome}


@pytest.mark.parametrize(
    ("psnr", "beside", "device", "teacher", "outcome", "says"),
    [
        # A margin far below the noise of two draws: only pairs of the same prompts and noise can be told so.
        (49.9, "f" * 16, "here", "here", "pass", "paired with the recorded images"),
        (49.0, "f" * 16, "here", "here", "fail", "at least 1.00 worse"),
        (49.9, "f" * 16, "there", "here", "pass", "no fail rests on them alone"),
        # Another machine may move all pictures a little. What two draws would show is no fault of it.
        (49.0, "f" * 16, "there", "here", "inconclusive", "no fail rests on them alone"),
        (45.0, "f" * 16, "there", "here", "fail", "no fail rests on them alone"),
        # So may that of the reference's pictures, which the pairs are of, too.
        (49.0, "f" * 16, "here", "H200", "inconclusive", "another set-up: no fail rests on them alone"),
        (49.0, "f" * 16, "here", "", "inconclusive", "an unknown set-up: no fail rests on them alone"),
        (49.0, "f" * 16, "", "here", "inconclusive", "an unknown set-up: no fail rests on them alone"),
        (49.7, "e" * 16, "here", "here", "error", "smaller than the noise"),
        (45.0, "e" * 16, "here", "here", "fail", f"without the recorded pairs, those beside {'e' * 16}"),
        (49.7, None, "here", "here", "error", "smaller than the noise"),
    ],
)
def test_pairs_are_paired_with_the_recorded_ones_beside_the_same_reference(
    protocol: Protocol,
    tmp_path: Path,
    psnr: float,
    beside: str | None,
    device: str,
    teacher: str,
    outcome: str,
    says: str,
) -> None:
    known = pairs(protocol, 50.0).estimates
    looks = {protocol.n: {} if beside is None else {"psnr": known["psnr"]}}
    place = evidence_path(tmp_path / "card.md", "pairs")
    drawn = SETUPS.get(teacher, SETUP) if teacher else None
    images = RecordedEvidence("a" * 16, protocol.fingerprint, looks, None, beside, drawn)
    write_recorded(place, images)
    recorded = [
        record("psnr", 50.0, protocol, standard_error=0.255, **({"device": device} if device else {}))
    ]
    made = make_card(
        tmp_path / "card.md", claims={}, protocol="pairs", records=recorded, margins={"psnr": 0.5}
    )
    (found,) = judge(read_card(made), protocol, lambda n: pairs(protocol, psnr)).values()
    assert found.verdict.outcome == outcome
    assert says in found.verdict.reason
    if beside == "f" * 16:
        # All images lost as much: no error, and one more may be as bad as the worst, 3 dB below the mean.
        shift, half = 50 - psnr, 1.6449 * (3 / protocol.n) / 2
        at_most = shift + 1.6449 * (half + math.sqrt(half**2 + shift * 3 / protocol.n))
        assert found.verdict.figures["at_most"] == pytest.approx(at_most, abs=0.001)


@pytest.mark.parametrize(
    ("lost", "margin", "more", "outcome", "says"),
    [
        # The record lost the first six. None of 48 changed: at most 1 - 0.05^(1/48) = 0.0605 do.
        (range(6), 0.07, {}, "pass", "at most 0.0605 worse"),
        (
            range(6),
            0.06,
            {},
            "error",
            "in which no picture changes, cannot pass with 48 images. Give at least 0.061",
        ),
        (range(5), 0.07, {}, "pass", "0 newly lost and 1 no longer"),
        # As many, and others: that they are as many is chance.
        (range(3, 9), 0.07, {}, "inconclusive", "3 newly lost and 3 no longer"),
        (range(16), 0.07, {}, "fail", "10 newly lost and 0 no longer"),
        (range(16), 0.1, {}, "inconclusive", "anything from 0.0775 worse to 0.3277 worse"),
        (range(16), 0.07, {"device": "there"}, "fail", "no fail rests on them alone"),
        (range(3, 9), 0.07, {"device": "there"}, "inconclusive", "no fail rests on them alone"),
        (
            range(6),
            0.13,
            {"groups": np.repeat(np.arange(24), 2)},
            "pass",
            "0 newly lost and 0 no longer of 24",
        ),
        (
            range(6),
            0.12,
            {"groups": np.minimum(np.arange(48), 46)},
            "pass",
            "where all prompts repeat as often",
        ),
    ],
)
def test_lost_pictures_are_compared_with_the_recorded_ones(
    protocol: Protocol, tmp_path: Path, lost: range, margin: float, more: Any, outcome: str, says: str
) -> None:
    looks = {48: {"lost": pairs(protocol, 50.0, lost=6).estimates["lost"]}}
    known = RecordedEvidence("a" * 16, protocol.fingerprint, looks, None, "f" * 16, SETUP)
    write_recorded(evidence_path(tmp_path / "card.md", "pairs"), known)
    recorded = [record("lost", 0.125, protocol, device="here")]
    made = make_card(
        tmp_path / "card.md", claims={}, protocol="pairs", records=recorded, margins={"lost": margin}
    )
    (found,) = judge(
        read_card(made), protocol, lambda n: pairs(protocol, 50.0, lost=[*lost], **more)
    ).values()
    assert found.verdict.outcome == outcome, found.verdict.reason
    assert says in found.verdict.reason


def judge_lost(
    folder: Path,
    here: list[int],
    *,
    n: int,
    claimed: float,
    theirs: list[int],
    margin: float,
    budget: int | None = None,
    looked: list[int] | None = None,
) -> Any:
    """Return the judgement of `here` lost of n pictures, where the record lost `theirs`."""
    make_protocol(folder / "pairs.yaml", n=n, metrics=PAIRS, margins=MARGINS)
    protocol = load_protocol("pairs", search=(folder,))
    sizes = [256, 1000, n] if looked is None else looked
    looks = {
        size: {"lost": pairs(protocol.with_samples(size), 50.0, lost=theirs).estimates["lost"]}
        for size in sizes
    }
    known = RecordedEvidence("a" * 16, protocol.fingerprint, looks, None, "f" * 16, SETUP)
    write_recorded(evidence_path(folder / "card.md", "pairs"), known)
    records = [record("lost", claimed, protocol, device="here")]
    made = make_card(
        folder / "card.md", claims={}, protocol="pairs", records=records, margins={"lost": margin}
    )

    def measure(size: int | None) -> Any:
        return pairs(protocol if size is None else protocol.with_samples(size), 50.0, lost=here)

    (found,) = judge(read_card(made), protocol, measure, budget).values()
    return found


@pytest.mark.parametrize(
    ("n", "lost", "claimed", "margin", "budget", "outcome", "says"),
    [
        # Fewer images say what they show, and not what all of them would have if these are better.
        (5000, ([300, 400, 1500, 2000, 3000], []), 0.001, 0.005, 1000, "inconclusive", "0.0000 to 0.0037"),
        (1000, ([10, 20], []), 0.002, 0.05, 256, "pass", "measured 0.0000 (95 % interval 0.0000 to 0.0143)"),
        (1000, ([10, 20], [10, 20, 30]), 0.002, 0.05, 256, "pass", "1 newly lost and 0 no longer"),
        # The last of several looks has a part of the error rate, and so needs a wider margin.
        (1000, ([10, 20], [10, 20]), 0.002, 0.003, None, "pass", "at most 0.0030 worse"),
        (1000, ([10, 20], [10, 20]), 0.002, 0.003, 1000, "error", "without --sdbench-budget"),
        (1000, ([10, 20], [10, 20]), 0.002, 0.004, 1000, "pass", "at most 0.0039 worse"),
        # A claim that was rounded up is as good as a wider margin.
        (1000, ([*range(8)], [*range(8)]), 0.01, 0.001, None, "pass", "better by 0.002"),
        (1000, ([*range(8)], [*range(8)]), 0.01, 0.0005, None, "error", "Give at least 0.001"),
    ],
)
def test_a_look_at_fewer_images_says_what_these_show(
    tmp_path: Path,
    n: int,
    lost: tuple[list[int], list[int]],
    claimed: float,
    margin: float,
    budget: int | None,
    outcome: str,
    says: str,
) -> None:
    theirs, here = lost
    found = judge_lost(tmp_path, here, n=n, claimed=claimed, theirs=theirs, margin=margin, budget=budget)
    assert found.verdict.outcome == outcome, found.verdict.reason
    assert says in found.verdict.reason
    assert 0 <= found.measured <= 1


@pytest.mark.parametrize("looked", [[], [256]])
def test_why_pictures_are_not_paired_is_said(tmp_path: Path, looked: list[int]) -> None:
    found = judge_lost(tmp_path, [], n=300, claimed=0.0, theirs=[], margin=0.07, looked=looked)
    assert "nothing is recorded of it at 300 images: --sdbench-update records it" in found.verdict.reason


def test_a_baseline_s_own_pairs_are_not_those_of_its_student(protocol: Protocol, tmp_path: Path) -> None:
    """They are beside another reference: a difference would say nothing."""
    baseline = read_card(make_card(tmp_path / "card.md", claims={}, protocol="pairs"))
    here = pairs(protocol, 45.0)
    student = judge_unclaimed("psnr", protocol, here)
    for reference_, value in (("f" * 16, -5.0), ("e" * 16, None)):
        looks = {protocol.n: {"psnr": pairs(protocol, 50.0).estimates["psnr"]}}
        known = RecordedEvidence("a" * 16, protocol.fingerprint, looks, reference_fingerprint=reference_)
        write_recorded(evidence_path(baseline.path, "pairs"), known)
        found = beside(baseline, protocol, student)
        assert (found and found.value) == (value and pytest.approx(value))


def test_what_recorded_images_are_rounded_by_is_no_loss(protocol: Protocol) -> None:
    scores = np.random.default_rng(3).normal(0.3, 0.05, protocol.n).astype(np.float32)
    found = METRICS["clip_score"].estimate(Sample([scores], protocol.n), None, NoOptions())
    assert isinstance(found, Estimate)
    assert found.influence is not None
    kept = replace(found, influence=found.influence.astype(np.float32))
    assert (kept.influence != found.influence).any()
    recorded = RecordedEvidence("a" * 16, "p", {protocol.n: {"clip_score": kept}})
    seen = image_scores(found, pairs(protocol, 50.0), recorded)
    assert seen is not None
    assert seen.worst == []


def test_the_worst_images_are_named_with_both_values(protocol: Protocol) -> None:
    here = pairs(protocol, 50.0, lost=2)
    scores_of = image_scores(here.estimates["psnr"], here, None)
    assert scores_of is not None
    first, *_, last = scores_of.worst
    assert (first.index, first.prompt, first.value, first.reference) == (0, "prompt 0", 47.0, 100.0)
    assert last.index == 9
    assert [each.index for each in scores_of.first] == [*range(12)]
    lost = image_scores(here.estimates["lost"], here, None)
    assert lost is not None
    assert [each.index for each in lost.worst] == [0, 1]
    # Of those that are lost the worst come first, with what the threshold is of.
    column = np.ones(protocol.n, np.float32)
    column[4:20], column[30] = 0.5, 0.25
    known = METRICS["lost"]
    count = known.estimate(Sample([column], protocol.n), None, known.options_of(protocol.metrics["lost"]))
    counted = image_scores(count, here, None)
    assert counted is not None
    worst = counted.worst
    assert [each.index for each in worst] == [30, *range(4, 13)]
    assert (worst[0].value, worst[0].reference) == (0.25, 1.0)
    # A score of single images is compared with the recorded ones.
    mine, theirs = np.array([0.9, 0.5, 0.8]), np.array([0.9, 0.6, 0.95])
    scores = [
        Estimate("clip_score", each.mean(), 0.1, 3, influence=each - each.mean()) for each in (mine, theirs)
    ]
    recorded = RecordedEvidence("c", "p", {3: {"clip_score": scores[1]}})
    single = image_scores(scores[0], here, recorded)
    assert single is not None
    worst = single.worst
    assert [(each.index, each.value, each.reference) for each in worst] == [
        (2, pytest.approx(0.8), pytest.approx(0.95)),
        (1, pytest.approx(0.5), pytest.approx(0.6)),
    ]
    assert image_scores(replace(scores[0], metric="fid"), here, None) is None


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_one_black_picture_in_a_hundred_is_lost_and_no_mean_shows_it() -> None:
    """Five of 512 scenes: neither FID nor the CLIP score fails by them, paired with the same scenes."""
    protocol = load_protocol("scenes-quick")
    first = protocol.prompts.model_dump()["first"]
    drawn = range(first, first + 512)
    captions, whole = scenes.captions(drawn), scenes.render_batch(drawn)
    black = whole.copy()
    black[np.random.default_rng(1).choice(512, 5, replace=False)] = 0
    extractors, statistics = open_extractors(protocol), load_references(protocol)
    before, after = (
        estimate(protocol, [extractors.extract(images, captions)], statistics)  # type: ignore[arg-type]
        for images in (whole, black)
    )
    for metric in ("fid", "clip_score"):
        known, one, other = METRICS[metric], after[metric], before[metric]
        assert isinstance(one, Estimate)
        assert isinstance(other, Estimate)
        moved = difference(one, other)
        assert moved is not None
        better = known.higher_is_better
        score = Score(
            label=known.label,
            claimed=other.value,
            measured=one.value,
            margin=protocol.margins[metric],
            higher_is_better=better,
            decimals=4,
            error=moved.standard_error,
            unseen=worst_loss(one, other, higher_is_better=better),
        )
        assert judge_score(score).outcome != "fail"
    share = float((ssim(black, whole) < 0.75).mean())
    lost = Score("Lost", 0.0, share, 0.001, False, 4, None, n=512, most=512, trials=512)
    assert share == 5 / 512
    assert judge_score(lost, family=6).outcome == "fail"


@pytest.mark.slow
def test_eight_bits_a_channel_pass_and_four_fail(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    text = (reference() / "protocols" / "scenes-lcm4-fidelity.yaml").read_text(encoding="utf-8")
    content = YAML(typ="safe").load(text)
    content["metrics"]["lost"]["below"] = 0.9
    margins = {"psnr": 68, "ssim": 0.07, "feature_cosine": 0.07, "lost": 0.12}
    make_protocol(pytester.path / "protocols" / "few.yaml", **content | {"n": 48, "margins": margins})
    own = {"base": "embedded:scenes-sd", "unet": "embedded:scenes-tiny-lcm"}
    make_card(pytester.path / "lcm.md", claims={}, protocol="few", checkpoint=own)
    unet = reference() / "checkpoints" / "scenes-tiny-lcm"
    place = ("--sdbench-store", pytester.path / "store", "--sdbench-report=r.json", "--sdbench-report=r.html")
    for bits, outcome in ((8, "pass"), (4, "fail")):
        folder = rounded(unet, pytester.path / f"q{bits}", bits)
        run = pytester.runpytest(
            "--sdbench", "lcm.md", "-m", "quality", "-v", f"--sdbench-weights=lcm={folder}", *place
        )
        page = (pytester.path / "r.html").read_text(encoding="utf-8")
        assert ("<title>Do not release" in page) == (outcome == "fail")
        # The real scene, the reference's picture and the candidate's, of the worst and of the first dozen.
        shown = {page.count(f'class="{role} small') for role in ("real", "baseline", "candidate")}
        assert min(shown) == max(shown) > 12
        rows = {row["metric"]: row for row in report(pytester)["results"]}
        assert {row["verdict"] for row in rows.values()} == {outcome}
        assert {row["kind"] for row in rows.values()} == {"identity"}
        assert len(rows["ssim"]["extra"]["worst"]) == 10
        assert rows["psnr"]["extra"]["reference_fingerprint"] == resolve(own).fingerprint
        run.stdout.fnmatch_lines(["worst images of lcm, few-psnr:"])
    # Without a candidate there is nothing to compare with.
    pytester.runpytest("--sdbench", "lcm.md", "-m", "quality", *place).assert_outcomes(skipped=4)
    assert "names no baseline" in report(pytester)["results"][0]["reason"]


@pytest.mark.slow
def test_a_student_is_compared_with_its_baseline(
    pytester: pytest.Pytester, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What --sdbench-update records against the baseline is the claim from then on, of this reference."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    make_project(pytester.path, pristine_checkpoint, claims={})
    make_protocol(
        pytester.path / "cards/protocols/pairs.yaml", n=48, metrics=PAIRS, margins={"psnr": 2, "lost": 0.07}
    )
    card = make_card(pytester.path / "cards/student.md", claims={}, protocol="pairs", baseline="mini")
    command = (
        "--sdbench",
        "cards/student.md",
        "-m",
        "quality",
        "--sdbench-report=r.json",
        "--sdbench-report=r.html",
    )
    store = ("--sdbench-store", pytester.path / "store")
    pytester.runpytest(*command, *store, "--sdbench-update")
    records = read_card(card).records
    assert {each.metric: each.value for each in records} == {"psnr": 100.0, "lost": 0.0}
    (made,) = {each.reference_fingerprint for each in records}
    assert made is not None
    place = evidence_path(card, "pairs")
    kept = read_recorded(place)
    assert kept is not None
    assert kept.reference_fingerprint == made
    assert {metric: each.value for metric, each in kept.looks[48].items()} == {"psnr": 100.0, "lost": 0.0}
    pytester.runpytest(*command, *store).assert_outcomes(passed=2)
    rows = {row["metric"]: row["reason"] for row in report(pytester)["results"]}
    assert "paired with the recorded images" in rows["psnr"]
    assert record_evidence(read_card(card), "pairs", Workspace(pytester.path / "store")) is None
    for pictures in (pytester.path / "store").glob("*/pictures-*"):
        pictures.unlink()
    # What was compared before needs no picture again.
    assert record_evidence(read_card(card), "pairs", Workspace(pytester.path / "store")) is None
    for shard in (pytester.path / "store").glob("*/shard-*"):
        shard.unlink()
    with pytest.raises(Unavailable, match="images are not in the store"):
        record_evidence(read_card(card), "pairs", Workspace(pytester.path / "store"))
    card.write_text(card.read_text(encoding="utf-8").replace(made, "0123456789abcdef"), encoding="utf-8")
    pytester.runpytest(*command, *store)
    verdicts = [row["reason"] for row in report(pytester)["results"]]
    assert all("the record compares with the checkpoint 0123456789abcdef" in each for each in verdicts)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["a-student", "student"])
def test_pictures_are_drawn_once_whether_a_student_comes_before_its_teacher_or_after(
    student: str, pytester: pytest.Pytester, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocols of one draw share them: distances from real images, and pairs with the teacher's."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    make_project(pytester.path, pristine_checkpoint, claims={})
    cards, plain, drawn = pytester.path / "cards", maker.make, []
    make_protocol(cards / "protocols" / "pairs.yaml", metrics=PAIRS, margins=MARGINS)
    shutil.copytree(cards / "mini-sd", cards / "own", ignore=shutil.ignore_patterns("unet"))
    rounded(cards / "mini-sd" / "unet", cards / "own" / "unet", 4)
    both = {"checkpoint": "./own", "protocols": ["mini", "pairs"]}
    make_card(cards / f"{student}.md", claims={}, baseline="mini", **both)

    def counted(of: Any, *rest: Any, **words: Any) -> Work:
        work = plain(of, *rest, **words)
        drawn.append((of.manifest["checkpoint"], work.images))
        return work

    monkeypatch.setattr(maker, "make", counted)
    run = pytester.runpytest("--sdbench", "cards", "-m", "quality", "--sdbench-store", cards / "store")
    run.assert_outcomes(skipped=len(MINI) * 2 + len(PAIRS))
    assert [count for _, count in drawn] == [IMAGES, IMAGES]
    assert len(dict(drawn)) == 2


@pytest.mark.slow
def test_a_pipeline_of_ones_own_is_drawn_and_compared_with_the_plain_one(
    pytester: pytest.Pytester, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference and candidate have the same weights here: only who draws with them differs."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    make_project(pytester.path, pristine_checkpoint, claims={})
    margins = {"psnr": 2, "lost": 0.07}
    make_protocol(pytester.path / "cards/protocols/pairs.yaml", n=48, metrics=PAIRS, margins=margins)
    make_card(pytester.path / "cards/mini.md", claims={}, protocol="pairs")
    pytester.makeconftest(
        """
        import pathlib

        import pytest

        @pytest.fixture(scope="module")
        def sdbench_pipeline(sdbench_pipeline):
            def load(dtype):
                pathlib.Path("loaded").touch()
                pipeline = sdbench_pipeline(dtype)
                for parameter in pipeline.unet.parameters():
                    parameter.data.zero_()
                return pipeline

            return load
        """
    )
    own = pytester.path / "cards" / "mini-sd"
    words = (f"--sdbench-weights=mini={own}", "--sdbench-store", pytester.path / "store")
    pytester.runpytest("--sdbench", "cards/mini.md", "-m", "quality", "--sdbench-report=r.json", *words)
    found = {row["metric"]: row for row in report(pytester)["results"]}
    assert (pytester.path / "loaded").exists()
    assert {row["verdict"] for row in found.values()} == {"fail"}
    assert found["psnr"]["measured"] < 50
    assert [*(pytester.path / "store").glob("*/pictures-*.tar")], "the reference's are kept for other runs"
