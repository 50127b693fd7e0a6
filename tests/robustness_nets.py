"""Models for the command line of the tests: `robustness_nets:small`."""

from __future__ import annotations

import torch
from torch import nn


def small(channels: int = 1) -> nn.Module:
    """Ten classes, any size, aliased, always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, 2, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10), nn.BatchNorm1d(10),
        )  # fmt: skip


def colour() -> nn.Module:
    return small(3)


def pair() -> nn.Module:
    return Pair()


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean((2, 3)), x
