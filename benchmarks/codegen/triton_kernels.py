"""Triton's kernels compiled for any architecture, with no GPU.

The ops are called as users call them, on tensors of the CPU; in place of every launch the kernel is compiled for a
device that is not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from aablur.geometry import Geometry

ARCHITECTURE = 90


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
