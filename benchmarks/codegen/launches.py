"""One launch of a GPU kernel, executed whole as machine code: what it issues, and whether its result is right."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import aablur
from aablur import reference
from aablur.geometry import Geometry

from . import interpreter

OPS = ("blur", "blur-backward", "max-blur", "max-blur-codes", "max-blur-backward", "taps-gradient")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
LAYOUTS = ("nchw", "nhwc")
BACKENDS = ("cuda", "triton")
SECTOR = 32  # bytes
# Of a launch over more elements, a part is executed: no fewer blocks than that, one of each of as many alike parts.
MOST_ELEMENTS, LEAST_BLOCKS = 1 << 19, 96
# A multiprocessor of sm_90 (CUDA C++ Programming Guide, compute capabilities), and how many an H100 and an H200 have.
SMS, MOST_WARPS, MOST_BLOCKS, REGISTERS, SHARED = 132, 64, 32, 65536, 227 << 10
SHARED_OF_SYSTEM, REGISTERS_AT_ONCE = 1 << 10, 256  # a block, a warp


@dataclass(frozen=True)
class Launch:
    """What is launched: an op on a map of (images, channels, [[depth,] height,] width)."""

    op: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    taps: int = 3
    per_channel: bool = False
    stride: int = 2
    window: int = 2
    window_padding: int = 0
    padding_mode: str = "reflect"
    backend: str = "cuda"

    @property
    def elements(self) -> int:
        """Of the larger map."""
        return math.prod(self.shape)

    @property
    def rank(self) -> int:
        return len(self.shape) - 2

    @property
    def geometry(self) -> Geometry:
        windows = (self.window, self.window_padding, 1) if self.op.startswith("max") else ()
        return Geometry(self.op, (self.taps,) * self.rank, self.stride, "same", self.padding_mode, *windows)


@dataclass(frozen=True)
class Counted:
    """Of all kernels of a launch together; numbers an element are of the larger map's."""

    kernel: str
    slots: float  # issue slots an element: 32 times the instructions that warps issue
    half_rate: float  # of them those that a multiprocessor does at half its rate
    wavefronts: float  # of shared memory an element
    wavefronts_ideal: float  # without bank conflicts
    sectors: float  # of 32 bytes of global memory an element, each counted once a block
    sectors_ideal: float  # every byte of the maps once
    requested_sectors: float  # counted at each instruction: what the first-level cache serves
    blocks: int
    waves: float  # blocks over those that a card holds at a time
    warps_per_sm: int
    registers: int
    spills: int  # local memory: bytes of stack a thread, and instructions that touch it
    atomics: int
    correct: bool | None  # None: a part was executed of a sum over all


def blocks_per_sm(threads: int, registers: int, shared: int) -> int:
    """Blocks that a multiprocessor of sm_90 holds at a time."""
    warps = math.ceil(threads / 32)
    of_warp = math.ceil(registers * 32 / REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    of_registers = REGISTERS // of_warp // warps
    of_shared = (SHARED + SHARED_OF_SYSTEM) // (math.ceil(shared / 128) * 128 + SHARED_OF_SYSTEM)
    return min(MOST_BLOCKS, MOST_WARPS // warps, of_registers, of_shared)


def _map(images: int, channels: int, size: list[int], launch: Launch, seed: int) -> Tensor:
    """A few images, over and over."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(min(images, 3), channels, *size, generator=generator)
    x = few.repeat(math.ceil(images / few.shape[0]), *[1] * (launch.rank + 1))[:images].to(DTYPES[launch.dtype])
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if launch.layout == "nhwc" else x


def _arguments(launch: Launch) -> tuple[str, list[Any]]:
    """The op's name and its arguments."""
    images, channels, *size = launch.shape
    geometry = launch.geometry
    x = _map(images, channels, size, launch, 0)
    out = [axis.out_size(n) for axis, n in zip(geometry.axes, size, strict=True)]
    grad = _map(images, channels, out, launch, 1)
    rows = channels if launch.per_channel else 1
    given = launch.per_channel or launch.op == "taps-gradient"
    dtype = reference.accumulator_dtype(x.dtype)
    taps = torch.rand(rows, launch.rank * launch.taps, dtype=dtype) / launch.taps if given else None
    last, numbers = launch.layout == "nhwc", geometry.op_args
    if launch.op == "blur":
        return "blur_pool", [x, taps, *numbers]
    if launch.op == "blur-backward":
        return "blur_pool_backward", [grad, taps, size, *numbers, last]
    if launch.op == "taps-gradient":
        return "blur_pool_backward_taps", [grad, x, taps, *numbers]
    if launch.op == "max-blur":
        return "max_blur_pool", [x, taps, *numbers]
    if launch.op == "max-blur-codes":
        return "max_blur_pool_codes", [x, taps, *numbers]
    with aablur.backend("reference"):
        few = torch.ops.aablur.max_blur_pool_codes(x[:3], taps, *numbers)[1]
    codes = few.repeat(math.ceil(images / few.shape[0]), 1, 1)[:images]
    return "max_blur_pool_backward", [grad, None, codes, taps, size, *numbers, last]


def _is_right(found: Any, expected: Any, dtype: torch.dtype, whole: bool) -> bool:
    """Whether the result, or of a part what was written of it (new tensors have all bits set), is the reference's."""
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    tolerance = {torch.bfloat16: 2**-7, torch.float16: 2**-9, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    for y, z in pairs:
        right = torch.isclose(y.double(), z.double(), rtol=tolerance, atol=tolerance)
        unwritten = y == 255 if y.dtype == torch.uint8 else torch.isnan(y)
        if not bool((right if whole else right | unwritten).all()):
            return False
    return True


@functools.cache
def _interpreter(backend: str) -> interpreter.Interpreter:
    return interpreter.launch_triton() if backend == "triton" else interpreter.Interpreter(interpreter.LIBRARY)


def _bytes(*values: Any) -> int:
    tensors = [v for value in values for v in (value if isinstance(value, (tuple, list)) else [value])]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def count(launch: Launch, profile: bool = False) -> tuple[Counted, str]:
    """Launches and counts; with the profile of its kernels, if asked for. In a process of interpreter.environment()."""
    executed, name, arguments = _interpreter(launch.backend), *_arguments(launch)
    whole = launch.elements <= MOST_ELEMENTS
    executed.execute_share(min(1.0, MOST_ELEMENTS / launch.elements), LEAST_BLOCKS)
    executed.report()
    op = getattr(torch.ops.aablur, name)
    if launch.backend == "triton":
        with interpreter.triton_serves():
            found = op(*arguments)
    else:
        found = op(*arguments)
    kernels = executed.report()
    if not kernels:
        raise RuntimeError(f"{launch} was not launched on the interpreter")
    whole = all(k["blocks"] == k["grid"] for k in kernels)
    if launch.op == "taps-gradient":
        correct = None
        if whole:
            wide = [a.double() if isinstance(a, Tensor) else a for a in arguments]
            with aablur.backend("reference"):
                correct = _is_right(found, op(*wide), torch.float32, whole)
    else:
        few = [
            a[:3] if isinstance(a, Tensor) and a.ndim > 2 and a.dtype == torch.uint8
            else a[:3].double() if isinstance(a, Tensor) and a.ndim == launch.rank + 2
            else a.double() if isinstance(a, Tensor)
            else a
            for a in arguments
        ]  # fmt: skip
        with aablur.backend("reference"):
            expected = op(*few)
        written = tuple(t[:3] for t in found) if isinstance(found, tuple) else found[:3]
        correct = _is_right(written, expected, DTYPES[launch.dtype], whole)

    def total(key: str) -> float:
        return sum(k[key] * k["grid"] / k["blocks"] for k in kernels)

    def an_element(key: str) -> float:
        return total(key) / launch.elements

    largest = max(kernels, key=lambda k: k["instructions"] * k["grid"] / k["blocks"])
    resident = blocks_per_sm(largest["threads"], largest["registers"], largest["shared"])
    ideal = math.ceil(_bytes(*arguments, found) / SECTOR)
    counted = Counted(
        kernel=" + ".join(k["kernel"] for k in kernels),
        slots=32 * an_element("instructions"),
        half_rate=32 * an_element("half_rate"),
        wavefronts=an_element("wavefronts"),
        wavefronts_ideal=an_element("wavefronts_ideal"),
        sectors=an_element("sectors"),
        sectors_ideal=ideal / launch.elements,
        requested_sectors=an_element("requested_sectors"),
        blocks=sum(k["grid"] for k in kernels),
        waves=sum(k["grid"] / (SMS * blocks_per_sm(k["threads"], k["registers"], k["shared"])) for k in kernels),
        warps_per_sm=resident * math.ceil(largest["threads"] / 32),
        registers=largest["registers"],
        spills=max(k["stack"] for k in kernels) + round(total("local")),
        atomics=round(total("atomics")),
        correct=correct,
    )
    lines = [
        f"{times:>10}  {text}"
        for kernel in (dict.fromkeys(k["kernel"] for k in kernels) if profile else ())
        for times, text in executed.profile(kernel)
    ]
    return counted, "\n".join(lines)
