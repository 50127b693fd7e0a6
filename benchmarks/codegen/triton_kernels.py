"""What Triton makes of its kernels for sm_90, with no GPU: registers, spills, loads, instructions an element.

The ops are called as users call them, on tensors of the CPU; in place of every launch the kernel is compiled for a
device that is not there.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from aablur.geometry import Geometry

from .sass import Listing, is_alu, loops, parse

ARCHITECTURE = 90


@dataclass(frozen=True)
class Budget:
    """The most that a kernel may take, and the 16-byte accesses that it must have."""

    op: str
    dtype: torch.dtype
    layout: str
    instructions: float  # of its loop over rows, an element of the larger map
    registers: int
    wide_loads: int = 0
    wide_stores: int = 0

    @property
    def what(self) -> str:
        return f"{self.op}, {str(self.dtype).removeprefix('torch.')}, {self.layout}"


# The path of an install without nvcc. On an H200 memory leaves time for 19 instructions an element in bfloat16 and 39
# in float32, with codes for 21 and 42: the blur is within them both ways, and so is the max where pixels are read 16
# bytes at a time. The max's codes are a choice more for each comparison, and following them a comparison, a choice and
# a sum for each of four positions. Elements of planes are read one by one, each with an address of its own.
BUDGETS = (
    Budget("blur_pool", torch.bfloat16, "channels_last", 11, 64, 9, 1),
    Budget("blur_pool", torch.float32, "channels_last", 11, 96, 18, 2),
    Budget("blur_pool", torch.bfloat16, "NCHW", 19, 80),
    Budget("blur_pool", torch.float32, "NCHW", 19, 80),
    Budget("blur_pool_backward", torch.bfloat16, "channels_last", 9, 72, 4, 4),
    Budget("blur_pool_backward", torch.float32, "channels_last", 9, 112, 8, 8),
    Budget("blur_pool_backward", torch.bfloat16, "NCHW", 19, 64),
    Budget("blur_pool_backward", torch.float32, "NCHW", 17, 64),
    Budget("max_blur_pool", torch.bfloat16, "channels_last", 16, 128, 16, 1),
    Budget("max_blur_pool", torch.float32, "channels_last", 17, 176, 32, 2),
    Budget("max_blur_pool", torch.bfloat16, "NCHW", 26, 112),
    Budget("max_blur_pool", torch.float32, "NCHW", 23, 128),
    Budget("max_blur_pool_codes", torch.bfloat16, "channels_last", 36, 112),
    Budget("max_blur_pool_codes", torch.float32, "channels_last", 31, 128, 16, 1),
    Budget("max_blur_pool_codes", torch.bfloat16, "NCHW", 46, 144),
    Budget("max_blur_pool_codes", torch.float32, "NCHW", 40, 144),
    Budget("max_blur_pool_backward", torch.bfloat16, "channels_last", 46, 144),
    Budget("max_blur_pool_backward", torch.float32, "channels_last", 44, 160, 9, 4),
    Budget("max_blur_pool_backward", torch.bfloat16, "NCHW", 68, 144),
    Budget("max_blur_pool_backward", torch.float32, "NCHW", 64, 144),
)


@dataclass(frozen=True)
class Code:
    instructions: float
    alu: float
    registers: int
    local: int  # loads and stores of local memory: spills and stacks
    atomics: int
    wide_loads: int
    wide_stores: int


class _Nowhere:
    """A driver of a device that is not there."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cpu


@contextmanager
def compiling(architecture: int) -> Iterator[list[Any]]:
    """Inside, launches compile instead, and the compiled kernels gather in the list."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compiled: list[Any] = []
    run = JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))

    before = driver._active
    driver.set_active(_Nowhere(architecture))  # pyright: ignore[reportArgumentType]
    try:
        with mock.patch.object(JITFunction, "run", record):
            yield compiled
    finally:
        driver._active = before


def compile_op(
    op: str, dtype: torch.dtype, layout: str, channels: int = 64, side: int = 56, architecture: int = ARCHITECTURE
) -> list[Any]:
    """The kernels of one call: 3 taps, stride 2, reflect, windows of 2."""
    from aablur import triton_ops

    window = (2, 0, 1) if op.startswith("max") else ()
    geometry = Geometry(op, (3, 3), 2, "same", "reflect", *window)
    last = layout == "channels_last"

    def zeros(*shape: int) -> torch.Tensor:
        made = torch.zeros(shape, dtype=dtype)
        return made.contiguous(memory_format=torch.channels_last) if last else made

    x, grad = zeros(8, channels, side, side), zeros(8, channels, side // 2, side // 2)
    with compiling(architecture) as compiled:
        if op == "blur_pool_backward":
            triton_ops.blur_pool_backward(grad, None, [side, side], geometry, last)
        elif op == "max_blur_pool_backward":
            _, codes = triton_ops.max_blur_pool_codes(x, None, geometry)
            compiled.clear()
            triton_ops.max_blur_pool_backward(grad, None, codes, None, [side, side], geometry, last)
        elif op == "blur_pool_backward_taps":
            triton_ops.blur_pool_backward_taps(grad, x, torch.ones(1, 6), geometry)
        else:
            getattr(triton_ops, op)(x, None, geometry)
    return compiled


def in_longest_loop(listing: Listing) -> list[str]:
    """The instructions of one turn of that over rows."""
    first, last = max(loops(listing), key=lambda loop: loop[1] - loop[0])
    return [i for at, i in listing if first <= at <= last]


def measure(budget: Budget, cuobjdump: str) -> Code:
    """Compiles the budget's kernel and counts."""
    from aablur import triton_ops

    kernel = compile_op(budget.op, budget.dtype, budget.layout)[0]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        command = [cuobjdump, "-sass", "-res-usage", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listing = parse(text)
    turn = in_longest_loop(listing)
    found = re.search(r"REG:(\d+)", text)
    assert found, text
    # Of the smaller map, a thread in one turn of the loop over rows; the larger has four times as many.
    has_codes = budget.op in ("max_blur_pool_codes", "max_blur_pool_backward")
    wide = triton_ops._CODES_TILE if has_codes else triton_ops._TILE
    tile = (wide if budget.layout == "channels_last" else triton_ops._PLANES_TILE) // 128
    return Code(
        instructions=len(turn) / (4 * tile),
        alu=sum(map(is_alu, turn)) / (4 * tile),
        registers=int(found[1]),
        local=sum(bool(re.search(r"\b(LDL|STL)\b", i)) for _, i in listing),
        atomics=sum(bool(re.search(r"\b(ATOM|ATOMG|RED)\b", i)) for _, i in listing),
        wide_loads=sum(bool(re.search(r"LDG\.E\S*\.128", i)) for _, i in listing),
        wide_stores=sum(bool(re.search(r"STG\.E\S*\.128", i)) for _, i in listing),
    )
