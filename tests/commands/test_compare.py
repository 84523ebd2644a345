"""``python -m pytest_sdbench compare``: two checkpoints on the same prompts and seeds."""

from __future__ import annotations

import json
import math
import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands.compare import recorded_protocol
from pytest_sdbench.commands.main import main
from pytest_sdbench.evaluation.evaluate import CUT, evaluate
from pytest_sdbench.gate.recorded import record_evidence
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.models import specs
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols.load import load_protocol
from tests.project import IMAGES, make_card, make_project, make_protocol

METRICS = {"fid": "FID", "kid": "KID", "inception_score": "IS", "clip_score": "CLIP score"}
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Compare = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all comparisons of this module: equal checkpoints are drawn once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def cards(tmp_path: Path, noisy: Path, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two cards, and the current one: ``mini``, and ``noisy`` whose U-Net is slightly off."""
    cards = make_project(tmp_path, pristine_checkpoint, claims={}).parent
    shutil.copytree(noisy, cards / "noisy-sd")
    make_card(cards / "noisy.md", claims={}, checkpoint="./noisy-sd")
    monkeypatch.chdir(cards)
    return cards


@pytest.fixture
def compare(cards: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> Compare:
    """Compare two checkpoints and return what the JSON file says; the table is under ``text``."""

    def run(first: object, second: object, *words: str) -> dict[str, Any]:
        command = ["compare", str(first), str(second), "--protocol", "mini", "--store", str(store)]
        assert main([*command, "--json", "out.json", *words]) == 0
        return {**json.loads(Path("out.json").read_text(encoding="utf-8")), "text": capsys.readouterr().out}

    return run


@pytest.fixture(scope="module")
def noisy(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with every weight of its U-Net changed by a tenth of it, more or less."""
    folder = Path(shutil.copytree(pristine_checkpoint, tmp_path_factory.mktemp("noisy") / "noisy-sd"))
    generator = torch.Generator().manual_seed(0)
    weights = load_file(folder / UNET_WEIGHTS)
    noise = {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in weights.items()}
    changed = {key: value * (1 + noise[key]) for key, value in weights.items()}
    save_file(changed, folder / UNET_WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture
def blank(cards: Path) -> None:
    """Make the second checkpoint as bad as can be: a U-Net of zeros."""
    file = cards / "noisy-sd" / UNET_WEIGHTS
    save_file({key: torch.zeros_like(value) for key, value in load_file(file).items()}, file)


def test_two_copies_of_one_checkpoint_differ_by_exactly_nothing(compare: Compare, cards: Path) -> None:
    shutil.copytree(cards / "mini-sd", cards / "copy")
    found = compare("mini-sd", "copy")
    assert (found["first"], found["second"]) == ("mini-sd", "copy")
    assert (found["protocol"], found["n"]) == ("mini", IMAGES)
    assert set(found["metrics"]) == set(METRICS)
    for each in found["metrics"].values():
        assert each["first"] == each["second"]
        assert each["difference"] == 0
        assert each["unpaired_error"] > 0
    # The error of no difference is none either, wherever a score is a mean of its images.
    assert found["metrics"]["clip_score"]["standard_error"] == 0
    assert found["text"].count("no difference") == len(METRICS)
    assert "better" not in found["text"]


def test_two_checkpoints_differ_and_the_order_says_which_way(
    compare: Compare, cards: Path, store: Path
) -> None:
    found, turned = compare("mini", "noisy"), compare("noisy", "mini")
    protocol = load_protocol(cards / "protocols" / "mini.yaml")
    for name, side in (("mini", "first"), ("noisy", "second")):
        scores = evaluate(resolve(f"./{name}-sd", near=cards), protocol, Workspace(store), max_images=0)
        for metric in METRICS:
            own = scores.estimates[metric]
            assert isinstance(own, Estimate)
            assert found["metrics"][metric][side] == own.value
    for metric, each in found["metrics"].items():
        assert each["difference"] == pytest.approx(each["first"] - each["second"])
        assert each["difference"] == -turned["metrics"][metric]["difference"] != 0
        assert each["standard_error"] == turned["metrics"][metric]["standard_error"]
        # Same prompts and seeds, and nearly the same weights: most of the noise cancels.
        assert 0 < each["standard_error"] < each["unpaired_error"]
    for name in ("mini", "noisy"):
        assert name in found["text"].splitlines()[0]
    assert f"{IMAGES} images each" in found["text"]


@pytest.mark.slow
@pytest.mark.usefixtures("blank")
def test_a_clear_difference_is_called_one(compare: Compare) -> None:
    found = compare("mini", "noisy")
    called = [line for line in found["text"].splitlines() if line.endswith(" is better")]
    assert called
    sure = 0
    for metric, each in found["metrics"].items():
        # 95 % of a normal distribution lie within 1.96 standard errors.
        if abs(each["difference"]) > 1.97 * each["standard_error"]:
            sure += 1
            first_is_better = (each["difference"] > 0) is (metric not in ("fid", "kid"))
            (line,) = [line for line in called if line.startswith(METRICS[metric])]
            assert line.endswith(f" {'mini' if first_is_better else 'noisy'} is better")
    assert len(called) == sure
    # Few prompts call no winner.
    for images, called_at_all in (("19", False), ("20", True)):
        text = compare("mini", "noisy", "--images", images)["text"]
        assert ("too few prompts" in text) is not called_at_all
        assert called_at_all or "is better" not in text


def test_namesakes_are_told_apart_by_their_folders(compare: Compare, cards: Path) -> None:
    for folder, checkpoint in (("one", "mini-sd"), ("two", "noisy-sd")):
        make_protocol(cards / folder / "protocols" / "mini.yaml")
        make_card(cards / folder / "model.md", claims={}, checkpoint=f"../{checkpoint}")
    found = compare(cards / "one" / "model.md", cards / "two" / "model.md")
    assert (found["first"], found["second"]) == ("one/model", "two/model")
    assert "one/model" in found["text"]


def test_a_card_is_named_by_its_file_as_well(compare: Compare, cards: Path) -> None:
    found = compare(cards / "mini.md", "mini")
    assert (found["first"], found["second"]) == ("mini", "mini")
    assert all(each["difference"] == 0 for each in found["metrics"].values())


def test_a_unet_alone_is_joined_to_the_base_of_the_other_and_is_none_itself(
    compare: Compare, cards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cards / "noisy-sd" / "unet", cards / "checkpoints" / "alone" / "unet")
    monkeypatch.setattr(specs, "reference", lambda: cards)
    whole = compare("noisy", "mini")
    for alone in (
        "embedded:alone",
        cards / "checkpoints" / "alone",
        cards / "checkpoints" / "alone" / "unet",
    ):
        assert compare(alone, "mini")["metrics"] == whole["metrics"]
    turned = compare("mini", "embedded:alone")["metrics"]
    assert turned["fid"]["difference"] == -whole["metrics"]["fid"]["difference"]
    assert main(["compare", "embedded:alone", "embedded:alone", "--protocol", "mini"]) == 2
    assert "this is a U-Net alone" in capsys.readouterr().err
    single = cards / "noisy-sd" / "unet" / "diffusion_pytorch_model.safetensors"
    assert main(["compare", str(single), "mini", "--protocol", "mini"]) == 2
    assert "Weights of one network belong beside its config.json" in capsys.readouterr().err


def test_fewer_images_are_the_first_ones(compare: Compare, cards: Path, store: Path) -> None:
    found = compare("mini", "noisy", "--images", "40")
    assert found["n"] == 40
    protocol = load_protocol(cards / "protocols" / "mini.yaml").with_samples(40)
    own = evaluate(resolve("./mini-sd", near=cards), protocol, Workspace(store), max_images=0)
    clip = own.estimates["clip_score"]
    assert isinstance(clip, Estimate)
    assert found["metrics"]["clip_score"]["first"] == clip.value
    # FID is not defined by so few: the reason stands below the table.
    assert "fid" not in found["metrics"]
    assert "FID: it needs more images than its 96 features" in found["text"]
    # Of a few more it has no standard error, and so no verdict.
    found = compare("mini", "noisy", "--images", "100")
    assert found["metrics"]["fid"]["standard_error"] is None
    (line,) = [line for line in found["text"].splitlines() if line.startswith("FID")]
    assert line.rstrip().endswith("cannot tell: its error is unknown")


def pictures(file: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the kept pictures of a draw."""
    with tarfile.open(file) as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".png"))
        found = [tar.extractfile(name) for name in names]
        return np.stack([np.array(Image.open(BytesIO(each.read()))) for each in found if each]) * 1.0


@pytest.mark.slow
def test_pictures_of_the_second_are_compared_with_those_of_the_first(
    compare: Compare, cards: Path, tmp_path: Path
) -> None:
    metrics = {
        "clip_score": {"model": "local:scenes-clip"},
        "psnr": {"extractor": "psnr"},
        "lost": {"extractor": "psnr", "below": 45.0},
    }
    make_protocol(cards / "protocols" / "pairs.yaml", n=30, metrics=metrics, margins={})
    make_card(cards / "noisy.md", claims={}, checkpoint="./noisy-sd", baseline="mini")
    words = "--protocol", "pairs", "--store", str(tmp_path / "pairs")
    found = compare("mini", "noisy", *words)
    one, other = (pictures(file) for file in (tmp_path / "pairs").glob("*/pictures-*.tar"))
    each = 10 * np.log10(255**2 / np.square(one - other).mean((1, 2, 3)))
    mean, error = np.mean(each), np.std(each, ddof=1) / math.sqrt(30)
    psnr, lost = found["pairs"]["psnr"], found["pairs"]["lost"]
    assert psnr["value"] == pytest.approx(mean, abs=1e-4)
    assert psnr["standard_error"] == pytest.approx(error, rel=1e-3)
    assert psnr["interval"] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], rel=1e-3)
    count = int(np.sum(each < 45))
    interval = stats.binomtest(count, 30).proportion_ci(0.95, "exact")
    assert lost["interval"] == pytest.approx([interval.low, interval.high], abs=1e-6)
    assert set(found["metrics"]) == {"clip_score"}
    assert "noisy beside mini" in found["text"]
    # Each is the other's reference: all that is symmetric stays.
    assert compare("noisy", "mini", *words)["pairs"]["psnr"]["value"] == pytest.approx(mean, abs=1e-4)
    # A card's recorded pairs are those beside its baseline, and nothing is drawn for them.
    for name in ("mini", "noisy"):
        assert record_evidence(read_card(cards / f"{name}.md"), "pairs", Workspace(tmp_path / "pairs"))
    again = compare("mini", "noisy", "--protocol", "pairs", "--store", str(tmp_path / "empty"))
    assert not (tmp_path / "empty").exists()
    assert again["pairs"]["psnr"]["value"] == pytest.approx(psnr["value"])
    turned = compare("noisy", "mini", "--protocol", "pairs", "--store", str(tmp_path / "other"))
    assert turned["pairs"]["psnr"]["value"] == pytest.approx(mean, abs=1e-4)
    assert len([*(tmp_path / "other").glob("*/pictures-*.tar")]) == 2


@pytest.mark.parametrize("images", ["1", "0", "-3", str(IMAGES + 1)])
def test_a_number_of_images_that_the_protocol_has_not_is_refused(
    cards: Path, images: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["compare", "mini", "noisy", "--protocol", "mini", "--store", str(tmp_path / "none")]
    assert main([*words, f"--images={images}"]) == 2
    assert f"--images: mini has {IMAGES} images (found {images})" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_recorded_images_of_a_card_are_not_drawn_again_unless_its_weights_are_others(
    compare: Compare, cards: Path, store: Path, tmp_path: Path
) -> None:
    for name in ("mini", "noisy"):  # whose tokenizers take five tokens
        config = cards / f"{name}-sd" / "tokenizer" / "tokenizer_config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(content | {"model_max_length": 5}), encoding="utf-8")
    before = compare("mini", "noisy")
    for name in ("mini", "noisy"):
        assert record_evidence(read_card(cards / f"{name}.md"), "mini", Workspace(store))
    empty = tmp_path / "empty"
    after = compare("mini", "noisy", "--store", str(empty))
    assert not empty.exists()
    assert "mini: recorded images, none drawn" in after["text"]
    assert f"mini: {CUT.format(IMAGES)}" in before["text"]
    assert f"mini: {CUT.format(IMAGES)}" in after["text"]
    for metric, each in before["metrics"].items():
        assert after["metrics"][metric]["difference"] == each["difference"]
        assert after["metrics"][metric]["standard_error"] == pytest.approx(each["standard_error"], rel=1e-3)
    shutil.rmtree(cards / "mini-sd")
    shutil.copytree(cards / "noisy-sd", cards / "mini-sd")
    found = compare("mini", "noisy")
    assert "mini: recorded images" not in found["text"]
    assert all(each["difference"] == 0 for each in found["metrics"].values())


@pytest.mark.parametrize(
    ("first", "second", "protocol", "named"),
    [
        ("nobody", "mini", "mini", "nobody"),
        ("mini", "nobody", "mini", "nobody"),
        ("mini", "minu", "mini", "Put minu.md"),
        ("mini", "noisy", "nothing", "nothing"),
        ("embedded:nobody", "mini", "mini", "embedded:nobody"),
    ],
)
def test_a_name_that_is_none_is_an_explained_error(
    cards: Path, first: str, second: str, protocol: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", first, second, "--protocol", protocol]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert not (cards / ".sdbench").exists()


def test_a_place_for_the_figures_that_cannot_be_written_is_an_explained_error(
    cards: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "mini", "mini", "--protocol", "mini", "--store", str(store)]
    assert main([*words, "--json", "no/where.json"]) == 2
    assert "where.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "protocol"),
    [
        (("scenes-sd", "embedded:scenes-tiny"), "scenes-quick"),
        (("./nothing", "embedded:scenes-tiny-lcm"), "scenes-lcm4-quick"),
        (("./nothing", "bk-sdm-tiny"), None),
    ],
    ids=str,
)
def test_without_a_protocol_it_is_that_of_a_record(named: tuple[str, str], protocol: str | None) -> None:
    if protocol is not None:
        assert recorded_protocol(*named) == protocol
        return
    with pytest.raises(SdbenchError, match=r"neither has a card with a record.*--protocol.*scenes-quick"):
        recorded_protocol(*named)
