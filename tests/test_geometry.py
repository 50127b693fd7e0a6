"""Promise: fold, unfold and the matrices made of them are the axis' exact dense matrix and its transpose."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

from aablur.geometry import PADDING_MODES, Axis, binomial, code_bits

CSRC = Path(__file__).parent.parent / "csrc"
SOURCE = r"""
#include "cpu/plan.h"
using namespace aablur;

static Axis axis_of(const int64_t* a) {
  return {a[0], a[1], a[2], a[3], a[4], PaddingMode(a[5]), a[6], a[7], a[8]};
}
// The matrix (rows, columns) with weights[tap] at (row, source), and its interior.
static void densify(const Matrix& m, int64_t columns, const double* weights, double* out, int64_t* interior) {
  const Table table = m.table();
  const int64_t rows = m.rows + table.left_out.count();
  int64_t longest = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const Table::Row row = table.row(r);
    for (const Entry& e : row) {
      const int64_t source = row.source(e);
      if (source < 0 || source >= columns) { interior[0] = -1; return; }
      out[r * columns + source] += weights[e.tap];
    }
    longest = std::max<int64_t>(longest, row.last - row.first);
  }
  interior[0] = table.interior_begin, interior[1] = table.interior_end, interior[2] = rows;
  interior[3] = m.longest == longest;
}
extern "C" {
void sizes(const int64_t* a, int64_t* out) { out[0] = axis_of(a).pooled(), out[1] = axis_of(a).out(); }
void fold(const int64_t* a, int64_t low, int64_t high, int64_t* out) {
  for (int64_t p = low; p < high; ++p) out[p - low] = aablur::fold(axis_of(a), p);
}
// hits[i * (high - low) + p - low]: how often Unfolded(i) named p
void unfold(const int64_t* a, int64_t* hits) {
  const Axis axis = axis_of(a);
  const int64_t low = -axis.before, span = axis.pooled() + axis.after - low;
  for (int64_t i = 0; i < axis.pooled(); ++i)
    Unfolded<int64_t>(axis, i).each([&](int64_t p) {
      const bool inside = p >= low && p < low + span;
      hits[i * span + (inside ? p - low : 0)] += inside ? 1 : 1000;
    });
}
void readers(const int64_t* a, const double* weights, double* out) {
  const Axis axis = axis_of(a);
  for (int64_t i = 0; i < axis.pooled(); ++i)
    aablur::readers(axis, i, [&](int64_t o, int64_t tap) { out[i * axis.out() + o] += weights[tap]; });
}
void forward(const int64_t* a, const double* weights, double* out, int64_t* interior) {
  Arena arena;
  densify(blur_matrix(arena, axis_of(a)), axis_of(a).pooled(), weights, out, interior);
}
void backward(const int64_t* a, const double* weights, double* out, int64_t* interior) {
  Arena arena;
  densify(transposed_matrix(arena, axis_of(a)), axis_of(a).out(), weights, out, interior);
}
void binomials(int64_t k, double* out) {
  Arena arena;
  std::copy_n(binomial(arena, k), k, out);
}
int64_t bits(int64_t volume) { return code_bits(volume); }
void divisions(int64_t a, int64_t b, int64_t* out) {
  out[0] = floor_div(a, b), out[1] = ceil_div(a, b), out[2] = modulo(a, b);
}
}
"""


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("geometry")
    (folder / "geometry.cpp").write_text(SOURCE)
    library = folder / "geometry.so"
    flags = [
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-fsanitize=undefined",
        "-fno-sanitize-recover",
        "-static-libubsan",
    ]
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *flags, f"-I{CSRC}", "-o", str(library), str(folder / "geometry.cpp")], check=True)
    return ctypes.CDLL(str(library))


def pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


class Native:
    """One axis' numbers, from C++."""

    def __init__(self, library: ctypes.CDLL, size: int, axis: Axis, mode: str) -> None:
        self.library, self.axis = library, axis
        numbers = [size, axis.taps, axis.stride, axis.before, axis.after, PADDING_MODES.index(mode)]
        numbers += [axis.window, axis.window_padding, axis.window_dilation]
        self.numbers = np.array(numbers, dtype=np.int64)
        both = np.zeros(2, dtype=np.int64)
        library.sizes(pointer(self.numbers), pointer(both))
        self.pooled, self.out = map(int, both)

    def fold(self, low: int, high: int) -> np.ndarray:
        out = np.zeros(high - low, dtype=np.int64)
        self.library.fold(pointer(self.numbers), ctypes.c_int64(low), ctypes.c_int64(high), pointer(out))
        return out

    def unfold(self) -> np.ndarray:
        hits = np.zeros((self.pooled, self.pooled + self.axis.before + self.axis.after), dtype=np.int64)
        self.library.unfold(pointer(self.numbers), pointer(hits))
        return hits

    def matrix(self, name: str, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = (self.out, self.pooled) if name == "forward" else (self.pooled, self.out)
        out, interior = np.zeros(shape), np.full(4, -9, dtype=np.int64)
        more = () if name == "readers" else (pointer(interior),)
        getattr(self.library, name)(pointer(self.numbers), pointer(weights), pointer(out), *more)
        return out, interior


def axes() -> Iterator[tuple[int, Axis, str]]:
    """Sizes 1-20, taps 1-7, strides 1-4, all modes; pads from crops to several maps."""
    rng = random.Random(7)
    for mode, taps, stride, size in itertools.product(PADDING_MODES, range(1, 8), range(1, 5), range(1, 21)):
        pads = [((taps - 1) // 2, taps // 2)]
        for reach in (3, size, 3 * size + 5):
            pads.append((rng.randint(-size, reach), rng.randint(-size, reach)))
        for before, after in pads:
            axis = Axis(taps, stride, before, after)
            if axis.out_size(size) >= 1:
                yield size, axis, mode


AXES = list(axes())


def test_there_are_thousands_of_axes() -> None:
    assert len(AXES) > 6000
    assert sum(a.before > n for n, a, _ in AXES) > 500 < sum(a.before < 0 for n, a, _ in AXES)
    assert any(a.before > 2 * n and a.after < 0 for n, a, _ in AXES)


def test_fold_and_unfold(native: ctypes.CDLL) -> None:
    """fold is numpy's padding, unfold its inverse: every padded position once, none outside the padded map."""
    for size, axis, mode in AXES:
        c = Native(native, size, axis, mode)
        source = oracle.padded_indices(size, axis.before, axis.after, mode)
        assert (c.fold(-axis.before, size + axis.after) == source).all(), (size, axis, mode)
        assert (c.unfold() == (source == np.arange(size)[:, None])).all(), (size, axis, mode)


def test_matrices(native: ctypes.CDLL) -> None:
    """Rows are exact sums of distinct powers of two: a tap missing, doubled or swapped shows."""
    for size, axis, mode in AXES:
        c = Native(native, size, axis, mode)
        weights = 64.0 ** -np.arange(axis.taps)
        dense = oracle.dense_matrix(size, weights, axis.stride, axis.before, axis.after, mode)
        assert (c.pooled, c.out) == (size, len(dense)) == (axis.pooled_size(size), axis.out_size(size))
        forward, interior = c.matrix("forward", weights)
        assert (forward == dense).all(), (size, axis, mode)
        assert interior[2:].tolist() == [c.out, 1]
        backward, interior_back = c.matrix("backward", weights)
        assert (backward == dense.T).all(), (size, axis, mode)
        assert interior_back[2:].tolist() == [size, 1]
        assert (c.matrix("readers", weights)[0] == dense.T).all(), (size, axis, mode)


def test_interiors_are_shifted_copies(native: ctypes.CDLL) -> None:
    """Forward: row o is the taps at o * stride - before. Backward: row i + stride is row i, one output later."""
    for size, axis, mode in AXES:
        c = Native(native, size, axis, mode)
        weights = 64.0 ** -np.arange(axis.taps)
        forward, (begin, end, *_) = c.matrix("forward", weights)
        assert 0 <= begin <= end <= c.out
        for o in range(begin, end):
            start = o * axis.stride - axis.before
            assert start >= 0 and (forward[o, start : start + axis.taps] == weights).all(), (size, axis, mode)
            assert np.count_nonzero(forward[o]) == axis.taps
        backward, (begin, end, *_) = c.matrix("backward", weights)
        assert 0 <= begin <= end <= size
        for i in range(begin, end):
            reads = {
                (i + axis.before - t) // axis.stride: t
                for t in range(axis.taps)
                if (i + axis.before - t) % axis.stride == 0
            }
            assert all(0 <= o < c.out for o in reads), (size, axis, mode, i)
            row = np.zeros(c.out)
            for o, t in reads.items():
                row[o] = weights[t]
            assert (backward[i] == row).all(), (size, axis, mode, i)


def test_plain_axes_have_interiors(native: ctypes.CDLL) -> None:
    """All but the border's rows run on the fast path."""
    for mode, taps, stride in itertools.product(PADDING_MODES, range(1, 8), range(1, 5)):
        axis = Axis(taps, stride, (taps - 1) // 2, taps // 2)
        c = Native(native, 40, axis, mode)
        for name, rows, reach in (("forward", c.out, taps), ("backward", 40, 2 * taps + stride)):
            begin, end = c.matrix(name, np.ones(taps))[1][:2]
            assert end - begin >= rows - reach, (name, mode, taps, stride)


def test_sizes_with_windows(native: ctypes.CDLL) -> None:
    rng = random.Random(3)
    for _ in range(2000):
        n, window, dilation = rng.randint(1, 30), rng.randint(1, 7), rng.randint(1, 4)
        padding = rng.randint(0, (dilation * (window - 1) + 1) // 2)
        axis = Axis(
            rng.randint(1, 9), rng.randint(1, 5), rng.randint(-9, 9), rng.randint(-9, 9), window, padding, dilation
        )
        c = Native(native, n, axis, "zeros")
        assert (c.pooled, c.out) == (axis.pooled_size(n), axis.out_size(n)), (n, axis)
        starts = range(-padding, n + padding - dilation * (window - 1))
        assert c.pooled == len(starts) or len(starts) == 0 >= c.pooled


def test_binomials_codes_and_divisions(native: ctypes.CDLL) -> None:
    native.bits.restype, native.bits.argtypes = ctypes.c_int64, [ctypes.c_int64]
    for k in (*range(1, 60), 129, 1024):
        out = np.zeros(k)
        native.binomials(ctypes.c_int64(k), pointer(out))
        np.testing.assert_allclose(out, binomial(k), rtol=2e-13, atol=1e-320)
        if k < 60:
            np.testing.assert_allclose(oracle.binomial(k), binomial(k), rtol=1e-14)
    for volume in (*range(1, 300), 65534, 65535):
        assert native.bits(volume) == code_bits(volume) and volume <= 2 ** code_bits(volume)
    for a, b in itertools.product(range(-30, 31), range(1, 8)):
        out = np.zeros(3, dtype=np.int64)
        native.divisions(ctypes.c_int64(a), ctypes.c_int64(b), pointer(out))
        assert out.tolist() == [a // b, -(-a // b), a % b]
