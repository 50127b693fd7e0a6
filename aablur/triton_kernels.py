"""The Triton kernels: the path of an install without nvcc, and the shortest reading of what the CUDA kernels do.

A program makes some rows of a tile of the result: pixels of the width by channels where the channel lies last in
memory, planes by pixels of the width elsewhere, so that neighbours in memory are neighbours in the tile. Depth and
height are numbers, the same for the whole tile; lanes (channels or planes) and width are vectors. Results are gathered:
no atomics, the same bits every run. `triton_ops.py` launches them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

ZEROS = tl.constexpr(0)
REFLECT = tl.constexpr(1)
REPLICATE = tl.constexpr(2)
CIRCULAR = tl.constexpr(3)


class Line(NamedTuple):
    """An axis with its size: csrc/core/axis.h's Axis. From `mode` on, constants of the kernel."""

    size: Any
    pooled: Any
    out: Any
    up: Any  # images of the pooled line after it that padding reads
    down: Any  # and before it
    mode: Any
    near: Any  # padding reads no further than the first image on either side
    taps: Any
    stride: Any
    before: Any
    after: Any
    window: Any
    window_padding: Any
    window_dilation: Any
    first_tap: Any  # in a row of taps; -1 for an axis that the map lacks


class Map(NamedTuple):
    """A batch of maps where it lies: its data, and the elements between neighbours."""

    data: Any
    image: Any
    channel: Any
    depth: Any
    height: Any
    width: Any


class Filter(NamedTuple):
    """The taps of all axes. From `row` on, constants of the kernel; so are binomials."""

    data: Any  # (1 or channels, row), accumulators; None for binomials
    binomials: Any  # the same row as numbers, or None
    row: Any  # taps of all axes
    per_channel: Any


# ---- borders: csrc/core/axis.h's fold and unfold ------------------------------------------------------


@triton.jit
def fold(p, n, mode: tl.constexpr, near: tl.constexpr):
    """Index in a pooled line of n that padded position p reads, or -1."""
    if mode == ZEROS:
        return tl.where((p >= 0) & (p < n), p, -1)
    elif mode == REPLICATE:
        return tl.minimum(tl.maximum(p, 0), n - 1)
    elif mode == CIRCULAR:
        q = p if near else p % n
        return tl.where(q < 0, q + n, tl.where(q >= n, q - n, q))
    else:
        q = tl.abs(p)
        if not near:
            q = q % (2 * n - 2)
        return tl.where(q < n, q, 2 * n - 2 - q)


@triton.jit
def unfold(i, image, n, mode: tl.constexpr):
    """The padded position that reads index i in an image of the line (0 is the line itself, 1 the next after it), and
    whether no nearer image has it.
    """
    if mode == ZEROS:
        return i, i == i
    elif mode == REPLICATE:
        p = tl.where(image > 0, n - 1 + image, tl.where(image < 0, image, i))
        return p, (image == 0) | (i == tl.where(image > 0, n - 1, 0))
    elif mode == CIRCULAR:
        return i + image * n, i == i
    else:
        at = tl.where(image % 2 == 0, i, n - 1 - i)  # images share their ends
        return image * (n - 1) + at, (image == 0) | (at != tl.where(image > 0, 0, n - 1))


@triton.jit
def nth_reflection(j, line):
    """0, 1 ... up, -1 ... -down for j = 0, 1 ..."""
    return tl.where(j <= line.up, j, line.up - j)


@triton.jit
def within(i, n):
    return (i >= 0) & (i < n)


# ---- taps --------------------------------------------------------------------------------------------


@triton.jit
def tap(taps, line, t, wanted, channel, there):
    """Tap t of an axis; zero where it is not wanted. A number for each t, or with taps of channels one for each."""
    if line.first_tap < 0:
        return tl.where(wanted, 1.0, 0.0)
    elif taps.binomials is not None:
        value = 0.0
        for i in tl.static_range(line.taps):
            value = tl.where((t == i) & wanted, taps.binomials[line.first_tap + i], value)
        return value
    elif taps.per_channel:
        return tl.load(taps.data + channel * taps.row + line.first_tap + t, mask=there & wanted, other=0)
    else:
        return tl.load(taps.data + line.first_tap + t, mask=wanted, other=0)


# ---- the prologue ------------------------------------------------------------------------------------


@triton.jit
def pooled_value(
    x, lanes, d, h, w, present, depth, height, width, IDENTITY: tl.constexpr, ACCUMULATOR: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """What the blur reads at pooled position (d, h, w): x itself, or the maximum of its window, where NaN wins."""
    if IDENTITY:
        return tl.load(x.data + lanes + d * x.depth + h * x.height + w * x.width, mask=present, other=0).to(ACCUMULATOR)
    else:
        best = tl.full(present.shape, float("-inf"), ACCUMULATOR)
        for a in tl.range(0, depth.window, loop_unroll_factor=depth.window if UNROLL else 1):
            z = d - depth.window_padding + a * depth.window_dilation
            for b in tl.range(0, height.window, loop_unroll_factor=height.window if UNROLL else 1):
                y = h - height.window_padding + b * height.window_dilation
                for c in tl.range(0, width.window, loop_unroll_factor=width.window if UNROLL else 1):
                    s = w - width.window_padding + c * width.window_dilation
                    inside = present & within(z, depth.size) & within(y, height.size) & within(s, width.size)
                    at = x.data + lanes + z * x.depth + y * x.height + s * x.width
                    value = tl.load(at, mask=inside, other=float("-inf")).to(ACCUMULATOR)
                    best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
        return tl.where(present, best, 0)


@triton.jit
def pooled_code(x, lanes, d, h, w, present, depth, height, width, ACCUMULATOR: tl.constexpr, UNROLL: tl.constexpr):
    """Where in its window the maximum at pooled position (d, h, w) lies, row-major: the first, or the last NaN."""
    best = tl.full(present.shape, float("-inf"), ACCUMULATOR)
    code = tl.full(present.shape, -1, tl.int32)
    for a in tl.range(0, depth.window, loop_unroll_factor=depth.window if UNROLL else 1):
        z = d - depth.window_padding + a * depth.window_dilation
        for b in tl.range(0, height.window, loop_unroll_factor=height.window if UNROLL else 1):
            y = h - height.window_padding + b * height.window_dilation
            for c in tl.range(0, width.window, loop_unroll_factor=width.window if UNROLL else 1):
                s = w - width.window_padding + c * width.window_dilation
                inside = present & within(z, depth.size) & within(y, height.size) & within(s, width.size)
                at = x.data + lanes + z * x.depth + y * x.height + s * x.width
                value = tl.load(at, mask=inside, other=0).to(ACCUMULATOR)
                replaces = inside & ((code < 0) | (value > best) | (value != value))
                best = tl.where(replaces, value, best)
                code = tl.where(replaces, (a * height.window + b) * width.window + c, code)
    return code


# ---- the tile of a program ---------------------------------------------------------------------------


@triton.jit
def tile(
    images, channels, depth_size, height_blocks, width_size, CHANNELS_LAST: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, INDEX: tl.constexpr, GROUP: tl.constexpr = 1,
):  # fmt: skip
    """image, channel, depth, block of rows, width, the first of it, where there are such: what a program makes.

    Groups of neighbours in memory, whose codes share a byte, may lie along a last dimension of their own.
    """
    rest = tl.program_id(0)
    lane_count = channels if CHANNELS_LAST else images * channels
    lane_block = 0
    if CHANNELS_LAST:
        lane_blocks = tl.cdiv(channels, LANES)
        lane_block = rest % lane_blocks
        rest = rest // lane_blocks
    width_blocks = tl.cdiv(width_size, WIDTH)
    width_block = rest % width_blocks
    rest = rest // width_blocks
    height_block = rest % height_blocks
    rest = rest // height_blocks
    d = rest % depth_size
    rest = rest // depth_size
    outer = tl.arange(0, WIDTH if CHANNELS_LAST else LANES)
    if GROUP > 1:
        groups = tl.arange(0, (LANES if CHANNELS_LAST else WIDTH) // GROUP)
        inner = groups[None, :, None] * GROUP + tl.arange(0, GROUP)[None, None, :]
        outer = outer[:, None, None]
    else:
        inner = tl.arange(0, LANES if CHANNELS_LAST else WIDTH)[None, :]
        outer = outer[:, None]
    lane = (lane_block if CHANNELS_LAST else rest).to(INDEX) * LANES + (inner if CHANNELS_LAST else outer)
    w = (width_block * WIDTH + (outer if CHANNELS_LAST else inner)).to(INDEX)
    image = rest.to(INDEX) if CHANNELS_LAST else lane // channels
    channel = lane if CHANNELS_LAST else lane % channels
    present = (lane < lane_count) & (w < width_size)
    return image, channel, d.to(INDEX), height_block.to(INDEX), w, width_block * WIDTH, present


# ---- the forward -------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["segment"])
def blur_kernel(
    out, x, taps, depth, height, width, images, channels, height_blocks, segment, IDENTITY: tl.constexpr,
    ACCUMULATOR: tl.constexpr, UNROLL: tl.constexpr, UNROLL_WINDOW: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """out = the blur of the prologue of x."""
    image, channel, d, block, w, _, present = tile(
        images, channels, depth.out, height_blocks, width.out, CHANNELS_LAST, LANES, WIDTH, INDEX
    )
    UNROLL_ROWS: tl.constexpr = UNROLL and IDENTITY  # all rows' windows at once would not fit the registers
    there = channel < channels
    lanes = image * x.image + channel * x.channel
    out_lanes = image * out.image + channel * out.channel
    for r in range(0, tl.minimum(segment, height.out - block * segment)):
        h = block * segment + r
        total = tl.zeros(present.shape, ACCUMULATOR)
        for a in tl.range(0, depth.taps, loop_unroll_factor=depth.taps if UNROLL_ROWS else 1):
            z = fold(d * depth.stride - depth.before + a, depth.pooled, depth.mode, depth.near)
            outer = tap(taps, depth, a, a >= 0, channel, there)
            for b in tl.range(0, height.taps, loop_unroll_factor=height.taps if UNROLL_ROWS else 1):
                y = fold(h * height.stride - height.before + b, height.pooled, height.mode, height.near)
                middle = outer * tap(taps, height, b, b >= 0, channel, there)
                row = tl.zeros(present.shape, ACCUMULATOR)
                for c in tl.range(0, width.taps, loop_unroll_factor=width.taps if UNROLL else 1):
                    s = fold(w * width.stride - width.before + c, width.pooled, width.mode, width.near)
                    read = present & (z >= 0) & (y >= 0) & (s >= 0)
                    value = pooled_value(
                        x, lanes, z, y, s, read, depth, height, width, IDENTITY, ACCUMULATOR, UNROLL_WINDOW
                    )
                    row += tap(taps, width, c, c >= 0, channel, there) * value
                total += middle * row
        at = out.data + out_lanes + d * out.depth + h * out.height + w * out.width
        tl.store(at, total.to(out.data.dtype.element_ty), mask=present)


# ---- codes: csrc/core/argmax.h's Packing ------------------------------------------------------------------


@triton.jit
def code_row(image, channel, channels, d, h, w, depths, height, width, CHANNELS_LAST: tl.constexpr):
    """The row of codes that has that of a pooled position, of all in the batch."""
    if CHANNELS_LAST:
        return ((image * depths + d) * height.pooled + h) * width.pooled + w
    else:
        return ((image * channels + channel) * depths + d) * height.pooled + h


@triton.jit
def codes_kernel(
    codes, x, depth, height, width, channels, row_bytes, count, BITS: tl.constexpr, ACCUMULATOR: tl.constexpr,
    UNROLL_WINDOW: tl.constexpr, CHANNELS_LAST: tl.constexpr, BYTES: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The packed codes of x, byte by byte: every code that shares a byte is made by one program."""
    PER_BYTE: tl.constexpr = 1 if BITS == 16 else 8 // BITS
    byte = tl.program_id(0).to(INDEX) * BYTES + tl.arange(0, BYTES)[:, None]
    rest = byte // row_bytes
    of_row = byte % row_bytes
    part = tl.arange(0, PER_BYTE)[None, :]
    along = of_row // 2 + part if BITS == 16 else of_row * PER_BYTE + part
    w = along
    channel = along
    if CHANNELS_LAST:
        w = rest % width.pooled
        rest = rest // width.pooled
    h = rest % height.pooled
    rest = rest // height.pooled
    d = rest % depth.pooled
    image = rest // depth.pooled
    if not CHANNELS_LAST:
        channel = image % channels
        image = image // channels
    present = (byte < count) & (along < (channels if CHANNELS_LAST else width.pooled))
    lanes = image * x.image + channel * x.channel
    code = pooled_code(x, lanes, d, h, w, present, depth, height, width, ACCUMULATOR, UNROLL_WINDOW)
    code = tl.where(present, code, 0)
    shifted = code >> (of_row % 2 * 8).to(tl.int32) & 255 if BITS == 16 else code << part * BITS
    packed = tl.sum(shifted, axis=1)
    at = tl.program_id(0).to(INDEX) * BYTES + tl.arange(0, BYTES)
    tl.store(codes + at, packed.to(tl.uint8), mask=at < count)


@triton.jit
def read_code(
    codes, image, channel, channels, d, h, w, present, depths, height, width, row_bytes, BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The code of pooled position (d, h, w)."""
    row = codes + code_row(image, channel, channels, d, h, w, depths, height, width, CHANNELS_LAST) * row_bytes
    along = channel if CHANNELS_LAST else w
    if BITS == 16:
        at = row + along * 2
        low = tl.load(at, mask=present, other=0).to(tl.int32)
        return low | tl.load(at + 1, mask=present, other=0).to(tl.int32) << 8
    else:
        PER_BYTE: tl.constexpr = 8 // BITS
        byte = tl.load(row + along // PER_BYTE, mask=present, other=0).to(tl.int32)
        return byte >> (along % PER_BYTE * BITS).to(tl.int32) & ((1 << BITS) - 1)


# ---- the adjoint -------------------------------------------------------------------------------------


@triton.jit
def gathered_from_reflection(
    grad, at, w, image, channel, there, present, taps, width, ACCUMULATOR: tl.constexpr, UNROLL: tl.constexpr
):  # fmt: skip
    """What pooled positions w get of a row of grad through an image of the line."""
    READERS: tl.constexpr = (width.taps + width.stride - 1) // width.stride
    p, is_copy = unfold(w, image, width.pooled, width.mode)
    q = p + width.before
    read = is_copy & (q >= 0) & (p < width.pooled + width.after)
    row = tl.zeros(present.shape, ACCUMULATOR)
    for m in tl.range(0, READERS, loop_unroll_factor=READERS if UNROLL else 1):
        o = q // width.stride - m
        t = q - o * width.stride
        reads = read & within(o, width.out) & (t < width.taps)
        weight = tap(taps, width, t, reads, channel, there)
        row += weight * tl.load(grad.data + at + o * grad.width, mask=present & reads, other=0).to(ACCUMULATOR)
    return row


@triton.jit
def gathered(
    grad, lanes, d, h, w, channel, there, present, edge, taps, depth, height, width, ACCUMULATOR: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """The transpose of the blur at pooled position (d, h, w): every output that reads it, in a fixed order."""
    DEPTH_READERS: tl.constexpr = (depth.taps + depth.stride - 1) // depth.stride
    HEIGHT_READERS: tl.constexpr = (height.taps + height.stride - 1) // height.stride
    total = tl.zeros(present.shape, ACCUMULATOR)
    for i in range(0, 1 + depth.up + depth.down):
        pd, copy_d = unfold(d, nth_reflection(i, depth), depth.pooled, depth.mode)
        qd = pd + depth.before
        if copy_d & (qd >= 0) & (pd < depth.pooled + depth.after):
            for j in range(0, 1 + height.up + height.down):
                ph, copy_h = unfold(h, nth_reflection(j, height), height.pooled, height.mode)
                qh = ph + height.before
                if copy_h & (qh >= 0) & (ph < height.pooled + height.after):
                    for m in tl.range(0, DEPTH_READERS, loop_unroll_factor=DEPTH_READERS if UNROLL else 1):
                        od = qd // depth.stride - m
                        td = qd - od * depth.stride
                        reads_d = within(od, depth.out) & (td < depth.taps)
                        outer = tap(taps, depth, td, reads_d, channel, there)
                        for n in tl.range(0, HEIGHT_READERS, loop_unroll_factor=HEIGHT_READERS if UNROLL else 1):
                            oh = qh // height.stride - n
                            th = qh - oh * height.stride
                            reads = reads_d & within(oh, height.out) & (th < height.taps)
                            middle = tap(taps, height, th, reads, channel, there)
                            at = lanes + od * grad.depth + oh * grad.height
                            row = gathered_from_reflection(
                                grad, at, w, 0, channel, there, present & reads, taps, width, ACCUMULATOR, UNROLL
                            )
                            if edge:
                                for k in range(1, 1 + width.up + width.down):
                                    row += gathered_from_reflection(
                                        grad, at, w, nth_reflection(k, width), channel, there, present & reads, taps,
                                        width, ACCUMULATOR, UNROLL,
                                    )  # fmt: skip
                            total += outer * middle * row
    return total


@triton.jit(do_not_specialize=["segment"])
def adjoint_kernel(
    out, grad, codes, taps, depth, height, width, images, channels, height_blocks, segment, row_bytes,
    IDENTITY: tl.constexpr, BITS: tl.constexpr, ACCUMULATOR: tl.constexpr, UNROLL: tl.constexpr,
    UNROLL_WINDOW: tl.constexpr, CHANNELS_LAST: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    """out = the adjoint of the prologue after the transposed blur of grad; codes say where the maxima were."""
    image, channel, d, block, w, first, present = tile(
        images, channels, depth.size, height_blocks, width.size, CHANNELS_LAST, LANES, WIDTH, INDEX
    )
    there = channel < channels
    lanes = image * grad.image + channel * grad.channel
    out_lanes = image * out.image + channel * out.channel
    # Whether padding reads a pooled position of this tile a second time.
    reach: tl.constexpr = max(width.before, width.after)
    low = first + width.window_padding - (width.window - 1) * width.window_dilation
    high = first + WIDTH - 1 + width.window_padding
    edge = (low <= reach) | (high >= width.pooled - 1 - reach) | (width.up > 1) | (width.down > 1)
    for r in range(0, tl.minimum(segment, height.size - block * segment)):
        h = block * segment + r
        if IDENTITY:
            total = gathered(
                grad, lanes, d, h, w, channel, there, present, edge, taps, depth, height, width, ACCUMULATOR, UNROLL
            )
        else:
            total = tl.zeros(present.shape, ACCUMULATOR)
            for a in tl.range(0, depth.window, loop_unroll_factor=depth.window if UNROLL_WINDOW else 1):
                z = d + depth.window_padding - a * depth.window_dilation
                for b in tl.range(0, height.window, loop_unroll_factor=height.window if UNROLL_WINDOW else 1):
                    y = h + height.window_padding - b * height.window_dilation
                    for c in tl.range(0, width.window, loop_unroll_factor=width.window if UNROLL_WINDOW else 1):
                        s = w + width.window_padding - c * width.window_dilation
                        held = present & within(z, depth.pooled) & within(y, height.pooled) & within(s, width.pooled)
                        code = read_code(
                            codes, image, channel, channels, z, y, s, held, depth.pooled, height, width, row_bytes,
                            BITS, CHANNELS_LAST,
                        )  # fmt: skip
                        # Loaded where it may be wanted, not where the code wants it: 16 bytes at a time.
                        share = gathered(
                            grad, lanes, z, y, s, channel, there, held, edge, taps, depth, height, width, ACCUMULATOR,
                            UNROLL,
                        )  # fmt: skip
                        mine = held & (code == (a * height.window + b) * width.window + c)
                        total += tl.where(mine, share, 0)
        at = out.data + out_lanes + d * out.depth + h * out.height + w * out.width
        tl.store(at, total.to(out.data.dtype.element_ty), mask=present)


# ---- the gradient of the taps ------------------------------------------------------------------------


@triton.jit(do_not_specialize=["segment"])
def taps_gradient_kernel(
    moments, grad, x, depth, height, width, images, channels, height_blocks, segment, PER_LANE: tl.constexpr,
    ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """moments[program, (lane,) a, b, c] = the program's share of the sum of grad times what tap (a, b, c) of the
    filters' product reads: the gradient of a tap is a sum of moments, weighed by the taps of the other axes.
    """
    image, channel, d, block, w, _, present = tile(
        images, channels, depth.out, height_blocks, width.out, CHANNELS_LAST, LANES, WIDTH, INDEX
    )
    x_lanes = image * x.image + channel * x.channel
    grad_lanes = image * grad.image + channel * grad.channel + d * grad.depth + w * grad.width
    count: tl.constexpr = depth.taps * height.taps * width.taps
    to = moments + tl.program_id(0).to(INDEX) * (count * (LANES if PER_LANE else 1))
    for a in range(0, depth.taps):
        z = fold(d * depth.stride - depth.before + a, depth.pooled, depth.mode, depth.near)
        for b in range(0, height.taps):
            for c in range(0, width.taps):
                s = fold(w * width.stride - width.before + c, width.pooled, width.mode, width.near)
                share = tl.zeros(present.shape, ACCUMULATOR)
                for r in range(0, tl.minimum(segment, height.out - block * segment)):
                    h = block * segment + r
                    y = fold(h * height.stride - height.before + b, height.pooled, height.mode, height.near)
                    read = present & (z >= 0) & (y >= 0) & (s >= 0)
                    dy = tl.load(grad.data + grad_lanes + h * grad.height, mask=read, other=0).to(ACCUMULATOR)
                    at = x.data + x_lanes + z * x.depth + y * x.height + s * x.width
                    share += dy * tl.load(at, mask=read, other=0).to(ACCUMULATOR)
                along = tl.sum(share, axis=0 if CHANNELS_LAST else 1)
                m = (a * height.taps + b) * width.taps + c
                if PER_LANE:
                    tl.store(to + tl.arange(0, LANES) * count + m, along)
                else:
                    tl.store(to + m, tl.sum(along, axis=0))
