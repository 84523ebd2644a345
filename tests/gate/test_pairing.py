"""Recorded images of a card: written with its records, read when it is judged, and of its own weights."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.evaluation.fidelity import Reference
from pytest_sdbench.gate.recorded import (
    RecordedEvidence,
    evidence_path,
    read_recorded,
    record_evidence,
    write_recorded,
)
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.models.changes import Description
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.layout import COMPONENTS
from pytest_sdbench.protocols.load import load_protocol
from tests.gate.helpers import Run, report
from tests.project import IMAGES, make_card, make_project, make_protocol

METRICS = {"fid", "kid", "inception_score", "clip_score"}
FINE = {"fid": 0.01, "kid": 0.0001, "inception_score": 0.01, "clip_score": 0.0001}
"""Margins that images of random weights cannot tell unless they are paired."""


@pytest.fixture
def project(pytester: pytest.Pytester, pristine_checkpoint: Path) -> Path:
    return make_project(pytester.path, pristine_checkpoint, claims={}, margins=FINE)


def reasons(pytester: pytest.Pytester) -> dict[str, str]:
    return {row["metric"]: row["reason"] for row in report(pytester)["results"]}


@pytest.mark.slow
def test_an_update_fails_until_nothing_is_new(
    run: Run, project: Path, pytester: pytest.Pytester, store: Path
) -> None:
    # The CLIP score of random weights is below zero, which is no reference: a student, after two steps.
    student = {"base": "embedded:scenes-sd", "unet": "embedded:scenes-tiny"}
    make_card(project, claims={}, margins=FINE, checkpoint=student)
    place = pytester.path / "evidence" / "mini" / "mini.safetensors"
    first = run("--sdbench-update")
    assert first.ret == pytest.ExitCode.TESTS_FAILED
    first.stdout.fnmatch_lines([f"sdbench: what each image adds is recorded in *{place.name}"])
    found = read_recorded(place)
    assert found is not None
    assert set(found.looks) == {IMAGES}
    assert set(found.looks[IMAGES]) == METRICS
    for each in found.looks[IMAGES].values():
        assert each.influence is not None
        assert each.influence.shape == (IMAGES,)
    assert place.stat().st_size < 8 * len(METRICS) * IMAGES + 24_576, "images, and the description"

    content, card = place.read_bytes(), project.read_bytes()
    second = run("--sdbench-update")
    assert second.ret == pytest.ExitCode.OK
    second.assert_outcomes(passed=len(METRICS))
    assert (place.read_bytes(), project.read_bytes()) == (content, card)
    second.stdout.no_fnmatch_line("*recorded in*")
    # Evidence of the format before descriptions gains one, and nothing else.
    assert write_recorded(place, replace(found, description=None))
    assert record_evidence(read_card(project), "mini", Workspace(store)) == place
    assert place.read_bytes() == content
    # These margins are far below the noise: only images that are paired can be told so finely.
    for reason in reasons(pytester).values():
        assert "paired with the recorded images" in reason
        assert "no difference" in reason

    # Evidence that was lost is written again, to the same bytes, and that is a change.
    place.unlink()
    assert run("--sdbench-update").ret == pytest.ExitCode.TESTS_FAILED
    assert place.read_bytes() == content
    place.unlink()
    unpaired = run()
    assert unpaired.ret == pytest.ExitCode.TESTS_FAILED
    assert all("smaller than the noise" in reason for reason in reasons(pytester).values())


@pytest.mark.parametrize("why", ["no update", "weights", "samples", "-x"])
def test_images_that_are_not_all_of_the_cards_own_are_not_recorded(
    run: Run, project: Path, pytester: pytest.Pytester, pristine_checkpoint: Path, why: str
) -> None:
    words = {
        "no update": [],
        "weights": ["--sdbench-update", f"--sdbench-weights=mini={pristine_checkpoint}"],
        "samples": ["--sdbench-update", "--sdbench-samples=66"],
        "-x": ["--sdbench-update", "-x"],
    }[why]
    if why == "-x":
        make_card(project, claims={"clip_score": 0.99})  # which fails, and stops the run
    run(*words)
    assert not (pytester.path / "evidence").exists()


@pytest.mark.slow
def test_damaged_evidence_is_named_and_fails(run: Run, project: Path, pytester: pytest.Pytester) -> None:
    run("--sdbench-update")
    place = pytester.path / "evidence" / "mini" / "mini.safetensors"
    content = place.read_bytes()
    place.write_bytes(content[: len(content) // 2])
    result = run()
    result.assert_outcomes(failed=len(METRICS))
    assert sum("mini/mini.safetensors" in line for line in result.outlines if "FAILED" not in line) >= 1
    assert "Traceback" not in result.stdout.str()
    assert "--sdbench-update" in result.stdout.str()
    # The remedy that the message names works.
    place.unlink()
    run("--sdbench-update")
    assert place.read_bytes() == content


def test_a_metric_is_added_to_what_is_recorded_of_the_others(
    project: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the references of another are not at hand, its images stay."""
    card = read_card(project)
    protocol = load_protocol("mini", search=(project.parent,))
    checkpoint = resolve(card.checkpoint, card=card.name, near=project.parent)
    earlier = protocol.model_copy(update={"metrics": {"fid": protocol.metrics["fid"]}})
    fid, clip = (
        Estimate(metric, 1.5, 0.25, IMAGES, 1.25, influence=np.linspace(-1, 1, IMAGES))
        for metric in ("fid", "clip_score")
    )
    place = evidence_path(project, "mini")
    write_recorded(
        place, RecordedEvidence(checkpoint.fingerprint, earlier.fingerprint, {IMAGES: {"fid": fid}})
    )
    found = SimpleNamespace(estimates={"clip_score": clip}, reference=None)
    monkeypatch.setattr("pytest_sdbench.evaluation.evaluate.evaluate", lambda *_, **__: found)
    assert record_evidence(card, "mini", Workspace("store")) == place
    recorded = read_recorded(place)
    assert recorded is not None
    assert recorded.protocol_fingerprint == protocol.fingerprint
    assert set(recorded.looks[IMAGES]) == {"fid", "clip_score"}
    assert record_evidence(card, "mini", Workspace("store")) is None


def test_recorded_pairs_are_those_of_one_reference(
    pytester: pytest.Pytester, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that cannot compare leaves them; one beside another baseline replaces them."""
    project = make_project(pytester.path, pristine_checkpoint, claims={})
    metrics = {"clip_score": {"model": "scenes-clip"}, "psnr": {"extractor": "psnr"}}
    place = make_protocol(project.parent / "protocols" / "mini.yaml", n=IMAGES, metrics=metrics, margins={})
    card, protocol = read_card(project), load_protocol(place)
    clip, psnr = (
        Estimate(metric, 1.5, 0.25, IMAGES, 1.5, influence=np.linspace(-1, 1, IMAGES))
        for metric in ("clip_score", "psnr")
    )
    file = evidence_path(project, "mini")

    def record(reference: str | None, device: str = "here") -> tuple[bool, dict[str, float], str | None]:
        """Record beside a reference of this fingerprint; return what is in the file then."""
        found = {"clip_score": clip} if reference is None else {"clip_score": clip, "psnr": psnr}
        beside = None if reference is None else Reference("baseline", reference, frozenset({(device, "2.9")}))
        evaluation = SimpleNamespace(estimates=found, reference=beside)
        monkeypatch.setattr("pytest_sdbench.evaluation.evaluate.evaluate", lambda *_, **__: evaluation)
        changed = record_evidence(card, "mini", Workspace("store")) is not None
        recorded = read_recorded(file)
        assert recorded is not None
        scores = {metric: each.value for metric, each in recorded.looks[IMAGES].items()}
        return changed, scores, recorded.reference_fingerprint

    both = {"clip_score": 1.5, "psnr": 1.5}
    assert record(None) == (True, {"clip_score": 1.5}, None)
    assert b"reference_fingerprint" not in file.read_bytes()
    assert record("one") == (True, both, "one")
    assert record(None) == (False, both, "one")
    assert record("one") == (False, both, "one")
    # What says the same stays, and so does where its reference was drawn; a file of before gains it.
    assert record("one", "there") == (False, both, "one")
    recorded = read_recorded(file)
    assert recorded is not None
    assert recorded.reference_setups == {("here", "2.9")}
    write_recorded(file, replace(recorded, reference_setups=None))
    assert record("one", "there") == (True, both, "one")
    assert record("one", "there") == (False, both, "one")
    assert record("two") == (True, both, "two")
    # So do those of an earlier protocol with fewer metrics.
    earlier = protocol.model_copy(update={"metrics": {"psnr": protocol.metrics["psnr"]}})
    known = RecordedEvidence(
        resolve(card.checkpoint, card=card.name, near=project.parent).fingerprint,
        earlier.fingerprint,
        {IMAGES: {"psnr": replace(psnr, value=2.0)}},
        reference_fingerprint="one",
    )
    for reference, value in ((None, 2.0), ("one", 1.5), ("two", 1.5)):
        write_recorded(file, known)
        assert record(reference) == (True, both | {"psnr": value}, reference or "one")


class TestFile:
    """One file of evidence, without any run."""

    @pytest.fixture
    def recorded(self) -> RecordedEvidence:
        influence = np.random.default_rng(0).normal(size=300)

        def estimate(metric: str, n: int) -> Estimate:
            return Estimate(metric, 1.5, 0.25, n, 1.25, 0.5, influence[:n], 0.125)

        return RecordedEvidence(
            "ab" * 8,
            "cd" * 8,
            {
                n: {metric: estimate(metric, n) for metric in ("fid", "clip_score", "psnr")}
                for n in (256, 300)
            },
            reference_fingerprint="ef" * 8,
        )

    def test_it_is_read_back_and_rewritten_for_a_change_alone(
        self, recorded: RecordedEvidence, tmp_path: Path
    ) -> None:
        place = tmp_path / "new" / "folder" / "p.safetensors"
        assert write_recorded(place, recorded)
        found = read_recorded(place)
        assert found == recorded
        assert found is not None
        for n, metrics in recorded.looks.items():
            for metric, each in metrics.items():
                again = found.looks[n][metric].influence
                assert again is not None
                assert each.influence is not None
                np.testing.assert_allclose(again, each.influence, rtol=1e-6)
                assert found.looks[n][metric].degenerate == each.degenerate
        assert not write_recorded(place, recorded)
        assert write_recorded(place, RecordedEvidence("00" * 8, "cd" * 8, recorded.looks))

    def test_a_pointer_of_git_lfs_is_called_that(self, tmp_path: Path) -> None:
        place = tmp_path / "p.safetensors"
        place.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with pytest.raises(EvidenceError, match=r"Git LFS pointer.*git lfs pull"):
            read_recorded(place)

    @pytest.mark.parametrize(
        ("figure", "told"),
        [
            ({"value": None}, "clip_score of 256 images has no value"),
            ({"degenerate": None}, "clip_score of 256 images has no degenerate"),
            ({"standard_error": -0.1}, "clip_score of 256 images has a standard error below 0"),
            ({"value": 10**400}, "not recorded evidence"),
        ],
    )
    def test_impossible_figures_are_named(
        self, recorded: RecordedEvidence, tmp_path: Path, figure: dict[str, Any], told: str
    ) -> None:
        place = tmp_path / "p.safetensors"
        wrong = copy(recorded.looks[256]["clip_score"])
        for name, value in figure.items():  # as no estimate of today has it
            object.__setattr__(wrong, name, value)
        looks = {**recorded.looks, 256: {**recorded.looks[256], "clip_score": wrong}}
        write_recorded(place, replace(recorded, looks=looks))
        with pytest.raises(EvidenceError, match=told):
            read_recorded(place)

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            ({"configs": {"unet": None}}, "configs of another form"),
            ({"configs": [["unet", {}]]}, "configs of another form"),
            ({"vocabulary": {"merges.txt": 3}}, "vocabulary of another form"),
            ({"checksums": dict.fromkeys(COMPONENTS, np.zeros((), np.uint32))}, "another form: unet"),
            ({"checksums": dict.fromkeys(COMPONENTS, np.zeros(2, np.int64))}, "another form: unet"),
            ({"norms": dict.fromkeys(COMPONENTS, np.zeros(3, np.float32))}, "another form: unet"),
        ],
    )
    def test_a_damaged_description_is_named(
        self, recorded: RecordedEvidence, tmp_path: Path, damage: dict[str, Any], told: str
    ) -> None:
        place = tmp_path / "p.safetensors"
        sums, norms = np.zeros(2, np.uint32), np.zeros(2, np.float32)
        each = dict.fromkeys(COMPONENTS, sums), dict.fromkeys(COMPONENTS, norms)
        whole = Description({"unet": {"a": 1}}, {"merges.txt": "ab"}, *each)
        write_recorded(place, replace(recorded, description=whole))
        found = read_recorded(place)
        assert found is not None
        assert found.description is not None
        assert found.description.configs == whole.configs
        write_recorded(place, replace(recorded, description=replace(whole, **damage)))
        with pytest.raises(EvidenceError, match=told):
            read_recorded(place)

    def test_a_score_whose_images_say_nothing_is_left_out(self, tmp_path: Path) -> None:
        place = tmp_path / "p.safetensors"
        assert read_recorded(place) is None
        write_recorded(place, RecordedEvidence("a", "b", {2: {"fid": Estimate("fid", 1.0, None, 2)}}))
        assert read_recorded(place) == RecordedEvidence("a", "b", {2: {}})

    def test_an_unwritable_place_is_named(self, recorded: RecordedEvidence, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(EvidenceError, match=r"file/p\.safetensors"):
            write_recorded(tmp_path / "file" / "p.safetensors", recorded)

    def test_it_lies_beside_the_cards(self) -> None:
        beside = evidence_path(Path("reference/cards/a.md"), "p")
        assert beside == Path("reference/evidence/a/p.safetensors").absolute()
        place = Path("model/evidence/model/p.safetensors").absolute()
        assert evidence_path(Path("model/README.md"), "p") == place

    def test_it_is_found_from_within_the_folder_of_the_cards(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "cards").mkdir()
        monkeypatch.chdir(tmp_path / "cards")
        assert evidence_path(Path("a.md"), "p") == tmp_path / "evidence" / "a" / "p.safetensors"
