"""Promise: the C++ program of docs/torch.md is built by the commands there, opens the library and calls an op."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aablur
from aablur import backends

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
@pytest.mark.skipif(not backends.has_native(), reason="there is no native library")
def test_the_example(tmp_path: Path) -> None:
    (commands,) = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "torch.md").read_text(), re.M | re.S)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = os.environ | {"PATH": paths, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-ec", f"{commands}\n! ./blur /nonexistent"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "usage: blur LIBRARY\n/nonexistent: cannot open" in done.stderr
    rows = [list(map(float, line.split())) for line in done.stdout.splitlines() if re.match(r"^[ \d.e+-]+$", line)]
    expected = aablur.blur_pool2d(torch.arange(24.0).reshape(1, 1, 4, 6))
    torch.testing.assert_close(torch.tensor(rows), expected[0, 0])
