"""Parameters and multiply-accumulates against published figures, diffusers' own count, and sums by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.counts import component_sizes, unet_macs
from pytest_sdbench.models.skeleton import unet_inputs, unet_skeleton
from tests.tiny_checkpoint import UNET

COMMON = {"text_encoder": 123_060_480, "image_decoder": 49_490_179}
EXACT = {
    "sd-v1": (859_520_964, 1_032_071_623),
    "bk-sdm-base": (579_384_964, 751_935_623),
    "bk-sdm-small": (482_346_884, 654_897_543),
    "bk-sdm-tiny": (323_384_964, 495_935_623),
    "bk-sdm-tiny-lcm": (323_466_884, 496_017_543),
}
"""Parameters of the U-Net, and of the whole."""
PUBLISHED = {
    "sd-v1": (401.6e9, 338.6e9),
    "bk-sdm-base": (261.5e9, 223.7e9),
    "bk-sdm-small": (255.4e9, 217.6e9),
    "bk-sdm-tiny": (242.8e9, 205.0e9),
}
"""Multiply-accumulates of a call: all, and those of convolutions and linear layers."""


@pytest.mark.parametrize("name", EXACT)
def test_counts_are_exactly_those_of_the_published_networks(name: str) -> None:
    unet, whole = EXACT[name]
    assert component_sizes(name) == {"unet": unet, **COMMON, "whole": whole}


def test_a_checkpoint_is_counted_as_diffusers_counts_it(pristine_checkpoint: Path) -> None:
    vae = AutoencoderKL.from_pretrained(pristine_checkpoint / "vae")
    other = (vae.encoder, vae.quant_conv, vae.post_quant_conv)
    expected = {
        "unet": UNet2DConditionModel.from_pretrained(pristine_checkpoint / "unet").num_parameters(),
        "text_encoder": CLIPTextModel.from_pretrained(pristine_checkpoint / "text_encoder").num_parameters(),
        "image_decoder": vae.num_parameters() - sum(p.numel() for part in other for p in part.parameters()),
    }
    sizes = component_sizes(resolve(str(pristine_checkpoint)))
    assert sizes == expected | {"whole": sum(expected.values())}


def test_a_u_net_that_does_not_fit_the_text_encoder_is_counted_alone() -> None:
    assert component_sizes(UNET) == {"unet": UNet2DConditionModel(**UNET).num_parameters()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_macs_are_the_published_ones_within_a_thousandth(name: str) -> None:
    macs = unet_macs(name)
    assert (macs.total, macs.conv_linear) == pytest.approx(PUBLISHED[name], rel=1e-3)


def test_attention_is_the_sum_made_by_hand_of_both_products_of_every_attention() -> None:
    # (attentions, positions, channels) of each level; 77 tokens of text.
    levels = [(5, 64 * 64, 320), (5, 32 * 32, 640), (5, 16 * 16, 1280), (1, 8 * 8, 1280)]
    macs = unet_macs("sd-v1")
    by_hand = sum(n * 2 * positions * channels * (positions + 77) for n, positions, channels in levels)
    assert macs.total - macs.conv_linear == by_hand


@pytest.mark.slow
def test_fused_attention_really_run_counts_the_same() -> None:
    model, inputs = unet_skeleton(UNET, device="cpu"), unet_inputs(UNET, device="cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    assert "scaled_dot_product" in " ".join(map(str, counter.get_flop_counts()["Global"]))
    assert unet_macs(UNET).total == counter.get_total_flops() // 2


@pytest.mark.slow
def test_the_latent_size_of_the_configuration_is_used() -> None:
    small, large = unet_macs(UNET), unet_macs(UNET | {"sample_size": 16})
    assert large.conv_linear > 3 * small.conv_linear


def test_an_sdxl_u_net_is_counted_at_full_size() -> None:
    # (attentions, positions, channels) of each level, the middle and both ways; 77 tokens of text.
    levels = [(2 * 2 + 3 * 2, 64 * 64, 640), (2 * 10 + 10 + 3 * 10, 32 * 32, 1280)]
    macs = unet_macs("sdxl")
    by_hand = sum(n * 2 * positions * channels * (positions + 77) for n, positions, channels in levels)
    assert macs.total - macs.conv_linear == by_hand


XL = UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
}


def test_a_network_that_is_told_sizes_and_a_pooled_text_can_be_called() -> None:
    inputs = unet_inputs(XL, device="cpu", batch=2)
    assert {key: tuple(value.shape) for key, value in inputs["added_cond_kwargs"].items()} == {
        "text_embeds": (2, 40 - 6 * 4),
        "time_ids": (2, 6),
    }
    assert unet_skeleton(XL, device="cpu")(**inputs).sample.shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"projection_class_embeddings_input_dim": 24}, "no width of SDXL"),
        ({"addition_time_embed_dim": None}, "no width of SDXL"),
        ({"addition_embed_type": "image"}, "only U-Nets conditioned on text"),
    ],
    ids=str,
)
def test_other_widths_and_conditions_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(CardError, match=says):
        unet_inputs(XL | change)
