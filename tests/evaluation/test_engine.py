"""The engine: whatever is tuned, the same images come out, and nothing that was made is lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pytest_sdbench.evaluation.engine import make
from pytest_sdbench.evaluation.sampler import image_seed
from pytest_sdbench.evaluation.tuning import NotCompiled, Tuning, arrange, default_batch_size
from pytest_sdbench.features.extractors import Extractors
from pytest_sdbench.models.checkpoint import Checkpoint, load_pipeline
from pytest_sdbench.protocols.image_steps import Images, apply_image_steps
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shards import SHARD, Evidence, Rows, Store

N = SHARD + 16
PROMPTS = tuple(f"red and blue {number}" for number in range(N))

pytestmark = pytest.mark.usefixtures("one_thread")


class Pixels(Extractors):
    """Keeps the pictures themselves, so that whatever becomes of them is seen."""

    def __init__(self) -> None:
        super().__init__(())

    def extract(self, images: Images, prompts: Any) -> dict[str, Any]:
        assert len(images) == len(prompts)
        return {"pixels": images}


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Protocol:
    content = {
        "title": "Own",
        "n": N,
        "prompts": {"kind": "csv", "file": "captions.csv", "sha256": "0" * 64, "rows": N},
        "seeds": {"kind": "per-image", "seed": 5},
        "sampling": {"steps": 1, "guidance": 3.0, "resolution": 64, "dtype": "float32"},
        "image": [{"jpeg": 75}, {"resize": 48, "filter": "pil-bicubic"}],
        "metrics": {"clip_score": {"model": "local:scenes-clip"}},
    }
    path = tmp_path_factory.mktemp("protocol") / "own.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return load_protocol(path)


@pytest.fixture(scope="module")
def load(pristine_checkpoint: Path) -> Callable[[], Any]:
    return lambda: load_pipeline(Checkpoint("tiny", pristine_checkpoint))


def run(folder: Path, pipeline: Any, protocol: Protocol, tuning: Tuning, **options: Any) -> Evidence:
    evidence = Store(folder).open("c", "d", {})
    make(
        evidence,
        protocol,
        PROMPTS,
        evidence.work(N),
        n=N,
        pipeline=pipeline,
        tuning=tuning,
        **{"extractors": Pixels(), **options},
    )
    return evidence


def rows(evidence: Evidence, n: int = N) -> Rows:
    shards = list(evidence.read(n))
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def shards(evidence: Evidence) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in evidence.folder.glob("shard-*")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, load: Callable[[], Any], protocol: Protocol) -> Evidence:
    """What one worker makes with nothing beside it."""
    return run(tmp_path_factory.mktemp("plain"), load(), protocol, Tuning(workers=1, overlap=False))


def assert_same_pictures(one: Images, other: Images) -> None:
    """Allow what rounding does to bytes, behind a codec that makes a block of it: few, and small."""
    apart = np.abs(one.astype(int) - other.astype(int))
    assert apart.max() <= 16
    assert (apart > 2).mean() < 0.001


def test_every_image_is_what_diffusers_makes_of_it_alone_and_pillow_of_that(
    plain: Evidence, load: Callable[[], Any], protocol: Protocol
) -> None:
    """The slow way: one image after the other, text encoded each time, nothing laid out or kept."""
    pipeline, found = load(), rows(plain)
    for index in (0, 31, SHARD, N - 1):
        generator = torch.Generator().manual_seed(image_seed(5, index))
        picture = pipeline(
            PROMPTS[index],
            num_inference_steps=1,
            guidance_scale=3.0,
            height=64,
            width=64,
            generator=generator,
        ).images[0]
        expected = apply_image_steps(np.asarray(picture)[None], protocol.image)[0]
        assert_same_pictures(found["pixels"][index], expected)
        assert found["seed"][index] == image_seed(5, index)
    assert found["index"].tolist() == list(range(N))


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(workers=2),
        Tuning(workers=1, overlap=True),
        Tuning(workers=2, overlap=True),
        Tuning(workers=1, keep_memory=False),
    ],
    ids=["workers", "overlap", "workers-overlap", "memory"],
)
def test_what_only_moves_work_changes_no_bit(
    tuning: Tuning, plain: Evidence, load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    assert shards(run(tmp_path, load(), protocol, tuning)) == shards(plain)


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(batch_size=1),
        Tuning(batch_size=7),
        Tuning(batch_size=32),
        Tuning(channels_last=False),
        Tuning(remember_text=False),
    ],
    ids=["batch-1", "batch-7", "batch-32", "layout", "text"],
)
def test_what_changes_rounding_changes_little(
    tuning: Tuning, plain: Evidence, load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    found = rows(run(tmp_path, load(), protocol, tuning))
    assert_same_pictures(found["pixels"], rows(plain)["pixels"])
    assert found["seed"].tolist() == rows(plain)["seed"].tolist()


class OfLimitedMemory:
    """Stands before a network's forward and has no memory for more than so many at once."""

    def __init__(self, module: Any, most: int) -> None:
        self.sizes: list[int] = []
        self._forward, self._most = module.forward, most
        module.forward = self

    def __call__(self, sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
        self.sizes.append(len(sample))
        if len(sample) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._forward(sample, *rest, **named)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    overlap: bool, plain: Evidence, load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    pipeline = load()
    unet = OfLimitedMemory(pipeline.unet, most=40)  # twenty images, each with and without its prompt
    decoder = OfLimitedMemory(pipeline.vae.decoder, most=5)
    found = rows(run(tmp_path, pipeline, protocol, Tuning(workers=1, overlap=overlap)))
    assert_same_pictures(found["pixels"], rows(plain)["pixels"])
    # Found once: the second shard is not tried with a batch that is known to be too large.
    assert unet.sizes == [128, 64, 32, 32, 32, 32, 32]
    assert max(decoder.sizes[3:]) <= 5
    assert decoder.sizes[:3] == [16, 8, 4]


def test_memory_that_runs_out_late_loses_no_image(
    load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    pipeline, seen = load(), []
    forward = pipeline.unet.forward

    def sometimes(sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
        seen.append(len(sample))
        if len(seen) == 3:  # another process has taken it
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(sample, *rest, **named)

    pipeline.unet.forward = sometimes
    evidence = run(tmp_path, pipeline, protocol, Tuning(batch_size=16, workers=1))
    assert rows(evidence)["index"].tolist() == list(range(N))
    assert seen == [32, 32, 32, 16, 16, 16, 16, 16, 16]


def test_one_image_that_does_not_fit_is_an_error(
    load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    pipeline = load()
    OfLimitedMemory(pipeline.unet, most=1)
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, pipeline, protocol, Tuning(workers=1))


@pytest.mark.parametrize("tuning", [Tuning(workers=2), Tuning(workers=1, overlap=True)])
def test_an_error_in_one_thread_ends_the_run_and_leaves_whole_shards(
    tuning: Tuning, plain: Evidence, load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    evidence, written = Store(tmp_path).open("c", "d", {}), threading.Event()

    class Broken(Pixels):
        def extract(self, images: Images, prompts: Any) -> dict[str, Any]:
            if prompts[0] == PROMPTS[SHARD]:
                assert tuning.overlap or written.wait(60)
                raise RuntimeError("the extractor broke")
            return super().extract(images, prompts)

    with pytest.raises(RuntimeError, match="the extractor broke"):
        run(tmp_path, load(), protocol, tuning, extractors=Broken(), count=lambda images: written.set())
    assert evidence.missing(N) == [range(SHARD, N)]
    run(tmp_path, load(), protocol, Tuning())
    assert shards(evidence) == shards(plain)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_shard_that_lost_a_batch_is_never_written(
    overlap: bool, load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    """With what comes after it in the same thread, it would be a shard of other images."""

    class Broken(Pixels):
        def extract(self, images: Images, prompts: Any) -> dict[str, Any]:
            if prompts[0] == PROMPTS[16]:
                raise RuntimeError("the extractor broke")
            return super().extract(images, prompts)

    tuning = Tuning(workers=1, overlap=overlap, batch_size=16)
    with pytest.raises(RuntimeError, match="the extractor broke"):
        run(tmp_path, load(), protocol, tuning, extractors=Broken())
    assert shards(Store(tmp_path).open("c", "d", {})) == {}


def test_text_that_guidance_leads_away_from_is_encoded_once_a_run(
    load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    pipeline, texts = load(), []
    pipeline.text_encoder.register_forward_pre_hook(lambda module, inputs: texts.append(len(inputs[0])))
    run(tmp_path, pipeline, protocol, Tuning(workers=1))
    assert sorted(texts) == [1, N - SHARD, SHARD]


def test_a_pipeline_of_another_kind_is_called_as_it_is(
    plain: Evidence, load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    """A team's own pipeline need not have stages that can be told apart."""
    inner = load()

    class Own:
        device, scheduler, tokenizer = inner.device, inner.scheduler, inner.tokenizer

        def __call__(self, prompt: list[str], **options: Any) -> Any:
            assert options["output_type"] == "np"
            return inner(prompt, **options)

    found = rows(run(tmp_path, Own(), protocol, Tuning(workers=1)))
    assert_same_pictures(found["pixels"], rows(plain)["pixels"])


def test_a_compiled_unet_takes_full_batches_alone(
    load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile itself is replaced by a marker: which batches go through it is what counts."""
    calls: list[int] = []

    def marker(function: Any, **options: Any) -> Any:
        def compiled(sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
            calls.append(len(sample))
            return function(sample, *rest, **named)

        return compiled

    monkeypatch.setattr(torch, "compile", marker)
    pipeline = load()
    arrange(pipeline, Tuning(compile=True), full_batch=4)
    text = torch.zeros(8, 77, 16)
    for size in (8, 4, 6, 1):
        pipeline.unet(torch.zeros(size, 4, 8, 8), 1, encoder_hidden_states=text[:size])
    assert calls == [8, 4]


def test_where_the_compiler_fails_the_images_are_made_without_it(
    load: Callable[[], Any],
    plain: Evidence,
    protocol: Protocol,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU's machine often has no compiler for Triton, and that is known at the first batch alone."""

    def broken(graph: Any, inputs: Any) -> Any:
        raise FileNotFoundError("no C compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.warns(NotCompiled, match="the U-Net runs without: .*no C compiler") as told:
        found = rows(run(tmp_path, load(), protocol, Tuning(compile=True, batch_size=16, workers=1)))
    assert len([each for each in told if each.category is NotCompiled]) == 1
    assert_same_pictures(found["pixels"], rows(plain)["pixels"])


def test_batches_begin_large_on_an_accelerator_and_single_in_a_sequence_on_a_cpu(protocol: Protocol) -> None:
    sequential = protocol.model_copy(update={"seeds": _sequential()})
    assert default_batch_size(protocol, "cuda:1") == default_batch_size(sequential, "cuda") == SHARD
    assert default_batch_size(sequential) == 1


def test_the_noise_of_a_sequence_is_drawn_one_by_one_and_used_in_batches(
    load: Callable[[], Any], protocol: Protocol, tmp_path: Path
) -> None:
    sequential = protocol.model_copy(update={"seeds": _sequential()})
    single = run(tmp_path / "single", load(), sequential, Tuning())
    batches = run(tmp_path / "batches", load(), sequential, Tuning(batch_size=24))
    assert_same_pictures(rows(batches)["pixels"], rows(single)["pixels"])
    assert rows(batches)["seed"].tolist() == rows(single)["seed"].tolist() == [1] * N
    # The second shard's noise comes after the first one's, made or not.
    resumed = Store(tmp_path / "resumed").open("c", "d", {})
    make(
        resumed,
        sequential,
        PROMPTS,
        iter([range(SHARD, N)]),
        n=N,
        pipeline=load(),
        extractors=Pixels(),
        tuning=Tuning(batch_size=24),
    )
    (last,) = shards(resumed).items()
    assert last in shards(batches).items()


def _sequential() -> Any:
    from pytest_sdbench.protocols.protocol import SequentialSeeds

    return SequentialSeeds(kind="sequential", seed=1, device="cpu")
