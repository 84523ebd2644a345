"""A U-Net that diffusers quantised with torchao is judged as it is; other methods are named."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import TorchAoConfig, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.network import Network, checkpoint_of, named_network, network_of
from pytest_sdbench.models.changes import changes
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.models.counts import component_sizes, unet_macs
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.models.weights import read_tensors
from tests.models.test_single_file import Code, pictures
from tests.project import make_card

WEIGHTS = "diffusion_pytorch_model.safetensors"


def quantise(source: Path, target: Path, **options: Any) -> Path:
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    model = UNet2DConditionModel.from_pretrained(
        source, quantization_config=config, torch_dtype=torch.float32
    )
    model.save_pretrained(target, **options)
    return target


@pytest.fixture(scope="module")
def quantised(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose U-Net has int8 weights."""
    folder = tmp_path_factory.mktemp("quantised") / "int8"
    shutil.copytree(pristine_checkpoint, folder, ignore=shutil.ignore_patterns("unet"))
    quantise(pristine_checkpoint / "unet", folder / "unet")
    return folder


@pytest.mark.slow
def test_it_runs_as_it_is_and_is_counted_as_the_network_that_it_was(
    pristine_checkpoint: Path, quantised: Path
) -> None:
    whole, mine = resolve(str(pristine_checkpoint)), resolve(str(quantised))
    verify(mine)
    assert component_sizes(mine) == component_sizes(whole)
    assert unet_macs(mine.unet_config) == unet_macs(whole.unet_config)
    assert mine.fingerprint != whole.fingerprint
    size = (quantised / "unet" / WEIGHTS).stat().st_size
    small, large = (load_file(each / "unet" / WEIGHTS) for each in (quantised, pristine_checkpoint))
    assert sum(value.nbytes for value in small.values()) < sum(value.nbytes for value in large.values())
    assert f"unet: quantised: int8 weights (torchao), {size:,} bytes" in mine.choices
    layer = load_pipeline(mine).unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_v
    assert type(layer.weight).__name__ == "Int8Tensor"
    rounded, exact = pictures(mine), pictures(whole)
    assert not np.array_equal(rounded, exact)
    assert np.abs(rounded - exact).max() < 0.2
    assert any("unet: " in line and "of 684 tensors differ" in line for line in changes(mine, whole))


def test_its_values_are_the_weights_to_half_a_step_of_each_row(
    pristine_checkpoint: Path, quantised: Path
) -> None:
    exact = load_file(pristine_checkpoint / "unet" / WEIGHTS)
    found = {name: value for name, _, value in read_tensors(resolve(str(quantised)).weights("unet"))}
    assert found.keys() == exact.keys()
    moved = {name for name, value in found.items() if not torch.equal(value, exact[name])}
    assert all(exact[name].dim() == 2 for name in moved)
    assert len(moved) > 100
    for name in moved:
        step = exact[name].abs().amax(dim=1, keepdim=True) / 127
        assert bool(((found[name] - exact[name]).abs() <= 0.51 * step).all())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"safe_serialization": False}, {"max_shard_size": "200KB"}], ids=str)
def test_a_unet_alone_in_other_files_is_the_same_network(
    pristine_checkpoint: Path, quantised: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = quantise(pristine_checkpoint / "unet", tmp_path / "unet", **options)
    mine = resolve(str(pristine_checkpoint), weights=folder)
    verify(mine)
    # Where values lie in memory moves the last digits.
    assert np.allclose(pictures(mine), pictures(resolve(str(quantised))), atol=1e-5)


Tensors = dict[str, torch.Tensor]


def drop(end: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(next(name for name in tensors if name.endswith(end)))


def fill(end: str, value: float) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors[next(name for name in tensors if name.endswith(end))].fill_(value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop("_weight_scale"), "a quantised tensor|damaged"),
        (drop("conv_out.bias"), "a quantised tensor|damaged|missing tensor"),
        (fill("_weight_scale", torch.nan), "NaN or infinity"),
        (fill("conv_out.bias", torch.inf), "NaN or infinity"),
    ],
    ids=["scale", "bias", "nan", "inf"],
)
def test_damage_is_named(
    quantised: Path, tmp_path: Path, change: Callable[[Tensors], Any], says: str
) -> None:
    folder = shutil.copytree(quantised, tmp_path / "damaged")
    file = folder / "unet" / WEIGHTS
    with safe_open(file, "pt") as handle:
        about = handle.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata=about)
    with pytest.raises(CheckpointError, match=says):
        verify(resolve(str(folder)))


def test_integers_without_a_configuration_stay_refused(quantised: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(quantised, tmp_path / "unexplained")
    edit(folder / "unet" / "config.json", None)
    with pytest.raises(CheckpointError, match="parts of quantised tensors, and no quantization_config"):
        verify(resolve(str(folder)))


def test_code_in_a_bin_is_not_run(quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(quantised, tmp_path / "code")
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({"a": Code()}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused"):
        verify(resolve(str(folder)))
    assert not (tmp_path / "was-run").exists()


def edit(file: Path, config: Any) -> None:
    content = json.loads(file.read_text())
    content.pop("quantization_config", None)
    file.write_text(json.dumps(content | ({} if config is None else {"quantization_config": config})))


OTHERS: dict[str, tuple[Any, str]] = {
    "bitsandbytes": (
        {"load_in_8bit": True},
        r"8-bit weights \(bitsandbytes\) takes .* a CUDA GPU",
    ),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4-bit weights"),
    "gguf": ({"quant_method": "gguf"}, "gguf takes gguf"),
    "quanto": ({"quant_method": "quanto"}, "optimum-quanto"),
    "modelopt": ({"quant_method": "modelopt"}, "NVIDIA's modelopt"),
}


@pytest.mark.parametrize(("config", "says"), OTHERS.values(), ids=OTHERS)
def test_other_methods_are_named_and_are_no_damage(tiny_checkpoint: Path, config: Any, says: str) -> None:
    edit(tiny_checkpoint / "unet" / "config.json", config)
    with pytest.raises(Unavailable, match=says) as caught:
        verify(resolve(str(tiny_checkpoint)))
    assert "pytest_sdbench score" in str(caught.value)


def test_a_text_encoder_and_a_machine_without_torchao(
    quantised: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(tiny_checkpoint / "text_encoder" / "config.json", {"quant_method": "torchao", "quant_type": "x"})
    with pytest.raises(CheckpointError, match="of the text_encoder, which are not supported"):
        verify(resolve(str(tiny_checkpoint)))
    edit(tiny_checkpoint / "text_encoder" / "config.json", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    edit(tiny_checkpoint / "unet" / "config.json", {"quant_method": "torchao"})
    with pytest.raises(Unavailable, match=r"torchao, which is not installed here.*\[quantised\]"):
        verify(resolve(str(tiny_checkpoint)))
    with pytest.raises(Unavailable, match=r"torchao, which is not installed here.*\[quantised\]"):
        component_sizes(resolve(str(quantised)))


def test_it_is_not_timed_as_if_it_were_whole(quantised: Path, pristine_checkpoint: Path) -> None:
    def network(checkpoint: Checkpoint) -> Network:
        return Network(checkpoint.unet_config, checkpoint)

    with pytest.raises(Unavailable, match="speed and memory of a quantised U-Net"):
        _ = network(resolve(str(quantised))).timed
    whole = network(resolve(str(pristine_checkpoint)))
    assert whole.timed == whole.unet


@pytest.mark.parametrize("named", [True, False], ids=["under test", "as a baseline"])
def test_what_cannot_be_loaded_is_not_timed_as_its_architecture(
    named: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    edit(tiny_checkpoint / "unet" / "config.json", {"quant_method": "bitsandbytes", "load_in_8bit": True})
    path = make_card(
        tmp_path / "mini.md",
        claims={},
        protocol="scenes-quick",
        checkpoint=str(tiny_checkpoint),
        architecture="bk-sdm-tiny",
    )
    card = read_card(path)
    with pytest.raises(Unavailable) as why:
        checkpoint_of(card)
    network = network_of(card, None, why.value) if named else named_network(card)
    assert network.unet == "bk-sdm-tiny" or not named
    with pytest.raises(Unavailable, match="bitsandbytes"):
        _ = network.timed
