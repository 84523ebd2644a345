"""The evaluation benchmark: the procedure's scores are ours, clocks tell the truth, a run writes tables."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.evaluation import memory as resident
from benchmarks.evaluation import plain_script, random_models, solvers, stages, throughput
from benchmarks.evaluation import published_procedure as procedure
from benchmarks.evaluation.__main__ import main
from benchmarks.turns import Worker, in_a_process, spread, take_turns
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.estimate import estimate
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.features import inception
from pytest_sdbench.features.extractors import open_extractors
from pytest_sdbench.features.references import load_references
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols import image_steps as image_path
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import Jpeg, Resize

pytestmark = pytest.mark.usefixtures("one_thread")

N = 102
"""More than the classifier's 96 features, so that FID is defined."""
PUBLISHED = ("fid", "inception_score", "clip_score")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return resolve(resident.CHECKPOINT)


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    whole = load_protocol("scenes-quick").with_samples(N)
    return whole.model_copy(update={"sampling": whole.sampling.model_copy(update={"steps": 2})})


@pytest.fixture(scope="module")
def files(checkpoint: Checkpoint, protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the procedure."""
    folder = tmp_path_factory.mktemp("files")
    loaded = procedure.load(checkpoint, protocol)
    made = procedure.generate(loaded, load_prompts(protocol), folder)
    assert made == sorted(folder.iterdir())
    return folder


@pytest.fixture(scope="module")
def scores(checkpoint: Checkpoint, protocol: Protocol, files: Path) -> dict[str, float]:
    loaded = procedure.load(checkpoint, protocol)
    reference: Any = load_references(protocol)["fid"]
    made = sorted(files.iterdir())
    return {
        "fid": procedure.fid(loaded, made, reference),
        "inception_score": procedure.inception_score(loaded, files),
        "clip_score": procedure.clip_score(loaded, made, load_prompts(protocol)),
    }


def values(estimates: Any) -> dict[str, float]:
    return {name: found.value for name, found in estimates.items() if name in PUBLISHED}


def pictures(folder: Path) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])


@pytest.mark.slow
def test_the_same_files_have_our_scores(protocol: Protocol, files: Path, scores: dict[str, float]) -> None:
    prompts = load_prompts(protocol)
    rows = open_extractors(protocol).extract(pictures(files), prompts)
    ours = estimate(protocol, [rows], load_references(protocol))  # type: ignore[arg-type]
    assert scores == pytest.approx(values(ours), rel=1e-6)


@pytest.mark.slow
def test_the_whole_evaluation_has_the_procedures_scores(
    checkpoint: Checkpoint, protocol: Protocol, scores: dict[str, float], tmp_path: Path
) -> None:
    # Batches round otherwise than single images, and a pixel in some thousands falls to the other side.
    ours = evaluate(checkpoint, protocol, Workspace(tmp_path, progress=False))
    assert all(isinstance(found, Estimate) for found in ours.estimates.values())
    assert scores == pytest.approx(values(ours.estimates), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "suffix"),
    [
        ((), ".png"),
        ((Jpeg(jpeg=75),), ".jpg"),
        ((Jpeg(jpeg=75), Resize(resize=32, filter="pil-bicubic"), Jpeg(jpeg=75)), ".jpg"),
        ((Resize(resize=32, filter="pil-lanczos"),), ".png"),
    ],
)
def test_files_hold_what_our_image_steps_give(
    steps: tuple[Any, ...], suffix: str, protocol: Protocol, files: Path, tmp_path: Path
) -> None:
    changed = protocol.model_copy(update={"image": steps})
    image = Image.open(next(iter(sorted(files.iterdir())))).convert("RGB")
    written = procedure._through_files(image, changed, tmp_path / "000000")
    assert written.suffix == suffix
    expected = image_path.apply_image_steps(np.asarray(image)[None], steps)[0]
    assert (np.asarray(Image.open(written).convert("RGB")) == expected).all()


def test_a_sequential_generator_goes_on_from_image_to_image(
    pristine_checkpoint: Path, protocol: Protocol, tmp_path: Path
) -> None:
    content = protocol.model_dump()
    content["seeds"] = {"kind": "sequential", "seed": 5, "device": "cpu"}
    content["sampling"]["steps"] = 1
    sequential = Protocol.model_validate({**content, "n": 3, "path": protocol.path})
    tiny = Checkpoint("tiny", pristine_checkpoint)
    from tests.evaluation.helpers import sample

    prompts = load_prompts(sequential)
    ours = sample(load_pipeline(tiny), sequential, prompts, [0, 1, 2], batch_size=1)
    procedure.generate(procedure.load(tiny, sequential), prompts, tmp_path)
    expected = np.concatenate([batch.images for batch in ours])
    assert np.abs(pictures(tmp_path).astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_behind_inceptions_front_ends_the_procedure_has_our_rows_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco = load_protocol("coco30k-bksdm")
    content = coco.model_dump() | {"n": 10, "path": coco.path}
    content["sampling"] |= {"resolution": 64, "steps": 1, "dtype": "float32"}
    content["seeds"]["device"] = "cpu"
    content["metrics"]["clip_score"]["model"] = "local:scenes-clip"
    small = Protocol.model_validate(content)
    protocol, data_root, absent, checksum = random_models.complete(small, tmp_path, None)
    assert absent == "made up: prompts, reference statistics, Inception"
    assert checksum is not None
    monkeypatch.setattr(inception, "SHA256", checksum)
    files = tmp_path / "files"
    files.mkdir()
    checkpoint = random_models.write_checkpoint(tmp_path / "checkpoint", "smoke")
    loaded = procedure.load(checkpoint, protocol, data_root=data_root)
    prompts = load_prompts(protocol, data_root)
    made = procedure.generate(loaded, prompts, files)
    assert {(file.suffix, Image.open(file).size) for file in made} == {(".jpg", (256, 256))}
    rows = open_extractors(protocol, data_root=data_root).extract(pictures(files), prompts)
    features = procedure.fid_features(loaded, made)
    # Random weights make features that differ little from image to image: the differences have to agree.
    spread = features.std(axis=0).mean()
    assert np.abs(features - rows["inception-pytorch-fid"]).max() < 1e-2 * spread
    ours = estimate(protocol, [rows], {})
    theirs = {
        "inception_score": procedure.inception_score(loaded, files),
        "clip_score": procedure.clip_score(loaded, made, prompts),
    }
    assert theirs == pytest.approx({name: ours[name].value for name in theirs}, rel=1e-6)  # type: ignore[union-attr]


def test_clocks_account_for_all_the_time_of_an_evaluation(
    pristine_checkpoint: Path, protocol: Protocol, tmp_path: Path
) -> None:
    tiny = Checkpoint("tiny", pristine_checkpoint)
    with stages.watching(scheduler="PNDMScheduler") as watch:
        began = time.perf_counter()
        evaluate(tiny, protocol, Workspace(tmp_path, progress=False), samples=16)
        whole = time.perf_counter() - began
    shares = watch.shares()
    # Two steps of PNDM are three calls; guidance doubles the latents.
    assert shares["samples"] == 16 * 3 * 2
    stages_seen = {*shares["seconds"], *shares["beside"]}
    assert stages_seen >= {stages.UNET, stages.TEXT, stages.VAE, stages.EXTRACTORS, stages.SHARDS}
    assert sum(shares["seconds"].values()) == pytest.approx(shares["threads"] * shares["wall"])
    assert shares["wall"] + watch.loading() < whole
    assert 0 < shares["unet"] < 1


def test_every_thread_has_its_own_clock(pristine_checkpoint: Path) -> None:
    unet = load_pipeline(Checkpoint("tiny", pristine_checkpoint)).unet
    inputs = (torch.zeros(3, 4, 8, 8), 1, torch.zeros(3, 77, 16))
    with stages.watching() as watch:
        threads = [threading.Thread(target=lambda: unet(*inputs)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [(span.stage, span.samples) for span in watch.spans] == [(stages.UNET, 3)] * 2
    assert len({span.thread for span in watch.spans}) == 2
    with pytest.raises(ValueError, match="no image was made"):
        watch.shares()


def test_a_call_that_takes_long_is_counted_as_long(
    pristine_checkpoint: Path, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    tiny = Checkpoint("tiny", pristine_checkpoint)
    forward, slept = UNet2DConditionModel.forward, 0.0

    def slow(*args: Any, **kwargs: Any) -> Any:
        nonlocal slept
        began = time.perf_counter()
        time.sleep(0.02)
        slept += time.perf_counter() - began
        return forward(*args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", slow)
    with stages.watching() as watch:
        evaluate(tiny, protocol, Workspace(tmp_path, progress=False), samples=4)
    shares = watch.shares()
    assert slept < shares["seconds"][stages.UNET] < shares["wall"] * shares["threads"]


def test_clocks_leave_nothing_behind() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    from pytest_sdbench.evaluation import maker as evaluation
    from pytest_sdbench.features import extractors as features
    from pytest_sdbench.models import pipeline as module
    from pytest_sdbench.store.shards import Evidence

    def standing() -> list[Any]:
        kinds = (AutoencoderKL, UNet2DConditionModel, CLIPTextModel, Evidence, features.Extractors)
        own = [dict(vars(kind)) for kind in kinds]
        return [*own, module.load_pipeline, evaluation.__dict__.copy(), features.open_extractors]

    before = standing()
    with stages.watching(scheduler="PNDMScheduler"):
        assert standing() != before
    assert standing() == before


def test_overlapping_times_count_once() -> None:
    assert stages.covered([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4
    assert stages.covered([]) == 0


@pytest.mark.slow
def test_ways_that_are_kept_apart_run_in_processes_of_their_own() -> None:
    # `partial` loads nothing: its turn is the call of what it was given.
    way = Worker(partial, os.getpid)
    assert way() == way() != os.getpid()
    way.close()
    assert in_a_process(torch.get_num_threads) == torch.get_num_threads()
    with pytest.raises(ValueError, match=r"invalid literal for int.*'seven'"):
        in_a_process(int, "seven")
    way = Worker(partial, os.getenv, "OF_A_WORKER", environment={"OF_A_WORKER": "yes"})
    assert way.loaded.result() is None
    assert way() == "yes"
    way.close()


def test_ways_take_turns_forwards_then_backwards(capsys: pytest.CaptureFixture[str]) -> None:
    called: list[str] = []
    ways = {name: partial(lambda name: called.append(name) or len(called), name) for name in "abc"}
    turns = take_turns(ways, 3, show=str)
    assert "".join(called) == "abccbaabc"
    assert turns == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}
    assert "round 2 of 3: a 6, b 5, c 4" in capsys.readouterr().out
    assert spread([2.0, 9.0, 8.0], [1.0, 1.0, 2.0]) == {"ratio": 4.0, "lowest": 2.0, "highest": 9.0}


def test_each_speed_up_is_switched_alone() -> None:
    ways = throughput.tunings(True)
    assert set(throughput.OFF) == {own.name for own in fields(Tuning)}
    ours = ways[throughput.OURS]
    for name, tuning in ways.items():
        changed = [own.name for own in fields(ours) if getattr(ours, own.name) != getattr(tuning, own.name)]
        if name == throughput.ALL_OFF:
            assert "batch_size" in changed
        elif name != throughput.OURS:
            assert changed == [name.removeprefix("without ").removeprefix("with ")]


def test_solvers_agree_and_ours_is_the_measure() -> None:
    found = {solver["name"]: solver for solver in solvers.measure(96, 3)}
    assert set(found) == {solvers.OURS, solvers.KNOWN, solvers.SQRTM, solvers.EIGVALS}
    assert all(solver["difference"] < 1e-8 for solver in found.values())
    assert found[solvers.OURS]["ratio"] == found[solvers.OURS]["highest"] == 1


@pytest.mark.slow
def test_made_up_rows_are_scored_without_an_image(checkpoint: Checkpoint, tmp_path: Path) -> None:
    protocol = resident.coco_like(tmp_path, 70)
    resident.fill(tmp_path, checkpoint, protocol, resident.COCO_COLUMNS)
    found = evaluate(checkpoint, protocol, Workspace(tmp_path, progress=False))
    assert found.images_made == 0
    assert isinstance(found.estimates["clip_score"], Estimate)


def test_the_plain_script_makes_the_same_pictures_and_scores(
    checkpoint: Checkpoint, protocol: Protocol, files: Path, scores: dict[str, float]
) -> None:
    ready, prompts = procedure.load(checkpoint, protocol), load_prompts(protocol)
    images = plain_script.make_images(ready, prompts, 24)
    moved = np.abs(np.stack([np.asarray(image) for image in images]).astype(int) - pictures(files))
    assert moved.max() <= 2
    assert (moved > 0).mean() < 0.01
    rows = plain_script.measure(ready, images, prompts)
    assert rows["cosine"].mean() == pytest.approx(scores["clip_score"], rel=1e-3)
    features, reference = rows["features"].astype(float), load_references(protocol)["fid"]
    mu, sigma = features.mean(axis=0), np.cov(features, rowvar=False)
    distance = procedure.frechet_distance(mu, sigma, reference.mu, reference.sigma)
    assert distance == pytest.approx(scores["fid"], rel=1e-3)


@pytest.mark.slow
def test_a_smoke_run_writes_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "evaluation"
    common = ["--smoke", "--device", "cpu", "--images", "2", "--out", str(out)]
    main([*common, "--only", "end-to-end,unet-share,ablation", "--speed-ups", "workers"])
    main([*common, "--only", "solver"])
    content = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert list(content["parts"]) == ["end-to-end", "unet-share", "ablation", "solver"]
    end_to_end = content["parts"]["end-to-end"]["found"]
    names = [rate["name"] for rate in end_to_end["rates"]]
    assert names == [throughput.PUBLISHED, throughput.PLAIN, throughput.OURS, throughput.ALL_OFF]
    assert all(rate["rate"] > 0 for rate in end_to_end["rates"])
    ways = [rate["name"] for rate in content["parts"]["ablation"]["found"]]
    assert ways == [throughput.OURS, "without workers", throughput.ALL_OFF]
    about = content["parts"]["solver"]["circumstances"]
    assert about["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(about["load"]) == 2
    written = out.with_suffix(".md").read_text(encoding="utf-8")
    for title in ("end to end", "Where the time goes", "Each speed-up alone", "FID from moments"):
        assert f"{title}\n" in written
    assert "wrote" in capsys.readouterr().out


def test_what_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for option, name, known in (("--only", "speed", "end-to-end"), ("--speed-ups", "magic", "batch_size")):
        with pytest.raises(SystemExit):
            main([option, name])
        assert f"{option}: '{name}' is not one of {known}" in capsys.readouterr().err
