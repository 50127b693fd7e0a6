"""The hot CUDA kernels by themselves, compiled for any architecture."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"


def compile_hot(nvcc: str, target: Path, architecture: int) -> str:
    """Compiles hot_kernels.cu; returns what ptxas says."""
    command = [nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{CSRC}", f"-arch=sm_{architecture}"]
    command += ["-cubin", "-Xptxas", "-v"]
    source = [str(HERE / "hot_kernels.cu"), "-o", str(target)]
    done = subprocess.run([*command, *source], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout + done.stderr
