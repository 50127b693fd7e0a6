"""Who is timed: a copy of the input, aablur, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aablur

from .devices import Device, Maps
from .workloads import BACKWARD, BOTH, FORWARD, HUGE, LAYOUTS, PADDING_MODE, RESNET50, STRIDE, TAPS, Workload

Call = Callable[[Tensor], Tensor]
Results = tuple[Tensor | None, Tensor | None]  # of a step: the output and the input's gradient, as far as it has them

COPY, OURS, TRITON, MAX_POOL = "copy", "aablur", "aablur triton", "F.max_pool2d"
EAGER_NCHW, EAGER_CHANNELS_LAST = "eager NCHW", "eager channels_last"
COMPILE, AUTOTUNE = "compile", "compile max-autotune"
EAGER = (EAGER_NCHW, EAGER_CHANNELS_LAST, "eager, cudnn.benchmark")
COMPILED = (COMPILE, AUTOTUNE)
BASELINES = (*EAGER, *COMPILED)  # that compute what we compute
BASELINE_SLACK = 4  # of the tolerance: a chain of ops rounds after each op, and its pad adds in the dtype itself


class Unfused(nn.Module):
    """The usual way: a max pool at stride 1, a pad, a depthwise convolution with a weight built once."""

    weight: Tensor

    def __init__(
        self, channels: int, dtype: torch.dtype, window: int = 1, window_padding: int = 0, zeros: bool = False
    ) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("weight", torch.outer(taps, taps).repeat(channels, 1, 1, 1).to(dtype))
        self.window, self.window_padding, self.zeros = window, window_padding, zeros

    def forward(self, x: Tensor) -> Tensor:
        if self.window > 1:
            x = F.max_pool2d(x, self.window, stride=1, padding=self.window_padding)
        if self.zeros:
            return F.conv2d(x, self.weight, stride=STRIDE, padding=TAPS // 2, groups=x.shape[1])
        before, after = (TAPS - 1) // 2, TAPS // 2
        x = F.pad(x, (before, after, before, after), mode=PADDING_MODE)
        return F.conv2d(x, self.weight, stride=STRIDE, groups=x.shape[1])


def blur(x: Tensor) -> Tensor:
    return aablur.blur_pool2d(x, TAPS, stride=STRIDE, padding_mode=PADDING_MODE)


def max_blur(x: Tensor, window: int = 2, window_padding: int = 0) -> Tensor:
    return aablur.max_blur_pool2d(
        x, window, taps=TAPS, stride=STRIDE, padding_mode=PADDING_MODE, window_padding=window_padding
    )


def _ours(workload: Workload, where: str) -> Call:
    if workload.window == 1:
        return blur
    return partial(max_blur, window=workload.window, window_padding=workload.window_padding)


def _max_pool(workload: Workload, where: str) -> Call:
    """What networks without a blur have there."""
    window, padding = max(2, workload.window), workload.window_padding
    return lambda x: F.max_pool2d(x, window, STRIDE, padding)


def _unfused(workload: Workload, where: str, zeros: bool = False) -> Call:
    w = workload
    return Unfused(w.shape[1], w.dtype, w.window, w.window_padding, zeros).to(where)


def _compiled(workload: Workload, where: str, mode: str = "default") -> Call:
    """One a map: all passes share it."""
    return _compiled_once(replace(workload, direction=""), where, mode)


@lru_cache(maxsize=2)
def _compiled_once(workload: Workload, where: str, mode: str) -> Call:
    _forget_others(workload)
    return torch.compile(_unfused(workload, where), dynamic=False, fullgraph=True, mode=mode)


@lru_cache(maxsize=1)
def _forget_others(workload: Workload) -> None:
    """Called for each map once, so that none meets a recompile limit."""
    torch._dynamo.reset()


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@dataclass(frozen=True)
class Provider:
    """A way to compute the op."""

    name: str
    build: Callable[[Workload, str], Call]  # its forward for a workload, on torch's device
    slack: int = BASELINE_SLACK  # times the tolerance; 0: it computes something else, and is not checked
    devices: tuple[str, ...] = ("cpu", "cuda")
    layout: str = ""  # the only one that it works in: its time holds the conversions there and back
    setting: Callable[[], AbstractContextManager[object]] = nullcontext


GPU = ("cuda",)
PROVIDERS = (
    Provider(COPY, _ours, 0),  # no op: step_of copies
    Provider(OURS, _ours, 1),
    Provider(TRITON, _ours, 1, GPU, setting=lambda: aablur.backend("triton")),
    Provider(EAGER_NCHW, _unfused, layout="NCHW"),
    Provider(EAGER_CHANNELS_LAST, _unfused, layout="channels_last"),
    Provider(EAGER[2], _unfused, devices=GPU, layout="channels_last", setting=_cudnn_benchmark),
    Provider(COMPILE, _compiled),
    Provider(AUTOTUNE, partial(_compiled, mode="max-autotune-no-cudagraphs"), devices=GPU),
    Provider(MAX_POOL, _max_pool, 0, GPU),
    Provider("conv with zero padding", partial(_unfused, zeros=True), 0, GPU),
)


def takes_part(who: Provider, workload: Workload, device: Device) -> bool:
    """Compilation takes seconds: it is for maps beyond the cache on a CPU, for two of ResNet-50's maps on a GPU (with
    max-autotune for one)."""
    if device.kind not in who.devices:
        return False
    if workload.group == HUGE:
        return who.name in (COPY, OURS)
    if who.name == TRITON:
        return "triton" not in aablur.info().why_not
    if who.name not in COMPILED:
        return True
    chosen = workload.group == RESNET50 and workload.dtype_name == "bfloat16"
    if device.dry:
        return chosen
    if device.kind == "cpu":
        return workload.regime == "memory"
    return chosen and workload.shape[1:3] in ((64, 112), (512, 28))[: 2 if who.name == COMPILE else 1]


def _in_layout(call: Call, mine: str, theirs: str) -> Call:
    there, back = LAYOUTS[mine], LAYOUTS[theirs]
    return lambda x: call(x.contiguous(memory_format=there)).contiguous(memory_format=back)


def step_of(who: Provider, call: Call, workload: Workload, maps: Maps) -> Callable[[], Results]:
    """One pass over one set of maps, as a call without arguments. The step of a backward has had its forward."""
    if who.name == COPY:  # into a tensor that exists already: the machine's plain speed
        target = torch.empty_like(maps.x)
        return lambda: (target.copy_(maps.x), None)
    if who.layout not in ("", workload.layout):
        call = _in_layout(call, who.layout, workload.layout)
    x = maps.x.detach().requires_grad_(workload.direction != FORWARD)

    def gradient(y: Tensor, dy: Tensor) -> Tensor:
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=workload.direction == BACKWARD)
        return dx.contiguous(memory_format=workload.memory_format)

    if workload.direction == BACKWARD:
        y = call(x)
        dy = maps.dy if y.shape == maps.dy.shape else torch.ones_like(y)
        return lambda: (None, gradient(y, dy))
    if workload.direction == BOTH:

        def both() -> Results:
            y = call(x)
            return y, gradient(y, maps.dy)

        return both
    return lambda: (call(x), None)
