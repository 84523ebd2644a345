"""Begin a U-Net so that every level passes pictures on.

Drawn at random, a small U-Net learns to denoise by its outer levels first, and the inner ones, whose output
is noise to them, fade. Here every residual branch begins at zero, so that blocks are the identity, and what
is left, the straight way, halves pictures by means of four pixels and doubles them by repeats: each level
has its say in the prediction from the first step on.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn


@torch.no_grad()
def straighten(unet: UNet2DConditionModel) -> None:
    """Set the branches of a U-Net to zero and its straight way to means and repeats, in place.

    Identity of residual branches at the start: Goyal et al. 2017, section 5.1.
    """
    for layer in unet.modules():
        if isinstance(layer, ResnetBlock2D):
            _silence(layer.conv2)
        elif isinstance(layer, Transformer2DModel):
            _silence(layer.proj_out)
        elif isinstance(layer, Downsample2D):
            # A kernel of 3 x 3 with stride 2 sees the pixel before its four: that one counts nothing.
            _pass_on(layer.conv, (slice(1, 3), slice(1, 3)), 0.25)
        elif isinstance(layer, Upsample2D):
            _pass_on(layer.conv, (1, 1), 1.0)
    for block in filter(None, (*unet.down_blocks, unet.mid_block)):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                _shortcut(resnet.conv_shortcut, resnet.conv_shortcut.in_channels, 1.0)
    straight, met = unet.config["block_out_channels"][-1], 1
    for block in unet.up_blocks:
        for resnet in block.resnets:
            # A running mean: in the end the mid block and each skip count the same.
            _shortcut(resnet.conv_shortcut, straight, met / (met + 1))
            straight, met = resnet.out_channels, met + 1


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.zero_()


def _pass_on(convolution: nn.Module, taps: tuple[slice | int, slice | int], weight: float) -> None:
    kernel, bias = convolution.weight, convolution.bias
    assert isinstance(kernel, Tensor)
    assert isinstance(bias, Tensor)
    kernel.zero_()
    bias.zero_()
    for channel in range(len(kernel)):
        kernel[(channel, channel, *taps)] = weight


def _shortcut(convolution: nn.Module, straight: int, share: float) -> None:
    """Take a share of the straight way, the first channels, and the rest of the skip, the others.

    Where there are more channels behind than before, they repeat; where there are fewer, the last are left.
    """
    kernel, bias = convolution.weight, convolution.bias
    assert isinstance(kernel, Tensor)
    assert isinstance(bias, Tensor)
    kernel.zero_()
    bias.zero_()
    skip = kernel.shape[1] - straight
    for channel in range(len(kernel)):
        kernel[channel, channel % straight] = share
        if skip:
            kernel[channel, straight + channel % skip] = 1 - share
