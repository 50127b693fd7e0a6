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
    """An axis with its size: csrc/geometry.h's Axis. From `mode` on, constants of the kernel."""

    size: Any
    pooled: Any
    out: Any
    grid: Any  # of the codes: the larger of size and pooled
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


# ---- borders: csrc/geometry.h's fold and unfold ------------------------------------------------------


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
def nth_image(j, line):
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


@triton.jit
def blur_kernel(
    out, x, taps, depth, height, width, images, channels, height_blocks, IDENTITY: tl.constexpr,
    ACCUMULATOR: tl.constexpr, UNROLL: tl.constexpr, UNROLL_WINDOW: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """out = the blur of the prologue of x."""
    image, channel, d, block, w, _, present = tile(
        images, channels, depth.out, height_blocks, width.out, CHANNELS_LAST, LANES, WIDTH, INDEX
    )
    UNROLL_ROWS: tl.constexpr = UNROLL and IDENTITY  # all rows' windows at once would not fit the registers
    there = channel < channels
    lanes = image * x.image + channel * x.channel
    out_lanes = image * out.image + channel * out.channel
    for r in range(0, tl.minimum(ROWS, height.out - block * ROWS)):
        h = block * ROWS + r
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


# ---- codes -------------------------------------------------------------------------------------------


@triton.jit
def codes_kernel(
    codes, x, depth, height, width, channels, plane_bytes, count, BITS: tl.constexpr, ACCUMULATOR: tl.constexpr,
    UNROLL_WINDOW: tl.constexpr, CHANNELS_LAST: tl.constexpr, BYTES: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """The packed codes of x, byte by byte: every code that shares a byte is made by one program."""
    PER_BYTE: tl.constexpr = 1 if BITS == 16 else 8 // BITS
    byte = tl.program_id(0).to(INDEX) * BYTES + tl.arange(0, BYTES)[:, None]
    plane = byte // plane_bytes
    of_plane = byte % plane_bytes
    part = tl.arange(0, PER_BYTE)[None, :]
    rest = of_plane // 2 + part if BITS == 16 else of_plane * PER_BYTE + part
    if CHANNELS_LAST:
        image = plane
        channel = rest % channels
        rest = rest // channels
    else:
        image = plane // channels
        channel = plane % channels
    w = rest % width.grid
    rest = rest // width.grid
    h = rest % height.grid
    d = rest // height.grid
    present = (byte < count) & (w < width.pooled) & (h < height.pooled) & (d < depth.pooled)
    lanes = image * x.image + channel * x.channel
    code = pooled_code(x, lanes, d, h, w, present, depth, height, width, ACCUMULATOR, UNROLL_WINDOW)
    code = tl.where(present, code, 0)
    shifted = code >> (of_plane % 2 * 8).to(tl.int32) & 255 if BITS == 16 else code << part * BITS
    packed = tl.sum(shifted, axis=1)
    at = tl.program_id(0).to(INDEX) * BYTES + tl.arange(0, BYTES)
    tl.store(codes + at, packed.to(tl.uint8), mask=at < count)


@triton.jit
def read_code(
    codes, image, channel, channels, d, h, w, present, height, width, plane_bytes, BITS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The code of pooled position (d, h, w)."""
    position = (d * height.grid + h) * width.grid + w
    if CHANNELS_LAST:
        position = position * channels + channel
        plane = image
    else:
        plane = image * channels + channel
    if BITS == 16:
        at = codes + plane * plane_bytes + position * 2
        low = tl.load(at, mask=present, other=0).to(tl.int32)
        return low | tl.load(at + 1, mask=present, other=0).to(tl.int32) << 8
    else:
        PER_BYTE: tl.constexpr = 8 // BITS
        byte = tl.load(codes + plane * plane_bytes + position // PER_BYTE, mask=present, other=0).to(tl.int32)
        return byte >> (position % PER_BYTE * BITS).to(tl.int32) & ((1 << BITS) - 1)


# ---- the adjoint -------------------------------------------------------------------------------------


@triton.jit
def gathered_from_image(
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
        pd, copy_d = unfold(d, nth_image(i, depth), depth.pooled, depth.mode)
        qd = pd + depth.before
        if copy_d & (qd >= 0) & (pd < depth.pooled + depth.after):
            for j in range(0, 1 + height.up + height.down):
                ph, copy_h = unfold(h, nth_image(j, height), height.pooled, height.mode)
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
                            row = gathered_from_image(
                                grad, at, w, 0, channel, there, present & reads, taps, width, ACCUMULATOR, UNROLL
                            )
                            if edge:
                                for k in range(1, 1 + width.up + width.down):
                                    row += gathered_from_image(
                                        grad, at, w, nth_image(k, width), channel, there, present & reads, taps, width,
                                        ACCUMULATOR, UNROLL,
                                    )  # fmt: skip
                            total += outer * middle * row
    return total


@triton.jit
def adjoint_kernel(
    out, grad, codes, taps, depth, height, width, images, channels, height_blocks, plane_bytes, IDENTITY: tl.constexpr,
    BITS: tl.constexpr, ACCUMULATOR: tl.constexpr, UNROLL: tl.constexpr, UNROLL_WINDOW: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, INDEX: tl.constexpr,
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
    for r in range(0, tl.minimum(ROWS, height.size - block * ROWS)):
        h = block * ROWS + r
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
                            codes, image, channel, channels, z, y, s, held, height, width, plane_bytes, BITS,
                            CHANNELS_LAST,
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


# ---- the adjoint where borders fold near -------------------------------------------------------------


class Reach(NamedTuple):
    """Along an axis, what as many results side by side as the stride need, from a multiple i of it on: csrc's Spread.
    Constants of the kernel.
    """

    first: Any  # of the pooled positions that they get from, behind i * stride
    count: Any
    first_output: Any  # of the outputs that read those, behind i
    outputs: Any
    lead: Any  # positions that only a border's outputs reach back to: for even taps, at whose end reflection does
    reached: Any  # positions from there on that an output may be read by


@triton.jit
def nth_tap(taps, line, T: tl.constexpr, wanted):
    """A tap that all channels share; zero where it is not wanted."""
    if line.first_tap < 0:
        return tl.where(wanted, 1.0, 0.0)
    elif taps.binomials is not None:
        return tl.where(wanted, taps.binomials[line.first_tap + T], 0.0)
    else:
        return tl.where(wanted, tl.load(taps.data + line.first_tap + T), 0)


@triton.jit
def spread_weight(taps, line, o, i):
    """What pooled position i gets of output o: the sum of the taps that read it, through borders too."""
    weight = nth_tap(taps, line, 0, o != o)
    for t in tl.static_range(line.taps):
        padded = o * line.stride - line.before + t
        reads = within(o, line.out) & (fold(padded, line.pooled, line.mode, line.near) == i)
        weight += nth_tap(taps, line, t, reads)
    return weight


@triton.jit
def plus_weighed(total, weight, value, reach, T: tl.constexpr):
    """With the share of an output that reaches T positions further back, if it reaches so far."""
    if T < 0 or T >= reach.reached:
        return total
    elif T < reach.lead:  # a tap that nothing but a border has: no zero of it meets a NaN
        return total + tl.where(weight != 0, weight * value, 0)
    else:
        return total + weight * value


@triton.jit
def plus_chosen(total, shares, found, AT: tl.constexpr, code):
    return total + tl.where(found[AT] == code, shares[AT], 0)


@triton.jit
def read_codes_of_byte(
    codes, image, channel, channels, h, w, present, width, plane_bytes, BITS: tl.constexpr
):  # fmt: skip
    """The codes at pooled position (h, w) of channels that share bytes along their last dimension, each read once."""
    PER_BYTE: tl.constexpr = 8 // BITS
    group = tl.min(channel, axis=2, keep_dims=True)
    at = codes + image * plane_bytes + (h * width.grid + w) * (channels // PER_BYTE) + group // PER_BYTE
    byte = tl.load(at, mask=present & (group < channels), other=0).to(tl.int32)
    return byte >> ((channel - group) * BITS).to(tl.int32) & ((1 << BITS) - 1)


@triton.jit
def spread_rows(
    grad, lanes, first, j, present, weights, height, width, across, COUNT: tl.constexpr, ACCUMULATOR: tl.constexpr
):  # fmt: skip
    """What COUNT rows of outputs from the first on give to pooled columns, row by row."""
    rows = ()
    for p in tl.static_range(COUNT):
        oh = first + p
        values = ()
        for q in tl.static_range(across.outputs):
            o = j + (across.first_output + q)
            read = present & within(oh, height.out) & within(o, width.out)
            at = grad.data + lanes + oh * grad.height + o * grad.width
            values = values + (tl.load(at, mask=read, other=0).to(ACCUMULATOR),)
        for e in tl.static_range(across.count):
            row = tl.zeros(present.shape, ACCUMULATOR)
            for q in tl.static_range(across.outputs):
                row = plus_weighed(
                    row, weights[e * across.outputs + q], values[q], across,
                    across.first + e + width.before + across.lead - (across.first_output + q) * width.stride,
                )  # fmt: skip
            rows = rows + (row,)
    return rows


@triton.jit
def spread_kernel(
    out, grad, codes, taps, height, width, down, across, images, channels, height_blocks, plane_bytes,
    IDENTITY: tl.constexpr, BITS: tl.constexpr, ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """`adjoint_kernel` of maps without depth whose outputs are all read near where they lie: every output, code and
    pooled position is taken once for all the results of a tile that need it, and borders are but other weights.

    Each turn makes as many rows and columns of results as the strides, of every one of which the taps are constants.
    """
    image, channel, _, block, j, _, present = tile(
        images, channels, 1, height_blocks, tl.cdiv(width.size, width.stride), CHANNELS_LAST, LANES, WIDTH, INDEX,
        8 // BITS if CHANNELS_LAST and not IDENTITY else 1,
    )  # fmt: skip
    lanes = image * grad.image + channel * grad.channel
    out_lanes = image * out.image + channel * out.channel
    weights = ()
    for e in tl.static_range(across.count):
        for q in tl.static_range(across.outputs):
            s = j * width.stride + (across.first + e)
            weights = weights + (spread_weight(taps, width, j + (across.first_output + q), s),)
    # Planes keep none: what a turn hands on would change its layout through shared memory.
    KEPT: tl.constexpr = down.outputs - 1 if CHANNELS_LAST else 0
    rows = spread_rows(
        grad, lanes, block * ROWS + down.first_output, j, present, weights, height, width, across, KEPT, ACCUMULATOR
    )
    for r in range(0, tl.minimum(ROWS, tl.cdiv(height.size, height.stride) - block * ROWS)):
        i = block * ROWS + r
        rows = rows + spread_rows(
            grad, lanes, i + (down.first_output + KEPT), j, present, weights, height, width, across,
            down.outputs - KEPT, ACCUMULATOR,
        )  # fmt: skip
        shares = ()  # what pooled positions get, and the codes there
        found = ()
        for a in tl.static_range(down.count):
            y = i * height.stride + (down.first + a)
            for e in tl.static_range(across.count):
                total = tl.zeros(present.shape, ACCUMULATOR)
                for p in tl.static_range(down.outputs):
                    total = plus_weighed(
                        total, spread_weight(taps, height, i + (down.first_output + p), y),
                        rows[p * across.count + e], down,
                        down.first + a + height.before + down.lead - (down.first_output + p) * height.stride,
                    )  # fmt: skip
                if not IDENTITY:
                    s = j * width.stride + (across.first + e)
                    held = within(y, height.pooled) & within(s, width.pooled)
                    if CHANNELS_LAST:
                        code = read_codes_of_byte(codes, image, channel, channels, y, s, held, width, plane_bytes, BITS)
                    else:
                        code = read_code(
                            codes, image, channel, channels, 0, y, s, present & held, height, width, plane_bytes, BITS,
                            CHANNELS_LAST,
                        )  # fmt: skip
                    found = found + (code,)
                    total = tl.where(held, total, 0)
                shares = shares + (total,)
        for a in tl.static_range(height.stride):
            h = i * height.stride + a
            for c in tl.static_range(width.stride):
                w = j * width.stride + c
                result = tl.zeros(present.shape, ACCUMULATOR)
                if IDENTITY:
                    result = shares[a * across.count + c]
                else:
                    for b in tl.static_range(height.window):
                        for d in tl.static_range(width.window):
                            result = plus_chosen(
                                result, shares, found,
                                (a + height.window_padding - b * height.window_dilation - down.first) * across.count
                                + (c + width.window_padding - d * width.window_dilation - across.first),
                                b * width.window + d,
                            )  # fmt: skip
                at = out.data + out_lanes + h * out.height + w * out.width
                there = present & (h < height.size) & (w < width.size)
                tl.store(at, result.to(out.data.dtype.element_ty), mask=there)
        rows = rows[across.count * (down.outputs - KEPT) :]


# ---- the max and its codes where borders fold near ---------------------------------------------------


@triton.jit
def pooled_rows(
    x, lanes, h, w, present, height, width, COUNT: tl.constexpr, REACHED: tl.constexpr, ACCUMULATOR: tl.constexpr
):  # fmt: skip
    """Maxima of COUNT pooled rows from h on, at REACHED pooled columns from w on, row by row; and where in its window
    each lies, as `pooled_code` says."""
    values = ()  # the maxima of windows of one row
    codes = ()
    inside = ()  # whether a window has been inside of the map so far
    PADDED: tl.constexpr = height.window_padding > 0 or width.window_padding > 0
    for z in tl.static_range(COUNT + (height.window - 1) * height.window_dilation):
        y = h - height.window_padding + z
        read = present & within(y, height.size)
        row = ()
        for u in tl.static_range(REACHED + (width.window - 1) * width.window_dilation):
            s = w - width.window_padding + u
            at = x.data + lanes + y * x.height + s * x.width
            row = row + (tl.load(at, mask=read & within(s, width.size), other=float("-inf")).to(ACCUMULATOR),)
        for e in tl.static_range(REACHED):
            best = row[e]
            code = tl.zeros(present.shape, tl.int32)
            has = within(y, height.size) & within(w - width.window_padding + e, width.size)
            for b in tl.static_range(1, width.window):
                value = row[e + b * width.window_dilation]
                replaces = (value > best) | (value != value)
                if PADDED:
                    there = within(y, height.size) & within(
                        w - width.window_padding + (e + b * width.window_dilation), width.size
                    )
                    replaces = there & (replaces | (has == 0))
                    has = has | there
                best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
                code = tl.where(replaces, b, code)
            values = values + (best,)
            codes = codes + (code,)
            inside = inside + (has,)
    maxima = ()
    found = ()
    for r in tl.static_range(COUNT):
        for e in tl.static_range(REACHED):
            best = values[r * REACHED + e]
            code = codes[r * REACHED + e]
            has = inside[r * REACHED + e]
            for a in tl.static_range(1, height.window):
                value = values[(r + a * height.window_dilation) * REACHED + e]
                replaces = (value > best) | (value != value)
                if PADDED:
                    there = inside[(r + a * height.window_dilation) * REACHED + e]
                    replaces = there & (replaces | (has == 0))
                    has = has | there
                best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
                other = codes[(r + a * height.window_dilation) * REACHED + e]
                code = tl.where(replaces, other + a * width.window, code)
            held = within(h + r, height.pooled) & within(w + e, width.pooled)
            maxima = maxima + (tl.where(held, best, 0),)
            found = found + (tl.where(held, code, 0),)
    return maxima, found


@triton.jit
def blurred_rows(maxima, weights, reach, COUNT: tl.constexpr, present, ACCUMULATOR: tl.constexpr):
    """COUNT rows of maxima, blurred along the width."""
    rows = ()
    for r in tl.static_range(COUNT):
        row = tl.zeros(present.shape, ACCUMULATOR)
        for e in tl.static_range(reach.reached):
            row = plus_weighed(row, weights[e], maxima[r * reach.reached + e], reach, e)
        rows = rows + (row,)
    return rows


@triton.jit
def store_byte(
    codes, code, plane, position, along, present, PER_BYTE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """Codes of neighbours `along` whose group begins a byte: of a pooled position each, the group's together."""
    first = along
    there = present
    if GROUP > 1:
        first = tl.min(along, axis=2, keep_dims=True)
        code = tl.sum(code << ((along - first) * BITS).to(tl.int32), axis=2, keep_dims=True)
        there = tl.max(present.to(tl.int32), axis=2, keep_dims=True) != 0
    tl.store(codes + plane + (position + first) // PER_BYTE, code.to(tl.uint8), mask=there)


@triton.jit
def store_codes(
    codes, found, image, channel, channels, h, j, present, height, width, across, plane_bytes, COUNT: tl.constexpr,
    BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Of COUNT pooled rows from h on, at every column that is this tile's own: as many as the stride an output."""
    PER_BYTE: tl.constexpr = 8 // BITS
    OWN: tl.constexpr = width.before + across.lead
    last = (height.pooled - 1) * width.grid + width.pooled - 1  # between the codes of two rows lie zeros
    for r in tl.static_range(COUNT):
        there = present & within(h + r, height.pooled)
        row = (h + r) * width.grid
        if CHANNELS_LAST:
            for c in tl.static_range(width.stride):
                s = j * width.stride + c
                own = there & (s < width.grid) & (row + s <= last)
                store_byte(
                    codes, found[r * across.reached + c + OWN], image * plane_bytes, (row + s) * channels, channel, own,
                    PER_BYTE, BITS, GROUP,
                )  # fmt: skip
        else:
            code = found[r * across.reached + OWN]
            for c in tl.static_range(1, width.stride):
                code = code | found[r * across.reached + c + OWN] << c * BITS
            s = j * width.stride
            own = there & (s < width.grid) & (row + s <= last)
            plane = (image * channels + channel) * plane_bytes
            store_byte(codes, code, plane, row, s, own, PER_BYTE, BITS, GROUP)


@triton.jit
def max_kernel(
    out, codes, x, taps, height, width, down, across, images, channels, height_blocks, plane_bytes,
    BITS: tl.constexpr, GROUP: tl.constexpr, ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """out = the blur of the maxima of x, and the codes of these if codes are not None, in groups of those that make a
    byte. Of maps without depth whose pooled positions are all near an output that reads them.

    A turn makes a row of outputs from as many new pooled rows as the stride, and those that the row before had too.
    """
    image, channel, _, block, j, _, present = tile(
        images, channels, 1, height_blocks, width.out, CHANNELS_LAST, LANES, WIDTH, INDEX, GROUP
    )
    KEPT: tl.constexpr = down.reached - height.stride
    lanes = image * x.image + channel * x.channel
    out_lanes = image * out.image + channel * out.channel + j * out.width
    w = j * width.stride - width.before - across.lead
    weights = ()
    for e in tl.static_range(across.reached):
        weights = weights + (spread_weight(taps, width, j, w + e),)
    h = block * (ROWS * height.stride) - height.before - down.lead
    maxima, found = pooled_rows(x, lanes, h, w, present, height, width, KEPT, across.reached, ACCUMULATOR)
    if codes is not None:
        if block == 0:
            store_codes(
                codes, found, image, channel, channels, h, j, present, height, width, across, plane_bytes, KEPT, BITS,
                CHANNELS_LAST, GROUP,
            )  # fmt: skip
    rows = blurred_rows(maxima, weights, across, KEPT, present, ACCUMULATOR)
    for r in range(0, tl.minimum(ROWS, height.out - block * ROWS)):
        i = block * ROWS + r
        first = i * height.stride - height.before - down.lead
        maxima_here, found_here = pooled_rows(
            x, lanes, first + KEPT, w, present, height, width, height.stride, across.reached, ACCUMULATOR
        )
        if codes is not None:
            store_codes(
                codes, found_here, image, channel, channels, first + KEPT, j, present, height, width, across,
                plane_bytes, height.stride, BITS, CHANNELS_LAST, GROUP,
            )  # fmt: skip
        rows = rows + blurred_rows(maxima_here, weights, across, height.stride, present, ACCUMULATOR)
        total = tl.zeros(present.shape, ACCUMULATOR)
        for p in tl.static_range(down.reached):
            total = plus_weighed(total, spread_weight(taps, height, i, first + p), rows[p], down, p)
        tl.store(out.data + out_lanes + i * out.height, total.to(out.data.dtype.element_ty), mask=present)
        rows = rows[height.stride :]


# ---- the gradient of the taps ------------------------------------------------------------------------


@triton.jit
def moments_kernel(
    moments, grad, x, depth, height, width, images, channels, height_blocks, PER_LANE: tl.constexpr,
    ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, INDEX: tl.constexpr,
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
                for r in range(0, tl.minimum(ROWS, height.out - block * ROWS)):
                    h = block * ROWS + r
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
