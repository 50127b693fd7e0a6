"""A part of the workloads under pytest-benchmark: pytest benchmarks.

--benchmark-autosave and --benchmark-compare hold two commits against each other.
"""

from itertools import cycle

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .check import judge
from .devices import device_of
from .measure import steps
from .providers import COPY, EAGER_CHANNELS_LAST, EAGER_NCHW, OURS, PROVIDERS, Provider
from .workloads import Workload, catalogue, is_quick

WORKLOADS = [w for w in catalogue("cpu") if is_quick(w, "cpu")]
TIMED = [who for who in PROVIDERS if who.name in (COPY, EAGER_NCHW, EAGER_CHANNELS_LAST, OURS)]
THREADS = 2


@pytest.fixture(scope="module", autouse=True)
def threads() -> None:
    """That of python -m benchmarks by default."""
    torch.set_num_threads(THREADS)


@pytest.mark.parametrize("who", TIMED, ids=lambda who: who.name)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_speed(workload: Workload, who: Provider, benchmark: BenchmarkFixture) -> None:
    benchmark.group = workload.name
    benchmark.extra_info["minimal_bytes"] = workload.minimal_bytes
    device = device_of("cpu")
    sets = [device.maps(workload, number) for number in range(device.sets(workload))]
    call = who.build(workload, device.where)
    if who.slack:
        verdict = judge(who, call, workload, sets[0], device)
        assert verdict.ok and verdict.y, f"wrong result: {verdict}"
        benchmark.extra_info["relative_error"] = verdict.y.relative
    turn = cycle(steps(who, call, workload, sets))
    benchmark(lambda: next(turn)())
