"""Every layer of a LoRA changes one layer of its base, by its own alpha over its own rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

from pytest_sdbench.base.errors import CheckpointError
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.layout import LORA
from pytest_sdbench.models.weights import read_tensors

FILE = f"{LORA}.safetensors"
PREFIXES = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te_text_model_",
    "text_encoder_2": "lora_te2_text_model_",
}
Arrays = dict[str, np.ndarray[Any, Any]]


def stored(spec: str | Path, component: str, **options: Any) -> Arrays:
    """Return the tensors of a component of a checkpoint, by the names of today."""
    weights = resolve(str(spec), **options).weights(component)
    return {name.removeprefix("text_model."): value.numpy() for name, _, value in read_tensors(weights)}


def original_name(layer: str) -> str:
    """Return the name of a layer of attention in the original layout of SDXL, two layers a block."""
    if match := re.match(r"(down|up)_blocks\.(\d)\.attentions\.(\d)\.", layer):
        block = 3 * int(match[2]) + int(match[3]) + (match[1] == "down")
        kind = "input" if match[1] == "down" else "output"
        return f"{kind}_blocks.{block}.1.{layer[match.end() :]}"
    return layer.replace("mid_block.attentions.0", "middle_block.1")


def kohya_lora(base: Path, components: list[str], file: Path, *, original: bool = False) -> dict[str, Arrays]:
    """Write a LoRA whose ranks and alphas differ from layer to layer; return the weights that it makes."""
    generator, tensors, expected = np.random.default_rng(0), Arrays(), dict[str, Arrays]()
    for component in components:
        expected[component] = stored(base, component)
        for number, (name, weight) in enumerate(sorted(expected[component].items())):
            layer = name.removesuffix(".weight")
            linear = ".attn" in layer if original else weight.ndim > 1 and "embeddings" not in layer
            if not linear or not name.endswith(".weight") or "norm" in layer or layer == "text_projection":
                continue
            rank, alpha = 1 + number % 4, (0.5, 3.0, 8.0, None)[number // 4 % 4]
            down = generator.normal(size=(rank, *weight.shape[1:]), scale=0.1).astype(np.float32)
            up = generator.normal(size=(len(weight), rank, *[1] * (weight.ndim - 2)), scale=0.1)
            known = original_name(layer) if original and component == "unet" else layer
            known = PREFIXES[component] + known.replace(".", "_")
            tensors |= {f"{known}.lora_down.weight": down, f"{known}.lora_up.weight": up.astype(np.float32)}
            if alpha is not None:
                tensors[f"{known}.alpha"] = np.array(alpha, np.float32)
            scale = 1 if alpha is None else alpha / rank
            product = up.reshape(-1, rank) @ down.reshape(rank, -1)
            expected[component][name] = weight + scale * product.reshape(weight.shape)
    save_file(tensors, file)
    return expected


@pytest.mark.parametrize(
    ("base", "components", "original"),
    [
        ("pristine_checkpoint", ["unet", "text_encoder"], False),
        pytest.param("pristine_xl", ["unet", "text_encoder_2"], True, marks=pytest.mark.slow),
    ],
    ids=["linear and convolution, SD", "attention by the original names, SDXL"],
)
def test_each_layer_has_its_own_scale(
    request: pytest.FixtureRequest, tmp_path: Path, base: str, components: list[str], original: bool
) -> None:
    folder, file = request.getfixturevalue(base), tmp_path / "style.safetensors"
    expected = kohya_lora(folder, components, file, original=original)
    changed = 0
    for component, weights in expected.items():
        mine, before = stored(folder, component, weights=file), stored(folder, component)
        assert mine.keys() == weights.keys()
        for name, weight in weights.items():
            np.testing.assert_allclose(mine[name], weight, rtol=0, atol=2e-6, err_msg=name)
            changed += not np.array_equal(mine[name], before[name])
    assert changed == len([name for name in load_file(file) if "lora_down" in name])


def test_a_lora_of_another_base_is_told_by_the_shapes(
    pristine_checkpoint: Path, pristine_xl: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kohya_lora(pristine_checkpoint, ["unet"], tmp_path / FILE)
    with pytest.raises(CheckpointError, match=r"have other shapes than .*of the base is") as caught:
        resolve(str(pristine_xl), weights=tmp_path)
    assert f"other shapes than {pristine_xl} (found 'matrices (" in str(caught.value)
    assert "mismatch" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["peft", "save_lora_adapter"])
def test_the_printed_way_to_fuse_a_lora_without_components_works(
    pristine_checkpoint: Path, tmp_path: Path, form: str
) -> None:
    unet = UNet2DConditionModel.from_pretrained(pristine_checkpoint, subfolder="unet")
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["to_q"], init_lora_weights=False)
    if form == "peft":
        network = get_peft_model(unet, config)
        network.save_pretrained(tmp_path / "lora")
    else:
        unet.add_adapter(config)
        unet.save_lora_adapter(tmp_path / "lora")
    says = "an adapter in peft's own form" if form == "peft" else "do not say of which component"
    with pytest.raises(CheckpointError, match=says) as caught:
        resolve(str(pristine_checkpoint), weights=tmp_path / "lora")
    steps = str(caught.value.remedy).partition("save that: ")[2].replace("...", "OUT")
    pipeline = StableDiffusionPipeline.from_pretrained(pristine_checkpoint)
    with torch.no_grad():
        for step in re.split(r", (?=pipeline\.)", steps):
            exec(
                step,
                {},
                {
                    "pipeline": pipeline,
                    "PeftModel": PeftModel,
                    "FOLDER": tmp_path / "lora",
                    "OUT": tmp_path / "out",
                },
            )
    mine, before = stored(tmp_path / "out", "unet"), stored(pristine_checkpoint, "unet")
    file = next((tmp_path / "lora").glob("*.safetensors"))
    lora = {name.removeprefix("base_model.model."): value for name, value in load_file(file).items()}
    assert mine.keys() == before.keys()
    for name in before:
        layer = name.removesuffix(".weight")
        delta = 0
        if f"{layer}.lora_A.weight" in lora:
            delta = 8 * lora[f"{layer}.lora_B.weight"] @ lora[f"{layer}.lora_A.weight"]
        np.testing.assert_allclose(mine[name], before[name] + delta, rtol=0, atol=2e-6)


def test_what_lies_beside_a_lora_is_named(pristine_checkpoint: Path, tmp_path: Path) -> None:
    kohya_lora(pristine_checkpoint, ["text_encoder"], tmp_path / FILE)
    save_file({"clip_l": np.zeros((2, 16), np.float32)}, tmp_path / "pivotal_emb.safetensors")
    note = "not looked at: pivotal_emb.safetensors"
    assert resolve(str(pristine_checkpoint), weights=tmp_path).choices[1:] == (note,)
    # Who names a file has chosen it.
    assert len(resolve(str(pristine_checkpoint), weights=tmp_path / FILE).choices) == 1


def test_a_lora_beside_a_unet_is_named(pristine_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "unet").symlink_to(pristine_checkpoint / "unet")
    save_file({"unet.x.lora_A.weight": np.zeros((1, 1), np.float32)}, tmp_path / FILE)
    found = resolve({"base": str(pristine_checkpoint), "unet": str(tmp_path)})
    assert found.choices == (f"not looked at: {FILE}",)


@pytest.mark.parametrize("name", ["style.ckpt", "style.pt", "style.bin"])
def test_a_lora_in_a_pickle_is_called_one(pristine_checkpoint: Path, tmp_path: Path, name: str) -> None:
    kohya_lora(pristine_checkpoint, ["text_encoder"], tmp_path / FILE)
    tensors = {name: torch.from_numpy(value) for name, value in load_file(tmp_path / FILE).items()}
    (tmp_path / "lora").mkdir()
    torch.save(tensors, tmp_path / "lora" / name)
    for given in [tmp_path / "lora" / name, *([tmp_path / "lora"] if name.endswith("bin") else [])]:
        with pytest.raises(CheckpointError, match=r"a LoRA in a pickle.*save_file\(torch\.load") as caught:
            resolve(str(pristine_checkpoint), weights=given)
        assert caught.value.file == tmp_path / "lora" / name
    way = str(caught.value.remedy).partition(": ")[2].replace('"NAME.safetensors"', "OUT")
    out = tmp_path / "style.safetensors"
    exec(way, {"safetensors": safetensors, "torch": torch}, {"FILE": caught.value.file, "OUT": out})
    np.testing.assert_equal(load_file(out), load_file(tmp_path / FILE))


def test_a_lora_that_is_called_a_single_file_is_told_to_be_one(
    pristine_checkpoint: Path, tmp_path: Path
) -> None:
    kohya_lora(pristine_checkpoint, ["text_encoder"], tmp_path / "style.safetensors")
    with pytest.raises(CheckpointError, match=r"this is a LoRA, .*\{base: \.\.\., lora: "):
        resolve({"base": str(pristine_checkpoint), "file": str(tmp_path / "style.safetensors")})
