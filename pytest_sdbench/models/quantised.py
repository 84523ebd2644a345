"""Say how a component is quantised, and whether that can be loaded here."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable
from pytest_sdbench.models.weights import QUANTISED

_OTHERS = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes and a CUDA GPU"),
    "gguf": ("gguf", "gguf, and a single file .gguf"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "modelopt": ("modelopt", "NVIDIA's modelopt and a CUDA GPU"),
    "auto-round": ("auto_round", "auto-round"),
    "nunchaku_lite": ("nunchaku", "nunchaku and a CUDA GPU"),
    "sdnq": ("sdnq", "sdnq"),
}
"""Other methods that diffusers knows: the package, and what loading takes."""
_DIFFUSERS = ("unet", "vae")


def quantised_words(config: Any) -> str:
    """Return in words what a ``quantization_config`` says: "int8 weights (torchao)"."""
    method, kind = method_of(config), ""
    if method == "torchao" and isinstance(config, Mapping):
        default = config.get("quant_type", {})
        default = default.get("default", default) if isinstance(default, Mapping) else default
        kind = str(default.get("_type") if isinstance(default, Mapping) else default)
        if found := re.match(r"(Int|Float)(\d+)(WeightOnly|DynamicActivation|StaticActivation)", kind):
            kind = f"{found[1].lower()}{found[2]} weights"
            kind += "" if found[3] == "WeightOnly" else " and activations"
    elif method == "bitsandbytes":
        kind = "4-bit weights" if config.get("load_in_4bit") else "8-bit weights"
    return f"{kind} ({method})" if kind else method


def method_of(config: Any) -> str:
    """Return the ``quant_method`` of a ``quantization_config``."""
    if not isinstance(config, Mapping):
        return repr(config)
    if config.get("load_in_8bit") or config.get("load_in_4bit"):
        return "bitsandbytes"
    return str(config.get("quant_method"))


def check_quantised(component: str, config: Any, file: Path) -> None:
    """Raise unless a component that is quantised so can be loaded here.

    ``Unavailable`` names the method and what it takes; ``CheckpointError`` is of a method that nobody knows.
    """
    method, words = method_of(config), quantised_words(config)
    elsewhere = "Score the pictures that it draws: python -m pytest_sdbench score; or load it in the fixture "
    elsewhere += "sdbench_pipeline"
    if method in _OTHERS:
        package, needs = _OTHERS[method]
        lacks = importlib.util.find_spec(package.split(".")[0]) is None
        what = f"quantised {component}: {words} takes {needs}, and is not loaded by this suite (yet)"
        found = f"{package} is {'not ' * lacks}installed here"
        raise Unavailable(what, file=file, key="quantization_config", found=found, remedy=elsewhere)
    if method != "torchao":
        what, remedy = "quantised weights of an unknown method", "Give the weights in float16 or more"
        raise CheckpointError(what, file=file, key="quantization_config", found=method, remedy=remedy)
    if component not in _DIFFUSERS:
        what, remedy = f"quantised weights of the {component}, which are not supported (yet)", elsewhere
        raise CheckpointError(what, file=file, key="quantization_config", found=words, remedy=remedy)
    if importlib.util.find_spec("torchao") is None:
        what = f"quantised {component}: {words} is loaded by torchao, which is not installed here"
        raise Unavailable(what, file=file, key="quantization_config", remedy=QUANTISED)
