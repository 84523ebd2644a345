"""The engine: whatever is tuned, the same images come out, and nothing that was made is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch._dynamo.exc import TorchDynamoException

from pytest_sdbench.evaluation import engine
from pytest_sdbench.evaluation.engine import Setup, make
from pytest_sdbench.evaluation.sampler import image_seed
from pytest_sdbench.evaluation.tuning import (
    NotCompiled,
    Tuning,
    arranged,
    default_batch_size,
    default_decoding,
    keep_memory,
)
from pytest_sdbench.features.extractors import Extractors
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.image_steps import Images, apply_image_steps
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import SequentialSeeds
from pytest_sdbench.store.shard_format import SHARD, Rows
from pytest_sdbench.store.shards import Evidence, Store
from tests.evaluation import helpers
from tests.evaluation.helpers import SEED, SEQUENTIAL, diffusers_picture, own_protocol

N = SHARD + 16
PROMPTS = tuple(f"red and blue {number}" for number in range(N))
ALONE = Tuning(workers=1)

pytestmark = pytest.mark.usefixtures("one_thread")

# Behind a codec, which makes a block of it.
assert_same_pictures = partial(helpers.assert_same_pictures, above=2, rarely=0.001, most=16)


class Pixels(Extractors):
    """Keeps the pictures themselves, so that whatever becomes of them is seen."""

    def __init__(self, breaks_at: int | None = None, ready: Callable[[], object] = lambda: None) -> None:
        super().__init__(())
        self.breaks_at, self.ready = breaks_at, ready

    def extract(self, images: Images, prompts: Any, references: Any = None) -> dict[str, Any]:
        assert len(images) == len(prompts)
        if self.breaks_at is not None and prompts[0] == PROMPTS[self.breaks_at]:
            self.ready()
            raise RuntimeError("the extractor broke")
        return {"pixels": images}


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Protocol:
    steps = [{"jpeg": 75}, {"resize": 48, "filter": "pil-bicubic"}]
    return own_protocol(tmp_path_factory.mktemp("protocol"), n=N, image=steps, steps=1)


@pytest.fixture(scope="module")
def sequential(protocol: Protocol) -> Protocol:
    return protocol.model_copy(update={"seeds": SequentialSeeds.model_validate(SEQUENTIAL)})


@pytest.fixture(scope="module")
def load(pristine_checkpoint: Path) -> Callable[[], Any]:
    return lambda: load_pipeline(Checkpoint("tiny", pristine_checkpoint))


Run = Callable[..., Evidence]


@pytest.fixture(scope="module")
def run_in(load: Callable[[], Any], protocol: Protocol) -> Run:
    """Make the images of the protocol in the store of a folder."""

    def run(
        folder: Path,
        tuning: Tuning,
        pipeline: Any = None,
        *,
        extractors: Extractors | None = None,
        images: list[range] | None = None,
        count: Callable[[int], object] = lambda images: None,
        protocol: Protocol = protocol,
    ) -> Evidence:
        evidence = Store(folder).open("c", "d", {})
        work = iter(evidence.gaps(N) if images is None else map(evidence.gap, images))
        setup = Setup(pipeline or load(), extractors or Pixels(), tuning=tuning)
        make(evidence, protocol, PROMPTS, work, setup, n=N, count=count)
        return evidence

    return run


@pytest.fixture
def run(run_in: Run, tmp_path: Path) -> Run:
    return partial(run_in, tmp_path)


def rows(evidence: Evidence) -> Rows:
    shards = list(evidence.read(N))
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def last_shard(evidence: Evidence) -> Rows:
    """The rows of the second shard, whether or not the first is there."""
    (path,) = evidence.folder.glob(f"shard-{SHARD:08}-*.safetensors")
    return load_file(path)


def shards(evidence: Evidence) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in evidence.folder.glob("shard-*")}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, run_in: Run) -> Evidence:
    """What one worker makes with nothing beside it."""
    return run_in(tmp_path_factory.mktemp("plain"), Tuning(workers=1, overlap=False))


def test_every_image_is_what_diffusers_makes_of_it_alone_and_pillow_of_that(
    plain: Evidence, load: Callable[[], Any], protocol: Protocol
) -> None:
    """The slow way: one image after the other, text encoded each time, nothing laid out or kept."""
    pipeline, found = load(), rows(plain)
    for index in (0, 31, SHARD, N - 1):
        picture = diffusers_picture(pipeline, PROMPTS[index], steps=1, index=index)
        expected = apply_image_steps(picture[None], protocol.image)[0]
        assert_same_pictures(found["pixels"][index], expected)
        assert found["seed"][index] == image_seed(SEED, index)
    assert found["index"].tolist() == list(range(N))


@pytest.mark.parametrize(
    "tuning",
    [Tuning(workers=2), Tuning(workers=1, overlap=True), Tuning(workers=2, overlap=True)],
    ids=["workers", "overlap", "workers-overlap"],
)
def test_what_only_moves_work_changes_no_bit(tuning: Tuning, plain: Evidence, run: Run) -> None:
    assert shards(run(tuning)) == shards(plain)


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(batch_size=7),
        *(
            pytest.param(tuning, marks=pytest.mark.slow)
            for tuning in (Tuning(batch_size=1), Tuning(channels_last=False), Tuning(remember_text=False))
        ),
    ],
    ids=["batch-7", "batch-1", "layout", "text"],
)
def test_what_changes_rounding_changes_little(tuning: Tuning, plain: Evidence, run: Run) -> None:
    found, expected = last_shard(run(tuning, images=[range(SHARD, N)])), last_shard(plain)
    assert_same_pictures(found["pixels"], expected["pixels"])
    assert found["seed"].tolist() == expected["seed"].tolist()


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


@pytest.mark.parametrize("overlap", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_batch_is_halved_until_it_fits(
    overlap: bool, plain: Evidence, load: Callable[[], Any], run: Run
) -> None:
    pipeline = load()
    unet = OfLimitedMemory(pipeline.unet, most=40)  # twenty images, each with and without its prompt
    decoder = OfLimitedMemory(pipeline.vae.decoder, most=5)
    found = rows(run(Tuning(workers=1, overlap=overlap), pipeline))
    assert_same_pictures(found["pixels"], rows(plain)["pixels"])
    # Found once: the second shard is not tried with a batch that is known to be too large.
    assert unet.sizes == [128, 64, 32, 32, 32, 32, 32]
    assert max(decoder.sizes[3:]) <= 5
    assert decoder.sizes[:3] == [16, 8, 4]


@pytest.mark.slow
def test_memory_that_runs_out_late_loses_no_image(load: Callable[[], Any], run: Run) -> None:
    pipeline, seen = load(), []
    forward = pipeline.unet.forward

    def sometimes(sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
        seen.append(len(sample))
        if len(seen) == 3:  # another process has taken it
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(sample, *rest, **named)

    pipeline.unet.forward = sometimes
    evidence = run(Tuning(batch_size=16, workers=1), pipeline)
    assert rows(evidence)["index"].tolist() == list(range(N))
    assert seen == [32, 32, 32, 16, 16, 16, 16, 16, 16]


@pytest.mark.slow
def test_one_image_that_does_not_fit_is_an_error(load: Callable[[], Any], run: Run) -> None:
    pipeline = load()
    OfLimitedMemory(pipeline.unet, most=1)
    with pytest.raises(torch.OutOfMemoryError):
        run(ALONE, pipeline)


@pytest.mark.parametrize("tuning", [Tuning(workers=2), Tuning(workers=1, overlap=True)])
def test_an_error_in_one_thread_ends_the_run_and_leaves_whole_shards(
    tuning: Tuning, plain: Evidence, run: Run, tmp_path: Path
) -> None:
    written = threading.Event()

    def ready() -> None:
        assert tuning.overlap or written.wait(60)

    with pytest.raises(RuntimeError, match="the extractor broke"):
        run(tuning, extractors=Pixels(SHARD, ready), count=lambda images: written.set())
    evidence = Store(tmp_path).open("c", "d", {})
    assert evidence.missing(N) == [range(SHARD, N)]
    run(Tuning())
    assert shards(evidence) == shards(plain)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_shard_that_lost_a_batch_is_never_written(overlap: bool, run: Run, tmp_path: Path) -> None:
    """With what comes after it in the same thread, it would be a shard of other images."""
    with pytest.raises(RuntimeError, match="the extractor broke"):
        run(Tuning(workers=1, overlap=overlap, batch_size=16), extractors=Pixels(16))
    assert shards(Store(tmp_path).open("c", "d", {})) == {}


def test_text_that_guidance_leads_away_from_is_encoded_once_a_run(load: Callable[[], Any], run: Run) -> None:
    pipeline, texts = load(), []
    pipeline.text_encoder.register_forward_pre_hook(lambda module, inputs: texts.append(len(inputs[0])))
    run(ALONE, pipeline)
    assert sorted(texts) == [1, N - SHARD, SHARD]


def test_another_kind_of_pipeline_is_called_as_it_is(
    plain: Evidence, load: Callable[[], Any], run: Run
) -> None:
    """A team's own pipeline need not have stages that can be told apart."""
    inner = load()

    class Own:
        device, scheduler, tokenizer = inner.device, inner.scheduler, inner.tokenizer

        def __call__(self, prompt: list[str], **options: Any) -> Any:
            assert options["output_type"] == "np"
            return inner(prompt, **options)

    assert_same_pictures(rows(run(ALONE, Own()))["pixels"], rows(plain)["pixels"])


def test_only_full_batches_are_compiled(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile itself is replaced by a marker: which batches go through it is what counts."""
    calls: list[int] = []

    def marker(function: Any, **options: Any) -> Any:
        def compiled(sample: torch.Tensor, *rest: Any, **named: Any) -> Any:
            calls.append(len(sample))
            return function(sample, *rest, **named)

        return compiled

    monkeypatch.setattr(torch, "compile", marker)
    pipeline = load()
    text = torch.zeros(8, 77, 16)
    with arranged(pipeline, Tuning(compile=True), full_batch=4):
        for size in (8, 4, 6, 1):
            pipeline.unet(torch.zeros(size, 4, 8, 8), 1, encoder_hidden_states=text[:size])
    assert calls == [8, 4]


def compile_that_fails(function: Any, **options: Any) -> Any:
    def compiled(*_: Any, **__: Any) -> Any:
        raise TorchDynamoException("inductor\nno C compiler\nand a long trace")

    return compiled


def no_compiler(graph: Any, inputs: Any) -> Any:
    raise FileNotFoundError("no C compiler")


@pytest.mark.parametrize(
    "compiler",
    [
        compile_that_fails,
        pytest.param(partial(torch.compile, backend=no_compiler), marks=pytest.mark.slow, id="torch"),
    ],
)
def test_where_the_compiler_fails_the_images_are_made_without_it(
    compiler: Any, plain: Evidence, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's machine often has no compiler for Triton, and that is known at the first batch alone."""
    monkeypatch.setattr(torch, "compile", compiler)
    with pytest.warns(NotCompiled, match="the U-Net runs without: .*no C compiler") as told:
        found = rows(run(Tuning(compile=True, batch_size=16, workers=1)))
    assert len([each for each in told if each.category is NotCompiled]) == 1
    assert_same_pictures(found["pixels"], rows(plain)["pixels"])


class Standing:
    """What the engine may change of a process and of a pipeline while it works."""

    def __init__(self, pipeline: Any) -> None:
        modules = list(pipeline.unet.modules())
        self.forwards = ["forward" in vars(module) for module in modules]
        self.layout = [value.stride() for value in pipeline.unet.state_dict().values()]
        self.weights = [value.clone() for value in pipeline.unet.state_dict().values()]
        self.threads = torch.get_num_threads()
        self.precision = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        self.scheduler, self.tokenizer = pipeline.scheduler, pipeline.tokenizer


@pytest.mark.parametrize("breaks_at", [None, 0], ids=["whole", "broken"])
@pytest.mark.parametrize(
    "tuning",
    [Tuning(workers=2), pytest.param(Tuning(compile=True), marks=pytest.mark.slow)],
    ids=["usual", "compiled"],
)
def test_a_run_leaves_pipeline_and_process_as_they_were(
    breaks_at: int | None, tuning: Tuning, load: Callable[[], Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another test of the same process must not feel that images were made in it."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(engine, "keep_memory", lambda: pytest.fail("this cannot be undone"))
    torch.set_num_threads(3)
    pipeline, during = load(), []
    pipeline.unet.register_forward_pre_hook(lambda *_: during.append(Standing(pipeline)))
    before = Standing(pipeline)
    try:
        run(tuning, pipeline, extractors=Pixels(breaks_at))
    except RuntimeError:
        assert breaks_at == 0
    after, inside = Standing(pipeline), during[0]
    assert any(inside.forwards)
    assert inside.layout != before.layout
    assert inside.threads == (1 if tuning.workers == 2 else 3) or tuning.compile
    weights = vars(before).pop("weights"), vars(after).pop("weights")
    assert vars(after) == vars(before)
    assert all(map(torch.equal, *weights))
    torch.set_num_threads(1)


def test_memory_is_kept_if_asked_for_to_the_same_bits(
    plain: Evidence, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(engine, "keep_memory", lambda: kept.append(True) or keep_memory())
    assert shards(run(Tuning(workers=1, keep_memory=True))) == shards(plain)
    assert kept == [True]


def test_a_default_batch_suits_resolution_device_and_seeds(protocol: Protocol, sequential: Protocol) -> None:
    def at(resolution: int) -> int:
        sampling = protocol.sampling.model_copy(update={"resolution": resolution})
        return default_batch_size(protocol.model_copy(update={"sampling": sampling}))

    assert [at(64), at(256), at(512), at(1024), at(4096)] == [64, 16, 4, 1, 1]
    assert default_batch_size(protocol, "cuda:1") == default_batch_size(sequential, "cuda") == SHARD
    assert default_batch_size(sequential) == 1


def test_a_gpu_decodes_no_tensor_that_kernels_cannot_count() -> None:
    large = load_protocol("coco30k-bksdm")
    widest = 256 * large.sampling.resolution**2
    assert 1 < default_decoding(large, "cuda") * widest <= 2**31 - 1
    assert default_decoding(load_protocol("scenes-quick"), "cuda") == SHARD


def test_the_noise_of_a_sequence_is_drawn_one_by_one_and_used_in_batches(
    run_in: Run, sequential: Protocol, tmp_path: Path
) -> None:
    batches = run_in(tmp_path / "batches", Tuning(batch_size=24), protocol=sequential)
    # The second shard's noise comes after the first one's, made or not.
    options = {"images": [range(SHARD, N)], "protocol": sequential}
    resumed = run_in(tmp_path / "resumed", Tuning(batch_size=24), **options)
    (last,) = shards(resumed).items()
    assert last in shards(batches).items()
    single = last_shard(run_in(tmp_path / "single", Tuning(), **options))
    assert_same_pictures(last_shard(batches)["pixels"], single["pixels"])
    assert last_shard(batches)["seed"].tolist() == single["seed"].tolist() == [SEED] * (N - SHARD)
