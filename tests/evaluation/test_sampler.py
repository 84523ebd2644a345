"""The sampler: an image belongs to its index, whatever else is sampled beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pytest_sdbench.base.errors import CheckpointError, ProtocolError
from pytest_sdbench.evaluation.sampler import Batch, image_seed, to_uint8
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.protocol import Protocol
from tests.evaluation import helpers
from tests.evaluation.helpers import SEQUENTIAL, diffusers_picture, own_protocol, sample

PROMPTS = tuple(f"red and blue {number}" for number in range(8))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipeline(pristine_checkpoint: Path) -> Any:
    return load_pipeline(Checkpoint("tiny", pristine_checkpoint), device="cpu", dtype="float32")


protocol_of = partial(own_protocol, n=8)
assert_same_pictures = partial(helpers.assert_same_pictures, above=0, rarely=0.01, most=2)


def images(pipeline: Any, protocol: Protocol, indices: Sequence[int], size: int) -> np.ndarray:
    batches = list(sample(pipeline, protocol, PROMPTS, indices, batch_size=size))
    assert [index for batch in batches for index in batch.indices.tolist()] == list(indices)
    return np.concatenate([batch.images for batch in batches])


def test_a_batch_says_what_it_holds(pipeline: Any, tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path)
    first, second = sample(pipeline, protocol, PROMPTS, range(2, 7), batch_size=3)
    assert isinstance(first, Batch)
    assert first.indices.tolist() == [2, 3, 4]
    assert first.seeds.tolist() == [image_seed(5, index) for index in (2, 3, 4)]
    assert first.prompts == PROMPTS[2:5]
    assert first.images.shape == (3, 64, 64, 3)
    assert first.images.dtype == np.uint8
    assert first.blacked_out.tolist() == first.truncated.tolist() == [False] * 3
    assert second.indices.tolist() == [5, 6]


def test_an_image_is_what_diffusers_makes_of_its_prompt_and_seed(pipeline: Any, tmp_path: Path) -> None:
    (ours,) = images(pipeline, protocol_of(tmp_path), [3], 1)
    np.testing.assert_array_equal(ours, diffusers_picture(pipeline, PROMPTS[3], steps=2, index=3))


def test_bytes_are_rounded_as_diffusers_rounds_them(pipeline: Any) -> None:
    values = np.concatenate([np.arange(511) / 510, np.linspace(0, 1, 1025)]).astype(np.float32)
    pictures = np.tile(values[:, None, None, None], (1, 1, 1, 3))
    theirs = np.stack([np.asarray(picture) for picture in pipeline.image_processor.numpy_to_pil(pictures)])
    np.testing.assert_array_equal(to_uint8(pictures), theirs)


def test_batch_size_and_order_do_not_matter(pipeline: Any, tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path)
    together, alone = images(pipeline, protocol, range(5), 5), images(pipeline, protocol, range(5), 1)
    assert_same_pictures(together, alone)
    shuffled = [4, 0, 3, 2, 1]
    assert_same_pictures(images(pipeline, protocol, shuffled, 3), together[shuffled])
    assert len({picture.tobytes() for picture in together}) == 5


def test_images_are_the_same_bit_for_bit_when_sampled_again(pipeline: Any, tmp_path: Path) -> None:
    """PNDM keeps outputs and a sample from call to call: none of it may reach the next batch."""
    protocol = protocol_of(tmp_path)
    first = images(pipeline, protocol, [0, 1], 2)
    images(pipeline, protocol, [4, 5, 6], 3)
    stopped = sample(pipeline, protocol, PROMPTS, range(8), batch_size=2)
    next(stopped)
    stopped.close()
    np.testing.assert_array_equal(images(pipeline, protocol, [0, 1], 2), first)


def test_no_two_images_of_a_protocol_share_their_noise() -> None:
    seeds = [image_seed(1234, index) for index in range(100_000)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) < max(seeds) < 2**32
    assert len(set(seeds) & {image_seed(1235, index) for index in range(1000)}) <= 2
    # Recorded evidence rests on these.
    assert seeds[:3] == [3458885594, 3894082881, 1995273532]


def test_a_sequential_generator_is_consumed_in_the_order_of_the_prompts(
    pipeline: Any, tmp_path: Path
) -> None:
    ours = images(pipeline, protocol_of(tmp_path, seeds=SEQUENTIAL), range(4), 32)
    generator = torch.Generator().manual_seed(5)
    theirs = [diffusers_picture(pipeline, prompt, steps=2, generator=generator) for prompt in PROMPTS[:4]]
    np.testing.assert_array_equal(ours, theirs)


def test_skipped_images_leave_a_sequential_draw_as_it_was(pipeline: Any, tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, seeds=SEQUENTIAL, steps=1)
    whole = images(pipeline, protocol, range(7), 1)
    for indices in ([5], [2, 3, 6]):
        np.testing.assert_array_equal(images(pipeline, protocol, indices, 1), whole[indices])


def test_a_sequential_draw_has_no_noise_between_steps(pipeline: Any, tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, seeds=SEQUENTIAL, scheduler="LCMScheduler")
    with pytest.raises(ProtocolError, match=r"seeds\.kind: sequential seeds need.*'LCMScheduler'.*per-image"):
        images(pipeline, protocol, [0], 1)


def test_a_solver_that_draws_no_noise_is_drawn_sequentially(pipeline: Any, tmp_path: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler

    kept, solver = pipeline.scheduler, "DPMSolverMultistepScheduler"
    ours = images(pipeline, protocol_of(tmp_path, seeds=SEQUENTIAL, scheduler=solver), range(3), 1)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(kept.config)
    generator = torch.Generator().manual_seed(5)
    try:
        theirs = [diffusers_picture(pipeline, text, steps=2, generator=generator) for text in PROMPTS[:3]]
    finally:
        pipeline.scheduler = kept
    np.testing.assert_array_equal(ours, theirs)
    noisy = {"name": solver, "config": {"algorithm_type": "sde-dpmsolver++"}}
    with pytest.raises(ProtocolError, match="draws no noise between steps"):
        images(pipeline, protocol_of(tmp_path, seeds=SEQUENTIAL, scheduler=noisy), [0], 1)


def test_a_cuda_generator_is_not_replaced_without_a_word(pipeline: Any, tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, seeds={**SEQUENTIAL, "device": "cuda"})
    with pytest.raises(ProtocolError, match=r"seeds\.device: .*on cuda, the pipeline on cpu"):
        images(pipeline, protocol, [0], 1)
    assert len(images(pipeline, protocol.with_seeds_on("cpu"), [0], 1)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 3},
        {"guidance": 1.0},
        {"guidance": 6.0},
        {"negative_prompt": "blue"},
        {"scheduler": {"config": {"set_alpha_to_one": True}}},
    ],
)
def test_every_setting_reaches_the_pipeline(change: dict[str, Any], pipeline: Any, tmp_path: Path) -> None:
    base = images(pipeline, protocol_of(tmp_path), [0], 1)
    assert (images(pipeline, protocol_of(tmp_path, **change), [0], 1) != base).any()


def test_a_negative_prompt_holds_for_every_image_of_a_batch(pipeline: Any, tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, negative_prompt="blue")
    assert_same_pictures(images(pipeline, protocol, range(3), 3), images(pipeline, protocol, range(3), 1))


def test_the_resolution_is_the_protocols(pipeline: Any, tmp_path: Path) -> None:
    assert images(pipeline, protocol_of(tmp_path, resolution=96), [0], 1).shape == (1, 96, 96, 3)


def test_a_named_scheduler_has_the_checkpoints_settings_for_one_draw(pipeline: Any, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    kept = pipeline.scheduler
    ours = images(pipeline, protocol_of(tmp_path, scheduler="DDIMScheduler"), [1], 1)
    assert pipeline.scheduler is kept
    # Its defaults cut latents off at 1, as if they were pixels: a pipeline made with it corrects that.
    pipeline.scheduler = DDIMScheduler.from_config(kept.config, clip_sample=False)
    try:
        theirs = diffusers_picture(pipeline, PROMPTS[1], steps=2, index=1)
    finally:
        pipeline.scheduler = kept
    np.testing.assert_array_equal(ours[0], theirs)


@pytest.mark.parametrize(
    ("name", "left_out"), [("PNDMScheduler", "steps_offset"), ("DDIMScheduler", "clip_sample")]
)
def test_what_a_pipeline_corrects_in_its_scheduler_holds(
    name: str, left_out: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config, index = (
        tiny_checkpoint / file for file in ("scheduler/scheduler_config.json", "model_index.json")
    )
    told = json.loads(config.read_text()) | {"_class_name": name}
    config.write_text(json.dumps({key: value for key, value in told.items() if key != left_out}))
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", name]}))
    pipeline = load_pipeline(Checkpoint("tiny", tiny_checkpoint), device="cpu", dtype="float32")
    (ours,) = images(pipeline, protocol_of(tmp_path), [3], 1)
    np.testing.assert_array_equal(ours, diffusers_picture(pipeline, PROMPTS[3], steps=2, index=3))


@pytest.mark.parametrize(
    ("scheduler", "error", "message"),
    [
        ("PNDMSheduler", ProtocolError, r"sampling\.scheduler\.name: diffusers .* has no such scheduler"),
        ("UNet2DConditionModel", ProtocolError, r"has no such scheduler"),
        (
            {"config": {"skip_prk": True}},
            ProtocolError,
            r"sampling\.scheduler\.config\.skip_prk: PNDMScheduler has no such setting",
        ),
        (
            {"name": "checkpoint", "must_be": "DDIMScheduler"},
            CheckpointError,
            r"scheduler: protocol own .* the checkpoint's own DDIMScheduler \(found 'PNDMScheduler'\)",
        ),
        (
            {"name": "DDIMScheduler", "config": {"timestep_spacing": "traling"}},
            ProtocolError,
            r"sampling\.scheduler: DDIMScheduler does not draw so: .*traling",
        ),
        (
            {"name": "DPMSolverMultistepScheduler", "config": {"algorithm_type": "none"}},
            ProtocolError,
            r"sampling\.scheduler: DPMSolverMultistepScheduler does not draw so: .*none",
        ),
        (
            {"name": "DDIMScheduler", "config": {"beta_start": "0.001"}},
            ProtocolError,
            r"sampling\.scheduler: DDIMScheduler does not draw so: TypeError",
        ),
        (
            {"name": "DPMSolverMultistepScheduler", "config": {"solver_order": "2"}},
            ProtocolError,
            r"sampling\.scheduler: DPMSolverMultistepScheduler does not draw so: TypeError",
        ),
        ("FlowMatchEulerDiscreteScheduler", ProtocolError, r"does not draw so: AttributeError"),
        ("DPMSolverSDEScheduler", ProtocolError, r"needs torch, torchsde.*pip install torch torchsde"),
    ],
)
def test_a_scheduler_that_does_not_fit_says_so(
    scheduler: Any, error: type[Exception], message: str, pipeline: Any, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        list(sample(pipeline, protocol_of(tmp_path, scheduler=scheduler), PROMPTS, [0], batch_size=1))
