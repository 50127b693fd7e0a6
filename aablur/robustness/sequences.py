"""Perturbation sequences in the manner of ImageNet-P: short films of one image, and how often the answer flips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..geometry import shown
from .perturbation import Batch, Perturbation, check_int
from .spatial import rotation, warp
from .statistics import Statistic


@dataclass(frozen=True)
class Sequence(Perturbation):
    """A film of one image, which changes a little from frame to frame (Hendrycks and Dietterich 2019, ImageNet-P).

    The flip rate is the share of frames whose top-1 differs from the frame before. The frames of a noise are not
    ordered in time: the first is the clean image, and the others are compared with that.

    Args:
        kind: one of `KINDS`, where a frame is t steps from the middle (geometry) or from the first (others):
            "translate": 1 px to the right a frame. "rotate": 1 degree. "scale": 1 % larger, from the image's own
            size. "tilt": 0.0002 of perspective a pixel at 224 px. "brightness": 0.01 brighter.
            "zoom_blur": the mean of all scales so far. "gaussian_noise": standard deviation 0.04, "shot_noise":
            Poisson with 250 events for white, drawn anew each frame.
        frames: at least 2. Default 31.

    The images must be in [0, 1] for the last four; values are clipped to it.
    """

    kind: str = "translate"
    frames: int = 31

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Sequence: kind must be one of {KINDS}, got {shown(self.kind)}")
        check_int("Sequence", "frames", self.frames, 2)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"sequence {self.kind}"

    @property
    def statistics(self) -> tuple[Statistic, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        flips = Statistic.FLIP_RATE_FROM_FIRST if self.kind in _NOISES else Statistic.FLIP_RATE
        return (flips, Statistic.ACCURACY)

    @property
    def labels(self) -> list[str]:
        return [f"frame {t + 1}" for t in range(self.frames)]

    def views(self, batch: Batch) -> Iterator[Tensor]:
        if self.kind in _CAMERAS:
            for t in range(self.frames):
                yield warp(batch.images, _CAMERAS[self.kind](t, self.frames, batch.size), batch.size)
        elif self.kind == "zoom_blur":
            total = torch.zeros_like(batch.centre())
            for t in range(self.frames):
                total += warp(batch.images, _zoom(t), batch.size)
                yield (total / (t + 1)).clamp(0, 1)
        elif self.kind == "brightness":
            for t in range(self.frames):
                yield (batch.centre() + 0.01 * t).clamp(0, 1)
        else:
            yield from self._noisy(batch)

    def _noisy(self, batch: Batch) -> Iterator[Tensor]:
        clean = batch.centre().cpu()
        generators = batch.generators(self.name)
        yield clean
        for _ in range(self.frames - 1):
            yield torch.stack([_NOISES[self.kind](x, g) for x, g in zip(clean, generators, strict=True)]).clamp(0, 1)


def _zoom(t: int) -> Tensor:
    return torch.diag(torch.tensor([1 / (1 + 0.01 * t), 1 / (1 + 0.01 * t), 1], dtype=torch.float64))


def _translation(t: int, frames: int, size: tuple[int, int]) -> Tensor:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[0, 2] = (frames - 1) // 2 - t
    return matrix


def _tilt(t: int, frames: int, size: tuple[int, int]) -> Tensor:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[2, :2] = 2e-4 * 224 * (t - (frames - 1) / 2) / (frames - 1) * 2 / max(size)
    return matrix


_CAMERAS: dict[str, Callable[[int, int, tuple[int, int]], Tensor]] = {
    "translate": _translation,
    "rotate": lambda t, frames, size: rotation(t - (frames - 1) / 2),
    "scale": lambda t, frames, size: _zoom(t),
    "tilt": _tilt,
}
_NOISES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "gaussian_noise": lambda x, g: x + 0.04 * torch.randn(x.shape, generator=g).to(x),
    "shot_noise": lambda x, g: torch.poisson(x.clamp(0, 1).float() * 250, generator=g).to(x) / 250,
}
KINDS = (*_CAMERAS, "zoom_blur", "brightness", *_NOISES)


def sequences(frames: int = 31) -> tuple[Sequence, ...]:
    """All kinds: eight of the ten of ImageNet-P (no snow, no motion blur)."""
    return tuple(Sequence(kind, frames) for kind in KINDS)


def mean_flip_rate(rates: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """mFR: the mean over kinds of the flip rate over the baseline's.

    Raises:
        ValueError: the baseline lacks a kind, or never flips in one.
    """
    return mean_ratio("mean_flip_rate", rates, baseline)


def mean_ratio(owner: str, values: Mapping[str, float], baseline: Mapping[str, Any]) -> float:
    if not values:
        raise ValueError(f"{owner}: nothing was measured")
    if missing := sorted(set(values) - set(baseline)):
        raise ValueError(f"{owner}: the baseline lacks {', '.join(missing)}")
    if zero := sorted(name for name in values if not baseline[name] > 0):
        raise ValueError(f"{owner}: the baseline is 0 for {', '.join(zero)}")
    return sum(values[name] / baseline[name] for name in values) / len(values)
