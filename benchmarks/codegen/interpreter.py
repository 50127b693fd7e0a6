"""The interpreter of machine code (tests/sass) from Python: whole launches of compiled kernels, executed on the CPU.

`python -m benchmarks.codegen.interpreter ARGUMENT...` runs Python with these arguments in a process that uses it.

setup.py's variant machine_code builds two libraries. One is the package's own with its CUDA kernels in place of the
CPU's: in a process started with `environment()`, ops of CPU tensors run through it. The other is a driver of CUDA for
Triton: after `launch_triton()`, Triton compiles for sm_90 and launches on it, tensors of the CPU.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves

import aablur
from aablur import backends

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build/machine_code"
LIBRARY, DRIVER = FOLDER / "libaablur.so", FOLDER / "libcuda.so.1"
ARCHITECTURE = 90
IN_USE = "AABLUR_MACHINE_CODE"  # set in environment()


def tool(name: str) -> str | None:
    """Where nvcc or cuobjdump is (Triton's wheel carries the latter), or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = os.pathsep.join((os.environ.get("PATH", ""), f"{home}/bin"))
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        path += os.pathsep + str(Path(triton.origin).parent / "backends/nvidia/bin")
    return shutil.which(name, path=path)


def environment() -> dict[str, str]:
    """For a process whose ops are to run on machine code."""
    cuobjdump = tool("cuobjdump")
    if cuobjdump is None:
        raise RuntimeError("cuobjdump (from `pip install triton`) is needed")
    environment = os.environ | {"AABLUR_CUOBJDUMP": cuobjdump, "TRITON_LIBCUDA_PATH": str(FOLDER), IN_USE: "1"}
    environment.pop("TRITON_INTERPRET", None)
    return environment | ({"AABLUR_LIBRARY": str(LIBRARY)} if LIBRARY.exists() else {})


class Interpreter:
    """One of the two libraries, for what was launched through it."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for function in ("report", "profile", "executed", "kernels", "unknown"):
            if hasattr(self.library, f"sass_{function}"):
                getattr(self.library, f"sass_{function}").restype = ctypes.c_char_p

    def report(self) -> list[dict[str, Any]]:
        """The launches since the last call, each with what it issued (tests/sass/session.cpp names the fields)."""
        return json.loads(self.library.sass_report())

    def execute_share(self, share: float, least_blocks: int) -> None:
        """From now on this share of a launch's blocks is executed, spread over its grid, and no fewer than that."""
        self.library.sass_execute_share(ctypes.c_double(share), ctypes.c_uint64(least_blocks))

    def set_multiprocessors(self, count: int) -> None:
        """From now on the card has so many: an H100's are 132."""
        self.library.sass_set_multiprocessors(count)

    def kernels(self, executed: bool) -> set[str]:
        """The names of those that are in the library, or of those that were launched."""
        names = self.library.sass_executed() if executed else self.library.sass_kernels()
        return set(names.decode().split())

    def unknown(self) -> list[str]:
        """The kernels of the library that have an instruction which is not known, with its text."""
        return self.library.sass_unknown().decode().splitlines()

    def profile(self, kernel: str) -> list[tuple[int, str]]:
        """Of each instruction that was issued: how often, and its text."""
        lines = self.library.sass_profile(kernel.encode()).decode().splitlines()
        return [(int(count), text) for count, text in (line.split("\t") for line in lines)]


def _memory(x: torch.Tensor) -> tuple[int, int]:
    """Where a tensor lies, and how many bytes its elements span."""
    if x.numel() == 0:
        return x.data_ptr(), 0
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), span * x.element_size()


@functools.cache
def launch_triton() -> Interpreter:
    """From now on Triton launches on the interpreter. TRITON_LIBCUDA_PATH must name its folder before."""
    interpreter = Interpreter(DRIVER)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime.jit import JITFunction

    class Hopper(CudaDriver):
        def __init__(self) -> None:
            super().__init__()
            self.get_current_device = lambda: 0
            self.get_current_stream = lambda device: 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", ARCHITECTURE, 32)

    triton.runtime.driver.set_active(Hopper())
    run = JITFunction.run

    def tensors(*values: Any) -> Iterator[torch.Tensor]:
        yield from (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))

    def allowed(self: Any, *args: Any, **options: Any) -> Any:
        """A launch may touch its tensors, and nothing else."""
        given = [_memory(x) for x in tensors(args, options)]
        for begin, size in given:
            interpreter.library.sass_allow(ctypes.c_void_p(begin), ctypes.c_uint64(size), True)
        try:
            return run(self, *args, **options)
        finally:
            for begin, _ in given:
                interpreter.library.sass_forget(ctypes.c_void_p(begin))

    mock.patch.object(JITFunction, "run", allowed).start()
    return interpreter


@contextmanager
def triton_serves() -> Iterator[None]:
    """Inside, Triton serves tensors of the CPU, and new tensors are NaN, or have all bits set."""
    launch_triton()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # which fills new tensors
    try:
        with mock.patch.object(backends, "interprets_triton", lambda: True), aablur.backend("triton"):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


if __name__ == "__main__":
    if tool("cuobjdump") is None:
        sys.exit(print("machine code is left out: there is no cuobjdump, which Triton's wheel carries"))
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment())
