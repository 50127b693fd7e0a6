"""The ops on Triton: launch configurations, and the few steps around the kernels."""

# Kernels take plain numbers where they are declared to take constants.
# pyright: reportArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from . import triton_banded as banded
from . import triton_kernels as kernels
from .geometry import Axis, Geometry, binomial, code_bits

_MODES = {
    "zeros": kernels.ZEROS, "reflect": kernels.REFLECT, "replicate": kernels.REPLICATE, "circular": kernels.CIRCULAR,
}  # fmt: skip
_MOST_BINOMIALS = 16  # taps of an axis that are constants of the kernel; more are read from memory
_MOST_UNROLLED = 64  # terms of a sum whose loops are written out
_TILE = 1024  # elements a program: 8 a thread, 16 bytes of a half
_CODES_TILE = 512  # with codes: 4 a thread, of 2 bits each a byte
_MOST_HELD = 24  # numbers that a tile of the adjoint holds at a time for each of its elements
_BANDED_TAPS, _BANDED_MAX_TAPS = 7, 5  # the most that written-out loops keep in registers, without a max and with one
_PLANES_TILE = 512  # where neighbours are read one by one, each with its address: more would not fit the registers
_WIDEST = 128  # of them along the width; 16 halves fill the 32 bytes that memory moves at least
_NARROWEST = 16
_LONGEST = 16  # rows of a program: those above its first are read twice
_H100 = 132  # multiprocessors
_PROGRAMS = 8  # of 128 threads, a multiprocessor: two waves of them
_BYTES = 256  # of codes, a program
_FUSED = {"enable_fp_fusion": True}  # a * b + c in one instruction; Triton's own default changes with its version
_ELEMENTS = {torch.float32: tl.float32, torch.float64: tl.float64}


@dataclass(frozen=True, eq=False)  # equal to itself alone, which is what caches are asked for
class _Shape:
    """What every kernel of a call is told of its maps."""

    rank: int
    lines: tuple[kernels.Line, kernels.Line, kernels.Line]  # depth, height, width
    images: int
    channels: int
    channels_last: bool


def _line(axis: Axis, size: int, padding_mode: str, first_tap: int) -> kernels.Line:
    pooled = axis.pooled_size(size)
    before, after = max(axis.before, 0), max(axis.after, 0)
    mode = "replicate" if padding_mode == "reflect" and pooled == 1 else padding_mode  # the same on a single element
    up, down = after, before  # images of the line on either side that padding reads
    if mode == "zeros":
        up = down = 0
    elif mode != "replicate":
        period = pooled - (mode == "reflect")
        up, down = -(-after // period), -(-before // period)
    constants = (
        _MODES[mode].value, max(up, down) <= 1, axis.taps, axis.stride, axis.before, axis.after, axis.window,
        axis.window_padding, axis.window_dilation, first_tap,
    )  # fmt: skip
    return kernels.Line(size, pooled, axis.out_size(size), up, down, *map(tl.constexpr, constants))


@lru_cache(maxsize=1024)
def _shape(geometry: Geometry, x_shape: tuple[int, ...], channels_last: bool) -> _Shape:
    rank = len(geometry.axes)
    size = tuple(x_shape[-rank:])
    lines = [_line(Axis(1, 1, 0, 0), 1, "zeros", -1)] * (3 - rank)
    first_tap = 0
    for axis, n in zip(geometry.axes, size, strict=True):
        lines.append(_line(axis, n, geometry.padding_mode, first_tap))
        first_tap += axis.taps
    images = x_shape[0] if len(x_shape) == rank + 2 else 1
    depth, height, width = lines
    return _Shape(rank, (depth, height, width), images, x_shape[-rank - 1], channels_last)


def _map(x: Tensor, rank: int) -> kernels.Map:
    image = x.stride(0) if x.ndim == rank + 2 else 0
    return kernels.Map(x, image, x.stride(-rank - 1), *[0] * (3 - rank), *x.stride()[-rank:])


@lru_cache(maxsize=1024)
def _binomials(geometry: Geometry) -> kernels.Filter:
    row = tuple(value for a in geometry.axes for value in binomial(a.taps))
    return kernels.Filter(None, tl.constexpr(row), tl.constexpr(len(row)), tl.constexpr(False))


def _filter(taps: Tensor | None, geometry: Geometry, like: Tensor) -> kernels.Filter:
    if taps is None:
        constants = _binomials(geometry)
        if max(a.taps for a in geometry.axes) <= _MOST_BINOMIALS:
            return constants
        dtype = reference.accumulator_dtype(like.dtype)
        taps = torch.cat([reference.binomial_row(a.taps, dtype, like) for a in geometry.axes], 1)
    return kernels.Filter(taps, None, tl.constexpr(taps.shape[1]), tl.constexpr(taps.shape[0] > 1))


def _index(*maps: Tensor) -> tl.dtype:
    """The type that offsets into maps need."""
    spans = [sum((n - 1) * abs(s) for n, s in zip(m.shape, m.stride(), strict=True) if n) for m in maps]
    return tl.int32 if max(spans) < 2**31 - 2**20 else tl.int64  # with room for what lies beyond a tile's end


@lru_cache(maxsize=1024)
def _blocks(
    shape: _Shape,
    depth: int,
    height: int,
    width: int,
    multiprocessors: int,
    elements: int = _TILE,
    least_width: int = 1,
) -> tuple[int, tuple[int, int], Mapping[str, int]]:
    """Programs; blocks of rows, and the rows of each; and the sizes of a tile, for a result of these sizes.

    Args:
        multiprocessors: of the card that programs are to fill.
    """
    pixels = min(triton.next_power_of_2(width), _WIDEST)
    while pixels > _NARROWEST and triton.cdiv(width, pixels // 2) * (pixels // 2) < triton.cdiv(width, pixels) * pixels:
        pixels //= 2
    if shape.channels_last:
        lanes = min(triton.next_power_of_2(shape.channels), 64)
        pixels = min(triton.next_power_of_2(width), elements // lanes)
        lane_blocks = shape.images * triton.cdiv(shape.channels, lanes)
    else:
        lanes = min(triton.next_power_of_2(shape.images * shape.channels), _PLANES_TILE // pixels)
        lane_blocks = triton.cdiv(shape.images * shape.channels, lanes)
    programs_a_row = lane_blocks * triton.cdiv(width, pixels) * depth
    segment = _segment_of(height, programs_a_row, multiprocessors)
    height_blocks = triton.cdiv(height, segment)
    tile = {"LANES": lanes, "WIDTH": max(pixels, least_width)}
    return programs_a_row * height_blocks, (height_blocks, segment), tile


def _segment_of(rows: int, programs_a_row: int, multiprocessors: int) -> int:
    """Rows of a program: a long segment reads fewer of them twice, short ones fill the card."""
    segments = min(max(multiprocessors * _PROGRAMS // programs_a_row, triton.cdiv(rows, _LONGEST)), rows)
    return triton.cdiv(rows, segments)


@lru_cache(maxsize=64)
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda" or not torch.cuda.is_available():
        return _H100
    return torch.cuda.get_device_properties(device).multi_processor_count


def _terms(shape: _Shape, of: Callable[[kernels.Line], Any], most: int = _MOST_UNROLLED) -> bool:
    """Whether a sum with so many terms along each axis is written out."""
    terms = 1
    for line in shape.lines:
        terms *= getattr(of(line), "value", of(line))
    return terms <= most


@lru_cache(maxsize=1024)
def _unroll(shape: _Shape) -> Mapping[str, bool]:
    return {"UNROLL": _terms(shape, lambda line: line.taps), "UNROLL_WINDOW": _terms(shape, lambda line: line.window)}


@lru_cache(maxsize=1024)
def _unroll_adjoint(shape: _Shape) -> Mapping[str, bool]:
    """Each position of a window is a sum over the outputs that read it: code that takes long to compile."""

    def readers(line: kernels.Line) -> int:
        return triton.cdiv(line.taps.value, line.stride.value)

    most = _MOST_UNROLLED // 2
    both = _terms(shape, lambda line: line.window.value * readers(line), most)
    return {"UNROLL": _terms(shape, readers, most), "UNROLL_WINDOW": both}


def _empty(like: Tensor, size: Sequence[int], shape: _Shape) -> Tensor:
    leading = like.shape[: like.ndim - shape.rank]
    if not shape.channels_last or shape.rank == 1:
        return like.new_empty((*leading, *size))
    last = like.new_empty((*leading[:-1], *size, leading[-1]))
    return last.movedim(-1, -shape.rank - 1)


def _accumulator(x: Tensor) -> tl.dtype:
    return _ELEMENTS[reference.accumulator_dtype(x.dtype)]


def _blur(x: Tensor, taps: Tensor | None, geometry: Geometry) -> tuple[Tensor, _Shape]:
    rank = len(geometry.axes)
    shape = _shape(geometry, x.shape, reference.prefers_channels_last(x, rank))
    outs = [line.out for line in shape.lines]
    out = _empty(x, outs[3 - rank :], shape)
    if out.numel():
        programs, segments, tile = _blocks(shape, *outs, _multiprocessors(x.device))
        kernels.blur_kernel[(programs,)](
            _map(out, rank), _map(x, rank), _filter(taps, geometry, x), *shape.lines, shape.images, shape.channels,
            *segments, IDENTITY=geometry.window_volume == 1, ACCUMULATOR=_accumulator(x), **_unroll(shape),
            CHANNELS_LAST=shape.channels_last, **tile, **_FUSED, INDEX=_index(x, out),
        )  # fmt: skip
    return out, shape


def _max_blur(x: Tensor, taps: Tensor | None, geometry: Geometry, with_codes: bool) -> tuple[Tensor, Tensor | None]:
    """Both in one pass where `banded.max_kernel` serves."""
    rank = len(geometry.axes)
    shape = _shape(geometry, x.shape, reference.prefers_channels_last(x, rank))
    if not x.numel() or not _pools(shape, _is_shared(taps), geometry):
        out, shape = _blur(x, taps, geometry)
        return out, _codes(x, geometry, shape) if with_codes else None
    _, height, width = shape.lines
    out = _empty(x, [line.out for line in shape.lines[3 - rank :]], shape)
    group = _group(shape, geometry) if with_codes else 0
    codes = None
    if group:
        codes = _empty_codes(x, geometry, shape)
    down, across = map(_reach, _planes(geometry))
    programs, segments, tile = _blocks(
        shape, 1, height.out, width.out, _multiprocessors(x.device), _TILE if codes is None else _CODES_TILE,
        1 if shape.channels_last else group,  # of small maps: a whole byte
    )  # fmt: skip
    banded.max_kernel[(programs,)](
        _map(out, rank), codes, _map(x, rank), _filter(taps, geometry, x), height, width, down, across, shape.images,
        shape.channels, *segments, _row_bytes(geometry, shape), BITS=code_bits(geometry.window_volume),
        GROUP=max(group, 1), ACCUMULATOR=_accumulator(x), CHANNELS_LAST=shape.channels_last, **tile, **_FUSED,
        INDEX=_index(*(m for m in (x, out, codes) if m is not None)),
    )  # fmt: skip
    return out, _codes(x, geometry, shape) if with_codes and codes is None else codes


def _is_shared(taps: Tensor | None) -> bool:
    return taps is None or taps.shape[0] == 1


@lru_cache(maxsize=1024)
def _pools(shape: _Shape, shares_taps: bool, geometry: Geometry) -> bool:
    """Whether `banded.max_kernel` serves: see there."""
    return (
        geometry.window_volume > 1
        and _is_banded(shape, shares_taps, geometry)
        and all(a.before + a.stride <= a.taps for a in _planes(geometry))
        and all(line.out * line.stride.value >= line.pooled for line in shape.lines[1:])
    )


def _group(shape: _Shape, geometry: Geometry) -> int:
    """Elements of a tile whose codes make a byte of their own, always; 0 where some would share one with others."""
    bits, stride = code_bits(geometry.window_volume), shape.lines[2].stride.value
    if bits > 4:
        return 0
    per_byte = 8 // bits
    if shape.channels_last:
        return per_byte if shape.channels % per_byte == 0 else 0
    return per_byte // stride if per_byte % stride == 0 else 0


def _row_bytes(geometry: Geometry, shape: _Shape) -> int:
    row = shape.channels if shape.channels_last else shape.lines[2].pooled
    return reference.row_bytes(row, geometry)


def _empty_codes(x: Tensor, geometry: Geometry, shape: _Shape) -> Tensor:
    sizes = reference.code_shape(x.shape, geometry, shape.channels_last)
    return x.new_empty(sizes, dtype=torch.uint8)


def _codes(x: Tensor, geometry: Geometry, shape: _Shape) -> Tensor:
    codes = _empty_codes(x, geometry, shape)
    if codes.numel():
        kernels.codes_kernel[(triton.cdiv(codes.numel(), _BYTES),)](
            codes, _map(x, shape.rank), *shape.lines, shape.channels, _row_bytes(geometry, shape), codes.numel(),
            BITS=code_bits(geometry.window_volume), ACCUMULATOR=_accumulator(x),
            UNROLL_WINDOW=_unroll(shape)["UNROLL_WINDOW"], CHANNELS_LAST=shape.channels_last, BYTES=_BYTES, **_FUSED,
            INDEX=_index(x, codes),
        )  # fmt: skip
    return codes


def _adjoint(
    grad: Tensor, codes: Tensor | None, taps: Tensor | None, shape: _Shape, geometry: Geometry, out: Tensor
) -> Tensor:
    if not out.numel():
        return out
    maps = (grad, out) if codes is None else (grad, out, codes)
    before = (_map(out, shape.rank), _map(grad, shape.rank), codes, _filter(taps, geometry, grad))
    row_bytes = _row_bytes(geometry, shape)
    options = {
        "IDENTITY": codes is None, "BITS": code_bits(geometry.window_volume), "ACCUMULATOR": _accumulator(grad),
        "CHANNELS_LAST": shape.channels_last, "INDEX": _index(*maps),
    }  # fmt: skip
    if _spreads(shape, _is_shared(taps), geometry):
        _, height, width = shape.lines
        down, across = map(_reach, _planes(geometry))
        rows, columns = (triton.cdiv(line.size, line.stride.value) for line in (height, width))
        programs, segments, tile = _blocks(
            shape, 1, rows, columns, _multiprocessors(grad.device), _TILE if codes is None else _CODES_TILE
        )
        banded.spread_kernel[(programs,)](
            *before, height, width, down, across, shape.images, shape.channels, *segments, row_bytes, **options,
            **tile, **_FUSED,
        )  # fmt: skip
    else:
        programs, segments, tile = _blocks(shape, *[line.size for line in shape.lines], _multiprocessors(grad.device))
        kernels.adjoint_kernel[(programs,)](
            *before, *shape.lines, shape.images, shape.channels, *segments, row_bytes, **options,
            **_unroll_adjoint(shape), **tile, **_FUSED,
        )  # fmt: skip
    return out


def _planes(geometry: Geometry) -> tuple[Axis, Axis]:
    """Height and width, of maps that may lack the former."""
    height, width = (Axis(1, 1, 0, 0), *geometry.axes)[-2:]
    return height, width


@lru_cache(maxsize=1024)
def _reach(axis: Axis) -> banded.Reach:
    lead = (axis.taps + 1) % 2
    reached = axis.taps + lead
    first = axis.window_padding - (axis.window - 1) * axis.window_dilation
    last = axis.stride - 1 + axis.window_padding
    first_output = -((reached - 1 - first - axis.before - lead) // axis.stride)
    outputs = (last + axis.before + lead) // axis.stride - first_output + 1
    return banded.Reach(*map(tl.constexpr, (first, last - first + 1, first_output, outputs, lead, reached)))


@lru_cache(maxsize=1024)
def _spreads(shape: _Shape, shares_taps: bool, geometry: Geometry) -> bool:
    """Whether `banded.spread_kernel` serves: see there."""
    return _is_banded(shape, shares_taps, geometry) and (
        geometry.window_volume == 1 or not shape.channels_last or _group(shape, geometry) > 0
    )


def _is_banded(shape: _Shape, shares_taps: bool, geometry: Geometry) -> bool:
    """Whether `_reach` tells all of maps without depth and taps that channels share. What a tile holds at a time for
    each of its elements must fit the registers.
    """
    axes = _planes(geometry)
    down, across = map(_reach, axes)
    most_taps = _BANDED_TAPS if geometry.window_volume == 1 else _BANDED_MAX_TAPS
    return (
        shape.rank < 3
        and shares_taps
        and max(a.taps for a in axes) <= most_taps
        and max(down.count.value, down.outputs.value) * across.count.value <= _MOST_HELD
        and all(_folds_near(a, line.size, geometry.padding_mode) for a, line in zip(axes, shape.lines[1:], strict=True))
    )


@lru_cache(maxsize=1024)
def _folds_near(axis: Axis, size: int, padding_mode: str) -> bool:
    """Whether all pooled positions that read an output, borders and all, are among those that `_reach` counts."""
    pooled, lead = axis.pooled_size(size), (axis.taps + 1) % 2
    last = (axis.out_size(size) - 1) * axis.stride - axis.before  # where the last output begins
    behind = last + axis.taps - pooled
    if axis.before != (axis.taps - 1) // 2:
        return False
    if padding_mode == "zeros":
        return True
    if padding_mode == "circular":
        return axis.before == 0 and behind <= 0
    if padding_mode == "replicate" or pooled == 1:
        return last < pooled + lead
    return max(axis.before, behind) < pooled and (behind <= 0 or last + behind < pooled + lead)


# ---- the ops, as schemas.py has them ----------------------------------------------------------------


def blur_pool(x: Tensor, taps: Tensor | None, geometry: Geometry) -> Tensor:
    return _blur(x, taps, geometry)[0]


def max_blur_pool(x: Tensor, taps: Tensor | None, geometry: Geometry) -> Tensor:
    return _max_blur(x, taps, geometry, False)[0]


def max_blur_pool_codes(x: Tensor, taps: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor | None]:
    return _max_blur(x, taps, geometry, True)


def blur_pool_backward(
    grad: Tensor, taps: Tensor | None, size: Sequence[int], geometry: Geometry, channels_last: bool
) -> Tensor:
    rank = len(size)
    shape = _shape(geometry, (*grad.shape[:-rank], *size), channels_last and rank > 1)
    return _adjoint(grad, None, taps, shape, geometry, _empty(grad, size, shape))


def max_blur_pool_backward(
    grad: Tensor, x: Tensor | None, codes: Tensor | None, taps: Tensor | None, size: Sequence[int],
    geometry: Geometry, channels_last: bool,
) -> Tensor:  # fmt: skip
    """Without codes, makes them from x for the time of the call."""
    rank = len(size)
    shape = _shape(geometry, (*grad.shape[:-rank], *size), channels_last and rank > 1)
    if codes is None:
        assert x is not None
        codes = _codes(x, geometry, shape)
    return _adjoint(grad, codes, taps, shape, geometry, _empty(grad, size, shape))


def blur_pool_backward_taps(grad: Tensor, x: Tensor, taps: Tensor, geometry: Geometry) -> Tensor:
    """The moments' shares are added in float64, and weighed by the taps of the other axes."""
    rank = len(geometry.axes)
    if grad.numel() == 0:
        return torch.zeros_like(taps)
    shape = _shape(geometry, x.shape, reference.prefers_channels_last(x, rank))
    programs, segments, tile = _blocks(shape, *[line.out for line in shape.lines], _H100)  # the same bits on every card
    sizes = [a.taps for a in geometry.axes]
    per_lane = taps.shape[0] > 1
    shares = grad.new_empty(
        (programs, *([tile["LANES"]] if per_lane else []), *sizes), dtype=reference.accumulator_dtype(x.dtype)
    )
    kernels.taps_gradient_kernel[(programs,)](
        shares, _map(grad, rank), _map(x, rank), *shape.lines, shape.images, shape.channels, *segments,
        PER_LANE=per_lane, ACCUMULATOR=_accumulator(x),
        CHANNELS_LAST=shape.channels_last, **tile, **_FUSED, INDEX=_index(x, grad, shares),
    )  # fmt: skip
    moments = _by_filter_row(shares.double(), shape) if per_lane else shares.double().sum(0, keepdim=True)
    rows = taps.double().split(sizes, dim=1)
    gradients = []
    for axis in range(rank):
        weighed = moments
        for other in reversed(range(rank)):
            if other != axis:
                view = [1] * (rank + 1)
                view[0], view[other + 1] = rows[other].shape
                weighed = (weighed * rows[other].view(view)).sum(other + 1, keepdim=True)
        gradients.append(weighed.flatten(1))
    return torch.cat(gradients, 1).to(taps.dtype)


def _by_filter_row(shares: Tensor, shape: _Shape) -> Tensor:
    """The sum of each channel's shares: programs are (image, or block of lanes; depth; rows; width; block of lanes)."""
    lanes = shares.shape[1]
    if shape.channels_last:
        blocks = triton.cdiv(shape.channels, lanes)
        return shares.unflatten(0, (-1, blocks)).sum(0).flatten(0, 1)[: shape.channels]
    blocks = triton.cdiv(shape.images * shape.channels, lanes)
    planes = shares.unflatten(0, (blocks, -1)).sum(1).flatten(0, 1)[: shape.images * shape.channels]
    return planes.unflatten(0, (shape.images, shape.channels)).sum(0)
