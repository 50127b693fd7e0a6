"""Launches every Triton kernel through Triton's own launcher, on the interpreter's driver: for test_launches.py.

What the driver is given must be what the compiled kernel takes: as many parameters, pointers where it has pointers, and
the numbers that were passed.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from typing import Any

import torch
from case import arrange

from aablur import triton_banded, triton_kernels, triton_ops
from aablur.geometry import IDENTITY, Geometry
from benchmarks.codegen import interpreter


def flat(values: Any, types: Any) -> Iterator[tuple[Any, str]]:
    """The leaves of nested arguments that a kernel is given at run time, with their types."""
    for value, kind in zip(values, types, strict=True):
        if isinstance(kind, tuple):
            yield from flat(value, kind)
        elif kind != "constexpr":
            yield value, kind


class Spy:
    """A kernel that is launched and then told what the driver was given."""

    def __init__(self, kernel: Any, driver: ctypes.CDLL) -> None:
        self.kernel, self.driver, self.launches = kernel, driver, 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self.launch(grid, args, options)

    def launch(self, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        compiled = self.kernel[grid](*args, **options)
        entry = compiled.asm["ptx"].split(".entry")[1].split("\n)")[0]
        kinds = re.findall(r"\.param \.(u64 \.ptr|\w+)", entry)
        values, launched, block = (ctypes.c_uint64 * 128)(), (ctypes.c_uint * 3)(), (ctypes.c_uint * 3)()
        assert self.driver.sass_last_launch(values, 128, launched, block) == len(kinds)
        assert tuple(launched) == (*grid, 1, 1)[:3] and tuple(block) == (32 * compiled.metadata.num_warps, 1, 1)
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | options
        signature = compiled.src.signature
        expected = list(flat([given[name] for name in signature], signature.values()))
        assert len(kinds) == len(expected) + 2, (kinds, expected)  # two pointers to room of Triton's own
        for (value, kind), taken, passed in zip(expected, kinds, values, strict=False):
            assert kind.startswith("*") == taken.startswith("u64 .ptr"), (kind, taken)
            if kind.startswith("*"):
                assert passed == value.data_ptr()
            else:
                bits = int(kind[1:])
                assert taken in (f"u{bits}", f"s{bits}", f"b{bits}") and passed % 2**bits == value % 2**bits
        self.launches += 1


def main() -> None:
    driver = interpreter.launch_triton().library
    spies = {}
    for module in (triton_kernels, triton_banded):
        for name in [n for n in vars(module) if n.endswith("_kernel")]:
            spies[name] = Spy(getattr(module, name), driver)
            setattr(module, name, spies[name])
    for shape, layout, mode, taps, window in (
        ((2, 8, 14, 15), "contiguous", "reflect", None, IDENTITY),
        ((2, 8, 14, 15), "contiguous", "reflect", None, 2),
        ((2, 8, 14, 16), "channels_last", "zeros", 1, 3),
        ((2, 8, 33), "contiguous", "replicate", 8, IDENTITY),
        ((1, 4, 5, 6, 7), "channels_last", "circular", None, 2),
    ):
        rank = len(shape) - 2
        geometry = Geometry("launch", [3] * rank, 2, "same", mode, window)
        filters = None if taps is None else torch.rand(taps, 3 * rank)
        x = arrange(torch.rand(shape).bfloat16(), layout, rank)
        last = layout == "channels_last"
        size = list(shape[2:])
        if window is IDENTITY:
            y = triton_ops.blur_pool(x, filters, geometry)
            triton_ops.blur_pool_backward(y, filters, size, geometry, last)
        else:
            y, codes = triton_ops.max_blur_pool_codes(x, filters, geometry)
            triton_ops.max_blur_pool(x, filters, geometry)
            triton_ops.max_blur_pool_backward(y, None, codes, filters, size, geometry, last)
            triton_ops.max_blur_pool_backward(y, x, None, filters, size, geometry, last)
        if filters is not None and window is IDENTITY:
            triton_ops.blur_pool_backward_taps(y, x, filters, geometry)
    print({name: spy.launches for name, spy in spies.items()})


if __name__ == "__main__":
    main()
