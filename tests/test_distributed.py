"""Promise: DDP, FSDP2 and DTensor, sharded in any way, give what one process gives: tried in 2 and in 4 processes."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import ranks
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")
ROOT = Path(__file__).parent.parent


@lru_cache(maxsize=2)
def outcomes(world: int) -> dict[str, str]:
    return ranks.start("distributed_checks", world, limit=240)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("check", ranks.names("distributed_checks"))
def test_in_processes(world: int, check: str) -> None:
    said = outcomes(world)[check]
    assert not said, said
