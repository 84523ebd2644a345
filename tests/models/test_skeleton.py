"""Networks without trained weights."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from pytest_sdbench.base.errors import CardError
from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.models.skeleton import architecture_key, unet_inputs, unet_skeleton
from tests.tiny_checkpoint import UNET


def test_a_skeleton_computes_finite_numbers_of_ordinary_size() -> None:
    model = unet_skeleton(UNET, device="cpu")
    with torch.inference_mode():
        output = model(**unet_inputs(UNET, device="cpu")).sample
    assert output.shape == (1, 4, 8, 8)
    assert output.isfinite().all()
    assert 1e-3 < float(output.std()) < 1e3
    assert not model.training
    # Weights are small and random, norms do not scale.
    assert float(model.conv_in.weight.std()) == pytest.approx(0.02, rel=0.2)
    assert torch.equal(model.conv_norm_out.weight, torch.ones(8))
    assert torch.equal(model.conv_in.bias, torch.zeros(8))


def test_a_weight_larger_than_the_pool_is_filled_to_its_end() -> None:
    wide = {
        "block_out_channels": (192, 384),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "cross_attention_dim": 16,
    }
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = unet_skeleton(wide | blocks | {"sample_size": 8}, device="cpu")
    large = [p for p in model.parameters() if p.numel() > 1_000_003]
    assert large
    assert all(float(p.reshape(-1)[-1000:].std()) == pytest.approx(0.02, rel=0.2) for p in large)


def test_meta_takes_no_storage_and_dtype_is_kept() -> None:
    assert unet_skeleton("sd-v1").conv_in.weight.is_meta
    assert unet_skeleton(UNET, device="cpu", dtype=torch.bfloat16).conv_in.weight.dtype == torch.bfloat16


def test_a_skeleton_is_freed_with_its_last_reference() -> None:
    model = unet_skeleton(UNET, device="cpu")
    alive = weakref.ref(model.conv_in.weight)
    del model
    assert alive() is None


def test_inputs_follow_the_configuration() -> None:
    shapes = {name: tuple(value.shape) for name, value in unet_inputs("bk-sdm-tiny-lcm").items()}
    assert shapes == {
        "sample": (1, 4, 64, 64),
        "encoder_hidden_states": (1, 77, 768),
        "timestep_cond": (1, 256),
        "timestep": (1,),
    }
    rectangular = unet_inputs(UNET | {"sample_size": (8, 16), "in_channels": 9})
    assert rectangular["sample"].shape == (1, 9, 8, 16)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("sd-v9", r"sdbench\.architecture: .*found 'sd-v9'.*bk-sdm-tiny"),
        ({"block_out_chanels": (8, 8)}, r"sdbench\.architecture\.block_out_chanels"),
        (UNET | {"block_out_channels": (8, 8)}, "not a configuration of UNet2DConditionModel"),
        (UNET | {"norm_num_groups": 7}, "not a configuration of UNet2DConditionModel"),
        (UNET | {"down_block_types": ("Nothing",) * 4}, "not a configuration of UNet2DConditionModel"),
    ],
    ids=["name", "key", "lengths", "groups", "block"],
)
def test_an_impossible_architecture_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(CardError, match=message):
        unet_skeleton(wrong)


def test_other_conditioning_than_text_is_refused() -> None:
    with pytest.raises(CardError, match="addition_embed_type"):
        unet_inputs(UNET | {"addition_embed_type": "image"})


def test_the_key_of_an_architecture_ignores_notes_defaults_and_sequence_types() -> None:
    tiny = dict(ARCHITECTURES["bk-sdm-tiny"])
    saved = tiny | {"_diffusers_version": "0.19.3", "block_out_channels": [320, 640, 1280], "dropout": 0.0}
    assert architecture_key(saved) == architecture_key("bk-sdm-tiny")
    assert architecture_key(tiny | {"attention_head_dim": 5}) != architecture_key("bk-sdm-tiny")
    assert len({architecture_key(name) for name in ARCHITECTURES}) == len(ARCHITECTURES)
