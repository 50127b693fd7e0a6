"""Promise: the hot GPU kernels stay within their budgets of registers and instructions, with no GPU to try them on."""

from __future__ import annotations

import pytest

pytest.importorskip("rich")

from benchmarks import codegen

pytestmark = pytest.mark.skipif(codegen.tools() is None, reason="no nvcc, or no cuobjdump")


@pytest.fixture(scope="module")
def codes() -> dict[str, codegen.Code]:
    return codegen.measure()


def test_every_hot_kernel_has_a_budget(codes: dict[str, codegen.Code]) -> None:
    assert set(codes) == {b.kernel for b in codegen.BUDGETS}


@pytest.mark.parametrize("budget", codegen.BUDGETS, ids=lambda b: b.kernel)
def test_budget(budget: codegen.Budget, codes: dict[str, codegen.Code]) -> None:
    code = codes[budget.kernel]
    assert code.spilled_bytes == code.stack_bytes == code.local == code.atomics == 0
    assert code.registers <= budget.registers
    assert code.instructions <= budget.instructions
    assert code.wide_loads >= budget.wide_loads and code.wide_stores >= budget.wide_stores
