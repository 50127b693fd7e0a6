"""How fast the ops are on a device: beside a copy of the map, and beside the usual chain of torch's own ops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional

_SAMPLES, _SAMPLE_S = 5, 0.04


@dataclass(frozen=True)
class Speed:
    """Of a forward, and of a forward and a backward."""

    name: str
    of_copy: float  # bytes a second that a forward moves at least, over those of a copy of its input
    faster: float  # times as fast as eager, forward
    training_faster: float  # forward and backward


@dataclass(frozen=True)
class _Shape:
    name: str
    shape: tuple[int, int, int, int]
    layout: torch.memory_format = torch.contiguous_format
    window: int = 1


def shapes(device: str) -> list[_Shape]:
    """Maps of a ResNet-50, beyond the caches: 51 MB on a CPU, 205 MB on a GPU."""
    batch = 16 if device == "cpu" else 128
    channels_last = torch.channels_last
    return [
        _Shape("blur_pool2d, NCHW", (batch, 64, 112, 112)),
        _Shape("blur_pool2d, channels_last", (batch, 256, 56, 56), channels_last),
        _Shape("max_blur_pool2d, NCHW", (batch, 64, 112, 112), window=3),
    ]


def _eager(x: Tensor, weight: Tensor, window: int) -> Tensor:
    if window > 1:
        x = F.max_pool2d(x, window, 1, window // 2)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=x.shape[1])


def _ours(x: Tensor, window: int) -> Tensor:
    if window > 1:
        return functional.max_blur_pool2d(x, window, window_padding=window // 2)
    return functional.blur_pool2d(x)


def _seconds(call: Callable[[], Any], device: str) -> float:
    """The median of a few samples of one call, after one that is not timed."""

    def sample(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        if device != "cpu":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / calls

    sample(1)
    calls = max(1, int(_SAMPLE_S / max(sample(1), 1e-9)))
    return median(sample(calls) for _ in range(_SAMPLES))


def measure(device: str) -> Iterator[Speed]:
    """The speed of each of three shapes, in float32 on a CPU and bfloat16 on a GPU."""
    for shape in shapes(device):
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        x = torch.randn(shape.shape, device=device, dtype=dtype).contiguous(memory_format=shape.layout)
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        weight = torch.outer(row, row).repeat(x.shape[1], 1, 1, 1).to(device, dtype)
        target, leaf = torch.empty_like(x), x.detach().clone().requires_grad_()

        def step(call: Callable[[Tensor], Tensor], leaf: Tensor = leaf) -> None:
            y = call(leaf)
            torch.autograd.grad(y, leaf, y.detach())

        def ours(x: Tensor, window: int = shape.window) -> Tensor:
            return _ours(x, window)

        def eager(x: Tensor, weight: Tensor = weight, window: int = shape.window) -> Tensor:
            return _eager(x, weight, window)

        copy = _seconds(lambda target=target, x=x: target.copy_(x), device)
        forward, slow = (_seconds(lambda call=call, x=x: call(x), device) for call in (ours, eager))
        training, slow_training = (_seconds(lambda call=call, step=step: step(call), device) for call in (ours, eager))
        of_copy = 1.25 * x.nbytes / forward / (2 * x.nbytes / copy)  # reads x, writes a quarter
        yield Speed(shape.name, of_copy, slow / forward, slow_training / training)
