"""A whole network: a ResNet-50 with blur pools where it samples (as the paper places them), unfused, compiled, ours.

bfloat16, channels_last; a training step (forward, backward, SGD) and inference. The share of the pools is what the step
takes less when they are replaced by plain subsampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aablur

from .devices import Device, Run, Step, Times
from .providers import OURS, Unfused
from .record import Measurement, reason

UNFUSED, NONE = "unfused", "no pools"
WAYS = (UNFUSED, OURS, NONE, "compile of unfused", "compile of aablur")
NETWORK = tuple((direction, way) for way in WAYS for direction in ("training", "inference"))


class Subsample(nn.Module):
    """What an aliased network does."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2, ::2]


def pool(way: str, channels: int, window: int = 1) -> nn.Module:
    if way == NONE:
        return Subsample()
    if way == UNFUSED:
        return Unfused(channels, torch.float32, window, window // 2)
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


def _step(way: str, device: str, training: bool) -> tuple[Step, str]:
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


def run_network(direction: str, way: str, device: Device) -> list[Measurement]:
    """The measurement of one of NETWORK."""
    name = f"network/resnet50/{direction}"
    row = Measurement(name, "resnet50", direction, "channels_last", "bfloat16", "network", "", "", way)
    try:
        step, size = _step(way, device.where, direction == "training")
        row = replace(row, shape=size, peak_mib=device.peak_mib(step))
        times = device.time({way: Run(lambda: [step], graph=False)}, 0.0)[way]
    except Exception as failure:  # no compiler, no memory: the other ways go on
        times = failure
    if not isinstance(times, Times):
        return [replace(row, status=reason(times))]
    return [replace(row, ms=times.median, ms_p20=times.p20, ms_p80=times.p80, how=times.how)]
