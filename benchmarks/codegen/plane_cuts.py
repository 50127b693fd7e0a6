"""How the hot GPU kernels cut planes (csrc/gpu/smem_planes.h), and how often their loops then turn."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
WARP, AT_ONCE = 32, 4  # threads of a warp, what a copy does in one turn
KERNELS = ("BlurPlanes", "BlurBackwardPlanes", "MaxBlurPlanes", "MaxBackwardPlanes")
INPUT_BYTES = 128 << 20  # of the maps that are cut


@dataclass(frozen=True)
class Cut:
    """What a block of a kernel takes of square planes: 3 taps, stride 2, windows of 2."""

    threads: int
    planes: int
    rows: int  # of the result
    segment: int  # rows that a thread takes at a time
    strips: int  # of columns, a thread each
    elements_in: int
    elements_out: int
    table: int  # what a block sets up for its borders
    code_bytes: int
    room: int  # bytes of shared memory

    def turns(self, count: int, at_once: int = 1) -> float:
        """Of a loop over `count` of something, of all threads of a block together over their number: every thread takes
        every threads-th, warps that have none leave.
        """
        done, step = 0.0, self.threads * at_once
        for begin in range(0, count, step):
            done += min(self.threads, math.ceil((count - begin) / WARP) * WARP) / self.threads
        return done


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
    numbers = (ctypes.c_int64 * 10)()
    count = planes or INPUT_BYTES // (side * side * itemsize)
    if not library.cut(KERNELS.index(kernel), itemsize, ctypes.c_int64(count), ctypes.c_int64(side), numbers):
        raise ValueError(f"kernel: no planes are cut for {kernel}")
    return Cut(*numbers)


def _adjoint_turns(cut: Cut, side: int, outputs: int, above: int) -> list[float]:
    """Of an adjoint's loops over two rows at a time: over rows whose next output is there, and what a plane has left;
    segments that do not begin one have `above` rows more. A warp has threads of all segments of a band: it turns as
    often as the one with most.
    """
    bands = []
    for top in range(0, side, cut.rows):
        loops = []
        for first in range(top, min(top + cut.rows, side), cut.segment):
            begin = first - above if first else 0
            rows = min(first + cut.segment, side) - begin
            whole = min(rows // 2, outputs - begin // 2 - 1)
            loops.append((whole, math.ceil((rows - 2 * whole) / 2)))
        bands.append([max(turns) for turns in zip(*loops, strict=True)])
    return [sum(turns) / len(bands) for turns in zip(*bands, strict=True)]


def turns(kernel: str, itemsize: int, side: int, cut: Cut) -> Sequence[float | tuple[float, Sequence[float]]]:
    """Turns of the kernel's loops in their order; of one that has loops inside, with theirs in each of its turns."""
    per_vector = 16 // itemsize
    copy_in, copy_out = (cut.turns(n // per_vector, AT_ONCE) for n in (cut.elements_in, cut.elements_out))
    codes, table = cut.turns(cut.code_bytes // 16, AT_ONCE), cut.turns(cut.table)
    segments = math.ceil(cut.rows / cut.segment)
    items = cut.turns(cut.planes * segments * cut.strips)
    if kernel == "BlurBackwardPlanes":
        return [copy_in, table, (items, _adjoint_turns(cut, side, (side + 1) // 2, 0)), copy_out]
    if kernel == "MaxBackwardPlanes":
        return [copy_in, codes, table, (items, _adjoint_turns(cut, side, side // 2, 2)), copy_out]
    forward = [copy_in, table, (items, [cut.rows / segments]), copy_out]
    return forward if kernel == "BlurPlanes" else [*forward, codes]


def elements(kernel: str, cut: Cut) -> int:
    """Of the larger map that a block takes."""
    return cut.elements_out if "Backward" in kernel else cut.elements_in
