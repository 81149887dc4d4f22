"""What a device can do at most, measured, and what a computation asks of it, counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

CEILING_SECONDS = 1.0
CEILING_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
CEILING_FLOATS = 2**26  # copied


@dataclass(frozen=True)
class Work:
    """What a computation asks of a device.

    Args:
        gflop: of convolutions and matrix products, a multiply-add counted twice as is usual.
        operations: calls that compute or copy, which on a GPU are about as many kernels; views are free.
        gbytes: that these operations read and write, each on its own: the traffic if nothing stayed in a cache.
    """

    gflop: float
    operations: int
    gbytes: float


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """This device's own best: a matrix product in GFLOP/s, and a copy in GB/s read and written."""
    size = CEILING_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(CEILING_FLOATS, device=device)
    target = torch.empty_like(source)
    product = _best_seconds(lambda: torch.mm(a, b), device)
    copy = _best_seconds(lambda: target.copy_(source), device)
    return {"gflops": round(2 * size**3 / product / 1e9, 1), "gbytes_per_s": round(2 * source.nbytes / copy / 1e9, 1)}


def count_work(work: Callable[[], Any], formulas: dict[Any, Callable[..., int]] | None = None) -> Work:
    """Run ``work`` once and count what it asks of the device.

    ``formulas`` give the floating-point operations of operators that PyTorch's counter does not know.
    """
    with FlopCounterMode(display=False, custom_mapping=formulas) as flops, _Traffic() as traffic:
        work()
    return Work(flops.get_total_flops() / 1e9, traffic.operations, traffic.bytes / 1e9)


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time of ``work``, done ``repeats`` times after three that are not counted."""
    for _ in range(3):
        work()
    return float(np.median([timed(work, device) for _ in range(repeats)]))


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that ``work`` takes, until the device is done with it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _best_seconds(work: Callable[[], Any], device: torch.device) -> float:
    times: list[float] = []
    while sum(times) < CEILING_SECONDS or len(times) < 5:
        times.append(timed(work, device))
    return min(times)


class _Traffic(TorchDispatchMode):
    """Counts operations and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            self.bytes += sum(tensor.nbytes for tensor in _tensors((args, kwargs, made)))
        return made


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
