"""Promise: the hot GPU kernels stay within their budgets of registers and instructions, with no GPU to try them on."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from case import Case, call, make_input, make_taps
from cases import CASES

pytest.importorskip("rich")

import aablur
from aablur import backends
from benchmarks.codegen import cuda_kernels, triton_kernels

cuobjdump = cuda_kernels.tool("cuobjdump")
needs_nvcc = pytest.mark.skipif(not (cuobjdump and cuda_kernels.tool("nvcc")), reason="no nvcc, or no cuobjdump")
needs_triton = pytest.mark.skipif(cuobjdump is None, reason="no Triton, which carries cuobjdump")


@pytest.fixture(scope="module")
def codes() -> dict[str, cuda_kernels.Code]:
    return cuda_kernels.measure()


@needs_nvcc
def test_every_hot_kernel_has_a_budget(codes: dict[str, cuda_kernels.Code]) -> None:
    assert len(codes) == len(cuda_kernels.BUDGETS)  # measure() knows what was compiled


@needs_nvcc
@pytest.mark.parametrize("budget", cuda_kernels.BUDGETS, ids=lambda b: b.name)
def test_budget(budget: cuda_kernels.Budget, codes: dict[str, cuda_kernels.Code]) -> None:
    code = codes[budget.name]
    assert code.spilled_bytes == code.stack_bytes == code.local == code.atomics == 0
    assert code.registers <= budget.registers
    assert code.instructions <= budget.instructions
    assert code.wide_loads >= budget.wide_loads and code.wide_stores >= budget.wide_stores


@needs_nvcc
@pytest.mark.parametrize("architecture", [75, 80, 86, 100, 120])
def test_hot_kernels_compile_for_every_architecture(architecture: int, tmp_path: Path) -> None:
    """Their straight part: the border's is the same code with other indices."""
    nvcc, target = cuda_kernels.tool("nvcc"), tmp_path / "hot.cubin"
    assert nvcc
    cuda_kernels.compile_hot(nvcc, target, "-DAABLUR_INSIDE_ONLY=true", architecture=architecture)
    assert target.stat().st_size > 0


@needs_triton
@pytest.mark.parametrize("budget", triton_kernels.BUDGETS, ids=lambda b: b.what)
def test_triton_budget(budget: triton_kernels.Budget) -> None:
    assert cuobjdump
    code = triton_kernels.measure(budget, cuobjdump)
    assert code.local == code.atomics == 0
    assert code.registers <= budget.registers
    assert code.instructions <= budget.instructions
    assert code.wide_loads >= budget.wide_loads and code.wide_stores >= budget.wide_stores


@needs_triton
@pytest.mark.parametrize("capability", [75, 80, 86, 100, 120])
@pytest.mark.parametrize(
    "op", ["blur_pool", "max_blur_pool_codes", "max_blur_pool_backward", "blur_pool_backward_taps"]
)
def test_triton_compiles_for_every_architecture(op: str, capability: int) -> None:
    for kernel in triton_kernels.compile_op(op, torch.float16, "NCHW", architecture=capability):
        assert kernel.asm["cubin"]


@needs_triton
@pytest.mark.parametrize("case", CASES[::40], ids=lambda c: c.id)
def test_triton_compiles_what_its_interpreter_runs(case: Case) -> None:
    """The interpreter is Python, and takes more. What the calls return was never written."""
    x, (taps, _) = make_input(case).requires_grad_(), make_taps(case)
    serves_here = mock.patch.object(backends, "interprets_triton", lambda: True)
    with serves_here, triton_kernels.compiling(triton_kernels.ARCHITECTURE) as compiled, aablur.backend("triton"):
        y = call(case, x, taps)
        y.backward(torch.zeros_like(y))
    assert compiled and all(kernel.asm["cubin"] for kernel in compiled)
