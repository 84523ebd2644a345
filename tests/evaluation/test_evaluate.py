"""An evaluation end to end: what is missing is made, what is there is kept, every figure can be traced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from pytest_sdbench.base.errors import CheckpointError, DataError, EvidenceError, ProtocolError, Unavailable
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation import evaluate as evaluation
from pytest_sdbench.evaluation import job
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.tuning import Tuning, arranged
from pytest_sdbench.features import extractors
from pytest_sdbench.features.extractors import column_keys, open_extractor, open_extractors
from pytest_sdbench.features.references import (
    compute_statistics,
    load_references,
    save_statistics,
    scene_batches,
)
from pytest_sdbench.metrics.estimates import Estimate, Undefined
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.image_steps import apply_image_steps
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shard_folder import DamagedEvidence
from pytest_sdbench.store.shard_format import shard_name
from tests.evaluation.helpers import CLIP, PER_IMAGE, SEQUENTIAL, own_protocol, sample
from tests.training.helpers import begin, finish

N = 102
"""More than the classifier's 96 features, so that FID is defined, and more than a shard."""
CAPTIONS = [f"red and blue {number}" for number in range(N)]

pytestmark = pytest.mark.usefixtures("one_thread")


def write_captions(folder: Path, captions: Sequence[str]) -> None:
    lines = [f"{number}.jpg,{caption}\n" for number, caption in enumerate(captions)]
    (folder / "captions.csv").write_text("".join(["file_name,text\n", *lines]), encoding="utf-8")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and reference statistics of a protocol of our own."""
    root = tmp_path_factory.mktemp("data")
    write_captions(root, CAPTIONS)
    real = scene_batches(range(20_000_000, 20_000_128))
    statistics = compute_statistics(real, open_extractor("scenes-classifier"), total=128, keep=128)
    save_statistics(root / "real.npz", statistics, {})
    return root


@pytest.fixture(scope="module")
def checkpoint(pristine_checkpoint: Path) -> Checkpoint:
    return Checkpoint("tiny", pristine_checkpoint)


STATISTICS = {"file": "real.npz", "images": 128}
CLASSIFIER = {"extractor": "scenes-classifier"}
METRICS = {
    "fid": CLASSIFIER | {"statistics": STATISTICS},
    "kid": CLASSIFIER | {"statistics": STATISTICS},
    "inception_score": CLASSIFIER | {"splits": 2},
    **CLIP,
}
protocol_of = partial(own_protocol, n=N, steps=1, guidance=2.0, image=[{"jpeg": 75}], metrics=METRICS)


@pytest.fixture(scope="module")
def protocol(data_root: Path) -> Protocol:
    return protocol_of(data_root)


Score = Callable[..., evaluation.Evaluation]


@pytest.fixture(scope="module")
def score(checkpoint: Checkpoint) -> Score:
    """Score the checkpoint under a protocol, with the evidence of a store."""

    def score(protocol: Protocol, store: Path, **options: Any) -> evaluation.Evaluation:
        names = {each.name for each in fields(Workspace)}
        place = {"data_root": protocol.path.parent, "progress": False}
        place |= {name: options.pop(name) for name in names & set(options)}
        return evaluate(checkpoint, protocol, Workspace(store, **place), **options)

    return score


Undisturbed = tuple[Path, evaluation.Evaluation]


@pytest.fixture(scope="module")
def undisturbed(score: Score, protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The store and the scores of a run that nothing happened to."""
    store = tmp_path_factory.mktemp("undisturbed")
    return store, score(protocol, store)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "foretells"), [("cycle", False), ("row", True), ("once", True)])
def test_prompts_that_come_again_later_foretell_nothing(
    score: Score, tmp_path: Path, order: str, foretells: bool
) -> None:
    """Eight images of a list: of 8 prompts that come three times, of 4 twice in a row, of 8 among 24."""
    captions = {
        "cycle": CAPTIONS[:8] * 3,
        "row": [each for each in CAPTIONS[:12] for _ in range(2)],
        "once": CAPTIONS[:24],
    }[order]
    write_captions(tmp_path, captions)
    protocol = protocol_of(tmp_path, n=24, metrics=CLIP)
    assert score(protocol, tmp_path / "store", samples=8).foretells is foretells
    assert score(protocol, tmp_path / "store").foretells


def shards(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("*/*.safetensors*"))}


def values(found: evaluation.Evaluation) -> dict[str, float]:
    assert all(isinstance(figure, Estimate) for figure in found.estimates.values())
    return {name: figure.value for name, figure in found.estimates.items() if isinstance(figure, Estimate)}


def never(*_: object, **__: object) -> None:
    raise AssertionError("there is nothing to make")


def test_every_metric_is_estimated(
    undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint
) -> None:
    store, found = undisturbed
    assert set(values(found)) == {"fid", "kid", "inception_score", "clip_score"}
    assert (found.n, found.requested, found.images_made, found.complete) == (N, N, N, True)
    assert found.protocol_fingerprint == protocol.fingerprint
    assert found.checkpoint_fingerprint == checkpoint.fingerprint
    assert found.difference(protocol) == ""
    assert (found.blacked_out, found.truncated) == (0, 0)
    columns = column_keys(protocol).values()
    assert list(shards(store)) == [shard_name(span, columns) for span in (range(64), range(64, N))]
    provenance = found.provenance()
    assert provenance["complete"] is True
    assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert json.loads(json.dumps(provenance)) == provenance


def test_evidence_is_what_the_extractors_say_of_each_image_after_the_codec(
    undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint
) -> None:
    pipeline = load_pipeline(checkpoint)
    (batch,) = sample(pipeline, protocol, CAPTIONS, range(64, N), batch_size=64)
    rows = open_extractors(protocol).extract(apply_image_steps(batch.images, protocol.image), batch.prompts)
    (path,) = undisturbed[0].glob("*/shard-00000064-*")
    stored = load_file(path)
    assert stored["index"].tolist() == list(range(64, N))
    assert stored["seed"].tolist() == batch.seeds.tolist()
    keys = column_keys(protocol)
    for name, expected in rows.items():
        assert stored[keys[name]].dtype == np.float32
        # The pictures differ by a byte here and there: the U-Net is laid out differently.
        np.testing.assert_allclose(stored[keys[name]], expected, rtol=0, atol=0.05 * np.abs(expected).max())
    assert set(stored) == {*keys.values(), "index", "seed", "blacked_out", "truncated"}


@pytest.mark.parametrize("samples", [None, 1000])
def test_with_all_evidence_there_nothing_is_loaded(
    samples: int | None,
    undisturbed: Undisturbed,
    protocol: Protocol,
    score: Score,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More samples than the protocol has are the protocol."""
    store, first = undisturbed
    monkeypatch.setattr("pytest_sdbench.evaluation.maker.open_extractors", never)
    again = score(protocol, store, samples=samples, load=never)
    assert values(again) == values(first)
    assert (again.n, again.complete, again.images_made) == (N, True, 0)
    assert (again.device, again.versions) == (first.device, first.versions)


@pytest.mark.slow
def test_the_text_is_projected_once_a_batch_to_the_same_bits(checkpoint: Checkpoint, data_root: Path) -> None:
    protocol = protocol_of(data_root, "steps", steps=3)
    pipeline, plain = load_pipeline(checkpoint), load_pipeline(checkpoint)
    plain.unet.to(memory_format=torch.channels_last)
    calls: list[int] = []

    class Counted(torch.nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            calls.append(len(states))
            return super().forward(states)

    pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.__class__ = Counted
    with arranged(pipeline, Tuning()), arranged(pipeline, Tuning()):  # nothing is wrapped twice
        ours = [batch.images for batch in sample(pipeline, protocol, CAPTIONS, range(4), batch_size=2)]
    theirs = [batch.images for batch in sample(plain, protocol, CAPTIONS, range(4), batch_size=2)]
    np.testing.assert_array_equal(ours, theirs)
    assert calls == [4, 4]  # with and without the prompt, of two images; once for each batch


def test_fewer_images_are_another_claim_on_one_evidence(
    score: Score, protocol: Protocol, tmp_path: Path
) -> None:
    few = score(protocol, tmp_path, samples=10)
    assert (few.n, few.requested, few.images_made, few.complete) == (10, N, 10, False)
    assert few.protocol_fingerprint != protocol.fingerprint
    assert few.difference(protocol) == "10 images here, 102 in own"
    fid = few.estimates["fid"]
    assert isinstance(fid, Undefined)
    assert "96 features" in fid.reason
    fewer = score(protocol, tmp_path, samples=4, load=never)
    assert (fewer.n, fewer.images_made) == (4, 0)
    assert score(protocol, tmp_path, samples=12).images_made == 12
    assert len(list(tmp_path.iterdir())) == 1


def test_another_precision_is_another_claim_with_other_evidence(
    score: Score, protocol: Protocol, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    asked: list[str] = []

    def load(dtype: str) -> Any:
        asked.append(dtype)
        return load_pipeline(checkpoint, dtype=dtype)

    score(protocol, tmp_path, samples=2, load=load)
    found = score(protocol, tmp_path, samples=2, dtype="bfloat16", load=load)
    assert asked == ["float32", "bfloat16"]
    assert len(list(tmp_path.iterdir())) == 2
    assert found.difference(protocol.with_samples(2)) == "dtype bfloat16 here, float32 in own"


def stopping(load: Callable[[str], Any], after: int, stop: Callable[[], object]) -> Callable[[str], Any]:
    """Return a loader of a pipeline that stops the run in a call of its U-Net: one step is one call here."""

    def loaded(dtype: str) -> Any:
        pipeline, calls = load(dtype), []

        def count(*_: object) -> None:
            calls.append(1)
            if len(calls) > after:
                stop()

        pipeline.unet.register_forward_hook(count)
        return pipeline

    return loaded


def at_second_shard(store: Path, stop: Callable[[], object]) -> Callable[[int], None]:
    """Return an fsync that stops where the second shard is written, whole but without its name."""
    fsync = os.fsync

    def stopping_fsync(handle: int) -> None:
        status = os.fstat(handle)
        # No manifest is as large.
        large = stat.S_ISREG(status.st_mode) and status.st_size > 5_000
        if large and shards(store):
            stop()
        fsync(handle)

    return stopping_fsync


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def score_and_die(folder: Path, protocol: Protocol, store: Path, moment: str) -> None:
    """Evaluate, and be killed in the second shard."""
    checkpoint = Checkpoint("tiny", folder)

    def load(dtype: str) -> Any:
        return load_pipeline(checkpoint, dtype=dtype)

    if moment == "sampling":
        load = stopping(load, 1, die)
    else:
        os.fsync = at_second_shard(store, die)
    evaluate(checkpoint, protocol, Workspace(store, protocol.path.parent, progress=False), load=load)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("moment", ["sampling", "writing"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    moment: str,
    undisturbed: Undisturbed,
    protocol: Protocol,
    checkpoint: Checkpoint,
    score: Score,
    tmp_path: Path,
) -> None:
    run = begin(score_and_die, checkpoint.folder, protocol, tmp_path, moment)
    assert finish([run], 900) == [-signal.SIGKILL]
    assert list(shards(tmp_path)) == [shard_name(range(64), column_keys(protocol).values())]
    assert bool(list(tmp_path.glob("*/.tmp-*"))) == (moment == "writing")

    resumed = score(protocol, tmp_path)
    assert resumed.images_made == N - 64
    assert shards(tmp_path) == shards(undisturbed[0])
    assert values(resumed) == values(undisturbed[1])


def test_a_damaged_shard_is_made_again_to_the_same_bits(
    undisturbed: Undisturbed, protocol: Protocol, score: Score, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(undisturbed[0], tmp_path / "store"))
    (path,) = store.glob("*/shard-00000000-*")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(DamagedEvidence, match=r"shard-00000000-00000064"):
        found = score(protocol, store)
    assert found.images_made == 64
    path.with_name(f"{path.name}.damaged").unlink()
    assert shards(store) == shards(undisturbed[0])


def test_a_full_disk_loses_one_shard_and_says_so(
    undisturbed: Undisturbed,
    protocol: Protocol,
    score: Score,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill_up() -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", at_second_shard(tmp_path, fill_up))
    with pytest.raises(EvidenceError, match=r"shard-00000064.*No space left on device.*Make room"):
        score(protocol, tmp_path)
    assert not list(tmp_path.glob("*/.tmp-*"))
    monkeypatch.undo()
    assert score(protocol, tmp_path).images_made == N - 64
    assert shards(tmp_path) == shards(undisturbed[0])


def test_a_cuda_draw_on_a_cpu_is_another_draw_of_the_same_claim(
    score: Score, data_root: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    seeds = {**SEQUENTIAL, "device": "cuda"}
    cuda = protocol_of(data_root, "cuda", seeds=seeds, metrics=CLIP).with_samples(2)
    found = score(cuda, tmp_path)
    assert found.protocol_fingerprint == cuda.fingerprint
    assert found.complete
    assert any("sequential generator is on the cpu" in note for note in found.notes)
    # It must never be taken for evidence of the CUDA draw.
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"{checkpoint.fingerprint}-{cuda.with_seeds_on('cpu').draw_fingerprint}"
    (manifest,) = folder.glob("manifest-*.json")
    assert json.loads(manifest.read_text())["protocol"]["seeds"]["device"] == "cpu"


def test_what_cuda_has_drawn_is_scored_without_it_where_it_is_whole(
    score: Score, data_root: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    cuda = protocol_of(data_root, "cuda", seeds={**SEQUENTIAL, "device": "cuda"}, metrics=CLIP)
    two, here = cuda.with_samples(2), Workspace(tmp_path)
    drawn = score(two, tmp_path)
    (rows,) = job.open_evidence(here, checkpoint, two.with_seeds_on("cpu")).rows(2)
    rows = {name: 0.5 * values if "cosine" in name else values for name, values in rows.items()}
    job.open_evidence(here, checkpoint, two).write(0, rows)  # as another machine would that has CUDA
    found = score(two, tmp_path, load=never)
    assert values(found)["clip_score"] == pytest.approx(0.5 * values(drawn)["clip_score"])
    assert found.draw_fingerprint == cuda.draw_fingerprint
    assert not any("another draw" in note for note in found.notes)
    with pytest.raises(Unavailable, match=r"3 of 3 images are not in the store.*CUDA's generator has drawn"):
        score(cuda.with_samples(3), tmp_path, max_images=0)


def test_what_lacks_is_said_at_once(
    score: Score, data_root: Path, protocol: Protocol, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="--sdbench-data"):
        score(protocol, tmp_path, data_root=None, load=never)
    (tmp_path / "real.npz").write_bytes((data_root / "real.npz").read_bytes())
    with pytest.raises(Unavailable, match=r"captions\.csv"):
        score(protocol, tmp_path, data_root=tmp_path, load=never)
    (tmp_path / "real.npz").unlink()
    write_captions(tmp_path, CAPTIONS)
    distance = protocol_of(data_root, "distance", metrics={"fid": METRICS["fid"]})
    with pytest.raises(Unavailable, match=r"real\.npz"):
        score(distance, tmp_path, data_root=tmp_path, load=never)
    typo = protocol_of(data_root, "typo", metrics={"inception_score": {"extractor": "scenes-clasifier"}})
    with pytest.raises(ProtocolError, match="scenes-clasifier"):
        score(typo, tmp_path, load=never)
    assert not list(tmp_path.glob("*-*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(EvidenceError, match="--sdbench-store"):
        score(protocol, tmp_path / "file", load=never)


def test_only_the_distances_need_the_reference_statistics(
    score: Score, protocol: Protocol, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    write_captions(tmp_path, CAPTIONS)
    found = score(protocol, undisturbed[0], data_root=tmp_path, load=never)
    assert set(found.lacking) == {"fid", "kid"}
    assert "real.npz" in str(found.lacking["fid"])
    expected = values(undisturbed[1])
    assert values(found) == {name: expected[name] for name in ("inception_score", "clip_score")}


def test_statistics_of_another_extractor_are_refused(score: Score, data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    own = protocol_of(tmp_path).with_samples(2)
    found = load_references(own, tmp_path)["fid"]
    save_statistics(tmp_path / "real.npz", found, {"extractor_fingerprint": "0" * 16})
    message = r"real\.npz: .*other weights of scenes-classifier.*found '0{16}'.*compute them"
    with pytest.raises(DataError, match=message):
        score(own, tmp_path / "store", load=never)
    right = open_extractor("scenes-classifier").fingerprint
    save_statistics(tmp_path / "real.npz", found, {"extractor_fingerprint": right})
    assert load_references(own, tmp_path)["fid"].n == 128


def test_other_weights_of_an_extractor_are_other_evidence(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = column_keys(protocol)
    monkeypatch.setattr(extractors, "identity", lambda name, workspace: f"{name}@retrained")
    after = column_keys(protocol)
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values())


def test_evidence_from_elsewhere_is_used_and_every_set_up_is_named(
    score: Score, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = protocol_of(data_root, "quick", metrics=CLIP)
    here = score(protocol, tmp_path, samples=64)
    assert not any("set-ups" in note or "other" in note for note in here.notes)
    monkeypatch.setattr(job, "device_name", lambda device: "Another Device")
    monkeypatch.setattr(job, "versions", lambda: {"torch": "9.9"})
    there = score(protocol, tmp_path, samples=64, load=never)
    assert (there.device, there.versions) == (here.device, here.versions)
    assert "images were made with other device than here" in there.notes
    assert "images were made with other versions than here" in there.notes
    both = score(protocol, tmp_path, samples=66)
    assert both.device.endswith(", Another Device")
    assert both.versions["torch"].endswith(", 9.9")
    assert "the images were made by 2 different set-ups" in both.notes


def test_cut_prompts_and_black_images_are_told(score: Score, checkpoint: Checkpoint, tmp_path: Path) -> None:
    write_captions(tmp_path, ["red", "red and blue " * 60])
    own = protocol_of(tmp_path, n=2, metrics=CLIP)

    def load(dtype: str) -> Any:
        pipeline = load_pipeline(checkpoint, dtype=dtype)
        pipeline.run_safety_checker = lambda images, *_: (images, [True, False])
        return pipeline

    found = score(own, tmp_path / "store", load=load)
    assert (found.blacked_out, found.truncated) == (1, 1)
    (shard,) = tmp_path.glob("store/*/shard-*")
    stored = load_file(shard)
    assert stored["blacked_out"].tolist() == [True, False]
    assert stored["truncated"].tolist() == [False, True]
    assert "1 images were blacked out by a safety checker" in found.notes
    assert "1 prompts were cut to the tokenizer's length" in found.notes
    # The counts are part of the evidence: a later run reports them too.
    assert score(own, tmp_path / "store", load=never).notes == found.notes


@pytest.mark.parametrize(
    ("dtype", "remedy"), [("float32", "has diverged"), ("bfloat16", "--sdbench-dtype float32")]
)
def test_a_picture_that_is_not_finite_is_an_error_and_leaves_no_evidence(
    score: Score, data_root: Path, checkpoint: Checkpoint, tmp_path: Path, dtype: str, remedy: str
) -> None:
    protocol = protocol_of(data_root, dtype, dtype=dtype)

    def load(dtype: str) -> Any:
        pipeline = load_pipeline(checkpoint, dtype=dtype)
        decode = pipeline.vae.decode

        def overflow(latents: torch.Tensor, **options: Any) -> Any:
            (pictures,) = decode(latents, **options)
            pictures[1] = torch.nan
            return (pictures,)

        pipeline.vae.decode = overflow
        return pipeline

    with pytest.raises(CheckpointError, match=f"prompt 1: image 1 holds NaN.*{remedy}"):
        score(protocol, tmp_path, samples=2, load=load)
    assert shards(tmp_path) == {}


def test_a_difference_names_every_part(undisturbed: Undisturbed, protocol: Protocol, data_root: Path) -> None:
    metrics = {"fid": CLASSIFIER | {"statistics": {"file": "other.npz", "images": 9}}}
    other = protocol_of(data_root, "other", seeds={**PER_IMAGE, "seed": 6}, image=[], metrics=metrics)
    found = replace(undisturbed[1], complete=False)
    assert found.difference(other) == (
        "seed 5 here, 6 in other; another codec or resize than other; "
        "other metrics or reference statistics than other"
    )
