"""Promise: the GPU's blocks of planes fit shared memory, fill their threads, and cover every plane."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from benchmarks.codegen import plane_cuts

MOST_SHARED_BYTES = 48 << 10  # bytes of shared memory that a block has without asking


@pytest.fixture(scope="module")
def library() -> Iterator[ctypes.CDLL]:
    with plane_cuts.cutter() as made:
        yield made


each_kernel = pytest.mark.parametrize("kernel", plane_cuts.KERNELS)
each_size = pytest.mark.parametrize("itemsize", [2, 4])


@each_kernel
@each_size
@pytest.mark.parametrize("count", [1, 600, 5000, 10**7])
def test_blocks_fit_and_cover(library: ctypes.CDLL, kernel: str, itemsize: int, count: int) -> None:
    for side in range(3, 400):
        cut = plane_cuts.cut_of(library, kernel, itemsize, side, count)
        # Groups: a row of the result; backward two, of which the first begins before the map.
        groups = side // 2 + 1 if "Backward" in kernel else (side - kernel.startswith("Max") + 1) // 2
        if cut.shared_bytes == 0:  # left to other kernels
            assert side * side * itemsize > MOST_SHARED_BYTES
            continue
        assert 0 < cut.shared_bytes <= MOST_SHARED_BYTES
        assert cut.rows == groups or (cut.planes == 1 and cut.rows % cut.segment == 0 and cut.rows < groups)
        assert cut.segment <= cut.rows + 1 and 1 <= cut.planes <= max(1, -(-count // 512))
        assert (cut.elements_in + cut.elements_out) * itemsize <= cut.shared_bytes


@each_kernel
@each_size
@pytest.mark.parametrize("side", [7, 14, 28, 55, 57, 113])
def test_blocks_of_many_planes_are_large(library: ctypes.CDLL, kernel: str, itemsize: int, side: int) -> None:
    """Enough for what a block sets up to be little beside it; whole vectors where that costs nothing."""
    cut = plane_cuts.cut_of(library, kernel, itemsize, side)
    assert plane_cuts.elements(kernel, cut) >= 5000 // (itemsize // 2 * (2 if kernel.startswith("Max") else 1))
    assert cut.planes <= 16 or cut.planes % 8 == 0


def test_a_few_planes_are_spread(library: ctypes.CDLL) -> None:
    assert plane_cuts.cut_of(library, "BandPlanes", 2, 7, 512).planes == 1
    assert plane_cuts.cut_of(library, "BandPlanes", 2, 7, 512 * 8).planes <= 8
    assert plane_cuts.cut_of(library, "BandPlanes", 2, 7, 10**6).planes > 100
