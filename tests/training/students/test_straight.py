"""A straight start: every level passes pictures on, and says something from the first step."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from tests.tiny_checkpoint import UNET
from training.students.straight import straighten


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    network = UNet2DConditionModel(**UNET).requires_grad_(False).eval()
    straighten(network)
    return network


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    return noisy, torch.tensor([10, 700]), torch.randn(2, 7, 16, generator=generator)


def test_down_blocks_take_means_of_four_pixels(unet: UNet2DConditionModel) -> None:
    picture = torch.randn(2, 8, 8, 8)
    after, _ = unet.down_blocks[0](picture, torch.randn(2, 32), torch.randn(2, 7, 16))
    torch.testing.assert_close(after, functional.avg_pool2d(picture, 2))


def test_the_mid_block_changes_nothing(unet: UNet2DConditionModel) -> None:
    picture = torch.randn(2, 16, 1, 1)
    after = unet.mid_block(picture, torch.randn(2, 32), encoder_hidden_states=torch.randn(2, 7, 16))
    torch.testing.assert_close(after, picture)


def test_up_blocks_take_the_mean_of_what_comes_and_all_skips_and_repeat_pixels(
    unet: UNet2DConditionModel,
) -> None:
    picture, skips = torch.randn(2, 16, 2, 2), tuple(torch.randn(2, 16, 2, 2) for _ in range(3))
    mean = torch.stack([picture, *skips]).mean(0)
    after = unet.up_blocks[0](picture, skips, torch.randn(2, 32))
    torch.testing.assert_close(after, functional.interpolate(mean, scale_factor=2.0))


def test_what_the_innermost_level_sees_reaches_the_prediction(unet: UNet2DConditionModel) -> None:
    usual, (noisy, steps, text) = unet(*inputs()).sample, inputs()
    unet.mid_block.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    changed = unet(noisy, steps, text).sample
    # A thirteenth of the prediction comes this way, and says one number for 64 positions.
    assert (usual - changed).var() > 1e-5 * usual.var()


def test_a_unet_without_a_mid_block_begins_straight_too() -> None:
    network = UNet2DConditionModel(**{**UNET, "mid_block_type": None}).requires_grad_(False).eval()
    straighten(network)
    assert network(*inputs()).sample.isfinite().all()
