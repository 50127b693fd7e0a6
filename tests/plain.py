"""The paper's blur pool by torch's own ops, and a forward without gradients: what repairs are held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def out(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def blur(x: Tensor, stride: int | tuple[int, int] = 2, taps: int = 3, mode: str = "reflect") -> Tensor:
    """The paper's blur pool by torch's own ops: binomial taps, but for 7: the triangle for a stride of 4."""
    k = torch.tensor({3: [1.0, 2, 1], 5: [1.0, 4, 6, 4, 1], 4: [1.0, 3, 3, 1], 7: [1.0, 2, 3, 4, 3, 2, 1]}[taps])
    weight = (k[:, None] * k / k.sum() ** 2).expand(x.shape[1], 1, -1, -1)
    pads = (taps - 1) // 2, taps // 2
    return F.conv2d(F.pad(x, (*pads, *pads), mode=mode), weight.to(x.dtype), stride=stride, groups=x.shape[1])
