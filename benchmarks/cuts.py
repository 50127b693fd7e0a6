"""How the hot GPU kernels cut planes (csrc/gpu_planes.h), and how often their loops then turn."""

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

ROOT = Path(__file__).resolve().parent.parent
THREADS, WARP, AT_ONCE = 128, 32, 4  # threads of a block and of a warp, what a copy does in one turn
KERNELS = ("BlurPlanes", "BlurBackwardPlanes", "MaxBlurPlanes", "MaxBackwardPlanes")
INPUT_BYTES = 128 << 20  # of the maps that are cut


@dataclass(frozen=True)
class Cut:
    """What a block of a kernel takes of square planes: 3 taps, stride 2, windows of 2."""

    planes: int
    rows: int  # of the result
    segment: int  # rows that a thread takes at a time
    strips: int  # of columns, a thread each
    elements_in: int
    elements_out: int
    table: int  # what a block sets up for its borders
    pool_strips: int  # the same of the map of maxima
    pool_segment: int
    code_bytes: int
    room: int  # bytes of shared memory


@contextmanager
def cutter() -> Iterator[ctypes.CDLL]:
    """csrc/cuts.cpp, compiled for the host."""
    with TemporaryDirectory() as folder:
        library = Path(folder, "cuts.so")
        command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(library)]
        subprocess.run([*command, str(ROOT / "csrc/cuts.cpp")], check=True)
        yield ctypes.CDLL(str(library))


def cut_of(library: ctypes.CDLL, kernel: str, itemsize: int, side: int, planes: int | None = None) -> Cut:
    """Of planes of side x side, by default as many as INPUT_BYTES hold."""
    numbers = (ctypes.c_int64 * 11)()
    count = planes or INPUT_BYTES // (side * side * itemsize)
    if not library.cut(KERNELS.index(kernel), itemsize, ctypes.c_int64(count), ctypes.c_int64(side), numbers):
        raise ValueError(f"kernel: no planes are cut for {kernel}")
    return Cut(*numbers)


def _turns(count: int, at_once: int = 1) -> float:
    """Turns of a loop over `count` of something, of all threads of a block together over the number of threads: every
    thread takes every THREADS-th, warps that have none leave."""
    done, step = 0.0, THREADS * at_once
    for begin in range(0, count, step):
        done += min(THREADS, math.ceil((count - begin) / WARP) * WARP) / THREADS
    return done


def turns(kernel: str, itemsize: int, side: int, cut: Cut) -> Sequence[float | tuple[float, Sequence[float]]]:
    """Turns of the kernel's loops in their order; of one that has loops inside, with theirs in each of its turns."""
    per_vector = 16 // itemsize
    copy_in, copy_out = (_turns(n // per_vector, AT_ONCE) for n in (cut.elements_in, cut.elements_out))
    segments = math.ceil(cut.rows / cut.segment)
    items, rows = _turns(cut.planes * segments * cut.strips), cut.rows / segments
    if kernel == "BlurPlanes":
        return [copy_in, _turns(cut.table), (items, [rows]), copy_out]
    if kernel == "BlurBackwardPlanes":  # two rows at a time, and what is left of a plane
        return [copy_in, _turns(cut.table), (items, [rows / 2, 1 / segments]), copy_out]
    if kernel == "MaxBackwardPlanes":  # one turn of two rows more, for the rows of maxima above
        codes = _turns(cut.code_bytes // 16, AT_ONCE)
        return [copy_in, codes, _turns(cut.table), (items, [rows / 2 + 1, 1 / segments]), copy_out]
    pooled = cut.elements_in // cut.planes // side - 1
    pool_segments = math.ceil(pooled / cut.pool_segment)
    pool = (_turns(cut.planes * pool_segments * cut.pool_strips), [math.ceil(pooled / pool_segments / 2)])
    clear, pack = _turns(cut.code_bytes * 4 // 16), _turns(cut.code_bytes, AT_ONCE)
    codes_out = _turns(cut.code_bytes // 16, AT_ONCE)
    return [copy_in, _turns(cut.table), clear, pool, (items, [rows]), pack, copy_out, codes_out]


def elements(kernel: str, cut: Cut) -> int:
    """Of the larger map that a block takes."""
    return cut.elements_out if "Backward" in kernel else cut.elements_in
