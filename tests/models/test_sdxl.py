"""A checkpoint with two text encoders: identified, verified, counted and loaded; every damage named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands.plan_downloads import checkpoint_downloads
from pytest_sdbench.models.architectures import SDXL_TEXT_ENCODER_2
from pytest_sdbench.models.changes import changes, describe
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.models.counts import component_sizes, parameter_count, unet_macs
from pytest_sdbench.models.hub import wanted_files
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.models.skeleton import text_encoder_skeleton, unet_skeleton, vae_skeleton
from tests.project import make_card
from tests.tiny_checkpoint import make_xl_checkpoint

WEIGHTS = "text_encoder_2/model.safetensors"
UNET, VAE, TEXT_2 = (f"{name}/config.json" for name in ("unet", "vae", "text_encoder_2"))
Edit = Callable[[Path], object]


@pytest.fixture
def folder(pristine_xl: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(pristine_xl, tmp_path / "xl"))


def keys(file: str, **values: Any) -> Edit:
    """Return what sets keys of a JSON file of a checkpoint."""

    def edit(folder: Path) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], object], file: str = WEIGHTS) -> Edit:
    """Return what changes the tensors of a file of a checkpoint."""

    def edit(folder: Path) -> None:
        found = load_file(folder / file)
        change(found)
        save_file(found, folder / file, metadata={"format": "pt"})

    return edit


def without(name: str) -> Edit:
    return lambda folder: shutil.rmtree(folder / name)


def test_published_sizes_are_counted_at_full_scale() -> None:
    second = parameter_count(text_encoder_skeleton(SDXL_TEXT_ENCODER_2, projected=True))
    assert parameter_count(unet_skeleton("sdxl")) == 2_567_463_684
    assert parameter_count(text_encoder_skeleton()) == 123_060_480
    assert second == 694_659_840
    assert parameter_count(vae_skeleton()) == 83_653_863
    texts = 123_060_480 + second
    whole = 2_567_463_684 + texts + 49_490_179
    expected = {"unet": 2_567_463_684, "text_encoder": texts, "image_decoder": 49_490_179, "whole": whole}
    assert component_sizes("sdxl") == expected


def test_a_checkpoint_is_counted_and_loaded_as_diffusers_does(pristine_xl: Path) -> None:
    theirs = StableDiffusionXLPipeline.from_pretrained(pristine_xl)
    checkpoint = resolve(str(pristine_xl))
    ours = load_pipeline(checkpoint)
    sizes = {
        "unet": theirs.unet.num_parameters(),
        "text_encoder": theirs.text_encoder.num_parameters() + theirs.text_encoder_2.num_parameters(),
        "image_decoder": theirs.vae.decoder.conv_in.weight.numel()
        + sum(value.numel() for value in list(theirs.vae.decoder.parameters())[1:]),
    }
    assert component_sizes(checkpoint) == sizes | {"whole": sum(sizes.values())}
    assert unet_macs(checkpoint.unet_config).total > 0
    assert type(ours) is StableDiffusionXLPipeline
    assert ours.watermark is None
    for name in checkpoint.pipeline.components:
        mine, other = getattr(ours, name), getattr(theirs, name).state_dict()
        assert not mine.training
        assert all(torch.equal(value, other[key]) for key, value in mine.state_dict().items())
    assert not checkpoint.choices


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (tensors(lambda found: found["text_projection.weight"].mul_(2)), "text_encoder_2: 1 of 37 tensors"),
        (keys(TEXT_2, hidden_act="quick_gelu"), "text_encoder_2.hidden_act: quick_gelu, recorded gelu"),
        (
            keys("tokenizer_2/tokenizer_config.json", pad_token="!"),
            "tokenizer_2/tokenizer_config.pad_token",
        ),
        (
            keys("model_index.json", force_zeros_for_empty_prompt=False),
            "pipeline.force_zeros_for_empty_prompt: false",
        ),
        (without("tokenizer_2"), "tokenizer: tokenizer_2/merges.txt is missing"),
    ],
    ids=["weights", "configuration", "tokenizer", "pipeline", "vocabulary"],
)
def test_all_that_draws_is_in_the_fingerprint_and_told(
    pristine_xl: Path, folder: Path, edit: Edit, says: str
) -> None:
    before = Checkpoint("before", pristine_xl)
    assert Checkpoint("copy", folder).fingerprint == before.fingerprint
    edit(folder)
    after = Checkpoint("after", folder)
    assert after.fingerprint != before.fingerprint
    for known in (before, describe(before)):
        assert any(says in line for line in changes(after, known))


def test_what_else_may_differ_is_told_of_sd_v1(pristine_xl: Path, pristine_checkpoint: Path) -> None:
    xl, sd = Checkpoint("xl", pristine_xl), Checkpoint("sd", pristine_checkpoint)
    for ours, theirs in ((xl, sd), (sd, xl)):
        for known in (theirs, describe(theirs)):
            assert any(line.startswith("text_encoder_2.hidden_size: ") for line in changes(ours, known))


def swapped(name: str) -> Edit:
    """Return what gives a component the weights and the configuration of another one."""

    def edit(folder: Path) -> None:
        shutil.rmtree(folder / name)
        shutil.copytree(folder / "text_encoder", folder / name)

    return edit


REFINER = {
    "_class_name": "StableDiffusionXLImg2ImgPipeline",
    "text_encoder": [None, None],
    "tokenizer": [None, None],
    "requires_aesthetics_score": True,
}
CASES: dict[str, tuple[Edit, str]] = {
    "missing": (tensors(lambda found: found.pop("text_projection.weight")), "missing tensor"),
    "nan": (tensors(lambda found: found["text_projection.weight"].fill_(torch.nan)), "NaN or infinity"),
    "extra": (tensors(lambda found: found.update(a=torch.ones(1))), "a tensor that the network does not"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no weights of the text_encoder_2"),
    "shape": (keys(TEXT_2, intermediate_size=8), "configuration and tensors disagree"),
    "layers": (keys(TEXT_2, num_hidden_layers=10**6), "layers, and at most"),
    "class": (
        keys("model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]),
        "Only checkpoints with a CLIPTextModelWithProjection",
    ),
    "first for second": (swapped("text_encoder_2"), r"text_projection.weight"),
    "no second tokenizer": (without("tokenizer_2"), "no vocabulary"),
    "length": (keys("tokenizer_2/tokenizer_config.json", model_max_length=99), "no length of prompts"),
    "adapter": (
        lambda folder: (folder / "text_encoder_2" / "adapter_config.json").write_text("{}"),
        "an adapter on the text_encoder_2",
    ),
    "refiner": (
        lambda folder: (
            without("text_encoder")(folder),
            without("tokenizer")(folder),
            keys("model_index.json", **REFINER)(folder),
        ),
        "StableDiffusionXLImg2ImgPipeline, which is not supported.*it has no text_encoder, tokenizer",
    ),
    "one text encoder": (
        lambda folder: (
            without("text_encoder")(folder),
            keys("model_index.json", text_encoder=[None, None])(folder),
        ),
        "StableDiffusionXLPipeline, which is not supported.*it has no text_encoder",
    ),
    "controlnet": (
        keys("model_index.json", controlnet=["diffusers", "ControlNetModel"]),
        "it has controlnet",
    ),
    "zeros": (keys("model_index.json", force_zeros_for_empty_prompt="yes"), "not true or false"),
    "other inputs": (keys(UNET, addition_embed_type=None), "other inputs than those of a StableDiffusionXL"),
    "width of sizes": (
        keys(UNET, addition_time_embed_dim=None),
        "addition_time_embed_dim: no width of SDXL's",
    ),
    "width of all": (
        keys(UNET, projection_class_embeddings_input_dim=12),
        r"projection_class_embeddings_input_dim: no width of SDXL's.*found 12\)",
    ),
    "mean": (keys(VAE, latents_mean=[0.0]), "latents_mean.*not a number for each channel"),
    "deviation": (keys(VAE, latents_std=[0, 1, 2, float("nan")]), "latents_std.*not a number for each"),
    "words for numbers": (keys(VAE, latents_mean=[True, 0, 0, 0]), "latents_mean.*not a number for each"),
    "no deviation": (keys(VAE, latents_std=[1, 1, 0, 1]), "latents_std.*not above zero"),
    "upcast": (keys(VAE, force_upcast="no"), "force_upcast: not true or false"),
    "called none": (
        keys("model_index.json", text_encoder_2=[None, None], tokenizer_2=[None, None]),
        "not supported.*it has no text_encoder_2, tokenizer_2",
    ),
}


@pytest.mark.parametrize(("damage", "says"), CASES.values(), ids=CASES)
def test_damage_and_other_pipelines_are_named(folder: Path, damage: Edit, says: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_pipeline(resolve(str(folder)))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("unet", "says"),
    [
        ({"in_channels": 9}, "other inputs than latents and text.*inpainting"),
        (
            {"cross_attention_dim": 24},
            r"24, but text_encoder.hidden_size \+ text_encoder_2.hidden_size is 40",
        ),
        ({"projection_class_embeddings_input_dim": 32}, "32, but text_encoder_2.projection_dim.* is 36"),
    ],
    ids=["inpainting", "text", "pooled"],
)
def test_a_u_net_of_another_task_or_family_is_refused(
    tmp_path: Path, unet: dict[str, Any], says: str
) -> None:
    folder = make_xl_checkpoint(tmp_path / "other", unet=unet)
    with pytest.raises(CheckpointError, match=says):
        verify(resolve(str(folder)))


@pytest.mark.parametrize("variant", ["fp16", None])
def test_other_forms_of_the_weights_are_the_same_networks(
    tmp_path: Path, pristine_xl: Path, variant: str | None
) -> None:
    options = {"variant": variant} if variant else {"safe_serialization": False}
    folder = make_xl_checkpoint(tmp_path / "form", **options)
    lines = changes(resolve(str(folder)), resolve(str(pristine_xl)))
    assert all("other files with the same" in line for line in lines)
    verify(resolve(str(folder)))


def test_a_student_with_fewer_blocks_stands_on_its_teachers_other_parts(
    tmp_path: Path, pristine_xl: Path, pristine_checkpoint: Path
) -> None:
    fewer = {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)}
    student = make_xl_checkpoint(tmp_path / "student", unet=fewer)
    spec = {"base": str(pristine_xl), "unet": str(student / "unet")}
    pair = resolve(spec)
    assert pair.fingerprint == resolve(str(student)).fingerprint
    assert pair.fingerprint == resolve(str(pristine_xl), weights=student / "unet").fingerprint
    verify(pair)
    whole = component_sizes(resolve(str(pristine_xl)))
    assert component_sizes(pair)["unet"] < whole["unet"]
    assert component_sizes(pair)["text_encoder"] == whole["text_encoder"]
    for base, unet in ((pristine_checkpoint, student), (pristine_xl, pristine_checkpoint)):
        with pytest.raises(CheckpointError, match="a U-Net with other inputs than those of a Stable"):
            verify(resolve({"base": str(base), "unet": str(unet / "unet")}))


def test_a_single_file_is_to_be_converted(pristine_xl: Path, tmp_path: Path) -> None:
    save_file({"conditioner.embedders.0.a": torch.ones(1)}, tmp_path / "xl.safetensors")
    with pytest.raises(CheckpointError, match=r"SDXL.*StableDiffusionXLPipeline\.from_single_file"):
        resolve(str(pristine_xl), weights=tmp_path / "xl.safetensors")


def test_the_hub_is_asked_for_all_that_is_loaded_and_for_no_more(pristine_xl: Path, tmp_path: Path) -> None:
    files = sorted(path.relative_to(pristine_xl).as_posix() for path in pristine_xl.rglob("*.*"))
    components = ("unet", "text_encoder", "vae")
    assert sorted(wanted_files([*files, "sd_xl_base_1.0.safetensors"], components)) == files
    # The refiner has no first text encoder: what its index says is told, and not fetched further.
    without_first = [name for name in files if not name.startswith("text_encoder/")]
    assert wanted_files(without_first, components) == ["model_index.json"]
    card = make_card(
        tmp_path / "xl.md", claims={}, protocols=["scenes-quick"], checkpoint="org/xl", architecture="sdxl"
    )
    (download,) = checkpoint_downloads(read_card(card))
    assert download.size == 4 * (2_567_463_684 + 123_060_480 + 694_659_840 + 83_653_863)
