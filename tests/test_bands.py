"""Promise: the GPU's bands (csrc/core/bands.h) are the matrices of the blur and its transpose, at every border."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import aablur

ROOT = Path(__file__).resolve().parent.parent
MODES = ("zeros", "reflect", "replicate", "circular")  # as csrc/core/axis.h numbers them


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("bands") / "bands.so"
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(made)]
    subprocess.run([*command, f"-I{ROOT / 'csrc'}", str(ROOT / "tests/bands.cpp")], check=True)
    library = ctypes.CDLL(str(made))
    library.band.restype, library.segment.restype = ctypes.c_bool, ctypes.c_int64
    library.segment.argtypes = [ctypes.c_int64] * 3
    return library


def band(
    library: ctypes.CDLL, size: int, taps: Tensor, stride: int, pads: tuple[int, int], mode: str, backward: bool
) -> Tensor | None:
    """The matrix by the band, (results, sources); None where the axis has none."""
    outputs = (size + sum(pads) - len(taps)) // stride + 1
    matrix = torch.zeros((size, outputs) if backward else (outputs, size), dtype=torch.float64)
    known = library.band(
        *map(ctypes.c_int64, (size, len(taps), stride, *pads)), MODES.index(mode), ctypes.c_bool(backward),
        ctypes.c_void_p(taps.data_ptr()), ctypes.c_void_p(matrix.data_ptr()),
    )  # fmt: skip
    return matrix if known else None


def axes() -> Iterator[tuple[int, int, int, tuple[int, int], str]]:
    pads = ((0, 0), (1, 1), (1, 2), (2, 1), (3, 3), (-1, 1), (2, -3))
    for taps, stride, (before, after), mode in itertools.product(range(2, 8), (1, 2, 4), pads, MODES):
        for size in (taps, taps + 1, 13, 40):
            if size + before + after >= taps and (mode != "reflect" or max(before, after) < size):
                yield size, taps, stride, (before, after), mode


def test_bands_are_the_matrices(library: ctypes.CDLL) -> None:
    known = {False: 0, True: 0}
    every = list(axes())
    for size, taps, stride, pads, mode in every:
        weights = torch.arange(1, taps + 1, dtype=torch.float32)  # sums of integers are exact
        with aablur.backend("reference"):
            expected = aablur.blur_pool1d(
                torch.eye(size, dtype=torch.float64)[:, None], weights.double(), stride=stride, padding=(pads,),
                padding_mode=mode,
            )[:, 0].T  # fmt: skip
        for backward in (False, True):
            matrix = band(library, size, weights, stride, pads, mode, backward)
            if matrix is not None:
                known[backward] += 1
                assert torch.equal(matrix, expected.T if backward else expected), (
                    size,
                    taps,
                    stride,
                    pads,
                    mode,
                    backward,
                )
    # The rest has results that need what is not near: those of small maps above all.
    assert min(known.values()) > 0.6 * len(every)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", range(2, 8))
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("size", [7, 14, 56, 57])
def test_the_pads_of_networks_have_bands(library: ctypes.CDLL, mode: str, taps: int, stride: int, size: int) -> None:
    same = ((taps - 1) // 2, taps // 2)
    for backward in (False, True):
        if backward and stride == 4 and (taps > 4 or taps % 2 == 0):  # more weights a group than 8
            continue
        if (
            backward and mode == "circular" and (size % stride or taps % 2 == 0)
        ):  # read from the other end at other phases
            continue
        assert band(library, size, torch.ones(taps), stride, same, mode, backward) is not None, backward


def test_segments_fill_the_card_and_are_long_where_it_is_full(library: ctypes.CDLL) -> None:
    segment = library.segment
    for groups, threads_a_row, multiprocessors in itertools.product((1, 3, 28, 56), (32, 1000, 10**6), (1, 40, 132)):
        rows = segment(groups, threads_a_row, multiprocessors)
        assert 1 <= rows <= 8
        segments = -(-groups // rows)
        wanted = multiprocessors * 1024 // threads_a_row
        assert segments >= min(groups, wanted) / 2  # whole segments
    assert segment(28, 14 * 32, 132) == 1  # a map of 56 px and 256 channels, alone on an H100
    assert segment(28, 41 * 14 * 32, 132) > 2
