from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: waiting threads leave the cores to others

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", max_examples=600, deadline=None, derandomize=True)
settings.register_profile("wide", max_examples=5000, deadline=None)
settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)


def _poison(value: float) -> None:
    """Leaves freed blocks full of `value` for the next allocations of the sizes that small cases have."""
    blocks = [torch.full((2**p + 16,), value, dtype=torch.float32) for p in range(4, 15) for _ in range(2)]
    del blocks


@pytest.fixture(autouse=True)
def same_state() -> Iterator[None]:
    """Seeds, thread count and NaN in freed memory: what a test leaves behind, the next does not meet."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    _poison(torch.nan)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
