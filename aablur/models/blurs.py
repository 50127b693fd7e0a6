"""The blur that a repair puts in: what it does, said as a value, and the module that does it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from .. import nn as blurs
from ..geometry import binomial

Taps = int | tuple[float, ...]  # the binomial filter of so many, or the numbers themselves

_BLUR = {1: blurs.BlurPool1d, 2: blurs.BlurPool2d, 3: blurs.BlurPool3d}
_MAX_BLUR = {1: blurs.MaxBlurPool1d, 2: blurs.MaxBlurPool2d, 3: blurs.MaxBlurPool3d}


@dataclass(frozen=True)
class Same:
    """Along one axis, a convolution with TensorFlow's "SAME" padding that now runs at stride 1.

    At stride s such a convolution pads max((ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, 0) pixels, the smaller half
    before; at stride 1 it pads d * (k - 1). So what it sampled lies at d * (k - 1) // 2 - before, one pixel in for even
    maps, and there the blur is centred, for the size of each map that comes.
    """

    kernel: int
    dilation: int
    stride: int

    def start(self, size: Any) -> Any:
        """The first pixel that was sampled, on a map of this size."""
        reach = self.dilation * (self.kernel - 1)
        total = (self.outputs(size) - 1) * self.stride + reach + 1 - size
        if reach + 1 < self.stride:  # else it is never negative, and a graph of unknown sizes is spared the maximum
            total = _larger(total, 0)
        return reach // 2 - total // 2

    def outputs(self, size: Any) -> Any:
        return (size + self.stride - 1) // self.stride


@dataclass(frozen=True)
class Ceil:
    """Along one axis, a pool with ceil_mode: its last window may begin before the map's end and reach beyond."""

    kernel: int
    stride: int
    padding: int
    dilation: int = 1

    def start(self, size: Any) -> int:
        return 0

    def outputs(self, size: Any) -> Any:
        whole = size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1
        begun = (size + self.padding + self.stride - 1) // self.stride  # windows that do not begin beyond the map
        return _smaller((whole + self.stride - 1) // self.stride + 1, begun)


@dataclass(frozen=True)
class Beyond:
    """A max at every pixel where a window may begin, up to the map's last: nothing lies beyond the map."""

    kernel: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for k, p, d in zip(self.kernel, self.padding, self.dilation, strict=True):
            pads = [p, d * (k - 1), *pads]
        x = F.pad(x, pads, value=-math.inf)
        return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(self.kernel) - 1](x, self.kernel, 1, 0, self.dilation)


@dataclass(frozen=True)
class Average:
    """An average pool as it was, whose windows may reach beyond the map: what it makes of that no taps are."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool
    count_include_pad: bool
    divisor: int | None

    def __call__(self, x: Tensor) -> Tensor:
        rest = (self.kernel, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        if len(self.kernel) == 1:
            return F.avg_pool1d(x, *rest)
        return (F.avg_pool2d, F.avg_pool3d)[len(self.kernel) - 2](x, *rest, self.divisor)


def _larger(a: Any, b: Any) -> Any:
    return -_smaller(-a, -b)


def _smaller(a: Any, b: Any) -> Any:
    """The minimum of sizes: ints, those of an export, or the tensors that torch.jit.trace has for them."""
    if isinstance(a, Tensor):
        return a.clamp(max=b)
    return torch.sym_min(a, b)


@dataclass(frozen=True)
class Blur:
    """A blur pool in the place of a layer's own sampling, which it equals at strength 0.

    Attributes:
        taps: one filter an axis.
        stride: one an axis; 1 blurs alone, where the layer goes on to sample.
        padding: (before, after) an axis.
        padding_mode: as `aablur.blur_pool2d`.
        box: along each axis (first tap, size) of the average that strength 0 stands for; (t, 1) keeps one pixel.
        window: (window, padding, dilation) of a max before the blur, or None.
        beyond: that max, where its windows reach farther beyond the map than ``window`` can; or None.
        rules: where the outputs lie, and how many they are, as a function of the map's size: one an axis; or None,
            if the padding alone says it.
        gain: what the taps sum to.
        channels: of the map; filters of their own, when learnt, if ``per_channel``.
        channels_last: the map is (batch, height, width, channels).
        strength: from 0, the layer's own sampling, to 1, the filter.
        average: the average pool that strength 0 stands for, where its borders are not those of the blur; or None.
    """

    taps: tuple[Taps, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    padding_mode: str = "reflect"
    box: tuple[tuple[int, int], ...] = ()
    window: tuple[Any, Any, Any] | None = None
    rules: tuple[Same | Ceil, ...] | None = None
    gain: float = 1.0
    channels: int | None = None
    per_channel: bool = False
    channels_last: bool = False
    learnable: bool = False
    constraints: tuple[str, ...] = ()
    strength: float = 1.0
    average: Average | None = None
    beyond: Beyond | None = None

    def filter(self, axis: int, strength: float) -> Tensor:
        """(1 - strength) times the layer's own box, plus strength times the filter."""
        taps, (first, size) = self.taps[axis], self.box[axis]
        whole = torch.tensor(binomial(taps) if isinstance(taps, int) else taps, dtype=torch.float64)
        own = torch.zeros_like(whole)
        own[first : first + size] = 1 / size
        mixed = (1 - strength) * own + strength * whole
        return mixed * self.gain if axis == 0 else mixed

    def build(self, strength: float, like: Tensor | None = None) -> nn.Module:
        """The module, with taps on the device and in the dtype of ``like``."""
        if self.average is not None and strength < 1 and not self.learnable:
            whole = replace(self, average=None).build(1.0, like)
            return MixedAverage(whole, self.average, strength)
        rank = len(self.taps)
        plain = strength == 1 and self.gain == 1 and not self.learnable and all(isinstance(t, int) for t in self.taps)
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
                window, taps=taps, window_padding=window_padding, window_dilation=window_dilation, **options
            )
        else:
            made = _BLUR[rank](taps, **options)
        if self.rules is not None:
            made = BlurBySize(made, self.rules, self.padding, self.beyond)
        if not self.learnable:  # a repair adds nothing to a state_dict but what is learnt
            for module in made.modules():
                module._non_persistent_buffers_set.update(module._buffers)
        return ChannelsLast(made) if self.channels_last else made


def size_of(taps: Taps) -> int:
    return taps if isinstance(taps, int) else len(taps)


def blur_at(
    taps: Sequence[Taps], stride: Sequence[int], *, starts: Sequence[int] | None = None, **options: Any
) -> Blur:
    """A `Blur` whose outputs lie at pixels starts, starts + stride, ... : "same" padding moved by ``starts``.

    Along an axis of n pixels it gives ceil((n - starts) / stride) of them.
    """
    starts = starts or [0] * len(taps)
    sizes = list(map(size_of, taps))
    padding = tuple(((k - 1) // 2 - f, k // 2) for k, f in zip(sizes, starts, strict=True))
    box = tuple(((k - 1) // 2, 1) for k in sizes)
    return Blur(tuple(taps), tuple(stride), padding, box=box, **options)


def blur_for_average(
    taps: Sequence[Taps], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], **options: Any
) -> Blur:
    """A `Blur` in place of an average pool: as many outputs, about the same centres (half a pixel off where the sizes
    of the filters differ by an odd number). There are no fewer taps than the average's own.
    """
    pads, box = [], []
    for k, own, p in zip(map(size_of, taps), kernel, padding, strict=True):
        before = p + (k - 1) // 2 - (own - 1) // 2
        pads.append((before, 2 * p + k - own - before))
        box.append((before - p, own))
    return Blur(tuple(taps), tuple(stride), tuple(pads), box=tuple(box), **options)


class ChannelsLast(nn.Module):
    """A blur of maps (batch, height, width, channels)."""

    def __init__(self, blur: nn.Module) -> None:
        super().__init__()
        self.blur = blur

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(x.movedim(-1, 1)).movedim(1, -1)


class MixedAverage(nn.Module):
    """An average pool and the blur pool in its place, mixed: at the borders too it is the pool at strength 0."""

    def __init__(self, blur: nn.Module, average: Average, strength: float) -> None:
        super().__init__()
        self.blur, self.average, self.strength = blur, average, strength

    def forward(self, x: Tensor) -> Tensor:
        own = self.average(x)
        return torch.lerp(own, self.blur(x), self.strength) if self.strength else own


class BlurBySize(nn.Module):
    """A blur pool, or max-blur pool, whose padding follows from the size of each map that comes.

    Along an axis of n pixels the first output lies ``rule.start(n)`` pixels in, and ``rule.outputs(n)`` are given.

    Args:
        blur: an `aablur.nn` module.
        rules: one an axis.
        padding: (before, after) an axis; before is that of start 0, after is not read.
        beyond: as of a `Blur`.
    """

    def __init__(
        self, blur: Any, rules: Sequence[Same | Ceil], padding: Sequence[tuple[int, int]], beyond: Beyond | None = None
    ) -> None:
        super().__init__()
        self.blur, self.rules, self.before = blur, tuple(rules), tuple(before for before, _ in padding)
        self.beyond, self.more = beyond, (0,) * len(self.rules) if beyond is None else beyond.padding
        many = range(1 << 16, (1 << 16) + max(rule.stride for rule in rules))  # sizes of every phase
        self.widest = tuple(
            tuple(max(0, *(int(pads[i][end]) for n in many if (pads := self._pads([n] * blur.rank)))) for end in (0, 1))
            for i in range(blur.rank)
        )

    def _pads(self, sizes: Sequence[Any]) -> list[tuple[Any, Any]]:
        found = []
        axes = self.blur._geometry.axes
        for rule, n, axis, base, more in zip(self.rules, sizes, axes, self.before, self.more, strict=True):
            before = base - rule.start(n)
            end = (rule.outputs(n) - 1) * axis.stride + axis.taps
            found.append((before, end - before - axis.pooled_size(n + more)))
        return found

    def forward(self, x: Tensor) -> Tensor:
        blur = self.blur
        sizes = x.shape[-blur.rank :]
        pads = self._pads(sizes)
        x = x if self.beyond is None else self.beyond(x)
        if any(isinstance(p, (torch.SymInt, Tensor)) for pair in pads for p in pair):
            return self._blur_cut(x, sizes, pads)
        name = f"{'blur' if blur._window is None else 'max_blur'}_pool{blur.rank}d"
        return functional.blur_pool(
            name, blur.rank, x, blur.filters(), blur.stride, pads, blur.padding_mode, blur._window
        )

    def _blur_cut(self, x: Tensor, sizes: Sequence[Any], pads: Sequence[tuple[Any, Any]]) -> Tensor:
        """For sizes that a graph has as unknowns, which no op takes: pad by what is enough for all, then cut."""
        blur, rank = self.blur, self.blur.rank
        if blur._window is not None:
            window, padding, dilation = blur._window
            x = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1](x, window, 1, padding, dilation)
        name = f"blur_pool{rank}d"
        wide = functional.blur_pool(name, rank, x, 1, 1, self.widest, blur.padding_mode)
        for i, (rule, axis) in enumerate(zip(self.rules, blur._geometry.axes, strict=True)):
            length = (rule.outputs(sizes[i]) - 1) * axis.stride + axis.taps
            kept = torch.arange(length, device=x.device) + (self.widest[i][0] - pads[i][0])
            wide = wide.index_select(i - rank, kept)  # of a slice a graph would fix the sizes
        return functional.blur_pool(name, rank, wide, blur.filters(), blur.stride, 0, blur.padding_mode)


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
        pads = ((0, sh - 1), (0, sw - 1))  # of taps of one: padding alone, in every mode
        wide = functional.blur_pool2d(x, 1, stride=1, padding=pads, padding_mode=self.padding_mode)
        phases = [layer(wide[..., i : i + height, j : j + width]) for i in range(sh) for j in range(sw)]
        out = torch.stack(phases, -1).unflatten(-1, (sh, sw))  # (B, C, h, w, sh, sw)
        return out.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
