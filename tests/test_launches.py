"""Promise: Triton's launcher passes every kernel what it was compiled for, with no GPU to launch on."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import launches
import pytest

pytest.importorskip("triton", reason="Triton is not installed: it has no wheel for this machine")


def test_launches(tmp_path: Path) -> None:
    """On a driver that does nothing, but for keeping what it was given: kernel, grid, block, parameters."""
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here.parent, here)))
    environment = os.environ | {"PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    library = launches.build(tmp_path)
    done = subprocess.run(
        [sys.executable, launches.__file__, str(library)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counts = ast.literal_eval(done.stdout)
    assert len(counts) == 6 and all(counts.values()), counts
