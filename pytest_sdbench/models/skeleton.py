"""Build networks without trained weights: sizes, MACs, latency and memory need none."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CardError, first_line
from pytest_sdbench.models.architectures import (
    ARCHITECTURES,
    SD_V1_TEXT_ENCODER,
    SD_V1_VAE,
    SDXL_TEXT_ENCODER_2,
    Config,
)

if TYPE_CHECKING:
    import torch

_KEY = "sdbench.architecture"
OTHER_CONDITIONING = ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "num_class_embeds")
"""Keys of U-Nets that take other inputs than latents, a timestep and text."""
_TEXT_TIME = "text_time"
"""The `addition_embed_type` of SDXL: a pooled text state, and sizes and crops of the picture."""
_TEXT_TIME_WIDTHS = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
"""The keys of their widths: of each of the six numbers, and of all together."""
_MOST_LAYERS = 2000
"""Of a network: those of Stable Diffusion have 12. To build a million takes hours."""
_LARGEST_SIDE = 1024
"""Of the latents that a network is tried on."""


def unet_config(architecture: str | Config) -> Config:
    """Return the U-Net configuration that a card means, by name or inline.

    Raise ``CardError`` for an unknown name, and for an inline key that diffusers' ``UNet2DConditionModel``
    does not know (it would drop a misspelt key with a mere warning and build another network).
    """
    if isinstance(architecture, str):
        if architecture not in ARCHITECTURES:
            names = ", ".join(ARCHITECTURES)
            raise CardError("unknown architecture", key=_KEY, found=architecture, remedy=f"Known: {names}")
        return ARCHITECTURES[architecture]
    unknown = sorted(key for key in architecture if not key.startswith("_") and key not in _unet_defaults())
    if unknown:
        what = "unknown key of a U-Net configuration"
        remedy = "Use the argument names of diffusers' UNet2DConditionModel"
        raise CardError(what, key=f"{_KEY}.{unknown[0]}", found=", ".join(unknown), remedy=remedy)
    return architecture


def known_keys(config: Config) -> dict[str, Any]:
    """Return what the installed diffusers knows of a saved U-Net configuration: versions differ in it."""
    return {key: value for key, value in config.items() if key in _unet_defaults()}


def architecture_key(architecture: str | Config) -> str:
    """Return canonical JSON of a U-Net configuration: equal for networks that are built alike.

    Defaults are filled in, and private entries (the diffusers version, the folder it was loaded from) left
    out.
    """
    config = unet_config(architecture) if isinstance(architecture, str) else architecture
    known = {**_unet_defaults(), **known_keys(config)}
    return json.dumps(known, sort_keys=True, separators=(",", ":"), default=list)


def unet_skeleton(
    architecture: str | Config, *, device: str | torch.device = "meta", dtype: torch.dtype | None = None
) -> Any:
    """Build a U-Net in evaluation mode: on ``meta`` without storage, elsewhere with small random weights.

    ``dtype`` defaults to float32. The weights are finite and of ordinary size, so that a timing meets
    neither NaN nor denormal numbers. Raise ``CardError`` where diffusers refuses the configuration.
    """
    import torch
    from diffusers import UNet2DConditionModel

    config = unet_config(architecture)
    try:
        _check_layers(config)
        with torch.device("meta"):
            model = UNet2DConditionModel.from_config(dict(config)).eval().requires_grad_(False)
    except Exception as error:  # constructors fail in as many ways as there are wrong values
        what = "not a configuration of UNet2DConditionModel"
        remedy = "Compare it with the config.json of the checkpoint's unet folder"
        raise CardError(what, key=_KEY, found=first_line(error), remedy=remedy) from error
    # diffusers' own `to` warns of every cast, whether or not the model has anything to keep in float32.
    torch.nn.Module.to(model, dtype or torch.float32)
    if torch.device(device).type == "meta":
        return model
    # `to_empty` leaves buffers unset, and only the constructor could compute them: these U-Nets have none.
    assert next(model.buffers(), None) is None, "a U-Net with buffers"
    model.to_empty(device=device)
    _fill(model)
    return model


def unet_inputs(
    architecture: str | Config,
    *,
    device: str | torch.device = "meta",
    dtype: torch.dtype | None = None,
    batch: int = 1,
) -> dict[str, Any]:
    """Make the keyword arguments of one U-Net call: latents, timestep, 77 text states, guidance; SDXL's, too.

    The latents have the ``sample_size`` of the configuration (64 where it has none).
    """
    import torch

    config = unet_config(architecture)
    for key in OTHER_CONDITIONING:
        if config.get(key) is not None and config[key] != _TEXT_TIME:
            what = "only U-Nets conditioned on text, as SD v1's, are supported"
            remedy = "Leave the key out"
            raise CardError(what, key=f"{_KEY}.{key}", found=config[key], remedy=remedy)
    defaults = _unet_defaults()
    size = config.get("sample_size") or 64
    sides = [size, size] if isinstance(size, int) else size
    if not (isinstance(sides, list | tuple) and [type(side) for side in sides] == [int, int]) or not (
        0 < min(sides) <= max(sides) <= _LARGEST_SIDE
    ):
        what, remedy = "no size of latents", f"Give one number or two, from 1 to {_LARGEST_SIDE}"
        raise CardError(what, key=f"{_KEY}.sample_size", found=size, remedy=remedy)
    height, width = sides
    channels = config.get("in_channels", defaults["in_channels"])
    states = text_width(config)
    guidance = config.get("time_cond_proj_dim")
    shapes = {
        "sample": (batch, channels, height, width),
        "encoder_hidden_states": (batch, 77, states),
        **({"timestep_cond": (batch, guidance)} if guidance else {}),
    }
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {
        name: torch.randn(shape, generator=generator).to(device=device, dtype=dtype or torch.float32)
        for name, shape in shapes.items()
    }
    if config.get("addition_embed_type") == _TEXT_TIME:
        inputs["added_cond_kwargs"] = {
            name: torch.ones(batch, width, device=device, dtype=dtype or torch.float32)
            for name, width in text_time_widths(config).items()
        }
    return inputs | {"timestep": torch.full((batch,), 500, dtype=torch.int64).to(device)}


def text_width(config: Config) -> Any:
    """Return how wide the text is that a U-Net reads; one number for each block is the same."""
    width = config.get("cross_attention_dim", _unet_defaults()["cross_attention_dim"])
    same = isinstance(width, list | tuple) and len(set(map(str, width))) == 1
    return width[0] if same else width


def text_time_widths(config: Config) -> dict[str, int]:
    """Return what SDXL's U-Net is told besides the text: six numbers, each embedded, and the pooled state.

    Raise ``CardError`` where the configuration gives no width for them.
    """
    sizes: int = 0
    whole: Any = 0
    for key in _TEXT_TIME_WIDTHS:
        sizes, whole = 6 * whole, config.get(key)
        if not (isinstance(whole, int) and sizes < whole <= 2**16):
            what = "no width of SDXL's added text and sizes"
            remedy = "SDXL's is 256 for each of six sizes, and 2816 with the text"
            raise CardError(what, key=f"{_KEY}.{key}", found=whole, remedy=remedy)
    return {"text_embeds": whole - sizes, "time_ids": 6}


def text_config(config: Config) -> Config:
    """Return the configuration of a text encoder, which may stand within that of a whole CLIP."""
    inner = config.get("text_config")
    return inner if config.get("model_type") == "clip" and isinstance(inner, Mapping) else config


def text_encoder_skeleton(config: Config = SD_V1_TEXT_ENCODER, *, projected: bool = False) -> Any:
    """Build a CLIP text encoder on ``meta``; ``projected`` adds the projection that SDXL's second one has."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = text_config(config)
    _check_layers(config)
    kind: Any = CLIPTextModelWithProjection if projected else CLIPTextModel
    with torch.device("meta"):
        return kind(CLIPTextConfig.from_dict(dict(config)))


def text_encoder_skeletons(unet: Config) -> list[Any]:
    """Build the text encoders that a U-Net reads: SD v1's, SDXL's two; none where it fits neither."""
    width, first = text_width(unet), SD_V1_TEXT_ENCODER["hidden_size"]
    if unet.get("addition_embed_type") != _TEXT_TIME:
        return [text_encoder_skeleton()] if width == first else []
    if width != first + SDXL_TEXT_ENCODER_2["hidden_size"]:
        return []
    return [text_encoder_skeleton(), text_encoder_skeleton(SDXL_TEXT_ENCODER_2, projected=True)]


def vae_skeleton(config: Config = SD_V1_VAE) -> Any:
    """Build an image auto-encoder on ``meta``."""
    import torch
    from diffusers import AutoencoderKL

    _check_layers(config)
    with torch.device("meta"):
        return AutoencoderKL.from_config(dict(config))


def component_skeleton(component: str, config: Config) -> Any:
    """Build a component of a checkpoint on ``meta`` from its saved configuration, in evaluation mode."""
    if component == "unet":
        return unet_skeleton(known_keys(config))
    if component == "vae":
        return vae_skeleton(config).eval()
    return text_encoder_skeleton(config, projected=component == "text_encoder_2").eval()


def _check_layers(config: Config) -> None:
    """Raise ValueError for a configuration of more layers than can be built in seconds."""
    layers, longest = 1, 1
    for key, value in config.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        longest = max(longest, len(values))
        if "layers" in key:
            inner = [n for each in values for n in (each if isinstance(each, list | tuple) else [each])]
            layers *= max([1, *(n for n in inner if isinstance(n, int))])
    if layers * longest > _MOST_LAYERS:
        raise ValueError(f"{layers * longest:.3g} layers, and at most {_MOST_LAYERS:,} are supported")


def _fill(model: torch.nn.Module) -> None:
    """Fill the parameters: ones in the scales of norms, zeros in biases, small normal values elsewhere.

    One pool of values is repeated: drawing 860 million of them would take longer than the calls to be timed.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    pool = torch.empty(1_000_003).normal_(0.0, 0.02, generator=generator)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        values = pool.to(device=parameter.device, dtype=parameter.dtype)
        flat, whole = parameter.view(-1), parameter.numel() // pool.numel() * pool.numel()
        flat[:whole].view(-1, pool.numel()).copy_(values)
        flat[whole:].copy_(values[: flat.numel() - whole])


@functools.cache
def _unet_defaults() -> Mapping[str, Any]:
    """Return the constructor arguments of diffusers' U-Net and their defaults."""
    from diffusers import UNet2DConditionModel

    parameters = inspect.signature(UNet2DConditionModel.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}
