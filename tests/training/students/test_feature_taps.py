"""Features inside a U-Net: which layers are compared, what is caught there, and that it teaches."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextConfig, CLIPTextModel

from pytest_sdbench.models.architectures import ARCHITECTURES
from pytest_sdbench.models.skeleton import unet_skeleton
from tests.tiny_checkpoint import TEXT_ENCODER, UNET
from training.errors import TrainingError
from training.students.block_removal import build_student, student_config
from training.students.feature_taps import (
    Denoiser,
    Hearing,
    Readout,
    feature_pairs,
    inner_taps,
    without_gradient,
)

ENDS = [("down_blocks.0", "down_blocks.0"), ("down_blocks.1", "down_blocks.1")]
UPS = [("up_blocks.1", "up_blocks.0"), ("up_blocks.2", "up_blocks.1"), ("up_blocks.3", "up_blocks.2")]
SAME = [(f"{way}_blocks.{i}", f"{way}_blocks.{i}") for way in ("down", "up") for i in (0, 1, 2, 3)]
PROJECTION = "down_blocks.2.attentions.0.proj_out"
PAIRS: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("bk-sdm", "base"): SAME,
    ("bk-sdm", "small"): SAME,
    ("bk-sdm", "tiny"): [*ENDS, ("down_blocks.2.attentions.1.proj_out", PROJECTION), *UPS],
    ("segmind", "base"): [*SAME[:4], ("mid_block", "mid_block"), *SAME[4:]],
    ("segmind", "tiny"): [*ENDS, ("up_blocks.0", "down_blocks.2"), *UPS],
}


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(batch, 4, 8, 8, generator=generator)
    text = torch.randn(batch, 7, 16, generator=generator)
    return noisy, torch.tensor([10, 700])[:batch], text


@cache
def _networks(remove: Any) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    torch.manual_seed(0)
    teacher = UNet2DConditionModel(**UNET)
    return teacher, build_student(teacher, remove)


def networks(remove: Any) -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    """Return copies of a teacher and its student that a test may train."""
    return copy.deepcopy(_networks(remove))


@pytest.mark.parametrize(("pairing", "remove"), PAIRS)
def test_pairs_are_the_published_ones(pairing: Any, remove: Any) -> None:
    assert list(feature_pairs(pairing, remove)) == PAIRS[pairing, remove]


@pytest.mark.slow
@pytest.mark.parametrize(("pairing", "remove"), PAIRS)
def test_pairs_have_equal_shapes_at_full_size(pairing: Any, remove: Any) -> None:
    teacher = unet_skeleton(ARCHITECTURES["sd-v1"])
    student = unet_skeleton(student_config(ARCHITECTURES["sd-v1"], remove))
    pairs = feature_pairs(pairing, remove)
    shapes = []
    for network, taps in ((teacher, [p[0] for p in pairs]), (student, [p[1] for p in pairs])):
        with torch.device("meta"):
            arguments = torch.empty(2, 4, 64, 64), torch.empty(2), torch.empty(2, 77, 768)
            _, features = Denoiser(network, taps)(*arguments)
        shapes.append([tuple(feature.shape) for feature in features])
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == len(pairs)


@pytest.mark.parametrize(("pairing", "remove"), PAIRS)
def test_features_are_what_the_layers_put_out(pairing: Any, remove: Any) -> None:
    _, student = networks(remove)
    taps = [mine for _, mine in feature_pairs(pairing, remove)]
    own: dict[str, torch.Tensor] = {}
    layers = dict(student.named_modules())
    for tap in taps:

        def keep(_module: Any, _inputs: Any, output: Any, name: str = tap) -> None:
            own[name] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        layers[tap].register_forward_hook(keep)
    tapped = Denoiser(student, taps)
    prediction, features = tapped(*inputs())
    for tap, feature in zip(taps, features, strict=True):
        assert torch.equal(feature, own[tap]), tap
    assert torch.equal(prediction, student(*inputs()).sample)


def feature_gradient(checkpointing: str) -> dict[str, torch.Tensor | None]:
    """Return the gradient of the projection's feature loss alone, by parameter."""
    teacher, student = networks("tiny")
    student.train()
    if checkpointing != "none":
        for block in student.down_blocks:
            for attention in block.attentions:
                wrap(attention, reentrant=checkpointing == "reentrant")
    _, (wanted,) = without_gradient(Denoiser(teacher, ["down_blocks.2.attentions.1.proj_out"]), *inputs())
    _, (feature,) = Denoiser(student, [PROJECTION])(*inputs())
    loss = (feature - wanted).square().mean()
    if loss.requires_grad:
        loss.backward()
    return {name: weight.grad for name, weight in student.named_parameters()}


def wrap(layer: Any, reentrant: bool) -> None:
    """Checkpoint a whole layer, as diffusers did with attentions when BK-SDM was published."""
    original = layer.forward

    def forward(hidden: torch.Tensor, **rest: Any) -> Any:
        return checkpoint(lambda value: original(value, **rest), hidden, use_reentrant=reentrant)

    layer.forward = forward


@pytest.mark.slow
def test_the_projection_of_tiny_has_the_same_gradient_with_checkpointed_attentions() -> None:
    plain, checkpointed = feature_gradient("none"), feature_gradient("whole attentions")
    for name in (f"{PROJECTION}.weight", "down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"):
        gradient, same = plain[name], checkpointed[name]
        assert gradient is not None
        assert same is not None
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(same, gradient, rtol=1e-4, atol=1e-9)


def test_the_published_way_of_checkpointing_loses_that_gradient() -> None:
    """The control: reentrant checkpoints run their layers without a graph, so a hook catches dead ends."""
    assert all(gradient is None for gradient in feature_gradient("reentrant").values())


def test_all_features_and_the_prediction_give_the_same_gradient_with_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        _, student = networks("tiny")
        student.train()
        if checkpointing:
            student.enable_gradient_checkpointing()
        tapped = Denoiser(student, [mine for _, mine in feature_pairs("bk-sdm", "tiny")])
        prediction, features = tapped(*inputs())
        sum([prediction.square().mean(), *(feature.square().mean() for feature in features)]).backward()
        gradients.append([weight.grad for weight in student.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-7)


class Small(nn.Module):
    """A network that is called as a U-Net is: compiling a U-Net takes too long for a test."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, noisy: Any, _steps: Any, _text: Any, **_rest: Any) -> tuple[torch.Tensor]:
        return (self.second(self.first(noisy).relu()),)


@pytest.mark.slow
def test_compiled_networks_put_out_the_same_features_with_the_same_gradient() -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        tapped = Denoiser(Small(), ["first"])
        if compiled:
            tapped.compile(backend="aot_eager")
        for _ in range(2):
            tapped.zero_grad()
            prediction, (feature,) = tapped(*inputs())
            (prediction.square().mean() + feature.square().mean()).backward()
        found.append([prediction, feature, *(weight.grad for weight in tapped.parameters())])
    for plain, same in zip(*found, strict=True):
        torch.testing.assert_close(same, plain)


def test_frozen_networks_give_no_gradient() -> None:
    teacher, _ = networks("tiny")
    prediction, (feature,) = without_gradient(Denoiser(teacher, ["mid_block"]), *inputs())
    assert not prediction.requires_grad
    assert not feature.requires_grad


def test_a_layer_that_is_not_there_is_named() -> None:
    _, student = networks("tiny")
    with pytest.raises(TrainingError, match=r"mid_block: .*no such layer"):
        Denoiser(student, ["mid_block"])


def test_text_encoder_that_learns_gets_a_gradient() -> None:
    _, student = networks("tiny")
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=50, **TEXT_ENCODER)).train()
    noisy, steps, _ = inputs()
    tokens = torch.randint(0, 50, (2, 77), generator=torch.Generator().manual_seed(0))
    prediction, _ = Denoiser(student, (), encoder)(noisy, steps, tokens)
    assert torch.equal(prediction, student(noisy, steps, encoder(tokens).last_hidden_state).sample)
    prediction.square().mean().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_inner_levels_are_handed_no_skips_in_the_pictures_that_say_so() -> None:
    unet, _ = networks("base")
    model, given = Denoiser(unet).drop_inner_skips(), inputs()
    whole, _ = model(*given)
    torch.testing.assert_close(whole, unet(*given).sample, rtol=0, atol=0)
    found, _ = model(*given, None, torch.tensor([True, False]))
    torch.testing.assert_close(found[0], whole[0])

    def zero(_module: Any, inputs: Any, named: dict[str, Any]) -> Any:
        skips = tuple(torch.zeros_like(skip) for skip in named["res_hidden_states_tuple"])
        return inputs, {**named, "res_hidden_states_tuple": skips}

    hooks = [block.register_forward_pre_hook(zero, with_kwargs=True) for block in unet.up_blocks[:2]]
    without = unet(*given).sample
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found[1], without[1])
    assert not torch.allclose(without[1], whole[1])


def test_the_mid_block_alone_hears_the_whole_caption_in_the_pictures_that_say_so() -> None:
    unet, _ = networks("base")
    model, given = Denoiser(unet).tell_blocks_apart(), inputs()
    whole, _ = model(*given)
    torch.testing.assert_close(whole, unet(*given).sample, rtol=0, atol=0)
    outline = torch.randn_like(given[2])
    found, _ = model(*given, None, None, Hearing(outline, torch.tensor([True, False])))
    torch.testing.assert_close(found[0], whole[0])

    def instead(_module: Any, inputs: Any, named: dict[str, Any]) -> Any:
        return inputs, {**named, "encoder_hidden_states": outline}

    outer = [
        layer.register_forward_pre_hook(instead, with_kwargs=True)
        for name, layer in unet.named_modules()
        if name.endswith("attn2") and "mid_block" not in name
    ]
    muffled = unet(*given).sample
    for hook in outer:
        hook.remove()
    torch.testing.assert_close(found[1], muffled[1])
    assert not torch.allclose(muffled[1], whole[1])
    assert not torch.allclose(muffled[1], unet(*given[:2], outline).sample[1])


def test_a_text_encoder_that_learns_reads_what_the_outer_levels_hear() -> None:
    unet, _ = networks("base")
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=50, **TEXT_ENCODER)).train()
    model, (noisy, steps, _) = Denoiser(unet, (), encoder).tell_blocks_apart(), inputs()
    tokens, outline = torch.randint(0, 50, (2, 2, 77), generator=torch.Generator().manual_seed(0))
    found, _ = model(noisy, steps, tokens, None, None, Hearing(outline, torch.tensor([False, False])))
    states = [encoder(each).last_hidden_state for each in (tokens, outline)]
    model.text_encoder = None
    told, _ = model(noisy, steps, states[0], None, None, Hearing(states[1], torch.tensor([False, False])))
    torch.testing.assert_close(found, told)


class TestReadouts:
    """What the inner levels say is read as a picture."""

    def readouts(self, unet: UNet2DConditionModel) -> Denoiser:
        taps = inner_taps(unet)
        reads = nn.ModuleList(Readout(channels, 4, covers) for channels, covers in taps.values())
        return Denoiser(unet, tuple(taps), None, reads)

    @pytest.mark.parametrize(("remove", "levels"), [("base", 4), ("small", 3), ("tiny", 2)])
    def test_each_inner_level_and_the_mid_block_give_a_picture(self, remove: Any, levels: int) -> None:
        noisy, steps, text = inputs()
        for unet in networks(remove)[remove != "base" :]:
            _, pictures = self.readouts(unet)(noisy, steps, text)
            assert {picture.shape for picture in pictures} == {noisy.shape}
        assert len(pictures) == levels

    def test_the_innermost_are_read_before_outer_levels_add_to_them(self) -> None:
        model = self.readouts(networks("base")[0])
        for read in model.readouts or ():
            nn.init.normal_(read.read.weight)
        _, (mid, *_) = model(*inputs())
        mid.square().mean().backward()
        reached = {name for name, weight in model.unet.named_parameters() if weight.grad is not None}
        assert any(name.startswith("mid_block") for name in reached)
        assert not any(name.startswith("up_blocks") for name in reached)

    def test_pixels_of_a_level_are_read_one_by_one(self) -> None:
        read = Readout(6, 4, 2)
        nn.init.normal_(read.read.weight)
        feature = torch.randn(1, 6, 3, 3)
        changed = feature.clone()
        changed[:, :, 1, 2] += 1
        moved = (read(changed) - read(feature)).abs().sum(dim=(0, 1)) > 0
        assert moved.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]

    def test_they_leave_the_prediction_alone(self) -> None:
        unet, _ = networks("base")
        found, _ = self.readouts(unet)(*inputs())
        torch.testing.assert_close(found, unet(*inputs()).sample, rtol=0, atol=0)
