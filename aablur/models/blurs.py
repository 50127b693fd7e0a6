"""The blur that a repair puts in: what it does, said as a value, and the module that does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .. import nn as blurs
from ..geometry import binomial

_BLUR = {1: blurs.BlurPool1d, 2: blurs.BlurPool2d, 3: blurs.BlurPool3d}
_MAX_BLUR = {1: blurs.MaxBlurPool1d, 2: blurs.MaxBlurPool2d, 3: blurs.MaxBlurPool3d}


@dataclass(frozen=True)
class Blur:
    """A blur pool in the place of a layer's own sampling, which it equals at strength 0.

    Attributes:
        taps: filter sizes, one an axis.
        stride: one an axis; 1 blurs alone, where the layer goes on to sample.
        padding: (before, after) an axis.
        padding_mode: as `aablur.blur_pool2d`.
        box: along each axis (first tap, size) of the average that strength 0 stands for; (t, 1) keeps one pixel.
        window: (window, padding, dilation) of a max before the blur, or None.
        same: (kernel, dilation, stride) an axis of a convolution with TensorFlow's "SAME" padding, whose phase depends
            on the map's size; or None.
        channels: of the map; filters of their own, when learnt, if ``per_channel``.
        channels_last: the map is (batch, height, width, channels).
        strength: from 0, the layer's own sampling, to 1, the binomial filter.
    """

    taps: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    padding_mode: str = "reflect"
    box: tuple[tuple[int, int], ...] = ()
    window: tuple[Any, Any, Any] | None = None
    same: tuple[tuple[int, int, int], ...] | None = None
    channels: int | None = None
    per_channel: bool = False
    channels_last: bool = False
    learnable: bool = False
    constraints: tuple[str, ...] = ()
    strength: float = 1.0

    def filter(self, axis: int, strength: float) -> Tensor:
        """(1 - strength) times the layer's own box, plus strength times the binomial filter."""
        k, (first, size) = self.taps[axis], self.box[axis]
        own = torch.zeros(k, dtype=torch.float64)
        own[first : first + size] = 1 / size
        return (1 - strength) * own + strength * torch.tensor(binomial(k), dtype=torch.float64)

    def build(self, strength: float, like: Tensor | None = None) -> nn.Module:
        """The module, with taps on the device and in the dtype of ``like``."""
        rank = len(self.taps)
        plain = strength == 1 and not self.learnable
        taps: Any = self.taps if plain else tuple(self.filter(i, strength) for i in range(rank))
        options: dict[str, Any] = {"padding": self.padding, "padding_mode": self.padding_mode, "stride": self.stride}
        if not plain:
            dtype = torch.float32 if like is None or not like.is_floating_point() else like.dtype
            options |= {"device": None if like is None else like.device, "dtype": dtype}
        if self.learnable:
            options |= {"learnable": True, "constraints": self.constraints}
            options["channels"] = self.channels if self.per_channel else None
        if self.window is not None:
            window, window_padding, window_dilation = self.window
            made: nn.Module = _MAX_BLUR[rank](
                window, taps, window_padding=window_padding, window_dilation=window_dilation, **options
            )
        elif self.same is not None:
            made = SamePhaseBlurPool(rank, taps, self.same, options)
        else:
            made = _BLUR[rank](taps, **options)
        if not self.learnable:  # a repair adds nothing to a state_dict but what is learnt
            made._non_persistent_buffers_set.update(made._buffers)
        return ChannelsLast(made) if self.channels_last else made


def blur_at(
    taps: Sequence[int], stride: Sequence[int], *, starts: Sequence[int] | None = None,
    extra: Sequence[int] | None = None, **options: Any,
) -> Blur:  # fmt: skip
    """A `Blur` whose outputs lie at pixels starts, starts + stride, ... : "same" padding moved by ``starts``.

    Along an axis of n pixels it gives ceil((n - starts) / stride) of them, and with ``extra`` one more wherever the
    last ``extra`` pixels do not fill a stride.
    """
    starts = starts or [0] * len(taps)
    extra = extra or [0] * len(taps)
    padding = tuple(((k - 1) // 2 - f, k // 2 + e) for k, f, e in zip(taps, starts, extra, strict=True))
    box = tuple(((k - 1) // 2, 1) for k in taps)
    return Blur(tuple(taps), tuple(stride), padding, box=box, **options)


def blur_for_average(
    taps: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: Sequence[bool],
    **options: Any,
) -> Blur:  # fmt: skip
    """A `Blur` in place of an average pool: as many outputs, about the same centres (half a pixel off where the sizes
    of the filters differ by an odd number). Taps fewer than the average's own become as many.
    """
    taps = [max(k, own) for k, own in zip(taps, kernel, strict=True)]
    pads, box = [], []
    for k, own, s, p, c in zip(taps, kernel, stride, padding, ceil, strict=True):
        before = p + (k - 1) // 2 - (own - 1) // 2
        pads.append((before, 2 * p + k - own - before + (s - 1 if c else 0)))
        box.append((before - p, own))
    return Blur(tuple(taps), tuple(stride), tuple(pads), box=tuple(box), **options)


class ChannelsLast(nn.Module):
    """A blur of maps (batch, height, width, channels)."""

    def __init__(self, blur: nn.Module) -> None:
        super().__init__()
        self.blur = blur

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(x.movedim(-1, 1)).movedim(1, -1)


class SamePhaseBlurPool(nn.Module):
    """The blur pool after a convolution with TensorFlow's "SAME" padding that now runs at stride 1.

    At stride s such a convolution pads max((ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0) pixels, the smaller half
    before; at stride 1 it pads d * (k - 1). So what it sampled lies at d * (k - 1) // 2 - before, one pixel in for even
    maps, and there the blur is centred, for the size of each map that comes.
    """

    def __init__(self, rank: int, taps: Any, same: tuple[tuple[int, int, int], ...], options: dict[str, Any]) -> None:
        super().__init__()
        self.same = same
        self.blur = _BLUR[rank](taps, **options)

    def forward(self, x: Tensor) -> Tensor:
        blur = self.blur
        pads = []
        for (kernel, dilation, stride), size, k in zip(self.same, x.shape[-len(self.same) :], blur.taps, strict=True):
            start = same_start(kernel, dilation, stride, size)
            pads.append(((k - 1) // 2 - start, k // 2 + start))
        name = f"blur_pool{blur.rank}d"
        return functional.blur_pool(name, blur.rank, x, blur.filters(), blur.stride, pads, blur.padding_mode)


def same_start(kernel: int, dilation: int, stride: int, size: int) -> int:
    """Where, in its stride-1 answer, a convolution with "SAME" padding samples first."""
    reach = dilation * (kernel - 1)
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    return reach // 2 - total // 2


class Dense(nn.Module):
    """A layer that samples by ``stride``, at every pixel: it runs once for each phase of its input, and the answers
    are woven into one map.

    The shifts come from padding the map at its ends by stride - 1 pixels in ``padding_mode``.
    """

    def __init__(self, stride: tuple[int, int], channels_last: bool, padding_mode: str) -> None:
        super().__init__()
        self.stride, self.channels_last, self.padding_mode = stride, channels_last, padding_mode

    def forward(self, layer: Any, x: Tensor) -> Tensor:
        if self.channels_last:
            return self._weave(lambda y: layer(y.movedim(1, -1)).movedim(-1, 1), x.movedim(-1, 1)).movedim(1, -1)
        return self._weave(layer, x)

    def _weave(self, layer: Any, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        sh, sw = self.stride
        identity = functional.blur_pool2d  # taps of one: padding alone, in every mode
        wide = identity(x, 1, 1, ((0, sh - 1), (0, sw - 1)), self.padding_mode)
        phases = [layer(wide[..., i : i + height, j : j + width]) for i in range(sh) for j in range(sw)]
        out = torch.stack(phases, -1).unflatten(-1, (sh, sw))  # (B, C, h, w, sh, sw)
        return out.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
