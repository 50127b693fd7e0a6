"""Small nets in the style of VGG (max pools) and ResNet (strided convolutions), anti-aliased or not."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

import aablur

# Variant -> taps of the blur before each subsampling, and whether they are learned. None: as before the paper.
Blur = tuple[int, bool] | None
VARIANTS: dict[str, Blur] = {
    "baseline": None, "Rect-2": (2, False), "Tri-3": (3, False), "Bin-5": (5, False), "learned": (5, True),
}  # fmt: skip
NETS = ("VGG", "ResNet")


def build(net: str, variant: str, stages: int, classes: int = 10) -> nn.Module:
    """A net for one channel whose map is halved `stages` times; its width doubles as often, from 16."""
    blur = VARIANTS[variant]
    widths = [16 * 2**i for i in range(stages)]
    body = _vgg(widths, blur) if net == "VGG" else _resnet(widths, blur)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _vgg(widths: list[int], blur: Blur) -> list[nn.Module]:
    """Conv, max pool, and again: the pool becomes max at stride 1, then blur."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip([1, *widths], widths, strict=False):
        layers += [_conv(inputs, outputs), _pool(blur, outputs)]
    return layers


def _pool(blur: Blur, channels: int) -> nn.Module:
    if blur is None:
        return nn.MaxPool2d(2)
    taps, learned = blur
    return aablur.nn.MaxBlurPool2d(2, taps=taps, learnable=learned, channels=channels)


def _subsample(blur: Blur, channels: int) -> list[nn.Module]:
    if blur is None:
        return []
    taps, learned = blur
    return [aablur.nn.BlurPool2d(taps, learnable=learned, channels=channels)]


def _resnet(widths: list[int], blur: Blur) -> list[nn.Module]:
    """A strided convolution, then residual blocks of stride 2: each becomes convolution at stride 1, then blur."""
    stem = _conv(1, widths[0], 1 if blur else 2)
    blocks = [_Block(i, o, blur) for i, o in pairwise(widths)]
    return [stem, *_subsample(blur, widths[0]), *blocks]


class _Block(nn.Module):
    """Two convolutions and a 1 x 1 shortcut, of stride 2 (He 2016); the paper's way: blur, then subsample."""

    def __init__(self, inputs: int, outputs: int, blur: Blur) -> None:
        super().__init__()
        strided = [_conv(inputs, outputs, 1 if blur else 2), *_subsample(blur, outputs)]
        last = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.residual = nn.Sequential(*strided, last, nn.BatchNorm2d(outputs))
        onto = nn.Conv2d(inputs, outputs, 1, 1 if blur else 2, bias=False)
        self.shortcut = nn.Sequential(*_subsample(blur, inputs), onto, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


def blur_of(model: nn.Module) -> list[float]:
    """For each learned blur its gain at half the Nyquist frequency over that at zero, mean over channels and axes.

    A map of stride 2 begins to alias there. 0.25 for Bin-5, 0.5 for Tri-3, 0.71 for Rect-2, 1 for a single tap.
    """
    return [
        sum(_gain(getattr(m, f"taps_{axis}").detach()) for axis in range(2)) / 2
        for m in model.modules()
        if isinstance(m, (aablur.nn.BlurPool2d, aablur.nn.MaxBlurPool2d)) and m.learnable
    ]


def _gain(taps: Tensor) -> float:
    wave = torch.exp(-0.5j * torch.pi * torch.arange(taps.shape[-1]))
    return ((taps * wave).sum(-1).abs() / taps.sum(-1).abs().clamp_min(1e-6)).clamp_max(10).mean().item()
