"""Students by block removal: counts and sources of all tensors, and what a saved student is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.models.skeleton import architecture_key, unet_skeleton
from tests.tiny_checkpoint import UNET
from training.errors import TrainingError
from training.students.block_removal import GUIDANCE_TENSOR, account, build_student, mapping, student_config

SD_V1 = ARCHITECTURES["sd-v1"]
SD_V2: dict[str, Any] = {
    **SD_V1,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
NARROW: dict[str, Any] = {**SD_V1, "block_out_channels": [24, 48, 80, 80], "norm_num_groups": 8}

PUBLISHED = {"none": (859_520_964, 686), "base": (579_384_964, 442), "small": (482_346_884, 396)}
PUBLISHED["tiny"] = (323_384_964, 358)
REMOVED: tuple[Any, ...] = ("base", "small", "tiny")


def expected_sources(teacher: list[str], remove: str) -> dict[str, str]:
    """Go through the teacher's tensors and say where each one is to be in the student, if anywhere."""
    found = {}
    for source in teacher:
        place: list[str] = source.split(".")
        kind = place[2] if len(place) > 2 else ""
        if kind in ("resnets", "attentions") and place[0] in ("down_blocks", "up_blocks"):
            if place[3] == "1":
                continue
            if place[3] == "2":
                place[3] = "1"
        if place[0] == "mid_block" and remove in ("small", "tiny"):
            continue
        if remove == "tiny":
            if source.startswith(("down_blocks.3.", "up_blocks.0.", "down_blocks.2.downsamplers.")):
                continue
            if place[0] == "up_blocks":
                place[1] = str(int(place[1]) - 1)
        found[".".join(place)] = source
    return found


@pytest.mark.parametrize(
    "teacher",
    [SD_V1, *(pytest.param(other, marks=pytest.mark.slow) for other in (SD_V2, NARROW, UNET))],
    ids=["v1", "v2", "narrow", "tiny"],
)
def test_every_tensor_comes_from_its_own_teacher_tensor(teacher: dict[str, Any]) -> None:
    have = {name: tuple(value.shape) for name, value in unet_skeleton(teacher).state_dict().items()}
    for remove in REMOVED:
        student = unet_skeleton(student_config(teacher, remove))
        need = {name: tuple(value.shape) for name, value in student.state_dict().items()}
        sources = mapping(teacher, remove)
        assert sources == expected_sources(list(have), remove), remove
        assert sources.keys() == need.keys(), remove
        assert len(set(sources.values())) == len(sources), remove
        assert {name: have[source] for name, source in sources.items()} == need, remove


@pytest.mark.parametrize("remove", PUBLISHED)
def test_full_size_students_are_configured_and_counted_as_the_published_ones(remove: Any) -> None:
    student = unet_skeleton(student_config(SD_V1, remove))
    counts = [weight.numel() for weight in student.parameters()]
    assert (sum(counts), len(counts)) == PUBLISHED[remove]
    name = "sd-v1" if remove == "none" else f"bk-sdm-{remove}"
    assert architecture_key(student_config(SD_V1, remove)) == architecture_key(name)


def test_full_size_consistency_student_has_the_published_count() -> None:
    tiny = student_config(SD_V1, "tiny")
    config = student_config(tiny, "none", guidance_embedding=256)
    counts = [weight.numel() for weight in unet_skeleton(config).parameters()]
    assert (sum(counts), len(counts)) == (323_466_884, 359)
    assert set(unet_skeleton(config).state_dict()) - set(mapping(tiny, "none", guidance_embedding=256)) == {
        GUIDANCE_TENSOR
    }
    assert mapping(config, "none")[GUIDANCE_TENSOR] == GUIDANCE_TENSOR, "fine-tuned, it keeps what it learned"


def test_v2_heads_are_cut_with_their_levels() -> None:
    assert student_config(SD_V2, "tiny")["attention_head_dim"] == [5, 10, 20]
    assert student_config(SD_V2, "base")["attention_head_dim"] == [5, 10, 20, 20]


def test_a_configuration_of_the_hub_may_leave_the_mid_block_out() -> None:
    """Files saved by early diffusers, as that of SD v1.4, do not have the key."""
    old = {key: value for key, value in SD_V1.items() if key != "mid_block_type"}
    old |= {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2"}
    assert mapping(old, "small") == mapping(SD_V1, "small")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remove", "linear"), [("base", False), ("small", False), ("tiny", False), ("tiny", True)]
)
def test_saved_student_loads_and_computes_the_same(remove: Any, linear: bool, tmp_path: Any) -> None:
    heads: Any = [1, 2, 4, 4] if linear else 2
    torch.manual_seed(0)
    teacher = UNet2DConditionModel(**UNET | {"use_linear_projection": linear, "attention_head_dim": heads})
    student = build_student(teacher, remove).eval()
    student.save_pretrained(tmp_path)
    loaded, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 7, 16)
    with torch.no_grad():
        ours, theirs = student(*inputs).sample, loaded.eval()(*inputs).sample
    torch.testing.assert_close(ours, theirs)  # to rounding: the two lie differently in memory
    for name, source in expected_sources(list(teacher.state_dict()), remove).items():
        assert torch.equal(loaded.state_dict()[name], teacher.state_dict()[source]), name


def test_random_students_follow_their_seed_and_leave_the_generator_alone() -> None:
    teacher = UNet2DConditionModel(**UNET)
    before = torch.get_rng_state()
    first, again, other = (build_student(teacher, "tiny", init="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv_in.weight, again.conv_in.weight)
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)
    assert not torch.equal(first.conv_in.weight, teacher.conv_in.weight)


def test_a_half_teacher_gives_a_float32_student() -> None:
    teacher = UNet2DConditionModel(**UNET).half()
    student = build_student(teacher, "small")
    assert {weight.dtype for weight in student.parameters()} == {torch.float32}
    assert torch.equal(student.conv_in.weight, teacher.conv_in.weight.float())


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3]}, "down_block_types"),
        ({"layers_per_block": 1}, "layers_per_block"),
        ({"mid_block_type": None}, "mid_block_type"),
        ({"up_block_types": ["CrossAttnUpBlock2D"] * 3}, "up_block_types"),
    ],
)
def test_unknown_topology_is_refused_by_its_key(change: dict[str, Any], key: str) -> None:
    with pytest.raises(TrainingError, match=f"{key}.*topology of Stable Diffusion v1 and v2"):
        student_config(SD_V1 | change, "tiny")


def test_widths_that_do_not_meet_are_refused_for_tiny() -> None:
    with pytest.raises(TrainingError, match="last two widths"):
        mapping({**NARROW, "block_out_channels": [24, 48, 80, 96]}, "tiny")


def test_account_names_what_went_and_where_the_rest_came_from() -> None:
    lines = account(SD_V1, "tiny").splitlines()
    removed = {line.split()[1] for line in lines if line.startswith("removed")}
    assert {"mid_block", "down_blocks.2.downsamplers.0", "down_blocks.3.resnets.0"} <= removed
    assert {"up_blocks.0.upsamplers.0", "up_blocks.1.attentions.1", "down_blocks.0.resnets.1"} <= removed
    assert not any(name.endswith("downsamplers.0") for name in removed - {"down_blocks.2.downsamplers.0"})
    kept = [line.split() for line in lines if line.startswith("kept")]
    assert ["kept", "up_blocks.0.resnets.1", "from", "up_blocks.1.resnets.2"] in kept
    assert ["kept", "down_blocks.2.resnets.0", "as", "it", "is"] in kept
    tensors = sum(int(line.split()[2]) for line in lines if line.startswith("removed"))
    assert tensors == 686 - 358
