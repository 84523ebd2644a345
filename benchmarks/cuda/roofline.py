"""Say what a network's time goes into by class of operation, and how near each is to the device's limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

CLASSES = (
    ("convolution", ("convolution",)),
    ("matrix product", ("mm", "addmm", "bmm", "baddbmm", "linear")),
    ("attention", ("attention", "softmax")),
    ("norm", ("norm",)),
    ("copy", ("copy", "clone", "cat", "contiguous", "upsample", "index", "gather")),
)
"""Parts of the names of operations; the first class that fits counts, what fits none is elementwise."""
REST = "elementwise"


@dataclass
class Operations:
    """All operations of one class in a call."""

    kind: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    """Two for each multiplication and addition of a product; none for the others."""
    bytes: int = 0
    """Read and written if every input and output crosses the memory once."""


class _Watch(TorchDispatchMode):
    """Notes each operation with its time on the device, what it computes and what it moves."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cuda = device.type == "cuda"
        self._noted: list[tuple[str, int, int, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = self._clock()
        result = func(*args, **kwargs)
        after = self._clock()
        if not func.is_view:
            count = flop_registry.get(func.overloadpacket)
            flops = int(count(*args, **kwargs, out_val=result)) if count is not None else 0
            self._noted.append(
                (func.overloadpacket.__name__, flops, _bytes((args, kwargs, result)), before, after)
            )
        return result

    def classes(self) -> list[Operations]:
        """Return what was noted by class, the longest first."""
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, Operations] = {}
        for name, flops, moved, before, after in self._noted:
            kind = _classify(name)
            own = found.setdefault(kind, Operations(kind))
            own.calls += 1
            own.seconds += before.elapsed_time(after) / 1e3 if self._cuda else after - before
            own.flops += flops
            own.bytes += moved
        return sorted(found.values(), key=lambda own: -own.seconds)

    def _clock(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


@torch.no_grad()
def roofline(
    call: Callable[[], object], device: torch.device, *, flops_peak: float, bytes_peak: float
) -> list[dict[str, Any]]:
    """Return a row for each class of operation in one call, after one call that is not counted.

    `bound` is the least time that the class could take on this device: its floating-point operations at the
    peak of matrix products, or its bytes at the peak of copies, whichever takes longer (the roofline model,
    Williams, Waterman and Patterson 2009, class by class). `of_bound` is that over the time it took.
    """
    # Not in inference mode: there convolutions and linear layers are not broken down to what is counted.
    call()
    with _Watch(device) as watch:
        call()
    classes = watch.classes()
    total = sum(own.seconds for own in classes)
    rows = []
    for own in classes:
        bound = max(own.flops / flops_peak, own.bytes / bytes_peak)
        rows.append(
            {
                "class": own.kind,
                "calls": own.calls,
                "ms": 1e3 * own.seconds,
                "share": own.seconds / total,
                "tflops": own.flops / own.seconds / 1e12,
                "gb_per_s": own.bytes / own.seconds / 1e9,
                "bound_by": "products" if own.flops / flops_peak > own.bytes / bytes_peak else "memory",
                "of_bound": bound / own.seconds,
            }
        )
    return rows


def _classify(name: str) -> str:
    for kind, parts in CLASSES:
        if any(part in name for part in parts):
            return kind
    return REST


def _bytes(values: Iterable[Any]) -> int:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
