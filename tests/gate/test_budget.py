"""``--sdbench-budget``: growing numbers of images, until the verdict is certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pytest_sdbench.cards.card import Card, read_card
from pytest_sdbench.evaluation.evaluate import Evaluation
from pytest_sdbench.gate.quality import Judgement, judge
from pytest_sdbench.gate.recorded import RecordedEvidence, evidence_path, write_recorded
from pytest_sdbench.gate.verdict import Outcome
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from tests.gate.helpers import Run, evaluation, report
from tests.project import make_card, make_project, make_protocol

N = 5000
LOOKS = [256, 1000, 2000, 5000]
SPREAD = 0.3
"""Of the images, so that the standard error of n of them is this over the root of n."""
MARGIN = 0.015
"""For an equal checkpoint, 2,000 images of SPREAD are not quite enough, and 5,000 are."""


Make = Callable[..., Card]


class Scored:
    """A checkpoint whose scores are known: it evaluates to them, and counts what it was asked for."""

    checkpoint = "00" * 8

    def __init__(self, protocol: Protocol, **scores: float | Callable[[int], Estimate | Undefined]) -> None:
        self.protocol, self.scores = protocol, scores
        self.asked: list[int | None] = []
        self.in_vain: tuple[int, ...] = ()
        """Looks at prompts that the protocol has several times."""

    def __call__(self, samples: int | None) -> Evaluation:
        self.asked.append(samples)
        measured = self.protocol if samples is None else self.protocol.with_samples(samples)
        estimates = {
            metric: score(measured.n) if callable(score) else plain(metric, score, measured.n)
            for metric, score in self.scores.items()
        }
        whole = {"requested": self.protocol.n, "complete": measured == self.protocol}
        foretells = measured.n not in self.in_vain
        return evaluation(measured, estimates, self.checkpoint, **whole, foretells=foretells)


def plain(metric: str, score: float, n: int, seed: int = 0) -> Estimate:
    """Return an estimate without bias; the first images of a larger number are the same ones."""
    influence = SPREAD * np.random.default_rng(seed).normal(size=N)[:n]
    return Estimate(metric, score, SPREAD / n**0.5, n, score, influence=influence - influence.mean())


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    return load_protocol(make_protocol(tmp_path / "cards" / "protocols" / "mini.yaml", n=N, margins={}))


@pytest.fixture
def card(tmp_path: Path, protocol: Protocol) -> Make:
    """Write a card of these claims and read it; MARGIN is the margin unless another is given."""

    def make(
        margins: Mapping[str, float] | None = None, records: Sequence[object] = (), **claims: float
    ) -> Card:
        wanted = dict.fromkeys(claims, MARGIN) | dict(margins or {})
        place = tmp_path / "cards" / "mini.md"
        return read_card(make_card(place, claims=claims, margins=wanted, records=list(records)))

    return make


def outcomes(found: Mapping[str, Judgement]) -> dict[str, tuple[str, int]]:
    """Return by metric what came of it, and on how many images."""
    return {
        name.removeprefix("mini-"): (str(each.verdict.outcome), each.evaluation.n)
        for name, each in found.items()
    }


@pytest.mark.parametrize(
    ("score", "budget", "asked", "outcome", "n"),
    [
        pytest.param(0.9, None, [None], "pass", N, id="no budget: one look at all images"),
        pytest.param(1.9, 30_000, [256], "pass", 256, id="surely a pass at the first look"),
        pytest.param(0.1, 30_000, [256], "fail", 256, id="surely a fail at the first look"),
        pytest.param(0.9, N, [256, 1000, 2000, None], "pass", N, id="on until it is certain"),
        pytest.param(0.9, 1000, [256, 1000], "inconclusive", 1000, id="a spent budget"),
        pytest.param(0.9, 1999, [256, 1000], "inconclusive", 1000, id="one short of the next look"),
    ],
)
def test_it_looks_until_it_is_certain_or_the_budget_is_spent(
    protocol: Protocol,
    card: Make,
    score: float,
    budget: int | None,
    asked: list[int | None],
    outcome: str,
    n: int,
) -> None:
    checkpoint = Scored(protocol, clip_score=score)
    found = judge(card(clip_score=0.9), protocol, checkpoint, budget)
    assert checkpoint.asked == asked
    assert outcomes(found) == {"clip_score": (outcome, n)}
    reason = found["mini-clip_score"].verdict.reason
    assert ("a prediction for 5,000 images" in reason) is (n < N)


def test_a_metric_keeps_the_verdict_of_the_look_that_decided_it(protocol: Protocol, card: Make) -> None:
    def falls(n: int) -> Estimate:
        return plain("inception_score", 9.0 if n == 256 else 1.0, n)

    checkpoint = Scored(protocol, clip_score=0.9, inception_score=falls)
    found = judge(card(clip_score=0.9, inception_score=5.0), protocol, checkpoint, N)
    assert outcomes(found) == {"clip_score": ("pass", N), "inception_score": ("pass", 256)}
    assert found["mini-inception_score"].measured == 9.0


def test_the_first_fail_ends_it(protocol: Protocol, card: Make) -> None:
    checkpoint = Scored(protocol, clip_score=0.9, inception_score=1.0)
    found = judge(card(clip_score=0.9, inception_score=5.0), protocol, checkpoint, N)
    assert checkpoint.asked == [256]
    assert outcomes(found) == {"clip_score": ("inconclusive", 256), "inception_score": ("fail", 256)}


def test_each_look_may_spend_a_part_of_the_error_rate_only(protocol: Protocol, card: Make) -> None:
    # Of 256 images the score is 2 standard errors beyond the margin: enough for one look, not for four.
    error = SPREAD * (1 / 256 + 1 / N) ** 0.5
    checkpoint = Scored(protocol, clip_score=0.9 - MARGIN - 2 * error)
    found = judge(card(clip_score=0.9), protocol, checkpoint, 256)
    assert outcomes(found) == {"clip_score": ("inconclusive", 256)}
    error = SPREAD * (2 / N) ** 0.5
    whole = Scored(protocol, clip_score=0.9 - MARGIN - 2 * error)
    assert outcomes(judge(card(clip_score=0.9), protocol, whole)) == {"clip_score": ("fail", N)}


def test_a_score_that_falls_with_more_images_is_judged_by_what_it_will_be(
    protocol: Protocol, card: Make
) -> None:
    def fid(n: int) -> Estimate:
        return Estimate(
            "fid", 1.0 + 200 / n, 1.6 / n**0.5, n, 1.0, 200.0, influence=plain("fid", 0, n).influence
        )

    margins = {"fid": 0.3}
    found = judge(card(margins, fid=1.04), protocol, Scored(protocol, fid=fid), N)["mini-fid"]
    assert found.verdict.outcome is Outcome.PASS
    assert found.evaluation.n < N
    assert found.measured == pytest.approx(1.04)
    # Without the prediction this would be worse by 0.74.
    assert isinstance(found.estimate, Estimate)
    assert found.estimate.value > 1.04 + 0.1


def test_too_few_images_for_a_score_are_a_reason_to_go_on(protocol: Protocol, card: Make) -> None:
    def wide(n: int) -> Estimate | Undefined:
        return Undefined("fid", "FID needs more images", n) if n < 1000 else plain("fid", 1.0, n)

    checkpoint = Scored(protocol, fid=wide)
    found = judge(card({"fid": 0.5}, fid=1.0), protocol, checkpoint, N)
    assert checkpoint.asked == [256, 1000]
    assert outcomes(found) == {"fid": ("pass", 1000)}
    open_ = judge(card({"fid": 0.5}, fid=1.0), protocol, Scored(protocol, fid=wide), 256)
    assert outcomes(open_) == {"fid": ("inconclusive", 256)}


def test_every_look_is_paired_with_as_many_recorded_images(protocol: Protocol, card: Make) -> None:
    own = {n: {"clip_score": plain("clip_score", 0.9, n)} for n in LOOKS}
    record = {
        "protocol": "mini",
        "metric": "clip_score",
        "value": 0.9,
        "n": N,
        "protocol_fingerprint": protocol.fingerprint,
        "checkpoint_fingerprint": "ff" * 8,
        "device": "here",
    }
    claimed = card({"clip_score": 0.0001}, [record], clip_score=0.9)
    place = evidence_path(claimed.path, "mini")
    write_recorded(place, RecordedEvidence("ff" * 8, protocol.fingerprint, own))
    checkpoint = Scored(protocol, clip_score=0.9)
    checkpoint.checkpoint = "ff" * 8
    found = judge(claimed, protocol, checkpoint, N)
    assert checkpoint.asked == [256]
    assert outcomes(found)["clip_score"] == ("pass", 256)
    reason = found["mini-clip_score"].verdict.reason
    assert "paired with the recorded images" in reason
    assert "a prediction for 5,000 images" in reason


def test_a_look_at_prompts_that_come_again_decides_nothing(protocol: Protocol, card: Make) -> None:
    checkpoint = Scored(protocol, clip_score=0.9)
    assert outcomes(judge(card(clip_score=0.5), protocol, checkpoint, N)) == {"clip_score": ("pass", 256)}
    checkpoint.in_vain, checkpoint.asked = (256, 1000), []
    assert outcomes(judge(card(clip_score=0.5), protocol, checkpoint, N)) == {"clip_score": ("pass", 2000)}
    open_ = judge(card(clip_score=0.5), protocol, checkpoint, 1000)["mini-clip_score"].verdict
    assert open_.outcome is Outcome.INCONCLUSIVE
    assert "the protocol repeats these prompts" in open_.reason


@pytest.mark.parametrize(("rate", "loss"), [(0.003, 0.7), (0.006, 0.7), (0.01, 0.3)])
def test_rare_failures_pass_one_time_in_twenty_at_most(
    protocol: Protocol, card: Make, rate: float, loss: float
) -> None:
    """All images are as recorded but a few that lose so much: it is worse by more than the margin."""
    rng, margin, runs = np.random.default_rng(1), 0.0019, 200
    assert rate * loss > margin
    scores = 0.93 - 0.04 * rng.gamma(1.0, size=N)

    def recorded(n: int, lost: np.ndarray[Any, Any] | float = 0.0) -> Estimate:
        found = (scores - lost)[:n]
        error = float(found.std(ddof=1)) / n**0.5
        value = float(found.mean())
        return Estimate("clip_score", value, error, n, value, influence=found - value)

    own = {n: {"clip_score": recorded(n)} for n in LOOKS}
    claimed = card({"clip_score": margin}, clip_score=round(own[N]["clip_score"].value, 4))
    write_recorded(evidence_path(claimed.path, "mini"), RecordedEvidence("ff" * 8, protocol.fingerprint, own))
    passed = 0
    for _ in range(runs):
        lost = loss * (rng.random(N) < rate)
        candidate = Scored(protocol, clip_score=lambda n, lost=lost: recorded(n, lost))
        (judged,) = judge(claimed, protocol, candidate, N).values()
        passed += judged.verdict.outcome is Outcome.PASS
    # 18 of 200 are as many as a chance of 5 % gives once in a hundred times.
    assert passed <= 18


class TestRuns:
    """Whole runs: a budget below the 300 images of the protocol, then one above."""

    @pytest.fixture
    def project(self, pytester: pytest.Pytester, pristine_checkpoint: Path) -> Path:
        path = make_project(pytester.path, pristine_checkpoint)
        make_protocol(path.parent / "protocols" / "mini.yaml", n=300)
        # After two steps of such a student it is about 0.14 with a standard error of 0.02: it cannot be told.
        student = {"base": "embedded:scenes-sd", "unet": "embedded:scenes-tiny"}
        close = {"clip_score": 0.2}
        return make_card(path, claims=close, margins={"clip_score": 0.07}, checkpoint=student)

    @pytest.fixture
    def run(self, pytester: pytest.Pytester, tmp_path: Path, project: Path) -> Run:
        words = ("--sdbench", "cards", "-k", "mini-clip_score", "--sdbench-store", tmp_path / "store")
        return lambda *more: pytester.runpytest(*words, "--sdbench-report=r.json", *more)

    def shards(self, tmp_path: Path) -> dict[str, tuple[int, int]]:
        """Return by file of the store how many images it holds, and when it was written."""
        return {
            file.name: (len(load_file(file)["index"]), file.stat().st_mtime_ns)
            for file in (tmp_path / "store").rglob("shard-*")
        }

    def row(self, pytester: pytest.Pytester) -> dict[str, Any]:
        (row,) = report(pytester)["results"]
        return dict(row)

    @pytest.mark.slow
    def test_a_larger_budget_adds_images(self, run: Run, pytester: pytest.Pytester, tmp_path: Path) -> None:
        result = run("--sdbench-budget=299")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(["sdbench: *budget 299 images*", "*a prediction for 300 images*"])
        first = self.row(pytester)
        assert (first["verdict"], first["n"], first["extra"]["images_made"]) == ("inconclusive", 256, 256)
        before = self.shards(tmp_path)
        assert sum(count for count, _ in before.values()) == 256

        run("--sdbench-budget=30000")
        second = self.row(pytester)
        assert (second["n"], second["extra"]["images_made"]) == (300, 44)
        assert "prediction" not in second["reason"]
        after = self.shards(tmp_path)
        assert sum(count for count, _ in after.values()) == 300
        assert {name: after[name] for name in before} == before

        run()  # and a run without a budget makes none
        assert self.row(pytester)["extra"]["images_made"] == 0
        assert self.shards(tmp_path) == after

    @pytest.mark.slow
    def test_what_is_certain_at_the_first_look_is_not_drawn_again(
        self, run: Run, pytester: pytest.Pytester, project: Path, tmp_path: Path
    ) -> None:
        make_card(project, claims={"clip_score": 0.99}, margins={"clip_score": 0.2})
        run("--sdbench-budget=30000").assert_outcomes(failed=1, deselected=10)
        row = self.row(pytester)
        assert (row["verdict"], row["n"]) == ("fail", 256)
        assert sum(count for count, _ in self.shards(tmp_path).values()) == 256
        # Nor do scores that nothing is claimed of cost more images.
        words = ("--sdbench", "cards", "-m", "quality", "--sdbench-store", tmp_path / "store")
        pytester.runpytest(*words, "--sdbench-budget=30000").assert_outcomes(failed=1, skipped=3)
        assert sum(count for count, _ in self.shards(tmp_path).values()) == 256

    @pytest.mark.slow
    def test_what_a_budget_left_out_is_not_recorded_but_named(self, run: Run, project: Path) -> None:
        before = project.read_bytes()
        result = run("--sdbench-budget=256", "--sdbench-update")
        assert project.read_bytes() == before
        assert not (project.parent.parent / "evidence").exists()
        result.stdout.fnmatch_lines(["sdbench: not recorded: *run without *--sdbench-budget*"])

    def test_a_budget_below_all_looks_is_refused(
        self, run: Run, pytester: pytest.Pytester, tmp_path: Path
    ) -> None:
        def refused(told: str, *words: str) -> None:
            result = run(*words)
            assert result.ret == pytest.ExitCode.USAGE_ERROR
            assert told in result.stderr.str()
            assert not (tmp_path / "store").exists()

        for budget in ("255", "0", "-1", "many", ""):
            refused(f"--sdbench-budget: found '{budget}'; give", f"--sdbench-budget={budget}")
        both = ("--sdbench-budget=256", "--sdbench-samples=256")
        refused("--sdbench-samples and --sdbench-budget: give one", *both)
        pytester.makeini("[pytest]\nsdbench_budget = 255\n")
        refused("sdbench_budget: found '255'; give a whole number of at least 256")
