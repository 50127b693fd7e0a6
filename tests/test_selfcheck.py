"""Promise: `aablur.check` says right of what is right, and finds any wrong kernel, and names the case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import aablur
from aablur import backends, ops
from aablur.cli import main
from aablur.selfcheck import Report, run, speed
from aablur.selfcheck.cases import Case, cases, count_families, difference
from benchmarks.codegen import interpreter

ROOT = Path(__file__).parent.parent
CASES = cases()
ON_MACHINE_CODE = os.environ.get(interpreter.IN_USE) == "1"
FEW = "^(volumes|recompute|filters (after a max )?2x3x)"  # small ones of every op


def test_cases_have_names_of_their_own_and_reach_every_op() -> None:
    assert 100 <= len(CASES) <= 150 and len({case.id for case in CASES}) == len(CASES)
    first = CASES[: count_families()]
    assert len({(case.family, case.layout) for case in first}) == len(first)
    assert {case.dtype for case in CASES} == {"float16", "bfloat16", "float32", "float64"}
    assert {case.rank for case in CASES} == {1, 2, 3}
    seen = set()

    def spy(name: str) -> Callable[..., Any]:
        body = ops._REFERENCE[name]
        return lambda *args: (seen.add(name), body(*args))[1]

    with replaced({name: spy(name) for name in ops._REFERENCE}):
        for case in first:
            case.results("cpu")
    assert seen == set(ops._REFERENCE)


def test_every_family_is_run_on_the_backend_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others stop in time: Triton would compile for minutes beside CUDA kernels."""
    monkeypatch.setattr(run, "_servings", lambda: [("cpu", "cpu"), ("cpu", "reference")])
    report = aablur.check(seconds=0, speed=False)
    assert [served.cases for served in report.served] == [count_families(), 1]


MACHINE_CODE = """
import sys
from benchmarks.codegen.interpreter import LIBRARY, Interpreter
from aablur.selfcheck import run
from aablur.selfcheck.cases import cases, count_families

served = run._run_cases("cpu", "cpu", cases(), count_families(), 0, lambda done: None)
assert not served.wrong, served.wrong
interpreter = Interpreter(LIBRARY)
functors = [{n.split("INS0_")[1].lstrip("0123456789").split("I")[0] for n in interpreter.kernels(e) if "INS0_" in n}
            for e in (True, False)]
print(*sorted(functors[1] - functors[0]))
"""


@pytest.mark.skipif(not interpreter.LIBRARY.exists(), reason="build/machine_code is not built")
def test_the_first_cases_reach_each_family_of_cuda_kernels() -> None:
    """As machine code, executed on the CPU."""
    done = subprocess.run(
        [sys.executable, "-c", MACHINE_CODE], cwd=ROOT, env=interpreter.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_right_is_right(backend: str) -> None:
    """Also the reference in the dtype of the map, which is no copy of what judges."""
    served = run._run_cases("cpu", backend, CASES, len(CASES), 0, lambda done: None)
    assert served.cases == len(CASES) and not served.wrong


@contextmanager
def replaced(kernels: dict[str, Callable[..., Any]]) -> Iterator[None]:
    library = torch.library.Library("aablur", "IMPL")
    try:
        for name, kernel in kernels.items():
            library.impl(name, kernel, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


def _nudged(out: Any) -> Any:
    """One number in the middle is off by a percent."""
    first = out[0] if isinstance(out, tuple) else out
    flat = first.view(-1) if first.is_contiguous() else first.permute(0, *range(2, first.ndim), 1).reshape(-1)
    flat = flat.clone()
    flat[len(flat) // 2] += 0.02
    wrong = first.clone()
    wrong.copy_(flat.view(first.shape) if first.is_contiguous() else _last(flat, first))
    return (wrong, *out[1:]) if isinstance(out, tuple) else wrong


def _last(flat: Tensor, like: Tensor) -> Tensor:
    moved = like.permute(0, *range(2, like.ndim), 1)
    return flat.view(moved.shape).permute(0, like.ndim - 1, *range(1, like.ndim - 1))


def _body(name: str, backend: str) -> Callable[..., Any]:
    """The backend's own kernel, which stays below one that is registered later."""
    if backend == "reference":
        return ops._REFERENCE[name]
    kernel, keys = torch.library.get_kernel(f"aablur::{name}", "CPU"), torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    return lambda *args: kernel.call_boxed(keys, *args)


def _only(choose: Callable[[Tensor], bool], body: Callable[..., Any]) -> Callable[..., Any]:

    def kernel(*args: Any) -> Any:
        out = body(*args)
        return _nudged(out) if choose(args[0]) else out

    return kernel


def _is_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


PLANTED = [  # the op, what it is wrong of, and what the report must name
    *[(name, "all", lambda x: True) for name in ops._REFERENCE],
    ("blur_pool", "bfloat16", lambda x: x.dtype == torch.bfloat16),
    ("blur_pool_backward", "float16", lambda x: x.dtype == torch.float16),
    ("max_blur_pool_codes", "channels_last", lambda x: x.ndim == 4 and _is_last(x)),
    ("max_blur_pool_backward", "volumes", lambda x: x.ndim == 5),
    ("blur_pool", "lines", lambda x: x.ndim == 3),
    ("blur_pool", "large", lambda x: x.numel() > 60_000),
]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(("name", "where", "choose"), PLANTED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_planted_wrong_kernel_is_found(
    name: str, where: str, choose: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_servings", lambda: [("cpu", backend)])
    force, body = ops._force, _body(name, backend)

    def forced(backend: str) -> torch.library.Library:
        library = force(backend)
        library.impl(name, _only(choose, body), "CPU", allow_override=True)
        return library

    monkeypatch.setattr(ops, "_force", forced)
    report = aablur.check(only=FEW if ON_MACHINE_CODE else None, seconds=600, speed=False)
    wrong = report.served[0].wrong
    assert not report.ok and wrong and all("is right" in found.what for found in wrong)
    said = str(report)
    assert "WRONG" in said and wrong[0].case in said and f"torch: {torch.__version__}" in said
    assert "again: python -m aablur check --no-speed --only" in said and "AABLUR_BACKEND=reference" in said
    assert where == "all" or all(where in found.case for found in wrong) or where == "large"


@pytest.mark.skipif(not interpreter.LIBRARY.exists(), reason="build/machine_code is not built")
def test_planted_wrong_machine_code_is_found() -> None:
    """The tests above of each op, where the CPU's kernels are CUDA's, executed."""
    command = [sys.executable, "-m", "pytest", __file__, "-k", "planted_wrong_kernel and all and cpu"]
    done = subprocess.run(command, cwd=ROOT, env=interpreter.environment(), capture_output=True, text=True)
    assert done.returncode == 0 and f"{len(ops._REFERENCE)} passed" in done.stdout, done.stdout + done.stderr


def test_a_case_that_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def results(self: Case, device: str) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(Case, "results", results)
    report = aablur.check(only="^blur 2x3", seconds=0, speed=False)
    assert not report.ok and "RuntimeError: no kernel image" in str(report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_differences(dtype: torch.dtype) -> None:
    expected = torch.randn(50, dtype=torch.float64)
    assert difference(expected.to(dtype), expected) is None
    for wrong in (torch.nan, torch.inf, float(expected[7]) + 0.05):
        found = expected.to(dtype, copy=True)
        found[7] = wrong
        assert "1 of 50 numbers, first at (7,)" in str(difference(found, expected))
    assert "shape (49,), (50,) is right" in str(difference(expected[1:].to(dtype), expected))
    holes = expected.clone()
    holes[3], holes[4] = torch.nan, torch.inf
    assert difference(holes.to(dtype), holes) is None and difference(expected.to(dtype), holes)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    monkeypatch.setattr(speed, "shapes", lambda device: [speed._Shape("tiny", (1, 4, 16, 16))])
    monkeypatch.setattr(speed, "_SAMPLE_S", 1e-4)
    assert main(["check", "--only", "^(blur|max) 2x3", "--seconds", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["served"][0]["device"] == "cpu" and found["served"][0]["cases"] > 10
    (tiny,) = found["speeds"]["cpu"]
    assert tiny["of_copy"] > 0 and tiny["faster"] > 0 and tiny["training_faster"] > 0
    assert main(["check", "--only", "^lines", "--no-speed", "--json", str(tmp_path / "c.json")]) == 0
    assert "all right" in capsys.readouterr().out and json.loads((tmp_path / "c.json").read_text())["ok"]
    assert main(["check", "--only", "nothing"]) == 2
    wrong = Report({"info": ""}, [run.Served("cpu", "cpu", 1, [run.Wrong("a case", "1 is wrong")], 0.0)])
    monkeypatch.setattr(run, "check", lambda *args, **options: wrong)
    assert main(["check"]) == 1


def test_every_card_is_checked_with_each_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    able = {("cpu", None), ("cuda", 1), ("triton", 0), ("triton", 1)}
    monkeypatch.setattr(backends, "why_not", lambda b, card=None: None if (b, card) in able else "no")
    expected = [("cpu", "cpu"), ("cuda:0", "triton"), ("cuda:1", "cuda"), ("cuda:1", "triton")]
    assert run._servings() == expected
    monkeypatch.setattr(backends, "forced", "triton")
    assert run._servings() == [expected[1], expected[3]]
