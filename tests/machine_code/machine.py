"""Kernels compiled by nvcc, launched on the interpreter of tests/sass through its own libcuda."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.codegen.interpreter import tool

from .operands import Op, corners

HERE = Path(__file__).resolve().parent
C_TYPES = {16: ("u16", "h"), 32: ("u32", "r"), 64: ("u64", "l")}
NUMPY = {16: np.uint16, 32: np.uint32, 64: np.uint64}


# ---- one instruction a kernel ------------------------------------------------------------------------


def variants(op: Op) -> list[str]:
    """Where each operand comes from: (a)rrays, (s)calars of the launch, a (l)iteral."""
    n = len(op.kinds)
    found = ["a" * n]
    if op.variants:
        found += ["a" * i + "s" + "a" * (n - i - 1) for i in range(n)]
        found += ["s" * n] if n > 1 else []
        found += ["a" * i + "l" + "a" * (n - i - 1) for i in range(n)] if n > 1 else []
    return found


def literal(op: Op, operand: int) -> int:
    pool = corners(op.kinds[operand])
    return pool[sum(map(ord, op.name)) * (operand + 3) % len(pool)]


def kernel_text(op: Op, variant: str) -> str:
    """Every variant takes the arrays, the result's, then the scalars: what it does not read is not compiled."""
    types = [C_TYPES[w] for w in op.widths]
    names = "abc"[: len(op.kinds)]
    arguments = [f"const {t}* p{x}" for (t, _), x in zip(types, names, strict=False)] + [f"{types[-1][0]}* out"]
    arguments += [f"{t} s{x}" for (t, _), x in zip(types, names, strict=False)]
    text = f'extern "C" __global__ void {op.name}__{variant}({", ".join(arguments)}) {{\n'
    text += "  const int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
    for n, (x, source) in enumerate(zip(names, variant, strict=True)):
        value = {"a": f"p{x}[i]", "s": f"s{x}", "l": f"{literal(op, n)}ull"}[source]
        text += f"  const {types[n][0]} {x} = {types[n][0]}({value});\n"
    text += f"  {types[-1][0]} r;\n"
    if op.body.startswith("r ="):
        text += f"  {op.body}\n"
    else:
        ptx = op.body.replace("$d", "%0")
        for n, x in enumerate(names):
            ptx = ptx.replace(f"${x}", f"%{n + 1}")
        inputs = ", ".join(f'"{types[n][1]}"({x})' for n, x in enumerate(names))
        text += f'  asm("{ptx}" : "={types[-1][1]}"(r) : {inputs});\n'
    return text + "  out[i] = r;\n}\n"


def source(ops: Iterable[Op], architecture: int) -> str:
    text = '#include "kernels.cuh"\n'
    for op in ops:
        if op.since <= architecture:
            text += "".join(kernel_text(op, variant) for variant in variants(op))
    return text


def compile_for(architecture: int, ops: Iterable[Op], folder: Path) -> Path:
    nvcc, path, cubin = tool("nvcc"), folder / f"ops{architecture}.cu", folder / f"ops{architecture}.cubin"
    assert nvcc
    path.write_text(source(ops, architecture))
    command = [nvcc, "-std=c++17", "-cubin", f"-arch=sm_{architecture}", f"-I{HERE}", "-o", str(cubin), str(path)]
    subprocess.run([*command, "--diag-suppress=68,177,550"], check=True)
    return cubin


# ---- the interpreter ---------------------------------------------------------------------------------


class Fault(Exception):
    """What the interpreter stopped at."""


class _Configuration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("count", ctypes.c_uint),
    )


class Machine:
    def __init__(self, library: Path) -> None:
        cuobjdump = tool("cuobjdump")
        assert cuobjdump
        os.environ["AABLUR_CUOBJDUMP"] = cuobjdump
        self.driver = ctypes.CDLL(str(library))
        self.driver.sass_report.restype = ctypes.c_char_p
        self.driver.sass_profile.restype = ctypes.c_char_p

    def message(self) -> str:
        text = ctypes.c_char_p()
        self.driver.cuGetErrorString(0, ctypes.byref(text))
        return (text.value or b"").decode()

    @contextmanager
    def allowed(self, *arrays: np.ndarray) -> Iterator[None]:
        """An array may be written unless numpy forbids it, too."""
        for array in arrays:
            self.driver.sass_allow(
                ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(array.nbytes), ctypes.c_bool(array.flags.writeable)
            )
        try:
            yield
        finally:
            for array in arrays:
                self.driver.sass_forget(ctypes.c_void_p(array.ctypes.data))

    def report(self) -> list[dict[str, Any]]:
        return json.loads(self.driver.sass_report())


class Module:
    def __init__(self, machine: Machine, path: Path) -> None:
        self.machine, self.path, self.handle, self.listing = machine, path, ctypes.c_void_p(), ""
        self.image = path.read_bytes()  # the driver keeps its address
        if machine.driver.cuModuleLoadData(ctypes.byref(self.handle), self.image):
            raise Fault(machine.message())

    def launch(
        self, kernel: str, grid: int, block: int | tuple[int, int, int], *arguments: Any, shared: int = 0
    ) -> None:
        """Arrays are passed by address and may be touched; other arguments are ctypes' or addresses."""
        driver = self.machine.driver
        arrays = [a for a in arguments if isinstance(a, np.ndarray)]
        values = [ctypes.c_uint64(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments]
        pointers = (ctypes.c_void_p * max(1, len(values)))(*[ctypes.addressof(v) for v in values])
        function = ctypes.c_void_p()
        driver.cuModuleGetFunction(ctypes.byref(function), self.handle, kernel.encode())
        threads = (block, 1, 1) if isinstance(block, int) else block
        config = _Configuration((grid, 1, 1), threads, shared, None, None, 0)
        with self.machine.allowed(*arrays):
            if driver.cuLaunchKernelEx(ctypes.byref(config), function, pointers, None):
                raise Fault(self.machine.message())

    def code(self, kernel: str) -> list[str]:
        """Its instructions, without what stands behind the last one that can be reached."""
        if not self.listing:
            command = [tool("cuobjdump") or "", "-sass", str(self.path)]
            self.listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        text = self.listing.split(f"Function : {kernel}\n")[1].split("Function :")[0]
        found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", text, re.M)
        return [i for i in found if not re.match(r"(@\S+ )?(NOP|BRA)", i)]

    def counts(self, kernel: str, grid: int, block: int | tuple[int, int, int], *arguments: Any, **options: Any) -> Any:
        self.machine.report()
        self.launch(kernel, grid, block, *arguments, **options)
        (counts,) = self.machine.report()
        return counts
