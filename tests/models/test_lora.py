"""A LoRA on its base is the checkpoint that diffusers makes of the two by fusing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands.plan_downloads import checkpoint_downloads
from pytest_sdbench.commands.systems import system_of
from pytest_sdbench.models.changes import changes
from pytest_sdbench.models.checkpoint import resolve, scheduler_class
from pytest_sdbench.models.counts import component_sizes
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.layout import LORA
from tests.models.test_single_file import pictures
from tests.project import make_card

FILE = f"{LORA}.safetensors"
ALPHA = 8.0
TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
}


@pytest.fixture(scope="module")
def lora(pristine_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LoRA of U-Net and text encoder, trained by nobody, as the training saves one."""
    pipeline = StableDiffusionPipeline.from_pretrained(pristine_checkpoint)
    return save_lora(pipeline, TARGETS, tmp_path_factory.mktemp("lora"))


def save_lora(
    pipeline: Any, targets: dict[str, list[str]], folder: Path, **patterns: dict[str, float]
) -> Path:
    """Save a random LoRA of some components of a pipeline; patterns are ranks and alphas of single layers."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    found = dict[str, Any]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, modules in targets.items():
            network = getattr(pipeline, name)
            network.add_adapter(
                LoraConfig(
                    r=4, lora_alpha=int(ALPHA), init_lora_weights=False, target_modules=modules, **patterns
                )
            )
            state = get_peft_model_state_dict(network)
            found[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(state)
            found[f"{name}_lora_adapter_metadata"] = {
                "r": 4,
                "lora_alpha": int(ALPHA),
                "target_modules": modules,
                **patterns,
            }
    pipeline.save_lora_weights(folder, **found)
    return folder


def delta(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    """Return what the LoRA adds to a layer: alpha / r, times up, times down (Hu et al. 2021, section 4.1)."""
    down, up = tensors[f"{layer}.down.weight"], tensors[f"{layer}.up.weight"]
    return ALPHA / down.shape[0] * (up.double() @ down.double())


@pytest.mark.slow
def test_it_is_the_folder_that_a_user_would_fuse_and_save(
    pristine_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(pristine_checkpoint)
    pipeline.load_lora_weights(lora)
    pipeline.fuse_lora(components=list(TARGETS))
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "fused")
    mine, theirs = resolve(str(pristine_checkpoint), weights=lora), resolve(str(tmp_path / "fused"))
    for name in TARGETS:
        assert mine.file_digests(name) == theirs.file_digests(name)
    assert np.array_equal(pictures(mine), pictures(theirs))
    base = resolve(str(pristine_checkpoint))
    assert mine.fingerprint != base.fingerprint
    assert component_sizes(mine) == component_sizes(base)
    # By the formula, not by the library.
    tensors, layer = load_file(lora / FILE), "mid_block.attentions.0.transformer_blocks.0.attn1.to_v"
    stored = "unet/diffusion_pytorch_model.safetensors"
    one, two = (load_file(each.folder / stored)[f"{layer}.weight"] for each in (mine, base))
    assert torch.allclose((one - two).double(), delta(tensors, f"unet.{layer}.lora"), atol=1e-6)
    # What it does not change is not copied.
    assert (mine.folder / "vae" / "diffusion_pytorch_model.safetensors").is_symlink()


@pytest.mark.slow
def test_it_stands_on_two_text_encoders(pristine_xl: Path, tmp_path: Path) -> None:
    targets = TARGETS | {"text_encoder_2": TARGETS["text_encoder"]}
    pipeline = StableDiffusionXLPipeline.from_pretrained(pristine_xl)
    lora = save_lora(pipeline, targets, tmp_path / "lora")
    pipeline = StableDiffusionXLPipeline.from_pretrained(pristine_xl)
    pipeline.load_lora_weights(lora)
    pipeline.fuse_lora(components=list(targets))
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "fused")
    mine, theirs = resolve(str(pristine_xl), weights=lora), resolve(str(tmp_path / "fused"))
    for name in targets:
        assert mine.file_digests(name) == theirs.file_digests(name)
    assert np.array_equal(pictures(mine), pictures(theirs))
    base = resolve(str(pristine_xl))
    assert len({each.fingerprint for each in (mine, theirs, base)}) == 3
    assert [line.split(":")[0] for line in changes(mine, base)] == list(targets)


def test_verdicts_say_what_it_is_and_what_it_changed(pristine_checkpoint: Path, lora: Path) -> None:
    mine, base = resolve(str(pristine_checkpoint), weights=lora), resolve(str(pristine_checkpoint))
    layers = sum(".down.weight" in name for name in load_file(lora / FILE))
    assert mine.choices == (
        f"LoRA on {pristine_checkpoint}: {FILE}, {layers} layers of rank 4, fused at scale 1",
    )
    assert mine.spec == f"base: {pristine_checkpoint}, lora: {lora}"
    unet, text = changes(mine, base)
    assert unet.startswith("unet: 128 of 684 tensors differ")
    assert text.startswith("text_encoder: 8 of 36")


def kohya(tensors: dict[str, torch.Tensor], alphas: Mapping[str, float] = {}) -> dict[str, torch.Tensor]:
    """Return a LoRA by the names of kohya's scripts, each layer with its alpha, told by how its name ends."""
    found = {}
    for name, value in tensors.items():
        component, rest = name.split(".", 1)
        layer = rest.replace(".lora_linear_layer", "").replace(".lora", "").rsplit(".", 2)[0]
        prefix = "lora_unet_" if component == "unet" else "lora_te_text_model_"
        known = prefix + layer.replace(".", "_")
        found[f"{known}.lora_{'up' if '.up.' in rest else 'down'}.weight"] = value
        alpha = next((alphas[end] for end in alphas if layer.endswith(end)), ALPHA)
        found[f"{known}.alpha"] = torch.tensor(alpha)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("form", ["kohya", "bin"])
def test_other_forms_of_one_lora_are_one_checkpoint(
    pristine_checkpoint: Path, lora: Path, tmp_path: Path, form: str
) -> None:
    tensors = kohya(load_file(lora / FILE))
    path = tmp_path / ("style.safetensors" if form == "kohya" else f"{LORA}.bin")
    save_file(tensors, path) if form == "kohya" else torch.save(tensors, path)
    mine = resolve(str(pristine_checkpoint), weights=path)
    assert mine.fingerprint == resolve(str(pristine_checkpoint), weights=lora).fingerprint


@pytest.mark.slow
def test_other_forms_are_one_checkpoint_where_alphas_differ(
    pristine_checkpoint: Path, tmp_path: Path
) -> None:
    alphas = {"to_k": 1.0, "to_v": 3.0, "v_proj": 2.0}
    pipeline = StableDiffusionPipeline.from_pretrained(pristine_checkpoint)
    ranks = {"to_v": 2, "q_proj": 3}
    lora = save_lora(pipeline, TARGETS, tmp_path / "lora", rank_pattern=ranks, alpha_pattern=alphas)
    save_file(kohya(load_file(lora / FILE), alphas), tmp_path / "style.safetensors")
    mine, theirs = (
        resolve(str(pristine_checkpoint), weights=each) for each in (tmp_path / "style.safetensors", lora)
    )
    assert mine.fingerprint == theirs.fingerprint
    for name in TARGETS:
        assert mine.file_digests(name) == theirs.file_digests(name)


Change = Callable[[dict[str, torch.Tensor]], Any]


def test_its_base_is_verified_and_described_too(tiny_checkpoint: Path, lora: Path) -> None:
    unet = tiny_checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    (tiny_checkpoint / "unet_ema").mkdir()
    shutil.copy(unet, tiny_checkpoint / "unet_ema" / unet.name)
    shutil.copy(unet, unet.with_suffix(".bin"))
    mine = resolve(str(tiny_checkpoint), weights=lora)
    of_base = resolve(str(tiny_checkpoint)).choices
    assert len(of_base) == 2
    assert mine.choices[:2] == of_base
    assert mine.choices[2].startswith("LoRA on ")
    verify(mine)
    tensors = load_file(unet)
    name = next(name for name in tensors if name.endswith("norm1.weight"))
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, unet, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="integers in the place of weights") as caught:
        verify(resolve(str(tiny_checkpoint), weights=lora))
    assert caught.value.file == unet


def test_its_fingerprint_is_that_of_base_and_matrices(
    pristine_checkpoint: Path, tiny_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    mine = resolve(str(pristine_checkpoint), weights=lora)
    # Another processor rounds the products otherwise.
    folder = Path(shutil.copytree(mine.folder, tmp_path / "rounded"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    rounded = {name: value * (1 + 2**-23) for name, value in load_file(weights).items()}
    save_file(rounded, weights, metadata={"format": "pt"})
    assert replace(mine, folder=folder).fingerprint == mine.fingerprint
    tensors = load_file(lora / FILE)
    next(iter(tensors.values()))[0, 0] += 1
    save_file(tensors, tmp_path / FILE)
    other = resolve(str(pristine_checkpoint), weights=tmp_path / FILE)
    config = tiny_checkpoint / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"beta_end": 0.5}))
    based = resolve(str(tiny_checkpoint), weights=lora / FILE)
    assert len({each.fingerprint for each in (mine, other, based)}) == 3


@pytest.mark.parametrize("spec", ["loras/my.safetensors", "my.bin"])
def test_what_ends_like_weights_is_a_path(tiny_checkpoint: Path, tmp_path: Path, spec: str) -> None:
    with pytest.raises(CheckpointError, match="no such file of weights") as caught:
        resolve({"base": str(tiny_checkpoint), "lora": spec}, near=tmp_path)
    assert str(tmp_path / spec) in str(caught.value)
    joined = {"base": str(tiny_checkpoint), "lora": spec}
    card = read_card(make_card(tmp_path / "hub.md", checkpoint=joined, protocols=[], claims={}))
    assert checkpoint_downloads(card) == ()


def test_on_a_found_checkpoint_it_keeps_the_scheduler_of_its_u_net(
    pristine_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    shutil.copytree(pristine_checkpoint / "unet", tmp_path / "unet")
    config = json.loads((pristine_checkpoint / "scheduler" / "scheduler_config.json").read_text())
    LCMScheduler.from_config(config).save_pretrained(tmp_path / "scheduler")
    base = resolve({"base": str(pristine_checkpoint), "unet": str(tmp_path)})
    mine = resolve(base, weights=lora / FILE)
    assert scheduler_class(base) == scheduler_class(mine) == "LCMScheduler"
    # Another LoRA takes its place.
    assert resolve(mine, weights=lora / FILE).fingerprint == mine.fingerprint
    card = make_card(
        tmp_path / "lcm.md",
        checkpoint={"base": str(pristine_checkpoint), "unet": str(tmp_path)},
        protocols=[],
        claims={},
    )
    left = system_of(str(card), None)
    assert system_of(str(lora / FILE), left.checkpoint).checkpoint.fingerprint == mine.fingerprint


def elsewhere(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "mid_block" in name]:
        tensors[name.replace("mid_block", "side_block")] = tensors.pop(name)


def wider(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "mid_block" in name and "down" in name)
    tensors[name] = torch.cat([tensors[name]] * 2, dim=1)


def nameless(tensors: dict[str, torch.Tensor]) -> None:
    # As `save_attn_procs` of 2023 and peft alone name them: of the U-Net, without saying so.
    for name in list(tensors):
        value = tensors.pop(name)
        if name.startswith("unet."):
            tensors[name.removeprefix("unet.")] = value


def nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0] = torch.nan


BAD: dict[str, tuple[Change, str]] = {
    "dora": (lambda tensors: tensors.update({"unet.a.lora.dora_scale": torch.ones(1)}), "other tensors than"),
    "no matrix": (
        lambda tensors: tensors.update({"unet.a.lora_B.bias": torch.ones(1)}),
        "other tensors than",
    ),
    "integers": (
        lambda tensors: tensors.update({name: value.to(torch.int8) for name, value in tensors.items()}),
        "integers in the place",
    ),
    "of another base": (elsewhere, "of the .* layers of the LoRA are of no layer of its base"),
    "nameless": (nameless, "do not say of which component.*load_lora_adapter"),
    "one matrix of two": (
        lambda tensors: tensors.pop(min(tensors)),
        "1 layer of the LoRA has one of its two matrices alone",
    ),
    "the other of two": (
        lambda tensors: tensors.pop(max(tensors)),
        "1 layer of the LoRA has one of its two matrices alone",
    ),
    "another shape": (
        wider,
        r"down.*: 1 of the .* layers of the LoRA have other shapes than .* "
        r"\(found 'matrices \(4, 32\) and \(16, 4\), and unet\.mid_block\..* of the base is \(16, 16\)",
    ),
    "an alpha of no layer": (
        lambda tensors: tensors.update({"unet.a.alpha": torch.ones(1)}),
        r"unet\.a\.alpha: 1 of the 1 alphas are no single number of a layer",
    ),
    "nan": (nan, rf"{FILE}: .*lora.*: NaN or infinity"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_what_would_be_left_out_is_an_error(
    pristine_checkpoint: Path, lora: Path, tmp_path: Path, change: Change, says: str
) -> None:
    tensors = load_file(lora / FILE)
    change(tensors)
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(CheckpointError, match=says):
        verify(resolve(str(pristine_checkpoint), weights=tmp_path))


def test_a_folder_of_one_lora_may_call_it_anything(
    pristine_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    shutil.copy(lora / FILE, tmp_path / "style_v1.safetensors")
    (tmp_path / "._style_v1.safetensors").write_bytes(b"\0\5\x16\7")
    save_file({"conv_in.weight": torch.ones(1)}, tmp_path / "floral.safetensors")
    named = resolve(str(pristine_checkpoint), weights=tmp_path)
    assert named.fingerprint == resolve(str(pristine_checkpoint), weights=lora).fingerprint


@pytest.mark.parametrize("name", ["learned_embeds.safetensors", "style.safetensors"])
def test_a_textual_inversion_is_called_one(pristine_checkpoint: Path, tmp_path: Path, name: str) -> None:
    save_file({"emb_params": torch.ones(2, 96)}, tmp_path / name)
    with pytest.raises(CheckpointError, match="a textual inversion"):
        resolve(str(pristine_checkpoint), weights=tmp_path / name)


def test_what_is_lacking_is_named(
    pristine_checkpoint: Path,
    tiny_checkpoint: Path,
    lora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(CheckpointError, match=r"a LoRA, which stands on a base.*\{base: .*, lora: "):
        resolve(str(lora))
    with pytest.raises(Unavailable, match="the card names none"):
        resolve(None, weights=lora)
    with pytest.raises(Unavailable, match=r"not in the hub cache.*--sdbench-download"):
        resolve({"base": str(tiny_checkpoint), "lora": "nobody/no-lora"})
    config = tiny_checkpoint / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"a": 1}}))
    with pytest.raises(CheckpointError, match="cannot be fused into quantised weights"):
        resolve(str(tiny_checkpoint), weights=lora)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(Unavailable, match=r"peft, which is not installed here.*\[training\]"):
            resolve(str(pristine_checkpoint), weights=lora)


def test_a_scheduler_that_is_published_beside_it_is_its_own(
    pristine_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    (tmp_path / FILE).symlink_to(lora / FILE)
    config = json.loads((pristine_checkpoint / "scheduler" / "scheduler_config.json").read_text())
    LCMScheduler.from_config(config).save_pretrained(tmp_path / "scheduler")
    for given, expected in ((tmp_path, "LCM"), (tmp_path / FILE, "LCM"), (lora, "PNDM")):
        found = resolve(str(pristine_checkpoint), weights=given)
        assert scheduler_class(found) == f"{expected}Scheduler"


def test_a_card_may_name_one_or_lie_beside_it(pristine_checkpoint: Path, lora: Path, tmp_path: Path) -> None:
    joined = {"base": str(pristine_checkpoint), "lora": str(lora)}
    card = read_card(make_card(tmp_path / "named.md", checkpoint=joined, protocols=[], claims={}))
    fingerprint = checkpoint_of(card).fingerprint
    # Another LoRA takes its place on the base, and does not come on top of it.
    assert checkpoint_of(card, lora / FILE).fingerprint == fingerprint
    (tmp_path / FILE).symlink_to(lora / FILE)
    beside = tmp_path / "README.md"
    beside.write_text(f"---\nbase_model: {pristine_checkpoint}\nsdbench: {{}}\n---\n")
    assert read_card(beside).checkpoint == {"base": str(pristine_checkpoint), "lora": "./"}
    assert checkpoint_of(read_card(beside)).fingerprint == fingerprint
    beside.write_text("---\nbase_model: Stable Diffusion 1.5\nsdbench: {}\n---\n")
    assert read_card(beside).checkpoint is None  # a title names no checkpoint
    hub = {"base": str(pristine_checkpoint), "lora": "nobody/no-lora"}
    card = read_card(make_card(tmp_path / "hub.md", checkpoint=hub, protocols=[], claims={}))
    assert [each.what for each in checkpoint_downloads(card)] == ["nobody/no-lora"]


def test_a_link_to_a_file_that_is_named_by_its_checksum_is_what_its_own_name_says(
    pristine_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    blob = Path(shutil.copy(lora / "pytorch_lora_weights.safetensors", tmp_path / "deadbeef"))
    (link := tmp_path / "mine.safetensors").symlink_to(blob)
    found = resolve(str(pristine_checkpoint), weights=link)
    assert found.fingerprint == resolve(str(pristine_checkpoint), weights=lora).fingerprint
    assert found.fingerprint != resolve(str(pristine_checkpoint)).fingerprint


def test_a_folder_here_is_not_looked_up_on_the_hub(
    pristine_checkpoint: Path, lora: Path, tmp_path: Path
) -> None:
    shutil.copytree(lora, tmp_path / "loras" / "mine")
    spec = {"base": str(pristine_checkpoint), "lora": "loras/mine"}
    with pytest.raises(CheckpointError, match=r"a folder here.*write \./loras/mine"):
        resolve(spec, near=tmp_path)
