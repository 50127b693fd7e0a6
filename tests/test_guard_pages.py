"""Promise: no kernel reads beyond a map, on either side, however narrow it is (guarded.py, in a process of its own)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from isas import available

TESTS = Path(__file__).parent


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(TESTS.parent)} | env
    return subprocess.run([sys.executable, *command], env=env, cwd=TESTS, capture_output=True, text=True)


@pytest.mark.parametrize("isa", available())
def test_nothing_is_read_beyond_a_map(isa: str) -> None:
    done = run("guarded.py", AABLUR_CPU_ISA=isa)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert int(done.stdout) > 6000


@pytest.mark.parametrize(("index", "at_end"), [("64", True), ("-1", False)])
def test_a_read_beyond_does_end_the_process(index: str, at_end: bool) -> None:
    code = (
        f"import ctypes, torch; from guarded import Guarded; x = Guarded(64).take(64, torch.uint8, {at_end}); "
        f"print(ctypes.c_char.from_address(x.data_ptr() + {index}))"
    )
    assert run("-c", code).returncode < 0
