"""Promise: DDP, FSDP2 and DTensor, sharded in any way, give what one process gives: tried in 2 and in 4 processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import ranks
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")
ROOT = Path(__file__).parent.parent
MODULES = ("distributed_checks", "spatial_checks")


@lru_cache(maxsize=2)
def outcomes(world: int) -> dict[str, str]:
    return ranks.start(MODULES, world, limit=240)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("check", ranks.names(*MODULES))
def test_in_processes(world: int, check: str) -> None:
    said = outcomes(world)[check]
    assert not said, said


def test_the_example_of_the_docs() -> None:
    """The command of docs/distributed.md, for 2 processes."""
    command = "torchrun --standalone --nproc-per-node 2 docs/examples/spatial.py"
    assert command in (ROOT / "docs" / "distributed.md").read_text()
    arguments = [sys.executable, "-m", "torch.distributed.run", *command.split()[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for rank, rows in ((0, 514), (1, 513)):
        assert f"rank {rank}: {rows} of 1027 rows in, 43 of 86 rows out" in done.stdout
    found = re.findall(r"largest difference, [\w ,]+: (\S+)", done.stdout)
    assert len(found) == 3 and all(float(value) < 1e-6 for value in found), done.stdout


def test_failures_are_brought_home() -> None:
    """The traceback of the rank that failed, and no wait for those that would wait for it."""
    said = ranks.start(("failing_checks",), 2, limit=60)
    assert said["failing_checks.check_first"] == ""
    assert (
        "rank 1:" in said["failing_checks.check_second"]
        and "ValueError: rank 1 says no" in said["failing_checks.check_second"]
    )
    assert said["failing_checks.check_third"].startswith("not finished by ranks")


def test_importing_aablur_leaves_dtensor_alone() -> None:
    code = "import sys, aablur; print([m for m in sys.modules if m.startswith('torch.distributed.tensor')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
