"""Every op, forward and backward, on narrow maps whose memory ends where a page begins that nobody may touch, or begins
where such a page ends: a read beyond a map ends the process, and the last line of stderr says which call it was.

    AABLUR_CPU_ISA=avx2 python tests/guarded.py
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from case import LAYOUTS, MODES
from torch import Tensor

import aablur
from aablur.geometry import Geometry

OPS = torch.ops.aablur
FOUND = (  # channels_last maps that were read beyond once: shape, taps, stride, padding, dtype
    ((1, 2048, 3, 3), 5, 1, "same", torch.float32),
    ((1, 2048, 3, 3), 5, 2, "same", torch.float32),
    ((1, 2048, 9, 1), 3, 1, "same", torch.float32),
    ((1, 2048, 2, 2), 4, 1, "same", torch.bfloat16),
    ((1, 64, 8, 8), 3, 1, ((1, 1), (-100000, 100010)), torch.float32),
)


class Guarded:
    """Memory between two pages that nobody may touch. What it gives lies at its very end, or at its beginning."""

    def __init__(self, room: int) -> None:
        page = mmap.PAGESIZE
        self.size = -(-room // page) * page
        self.pages = mmap.mmap(-1, self.size + 2 * page)
        self.first = ctypes.addressof(ctypes.c_char.from_buffer(self.pages)) + page
        no_access, protect = 0, ctypes.CDLL(None, use_errno=True).mprotect
        for address in (self.first - page, self.first + self.size):
            if protect(ctypes.c_void_p(address), ctypes.c_size_t(page), no_access):
                raise OSError(ctypes.get_errno(), "mprotect")

    def take(self, count: int, dtype: torch.dtype, at_end: bool) -> Tensor:
        room = count * dtype.itemsize
        assert 0 < room <= self.size, (room, self.size)
        address = self.first + (self.size - room if at_end else 0)
        return torch.frombuffer((ctypes.c_char * room).from_address(address), dtype=dtype)

    def copy(self, x: Tensor, at_end: bool) -> Tensor:
        return self.take(x.numel(), x.dtype, at_end).view(x.shape).copy_(x)

    def random(self, shape: Sequence[int], layout: str, dtype: torch.dtype, at_end: bool) -> Tensor:
        strides = strides_of(shape, layout)
        count = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        return self.take(count, dtype, at_end).copy_(torch.randn(count)).as_strided(shape, strides)


def strides_of(shape: Sequence[int], layout: str) -> list[int]:
    """Of a map (images, channels, height, width)."""
    _, channels, height, width = shape
    if layout in ("channels_last", "channels_sliced"):
        pixel = channels + 3 * (layout == "channels_sliced")
        return [height * width * pixel, 1, width * pixel, pixel]
    if layout == "transposed":
        return [channels * height * width, height * width, 1, height]
    step = 2 if layout == "stepped" else 1
    row = width * step + 5 * (layout in ("sliced", "stepped"))
    return [channels * height * row, 0 if layout == "expanded" else height * row, row, step]


def narrow() -> Iterator[tuple[Any, ...]]:
    """(size, taps, stride, layout, dtype, at_end), and what takes turns: mode, pads, window, channels, kind of taps."""
    turns = [
        itertools.cycle(values)
        for values in (
            MODES,
            ("same", "same", ((2, 0), (0, 3)), ((-1, 3), (4, -1)), 7),
            (2, (3, 1), ((1, 2), 0), None, (2, 1, 2), (3, 1)),
            (32, 40, 3, 65, 33, 64, 48),
            ("none", "shared", "shared", "each", "none"),
        )
    ]
    sizes = itertools.product((1, 2, 3, 4), repeat=2)
    dtypes = (torch.float32, torch.bfloat16)
    for product in itertools.product(sizes, range(2, 8), (1, 2, 3), LAYOUTS, dtypes, (True, False)):
        yield *product, *map(next, turns)


def allowed(name: str, shape: Sequence[int], *arguments: Any) -> tuple[list[int], Any] | None:
    """The arguments of an op about its axes; None where its output would be empty."""
    geometry = Geometry(name, *arguments)
    try:
        geometry.check(shape, 4)
    except ValueError:
        return None
    return geometry.op_args


def run_narrow() -> int:
    memory = {name: Guarded(1 << 20) for name in ("x", "grad", "taps", "codes")}
    done = 0
    for size, k, stride, layout, dtype, at_end, mode, padding, window, channels, kind in narrow():
        shape, last = (2 if dtype == torch.float32 else 1, channels, *size), layout == "channels_last"
        blur = allowed("blur", shape, [k] * 2, stride, padding, mode)
        if blur is None:
            continue
        line = f"{shape} {layout} k{k} s{stride} p{padding} {mode} {dtype} w{window} taps {kind} at_end={at_end}"
        print(line, file=sys.stderr, flush=True)
        done += 1
        x = memory["x"].random(shape, layout, dtype, at_end)
        taps = None if kind == "none" else torch.rand(channels if kind == "each" else 1, 2 * k)
        taps = taps if taps is None else memory["taps"].copy(taps, at_end)
        grad = memory["grad"].random(OPS.blur_pool(x, taps, *blur).shape, layout, dtype, at_end)
        OPS.blur_pool_backward(grad, taps, size, *blur, last)
        if taps is not None:
            OPS.blur_pool_backward_taps(grad, x, taps, *blur)
        prologue = window if isinstance(window, tuple) else (window,)
        max_blur = window and allowed("max_blur", shape, [k] * 2, stride, padding, mode, *prologue)
        if max_blur is None:
            continue
        OPS.max_blur_pool(x, taps, *max_blur)
        y, codes = OPS.max_blur_pool_codes(x, taps, *max_blur)
        grad = memory["grad"].random(y.shape, layout, dtype, at_end)
        OPS.max_blur_pool_backward(grad, x, None, taps, size, *max_blur, last)
        codes = memory["codes"].copy(codes, at_end)
        OPS.max_blur_pool_backward(grad, None, codes, taps, size, *max_blur, last and not x.is_contiguous())
    return done


def run_found() -> None:
    for shape, k, stride, padding, dtype in FOUND:
        memory = Guarded(math.prod(shape) * dtype.itemsize)
        for mode, at_end in itertools.product(MODES, (True, False)):
            print(f"{shape} k{k} s{stride} p{padding} {mode} {dtype} at_end={at_end}", file=sys.stderr, flush=True)
            x = memory.random(shape, "channels_last", dtype, at_end).requires_grad_()
            y = aablur.blur_pool2d(x, k, stride=stride, padding=padding, padding_mode=mode)
            y.backward(torch.ones_like(y))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_found()
    print(run_narrow())
