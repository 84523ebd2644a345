"""SDXL: our pictures are those of diffusers' own pipeline, called alone; the whole path of a card."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands.plan_cost import plan
from pytest_sdbench.evaluation.sampler import image_seed
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.counts import component_sizes, unet_macs
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.protocol import Protocol
from tests.evaluation import helpers
from tests.evaluation.helpers import SEQUENTIAL, own_protocol, sample
from tests.project import IMAGES, make_card, make_project, make_protocol
from tests.tiny_checkpoint import make_xl_checkpoint

PROMPTS = tuple(f"red and blue {number}" for number in range(8))
SCALES = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.5, 1.0, 2.0]}

pytestmark = pytest.mark.usefixtures("one_thread")

protocol_of = partial(own_protocol, n=8)
assert_same_pictures = partial(helpers.assert_same_pictures, above=0, rarely=0.01, most=2)


@pytest.fixture(scope="module")
def pipeline(pristine_xl: Path) -> Any:
    return load_pipeline(resolve(str(pristine_xl)))


def draw(pipeline: Any, protocol: Protocol, indices: list[int], size: int = 1) -> np.ndarray:
    return np.concatenate(
        [each.images for each in sample(pipeline, protocol, PROMPTS, indices, batch_size=size)]
    )


def alone(folder: Path, indices: list[int], **options: Any) -> np.ndarray:
    """Return what diffusers' pipeline draws, loaded and called without this package."""
    dtype = options.pop("dtype", torch.float32)
    theirs = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=dtype, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.watermark = options.pop("watermark", None)
    # torch multiplies a matrix that may learn another way, even where nothing does.
    theirs.unet.requires_grad_(False)
    if scheduler := options.pop("scheduler", None):
        theirs.scheduler = scheduler.from_config(theirs.scheduler.config)
    common = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 64, "width": 64} | options
    made = []
    for index in indices:
        generator = common.get("generator") or torch.Generator().manual_seed(image_seed(helpers.SEED, index))
        made.append(np.asarray(theirs(PROMPTS[index], **common | {"generator": generator}).images[0]))
    return np.stack(made)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"guidance": 1.0}, {"guidance_scale": 1.0}),
        ({"negative_prompt": "blue"}, {"negative_prompt": "blue"}),
        ({"negative_prompt": ""}, {"negative_prompt": ""}),
        ({"steps": 3, "resolution": 96}, {"num_inference_steps": 3, "height": 96, "width": 96}),
    ],
    ids=str,
)
def test_a_picture_is_that_of_diffusers_own_pipeline_to_the_bit(
    pipeline: Any, pristine_xl: Path, tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    mine = draw(pipeline, protocol_of(tmp_path, **ours), [3, 5])
    np.testing.assert_array_equal(mine, alone(pristine_xl, [3, 5], **theirs))
    assert len({picture.tobytes() for picture in mine}) == 2


@pytest.mark.parametrize("zeros", [True, False])
def test_no_negative_prompt_is_what_the_checkpoint_says(tmp_path: Path, zeros: bool) -> None:
    folder = make_xl_checkpoint(tmp_path / "xl", vae=SCALES)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"force_zeros_for_empty_prompt": zeros}))
    pipeline = load_pipeline(resolve(str(folder)))
    none, empty = (draw(pipeline, protocol_of(tmp_path, negative_prompt=text), [1]) for text in (None, ""))
    np.testing.assert_array_equal(none, alone(folder, [1]))
    assert np.array_equal(none, empty) is not zeros


def test_batches_and_order_do_not_matter(pipeline: Any, tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, negative_prompt="blue")
    together = draw(pipeline, protocol, [0, 1, 2, 3, 4], 5)
    assert_same_pictures(together, draw(pipeline, protocol, [0, 1, 2, 3, 4]))
    assert_same_pictures(draw(pipeline, protocol, [4, 1, 3], 2), together[[4, 1, 3]])


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DDIMScheduler])
def test_a_sequential_generator_is_consumed_in_order(
    pipeline: Any, pristine_xl: Path, tmp_path: Path, scheduler: type[Any]
) -> None:
    """These schedulers draw no noise between steps, though they take a generator."""
    protocol = protocol_of(tmp_path, seeds=SEQUENTIAL, scheduler=scheduler.__name__)
    generator = torch.Generator().manual_seed(helpers.SEED)
    theirs = alone(pristine_xl, [0, 1, 2, 3], generator=generator, scheduler=scheduler)
    np.testing.assert_array_equal(draw(pipeline, protocol, [0, 1, 2, 3]), theirs)
    np.testing.assert_array_equal(draw(pipeline, protocol, [2, 3]), theirs[2:])


@pytest.mark.parametrize("upcast", [True, False])
def test_float16_is_decoded_as_its_configuration_says(tmp_path: Path, upcast: bool) -> None:
    folder = make_xl_checkpoint(tmp_path / "xl", vae={"force_upcast": upcast, **SCALES})
    pipeline = load_pipeline(resolve(str(folder)), dtype="float16")
    ours = draw(pipeline, protocol_of(tmp_path, dtype="float16"), [2])
    np.testing.assert_array_equal(ours, alone(folder, [2], dtype=torch.float16))
    assert pipeline.vae.dtype == torch.float16


class Watermark:
    """Stands for what diffusers puts into pictures wherever invisible-watermark is installed."""

    def apply_watermark(self, images: torch.Tensor) -> torch.Tensor:
        return images / 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_pipeline_that_somebody_loaded_with_a_watermark_draws_with_it(
    pristine_xl: Path, tmp_path: Path, dtype: str
) -> None:
    pipeline = load_pipeline(resolve(str(pristine_xl)), dtype=dtype)
    pipeline.watermark = Watermark()
    ours = draw(pipeline, protocol_of(tmp_path, dtype=dtype), [2])
    theirs = alone(pristine_xl, [2], dtype=getattr(torch, dtype), watermark=Watermark())
    np.testing.assert_array_equal(ours, theirs)
    assert pipeline.vae.dtype == getattr(torch, dtype)


def test_a_protocol_of_another_scheduler_is_refused(pipeline: Any, tmp_path: Path) -> None:
    protocol = protocol_of(tmp_path, scheduler={"name": "checkpoint", "must_be": "PNDMScheduler"})
    with pytest.raises(CheckpointError, match=r"the checkpoint's own PNDMScheduler.*EulerDiscreteScheduler"):
        draw(pipeline, protocol, [0])


@pytest.mark.slow
def test_the_card_runs_from_size_to_score(
    pytester: pytest.Pytester, pristine_xl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    card = make_project(pytester.path, pristine_xl)
    scheduler = {"name": "checkpoint", "must_be": "EulerDiscreteScheduler"}
    sampling = {"steps": 2, "guidance": 1.0, "resolution": 64, "dtype": "float32", "scheduler": scheduler}
    make_protocol(card.parent / "protocols" / "mini.yaml", sampling=sampling)
    checkpoint = resolve("./mini-sd", near=card.parent)
    sizes = component_sizes(checkpoint)
    card = make_card(
        card.with_name("mini-xl.md"),
        size={name: {"exact": count} for name, count in sizes.items()},
        compute={"unet_macs": unet_macs(checkpoint.unet_config).total},
        speed={"unet_ratio": {"max": 1e6, "source": "own record"}},
        baseline="mini",
    )
    result = pytester.runpytest("--sdbench", card, "--sdbench-report=r.json")
    assert result.ret == 0
    rows = json.loads((pytester.path / "r.json").read_text(encoding="utf-8"))["results"]
    (score,) = [row for row in rows if row["name"] == "mini-inception_score"]
    assert (score["verdict"], score["n"]) == ("pass", IMAGES)
    assert score["extra"]["checkpoint_fingerprint"] == checkpoint.fingerprint
    (row,) = plan([card], Workspace(pytester.path / "elsewhere")).rows
    assert row.missing == IMAGES
    assert row.seconds is not None
    assert read_card(card).size["text_encoder"].exact == sizes["text_encoder"]
