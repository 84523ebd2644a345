"""An evaluation end to end: what is missing is made, what is there is kept, every figure can be traced."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pytest_sdbench.base.errors import CheckpointError, DataError, EvidenceError, ProtocolError, Unavailable
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation import evaluate as evaluation
from pytest_sdbench.evaluation.evaluate import evaluate, evidence_key
from pytest_sdbench.evaluation.sampler import sample
from pytest_sdbench.evaluation.tuning import Tuning, arranged, default_batch_size
from pytest_sdbench.features.extractors import open_extractor, open_extractors
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
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shards import DamagedEvidence

N = 80
"""More than the classifier's 64 features, so that FID is defined, and more than a shard."""

CAPTIONS = [f"red and blue {number}" for number in range(N)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and reference statistics of a protocol of our own."""
    root = tmp_path_factory.mktemp("data")
    lines = [f"{number}.jpg,{caption}\n" for number, caption in enumerate(CAPTIONS)]
    (root / "captions.csv").write_text("".join(["file_name,text\n", *lines]), encoding="utf-8")
    real = scene_batches(range(20_000_000, 20_000_128))
    statistics = compute_statistics(real, open_extractor("scenes-classifier"), total=128, keep=128)
    save_statistics(root / "real.npz", statistics, {})
    shutil.copytree(reference() / "checkpoints" / "scenes-clip", root / "clip")
    return root


@pytest.fixture(scope="module")
def checkpoint(pristine_checkpoint: Path) -> Checkpoint:
    return Checkpoint("tiny", pristine_checkpoint)


def protocol_of(data_root: Path, name: str = "own", **changes: Any) -> Protocol:
    statistics = {"file": "real.npz", "images": 128}
    content = {
        "title": "Own",
        "n": N,
        "prompts": {
            "kind": "csv",
            "file": "captions.csv",
            "sha256": hashlib.sha256((data_root / "captions.csv").read_bytes()).hexdigest(),
            "rows": N,
        },
        "seeds": {"kind": "per-image", "seed": 5},
        "sampling": {"steps": 1, "guidance": 2.0, "resolution": 64, "dtype": "float32"},
        "image": [{"jpeg": 75}],
        "metrics": {
            "fid": {"extractor": "scenes-classifier", "statistics": statistics},
            "kid": {"extractor": "scenes-classifier", "statistics": statistics},
            "inception_score": {"extractor": "scenes-classifier", "splits": 2},
            "clip_score": {"model": f"local:{data_root / 'clip'}"},
        },
        **changes,
    }
    path = data_root / f"{name}.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return load_protocol(path)


Undisturbed = tuple[Path, evaluation.Evaluation]
"""The store and the scores of a run that nothing happened to."""
SEQUENTIAL = {"kind": "sequential", "seed": 5, "device": "cpu"}


@pytest.fixture(scope="module")
def protocol(data_root: Path) -> Protocol:
    return protocol_of(data_root)


def score(checkpoint: Checkpoint, protocol: Protocol, store: Path, **options: Any) -> evaluation.Evaluation:
    names = {each.name for each in fields(Workspace)}
    place = {"data_root": protocol.path.parent, "progress": False}
    place |= {name: options.pop(name) for name in names & set(options)}
    return evaluate(checkpoint, protocol, Workspace(store, **place), **options)


@pytest.fixture(scope="module")
def undisturbed(
    checkpoint: Checkpoint, protocol: Protocol, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """The store and the scores of a run that nothing happened to."""
    store = tmp_path_factory.mktemp("undisturbed")
    return store, score(checkpoint, protocol, store)


@pytest.mark.parametrize(("order", "foretells"), [("cycle", False), ("row", True), ("once", True)])
def test_prompts_that_are_gone_through_again_later_foretell_nothing(
    checkpoint: Checkpoint, tmp_path: Path, data_root: Path, order: str, foretells: bool
) -> None:
    """Eight images of a list: of 8 prompts that come three times, of 4 twice in a row, of 8 among 24."""
    shutil.copytree(data_root, tmp_path / "data")
    different = [f"{CAPTIONS[0]} {number}" for number in range(24)]
    captions = {
        "cycle": different[:8] * 3,
        "row": [each for each in different[:12] for _ in range(2)],
        "once": different,
    }[order]
    lines = [f"{number}.jpg,{caption}\n" for number, caption in enumerate(captions)]
    listed = tmp_path / "data" / "captions.csv"
    listed.write_text("".join(["file_name,text\n", *lines]), encoding="utf-8")
    prompts = {"kind": "csv", "file": "captions.csv", "rows": 24}
    prompts["sha256"] = hashlib.sha256(listed.read_bytes()).hexdigest()
    protocol = protocol_of(
        tmp_path / "data", n=24, prompts=prompts, metrics={"clip_score": {"model": "local:scenes-clip"}}
    )
    assert score(checkpoint, protocol, tmp_path, samples=8).foretells is foretells
    assert score(checkpoint, protocol, tmp_path).foretells


def shards(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("*/*.safetensors*"))}


def values(found: evaluation.Evaluation) -> dict[str, float]:
    assert all(isinstance(figure, Estimate) for figure in found.estimates.values())
    return {name: figure.value for name, figure in found.estimates.items() if isinstance(figure, Estimate)}


def never(*_: object, **__: object) -> None:
    raise AssertionError("there is nothing to make")


def test_every_metric_of_the_protocol_is_estimated(
    undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint
) -> None:
    store, found = undisturbed
    assert set(values(found)) == {"fid", "kid", "inception_score", "clip_score"}
    assert (found.n, found.requested, found.images_made, found.complete) == (N, N, N, True)
    assert found.protocol_fingerprint == protocol.fingerprint
    assert found.checkpoint_fingerprint == checkpoint.fingerprint
    assert found.difference(protocol) == ""
    assert (found.blacked_out, found.truncated) == (0, 0)
    assert list(shards(store)) == [
        "shard-00000000-00000064.safetensors",
        "shard-00000064-00000080.safetensors",
    ]
    provenance = found.provenance()
    assert provenance["complete"] is True
    assert provenance["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert json.loads(json.dumps(provenance)) == provenance


def test_evidence_is_what_the_extractors_say_of_each_image_after_the_codec(
    undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint
) -> None:
    from safetensors.numpy import load_file

    pipeline = load_pipeline(checkpoint)
    (batch,) = sample(pipeline, protocol, CAPTIONS, range(64, N), batch_size=32)
    rows = open_extractors(protocol).extract(apply_image_steps(batch.images, protocol.image), batch.prompts)
    (path,) = undisturbed[0].glob("*/shard-00000064-*")
    stored = load_file(path)
    assert stored["index"].tolist() == list(range(64, N))
    assert stored["seed"].tolist() == batch.seeds.tolist()
    for name, expected in rows.items():
        assert stored[name].dtype == np.float32
        # The pictures differ by a byte here and there: the U-Net is laid out differently.
        np.testing.assert_allclose(stored[name], expected, rtol=0, atol=0.05 * np.abs(expected).max())
    assert set(stored) == {*rows, "index", "seed", "blacked_out", "truncated"}


def test_with_all_evidence_there_nothing_is_loaded(
    undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, first = undisturbed
    monkeypatch.setattr(evaluation, "open_extractors", never)
    again = score(checkpoint, protocol, store, load=never)
    assert values(again) == values(first)
    assert again.images_made == 0
    assert (again.device, again.versions) == (first.device, first.versions)


def test_scores_do_not_depend_on_the_batch_size(
    data_root: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Without a codec, which would make a whole block of a pixel that is rounded the other way."""
    protocol = protocol_of(data_root, "lossless", image=[])
    alone = values(score(checkpoint, protocol, tmp_path / "1", tuning=Tuning(batch_size=1)))
    together = values(score(checkpoint, protocol, tmp_path / "32", tuning=Tuning(batch_size=32)))
    assert alone == pytest.approx(together, rel=1e-4)


def test_the_text_is_projected_once_a_batch_to_the_same_bits(checkpoint: Checkpoint, data_root: Path) -> None:
    sampling = {"steps": 3, "guidance": 2.0, "resolution": 64, "dtype": "float32"}
    protocol = protocol_of(data_root, "steps", sampling=sampling)
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


def test_fewer_images_are_another_claim_on_the_same_evidence(
    protocol: Protocol, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    few = score(checkpoint, protocol, tmp_path, samples=10)
    assert (few.n, few.requested, few.images_made, few.complete) == (10, N, 10, False)
    assert few.protocol_fingerprint != protocol.fingerprint
    assert few.difference(protocol) == "10 images here, 80 in own"
    fid = few.estimates["fid"]
    assert isinstance(fid, Undefined)
    assert "64 features" in fid.reason
    fewer = score(checkpoint, protocol, tmp_path, samples=4, load=never)
    assert (fewer.n, fewer.images_made) == (4, 0)
    more = score(checkpoint, protocol, tmp_path, samples=12)
    assert more.images_made == 12
    assert len(list(tmp_path.iterdir())) == 1


def test_more_samples_than_the_protocol_has_are_the_protocol(
    undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint
) -> None:
    found = score(checkpoint, protocol, undisturbed[0], samples=1000, load=never)
    assert (found.n, found.complete) == (N, True)


def test_another_precision_is_another_claim_with_other_evidence(
    protocol: Protocol, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    asked: list[str] = []

    def load(dtype: str) -> Any:
        asked.append(dtype)
        return load_pipeline(checkpoint, dtype=dtype)

    score(checkpoint, protocol, tmp_path, samples=2, load=load)
    found = score(checkpoint, protocol, tmp_path, samples=2, dtype="bfloat16", load=load)
    assert asked == ["float32", "bfloat16"]
    assert len(list(tmp_path.iterdir())) == 2
    assert found.difference(protocol.with_samples(2)) == "dtype bfloat16 here, float32 in own"


class Killed(BaseException):
    """What stands in for a kill where the process is to live on."""


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


KILLED_RUN = """
import os, signal, stat, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.protocols.load import load_protocol
from tests.evaluation.test_evaluate import stopping

folder, protocol, store, moment = sys.argv[1:]
checkpoint, protocol = Checkpoint("tiny", Path(folder)), load_protocol(protocol)
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
load = lambda dtype: load_pipeline(checkpoint, dtype=dtype)
if moment == "sampling":
    load = stopping(load, 1, kill)
else:
    fsync = os.fsync
    def fsync_or_die(handle):
        # Neither a manifest nor a lease is as large: it is the second shard, whole but without its name.
        status = os.fstat(handle)
        large = stat.S_ISREG(status.st_mode) and status.st_size > 5_000
        return kill() if large and list(Path(store).glob("*/shard-*")) else fsync(handle)
    os.fsync = fsync_or_die
evaluate(checkpoint, protocol, Workspace(Path(store), protocol.path.parent, progress=False), load=load)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("moment", ["sampling", pytest.param("writing", marks=pytest.mark.slow)])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    moment: str, undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED_RUN)]
    where = [str(checkpoint.folder), str(protocol.path), str(tmp_path), moment]
    run = subprocess.run([*command, *where], capture_output=True, text=True, check=False, timeout=900)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert list(shards(tmp_path)) == ["shard-00000000-00000064.safetensors"]
    assert bool(list(tmp_path.glob("*/.tmp-*"))) == (moment == "writing")

    resumed = score(checkpoint, protocol, tmp_path)
    assert resumed.images_made == N - 64
    assert shards(tmp_path) == shards(undisturbed[0])
    assert values(resumed) == values(undisturbed[1])


def test_a_damaged_shard_is_made_again_to_the_same_bits(
    undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(undisturbed[0], tmp_path / "store"))
    (path,) = store.glob("*/shard-00000000-*")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(DamagedEvidence, match=r"shard-00000000-00000064"):
        found = score(checkpoint, protocol, store)
    assert found.images_made == 64
    path.with_name(f"{path.name}.damaged").unlink()
    assert shards(store) == shards(undisturbed[0])


def test_a_full_disk_loses_one_shard_and_says_so(
    undisturbed: Undisturbed,
    protocol: Protocol,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill_up(handle: int) -> None:
        status = os.fstat(handle)
        # Neither a manifest nor a lease is as large.
        large = stat.S_ISREG(status.st_mode) and status.st_size > 5_000
        if large and shards(tmp_path):
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", fill_up)
    with pytest.raises(EvidenceError, match=r"shard-00000064.*No space left on device.*Make room"):
        score(checkpoint, protocol, tmp_path)
    assert not list(tmp_path.glob("*/.tmp-*"))
    monkeypatch.undo()
    assert score(checkpoint, protocol, tmp_path).images_made == N - 64
    assert shards(tmp_path) == shards(undisturbed[0])


def test_a_store_that_cannot_be_written_is_found_before_the_first_image(
    protocol: Protocol, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvidenceError, match="--sdbench-store"):
        score(checkpoint, protocol, tmp_path / "file", load=never)


def test_a_sequential_draw_that_was_stopped_goes_on_to_the_same_bits(
    data_root: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    protocol = protocol_of(data_root, "sequential", seeds=SEQUENTIAL).with_samples(66)
    whole = score(checkpoint, protocol, tmp_path / "whole")

    def kill() -> None:
        raise Killed

    load = stopping(lambda dtype: load_pipeline(checkpoint, dtype=dtype), 65, kill)
    with pytest.raises(Killed):
        score(checkpoint, protocol, tmp_path / "stopped", load=load)
    resumed = score(checkpoint, protocol, tmp_path / "stopped")
    assert resumed.images_made == 2
    assert shards(tmp_path / "stopped") == shards(tmp_path / "whole")
    assert values(resumed) == values(whole)


def test_a_cuda_draw_on_a_cpu_is_another_draw_of_the_same_claim(
    data_root: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    cuda = protocol_of(data_root, "cuda", seeds={**SEQUENTIAL, "device": "cuda"}).with_samples(2)
    found = score(checkpoint, cuda, tmp_path)
    assert found.protocol_fingerprint == cuda.fingerprint
    assert found.complete
    assert any("sequential generator is on the cpu" in note for note in found.notes)
    # It must never be taken for evidence of the CUDA draw.
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"{checkpoint.fingerprint}-{evidence_key(cuda.with_seeds_on('cpu'))}"
    (manifest,) = folder.glob("manifest-*.json")
    assert json.loads(manifest.read_text())["protocol"]["seeds"]["device"] == "cpu"


def test_what_lacks_is_said_before_anything_is_loaded(
    data_root: Path, protocol: Protocol, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="--sdbench-data"):
        score(checkpoint, protocol, tmp_path, data_root=None, load=never)
    (tmp_path / "real.npz").write_bytes((data_root / "real.npz").read_bytes())
    with pytest.raises(Unavailable, match=r"captions\.csv"):
        score(checkpoint, protocol, tmp_path, data_root=tmp_path, load=never)
    (tmp_path / "real.npz").unlink()
    (tmp_path / "captions.csv").write_bytes((data_root / "captions.csv").read_bytes())
    spec = protocol.model_dump()["metrics"]["fid"]
    distance = protocol_of(data_root, "distance", metrics={"fid": spec})
    with pytest.raises(Unavailable, match=r"real\.npz"):
        score(checkpoint, distance, tmp_path, data_root=tmp_path, load=never)
    assert not list(tmp_path.glob("*-*"))


def test_only_the_distances_need_the_reference_statistics(
    data_root: Path, protocol: Protocol, checkpoint: Checkpoint, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    (tmp_path / "captions.csv").write_bytes((data_root / "captions.csv").read_bytes())
    found = score(checkpoint, protocol, undisturbed[0], data_root=tmp_path, load=never)
    assert set(found.lacking) == {"fid", "kid"}
    assert "real.npz" in str(found.lacking["fid"])
    expected = values(undisturbed[1])
    assert values(found) == {name: expected[name] for name in ("inception_score", "clip_score")}


def test_statistics_of_other_weights_of_the_extractor_are_refused(
    data_root: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    own = protocol_of(tmp_path).with_samples(2)
    found = load_references(own, tmp_path)["fid"]
    save_statistics(tmp_path / "real.npz", found, {"extractor_fingerprint": "0" * 16})
    with pytest.raises(
        DataError, match=r"real\.npz: .*other weights of scenes-classifier.*found '0{16}'.*again"
    ):
        score(checkpoint, own, tmp_path / "store", load=never)
    right = open_extractor("scenes-classifier").fingerprint
    save_statistics(tmp_path / "real.npz", found, {"extractor_fingerprint": right})
    assert load_references(own, tmp_path)["fid"].n == 128


def test_other_weights_of_an_extractor_do_not_get_old_evidence(
    undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evidence_key(protocol)
    monkeypatch.setattr(evaluation, "identity", lambda name: f"{name}@retrained")
    assert evidence_key(protocol) != before


def test_evidence_from_elsewhere_is_used_and_named(
    undisturbed: Undisturbed, protocol: Protocol, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = undisturbed[1]
    assert not any("set-ups" in note or "other" in note for note in here.notes)
    monkeypatch.setattr(evaluation, "device_name", lambda device: "Another Device")
    monkeypatch.setattr(evaluation, "versions", lambda: {"torch": "9.9"})
    there = score(checkpoint, protocol, undisturbed[0], load=never)
    assert there.device == here.device
    assert there.versions == here.versions
    assert "images were made with other device than here" in there.notes
    assert "images were made with other versions than here" in there.notes


def test_evidence_of_several_set_ups_names_them_all(
    protocol: Protocol, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = replace_steps(protocol)
    score(checkpoint, quick.with_samples(64), tmp_path)
    monkeypatch.setattr(evaluation, "device_name", lambda device: "Another Device")
    monkeypatch.setattr(evaluation, "versions", lambda: {"torch": "9.9"})
    found = score(checkpoint, quick.with_samples(66), tmp_path)
    assert found.device.endswith(", Another Device")
    assert found.versions["torch"].endswith(", 9.9")
    assert "the images were made by 2 different set-ups" in found.notes


def replace_steps(protocol: Protocol) -> Protocol:
    """Return the protocol without guidance, which halves the work."""
    return protocol_of(
        protocol.path.parent, "quick", sampling={**protocol.sampling.model_dump(), "guidance": 1.0}
    )


def test_long_prompts_and_black_images_are_reported(
    data_root: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "captions.csv").write_text(f"file_name,text\n1.jpg,red\n2.jpg,{'red and blue ' * 60}\n")
    (tmp_path / "real.npz").write_bytes((data_root / "real.npz").read_bytes())
    (tmp_path / "clip").symlink_to(data_root / "clip")
    own = protocol_of(
        tmp_path,
        n=2,
        prompts={
            "kind": "csv",
            "file": "captions.csv",
            "sha256": hashlib.sha256((tmp_path / "captions.csv").read_bytes()).hexdigest(),
            "rows": 2,
        },
    )

    def load(dtype: str) -> Any:
        pipeline = load_pipeline(checkpoint, dtype=dtype)
        pipeline.run_safety_checker = lambda images, *_: (images, [True, False])
        return pipeline

    found = score(checkpoint, own, tmp_path / "store", load=load)
    assert (found.blacked_out, found.truncated) == (1, 1)
    assert "1 images were blacked out by a safety checker" in found.notes
    assert "1 prompts were cut to the tokenizer's length" in found.notes
    # The counts are part of the evidence: a later run reports them too.
    assert score(checkpoint, own, tmp_path / "store", load=never).notes == found.notes


def test_a_checkpoint_that_overflows_leaves_no_evidence(
    protocol: Protocol, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def load(dtype: str) -> Any:
        pipeline = load_pipeline(checkpoint, dtype=dtype)
        pipeline.vae.decoder.conv_out.weight.data.fill_(torch.nan)
        return pipeline

    with pytest.raises(CheckpointError, match="NaN or infinity"):
        score(checkpoint, protocol, tmp_path, load=load)
    assert shards(tmp_path) == {}


def test_an_unknown_extractor_is_named_before_the_first_image(
    data_root: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    metrics = {"inception_score": {"extractor": "scenes-clasifier"}}
    with pytest.raises(ProtocolError, match="scenes-clasifier"):
        score(checkpoint, protocol_of(data_root, "typo", metrics=metrics), tmp_path, load=never)


def test_a_default_batch_suits_the_resolution(protocol: Protocol) -> None:
    def at(resolution: int) -> int:
        sampling = protocol.sampling.model_copy(update={"resolution": resolution})
        return default_batch_size(protocol.model_copy(update={"sampling": sampling}))

    assert [at(64), at(256), at(512), at(1024), at(4096)] == [64, 16, 4, 1, 1]


def test_a_difference_names_every_part(undisturbed: Undisturbed, protocol: Protocol, data_root: Path) -> None:
    statistics = {"file": "other.npz", "images": 9}
    other = protocol_of(
        data_root,
        "other",
        seeds={"kind": "per-image", "seed": 6},
        image=[],
        metrics={"fid": {"extractor": "scenes-classifier", "statistics": statistics}},
    )
    found = replace(undisturbed[1], complete=False)
    assert found.difference(other) == (
        "seed 5 here, 6 in other; another codec or resize than other; "
        "other metrics or reference statistics than other"
    )
