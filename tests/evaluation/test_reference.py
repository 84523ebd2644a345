"""The pictures of a reference: on which set-up they were drawn, and what becomes of damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.errors import CheckpointError, EvidenceError, SdbenchError, Unavailable
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evaluate import Evaluation, evaluate
from pytest_sdbench.evaluation.fidelity import draw_reference
from pytest_sdbench.evaluation.job import Extras
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.store.shard_folder import DamagedEvidence
from pytest_sdbench.store.shard_format import format_shard, parse_shard
from pytest_sdbench.store.shards import Evidence
from tests.evaluation.helpers import CLIP, own_protocol

N = 70
PSNR = {"psnr": {"extractor": "psnr"}}
SSIM = {"ssim": {"extractor": "ssim"}}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

Score = Callable[..., Evaluation]


@pytest.fixture
def score(pristine_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Score:
    """Score the tiny checkpoint beside itself, on a device of this name."""
    captions = "".join(f"{number}.jpg,red and blue {number}\n" for number in range(N))
    (tmp_path / "captions.csv").write_text(f"file_name,text\n{captions}", encoding="utf-8")
    tiny = Checkpoint("tiny", pristine_checkpoint)

    def score(metrics: dict[str, Any], *, on: str = "here", original: Any = lambda: tiny) -> Evaluation:
        monkeypatch.setattr("pytest_sdbench.evaluation.job.device_name", lambda device: on)
        protocol = own_protocol(tmp_path, n=N, steps=1, metrics=metrics)
        workspace = Workspace(tmp_path / "store", tmp_path, progress=False, keep_images=0)
        extras = Extras(original=original, original_store=tmp_path / "originals")
        return evaluate(tiny, protocol, workspace, extras=extras)

    return score


def devices(found: Evaluation) -> tuple[set[str], set[str]]:
    """Return where the reference's pictures were drawn, and those that are compared with them."""
    assert found.reference is not None
    return {device for device, *_ in found.reference.setups}, {device for device, *_ in found.setups}


def test_a_set_up_is_that_of_who_drew_the_pictures(score: Score, tmp_path: Path) -> None:
    """Not of older rows beside them, and not of who measured them later."""
    score(CLIP, on="old")
    (tmp_path / "store").rename(tmp_path / "originals")
    assert devices(score(CLIP | PSNR, on="new")) == ({"new"}, {"new"})
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    assert devices(score(CLIP | PSNR, on="newer")) == ({"new"}, {"newer"})


def test_who_measures_kept_pictures_has_not_drawn_them(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(PSNR, on="old")
    (tmp_path / "store").rename(tmp_path / "unused")
    (tmp_path / "originals").rename(tmp_path / "store")  # its pictures are the candidate's, too
    (tmp_path / "originals").symlink_to(tmp_path / "store")
    found = score(PSNR | SSIM, on="new")
    assert (found.images_made, devices(found)) == (0, ({"old"}, {"old"}))


@pytest.mark.parametrize("says", [True, False])
def test_what_was_compared_needs_no_picture_of_the_reference(
    says: bool, score: Score, tmp_path: Path
) -> None:
    """A shard says where these were drawn; where one of before does not, they are drawn again."""
    first = score(PSNR, on="old")
    for path in (tmp_path / "originals").glob("*/*"):
        path.unlink()
    for path in () if says else (tmp_path / "store").glob("*/shard-*"):
        rows, about = parse_shard(path.read_bytes())
        del rows["index"]
        path.write_bytes(
            format_shard(rows, range(about["start"], about["stop"]), of=about["of"], writer=about["writer"])
        )
    again = score(PSNR, on="new")
    assert again.images_made == 0
    assert devices(again) == (({"old"} if says else {"new"}), {"old"})
    assert bool([*(tmp_path / "originals").glob("*/pictures-*")]) is not says
    assert again.estimates == first.estimates


def test_damaged_pictures_of_a_reference_are_drawn_again(score: Score, tmp_path: Path) -> None:
    score(PSNR)
    (tmp_path / "store").rename(tmp_path / "unused")
    first, second = sorted((tmp_path / "originals").glob("*/pictures-*"))
    good = first.read_bytes(), second.read_bytes()
    first.write_bytes(good[0][:40_000] + bytes([good[0][40_000] ^ 1]) + good[0][40_001:])  # a pixel's
    second.write_bytes(bytes(1000))  # who drew it is not known either
    with pytest.warns(DamagedEvidence) as told:
        found = score(CLIP | PSNR)
    assert {"pictures-00000000-00000064", "pictures-00000064-00000070"} == {
        str(each.message).partition(".tar")[0].rpartition("/")[2] for each in told
    }
    assert (first.read_bytes(), second.read_bytes()) == good
    assert found.lacking == {}
    estimate = found.estimates["psnr"]
    assert isinstance(estimate, Estimate)
    assert estimate.value == 100


def test_pictures_that_cannot_be_read_twice_cost_the_metrics_of_pairs_alone(
    score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evidence, "pictures", lambda *_: None)
    found = score(CLIP | PSNR)
    assert {*found.estimates} == {*CLIP}
    assert isinstance(found.lacking["psnr"], EvidenceError)


@pytest.mark.parametrize(
    ("kind", "says"), [(CheckpointError, "reference.*damaged: a flipped bit"), (Unavailable, "flipped")]
)
def test_a_damaged_reference_costs_the_metrics_of_pairs_alone(
    kind: type[SdbenchError], says: str, score: Score
) -> None:
    """It is an error of theirs; one that is not here at all is a reason to skip them."""

    def find() -> Checkpoint:
        raise kind("a flipped bit", file="unet.safetensors")

    found = score(CLIP | PSNR, original=find)
    assert {*found.estimates} == {*CLIP}
    assert type(found.lacking["psnr"]) is kind
    with pytest.raises(kind, match=says):
        score(PSNR, original=find)


def test_a_reference_with_another_scheduler_is_a_reason_to_skip(
    pristine_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "captions.csv").write_text("file_name,text\n1.jpg,red\n", encoding="utf-8")
    scheduler = {"name": "checkpoint", "must_be": "LCMScheduler"}
    protocol = own_protocol(tmp_path, n=1, steps=1, metrics=PSNR, scheduler=scheduler)
    workspace = Workspace(tmp_path / "store", tmp_path, progress=False)
    says = r"the reference tiny has another scheduler.*'PNDMScheduler'.*one of the protocol's scheduler"
    for instead, ends in (("", "$"), ("do this", ", or do this$")):
        with pytest.raises(Unavailable, match=f"{says}{ends}"):
            draw_reference(
                lambda: Checkpoint("tiny", pristine_checkpoint), protocol, workspace, instead=instead
            )
