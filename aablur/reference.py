"""The definition of correct: pad, max-pool and convolve in plain torch. It judges every backend, serves where none
is built, and, being made of aten ops alone, carries torch.func, forward mode and any order of gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Axis, Geometry, binomial, code_bits


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums are taken in, and what packed taps are: float64 for float64, float32 for the rest."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextmanager
def _in_ieee() -> Iterator[None]:
    conv = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    try:
        with torch.autocast("cuda", enabled=False):
            yield
    finally:
        conv.fp32_precision = before


def _exactly(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, convolutions are taken in the dtype of their maps: without autocast, nor the TF32 that cuDNN has for
    float32 by default. (What torch.compile and torch.func run later follows torch's own setting.)"""
    if device.type == "cuda" and not torch.compiler.is_compiling():
        return _in_ieee()
    return torch.autocast(device.type, enabled=False)


def _padded_indices(axis: Axis, size: int, padding_mode: str, device: torch.device) -> Tensor:
    """Source of each padded position, counted on the pooled map extended without end; zeros have source `size`."""
    p = torch.arange(-axis.before, size + axis.after, device=device)
    if padding_mode == "replicate":
        return p.clamp(0, size - 1)
    if padding_mode == "circular":
        return p % size
    if padding_mode == "reflect":
        return (size - 1) - (p % max(2 * size - 2, 1) - (size - 1)).abs() if size > 1 else p * 0
    return torch.where((p >= 0) & (p < size), p, size)


def _pad(x: Tensor, dim: int, axis: Axis, padding_mode: str) -> Tensor:
    size = x.shape[dim]
    if axis.before == axis.after == 0:
        return x
    inner = [0, 0] * (x.ndim - 1 - dim)
    if padding_mode == "zeros":
        if axis.before >= 0 and axis.after >= 0:
            return F.pad(x, [*inner, axis.before, axis.after])
        x = F.pad(x, [*inner, 0, 1])  # index `size` reads a zero
    return x.index_select(dim, _padded_indices(axis, size, padding_mode, x.device))


def max_pool(x: Tensor, geometry: Geometry) -> Tensor:
    """F.max_pool of x (batch, channels, spatial...) over the window, at stride 1."""
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(geometry.axes) - 1]
    window = [a.window for a in geometry.axes]
    padding = [a.window_padding for a in geometry.axes]
    return pool(x, window, 1, padding, [a.window_dilation for a in geometry.axes])


_rows: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}


def binomial_row(taps: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """(1, taps) on the device of `like`. Copied there once: copies from the host wait, and CUDA graphs capture none."""
    key = taps, dtype, like.device
    if type(like) not in (Tensor, torch.nn.Parameter) or torch._C._are_functorch_transforms_active():
        return filled_row(taps, dtype, like)
    if torch.compiler.is_compiling():
        return filled_row(taps, dtype, like)
    row = _rows.get(key)
    if row is None:
        if like.is_cuda and torch.cuda.is_current_stream_capturing():
            return filled_row(taps, dtype, like)
        with torch.inference_mode(False):
            row = torch.tensor([binomial(taps)], dtype=dtype, device=like.device)
        if type(row) is Tensor:  # and not one of a mode's own
            _rows[key] = row
    return row


def filled_row(taps: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """`binomial_row` made on the device, a number at a time: for what traces, transforms or captures."""
    return torch.cat([like.new_full((1, 1), value, dtype=dtype) for value in binomial(taps)], 1)


def axis_taps(taps: Tensor | None, geometry: Geometry, like: Tensor) -> list[Tensor]:
    """The taps of each axis, for a map `like`: (1 or channels, k)."""
    sizes = [a.taps for a in geometry.axes]
    if taps is None:
        return [binomial_row(k, like.dtype, like) for k in sizes]
    channels = like.shape[-len(sizes) - 1]
    if taps.ndim != 2 or taps.shape[1] != sum(sizes) or taps.shape[0] not in (1, channels):
        raise ValueError(
            f"{geometry.op}: taps must have shape (1, {sum(sizes)}) or ({channels}, {sum(sizes)}), a row a channel, "
            f"got {tuple(taps.shape)}"
        )
    return list(taps.split(sizes, dim=1))


def blur_pool(x: Tensor, taps: Tensor | None, geometry: Geometry) -> Tensor:
    """The blur pool of x, or the max-blur pool if the geometry has a window.

    1. Widen halves to float32. 2. Max over the window at stride 1. 3. Along each axis: pad, correlate with the
    axis' taps, keep every stride-th. 4. Round once to the dtype of x, and keep its memory format.

    Args:
        x: (channels, spatial...) or (batch, channels, spatial...).
        taps: None for binomials, or all axes' taps side by side: (1 or channels, sum of taps).
    """
    with _exactly(x.device):
        rank = len(geometry.axes)
        batched = x if x.ndim == rank + 2 else x.unsqueeze(0)
        channels_last = prefers_channels_last(x, rank)
        y = batched.to(accumulator_dtype(x.dtype))
        per_axis = zip(geometry.axes, axis_taps(taps, geometry, y), strict=True)
        if x.numel() == 0:  # torch's convolutions take no empty channels
            return _empty_result(y, taps, geometry).to(x.dtype).reshape(*x.shape[:-rank], *_out_size(x, geometry))
        if geometry.window_volume > 1:
            y = max_pool(y, geometry)
        for i, (axis, row) in enumerate(per_axis):
            y = _correlate(_pad(y, 2 + i, axis, geometry.padding_mode), row, 2 + i, axis.stride)
        y = y.to(x.dtype)
        return in_layout(y if x.ndim == rank + 2 else y.squeeze(0), rank, channels_last)


def in_layout(x: Tensor, rank: int, channels_last: bool) -> Tensor:
    """x dense in its layout, with the strides of a fresh tensor even along axes of size 1."""
    if not channels_last or rank == 1:
        return x.contiguous().view(-1).view(x.shape)
    last = x.movedim(-rank - 1, -1)
    return last.contiguous().view(-1).view(last.shape).movedim(-1, -rank - 1)


def _out_size(x: Tensor, geometry: Geometry) -> list[int]:
    return [a.out_size(n) for a, n in zip(geometry.axes, x.shape[-len(geometry.axes) :], strict=True)]


def _empty_result(x: Tensor, taps: Tensor | None, geometry: Geometry) -> Tensor:
    """The blur pool of an empty batch: no element, but a graph back to x and taps."""
    nothing = x.sum() if taps is None else x.sum() + taps.sum()
    return x.new_zeros(*x.shape[:2], *_out_size(x, geometry)) * nothing


def _correlate(x: Tensor, taps: Tensor, dim: int, stride: int) -> Tensor:
    """Correlation of x (batch, channels, spatial...) with taps (1 or channels, k) along one axis."""
    channels, rank = x.shape[1], x.ndim - 2
    shape = [1] * rank
    shape[dim - 2] = taps.shape[1]
    weight = taps.to(x.dtype).expand(channels, -1).reshape(channels, 1, *shape)
    strides = [1] * rank
    strides[dim - 2] = stride
    conv = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return conv(x, weight, stride=strides, groups=channels)


def channels_last_format(rank: int) -> torch.memory_format:
    return torch.channels_last if rank == 2 else torch.channels_last_3d


def prefers_channels_last(x: Tensor, rank: int) -> bool:
    """torch's own choice of layout: channels_last in, channels_last out; everything else comes out contiguous."""
    if rank == 1 or x.is_contiguous():
        return False
    return (x if x.ndim == rank + 2 else x.unsqueeze(0)).is_contiguous(memory_format=channels_last_format(rank))


def unpack_codes(codes: Tensor, positions: int, bits: int) -> Tensor:
    """Packed codes (..., bytes) as int64 (..., positions)."""
    if bits == 16:
        wide = codes.to(torch.int64)
        return (wide[..., 0::2] | wide[..., 1::2] << 8)[..., :positions]
    shifts = torch.arange(0, 8, bits, device=codes.device)
    return ((codes.to(torch.int64).unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)[..., :positions]


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """int64 codes (..., positions) as uint8 (..., bytes), lowest bits first."""
    if bits == 16:
        return torch.stack([codes & 255, codes >> 8], -1).flatten(-2).to(torch.uint8)
    per_byte = 8 // bits
    padded = F.pad(codes, (0, -codes.shape[-1] % per_byte)).unflatten(-1, (-1, per_byte))
    return (padded << torch.arange(0, 8, bits, device=codes.device)).sum(-1).to(torch.uint8)


# ---- the adjoints, for the ops' backward where no kernel is built ------------------------------------


def blur_pool_backward(grad: Tensor, taps: Tensor | None, size: Sequence[int], geometry: Geometry) -> Tensor:
    """The adjoint of `blur_pool` without its max, applied to grad; `size` is that of the pooled map."""
    with _exactly(grad.device):
        rank, wide = len(geometry.axes), accumulator_dtype(grad.dtype)
        g = (grad if grad.ndim == rank + 2 else grad.unsqueeze(0)).to(wide)
        per_axis = list(zip(geometry.axes, axis_taps(taps, geometry, g), size, strict=True))
        if grad.numel() == 0:
            return grad.new_zeros(*grad.shape[:-rank], *size)
        for i, (axis, row, n) in reversed(list(enumerate(per_axis))):
            g = _correlate_adjoint(g, row, 2 + i, axis.stride, n + axis.before + axis.after)
            g = _pad_adjoint(g, 2 + i, axis, n, geometry.padding_mode)
        g = g.to(grad.dtype)
        return g if grad.ndim == rank + 2 else g.squeeze(0)


def _correlate_adjoint(g: Tensor, taps: Tensor, dim: int, stride: int, padded: int) -> Tensor:
    channels, rank = g.shape[1], g.ndim - 2
    shape = [1] * rank
    shape[dim - 2] = taps.shape[1]
    weight = taps.to(g.dtype).expand(channels, -1).reshape(channels, 1, *shape)
    strides = [1] * rank
    strides[dim - 2] = stride
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    spread = conv(g, weight, stride=strides, groups=channels)
    return F.pad(spread, [0, 0] * (g.ndim - 1 - dim) + [0, padded - spread.shape[dim]])


def _pad_adjoint(g: Tensor, dim: int, axis: Axis, size: int, padding_mode: str) -> Tensor:
    if axis.before == axis.after == 0:
        return g
    indices = _padded_indices(axis, size, padding_mode, g.device)
    shape = list(g.shape)
    shape[dim] = size + 1  # the last catches what zeros padding reads
    return g.new_zeros(shape).index_add(dim, indices, g).narrow(dim, 0, size)


def blur_pool_backward_taps(grad: Tensor, x: Tensor, taps: Tensor, geometry: Geometry) -> Tensor:
    """d <grad, blur_pool(x, taps)> / d taps."""
    with _exactly(x.device):
        rank = len(geometry.axes)
        wide = accumulator_dtype(x.dtype)
        y, g = ((t if t.ndim == rank + 2 else t.unsqueeze(0)).to(wide) for t in (x, grad))
        per_axis = list(zip(geometry.axes, axis_taps(taps, geometry, y), strict=True))
        if x.numel() == 0:
            return torch.zeros_like(taps)
        shares = []
        for i, (axis, row) in enumerate(per_axis):
            rest = y
            for j, (other, other_taps) in enumerate(per_axis):
                rest = _pad(rest, 2 + j, other, geometry.padding_mode)
                if j != i:
                    rest = _correlate(rest, other_taps, 2 + j, other.stride)
            last = (g.shape[2 + i] - 1) * axis.stride + 1
            read = [
                rest.narrow(2 + i, t, last).index_select(2 + i, torch.arange(0, last, axis.stride, device=x.device))
                for t in range(row.shape[1])
            ]
            shares.append(torch.stack([(r * g).transpose(0, 1).flatten(1).sum(1) for r in read], 1))
        per_channel = torch.cat(shares, 1)
        return per_channel if taps.shape[0] > 1 else per_channel.sum(0, keepdim=True)


# ---- the max's codes ---------------------------------------------------------------------------------


def code_shape(x_shape: Sequence[int], geometry: Geometry, channels_last: bool) -> list[int]:
    """Shape of the packed codes of x: (images, planes an image, bytes a plane).

    A plane's codes lie as its maxima do, row after row of what lies last (the channels, or else the width); a row
    begins with a byte, and what it leaves of its last one is zero.
    """
    rank = len(geometry.axes)
    images = x_shape[0] if len(x_shape) == rank + 2 else 1
    channels = x_shape[-rank - 1]
    pooled = pooled_sizes(geometry, x_shape[-rank:])
    planes, rows, row = (1, pooled, channels) if channels_last else (channels, pooled[:-1], pooled[-1])
    return [images, planes, math.prod(rows) * row_bytes(row, geometry)]


def row_bytes(row: int, geometry: Geometry) -> int:
    return (row * code_bits(geometry.window_volume) + 7) // 8


def pooled_sizes(geometry: Geometry, size: Sequence[int]) -> list[int]:
    return [a.pooled_size(n) for a, n in zip(geometry.axes, size, strict=True)]


def max_pool_indices(x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The max of batched x over the window at stride 1, and where it lay: flat spatial indices of x."""
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(geometry.axes) - 1]
    axes = geometry.axes
    if x.numel() == 0:
        pooled = pooled_sizes(geometry, x.shape[2:])
        return x.new_empty(*x.shape[:2], *pooled), x.new_empty(*x.shape[:2], *pooled, dtype=torch.int64)
    if x.is_cuda:
        x = x.contiguous()  # for a window that is all -inf, torch's channels_last kernel returns index 0 of the map
    return pool(
        x, [a.window for a in axes], 1, [a.window_padding for a in axes], [a.window_dilation for a in axes],
        return_indices=True,
    )  # fmt: skip


def indices_to_codes(indices: Tensor, size: Sequence[int], geometry: Geometry, channels_last: bool) -> Tensor:
    """Packed codes of flat indices (images, channels, pooled...)."""
    rank = len(geometry.axes)
    code = torch.zeros_like(indices)
    for i, (axis, n) in enumerate(zip(geometry.axes, size, strict=True)):
        inner = math.prod(size[i + 1 :])
        source = indices // inner % n
        p = torch.arange(indices.shape[2 + i], device=indices.device).reshape(-1, *[1] * (rank - 1 - i))
        code = code * axis.window + (source - p + axis.window_padding) // axis.window_dilation
    if channels_last:
        code = code.movedim(1, -1).unsqueeze(1)
    return pack_codes(code, code_bits(geometry.window_volume)).flatten(2)


def codes_of_maxima(codes: Tensor, x_shape: Sequence[int], geometry: Geometry, channels_last: bool) -> Tensor:
    """int64 codes (images, channels, pooled...) from packed ones."""
    rank = len(geometry.axes)
    pooled = pooled_sizes(geometry, x_shape[-rank:])
    rows, row = (pooled, x_shape[-rank - 1]) if channels_last else (pooled[:-1], pooled[-1])
    packed = codes.unflatten(2, [*rows, row_bytes(row, geometry)])
    code = unpack_codes(packed, row, code_bits(geometry.window_volume))
    return code.squeeze(1).movedim(-1, 1) if channels_last else code


def codes_to_indices(codes: Tensor, x_shape: Sequence[int], geometry: Geometry, channels_last: bool) -> Tensor:
    """Flat spatial indices of x (images, channels, pooled...) from packed codes."""
    rank = len(geometry.axes)
    size, code = x_shape[-rank:], codes_of_maxima(codes, x_shape, geometry, channels_last)
    indices = torch.zeros_like(code)
    inner = 1
    for i, (axis, n) in reversed(list(enumerate(zip(geometry.axes, size, strict=True)))):
        p = torch.arange(code.shape[2 + i], device=code.device).reshape(-1, *[1] * (rank - 1 - i))
        indices = indices + inner * (p - axis.window_padding + code % axis.window * axis.window_dilation)
        code = code // axis.window
        inner = inner * n
    return indices


def select(x: Tensor, indices: Tensor) -> Tensor:
    """x (batched or not) at flat spatial indices (images, channels, pooled...): what the max passes on."""
    channels = indices.shape[1]
    picked = x.reshape(-1, channels, math.prod(x.shape[-(indices.ndim - 2) :])).gather(2, indices.flatten(2))
    picked = picked.unflatten(2, indices.shape[2:])
    return picked if x.ndim == indices.ndim else picked.squeeze(0)


def select_adjoint(grad: Tensor, indices: Tensor, size: Sequence[int]) -> Tensor:
    """The adjoint of `select`: (images, channels, *size), or unbatched as grad is."""
    zeros = grad.new_zeros(*indices.shape[:2], math.prod(size))
    out = zeros.scatter_add(2, indices.flatten(2), grad.reshape(indices.shape).flatten(2)).unflatten(2, tuple(size))
    return out if grad.ndim == indices.ndim else out.squeeze(0)
