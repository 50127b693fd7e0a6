"""Launches every Triton kernel through Triton's own launcher, on the interpreter's driver: for test_launches.py.

What the driver is given must be what the compiled kernel takes: as many parameters, pointers where it has pointers, and
the numbers that were passed. And a launch must be on the device of the map, whichever is current: compiled for it, and
on its stream.
"""

from __future__ import annotations

import ctypes
import faulthandler
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from case import arrange
from elsewhere import on_card
from triton.backends.compiler import GPUTarget

from aablur import ops, triton_banded, triton_kernels, triton_ops
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
        self.kernel, self.driver, self.launches, self.compiled = kernel, driver, 0, set[int]()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self.launch(grid, args, options)

    def launch(self, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        compiled = self.kernel[grid](*args, **options)
        self.compiled.add(compiled.metadata.target.arch)
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


def check_devices(spies: dict[str, Spy]) -> None:
    """Of two more cards, an A100 and an H100: each is launched on while the other one is current."""
    architectures, current, streams = {1: 80, 2: 90}, [0], []

    def exchange(card: int) -> int:
        before = current[0]
        if card >= 0:
            current[0] = card
        return before if card >= 0 else -1

    torch.cuda._exchange_device = torch.cuda._maybe_exchange_device = exchange
    active: Any = triton.runtime.driver.active
    active.get_current_device = lambda: current[0]
    active.get_current_stream = lambda card: streams.append(card) or 0
    active.get_current_target = lambda: GPUTarget("cuda", architectures[current[0]], 32)
    geometry = Geometry("launch", [3, 3], 2, "same", "reflect", 2)
    for card, other in ((1, 2), (2, 1)):
        current[0] = other
        for spy in spies.values():
            spy.compiled.clear()
        x = on_card(torch.rand(1, 2, 8, 9), card)
        y, codes = ops._TRITON["max_blur_pool_codes"](x, None, *geometry.op_args)
        y, codes = on_card(y, card), on_card(codes, card)
        ops._TRITON["max_blur_pool_backward"](y, None, codes, None, [8, 9], *geometry.op_args, False)
        assert set(streams) == {card} and current[0] == other, (streams, current)
        compiled = set().union(*(spy.compiled for spy in spies.values()))
        assert compiled == {architectures[card]}, compiled
        streams.clear()


def main() -> None:
    faulthandler.enable()
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libcuda.so" in line}
    assert not loaded, f"{loaded} is loaded: its driver would be given pointers to the host's memory"
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
    counts = {name: spy.launches for name, spy in spies.items()}
    check_devices(spies)
    print(counts)


if __name__ == "__main__":
    main()
