"""Float32 is float32 while scores are computed, and what the user has set comes back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pytest_sdbench.base.environment import true_float32

# Each in a process of its own: PyTorch remembers which way of setting was used.
CHOICES = {
    "nothing": "pass",
    "older": "cuda.matmul.allow_tf32 = True",
    "products": "torch.set_float32_matmul_precision('high')",
    "newer": "cudnn.conv.fp32_precision = 'ieee'",
    "newer, of products": "cuda.matmul.fp32_precision = 'tf32'",
    "newer, of all": "torch.backends.fp32_precision = 'tf32'",
}
SCRIPT = """
import torch
from torch.backends import cuda, cudnn
from pytest_sdbench.base.environment import true_float32

{choice}

def legacy(place):
    try:
        return place.allow_tf32
    except RuntimeError:
        return "refused"

def state():
    return [legacy(cudnn), legacy(cuda.matmul), cudnn.conv.fp32_precision, cuda.matmul.fp32_precision]

before = state()
try:
    with true_float32():
        inside = state()
        assert inside[2] in ("ieee", "none") and inside[3] in ("ieee", "none"), inside
        raise KeyError
except KeyError:
    pass
assert state() == before, (before, state())
"""


@pytest.mark.slow  # each starts Python and imports torch
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="one way to set it, before torch 2.9")
def test_float32_is_computed_as_such_and_the_users_choice_comes_back(choice: str) -> None:
    script = SCRIPT.format(choice=choice)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_an_error_inside_leaves_the_setting_as_it_was() -> None:
    before = torch.backends.cudnn.allow_tf32

    def fail() -> None:
        with true_float32():
            assert not torch.backends.cudnn.allow_tf32
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.backends.cudnn.allow_tf32 is before
