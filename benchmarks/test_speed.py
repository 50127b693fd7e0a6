"""A part of the workloads under pytest-benchmark: pytest benchmarks.

--benchmark-autosave and --benchmark-compare hold two commits against each other.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .check import judge
from .measure import inputs_of
from .providers import COPY, EAGER_CHANNELS_LAST, EAGER_NCHW, OURS, copy_step, provider, step
from .workloads import Workload, catalogue, is_quick

WORKLOADS = [w for w in catalogue() if is_quick(w)]
THREADS = 2


@pytest.fixture(scope="module", autouse=True)
def threads() -> None:
    """That of python -m benchmarks by default."""
    torch.set_num_threads(THREADS)


@pytest.mark.parametrize("name", [COPY, EAGER_NCHW, EAGER_CHANNELS_LAST, OURS])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_speed(workload: Workload, name: str, benchmark: BenchmarkFixture) -> None:
    benchmark.group = workload.name
    benchmark.extra_info["minimal_bytes"] = workload.minimal_bytes
    inputs, dy = inputs_of(workload)
    if name == COPY:
        benchmark(copy_step(inputs))
        return
    who = provider(name, workload)
    verdict = judge(who, workload, inputs[0], dy)
    assert verdict.ok, f"wrong result: {verdict}"
    benchmark.extra_info["relative_error"] = verdict.y.relative
    benchmark(step(who, workload, inputs, dy))
