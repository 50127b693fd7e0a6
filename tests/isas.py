"""The instruction sets that the CPU kernels may use here."""

from __future__ import annotations

import platform
from pathlib import Path

NEEDS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "bmi2", "f16c"},
    "avx512": {"avx2", "fma", "bmi2", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq"},
}


def available() -> list[str]:
    """From the kernel's own list, not the library's."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["portable"]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next(line for line in lines if line.startswith("flags")).split())
    return [isa for isa, needs in NEEDS.items() if needs <= flags]
