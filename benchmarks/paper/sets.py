"""The data: MNIST-5k and digits, split once for all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from aablur.robustness.data import digits, mnist5k


@dataclass(frozen=True)
class Recipe:
    """How a set is used.

    test: images held out. stages: halvings in the nets. epochs: of training. range: of shifts, +-range / 2 px.
    measured: test images whose robustness is measured. corrupted: those that are corrupted, 0 where they are too small.
    """

    test: int
    stages: int
    epochs: int
    range: int
    measured: int
    corrupted: int


RECIPES = {"mnist5k": Recipe(1000, 3, 8, 6, 500, 150), "digits": Recipe(597, 2, 30, 2, 597, 0)}


@cache
def load(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; images (n, 1, size, size) in [0, 1], MNIST's 32 px wide."""
    found = {"mnist5k": mnist5k, "digits": digits}[name]()
    assert found.labels is not None
    images = found.images.float() / 255
    if name == "mnist5k":
        images = F.pad(images, (2, 2, 2, 2))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[RECIPES[name].test :], order[: RECIPES[name].test]
    return images[train], found.labels[train], images[test], found.labels[test]
