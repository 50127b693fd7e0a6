"""Checks of which one fails in one rank, for `test_distributed`'s look at what it says."""

from __future__ import annotations

import torch
import torch.distributed as dist


def check_first() -> None:
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total == dist.get_world_size()


def check_second() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank 1 says no")
    dist.barrier()


def check_third() -> None:
    raise AssertionError("never reached")
