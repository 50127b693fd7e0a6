"""Who is timed on a GPU. A provider gives steps: calls without arguments that do a row's work on a set of maps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aablur

from ..pools import STRIDE, TAPS
from .rows import Row

COPY = "copy"
OURS = "aablur"
TRITON = "aablur triton"
EAGER_NCHW = "eager NCHW"
EAGER_CHANNELS_LAST = "eager channels_last"
CUDNN_BENCHMARK = "eager, cudnn.benchmark"
COMPILE = "compile"
AUTOTUNE = "compile max-autotune"
MAX_POOL = "max_pool2d alone"
ZERO_PAD = "conv with zero padding"
EAGER = (EAGER_NCHW, EAGER_CHANNELS_LAST, CUDNN_BENCHMARK)
COMPILED = (COMPILE, AUTOTUNE)
BASELINES = (*EAGER, *COMPILED)  # that compute what we compute
PROVIDERS = (COPY, OURS, TRITON, *BASELINES, MAX_POOL, ZERO_PAD)

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Maps:
    """One set of a row's maps, of those that are rotated over."""

    x: Tensor
    dy: Tensor


class Unfused(nn.Module):
    """The usual way: max pool at stride 1, pad, depthwise convolution."""

    weight: Tensor

    def __init__(self, row: Row, zeros: bool = False) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("weight", torch.outer(taps, taps).repeat(row.shape[1], 1, 1, 1).to(row.dtype))
        self.window, self.zeros = row.window, zeros

    def forward(self, x: Tensor) -> Tensor:
        if self.window > 1:
            x = F.max_pool2d(x, self.window, stride=1)
        if self.zeros:
            return F.conv2d(x, self.weight, stride=STRIDE, padding=1, groups=x.shape[1])
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.weight, stride=STRIDE, groups=x.shape[1])


def ours(row: Row) -> Callable[[Tensor], Tensor]:
    if row.window > 1:
        return lambda x: aablur.max_blur_pool2d(x, row.window, taps=TAPS, stride=STRIDE)
    return lambda x: aablur.blur_pool2d(x, TAPS, stride=STRIDE)


def _in_layout(call: Callable[[Tensor], Tensor], mine: torch.memory_format, row: Row) -> Callable[[Tensor], Tensor]:
    """A call that works in another layout than the row's; its time holds the conversions there and back."""
    return lambda x: call(x.contiguous(memory_format=mine)).contiguous(memory_format=row.memory_format)


@cache
def _compiled(row_key: tuple[Any, ...], mode: str, device: str) -> Any:
    """One a map: forward and backward rows share it."""
    row = row_key[0]
    torch._dynamo.reset()
    return torch.compile(Unfused(row).to(device), dynamic=False, fullgraph=True, mode=mode)


def call_of(name: str, row: Row, device: str) -> Callable[[Tensor], Tensor]:
    """The provider's forward on the row's input."""
    if name in (OURS, TRITON):
        return ours(row)
    if name in COMPILED:
        mode = "default" if name == COMPILE else "max-autotune-no-cudagraphs"
        return _compiled((Row(row.group, row.op, "", row.dtype_name, row.layout, row.shape),), mode, device)
    if name == MAX_POOL:
        return lambda x: F.max_pool2d(x, 2, stride=STRIDE)
    unfused = Unfused(row, zeros=name == ZERO_PAD).to(device)
    if name == EAGER_NCHW and row.layout != "NCHW":
        return _in_layout(unfused, torch.contiguous_format, row)
    if name in (EAGER_CHANNELS_LAST, CUDNN_BENCHMARK) and row.layout != "channels_last":
        return _in_layout(unfused, torch.channels_last, row)
    return unfused


def step_of(name: str, row: Row, maps: Maps, device: str) -> Step:
    """The step of a row; a backward step has had its forward."""
    if name == COPY:
        target = torch.empty_like(maps.x)
        return lambda: target.copy_(maps.x)
    call = call_of(name, row, device)
    if row.direction == "forward":
        x = maps.x.requires_grad_(row.window > 1)  # with codes or indices, as in training
        return lambda: call(x)
    x = maps.x.detach().requires_grad_()
    y = call(x)
    dy = maps.dy if y.shape == maps.dy.shape else torch.ones_like(y)
    return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)[0]


@contextmanager
def _cudnn_benchmark() -> Any:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def setting(name: str) -> Any:
    """The context in which a provider's steps are made, warmed up and captured."""
    if name == TRITON:
        return aablur.backend("triton")
    return _cudnn_benchmark() if name == CUDNN_BENCHMARK else nullcontext()


def takes_part(name: str, row: Row, device: str) -> bool:
    """Compilation takes seconds: of two of ResNet-50's maps in bfloat16 alone, max-autotune of the first."""
    if name == TRITON:
        return "triton" not in aablur.info().why_not and row.group != "huge"
    if name in COMPILED:
        first, second = row.shape[1:3] == (64, 112) or device == "cpu", row.shape[1:3] == (512, 28)
        chosen = row.group == "ResNet-50" and row.dtype_name == "bfloat16"
        return chosen and (first or (second and name == COMPILE))
    if row.group == "huge":
        return name in (COPY, OURS)
    return True
