"""``python -m pytest_sdbench score``: images that another tool made, and whose prompts they are of."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from pytest_sdbench.base.errors import DataError, SdbenchError, Unavailable
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.commands.main import main
from pytest_sdbench.commands.score import figures, score_table
from pytest_sdbench.commands.score_images import Scores, score
from pytest_sdbench.commands.score_matching import match
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.tuning import Tuning, arranged
from pytest_sdbench.features.classifier import load_classifier
from pytest_sdbench.features.images import ImageSet, open_images
from pytest_sdbench.features.references import scene_batches
from pytest_sdbench.metrics import registry
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.image_steps import apply_image_steps
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from tests.evaluation.helpers import own_protocol, sample
from tests.features.test_images import folder, tarred, zipped
from tests.project import IMAGES, make_card, make_protocol

N = 102
"""More than the classifier's 96 features, so that FID is defined, and more than a batch."""
FEW = 12
FIRST = 10_000_000
"""The scene of the first prompt."""
METRICS = {"fid", "kid", "inception_score", "clip_score"}

pytestmark = pytest.mark.usefixtures("one_thread")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Protocol:
    """The protocol of the tests' projects: the first prompts of scenes-quick."""
    return load_protocol(make_protocol(tmp_path_factory.mktemp("protocol") / "mini.yaml", n=N))


@pytest.fixture(scope="module")
def few(protocol: Protocol) -> Protocol:
    """The same for a dozen images: no metric that needs more of them."""
    metrics = {
        "inception_score": {"extractor": "scenes-classifier", "splits": 1},
        "clip_score": {"model": "local:scenes-clip"},
    }
    path = protocol.path.with_name("few.yaml")
    return load_protocol(make_protocol(path, n=FEW, metrics=metrics, margins={}))


@pytest.fixture(scope="module")
def prompts(protocol: Protocol) -> tuple[str, ...]:
    return load_prompts(protocol)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    """The scenes of the prompts themselves: what a perfect model would draw."""
    return np.concatenate(list(scene_batches(range(FIRST, FIRST + N))))


@pytest.fixture(scope="module")
def files(real: np.ndarray) -> dict[str, bytes]:
    return {f"{number:05}.png": png(picture) for number, picture in enumerate(real)}


@pytest.fixture(scope="module")
def plain(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("images") / "plain", files)


@pytest.fixture(scope="module")
def some(files: dict[str, bytes]) -> dict[str, bytes]:
    """The first dozen."""
    return dict(list(files.items())[:FEW])


@pytest.fixture(scope="module")
def some_scores(some: dict[str, bytes], few: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    return run(folder(tmp_path_factory.mktemp("some"), some), few)


@pytest.fixture(scope="module")
def scores(plain: Path, protocol: Protocol) -> Scores:
    return run(plain, protocol)


def run(source: Path, protocol: Protocol, **options: Any) -> Scores:
    workspace = Workspace(data_root=protocol.path.parent, progress=False)
    return score([source], protocol.path, workspace, **options)


def values(estimates: Any) -> dict[str, tuple[float | None, ...]]:
    assert all(isinstance(each, Estimate) for each in estimates.values())
    return {name: (e.value, e.standard_error, e.corrected, e.slope) for name, e in estimates.items()}


# --- the scores are right ---


def test_images_of_the_own_sampler_score_exactly_what_an_evaluation_gives(
    protocol: Protocol, prompts: tuple[str, ...], pristine_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint("tiny", pristine_checkpoint)
    pipeline = load_pipeline(checkpoint)
    expected = evaluate(
        checkpoint,
        protocol,
        Workspace(tmp_path / "store", progress=False),
        tuning=Tuning(batch_size=32, workers=1),
        load=lambda dtype: pipeline,
    )
    with arranged(pipeline, Tuning(), full_batch=32, images=N):
        drawn = sample(pipeline, protocol, prompts, range(N), batch_size=32)
        pictures = [picture for batch in drawn for picture in batch.images]
    files = {f"img_{number}.png": png(picture) for number, picture in enumerate(pictures)}
    found = run(folder(tmp_path / "images", files), protocol)
    assert set(found.estimates) == METRICS
    assert values(found.estimates) == values(expected.estimates)
    assert (found.protocol.n, found.requested, found.stage) == (N, N, "sampled")


def test_fid_and_clip_score_are_those_of_torch_fidelity_and_open_clip(
    scores: Scores, real: np.ndarray, prompts: tuple[str, ...]
) -> None:
    with torch.inference_mode():
        features = load_classifier()(torch.from_numpy(real).permute(0, 3, 1, 2))["features"].double()
    with np.load(reference() / "statistics" / "scenes-classifier.npz") as file:
        theirs = {"mu": file["mu"], "sigma": file["sigma"]}
    fid = fid_statistics_to_metric(fid_features_to_statistics(features), theirs, False)
    assert value(scores, "fid") == pytest.approx(fid["frechet_inception_distance"], rel=1e-4)

    name = f"local-dir:{reference() / 'checkpoints' / 'scenes-clip'}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    model.eval()
    tokens = open_clip.get_tokenizer(name)(list(prompts))
    with torch.inference_mode():
        seen = model.encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in real]))
        told = model.encode_text(tokens)
    cosines = torch.nn.functional.cosine_similarity(seen, told).double().numpy()
    assert value(scores, "clip_score") == pytest.approx(cosines.mean(), abs=1e-6)
    error = cosines.std(ddof=1) / np.sqrt(N)
    assert estimate_of(scores, "clip_score").standard_error == pytest.approx(error, rel=1e-4)


def estimate_of(scores: Scores, metric: str) -> Estimate:
    found = scores.estimates[metric]
    assert isinstance(found, Estimate)
    return found


def value(scores: Scores, metric: str) -> float:
    return estimate_of(scores, metric).value


def samples(files: dict[str, bytes], captions: Sequence[str | None]) -> dict[str, bytes]:
    """Pictures as the samples of a WebDataset; one of None has no caption."""
    told = zip(files, captions, strict=True)
    return files | {name.replace(".png", ".txt"): text.encode() for name, text in told if text is not None}


@pytest.mark.parametrize(
    "make",
    [
        lambda at, files, prompts: zipped(at / "a.zip", files),
        lambda at, files, prompts: tarred(at / "a.tar", files),
        lambda at, files, prompts: tarred(at / "a.tar.gz", files),
        lambda at, files, prompts: tarred(at / "a.tar", samples(files, prompts)),
    ],
    ids=["zip", "tar", "tar.gz", "webdataset"],
)
def test_scores_do_not_depend_on_the_kind_of_source(
    make: Callable[..., Path],
    files: dict[str, bytes],
    prompts: tuple[str, ...],
    protocol: Protocol,
    scores: Scores,
    tmp_path: Path,
) -> None:
    assert values(run(make(tmp_path, files, prompts), protocol).estimates) == values(scores.estimates)


# --- which prompt an image is of ---


def shuffled(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same pictures under other names, whose order is another one."""
    names = [f"picture {chr(97 + k // 26)}{chr(97 + k % 26)}.png" for k in range(len(files))]
    random.Random(0).shuffle(names)
    return dict(zip(names, files.values(), strict=True))


def table(names: Sequence[str], prompts: Sequence[str], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        writer.writerows(sorted(zip(names, prompts, strict=True)))


def test_captions_bring_shuffled_names_back_to_their_prompts(
    some: dict[str, bytes], prompts: tuple[str, ...], few: Protocol, some_scores: Scores, tmp_path: Path
) -> None:
    mixed = shuffled(some)
    place = folder(tmp_path / "mixed", mixed)
    found = run(place, few)
    assert set(found.estimates) == {"inception_score"}
    assert "CLIP score: " in score_table(found)
    assert "nothing says which prompt this image is of" in score_table(found)
    assert value(found, "inception_score") == pytest.approx(value(some_scores, "inception_score"), rel=1e-6)
    # This is what a wrong pairing does, and why it has to be asked for.
    found = run(place, few, match_by="order")
    assert found.matched.startswith("by the order of their names: picture aa is of prompt 0")
    assert value(found, "clip_score") < value(some_scores, "clip_score") - 0.2
    table(list(mixed), prompts[:FEW], place / "metadata.csv")
    found = run(place, few)
    assert values(found.estimates) == values(some_scores.estimates)
    assert found.matched == "by the captions that come with them"


def test_captions_are_never_passed_over_without_a_word(
    some: dict[str, bytes], prompts: tuple[str, ...], few: Protocol, some_scores: Scores, tmp_path: Path
) -> None:
    # The numbers are those of other prompts: matching by them would be wrong.
    rows = [{"file_name": name, "text": text} for name, text in zip(reversed(some), prompts, strict=False)]
    turned = dict(zip(reversed(some), some.values(), strict=True))
    table = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found = run(folder(tmp_path / "a", {**turned, "metadata.jsonl": table}), few)
    assert values(found.estimates) == values(some_scores.estimates)
    found = run(folder(tmp_path / "b", {**turned, "metadata.tsv": table}), few)
    assert set(found.estimates) == {"inception_score"}
    assert "CLIP score: " in score_table(found)
    assert "metadata.tsv: this looks like captions" in score_table(found)
    assert "metadata.tsv" in figures(found)["metrics"]["clip_score"]["reason"]
    assert figures(found)["matched"] == "in no way"


def test_where_no_metric_is_left_without_prompts_the_error_is_theirs(
    some: dict[str, bytes], few: Protocol, tmp_path: Path
) -> None:
    metrics = {"clip_score": {"model": "local:scenes-clip"}}
    alone = load_protocol(make_protocol(tmp_path / "clip.yaml", n=FEW, metrics=metrics, margins={}))
    with pytest.raises(DataError, match=r"aa\.png: nothing says which prompt this image is of"):
        run(folder(tmp_path / "a", {name: some["00000.png"] for name in ("aa.png", "ab.png")}), alone)


def test_transparent_images_are_scored_over_a_colour_that_the_report_names(
    some: dict[str, bytes], few: Protocol, tmp_path: Path
) -> None:
    clear, white = io.BytesIO(), png(np.full((64, 64, 3), 255, np.uint8))
    Image.new("RGBA", (64, 64), (9, 200, 9, 0)).save(clear, "PNG")
    place = folder(tmp_path / "a", {**some, "00011.png": clear.getvalue()})
    with pytest.raises(DataError, match=r"00011\.png: alpha: this image is transparent"):
        run(place, few)
    found = run(place, few, background="white")
    assert found.notes == ("1 images are transparent in part and were laid over white",)
    expected = run(folder(tmp_path / "b", {**some, "00011.png": white}), few)
    assert values(found.estimates) == values(expected.estimates)


def test_numbers_from_one_are_taken_as_such_and_it_is_said(
    some: dict[str, bytes], few: Protocol, some_scores: Scores, tmp_path: Path
) -> None:
    place = folder(tmp_path / "a", {f"img_{k}.png": c for k, c in enumerate(some.values(), start=1)})
    found = run(place, few)
    assert "taken as counted from 1: img_1 is of prompt 0" in found.matched
    assert values(found.estimates) == values(some_scores.estimates)
    assert "taken as counted from 0: 00000 is of prompt 0" in some_scores.matched


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (range(1, N), r"img_1\.png: no image is of prompt 0\. .*numbered from 1, .*--images 101"),
        (range(N + 1), r"img_102\.png: this image is of prompt 102, .*only 102, .*--images 102"),
        (range(2, N + 2), r"img_102\.png: this image is of prompt 102, but there are only .*another way"),
        ([*range(50), *range(51, N)], r"img_51\.png: no image is of prompt 50\. .*101 images.*--images 50"),
        ([0, *range(2, N)], r"img_2\.png: no image is of prompt 1\. .*without a gap$"),
        ([*range(N - 1), 400], r"img_400\.png: this image is of prompt 400"),
        ([*range(5), "a-1"], r"img_a-1\.png: two images are of prompt 1. The other one is .*img_1\.png"),
        ([*range(5), "a"], r"img_a\.png: the name of this image ends in no number, while others do"),
    ],
    ids=[
        "first missing",
        "one too many",
        "off by one",
        "gap",
        "gap of the second",
        "beyond",
        "twice",
        "no number",
    ],
)
def test_names_that_do_not_add_up_are_refused(
    numbers: Sequence[object], message: str, files: dict[str, bytes], protocol: Protocol, tmp_path: Path
) -> None:
    content = files["00000.png"]
    place = folder(tmp_path / "a", {f"img_{number}.png": content for number in numbers})
    with pytest.raises(DataError, match=message):
        run(place, protocol)


def test_an_image_that_lacks_may_be_one_that_was_passed_over(tmp_path: Path) -> None:
    images = listed(tmp_path, ["0.png", "1.png", "2.gif", "3.png"])
    with pytest.raises(DataError, match=r"no image is of prompt 2\..* Passed over, as no images: 1 \.gif$"):
        match(images, TEXTS, n=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: "a prompt of another data set"}, r"3\.png: the caption of this image is no prompt .*another"),
        ({3: None}, r"3\.png: no caption comes with this image, while others have one"),
        ({3: "{2}"}, r"3\.png: more images have this caption than the protocol has prompts of it"),
        ({3: "{20}"}, r"4\.png: no image is of prompt 3. This one of .* is of prompt 4"),
    ],
    ids=["unknown", "none", "twice", "gap"],
)
def test_captions_that_do_not_add_up_are_refused(
    change: dict[int, str | None],
    message: str,
    files: dict[str, bytes],
    prompts: tuple[str, ...],
    protocol: Protocol,
    tmp_path: Path,
) -> None:
    captions: list[str | None] = list(prompts[:10])
    for number, text in change.items():
        captions[number] = prompts[int(text[1:-1])] if text and text.startswith("{") else text
    pictures = {f"{number}.png": files["00000.png"] for number in range(10)}
    place = folder(tmp_path / "a", samples(pictures, captions))
    with pytest.raises(DataError, match=message):
        run(place, protocol)
    # Whoever knows better says so.
    assert run(place, protocol, match_by="index").protocol.n == 10


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """Twelve scenes of twice the size."""
    return np.concatenate(list(scene_batches(range(FIRST, FIRST + 12), 128)))


def numbered(place: Path, pictures: np.ndarray) -> Path:
    """A folder of these pictures, named by their numbers from 0."""
    return folder(place, {f"{number}.png": png(picture) for number, picture in enumerate(pictures)})


COCO_STEPS = [{"jpeg": 75}, {"resize": 64, "filter": "pil-bicubic"}, {"jpeg": 75}]
COCO_METRICS = {
    "inception_score": {"extractor": "scenes-classifier", "splits": 2},
    "clip_score": {"model": "local:scenes-clip"},
}


def coco(data: Path, image: Any = COCO_STEPS, metrics: Any = COCO_METRICS) -> tuple[Protocol, list[str]]:
    """A protocol in the form of the published one: prompts with file names, each of two prompts repeated."""
    names = [f"COCO_val2014_{7 * number + 42:012}.jpg" for number in range(12)]
    table(names, [f"red and blue {number // 2}" for number in range(12)], data / "captions.csv")
    options = {"steps": 1, "guidance": 2.0, "resolution": 128}
    return own_protocol(data, "coco", n=12, image=image, metrics=metrics, **options), names


def test_names_of_the_file_of_prompts_are_matched_whatever_their_order(
    large: np.ndarray, tmp_path: Path
) -> None:
    protocol, names = coco(tmp_path)
    pictures = dict(zip(names, map(png, large), strict=True))
    by_name = zipped(
        tmp_path / "b.zip",
        {f"im/{name.replace('.jpg', '.png')}": c for name, c in reversed(pictures.items())},
    )
    expected, found = run(numbered(tmp_path / "a", large), protocol), run(by_name, protocol)
    assert found.matched == "by their names in the protocol's file of prompts"
    assert values(found.estimates) == values(expected.estimates)
    few = dict(list(pictures.items())[:6])
    stray = zipped(tmp_path / "c.zip", {**few, "COCO_val2014_000000000001.jpg": png(large[0])})
    with pytest.raises(DataError, match=r"0001\.jpg: the protocol's file of prompts has no such file name"):
        run(stray, protocol)
    # Images of one prompt count as one for standard errors.
    clip = estimate_of(expected, "clip_score")
    assert clip.influence is not None
    means = (clip.influence + clip.value).reshape(6, 2).mean(axis=1)
    assert clip.standard_error == pytest.approx(means.std(ddof=1) / np.sqrt(6))


TEXTS = tuple(f"prompt {number}" for number in range(4))


def listed(folder_: Path, names: Sequence[str], captions: Sequence[str] = ()) -> ImageSet:
    """Images by these names; nobody looks at them."""
    folder(folder_, dict.fromkeys(names, b""))
    folder(folder_, {f"{name[:-4]}.txt": text.encode() for name, text in zip(names, captions, strict=False)})
    return open_images([folder_])


@pytest.mark.parametrize(
    ("by", "expected"),
    [(None, "3210"), ("caption", "3210"), ("name", "1032"), ("index", "0123"), ("order", "0123")],
)
def test_the_way_of_matching_can_be_given(by: str | None, expected: str, tmp_path: Path) -> None:
    images = listed(tmp_path, ["0.png", "1.png", "2.png", "3.png"], TEXTS[::-1])
    found = match(images, TEXTS, ["1.jpg", "0.jpg", "3.jpg", "2.jpg"], n=4, by=by)
    assert [images.pictures[number].name for number in found.order] == [f"{k}.png" for k in expected]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("caption", r"a\.png: no caption comes with this image\."),
        ("name", r"a\.png: the protocol's prompts have no file names"),
        ("index", r"a\.png: the name of this image ends in no number\."),
    ],
)
def test_a_way_of_matching_that_the_images_do_not_allow_is_refused(
    by: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        match(listed(tmp_path, ["a.png", "b.png"]), TEXTS, n=4, by=by)


def test_equal_numbers_in_two_shards_are_refused_with_both_names(tmp_path: Path) -> None:
    listed(tmp_path / "a", ["0.png", "1.png"])
    listed(tmp_path / "b", ["1.png"])
    with pytest.raises(DataError, match=r"b/1\.png: two images are of prompt 1. The other one is .*a/1\.png"):
        match(open_images([tmp_path / "a", tmp_path / "b"]), TEXTS, n=4)


def test_a_number_here_and_there_makes_no_index(tmp_path: Path) -> None:
    images = listed(tmp_path, ["cat.png", "dog 2.png", "emu.png"])
    assert "cat.png: nothing says which prompt" in str(match(images, TEXTS, n=4).doubt)
    found = match(images, TEXTS, n=4, by="order")
    assert (found.order, found.doubt) == ((0, 1, 2), None)
    assert found.how == "by the order of their names: cat is of prompt 0, emu of 2"


def test_captions_differ_by_white_space_at_most_and_share_out_prompts_that_repeat(tmp_path: Path) -> None:
    found = match(listed(tmp_path / "a", ["a.png", "b.png"], ["prompt  1\n", " prompt 0"]), TEXTS, n=4)
    assert found.order == (1, 0)
    images = listed(tmp_path / "b", ["a.png", "b.png", "c.png"], ["x", "y", "x"])
    assert match(images, ("x", "x", "y"), n=3).order == (0, 2, 1)
    with pytest.raises(DataError, match=r"a\.png: the caption of this image is no prompt .*'Prompt 1'"):
        match(listed(tmp_path / "c", ["a.png"], ["Prompt 1"]), TEXTS, n=4)


# --- numbers of images ---


def test_the_first_n_are_those_of_the_first_prompts(
    some: dict[str, bytes], few: Protocol, tmp_path: Path
) -> None:
    place = folder(tmp_path / "a", some)
    first = run(place, few, n=8)
    assert first.notes == ("4 images of later prompts were left out",)
    alone = folder(tmp_path / "b", dict(list(some.items())[:8]))
    assert values(first.estimates) == values(run(alone, few, n=8).estimates)
    with pytest.raises(DataError, match=r"no image is of prompt 8\. .*--images 8"):
        run(alone, few, n=9)
    with pytest.raises(SdbenchError, match=r"--images: few has 12 images .found 13"):
        run(place, few, n=13)


def test_images_of_a_longer_protocol_are_refused_until_a_number_is_given(
    some: dict[str, bytes], prompts: tuple[str, ...], few: Protocol, tmp_path: Path
) -> None:
    shorter = load_protocol(
        make_protocol(tmp_path / "short.yaml", n=8, metrics=few.model_dump()["metrics"], margins={})
    )
    place = folder(tmp_path / "plain", some)
    with pytest.raises(DataError, match=r"00008\.png: this image is of prompt 8, .*only 8.*--images 8"):
        run(place, shorter)
    found = run(place, shorter, n=8)
    assert found.protocol.n == found.requested == 8
    captions = folder(tmp_path / "captioned", samples(some, prompts[:FEW]))
    assert values(run(captions, shorter, n=8).estimates) == values(found.estimates)


def test_too_few_images_for_a_metric_say_so(plain: Path, protocol: Protocol) -> None:
    found = run(plain, protocol, n=40)
    assert isinstance(found.estimates["fid"], Undefined)
    assert "FID: it needs more images than its 96 features" in score_table(found)
    assert "needs more images" in figures(found)["metrics"]["fid"]["reason"]


# --- codec and resize ---


def test_finished_images_score_what_the_protocols_own_steps_make_of_the_sampled_ones(
    large: np.ndarray, tmp_path: Path
) -> None:
    protocol, names = coco(tmp_path)
    finished = apply_image_steps(large, protocol.image)
    sampled = run(folder(tmp_path / "a", dict(zip(names, map(png, large), strict=True))), protocol)
    done = run(folder(tmp_path / "b", dict(zip(names, map(png, finished), strict=True))), protocol)
    assert (sampled.stage, done.stage) == ("sampled", "final")
    assert values(sampled.estimates) == values(done.estimates)
    assert "no step was applied here" in score_table(done)
    for index, (pixels, name) in enumerate(zip(large, names, strict=True)):
        # As the published script does it: two JPEG files, the second smaller; it is read as it lies there.
        Image.fromarray(pixels).save(tmp_path / "big.jpg", quality=75)
        with Image.open(tmp_path / "big.jpg") as big:
            small = big.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
        place = tmp_path / "c" / name
        place.parent.mkdir(exist_ok=True)
        small.save(place, quality=75)
        with Image.open(place) as file:
            np.testing.assert_array_equal(np.asarray(file), finished[index])
    found = run(tmp_path / "c", protocol, stage="final")
    assert values(found.estimates) == values(done.estimates)
    assert found.notes == ()


def test_sampled_images_in_jpeg_files_are_pointed_out(large: np.ndarray, tmp_path: Path) -> None:
    protocol, _ = coco(tmp_path)
    (tmp_path / "a").mkdir()
    for number, pixels in enumerate(large):
        # What a file is called says nothing of it.
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number}.png", "JPEG", quality=75)
    (note,) = run(tmp_path / "a", protocol).notes
    assert note.startswith("12 images are JPEG or WebP files")
    assert "once more" in note


@pytest.mark.parametrize(
    ("size", "stage", "message"),
    [
        (48, None, r"0\.png: coco has images of 128x128 as sampled or 64x64 after its resize .found '48x48'"),
        (64, "sampled", r"0\.png: coco has images of 128x128 as sampled .found '64x64'"),
        (128, "final", r"0\.png: coco has images of 64x64 after its resize .found '128x128'"),
    ],
)
def test_another_size_is_refused(size: int, stage: Any, message: str, tmp_path: Path) -> None:
    protocol, _ = coco(tmp_path)
    place = numbered(tmp_path / "a", np.zeros((12, size, size, 3), np.uint8))
    with pytest.raises(DataError, match=message):
        run(place, protocol, stage=stage)


def test_mixed_sizes_and_damaged_pictures_are_refused_by_name(
    files: dict[str, bytes], protocol: Protocol, tmp_path: Path
) -> None:
    odd = png(np.zeros((64, 32, 3), np.uint8))
    for name, content, message in (
        ("00067.png", odd, r"00067\.png: every image must have 64x64 pixels .found '32x64'"),
        ("00060.png", files["00060.png"][:300], r"00060\.png: this image cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            run(folder(tmp_path / name, {**files, name: content}), protocol)


def test_a_resize_that_keeps_the_size_leaves_the_stage_open(large: np.ndarray, tmp_path: Path) -> None:
    protocol, _ = coco(tmp_path, image=[{"jpeg": 75}, {"resize": 128, "filter": "pil-bicubic"}])
    with pytest.raises(DataError, match=r"size does not tell .*--stage sampled or --stage final"):
        run(numbered(tmp_path / "a", large), protocol)
    with pytest.raises(DataError, match="128x128 after its resize"):
        run(numbered(tmp_path / "b", large[:, :64, :64]), protocol, stage="final")


# --- what is refused, and the command ---


def test_a_metric_without_its_reference_says_so_and_the_others_are_scored(
    large: np.ndarray, tmp_path: Path
) -> None:
    fid = {"extractor": "scenes-classifier", "statistics": {"file": "./nowhere.npz", "images": 128}}
    protocol, _ = coco(tmp_path, metrics=COCO_METRICS | {"fid": fid})
    place = numbered(tmp_path / "a", large)
    found = run(place, protocol)
    assert set(found.estimates) == {"inception_score", "clip_score"}
    assert "nowhere.npz: the reference statistics are not on this machine" in score_table(found)
    assert "nowhere.npz" in figures(found)["metrics"]["fid"]["reason"]
    assert found.notes == ()
    protocol, _ = coco(tmp_path, metrics={"fid": fid})
    with pytest.raises(Unavailable, match=r"nowhere\.npz"):
        run(place, protocol)


def test_the_command_prints_a_table_and_writes_the_figures(
    scores: Scores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = np.concatenate(list(scene_batches(range(FIRST, FIRST + IMAGES))))
    place = numbered(tmp_path / "images", pictures)
    card = make_card(tmp_path / "mine.md", claims={"fid": 1.5, "clip_score": 0.93}, protocol="scenes-quick")
    out = tmp_path / "out.json"
    command = ["score", str(place), "--protocol", "scenes-quick"]
    assert main([*command, "--json", str(out), "--card", str(card)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["protocol"] == "scenes-quick"
    assert (found["n"], found["requested"]) == (IMAGES, 512)
    assert [claim["value"] for claim in found["claims"]] == [1.5, 0.93]
    assert set(found["metrics"]) == {*METRICS, "precision", "recall", "coverage"}

    assert "predicted at 512" in lines[0]
    assert lines[0].endswith("mine claims")
    (row,) = [line for line in lines if line.startswith("FID ↓")]
    fid = found["metrics"]["fid"]
    shown = (fid["value"], fid["standard_error"], fid["corrected"], fid["predicted"])
    value, error, corrected, predicted = (f"{each:.4f}" for each in shown)
    assert row.split()[2:] == [value, "±", error, str(IMAGES), corrected, predicted, "1.5"]
    # The bias falls with the number of images: what is left of it at 512 is a quarter of that at 130.
    bias = fid["value"] - fid["corrected"]
    assert fid["predicted"] - fid["corrected"] == pytest.approx(bias * IMAGES / 512)
    (row,) = [line for line in lines if line.startswith("CLIP score ↑")]
    assert row.split()[-1] == "0.93"
    assert "no verdict: nothing shows that the images were sampled as the protocol says" in lines
    assert any(line.startswith("the protocol asks for 512 images") for line in lines)
    # As many as the protocol asks for predict nothing.
    assert "predicted" not in score_table(scores)
    assert scores.predicted("fid") is None
    assert "predicted" not in figures(scores)["metrics"]["fid"]


def test_a_card_without_claims_says_so_and_an_explained_error_is_the_exit_status_2(
    plain: Path, tmp_path: Path, protocol: Protocol, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(plain, protocol, n=4, card="bk-sdm-small")
    assert found.claims == ()
    assert "bk-sdm-small claims nothing under mini" in score_table(found)
    (tmp_path / "empty").mkdir()
    assert main(["score", str(tmp_path / "empty"), "--protocol", str(protocol.path)]) == 2
    assert "empty: no images in this folder" in capsys.readouterr().err


def test_what_images_alone_have_no_score_of_takes_no_other_metric_down(
    some: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.METRICS, "_loaded", dict(registry.METRICS._loaded))
    metrics = {
        "clip_score": {"model": "local:scenes-clip"},
        "psnr": {"extractor": "psnr"},
        "hpsv2": {"extractor": "hpsv2.1"},
        "geneval": {"kind": "imported", "higher_is_better": True},
    }
    path = make_protocol(tmp_path / "mixed.yaml", n=FEW, metrics=metrics, margins={})
    found = run(folder(tmp_path / "some", some), load_protocol(path))
    assert set(found.estimates) == {"clip_score"}
    words = {"psnr": "a reference checkpoint", "hpsv2": "not on this machine", "geneval": "import SCORES"}
    assert set(found.lacking) == set(words)
    for metric, word in words.items():
        assert word in str(found.lacking[metric])
