"""Shifts: every view is a window of one canvas a batch. Sub-pixel shifts: a phase of one transform a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import shown
from .perturbation import Batch, Perturbation, check_int
from .statistics import Statistic

PADDINGS = ("crop", "zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class _Shifts(Perturbation):
    """Windows at whole offsets (down, right) in a canvas that is `range` pixels larger than they along both axes.

    padding says where the canvas comes from: "crop", the image itself, which must be that large; "zeros", "reflect"
    and "replicate", the middle of the image padded by half the range on each side; "circular", padded so that the
    window at an offset is `torch.roll` by that offset.
    """

    range: int = 32
    padding: str = "crop"

    def __post_init__(self) -> None:
        check_int(type(self).__name__, "range", self.range, 1)
        if self.padding not in PADDINGS:
            raise ValueError(f"{type(self).__name__}: padding must be one of {PADDINGS}, got {shown(self.padding)}")

    def check(self, image_size: tuple[int, int], size: tuple[int, int]) -> None:
        if self.padding == "crop":
            if any(have - want < self.range for have, want in zip(image_size, size, strict=True)):
                raise ValueError(
                    f"{self.name}: images of {_by(image_size)} have no room for windows of {_by(size)} shifted in a "
                    f"range of {self.range} px: give a smaller size or range, larger images, or another padding than "
                    f"'crop' ({', '.join(PADDINGS[1:])})"
                )
        elif min(size) < self.range:
            raise ValueError(f"{self.name}: images of {_by(size)} are smaller than the shift range, {self.range} px")

    def canvas(self, batch: Batch) -> Tensor:
        if self.padding == "crop":
            return batch.centre(self.range)
        before = self.range if self.padding == "circular" else self.range // 2
        pads = [before, self.range - before] * 2
        mode = "constant" if self.padding == "zeros" else self.padding
        return F.pad(batch.centre(), pads, mode=mode)

    def start(self, offset: int) -> int:
        """Where in the canvas the window of an offset starts."""
        return self.range - offset if self.padding == "circular" else offset


@dataclass(frozen=True)
class ShiftPairs(_Shifts):
    """Shift consistency (Zhang 2019): random pairs of shifts of each image, once a pass.

    1. For each pass and image draw two offsets, uniform in [0, range) along both axes.
    2. Give the model the windows at both; count whether the two top-1 classes agree.

    Each image has its own offsets, drawn from the seed and its number. With padding "circular" this is the circular
    consistency of APS and LPS.

    Args:
        range: pixels, at least 1. Default 32.
        padding: "crop", "zeros", "reflect", "replicate" or "circular". Default "crop".
        passes: pairs an image. Default 5.
        name: in the result. Default: "shift", "circular shift", or "shift (zeros)" and the like.
    """

    passes: int = 5
    name: str = ""
    statistics: tuple[Statistic, ...] = (Statistic.CONSISTENCY, Statistic.CONSISTENCY_BY_PASS, Statistic.ACCURACY)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("ShiftPairs", "passes", self.passes, 1)
        named = {"crop": "shift", "circular": "circular shift"}.get(self.padding, f"shift ({self.padding})")
        object.__setattr__(self, "name", self.name or named)

    @property
    def labels(self) -> list[str]:
        return [f"pass {i + 1}" for i in range(self.passes)]

    def views(self, batch: Batch) -> Iterator[Tensor]:
        canvas, (height, width) = self.canvas(batch), batch.size
        draws = [torch.randint(self.range, (2 * self.passes, 2), generator=g) for g in batch.generators(self.name)]
        for offsets in torch.stack(draws, 1).tolist():
            windows = [
                image[:, self.start(y) : self.start(y) + height, self.start(x) : self.start(x) + width]
                for image, (y, x) in zip(canvas, offsets, strict=True)
            ]
            yield torch.stack(windows)


class _FixedShifts(_Shifts):
    """The same offsets for every image: a view is a slice of the whole canvas."""

    @property
    def offsets(self) -> list[tuple[int, int]]:
        raise NotImplementedError

    @property
    def labels(self) -> list[str]:
        return [f"{y},{x}" for y, x in self.offsets]

    def views(self, batch: Batch) -> Iterator[Tensor]:
        canvas, (height, width) = self.canvas(batch), batch.size
        for offset in self.offsets:
            y, x = map(self.start, offset)
            yield canvas[..., y : y + height, x : x + width]


@dataclass(frozen=True)
class DiagonalShifts(_FixedShifts):
    """The confidence curve (Zhang 2019): shifts by 0, 1, ..., range pixels along the diagonal.

    Statistics: probability of the label, accuracy and largest wrong class at each shift; variation, the mean change
    of the label's probability from one shift to the next; spread, its standard deviation over all.

    Args: range, padding: as for `ShiftPairs`.
    """

    name: str = "diagonal shift"
    statistics: tuple[Statistic, ...] = (
        Statistic.ACCURACY, Statistic.CONFIDENCE, Statistic.VARIATION, Statistic.SPREAD,
        Statistic.CONFIDENCE_BY_VIEW, Statistic.ACCURACY_BY_VIEW, Statistic.WRONG_BY_VIEW,
    )  # fmt: skip

    @property
    def offsets(self) -> list[tuple[int, int]]:
        return [(i, i) for i in range(self.range + 1)]

    @property
    def labels(self) -> list[str]:
        return [str(y) for y, _ in self.offsets]


@dataclass(frozen=True)
class ShiftGrid(_FixedShifts):
    """Every shift: offsets 0, step, ..., range along both axes, which is +-range / 2 around the middle.

    Statistics: consistency of all ordered pairs of shifts (a shift with itself among them), which is the value that
    `ShiftPairs` estimates; worst case accuracy, an image counting as right only if it is right under all; accuracy
    and probability of the label at each shift.

    Args:
        range, padding: as for `ShiftPairs`. Default range 32: +-16 px.
        step: pixels between shifts, a divisor of the range. Default 1.
    """

    step: int = 1
    name: str = "shift grid"
    statistics: tuple[Statistic, ...] = (
        Statistic.CONSISTENCY_ALL_PAIRS, Statistic.WORST_CASE, Statistic.WORST_CONFIDENCE, Statistic.ACCURACY,
        Statistic.CONFIDENCE, Statistic.SPREAD, Statistic.ACCURACY_BY_VIEW, Statistic.CONFIDENCE_BY_VIEW,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("ShiftGrid", "step", self.step, 1)
        if self.range % self.step:
            raise ValueError(f"ShiftGrid: step must divide the range, {self.range}, got {self.step}")

    @property
    def offsets(self) -> list[tuple[int, int]]:
        along = range(0, self.range + 1, self.step)
        return [(y, x) for y in along for x in along]


@dataclass(frozen=True)
class SubpixelShifts(Perturbation):
    """Sub-pixel shift consistency: random pairs of real shifts, of the image taken as periodic and band-limited.

    1. For each pass and image draw two shifts, uniform in [0, range) along both axes.
    2. Shift by the phase of the image's Fourier transform (at a Nyquist frequency by its real part).
    3. Count whether the two top-1 classes agree.

    A whole shift is `torch.roll`. With the default range of one pixel nothing but the sampling grid moves.

    Args:
        range: pixels, above 0. Default 1.0.
        passes: pairs an image. Default 5.
    """

    range: float = 1.0
    passes: int = 5
    name: str = "sub-pixel shift"
    statistics: tuple[Statistic, ...] = (Statistic.CONSISTENCY, Statistic.CONSISTENCY_BY_PASS, Statistic.ACCURACY)

    def __post_init__(self) -> None:
        if not isinstance(self.range, (int, float)) or not 0 < self.range < math.inf:
            raise ValueError(f"SubpixelShifts: range must be above 0 and finite, got {shown(self.range)}")
        check_int("SubpixelShifts", "passes", self.passes, 1)

    @property
    def labels(self) -> list[str]:
        return [f"pass {i + 1}" for i in range(self.passes)]

    def views(self, batch: Batch) -> Iterator[Tensor]:
        spectrum = torch.fft.rfft2(batch.centre().contiguous())
        draws = [torch.rand(2 * self.passes, 2, generator=g, dtype=torch.float64) for g in batch.generators(self.name)]
        for shifts in (torch.stack(draws, 1) * self.range).unbind():
            yield shift_by_phase(spectrum, shifts, batch.size)


def shift_by_phase(spectrum: Tensor, shifts: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of `size` moved down and right by `shifts`, (batch, 2) pixels, from their `torch.fft.rfft2`."""
    height, width = size
    down = _phases(torch.fft.fftfreq(height, dtype=torch.float64), shifts[:, :1]).to(spectrum)
    right = _phases(torch.fft.rfftfreq(width, dtype=torch.float64), shifts[:, 1:]).to(spectrum)
    return torch.fft.irfft2(spectrum * down[:, None, :, None] * right[:, None, None, :], s=size)


def _phases(frequencies: Tensor, shifts: Tensor) -> Tensor:
    angles = -2 * math.pi * frequencies * shifts
    phases = torch.polar(torch.ones_like(angles), angles)
    nyquist = frequencies.abs() == 0.5
    return torch.where(nyquist, phases.real.to(phases.dtype), phases)


def _by(size: Any) -> str:
    return "x".join(map(str, size))
