from __future__ import annotations

import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads leave the cores to others
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    # Inductor's cache outlives a change of an op's shapes, which are no part of its keys. One a run, for all processes.
    _cache = tempfile.TemporaryDirectory(prefix="aablur-inductor-", ignore_cleanup_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _cache.name

import peers  # noqa: F401, in every process: pytest-xdist's main one unpickles the warnings of the others
import pytest
import torch
from case import Case
from hypothesis import settings

from aablur import backends
from benchmarks.codegen.interpreter import IN_USE, LIBRARY, Interpreter, launch_triton

ON_MACHINE_CODE = os.environ.get(IN_USE) == "1"

collect_ignore = [] if torch.cuda.is_available() else ["test_cuda.py"]
settings.register_profile("ci", max_examples=600, deadline=None, derandomize=True)
settings.register_profile("wide", max_examples=5000, deadline=None)
settings.load_profile("ci")


def _reads(case: Case) -> int:
    """About how many vectors Triton's interpreter reads, at some 10 ms each: rows, windows and images are loops."""
    sizes, windows = case.shape[-case.rank :], case.per_axis(case.window or 1)
    reads = max(1, math.prod(case.shape[: -case.rank]) * sizes[-1] // 1024) * math.prod(sizes[:-1])
    for taps, window, size, pads in zip(case.taps_per_axis, windows, sizes, case.pads, strict=True):
        period = 1 if case.padding_mode == "replicate" else size
        images = 0 if case.padding_mode == "zeros" else sum(max(p, 0) // period for p in pads)
        reads *= window * ((taps if isinstance(taps, int) else int(taps[1:])) + images)
    return reads


def _has_time(item: pytest.Item) -> bool:
    """Triton compiles each geometry for a second or two, and its interpreter takes as long for a few rows: on a GPU
    every sixteenth case is run, as machine code on a CPU every 64th, in Triton's interpreter the former and all small
    ones. Of the instruction sets that are not this processor's best, every third.
    """
    parameters = item.callspec.params if hasattr(item, "callspec") else {}  # pyright: ignore
    if "case" not in parameters or "device" not in parameters:
        return True
    case, number = parameters["case"], zlib.crc32(parameters["case"].id.encode())
    if parameters["device"] == "native":
        return number % 3 == 0 or "AABLUR_CPU_ISA" not in os.environ
    if parameters["device"] != "triton":
        return True
    if (reads := _reads(case)) > 10**6:
        return False
    if ON_MACHINE_CODE:
        return number % 64 == 0
    if os.environ.get("TRITON_INTERPRET") != "1":
        return number % 16 == 0
    if parameters.get("recompute"):
        return False  # the same kernels, in another order
    return reads <= (200 if number % 16 == 0 else 50)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    has_time = [_has_time(item) for item in items]
    config.hook.pytest_deselected(items=[item for item, has in zip(items, has_time, strict=True) if not has])
    items[:] = [item for item, has in zip(items, has_time, strict=True) if has]


def _kernels(executed: bool) -> set[str]:
    return Interpreter(LIBRARY).kernels(executed) if LIBRARY.exists() else set()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With --all-kernels every CUDA kernel there is must have been executed, in whichever process."""
    if not session.config.getoption("all_kernels"):
        return
    executed = _kernels(executed=True)
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["kernels"] = sorted(executed)
        return
    missed = _kernels(executed=False) - executed - _executed_by_workers
    if missed:
        print(f"\nexecuted by no test: {len(missed)} kernels\n" + "\n".join(sorted(missed)))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_executed_by_workers: set[str] = set()


class _Workers:
    def pytest_testnodedown(self, node: Any) -> None:
        _executed_by_workers.update(getattr(node, "workeroutput", {}).get("kernels", ()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-kernels", action="store_true", help="fail unless every CUDA kernel was executed")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)
    torch.backends.cudnn.allow_tf32 = False  # comparisons are of float32; matmuls are by default
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_Workers())
    if ON_MACHINE_CODE:
        launch_triton()
        mock.patch.object(backends, "interprets_triton", lambda: True).start()
    if os.environ.get("TRITON_INTERPRET") == "1":
        import triton_interpreter

        triton_interpreter.mend()


def _poison(value: float) -> None:
    """Leaves freed blocks full of `value` for the next allocations of the sizes that small cases have, of each device:
    CUDA's allocator too gives them out again."""
    for device in ("cpu", *["cuda"] * torch.cuda.is_available()):
        sizes = [2**p + 16 for p in range(4, 15) for _ in range(2)]
        blocks = [torch.full((size,), value, dtype=torch.float32, device=device) for size in sizes]
        del blocks


@pytest.fixture(autouse=True)
def segments(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where GPU kernels run on a CPU, every second test has a card of no multiprocessors, whose segments are as long as
    they get: else those of small maps would be of one row, and hand nothing on to the next.
    """
    if not ON_MACHINE_CODE and os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from aablur import triton_ops

    count = zlib.crc32(request.node.name.encode()) % 2 * 132
    if ON_MACHINE_CODE and LIBRARY.exists():
        Interpreter(LIBRARY).set_multiprocessors(count)
    with mock.patch.multiple(triton_ops, _multiprocessors=lambda device: count, _H100=count):
        yield


def _seed() -> None:
    """torch.manual_seed formats the stack for each kind of device that there is not: 5 ms a test."""
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def same_state() -> Iterator[None]:
    """Seeds, thread count and NaN in freed memory: what a test leaves behind, the next does not meet."""
    threads = torch.get_num_threads()
    _seed()
    _poison(torch.nan)
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
