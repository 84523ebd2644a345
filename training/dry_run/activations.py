"""Count the bytes that a step keeps for its backward pass, on ``meta`` tensors: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps of one forward pass."""

    kept: int
    """All that is saved, without parameters and their half-precision copies."""
    largest: int
    """The share of the largest resnet or transformer block: what checkpointing recomputes at once."""
    features: int
    """Numbers (not bytes) in the outputs of the watched layers."""


def unet_activations(
    config: Mapping[str, Any],
    *,
    batch: int,
    latent: tuple[int, int],
    tokens: int,
    half: bool,
    checkpointing: bool = False,
    watched: Sequence[str] = (),
) -> Activations:
    """Count for a U-Net at latents of ``latent`` (height, width) and ``tokens`` text states.

    ``half``: under autocast, where convolutions, linear layers and attention keep 16-bit numbers, and norms
    with what follows them up to the next such layer 32-bit ones. Attention is counted as a fused kernel,
    which keeps its inputs and its output but no weights.
    """
    from pytest_sdbench.models.skeleton import unet_inputs, unet_skeleton

    model = unet_skeleton(config)
    dtype = torch.bfloat16 if half else torch.float32
    inputs = unet_inputs(config, dtype=dtype)
    channels, width = inputs["sample"].shape[1], inputs["encoder_hidden_states"].shape[-1]
    inputs["sample"] = torch.empty(batch, channels, *latent, device="meta", dtype=dtype)
    inputs["encoder_hidden_states"] = torch.empty(batch, tokens, width, device="meta", dtype=dtype)
    inputs["timestep"] = torch.empty(batch, device="meta", dtype=torch.int64)
    if "timestep_cond" in inputs:
        inputs["timestep_cond"] = inputs["timestep_cond"].expand(batch, -1)
    if checkpointing:
        model.enable_gradient_checkpointing()
    return _count(model, inputs, half, watched)


def text_activations(config: Mapping[str, Any], *, batch: int, tokens: int, half: bool) -> Activations:
    """Count for a CLIP text encoder, as ``unet_activations`` does."""
    from pytest_sdbench.models.skeleton import text_encoder_skeleton

    inputs = {"input_ids": torch.zeros(batch, tokens, device="meta", dtype=torch.int64)}
    return _count(text_encoder_skeleton(config), inputs, half, ())


def _count(model: Any, inputs: Mapping[str, Any], half: bool, watched: Sequence[str]) -> Activations:
    model.train().requires_grad_(True)
    if half:
        nn.Module.to(model, torch.bfloat16)
        _as_autocast(model)
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}  # the tensors themselves, so that no storage is freed and counted again
    total, largest, features = 0, 0, 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in saved:
            saved[storage._cdata] = tensor
            total += storage.nbytes()
        return tensor

    began: dict[nn.Module, int] = {}

    def enter(module: nn.Module, _inputs: Any) -> None:
        began[module] = total

    def leave(module: nn.Module, _inputs: Any, _output: Any) -> None:
        nonlocal largest
        largest = max(largest, total - began[module])

    def watch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal features
        features += (output[0] if isinstance(output, tuple) else output).numel()

    for name, module in model.named_modules():
        if type(module).__name__ in ("ResnetBlock2D", "BasicTransformerBlock"):
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
        if name in watched:
            module.register_forward_hook(watch)
    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack), _FusedAttention():
        model(**inputs)
    return Activations(total, largest, features)


def _as_autocast(model: nn.Module) -> None:
    """Cast as autocast on CUDA does, which skips ``meta``: norms to float32, matrix products to 16 bits."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.float()
            module.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(), *inputs[1:]))
        elif isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(lambda _module, inputs: (inputs[0].bfloat16(), *inputs[1:]))


class _FusedKernel(torch.autograd.Function):
    """Save what a fused attention kernel saves: queries, keys, values, output, a number for each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        rows = torch.empty(query.shape[:-1], device=query.device, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, rows)
        return output


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Mapping[str, Any] | None = None
    ) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            return _FusedKernel.apply(*arguments[:3])
        return function(*arguments, **(keywords or {}))
