"""What is removed of the teacher is what its students lack, and one word of a caption is exchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from benchmarks.family import blocks
from benchmarks.family.reading import told
from pytest_sdbench.protocols import scenes
from tests.tiny_checkpoint import UNET
from training.students.networks import Parts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher() -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return noisy, torch.tensor([30, 700]), states


@torch.no_grad()
def predicted(unet: Any) -> torch.Tensor:
    found: torch.Tensor = unet(*inputs()).sample
    return found


def smaller(teacher: Any, **changes: Any) -> Any:
    """Return a U-Net of another configuration with the teacher's weights, in diffusers' own words."""
    levels = len(UNET["block_out_channels"]) - len(
        changes.get("block_out_channels", UNET["block_out_channels"])
    )
    unet = UNet2DConditionModel(**UNET | changes).eval()
    weights = {}
    for name in unet.state_dict():
        block, _, rest = name.partition(".")
        number, _, within = rest.partition(".")
        source = f"up_blocks.{int(number) + levels}.{within}" if block == "up_blocks" else name
        weights[name] = teacher.state_dict()[source]
    unet.load_state_dict(weights)
    return unet


def test_without_the_mid_block_is_a_unet_that_has_none(teacher: Any) -> None:
    whole = predicted(teacher)
    with blocks.without_mid(teacher):
        found = predicted(teacher)
    torch.testing.assert_close(found, predicted(smaller(teacher, mid_block_type=None)))
    assert not torch.equal(found, whole)
    assert torch.equal(predicted(teacher), whole), "the teacher is as it was"


def test_without_the_innermost_level_is_a_unet_of_three_levels(teacher: Any) -> None:
    whole = predicted(teacher)
    with blocks.without_level(teacher):
        found = predicted(teacher)
    three = smaller(
        teacher,
        mid_block_type=None,
        down_block_types=UNET["down_block_types"][:3],
        up_block_types=UNET["up_block_types"][1:],
        block_out_channels=UNET["block_out_channels"][:3],
    )
    torch.testing.assert_close(found, predicted(three))
    assert torch.equal(predicted(teacher), whole)


def test_a_silenced_last_block_leaves_what_the_output_layer_makes_of_nothing(teacher: Any) -> None:
    with blocks.silenced(teacher, "up_blocks.3"):
        found = predicted(teacher)
    # Normalised zeros are the layer's own offset, the same at every place but the border.
    inner = found[:, :, 1:-1, 1:-1]
    assert torch.allclose(inner, inner[:1, :, :1, :1], atol=1e-6)


def without_objects(caption: str) -> str:
    for name, colour in told(caption):
        caption = caption.replace(f"{colour} {name}", "it", 1)
    return caption


@pytest.mark.parametrize("what", ["name", "colour"])
def test_one_word_is_exchanged_and_all_else_stays(what: Any) -> None:
    place = ("name", "colour").index(what)
    for index in range(600):
        one = scenes.scene(index)
        before, after = told(one.caption), told(blocks.exchanged(one, what))
        assert len(before) == len(after), one.caption
        changed = [(mine, other) for mine, other in zip(before, after, strict=True) if mine != other]
        assert len(changed) == 1, one.caption
        mine, other = changed[0]
        assert mine[1 - place] == other[1 - place]
        assert without_objects(one.caption) == without_objects(blocks.exchanged(one, what))


def test_everything_is_measured_over_timesteps(parts: Parts) -> None:
    rows = blocks.measure(parts, scenes.EVALUATION[:2])
    assert {row["kind"] for row in rows} == {"silenced", "removed", "exchanged"}
    assert len(rows) == len(blocks.BLOCKS) + len(blocks.REMOVED) + len(blocks.EXCHANGED)
    assert all(len(row["bands"]) == len(blocks.BANDS) for row in rows)
    assert all(share > 0 for row in rows for share in (row["all"], *row["bands"]))
    text = blocks.report(rows, 8, 2)
    assert "1 x 1" in text
    assert blocks.REMOVED["level"] in text
