"""One module of each kind, for maps of four channels."""

from __future__ import annotations

import torch
from torch import nn

import aablur


def modules() -> list[nn.Module]:
    return [
        aablur.nn.BlurPool2d(), aablur.nn.BlurPool2d(5, padding_mode="zeros"), aablur.nn.BlurPool2d(3, learnable=True),
        aablur.nn.BlurPool2d((3, 4), learnable=True, channels=4), aablur.nn.BlurPool2d(torch.tensor([0.25, 0.5, 0.25])),
        aablur.nn.MaxBlurPool2d(), aablur.nn.MaxBlurPool2d(3, window_padding=1, recompute=True),
        aablur.nn.MaxBlurPool2d(2, 4, learnable=True, channels=4),
    ]  # fmt: skip
