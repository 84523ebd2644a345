"""Parameter counts against the published networks and diffusers' own count."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.counts import component_sizes
from tests.tiny_checkpoint import UNET

TEXT_ENCODER, IMAGE_DECODER = 123_060_480, 49_490_179
EXACT = {
    "sd-v1": (859_520_964, 1_032_071_623),
    "bk-sdm-base": (579_384_964, 751_935_623),
    "bk-sdm-small": (482_346_884, 654_897_543),
    "bk-sdm-tiny": (323_384_964, 495_935_623),
    "bk-sdm-tiny-lcm": (323_466_884, 496_017_543),
}


@pytest.mark.parametrize("name", EXACT)
def test_counts_are_exactly_those_of_the_published_networks(name: str) -> None:
    unet, whole = EXACT[name]
    assert component_sizes(name) == {
        "unet": unet,
        "text_encoder": TEXT_ENCODER,
        "image_decoder": IMAGE_DECODER,
        "whole": whole,
    }


def test_a_checkpoint_is_counted_as_diffusers_counts_it(pristine_checkpoint: Path) -> None:
    sizes = component_sizes(resolve(str(pristine_checkpoint)))
    vae = AutoencoderKL.from_pretrained(pristine_checkpoint / "vae")
    expected = {
        "unet": UNet2DConditionModel.from_pretrained(pristine_checkpoint / "unet").num_parameters(),
        "text_encoder": CLIPTextModel.from_pretrained(pristine_checkpoint / "text_encoder").num_parameters(),
        "image_decoder": vae.num_parameters()
        - sum(
            p.numel()
            for part in (vae.encoder, vae.quant_conv, vae.post_quant_conv)
            for p in part.parameters()
        ),
    }
    assert sizes == expected | {"whole": sum(expected.values())}


def test_a_u_net_that_does_not_fit_the_text_encoder_is_counted_alone() -> None:
    assert component_sizes(UNET) == {"unet": UNet2DConditionModel(**UNET).num_parameters()}


def test_an_unknown_architecture_is_an_error() -> None:
    with pytest.raises(CardError, match="unknown architecture"):
        component_sizes("nothing")
