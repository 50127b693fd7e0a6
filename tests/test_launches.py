"""Promise: Triton's launcher passes every kernel what it was compiled for, with no GPU to launch on."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: it has no wheel for this machine")

from benchmarks.codegen import interpreter


def test_launches(tmp_path: Path) -> None:
    """On a driver that executes what it is given, and keeps kernel, grid, block and parameters."""
    here = Path(__file__).parent
    environment = interpreter.environment() | {
        "PYTHONPATH": os.pathsep.join(map(str, (here.parent, here))), "TRITON_CACHE_DIR": str(tmp_path / "cache"),
    }  # fmt: skip
    done = subprocess.run([sys.executable, here / "launches.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stdout)
    assert len(counts) == 6 and all(counts.values()), counts
