"""The Triton kernels of what networks use: maps without depth whose borders fold near, so that where an output lies
says all that it reads. What lies between is made once for all the elements of a tile that need it, and a border is but
other taps. `triton_kernels.py` has the general ones; `triton_ops.py` chooses.

A tile is of the smaller map. A turn of a kernel's loop makes a row of outputs, or as many rows of results as the
stride; all that it counts along an axis is a constant, and loops over it are written out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .triton_kernels import code_row, fold, read_code, tile, within


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
    weight = 0.0
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


# ---- the adjoint -------------------------------------------------------------------------------------


@triton.jit
def read_codes_of_byte(
    codes, image, channel, channels, h, w, present, height, width, row_bytes, BITS: tl.constexpr
):  # fmt: skip
    """The codes at pooled position (h, w) of channels that share bytes along their last dimension, each read once."""
    PER_BYTE: tl.constexpr = 8 // BITS
    group = tl.min(channel, axis=2, keep_dims=True)
    at = codes + code_row(image, 0, channels, 0, h, w, 1, height, width, True) * row_bytes + group // PER_BYTE
    byte = tl.load(at, mask=present & (group < channels), other=0).to(tl.int32)
    return byte >> ((channel - group) * BITS).to(tl.int32) & ((1 << BITS) - 1)


@triton.jit
def read_codes_of_stride(
    codes, image, channel, channels, h, w, present, height, width, row_bytes, OFFSET: tl.constexpr, BITS: tl.constexpr
):  # fmt: skip
    """Of planes, the codes of as many columns as the stride, which share a byte: lowest that of column w - OFFSET, a
    multiple of the stride."""
    begin = w - OFFSET
    row = code_row(image, channel, channels, 0, h, begin, 1, height, width, False) * row_bytes
    held = present & within(h, height.pooled) & within(begin, width.pooled)
    byte = tl.load(codes + row + begin // (8 // BITS), mask=held, other=0).to(tl.int32)
    return byte >> (begin % (8 // BITS) * BITS).to(tl.int32)


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
def plus_row(total, taps, line, o, i, rows, AT: tl.constexpr, reach, T: tl.constexpr):
    """With what pooled position i gets of output o, whose values are rows[AT]; it reaches T positions further back."""
    if T < 0 or T >= reach.reached:
        return total
    else:
        return plus_weighed(total, spread_weight(taps, line, o, i), rows[AT], reach, T)


@triton.jit
def pooled_shares(
    rows, codes, taps, image, channel, channels, i, j, present, height, width, down, across, row_bytes,
    BEGIN: tl.constexpr, END: tl.constexpr, IDENTITY: tl.constexpr, BITS: tl.constexpr, ACCUMULATOR: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """What pooled rows BEGIN to END of turn i get of the rows of outputs, and the codes there, row by row."""
    PER_BYTE: tl.constexpr = 1 if BITS == 16 else 8 // BITS
    shares = ()
    found = ()
    for a in tl.static_range(BEGIN, END):
        y = i * height.stride + (down.first + a)
        for e in tl.static_range(across.count):
            total = tl.zeros(present.shape, ACCUMULATOR)
            for p in tl.static_range(down.outputs):
                total = plus_row(
                    total, taps, height, i + (down.first_output + p), y, rows, p * across.count + e, down,
                    down.first + a + height.before + down.lead - (down.first_output + p) * height.stride,
                )  # fmt: skip
            if not IDENTITY:
                s = j * width.stride + (across.first + e)
                held = within(y, height.pooled) & within(s, width.pooled)
                if CHANNELS_LAST:
                    code = read_codes_of_byte(
                        codes, image, channel, channels, y, s, held, height, width, row_bytes, BITS
                    )
                elif BITS < 16 and PER_BYTE // width.stride * width.stride == PER_BYTE:
                    if e == 0 or (across.first + e) % width.stride == 0:
                        bits = read_codes_of_stride(
                            codes, image, channel, channels, y, s, present, height, width, row_bytes,
                            (across.first + e) % width.stride, BITS,
                        )  # fmt: skip
                    code = bits >> (across.first + e) % width.stride * BITS & ((1 << BITS) - 1)
                else:
                    code = read_code(
                        codes, image, channel, channels, 0, y, s, present & held, 1, height, width, row_bytes, BITS,
                        CHANNELS_LAST,
                    )  # fmt: skip
                found = found + (code,)
                total = tl.where(held, total, 0)
            shares = shares + (total,)
    return shares, found


@triton.jit(do_not_specialize=["segment"])
def spread_kernel(
    out, grad, codes, taps, height, width, down, across, images, channels, height_blocks, segment, row_bytes,
    IDENTITY: tl.constexpr, BITS: tl.constexpr, ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """out = the adjoint of the prologue after the transposed blur of grad; codes say where the maxima were.

    A turn takes as many new pooled rows as the stride, from one new row of outputs; the others it has from the last.
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
    KEPT: tl.constexpr = down.outputs - 1
    KEPT_POOLED: tl.constexpr = down.count - height.stride
    rows = spread_rows(
        grad, lanes, block * segment + down.first_output, j, present, weights, height, width, across, KEPT, ACCUMULATOR
    )
    shares, found = pooled_shares(
        rows, codes, taps, image, channel, channels, block * segment, j, present, height, width, down, across,
        row_bytes, 0, KEPT_POOLED, IDENTITY, BITS, ACCUMULATOR, CHANNELS_LAST,
    )  # fmt: skip
    for r in range(0, tl.minimum(segment, tl.cdiv(height.size, height.stride) - block * segment)):
        i = block * segment + r
        rows = rows + spread_rows(
            grad, lanes, i + (down.first_output + KEPT), j, present, weights, height, width, across,
            down.outputs - KEPT, ACCUMULATOR,
        )  # fmt: skip
        new_shares, new_found = pooled_shares(
            rows, codes, taps, image, channel, channels, i, j, present, height, width, down, across, row_bytes,
            KEPT_POOLED, down.count, IDENTITY, BITS, ACCUMULATOR, CHANNELS_LAST,
        )  # fmt: skip
        shares = shares + new_shares
        found = found + new_found
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
        shares = shares[across.count * (down.count - KEPT_POOLED) :]
        found = found[across.count * (down.count - KEPT_POOLED) * (not IDENTITY) :]


# ---- the max and its codes ---------------------------------------------------------------------------


@triton.jit
def is_inside(y, s, height, width):
    """Whether some position of a window's row that begins at (y, s) of x is inside of it."""
    inside = within(s, width.size)
    for b in tl.static_range(1, width.window):
        inside = inside | within(s + b * width.window_dilation, width.size)
    return within(y, height.size) & inside


@triton.jit
def max_rows(
    x, lanes, y, s, present, height, width, COUNT: tl.constexpr, REACHED: tl.constexpr, ACCUMULATOR: tl.constexpr
):  # fmt: skip
    """Of COUNT rows of x from y on the maxima of windows along the width, at REACHED columns from s on, and where in
    its row each lies: row by row, all maxima before all places.
    """
    rows = ()
    PADDED: tl.constexpr = width.window_padding > 0
    for z in tl.static_range(COUNT):
        read = present & within(y + z, height.size)
        row = ()
        for u in tl.static_range(REACHED + (width.window - 1) * width.window_dilation):
            at = x.data + lanes + (y + z) * x.height + (s + u) * x.width
            row = row + (tl.load(at, mask=read & within(s + u, width.size), other=float("-inf")).to(ACCUMULATOR),)
        codes = ()
        for e in tl.static_range(REACHED):
            best = row[e]
            code = tl.zeros(present.shape, tl.int32)
            has = within(s + e, width.size)
            for b in tl.static_range(1, width.window):
                value = row[e + b * width.window_dilation]
                replaces = (value > best) | (value != value)
                if PADDED:
                    there = within(s + (e + b * width.window_dilation), width.size)
                    replaces = there & (replaces | (has == 0))
                    has = has | there
                best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
                code = tl.where(replaces, b, code)
            rows = rows + (best,)
            codes = codes + (code,)
        rows = rows + codes
    return rows


@triton.jit
def pooled_rows(rows, h, w, height, width, COUNT: tl.constexpr, REACHED: tl.constexpr):
    """Of `max_rows` the maxima of COUNT pooled rows from h on, at REACHED pooled columns from w on, row by row; and
    where in its window each lies, as `pooled_code` says. No maximum is zero.
    """
    PADDED: tl.constexpr = height.window_padding > 0 or width.window_padding > 0
    maxima = ()
    found = ()
    for r in tl.static_range(COUNT):
        y = h + r - height.window_padding
        for e in tl.static_range(REACHED):
            s = w + e - width.window_padding
            best = rows[r * 2 * REACHED + e]
            code = rows[(r * 2 + 1) * REACHED + e]
            has = is_inside(y, s, height, width) if PADDED else True
            for a in tl.static_range(1, height.window):
                value = rows[(r + a * height.window_dilation) * 2 * REACHED + e]
                replaces = (value > best) | (value != value)
                if PADDED:
                    there = is_inside(y + a * height.window_dilation, s, height, width)
                    replaces = there & (replaces | (has == 0))
                    has = has | there
                best = tl.maximum(best, value, propagate_nan=tl.PropagateNan.ALL)
                other = rows[((r + a * height.window_dilation) * 2 + 1) * REACHED + e]
                code = tl.where(replaces, other + a * width.window, code)
            held = within(h + r, height.pooled) & within(w + e, width.pooled)
            maxima = maxima + (tl.where(held, best, 0),)
            found = found + (code,)
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
    codes, code, row, along, present, PER_BYTE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """Codes of neighbours `along` a row, whose group begins a byte: of a pooled position each, the group's together."""
    first = along
    there = present
    if GROUP > 1:
        first = tl.min(along, axis=2, keep_dims=True)
        code = tl.sum(code << ((along - first) * BITS).to(tl.int32), axis=2, keep_dims=True)
        there = tl.max(present.to(tl.int32), axis=2, keep_dims=True) != 0
    tl.store(codes + row + first // PER_BYTE, code.to(tl.uint8), mask=there)


@triton.jit
def store_codes(
    codes, found, image, channel, channels, h, j, present, height, width, across, row_bytes, COUNT: tl.constexpr,
    BITS: tl.constexpr, CHANNELS_LAST: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Of COUNT pooled rows from h on, at every column that is this tile's own: as many as the stride an output."""
    PER_BYTE: tl.constexpr = 8 // BITS
    OWN: tl.constexpr = width.before + across.lead
    for r in tl.static_range(COUNT):
        there = present & within(h + r, height.pooled)
        s = j * width.stride
        if CHANNELS_LAST:
            for c in tl.static_range(width.stride):
                row = code_row(image, channel, channels, 0, h + r, s + c, 1, height, width, CHANNELS_LAST) * row_bytes
                store_byte(
                    codes, found[r * across.reached + c + OWN], row, channel, there & (s + c < width.pooled), PER_BYTE,
                    BITS, GROUP,
                )  # fmt: skip
        else:
            code = tl.zeros(present.shape, tl.int32)
            for c in tl.static_range(width.stride):
                code = code | tl.where(s + c < width.pooled, found[r * across.reached + c + OWN] << c * BITS, 0)
            row = code_row(image, channel, channels, 0, h + r, s, 1, height, width, CHANNELS_LAST) * row_bytes
            store_byte(codes, code, row, s, there & (s < width.pooled), PER_BYTE, BITS, GROUP)


@triton.jit(do_not_specialize=["segment"])
def max_kernel(
    out, codes, x, taps, height, width, down, across, images, channels, height_blocks, segment, row_bytes,
    BITS: tl.constexpr, GROUP: tl.constexpr, ACCUMULATOR: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """out = the blur of the maxima of x, and the codes of these if codes are not None, in groups of those that make a
    byte. Every pooled position is near an output that reads it.

    A turn makes as many new pooled rows as the stride, of as many new rows of x; the others it has from the last turn.
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
    h = block * (segment * height.stride) - height.before - down.lead
    WINDOW: tl.constexpr = (height.window - 1) * height.window_dilation  # rows of x that pooled rows share
    s = w - width.window_padding
    x_rows = max_rows(
        x, lanes, h - height.window_padding, s, present, height, width, KEPT + WINDOW, across.reached, ACCUMULATOR
    )
    maxima, found = pooled_rows(x_rows, h, w, height, width, KEPT, across.reached)
    x_rows = x_rows[KEPT * 2 * across.reached :]
    if codes is not None:
        if block == 0:
            store_codes(
                codes, found, image, channel, channels, h, j, present, height, width, across, row_bytes, KEPT, BITS,
                CHANNELS_LAST, GROUP,
            )  # fmt: skip
    rows = blurred_rows(maxima, weights, across, KEPT, present, ACCUMULATOR)
    for r in range(0, tl.minimum(segment, height.out - block * segment)):
        i = block * segment + r
        first = i * height.stride - height.before - down.lead
        x_rows = x_rows + max_rows(
            x, lanes, first + KEPT - height.window_padding + WINDOW, s, present, height, width, height.stride,
            across.reached, ACCUMULATOR,
        )  # fmt: skip
        maxima_here, found_here = pooled_rows(x_rows, first + KEPT, w, height, width, height.stride, across.reached)
        x_rows = x_rows[height.stride * 2 * across.reached :]
        if codes is not None:
            store_codes(
                codes, found_here, image, channel, channels, first + KEPT, j, present, height, width, across,
                row_bytes, height.stride, BITS, CHANNELS_LAST, GROUP,
            )  # fmt: skip
        rows = rows + blurred_rows(maxima_here, weights, across, height.stride, present, ACCUMULATOR)
        total = tl.zeros(present.shape, ACCUMULATOR)
        for p in tl.static_range(down.reached):
            total = plus_weighed(total, spread_weight(taps, height, i, first + p), rows[p], down, p)
        tl.store(out.data + out_lanes + i * out.height, total.to(out.data.dtype.element_ty), mask=present)
        rows = rows[height.stride :]
