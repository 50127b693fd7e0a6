"""What a filter leaves of the frequencies that a stride folds: by this, and by no name, every filter is judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 512  # frequencies of a whole turn
PASSES = 0.5  # of the power at frequency 0: -3 dB, where a filter's cut-off is by definition
WEAK = 0.95  # a filter that leaves more is none
GAIN = 1.25  # a low-pass filter may ripple, but not raise any frequency by more


@dataclass(frozen=True)
class Filter:
    """A linear low-pass filter.

    Attributes:
        kind: "blur" or "average".
        power: one tensor an axis: |H|^2 over that at frequency 0, for the frequencies 0 .. 1/2, of the channel
            whose is largest. Along an axis the frequency of the others is 0.
    """

    kind: str
    power: tuple[Tensor, ...]


def along(taps: Tensor, dilation: int = 1) -> Tensor | None:
    """The power of filters (channels, taps) along an axis; None if one of them is no low-pass filter."""
    taps = taps.detach().to("cpu", torch.float64)
    spread = taps.new_zeros(len(taps), (taps.shape[1] - 1) * dilation + 1)
    spread[:, ::dilation] = taps
    spread = F.pad(spread, (0, -spread.shape[1] % GRID)).unflatten(1, (-1, GRID)).sum(1)  # the same at GRID frequencies
    power = torch.fft.rfft(spread).abs().square()
    if not bool((spread.sum(1) > 0).all()):
        return None
    power = (power / power[:, :1]).amax(0)
    return power if float(power.max()) <= GAIN else None


def triangle(stride: float) -> tuple[float, ...]:
    """The taps of the filter that suits a stride, as numbers: [1, 2, 1] / 4 up to 2, [1, 2, 3, 2, 1] / 9 for 3.

    They are 2 * ceil(stride) - 1 taps, max(0, 1 - |offset| / stride) over their sum. At the new Nyquist limit they
    leave a quarter of the power or less, whatever the stride, as [1, 2, 1] does for 2; a binomial filter would need
    11 taps for 4, and 37 for 8.
    """
    stride = max(stride, 2)
    reach = math.ceil(stride) - 1
    taps = [1 - abs(i) / stride for i in range(-reach, reach + 1)]
    return tuple(t / sum(taps) for t in taps)


def box(kernel: Sequence[int]) -> Filter:
    return Filter("average", tuple(p for k in kernel if (p := along(torch.ones(1, k))) is not None))


def of_taps(taps: Sequence[Tensor], dilation: Sequence[int] | None = None) -> Filter | None:
    """A blur with taps (k,) or (channels, k) for each axis."""
    steps = [1] * len(taps) if dilation is None else dilation
    power = [along(t.reshape(-1, t.shape[-1]), d) for t, d in zip(taps, steps, strict=True)]
    found = tuple(p for p in power if p is not None)
    return Filter("blur", found) if len(found) == len(power) else None


def of_convolution(weight: Tensor, groups: int, channels: int, dilation: Sequence[int]) -> Filter | None:
    """A convolution that is a blur: one low-pass filter a channel, whose weights are positive or symmetric."""
    if weight.shape[1] != 1 or groups != channels or weight.shape[0] != channels or weight.device.type == "meta":
        return None
    filters = weight.detach().double().flatten(0, 1)
    dims = range(1, filters.ndim)
    symmetric = torch.allclose(filters, filters.flip(*dims), rtol=1e-2, atol=1e-3 * float(filters.abs().max()))
    if not symmetric and bool((filters < 0).any()):
        return None
    profiles = [filters.sum([d for d in dims if d != k]) if len(dims) > 1 else filters for k in dims]
    return of_taps(profiles, dilation)


def judge(filters: Sequence[Filter], stride: Sequence[float], axes: Sequence[int]) -> str | None:
    """What filters one after the other are for a stride, by the largest power at or above the new Nyquist limit.

    Args:
        filters: that a map goes through at full rate.
        stride, axes: of the map, and which of a filter's axes (from the end) they are along.

    Returns:
        "blur", or "average" for one box alone: at most half of the power is left along every axis with a stride.
        "weak": more is left, but less than `WEAK`. None: no filter.
    """
    left = 0.0
    for s, axis in zip(stride, axes, strict=True):
        if s > 1:
            whole = [f.power[axis] for f in filters if -axis <= len(f.power)]
            power = torch.stack(whole).prod(0) if whole else torch.ones(GRID // 2 + 1)
            left = max(left, float(power[math.ceil(GRID / (2 * s) - 1e-9) :].max()))
    if left > PASSES + 1e-3:
        return "weak" if left <= WEAK else None
    return filters[0].kind if len(filters) == 1 else "blur"
