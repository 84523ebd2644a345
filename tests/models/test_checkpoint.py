"""Checkpoints: found, verified, identified, loaded; every damage named."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.models import specs
from pytest_sdbench.models.access import forbidden
from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.models.changes import describe
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.models.integrity import check_component, verify
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.models.skeleton import unet_skeleton
from pytest_sdbench.models.weights import find_weights
from tests.tiny_checkpoint import make_checkpoint

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def edit_weights(file: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def error_of(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load_pipeline(resolve(str(folder)))
    assert caught.value.remedy, "every error says what to do"
    return caught.value


def draw(pipeline: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    images = pipeline("red and blue", num_inference_steps=2, generator=generator, output_type="np").images
    return np.asarray(images)


# --- an untouched checkpoint ----------------------------------------------------------------------


def test_a_whole_checkpoint_is_loaded_silently_and_draws_what_diffusers_own_loader_draws(
    pristine_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = load_pipeline(resolve(str(pristine_checkpoint)))
    assert capfd.readouterr() == ("", "")
    theirs = StableDiffusionPipeline.from_pretrained(pristine_checkpoint, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(draw(ours), draw(theirs))
    assert ours.safety_checker is None
    assert ours.progress_bar(range(1)).disable
    assert type(ours.scheduler).__name__ == "PNDMScheduler"
    assert ours.scheduler.config.skip_prk_steps
    assert not any(model.training for model in (ours.unet, ours.text_encoder, ours.vae))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16], ids=["name", "object"])
def test_networks_are_loaded_in_the_dtype(pristine_checkpoint: Path, dtype: Any) -> None:
    pipeline = load_pipeline(resolve(str(pristine_checkpoint)), dtype=dtype)
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [{"variant": "fp16", "dtype": "float16"}, {"safe_serialization": False}, {"max_shard_size": "200KB"}],
    ids=["fp16", "bin", "sharded"],
)
def test_other_forms_of_the_same_checkpoint_load(tmp_path: Path, form: dict[str, Any]) -> None:
    checkpoint = resolve(str(make_checkpoint(tmp_path / "other", **form)))
    pipeline = load_pipeline(checkpoint)
    assert draw(pipeline).shape == (1, 64, 64, 3)
    assert pipeline.unet.dtype == torch.float32


def test_other_weights_beside_are_named_and_not_read(tiny_checkpoint: Path) -> None:
    """What is judged is what ``from_pretrained`` loads unasked."""
    full, unet = tiny_checkpoint / UNET_WEIGHTS, tiny_checkpoint / "unet"
    assert resolve(str(tiny_checkpoint)).choices == ()
    full.rename(full.with_name("diffusion_pytorch_model.fp16.safetensors"))
    only = "unet: diffusion_pytorch_model.fp16.safetensors was judged, a variant that must be asked for"
    assert resolve(str(tiny_checkpoint)).choices[0].startswith(only)
    torch.save(load_file(full.with_name("diffusion_pytorch_model.fp16.safetensors")), unet / UNET_BIN[5:])
    shutil.copytree(unet, tiny_checkpoint / "unet_ema")
    (tiny_checkpoint / "v1-5.ckpt").touch()
    checkpoint = resolve(str(tiny_checkpoint))
    assert checkpoint.weights("unet").files == (unet / UNET_BIN[5:],)
    assert checkpoint.choices == (
        "unet: diffusion_pytorch_model.bin was judged, not diffusion_pytorch_model.fp16.safetensors",
        "not looked at: unet_ema/, v1-5.ckpt",
    )
    verify(checkpoint)


@pytest.mark.parametrize("beside", ["model.fp16.safetensors", "model.bin"])
def test_full_precision_and_safetensors_are_read_whatever_lies_beside(
    tiny_checkpoint: Path, beside: str
) -> None:
    full = tiny_checkpoint / UNET_WEIGHTS
    full.with_name(f"diffusion_pytorch_{beside}").write_bytes(b"of no use")
    checkpoint = resolve(str(tiny_checkpoint))
    assert checkpoint.weights("unet").files == (full,)
    assert f"not diffusion_pytorch_{beside}" in checkpoint.choices[0]
    verify(checkpoint)


def test_of_a_single_file_and_shards_diffusers_takes_the_shards(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "sharded", max_shard_size="200KB")
    single = folder / UNET_WEIGHTS
    save_file({"conv_in.weight": torch.zeros(1)}, single)
    checkpoint = resolve(str(folder))
    assert single not in checkpoint.weights("unet").files
    assert load_pipeline(checkpoint).unet.conv_in.weight.any()


@pytest.mark.slow
def test_old_names_of_vae_attention_and_clip_positions_are_accepted(tiny_checkpoint: Path) -> None:
    before = draw(load_pipeline(resolve(str(tiny_checkpoint))))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if ".mid_block.attentions." in n]:
            for new, former in old.items():
                if f".{new}." in name:
                    tensors[name.replace(new, former)] = tensors.pop(name)

    def prefix(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"text_model.{name}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    edit_weights(tiny_checkpoint / "vae/diffusion_pytorch_model.safetensors", rename)
    edit_weights(tiny_checkpoint / "text_encoder/model.safetensors", prefix)
    stored = load_file(tiny_checkpoint / "vae/diffusion_pytorch_model.safetensors")
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in stored
    np.testing.assert_array_equal(draw(load_pipeline(resolve(str(tiny_checkpoint)))), before)


def test_keys_of_other_diffusers_versions_are_no_damage(tiny_checkpoint: Path) -> None:
    edit_json(tiny_checkpoint / "unet" / "config.json", only_cross_attention_of_old=False)
    checkpoint = resolve(str(tiny_checkpoint))
    verify(checkpoint)
    assert unet_skeleton(checkpoint.unet_config).config.layers_per_block == 2


# --- damage ---------------------------------------------------------------------------------------


def cut(kept: int) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(file.read_bytes()[:kept])


def without(name: str) -> Callable[[Path], None]:
    return lambda file: edit_weights(file, lambda tensors: tensors.pop(name))


def with_value(value: float) -> Callable[[Path], None]:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["conv_out.weight"].view(-1)[7] = value

    return lambda file: edit_weights(file, spoil)


def with_text(text: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(text)


def with_entries(**changes: Any) -> Callable[[Path], None]:
    return lambda file: edit_json(file, **changes)


def with_surplus(file: Path) -> None:
    edit_weights(file, lambda tensors: tensors.update(surplus=torch.ones(3)))


class Evil:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/nonexistent/ran",)


def pickled(content: object) -> Callable[[Path], None]:
    """Put a .bin in the place of the safetensors."""

    def replace(file: Path) -> None:
        file.with_suffix(".safetensors").unlink()
        torch.save(content, file)

    return replace


def torn_bin(file: Path) -> None:
    pickled({"conv_in.weight": torch.ones(2)})(file)
    cut(300)(file)


def without_weights(component: Path) -> None:
    next(component.glob("*.safetensors")).unlink()


def without_vocabulary(tokenizer: Path) -> None:
    for file in tokenizer.glob("*"):
        if file.name in ("vocab.json", "merges.txt", "tokenizer.json"):
            file.unlink()


def with_torn_vocabulary(tokenizer: Path) -> None:
    without_vocabulary(tokenizer)
    (tokenizer / "tokenizer.json").write_text("{")


def with_one_token_more(tokenizer: Path) -> None:
    vocabulary = tokenizer / "vocab.json"
    number = len(json.loads(vocabulary.read_text()))
    edit_json(vocabulary, **{"surplus</w>": number})
    whole = json.loads((tokenizer / "tokenizer.json").read_text())
    whole["model"]["vocab"]["surplus</w>"] = number
    (tokenizer / "tokenizer.json").write_text(json.dumps(whole))


VAE_WEIGHTS, TEXT_WEIGHTS = UNET_WEIGHTS.replace("unet", "vae"), "text_encoder/model.safetensors"
UNET_BIN = UNET_WEIGHTS.replace("safetensors", "bin")
UNET_CONFIG, VAE_CONFIG, TEXT_CONFIG = (f"{name}/config.json" for name in ("unet", "vae", "text_encoder"))
TOKENIZER = "tokenizer/tokenizer.json"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NOT_FINITE = "NaN or infinity in 1 of 288 values"
PROJECTION = ["transformers", "CLIPTextModelWithProjection"]
NORM = "final_layer_norm.weight"
Damage = tuple[str, Callable[[Path], object], str, str | None]
LENGTH = "tokenizer/tokenizer_config.json"
DAMAGE: dict[str, Damage] = {
    "git lfs": (UNET_WEIGHTS, with_text(LFS), "git lfs pull", None),
    "unet tensor": (UNET_WEIGHTS, without("conv_in.weight"), "missing tensor", "conv_in.weight"),
    "vae tensor": (VAE_WEIGHTS, without("decoder.conv_out.bias"), "missing tensor", "decoder.conv_out.bias"),
    "text tensor": (TEXT_WEIGHTS, without(NORM), "missing tensor", NORM),
    "extra tensor": (UNET_WEIGHTS, with_surplus, "does not have", "surplus"),
    "nan": (UNET_WEIGHTS, with_value(float("nan")), NOT_FINITE, "conv_out.weight"),
    "infinity": (UNET_WEIGHTS, with_value(float("inf")), NOT_FINITE, "conv_out.weight"),
    "minus infinity": (UNET_WEIGHTS, with_value(float("-inf")), NOT_FINITE, "conv_out.weight"),
    "no weights": ("unet", without_weights, "It needs diffusion_pytorch_model.safetensors", "unet"),
    "evil pickle": (UNET_BIN, pickled({"conv_in.weight": Evil()}), "refused", None),
    "nested pickle": (UNET_BIN, pickled({"state_dict": {"a": torch.ones(2)}}), "not a flat mapping", None),
    "torn pickle": (UNET_BIN, torn_bin, "", None),
    "torn config": (UNET_CONFIG, with_text("{"), "unreadable JSON", None),
    "list as config": (UNET_CONFIG, with_text("[]"), "not a JSON object", None),
    "impossible config": (UNET_CONFIG, with_entries(norm_num_groups=7), "not a configuration", None),
    "no config": (VAE_CONFIG, Path.unlink, "missing file", None),
    "other vae": (VAE_CONFIG, with_entries(_class_name="AutoencoderTiny"), "AutoencoderKL", "_class_name"),
    "other encoder": (
        "model_index.json",
        with_entries(text_encoder=PROJECTION),
        "CLIPTextModel",
        "text_encoder",
    ),
    "no vocabulary": ("tokenizer", without_vocabulary, "no vocabulary", None),
    "torn vocabulary": (TOKENIZER, lambda file: with_torn_vocabulary(file.parent), "unreadable JSON", None),
    "no length": (LENGTH, with_text('{"tokenizer_class": "CLIPTokenizer"}'), "no length", "model_max_length"),
    "length of text": (LENGTH, with_entries(model_max_length="77"), "no length", "model_max_length"),
    "long prompts": (LENGTH, with_entries(model_max_length=78), "up to 77", "model_max_length"),
    "empty prompts": (LENGTH, with_entries(model_max_length=0), "up to 77", "model_max_length"),
    "large vocabulary": ("tokenizer", with_one_token_more, "more tokens", "text_encoder.vocab_size"),
}
for kept in (0, 4, 5_000, -100):
    for name, path in (("unet", UNET_WEIGHTS), ("text encoder", TEXT_WEIGHTS)):
        DAMAGE[f"{name} cut to {kept} bytes"] = (path, cut(kept), "truncated", None)


@pytest.mark.parametrize(("path", "damage", "says", "key"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_with_its_file_and_key(
    tiny_checkpoint: Path, path: str, damage: Callable[[Path], object], says: str, key: str | None
) -> None:
    damage(tiny_checkpoint / path)
    error = error_of(tiny_checkpoint)
    assert says in str(error)
    assert (error.file, error.key) == (tiny_checkpoint / path, key)


def test_diffusers_itself_says_nothing_of_missing_extra_and_nan(tiny_checkpoint: Path) -> None:
    """The reason why checkpoints are verified: should this fail one day, diffusers has learnt to."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["conv_in.weight"]
        tensors["surplus"] = torch.ones(3)
        tensors["conv_out.weight"][:] = float("nan")

    edit_weights(tiny_checkpoint / UNET_WEIGHTS, spoil)
    UNet2DConditionModel.from_pretrained(tiny_checkpoint / "unet")


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (UNET_CONFIG, {"block_out_channels": [8, 8, 16, 32]}),
        (UNET_CONFIG, {"layers_per_block": 1}),
        (UNET_CONFIG, {"cross_attention_dim": 24}),
        (VAE_CONFIG, {"block_out_channels": [8, 8, 8, 32]}),
        (TEXT_CONFIG, {"hidden_size": 32}),
    ],
)
def test_a_config_that_disagrees_with_the_tensors_is_named(
    tiny_checkpoint: Path, config: str, change: dict[str, Any]
) -> None:
    edit_json(tiny_checkpoint / config, **change)
    error = error_of(tiny_checkpoint)
    assert "configuration and tensors disagree" in str(error)
    assert error.file == tiny_checkpoint / config
    assert error.key
    assert error.key in str(error)


def test_a_student_saved_with_its_teachers_config_is_recognised(tmp_path: Path) -> None:
    """The known mistake of distillation scripts."""
    (tmp_path / "config.json").write_text(json.dumps(dict(ARCHITECTURES["sd-v1"])))
    shapes = {name: value.shape for name, value in unet_skeleton("bk-sdm-tiny").state_dict().items()}
    write_sparse(tmp_path / "diffusion_pytorch_model.safetensors", shapes)
    with pytest.raises(CheckpointError, match="These are the tensors of bk-sdm-tiny") as caught:
        check_component(
            "unet", ARCHITECTURES["sd-v1"], tmp_path / "config.json", find_weights(tmp_path, "unet")
        )
    assert "missing" in str(caught.value.found)


def write_sparse(file: Path, shapes: dict[str, torch.Size]) -> None:
    """Write a safetensors file whose values are a hole in the file: all zeros, and no room taken."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)


@pytest.mark.slow
def test_components_of_two_families_are_refused(tmp_path: Path, pristine_checkpoint: Path) -> None:
    other = make_checkpoint(tmp_path / "other", unet={"cross_attention_dim": 24})
    checkpoint = resolve(None, weights=other)
    assert "do not fit together" in str(error_of(other))
    mixed = Checkpoint("mixed", pristine_checkpoint, checkpoint.part("unet"))
    with pytest.raises(
        CheckpointError, match=r"unet\.cross_attention_dim.*24, but text_encoder\.hidden_size is 16"
    ):
        verify(mixed)


def test_an_autoencoder_of_pictures_with_a_depth_is_refused(tiny_checkpoint: Path) -> None:
    vae = tiny_checkpoint / "vae"
    edit_json(vae / "config.json", out_channels=6)

    def twice(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
            tensors[name] = torch.cat([tensors[name]] * 2)

    edit_weights(vae / "diffusion_pytorch_model.safetensors", twice)
    with pytest.raises(CheckpointError, match=r"vae\.out_channels.*\(found 6\)"):
        verify(resolve(str(tiny_checkpoint)))


def test_an_unknown_scheduler_is_refused(tiny_checkpoint: Path) -> None:
    edit_json(tiny_checkpoint / "model_index.json", scheduler=["diffusers", "Miracle"])
    error = error_of(tiny_checkpoint)
    assert error.found == "Miracle"


def test_a_bin_of_the_format_before_zip_is_read(tiny_checkpoint: Path) -> None:
    safe = tiny_checkpoint / UNET_WEIGHTS
    file = tiny_checkpoint / "unet" / "diffusion_pytorch_model.bin"
    torch.save(load_file(safe), file, _use_new_zipfile_serialization=False)
    safe.unlink()
    verify(resolve(str(tiny_checkpoint)))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="to root nothing is forbidden")
@pytest.mark.parametrize("name", [UNET_WEIGHTS, "unet/config.json", "tokenizer/tokenizer_config.json"])
def test_a_file_that_may_not_be_read_is_named_and_not_called_damaged(
    tiny_checkpoint: Path, name: str
) -> None:
    (tiny_checkpoint / name).chmod(0o200)
    error = error_of(tiny_checkpoint)
    assert error.message.startswith("this user may not read the file")
    assert error.file == tiny_checkpoint / name
    assert "chmod" in str(error)


def test_a_missing_shard_and_one_outside_are_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "sharded", max_shard_size="200KB")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    shard = folder / "unet" / "diffusion_pytorch_model-00002-of-00004.safetensors"
    shard.rename(folder / "shard")
    error = error_of(folder)
    assert error.file == shard
    content = json.loads(index.read_text())
    placed = {
        name: str(folder / "shard") if "00002" in file else file
        for name, file in content["weight_map"].items()
    }
    edit_json(index, weight_map=placed)
    assert "outside of the folder" in str(error_of(folder))
    edit_json(index, weight_map={})
    assert error_of(folder).key == "weight_map"


# --- identity -------------------------------------------------------------------------------------


def test_place_notes_and_other_files_leave_the_fingerprint(
    pristine_checkpoint: Path, tiny_checkpoint: Path
) -> None:
    moved = tiny_checkpoint.rename(tiny_checkpoint.with_name("elsewhere"))
    (moved / "README.md").write_text("# A checkpoint")
    (moved / "safety_checker").mkdir()
    edit_json(moved / "unet" / "config.json", _diffusers_version="0.19.3", _name_or_path="/home/me/run-7")
    edit_json(moved / "unet" / "config.json", decay=0.9999, optimization_step=7)  # as EMAModel writes them
    (moved / "tokenizer" / "LICENSE.txt").write_text("Apache")
    merges = moved / "tokenizer" / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert resolve(str(moved)).fingerprint == resolve(str(pristine_checkpoint)).fingerprint


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (UNET_WEIGHTS, with_value(1e-6)),
        (UNET_CONFIG, with_entries(norm_eps=1e-6)),
        ("scheduler/scheduler_config.json", with_entries(beta_end=0.013)),
        ("model_index.json", with_entries(scheduler=["diffusers", "DDIMScheduler"])),
        ("tokenizer/merges.txt", with_text("#version: 0.2\n")),
    ],
    ids=["weight", "config", "scheduler", "scheduler class", "vocabulary"],
)
def test_the_fingerprint_changes_with_anything_that_matters(
    pristine_checkpoint: Path, tiny_checkpoint: Path, path: str, change: Callable[[Path], object]
) -> None:
    change(tiny_checkpoint / path)
    assert resolve(str(tiny_checkpoint)).fingerprint != resolve(str(pristine_checkpoint)).fingerprint


# --- specs ----------------------------------------------------------------------------------------


def test_a_u_net_stands_on_a_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    student = make_checkpoint(tmp_path / "student", seed=5, unet={"time_cond_proj_dim": 32})
    lone = Path(shutil.copytree(student / "unet", tmp_path / "lone"))
    spec = {"base": "./tiny-sd", "unet": "./lone"}
    checkpoint = resolve(spec, near=tmp_path)
    assert checkpoint == resolve("base: ./tiny-sd, unet: ./lone", near=tmp_path)
    assert checkpoint.unet_config["time_cond_proj_dim"] == 32
    pipeline = load_pipeline(checkpoint)
    assert pipeline.unet.config.time_cond_proj_dim == 32
    assert draw(pipeline).shape == (1, 64, 64, 3)
    fingerprint = checkpoint.fingerprint
    whole = Path(shutil.copytree(tiny_checkpoint, tmp_path / "whole"))
    shutil.rmtree(whole / "unet")
    lone.rename(whole / "unet")
    assert fingerprint == resolve(str(whole)).fingerprint, "identity is content, not arrangement"


def test_of_a_whole_checkpoint_the_u_net_is_taken(tiny_checkpoint: Path, pristine_checkpoint: Path) -> None:
    checkpoint = resolve({"base": str(tiny_checkpoint), "unet": str(pristine_checkpoint)})
    assert checkpoint.part("unet") == pristine_checkpoint / "unet"
    assert checkpoint.part("scheduler") == tiny_checkpoint / "scheduler"


def test_weights_replace_what_the_card_names(tiny_checkpoint: Path, tmp_path: Path) -> None:
    whole = resolve("org/absent", card="tiny", weights=tiny_checkpoint)
    assert whole.folder == tiny_checkpoint
    alone = resolve(str(tiny_checkpoint), card="tiny", weights=tiny_checkpoint / "unet")
    assert (alone.folder, alone.unet_folder) == (tiny_checkpoint, tiny_checkpoint / "unet")
    pair = resolve({"base": str(tiny_checkpoint), "unet": "./absent"}, weights=tiny_checkpoint / "unet")
    assert pair.folder == tiny_checkpoint


def test_a_unet_alone_takes_the_scheduler_of_the_one_it_replaces(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    donor = tmp_path / "donor"
    shutil.copytree(tiny_checkpoint / "unet", donor / "unet")
    shutil.copytree(tiny_checkpoint / "scheduler", donor / "scheduler")
    spec = {"base": str(tiny_checkpoint), "unet": str(donor)}
    for own in (spec, resolve(spec)):
        found = resolve(own, weights=tiny_checkpoint / "unet")
        assert found.part("scheduler") == donor / "scheduler"
    absent = resolve({**spec, "unet": "./absent"}, weights=donor / "unet")
    assert "the scheduler is that of the base" in "".join(absent.notes)


def test_a_folder_without_a_dot_is_not_looked_up_on_the_hub(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "models" / "student")
    with pytest.raises(CheckpointError, match=r"write \./models/student"):
        resolve("models/student", near=tmp_path)
    with pytest.raises(Unavailable, match="not in the hub cache"):
        resolve("models/student@main", near=tmp_path)


@pytest.mark.parametrize(
    ("spec", "weights", "message"),
    [
        *((spec, None, "org/name@revision") for spec in ("nonsense", "a/b/c", "org/name@", {"unet": "./x"})),
        ("./absent", None, "no such folder"),
        ("./circle", None, "no such folder"),
        ("~nobody-of-this-name/model", None, "no such folder"),
        ("embedded:absent", None, "Embedded checkpoints"),
        ("./tiny-sd/tokenizer", None, r"no model_index\.json"),
        ("./tiny-sd/unet", None, "U-Net alone"),
        ("./tiny-sd", "absent", "--sdbench-weights tiny: no such folder"),
        ("./tiny-sd", "circle", "--sdbench-weights tiny: no such folder"),
        ("./tiny-sd", "tiny-sd/tokenizer", "no U-Net"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_the_remedy(
    tiny_checkpoint: Path, spec: Any, weights: str | None, message: str
) -> None:
    near = tiny_checkpoint.parent
    (near / "circle").symlink_to("circle")
    with pytest.raises(CheckpointError, match=message):
        resolve(spec, card="tiny", near=near, weights=None if weights is None else near / weights)


def test_a_card_without_a_checkpoint_is_unavailable_with_the_remedy() -> None:
    with pytest.raises(Unavailable, match="--sdbench-weights tiny-sd-lcm-6400=PATH"):
        resolve(None, card="tiny-sd-lcm-6400")


def test_an_embedded_checkpoint_is_found(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    tiny_checkpoint.rename(tmp_path / "checkpoints" / "tiny-sd")
    monkeypatch.setattr(specs, "reference", lambda: tmp_path)
    assert resolve("embedded:tiny-sd").folder == tmp_path / "checkpoints" / "tiny-sd"


def test_files_that_macos_writes_beside_others_are_no_part_of_a_checkpoint(
    tiny_checkpoint: Path, pristine_checkpoint: Path
) -> None:
    for name in ("._tokenizer_config.json", "._vocab.json"):
        (tiny_checkpoint / "tokenizer" / name).write_bytes(b"\0\5\x16\7")
    assert resolve(str(tiny_checkpoint)).fingerprint == resolve(str(pristine_checkpoint)).fingerprint


@pytest.mark.parametrize("value", ["v-prediction", "sample", None])
def test_a_prediction_type_that_its_scheduler_refuses_is_found_before_an_image(
    tiny_checkpoint: Path, value: str | None
) -> None:
    file = tiny_checkpoint / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": value}))
    with pytest.raises(CheckpointError, match="not a configuration of PNDMScheduler"):
        verify(resolve(str(tiny_checkpoint)))


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"<html>"]
)
def test_what_is_no_pickle_is_not_called_an_unsafe_one(tiny_checkpoint: Path, content: bytes) -> None:
    unet = tiny_checkpoint / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    (unet / "diffusion_pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or truncated") as refused:
        verify(resolve(str(tiny_checkpoint)))
    assert "weights_only" not in str(refused.value)


def as_bin(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Save a U-Net's weights as torch does, changed."""
    safe = folder / UNET_WEIGHTS
    tensors = load_file(safe)
    edit(tensors)
    torch.save(tensors, folder / "unet" / "diffusion_pytorch_model.bin")
    safe.unlink()


def test_parameters_that_are_still_trained_are_values_like_any_other(
    tiny_checkpoint: Path, pristine_checkpoint: Path
) -> None:
    as_bin(tiny_checkpoint, lambda all: all.update({k: torch.nn.Parameter(v) for k, v in all.items()}))
    ours, theirs = (describe(resolve(str(folder))) for folder in (tiny_checkpoint, pristine_checkpoint))
    assert np.array_equal(ours.checksums["unet"], theirs.checksums["unet"])


def test_a_tensor_that_was_saved_without_its_values_is_named(tiny_checkpoint: Path) -> None:
    as_bin(tiny_checkpoint, lambda all: all.update({"conv_in.bias": torch.empty(8, device="meta")}))
    error = error_of(tiny_checkpoint)
    assert error.key == "conv_in.bias"
    assert error.message.startswith("saved without its values")


def test_of_a_refused_pickle_the_cause_is_told_and_not_how_to_load_it_all_the_same(
    tiny_checkpoint: Path,
) -> None:
    as_bin(tiny_checkpoint, lambda all: all.update(best=np.float64(3.0)))
    error = error_of(tiny_checkpoint)
    assert re.search(r"Unsupported global: .*scalar was not an allowed global by default$", str(error.found))
    assert "safe_globals" not in str(error)


@pytest.mark.parametrize(
    ("method", "refused", "named"),
    [
        ("read_bytes", "vocab.json", "tokenizer/vocab.json"),
        ("iterdir", "tokenizer", "tokenizer"),
        ("is_file", "tokenizer.json", "tokenizer/tokenizer.json"),
        ("is_file", "adapter_config.json", "unet/adapter_config.json"),
    ],
)
def test_what_this_user_may_not_read_is_named_wherever_it_is_met(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, method: str, refused: str, named: str
) -> None:
    allowed = getattr(Path, method)

    def guarded(self: Path, **options: Any) -> Any:
        if self.name == refused:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return allowed(self, **options)

    checkpoint = resolve(str(tiny_checkpoint))
    monkeypatch.setattr(Path, method, guarded)
    with pytest.raises(CheckpointError, match=r"this user may not read the file.*chmod") as caught:
        verify(checkpoint)
    assert caught.value.file == tiny_checkpoint / named


def test_a_closed_folder_is_named_and_not_a_file_that_may_not_be_there(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tiny_checkpoint / "unet")
    error = forbidden(tiny_checkpoint / "unet" / "adapter_config.json")
    assert (error.file, error.message) == (tiny_checkpoint / "unet", "this user may not look into the folder")


@pytest.mark.parametrize("name", [UNET_WEIGHTS, "vae/config.json", "tokenizer/tokenizer_config.json"])
def test_a_link_whose_content_is_gone_is_called_one(tiny_checkpoint: Path, name: str) -> None:
    (tiny_checkpoint / name).unlink()
    (tiny_checkpoint / name).symlink_to("../blobs/gone")
    error = error_of(tiny_checkpoint)
    assert (error.file, error.found) == (tiny_checkpoint / name, "../blobs/gone")
    assert error.message == "a link to content that is missing"


def test_a_width_of_the_text_may_stand_there_for_each_block(
    tiny_checkpoint: Path, pristine_checkpoint: Path
) -> None:
    edit_json(tiny_checkpoint / "unet" / "config.json", cross_attention_dim=[16, 16, 16, 16])
    ours, theirs = (
        draw(load_pipeline(resolve(str(each)))) for each in (tiny_checkpoint, pristine_checkpoint)
    )
    assert np.array_equal(ours, theirs)
    edit_json(tiny_checkpoint / "unet" / "config.json", cross_attention_dim=[16, 16, 24, 16])
    with pytest.raises(CheckpointError, match="configuration and tensors disagree"):
        verify(resolve(str(tiny_checkpoint)))


def test_a_text_encoder_may_have_the_configuration_of_a_whole_clip(
    tiny_checkpoint: Path, pristine_checkpoint: Path
) -> None:
    file = tiny_checkpoint / "text_encoder" / "config.json"
    whole = {"model_type": "clip", "text_config": json.loads(file.read_text()), "vision_config": {}}
    file.write_text(json.dumps(whole))
    ours, theirs = (resolve(str(each)) for each in (tiny_checkpoint, pristine_checkpoint))
    assert np.array_equal(draw(load_pipeline(ours)), draw(load_pipeline(theirs)))
    assert ours.fingerprint == theirs.fingerprint


def test_a_scheduler_that_the_pipeline_cannot_draw_with_is_not_called_damaged(tiny_checkpoint: Path) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(tiny_checkpoint / "scheduler")
    edit_json(
        tiny_checkpoint / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]
    )
    error = error_of(tiny_checkpoint)
    assert (error.key, error.found) == ("_class_name", "FlowMatchEulerDiscreteScheduler")
    assert "StableDiffusionPipeline cannot draw with this scheduler" in error.message
