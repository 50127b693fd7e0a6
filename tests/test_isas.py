"""Promise: every instruction set of this processor passes the same cases (test_correct.py, in a process of its own)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from isas import available

from aablur import backends

TESTS = Path(__file__).parent


def run(isa: str, *command: str) -> str:
    env = os.environ | {"AABLUR_CPU_ISA": isa}
    done = subprocess.run([sys.executable, *command], env=env, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_the_best_is_chosen() -> None:
    assert os.environ.get("AABLUR_CPU_ISA") or backends.cpu_isa() == available()[-1]


@pytest.mark.parametrize("isa", available())
def test_isa(isa: str) -> None:
    """The one that this process has is judged by test_correct.py itself."""
    assert run(isa, "-c", "import aablur; print(aablur.info().cpu_isa)").strip() == isa
    if isa != backends.cpu_isa():
        cases = ["-m", "pytest", str(TESTS / "test_correct.py"), "-q", "-x", "-k", "native", "-p", "no:cacheprovider"]
        run(isa, *cases)
