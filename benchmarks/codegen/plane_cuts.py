"""How the hot GPU kernels cut planes (csrc/gpu/band_planes.h, max_planes.h), and how often their loops then turn."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
KERNELS = ("BandPlanes", "BandBackwardPlanes", "MaxBlurPlanes", "MaxBackwardPlanes")
INPUT_BYTES = 128 << 20  # of the maps that are cut


@dataclass(frozen=True)
class Cut:
    """What a block of a kernel takes of square planes: 3 taps, stride 2, windows of 2."""

    threads: int
    planes: int
    rows: int  # groups of rows of the result
    segment: int  # of them, that a thread takes at a time
    strips: int  # of columns, a thread each
    elements_in: int
    elements_out: int
    shared_bytes: int  # bytes of shared memory


@contextmanager
def cutter() -> Iterator[ctypes.CDLL]:
    """plane_cuts.cpp, compiled for the host."""
    with TemporaryDirectory() as folder:
        library = Path(folder, "cuts.so")
        command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(library)]
        subprocess.run([*command, f"-I{CSRC}", str(HERE / "plane_cuts.cpp")], check=True)
        yield ctypes.CDLL(str(library))


def cut_of(library: ctypes.CDLL, kernel: str, itemsize: int, side: int, planes: int | None = None) -> Cut:
    """Of planes of side x side, by default as many as INPUT_BYTES hold."""
    numbers = (ctypes.c_int64 * 8)()
    count = planes or INPUT_BYTES // (side * side * itemsize)
    if not library.cut(KERNELS.index(kernel), itemsize, ctypes.c_int64(count), ctypes.c_int64(side), numbers):
        raise ValueError(f"kernel: no planes are cut for {kernel}")
    return Cut(*numbers)


def elements(kernel: str, cut: Cut) -> int:
    """Of the larger map that a block takes."""
    return cut.elements_out if "Backward" in kernel else cut.elements_in
