"""The ops taken apart for engines that do not know them: [MaxPool], then Conv for zeros, Pad and Conv otherwise."""

from __future__ import annotations

import math
from functools import reduce
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .geometry import Geometry, binomial

_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def blur_pool(x: Tensor, taps: Tensor | None, geometry: Geometry) -> Tensor:
    """`reference.blur_pool` in the operators that inference engines like best, in the dtype of x.

    1. Max over the window at stride 1. 2. Pad, unless by zeros. 3. One depthwise convolution with the outer product
    of the axes' taps, which pads by zeros itself. Maps not larger than their pad, where ONNX defines no Pad, take the
    reference's way, if their size is known.
    """
    rank = len(geometry.axes)
    batched = x if x.ndim == rank + 2 else x.unsqueeze(0)
    if not _can_pad(batched, geometry):
        return reference.blur_pool(x, taps, geometry)
    y = reference.max_pool(batched, geometry) if geometry.window_volume > 1 else batched
    factors = [_binomial(a.taps, x) for a in geometry.axes] if taps is None else _slices(taps, geometry)
    pads = [(a.before, a.after) for a in geometry.axes]
    if all(pad == (0, 0) or (geometry.padding_mode == "zeros" and min(pad) >= 0) for pad in pads):
        factors = [_centred(t, *pad) for t, pad in zip(factors, pads, strict=True)]
        inside = [max(pad) for pad in pads]
    else:
        y = F.pad(y, [p for pad in reversed(pads) for p in pad], _PAD_MODES[geometry.padding_mode])
        inside = [0] * rank
    factors = [t.to(x.dtype) for t in factors]
    weight = reduce(lambda outer, t: outer.unsqueeze(-1) * t[(slice(None), *[None] * (outer.ndim - 1))], factors)
    channels = batched.shape[1]
    if torch._C._get_tracing_state():  # the TorchScript exporter takes no Conv of unknown channels
        channels = int(channels)
    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    stride = [a.stride for a in geometry.axes]
    y = conv(
        y, weight.unsqueeze(1).expand(channels, *[-1] * (rank + 1)), stride=stride, padding=inside, groups=channels
    )
    return y if x.ndim == rank + 2 else y.squeeze(0)


def _binomial(taps: int, like: Tensor) -> Tensor:
    """(1, taps): a constant to jit.trace; elsewhere no tensor of a list, which graphs would have to lift out."""
    if torch._C._get_tracing_state():
        return torch.tensor([binomial(taps)], dtype=like.dtype, device=like.device)
    return reference.filled_row(taps, like.dtype, like)


def _slices(taps: Tensor, geometry: Geometry) -> list[Tensor]:
    ends = accumulate(a.taps for a in geometry.axes)
    return [taps[:, end - a.taps : end] for a, end in zip(geometry.axes, ends, strict=True)]


def _can_pad(x: Tensor, geometry: Geometry) -> bool:
    """Whether each map is larger than its reflected or circular pad: taken for granted of a size not known."""
    room = {"reflect": 1, "circular": 0}.get(geometry.padding_mode, -math.inf)
    sizes = x.shape[2:]
    return all(
        not isinstance(n, int) or max(a.before, a.after) <= a.pooled_size(n) - room
        for a, n in zip(geometry.axes, sizes, strict=True)
    )


def _centred(taps: Tensor, before: int, after: int) -> Tensor:
    """The taps (channels, k) for a pad of max(before, after) on both sides: zeros on the side that was shorter."""
    return taps if before == after else F.pad(taps, [max(after - before, 0), max(before - after, 0)])
