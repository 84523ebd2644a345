"""What is no checkpoint that can be tested is called by its name, with what to do; nothing is a traceback."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from pytest_sdbench.base.errors import CardError, CheckpointError
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.counts import unet_macs
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.models.skeleton import unet_skeleton
from tests.tiny_checkpoint import UNET, make_checkpoint

LONGEST = 900
"""Characters of a message, paths included."""
SCHEDULER = "scheduler/scheduler_config.json"
UNET_CONFIG, VAE_CONFIG, TEXT_CONFIG = (f"{name}/config.json" for name in ("unet", "vae", "text_encoder"))
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Damage = Callable[[Path], object]


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def index(**changes: Any) -> Damage:
    return lambda folder: edit_json(folder / "model_index.json", **changes)


def config(file: str, **changes: Any) -> Damage:
    return lambda folder: edit_json(folder / file, **changes)


def text(file: str, content: str) -> Damage:
    return lambda folder: (folder / file).write_text(content)


def tensors(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / UNET_WEIGHTS
        save_file(dict(change(*item) for item in load_file(file).items()), file)

    return damage


def prefixed(prefix: str) -> Damage:
    return tensors(lambda name, value: (prefix + name, value))


def renamed(to: str, *, file: str = UNET_WEIGHTS, beside: int = 0) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).rename((folder / file).with_name(to))
        for i in range(beside):
            (folder / file).with_name(f"a{i}.txt").touch()

    return damage


def merges(folder: Path) -> None:
    file = folder / "tokenizer" / "merges.txt"
    lines = file.read_text().split("\n")
    file.write_text("\n".join([lines[0], *reversed(lines[1:])]))


def swapped_tokens(folder: Path) -> None:
    file = folder / "tokenizer" / "vocab.json"
    vocabulary = json.loads(file.read_text())
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(vocabulary))


FLUX = {"unet": [None, None], "transformer": ["diffusers", "FluxTransformer2DModel"]}
UPSCALER = {"low_res_scheduler": ["diffusers", "DDPMScheduler"]}
VARIANT = "only a variant of the weights.*not supported.*from_pretrained loads none unasked"
DEEP = '{"a":' * 500 + "1" + "}" * 500
CASES: dict[str, tuple[Damage, str]] = {
    # other pipelines
    "flux": (
        lambda folder: (shutil.rmtree(folder / "unet"), index(_class_name="FluxPipeline", **FLUX)(folder)),
        "FluxPipeline, .*it has no unet and it has transformer",
    ),
    "upscaler": (index(_class_name="StableDiffusionUpscalePipeline", **UPSCALER), "low_res_scheduler"),
    "called none": (index(unet=[None, None]), "unet: a part that text to image needs, .*there is none"),
    "no name": (index(_class_name=5), r"_class_name: not the name of a pipeline \(found 5\)"),
    "sdxl unet": (
        config(UNET_CONFIG, addition_embed_type="text_time"),
        "other inputs than those of a StableDiffusionPipeline",
    ),
    # names of tensors
    "compiled": (prefixed("_orig_mod."), "hold `_orig_mod.`, which a wrapper"),
    "parallel": (prefixed("module."), "hold `module.`, which a wrapper"),
    "lightning": (prefixed("model.unet."), "hold `model.unet.`, which a wrapper"),
    "single file": (prefixed("model.diffusion_model."), "from_single_file"),
    "lora inside": (
        tensors(lambda name, value: (name.replace(".weight", ".lora_A.weight"), value)),
        "layers of a LoRA",
    ),
    # variants
    "bf16": (renamed("diffusion_pytorch_model.bf16.safetensors"), VARIANT),
    "non_ema": (renamed("diffusion_pytorch_model.non_ema.safetensors", beside=9), VARIANT),
    "bf16 bin": (renamed("pytorch_model.bf16.bin", file="text_encoder/model.safetensors"), VARIANT),
    "bf16 shard": (renamed("diffusion_pytorch_model.bf16-00001-of-00002.safetensors"), VARIANT),
    "older bf16 shard": (renamed("diffusion_pytorch_model-00001-of-00002.bf16.safetensors"), VARIANT),
    "no index": (
        renamed("diffusion_pytorch_model.fp16-00001-of-00002.safetensors"),
        "no weights of the unet.*Copy or download",
    ),
    # adapters, which are no part of the fingerprint: a checkpoint that was checked before has the same
    "adapter": (text("text_encoder/adapter_config.json", "{}"), "an adapter on the text_encoder.*fuse_lora"),
    "unet adapter": (text("unet/adapter_config.json", "{}"), "an adapter on the unet.*fuse_lora"),
    # values of tensors
    "int8": (
        tensors(lambda name, value: (name, (value * 9).to(torch.int8))),
        "integers in the place of weights",
    ),
    "one bool": (
        tensors(lambda name, value: (name, value.bool() if name == "conv_in.bias" else value)),
        "integers in the place of weights",
    ),
    "quantised": (config(UNET_CONFIG, quantization_config={"quant_method": "magic"}), "quantised"),
    "quantised text": (config(TEXT_CONFIG, quantization_config=["?"]), "quantised weights"),
    "weights elsewhere": (
        config(TEXT_CONFIG, transformers_weights="x.safetensors"),
        "names a file of weights",
    ),
    # vocabulary
    "merges": (merges, "merges.txt: contradicts the tokenizer.json"),
    "tokens": (swapped_tokens, "vocab.json: contradicts the tokenizer.json"),
    "no model": (text("tokenizer/tokenizer.json", "{}"), "unreadable vocabulary"),
    # damaged indices and configurations
    "text for a list": (index(unet="UNet2DConditionModel"), "not an entry of a pipeline"),
    "three entries": (index(scheduler=["diffusers", "PNDMScheduler", 3]), "not an entry of a pipeline"),
    "an object": (index(vae={"a": 1}), "not an entry of a pipeline"),
    "deep": (text("model_index.json", DEEP), "lists and objects in each other"),
    "deeper": (text(UNET_CONFIG, '{"a":' + "[" * 200_000 + "]" * 200_000 + "}"), "unreadable JSON"),
    "digits": (text(VAE_CONFIG, '{"a": ' + "9" * 9999 + "}"), "unreadable JSON"),
    "long name": (index(scheduler=["diffusers", "x" * 99_999]), "unknown scheduler"),
    "no scheduler": (index(scheduler=["diffusers", "UNet2DConditionModel"]), "unknown scheduler"),
    "schedule": (config(SCHEDULER, beta_schedule="circular"), "not a configuration of PNDMScheduler"),
    "beta": (config(SCHEDULER, beta_end="much"), "not a configuration of PNDMScheduler"),
    "nan beta": (config(SCHEDULER, beta_end=float("nan")), "no noise schedule"),
    "large beta": (config(SCHEDULER, beta_end=12.0), "no noise schedule"),
    "spacing": (config(SCHEDULER, timestep_spacing="wide"), "not a configuration of PNDMScheduler"),
    "timesteps": (config(SCHEDULER, num_train_timesteps=10**12), "not a number of timesteps"),
    "factor": (config(VAE_CONFIG, scaling_factor=None), "scaling_factor"),
    "factor 0": (config(VAE_CONFIG, scaling_factor=0), "scaling_factor"),
    "a million layers": (config(UNET_CONFIG, layers_per_block=10**6), "layers, and at most"),
    "a million of text": (config(TEXT_CONFIG, num_hidden_layers=10**6), "layers, and at most"),
    "width": (config(UNET_CONFIG, block_out_channels=[10**30] * 4), "not a configuration of a unet"),
    "a list of widths": (config(VAE_CONFIG, block_out_channels=[8] * 10**5), "layers, and at most"),
    "eos": (config(TEXT_CONFIG, eos_token_id="last"), "not a configuration of a text_encoder"),
    "shift": (config(UNET_CONFIG, freq_shift="far"), "unet that cannot be called"),
    "defaults": (config(UNET_CONFIG, _use_default_values=7), "not a list of keys"),
}


@pytest.mark.parametrize(("damage", "says"), CASES.values(), ids=CASES)
def test_it_is_called_by_its_name_and_the_message_is_short(
    tiny_checkpoint: Path, damage: Damage, says: str
) -> None:
    damage(tiny_checkpoint)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_pipeline(resolve(str(tiny_checkpoint)))
    assert caught.value.remedy
    assert len(str(caught.value)) <= LONGEST


def touch(*names: str) -> Damage:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            tensor = "a.lora_A.weight" if "lora" in name else "a.weight"
            save_file({tensor: torch.ones(1)}, folder / name)

    return make


FOLDERS: dict[str, tuple[Damage, str, str]] = {
    "loras": (touch("a_lora.safetensors", "b_lora.safetensors"), "", "several LoRAs.*Give one file"),
    "adapter": (touch("adapter_config.json"), "", "an adapter in peft's own form.*merge_and_unload"),
    "folder of a ckpt": (touch("v1.ckpt"), "", "a folder with a single file.*Give the file itself"),
    "bin": (touch("v1.bin"), "v1.bin", "a single file of weights.*from_single_file"),
    "bin of one network": (
        touch("diffusion_pytorch_model.bin"),
        "diffusion_pytorch_model.bin",
        "one network.*Give the folder",
    ),
    "gguf": (touch("unet.gguf"), "unet.gguf", "for another program"),
    "onnx file": (touch("unet.onnx"), "unet.onnx", "for another program"),
    "embedding file": (touch("learned_embeds.bin"), "learned_embeds.bin", "a textual inversion"),
    "bare weights": (touch("model.safetensors"), "", "weights, and without a configuration"),
    "archive": (touch("model.zip"), "model.zip", "an archive.*Unpack it"),
    "training": (touch("optimizer.bin", "model.safetensors"), "", "the state of a training run"),
    "embedding": (touch("learned_embeds.safetensors"), "", "a textual inversion"),
    "onnx": (touch("unet/model.onnx"), "", "another program"),
    "transformer": (touch("transformer/config.json"), "", "Flux"),
    "runs": (touch("checkpoint-10/model_index.json"), "", "a folder of checkpoints.*Give one"),
    "controlnet": (
        lambda folder: (folder / "config.json").write_text('{"_class_name": "ControlNetModel"}'),
        "",
        "neither a whole checkpoint nor a U-Net",
    ),
    "absent": (touch("x"), "absent", "no such folder"),
}


@pytest.mark.parametrize(("make", "name", "says"), FOLDERS.values(), ids=FOLDERS)
def test_folders_and_files_of_other_kinds_are_named(
    tmp_path: Path, pristine_checkpoint: Path, make: Damage, name: str, says: str
) -> None:
    make(tmp_path)
    with pytest.raises(CheckpointError, match=says) as caught:
        resolve(str(pristine_checkpoint), card="mini", weights=tmp_path / name)
    assert len(str(caught.value)) <= LONGEST
    if name != "absent":
        with pytest.raises(CheckpointError, match=says):
            resolve(str(tmp_path / name))


@pytest.mark.parametrize("called", ["StableDiffusionPAGPipeline", ["my_pipe", "MyPipe"]], ids=str)
def test_a_pipeline_of_another_class_is_drawn_as_a_plain_one_and_a_note_says_so(
    tiny_checkpoint: Path, called: object
) -> None:
    index(_class_name="StableDiffusionImg2ImgPipeline")(tiny_checkpoint)
    assert resolve(str(tiny_checkpoint)).choices == ()
    index(_class_name=called)(tiny_checkpoint)
    (note,) = resolve(str(tiny_checkpoint)).choices
    assert re.search(r"calls it a (StableDiffusionPAG|My)Pipe.* as a StableDiffusionPipeline draws", note)


def test_a_u_net_with_more_inputs_is_of_another_task(tmp_path: Path) -> None:
    for channels, task in ((9, "inpainting"), (8, "InstructPix2Pix")):
        folder = make_checkpoint(tmp_path / str(channels), unet={"in_channels": channels})
        with pytest.raises(CheckpointError, match=f"other inputs than latents and text.*{task}"):
            verify(resolve(str(folder)))


@pytest.mark.parametrize("other", [False, True], ids=["equal", "different"])
@pytest.mark.parametrize("renamed", [False, True], ids=["shard", "old name"])
def test_a_tensor_that_is_stored_twice_is_refused_where_the_values_differ(
    tmp_path: Path, other: bool, renamed: bool
) -> None:
    folder = make_checkpoint(tmp_path / "sharded", max_shard_size="200KB")
    part = folder / "vae"
    first, *_, last = sorted(part.glob("*.safetensors"))
    name = next(
        name for name in load_file(first) if ".mid_block.attentions.0.to_q.weight" in name or not renamed
    )
    value = load_file(first)[name]
    twin = name.replace("to_q", "query") if renamed else name
    save_file(
        load_file(last) | {twin: value + 1 if other else value.clone()}, last, metadata={"format": "pt"}
    )
    if not other:
        verify(resolve(str(folder)))
        return
    with pytest.raises(CheckpointError, match="stored twice with different values") as caught:
        verify(resolve(str(folder)))
    assert {str(first.name), str(last.name)} <= set(re.findall(r"[\w.-]+\.safetensors", str(caught.value)))


# --- what a configuration means ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (SCHEDULER, "beta_schedule"),
        (SCHEDULER, "beta_end"),
        (VAE_CONFIG, "scaling_factor"),
        (UNET_CONFIG, "act_fn"),
    ],
)
def test_keys_that_diffusers_passes_over_count_as_their_defaults(
    tiny_checkpoint: Path, pristine_checkpoint: Path, file: str, key: str
) -> None:
    """A released scheduler with other betas is another checkpoint, whatever its file says."""
    if file == UNET_CONFIG:
        edit_json(tiny_checkpoint / file, act_fn="gelu")
    if file == VAE_CONFIG:
        edit_json(tiny_checkpoint / file, scaling_factor=0.5)
    honest = resolve(str(tiny_checkpoint)).fingerprint
    edit_json(tiny_checkpoint / file, _use_default_values=[key, "no_such_key"])
    checkpoint = resolve(str(tiny_checkpoint))
    assert checkpoint.fingerprint != honest
    part = file.split("/")[0]
    loaded = getattr(load_pipeline(checkpoint), part).config[key]
    assert loaded == checkpoint.config(part)[key]
    kind = {"scheduler": PNDMScheduler, "unet": UNet2DConditionModel}.get(part)
    if kind is not None:
        assert kind.from_pretrained(tiny_checkpoint / part).config[key] == loaded
    # Identity is content: the file that says so openly is the same checkpoint.
    edit_json(tiny_checkpoint / file, _use_default_values=[], **{key: loaded})
    assert resolve(str(tiny_checkpoint)).fingerprint == checkpoint.fingerprint


def test_an_architecture_of_a_million_layers_is_refused_before_it_is_built() -> None:
    for change in (
        {"layers_per_block": 10**6},
        {"layers_per_block": [40] * 4, "transformer_layers_per_block": 40},
    ):
        with pytest.raises(CardError, match="layers, and at most"):
            unet_skeleton(UNET | change)
    with pytest.raises(CardError, match="no size of latents"):
        unet_macs(UNET | {"sample_size": 10**9})
    with pytest.raises(CardError, match="not a U-Net that can be called"):
        unet_macs(UNET | {"freq_shift": "far"})
