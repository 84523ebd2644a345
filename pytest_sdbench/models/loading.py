"""Load one network of a checkpoint with its library's own loader, which tells whether all of it arrived."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sdbench.base.errors import CheckpointError, Unavailable, first_line
from pytest_sdbench.models.layout import CLASSES
from pytest_sdbench.models.weights import TEXT_ENCODERS, Weights, incomplete

if TYPE_CHECKING:
    import torch

NEWER = "Weights of 4 bits and float8 need kernels of a newer GPU or library: run it there"


def load_model(name: str, folder: Path, weights: Weights, dtype: torch.dtype) -> Any:
    """Load a component in evaluation mode.

    Raise ``CheckpointError`` where the loader fails, leaves a tensor at random, or leaves one out.
    """
    import diffusers
    import transformers

    kind: Any = getattr(transformers if name in TEXT_ENCODERS else diffusers, CLASSES[name])
    try:
        with quiet():
            model, info = kind.from_pretrained(
                folder,
                torch_dtype=dtype,
                variant=weights.variant,
                use_safetensors=weights.safetensors,
                local_files_only=True,
                output_loading_info=True,
                # A configuration may name another implementation of attention, code from the hub included.
                **({"attn_implementation": "sdpa"} if name in TEXT_ENCODERS else {}),
            )
    except Exception as error:  # loaders fail in as many ways as there are wrong values
        found = f"{type(error).__name__}: {first_line(error)}"
        if weights.quantised:
            what, remedy = f"the quantised {name} cannot be loaded here", NEWER
            raise Unavailable(what, file=folder, found=found, remedy=remedy) from error
        raise incomplete(f"{kind.__name__} cannot be loaded", folder, found=found) from error
    for key, what in (
        ("missing_keys", "left {} tensors at random values"),
        ("unexpected_keys", "left {} out"),
    ):
        if odd := sorted(each for each in info[key] if not each.endswith("position_ids")):
            remedy = "Save the checkpoint again with the installed versions of diffusers and transformers"
            text = f"{kind.__name__} {what.format(len(odd))}"
            raise CheckpointError(text, file=weights.files[0], key=odd[0], remedy=remedy)
    return model.eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own progress bars and notices out of test output."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bar) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
