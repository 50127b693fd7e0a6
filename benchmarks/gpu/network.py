"""A whole network: a ResNet-50 with blur pools where it samples (as the paper places them), unfused, compiled, ours.

bfloat16, channels_last; a training step (forward, backward, SGD) and inference. The share of the pools is what the step
takes less when they are replaced by plain subsampling.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aablur

from .record import Measurement
from .timing import time_steps

UNFUSED, OURS, NONE = "unfused", "aablur", "no pools"
WAYS = (UNFUSED, OURS, NONE, "compile of unfused", "compile of aablur")
NETWORK = tuple((direction, way) for way in WAYS for direction in ("training", "inference"))


class UnfusedBlurPool(nn.Module):
    """Pad, then a depthwise convolution; after a max pool at stride 1 if there is a window."""

    weight: Tensor

    def __init__(self, channels: int, window: int = 1) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("weight", torch.outer(taps, taps).repeat(channels, 1, 1, 1))
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        if self.window > 1:
            x = F.max_pool2d(x, self.window, stride=1, padding=self.window // 2)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.weight.to(x.dtype), stride=2, groups=x.shape[1])


class Subsample(nn.Module):
    """What an aliased network does."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2, ::2]


def pool(way: str, channels: int, window: int = 1) -> nn.Module:
    if way == NONE:
        return Subsample()
    if way == UNFUSED:
        return UnfusedBlurPool(channels, window)
    return aablur.nn.MaxBlurPool2d(window, window_padding=window // 2) if window > 1 else aablur.nn.BlurPool2d()


class Bottleneck(nn.Module):
    def __init__(self, way: str, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width

        def conv(a: int, b: int, k: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, k, padding=k // 2, bias=False), nn.BatchNorm2d(b)]

        down = [pool(way, width)] if stride == 2 else []
        self.residual = nn.Sequential(
            *conv(before, width, 1), nn.ReLU(), *conv(width, width, 3), nn.ReLU(), *down, *conv(width, after, 1)
        )
        shortcut = [pool(way, before)] if stride == 2 else []
        self.shortcut = nn.Sequential(*shortcut, *conv(before, after, 1)) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-50 for depths (3, 4, 6, 3) and width 64: 224 -> 112 -> 56 -> 28 -> 14 -> 7."""

    def __init__(self, way: str, depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        layers = [nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(pool(way, width, window=3))
        before = width
        for stage, depth in enumerate(depths):
            for block in range(depth):
                wide = width << stage
                layers.append(Bottleneck(way, before, wide, 2 if stage > 0 and block == 0 else 1))
                before = 4 * wide
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def _steps(way: str, device: str, training: bool) -> tuple[Callable[[], object], str]:
    small = device == "cpu"
    torch.manual_seed(0)
    plain = way.removeprefix("compile of ")
    net = ResNet(plain, (1, 1), 8, 10) if small else ResNet(plain)
    net = net.to(device, torch.bfloat16).to(memory_format=torch.channels_last).train(training)  # pyright: ignore
    call: Callable[[Tensor], Tensor] = torch.compile(net) if way != plain else net  # pyright: ignore
    shape = (2, 3, 32, 32) if small else (128, 3, 224, 224)
    x = torch.randn(shape, device=device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    if not training:

        @torch.inference_mode()
        def infer() -> Tensor:
            return call(x)

        return infer, "x".join(map(str, shape))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.arange(shape[0], device=device) % 10

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(call(x).float(), labels).backward()
        optimizer.step()

    return train, "x".join(map(str, shape))


def _peak_mib(step: Callable[[], object], device: str) -> float | None:
    if device == "cpu":
        return None
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**20


def run_network(direction: str, way: str, device: str) -> list[Measurement]:
    """The measurement of one of NETWORK; `how` holds the peak memory, in MiB."""
    size, peak, times, status = "", None, None, "ok"
    try:
        step, size = _steps(way, device, direction == "training")
        peak = _peak_mib(step, device)
        times = time_steps(lambda: [step], device, graph=False)
    except Exception as failure:  # no compiler, no memory: the other ways go on
        status = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0]}"[:160]
    about = (f"network/resnet50/{direction}", "network", "resnet50", direction, "channels_last", "bfloat16")
    found = Measurement(*about, size, way, status)
    if times is not None:
        how = f"peak {peak:.0f} MiB" if peak else ""
        found = Measurement(*about, size, way, status, times.median, times.p20, times.p80, how)
    return [found]
