"""Multiply-accumulates against the published figures and counts made by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pytest_sdbench.models.counts import unet_macs
from pytest_sdbench.models.skeleton import unet_inputs, unet_skeleton
from tests.tiny_checkpoint import UNET

PUBLISHED = {
    "sd-v1": (401.6e9, 338.6e9),
    "bk-sdm-base": (261.5e9, 223.7e9),
    "bk-sdm-small": (255.4e9, 217.6e9),
    "bk-sdm-tiny": (242.8e9, 205.0e9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_macs_are_the_published_ones_within_a_thousandth(name: str) -> None:
    macs = unet_macs(name)
    assert (macs.total, macs.conv_linear) == pytest.approx(PUBLISHED[name], rel=1e-3)


def attention_by_hand(levels: list[tuple[int, int, int]], tokens: int = 77) -> int:
    """Sum over (attentions, positions, channels) both products, of self-attention and of cross-attention."""
    return sum(n * 2 * positions * channels * (positions + tokens) for n, positions, channels in levels)


def test_attention_is_the_sum_made_by_hand_of_both_products_of_every_attention() -> None:
    macs = unet_macs("sd-v1")
    levels = [(5, 64 * 64, 320), (5, 32 * 32, 640), (5, 16 * 16, 1280), (1, 8 * 8, 1280)]
    assert macs.total - macs.conv_linear == attention_by_hand(levels)


def test_fused_attention_really_run_counts_the_same() -> None:
    model, inputs = unet_skeleton(UNET, device="cpu"), unet_inputs(UNET, device="cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    assert "scaled_dot_product" in " ".join(map(str, counter.get_flop_counts()["Global"]))
    assert unet_macs(UNET).total == counter.get_total_flops() // 2


def test_the_latent_size_of_the_configuration_is_used() -> None:
    small, large = unet_macs(UNET), unet_macs(UNET | {"sample_size": 16})
    assert large.conv_linear > 3 * small.conv_linear
