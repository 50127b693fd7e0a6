"""Who is timed: a copy of the input, torch eager, torch.compile, and aablur."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aablur

from .pools import LAYOUTS, PADDING_MODE, STRIDE, TAPS, WINDOW
from .workloads import Workload

COPY = "copy"
EAGER_NCHW = "eager NCHW"
EAGER_CHANNELS_LAST = "eager channels_last"
COMPILE = "compile"
OURS = "aablur"
BASELINES = (EAGER_NCHW, EAGER_CHANNELS_LAST, COMPILE)
PROVIDERS = (COPY, *BASELINES, OURS)


class Eager(nn.Module):
    """The usual blur pool: pad, then a depthwise convolution with a weight built once."""

    weight: Tensor

    def __init__(self, channels: int, dtype: torch.dtype, window: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        weight = torch.outer(taps, taps).repeat(channels, 1, 1, 1)
        self.register_buffer("weight", weight.to(dtype))
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        if self.window > 1:
            x = F.max_pool2d(x, self.window, stride=1)
        before, after = (TAPS - 1) // 2, TAPS // 2
        x = F.pad(x, (before, after, before, after), mode=PADDING_MODE)
        return F.conv2d(x, self.weight, stride=STRIDE, groups=x.shape[1])


@dataclass(frozen=True)
class Provider:
    """A way to compute the op: input in the row's layout -> output in the row's layout."""

    name: str
    call: Callable[[Tensor], Tensor]
    constants: tuple[Tensor, ...] = ()  # the weights, which are no cost of a call


def in_layout(call: Callable[[Tensor], Tensor], mine: str, row: str) -> Callable[[Tensor], Tensor]:
    """A call that works in its own layout, with the conversions there and back."""
    if mine == row:
        return call
    there, back = LAYOUTS[mine], LAYOUTS[row]
    return lambda x: call(x.contiguous(memory_format=there)).contiguous(memory_format=back)


def ours(x: Tensor) -> Tensor:
    return aablur.blur_pool2d(x, TAPS, stride=STRIDE, padding_mode=PADDING_MODE)


def ours_max(x: Tensor) -> Tensor:
    return aablur.max_blur_pool2d(x, WINDOW, taps=TAPS, stride=STRIDE, padding_mode=PADDING_MODE)


def provider(name: str, workload: Workload) -> Provider:
    """The provider of that name for a workload; a copy is no provider of the op."""
    if name == OURS:
        return Provider(name, ours_max if workload.window > 1 else ours)
    eager = Eager(workload.shape[1], workload.dtype, workload.window)
    constants = (eager.weight,)
    if name == COMPILE:
        torch._dynamo.reset()  # one graph a row, so that no row meets a recompile limit
        return Provider(name, torch.compile(eager, dynamic=False, fullgraph=True), constants)
    mine = {EAGER_NCHW: "NCHW", EAGER_CHANNELS_LAST: "channels_last"}[name]
    return Provider(name, in_layout(eager, mine, workload.layout), constants)


def outputs(
    call: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor, workload: Workload
) -> tuple[Tensor, Tensor | None]:
    """One call of the row: the output and, in a row with a backward, the input's gradient."""
    y = call(x)
    if not workload.backward:
        return y, None
    (dx,) = torch.autograd.grad(y, x, dy)
    return y, dx.contiguous(memory_format=workload.memory_format)


def step(who: Provider, workload: Workload, inputs: list[Tensor], dy: Tensor) -> Callable[[], object]:
    """A call without arguments for the timer, each on the next of the inputs in turn."""
    turn = itertools.cycle(inputs)
    return lambda: outputs(who.call, next(turn), dy, workload)


def copy_step(inputs: list[Tensor]) -> Callable[[], object]:
    """copy_ of the input into a tensor that exists already: the machine's plain speed."""
    target = torch.empty_like(inputs[0]).detach()
    turn = itertools.cycle([x.detach() for x in inputs])
    return lambda: target.copy_(next(turn))
