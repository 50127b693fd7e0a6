"""Promise: whole launches of the GPU kernels issue no more than their budgets, with no GPU to try them on."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")

from benchmarks.codegen import budgets, cuda_kernels, interpreter, triton_kernels
from benchmarks.codegen.launches import Counted

cuobjdump, nvcc = interpreter.tool("cuobjdump"), interpreter.tool("nvcc")
needs_nvcc = pytest.mark.skipif(nvcc is None, reason="no nvcc")
needs_triton = pytest.mark.skipif(cuobjdump is None, reason="no Triton, which carries cuobjdump")
BUDGETS = [b for b in budgets.read() if nvcc or b.backend != "cuda"]


@pytest.fixture(scope="module")
def over_budget(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], str]:
    """By budget and side what a launch exceeds, of all that were executed."""
    file = tmp_path_factory.mktemp("codegen") / "counts.csv"
    command = [sys.executable, "-m", "benchmarks.codegen", "--csv", str(file)]
    done = subprocess.run(command, cwd=interpreter.ROOT, capture_output=True, text=True)
    assert file.exists(), done.stdout + done.stderr
    with file.open(newline="") as rows:
        return {(row["budget"], int(row["side"])): row["over"] for row in csv.DictReader(rows)}


@needs_triton
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: b.name)
def test_budget(budget: budgets.Budget, over_budget: dict[tuple[str, int], str]) -> None:
    assert {side: over_budget[budget.name, side] for side in budget.slots} == dict.fromkeys(budget.slots, "")


@pytest.mark.parametrize(
    ("backend", "installed", "more", "fewer", "exceeded"),
    [
        ("triton", "3.9.0", 1.0, 0, []),
        ("triton", "3.9.0", 1.01, 1, ["slots", "warps"]),
        ("triton", "3.8.0", 1.04, 4, []),
        ("triton", "3.8.0", 1.06, 5, ["slots", "warps"]),
        ("cuda", "3.8.0", 1.01, 1, ["slots", "warps"]),
    ],
)
def test_another_triton_has_more_room(
    backend: str, installed: str, more: float, fewer: int, exceeded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code of the same kernels is a little other than that which was counted."""
    monkeypatch.setattr(budgets, "version", lambda name: installed)
    budget = next(b for b in budgets.read() if b.backend == backend)
    side, most = next(iter(budget.slots.items()))
    counted = Counted("", most * more, 0, 0, 0, 1, 1, 1, 1, 1, budget.warps - fewer, 32, 0, 0, True)
    assert [violation.split()[0] for violation in budget.violations(side, counted)] == exceeded


@needs_triton
def test_one_case_is_a_line_of_json() -> None:
    command = [sys.executable, "-m", "benchmarks.codegen", "--backend", "triton"]
    case = ["--case", "blur", "bf16", "nhwc", "1", "8", "9", "9", "--padding-mode", "zeros"]
    done = subprocess.run([*command, *case], cwd=interpreter.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and '"correct": true' in done.stdout, done.stdout + done.stderr


@needs_triton
@needs_nvcc
def test_every_instruction_of_the_library_is_known() -> None:
    """Of kernels that no case launches, too."""
    code = "from benchmarks.codegen.interpreter import *; print(*Interpreter(LIBRARY).unknown(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=interpreter.ROOT,
        env=interpreter.environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


@needs_nvcc
@pytest.mark.parametrize("architecture", [75, 80, 120])
def test_hot_kernels_compile_for_other_architectures(architecture: int, tmp_path: Path) -> None:
    """Before asynchronous copies, with them, and the newest."""
    assert nvcc
    target = tmp_path / "hot.cubin"
    cuda_kernels.compile_hot(nvcc, target, architecture)
    assert target.stat().st_size > 0


@needs_triton
@pytest.mark.parametrize("capability", [75, 80, 86, 100, 120])
@pytest.mark.parametrize(
    "op", ["blur_pool", "max_blur_pool_codes", "max_blur_pool_backward", "blur_pool_backward_taps"]
)
def test_triton_compiles_for_every_architecture(op: str, capability: int) -> None:
    for kernel in triton_kernels.compile_op(op, torch.float16, "NCHW", architecture=capability):
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= 48 << 10, "what every card gives a block that does not ask for more"
