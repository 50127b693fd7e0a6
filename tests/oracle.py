"""An independent judge in float64, from the definition: max, pad, correlate, keep every stride-th.

Borders come from numpy's own padding of an index array, the max from a loop over its window. It shares nothing with
aablur, and torch's autograd differentiates it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def binomial(k: int) -> np.ndarray:
    row = np.ones(1)
    for _ in range(k - 1):
        row = np.convolve(row, [0.5, 0.5])
    return row


def padded_indices(n: int, before: int, after: int, mode: str) -> np.ndarray:
    """Source index of each padded position; -1 is zero padding. Negative pads crop."""
    if before > 10**6 and after < -before // 2:  # all lies far before: elsewhere in the same period, or in the pads
        nearer = (before - 10**3) // (2 * n * (n - 1) or 1) * (2 * n * (n - 1) or 1)
        before, after = before - nearer, after + nearer
        assert n + after < 0
    extra = {"constant_values": -1} if mode == "zeros" else {}
    wide = np.pad(np.arange(n), (max(before, 0), max(after, 0)), mode=NUMPY_MODES[mode], **extra)
    return wide[max(-before, 0) : len(wide) - max(-after, 0)]


def dense_matrix(n: int, taps: np.ndarray, stride: int, before: int, after: int, mode: str) -> np.ndarray:
    """One axis as a matrix (out, n)."""
    source = padded_indices(n, before, after, mode)
    starts = range(0, len(source) - len(taps) + 1, stride)
    matrix = np.zeros((len(starts), n + 1))
    for o, start in enumerate(starts):
        np.add.at(matrix[o], source[start : start + len(taps)], taps)
    return matrix[:, :n]  # -1 fell into the last column


def max_indices(x: Tensor, window: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Flat spatial index of each maximum, (images, channels, *pooled): the first wins a tie, the last NaN of all."""
    size = x.shape[2:]
    pooled = [n + 2 * p - d * (w - 1) for n, w, p, d in zip(size, window, padding, dilation, strict=True)]
    flat = x.flatten(2)
    best = torch.full((*x.shape[:2], int(np.prod(pooled))), -1)
    value = torch.full(best.shape, -torch.inf, dtype=x.dtype)
    for offsets in itertools.product(*map(range, window)):
        grid = np.ix_(
            *[np.arange(q) - p + o * d for q, p, o, d in zip(pooled, padding, offsets, dilation, strict=True)]
        )
        inside = np.ones(pooled, dtype=bool)
        index = np.zeros(pooled, dtype=np.int64)
        for n, g in zip(size, grid, strict=True):
            inside &= (g >= 0) & (g < n)
            index = index * n + np.clip(g, 0, n - 1)
        at = torch.from_numpy(index).flatten().expand(best.shape)
        candidate = flat.gather(2, at)
        wins = torch.from_numpy(inside).flatten() & ((best < 0) | (candidate > value) | candidate.isnan())
        best, value = torch.where(wins, at, best), torch.where(wins, candidate, value)
    return best.unflatten(2, pooled)


def blur(x: Tensor, taps: Sequence[Tensor], stride: Sequence[int], pads: Sequence[Sequence[int]], mode: str) -> Tensor:
    """x (images, channels, spatial...) blurred with taps (1 or channels, k) an axis."""
    for i, (t, s, (before, after)) in enumerate(zip(taps, stride, pads, strict=True)):
        dim, n = 2 + i, x.shape[2 + i]
        source = torch.from_numpy(padded_indices(n, before, after, mode).copy())
        zero = x.new_zeros([1 if d == dim else m for d, m in enumerate(x.shape)])
        padded = torch.cat([x, zero], dim).index_select(dim, torch.where(source < 0, n, source))
        windows = padded.unfold(dim, t.shape[-1], s)  # (images, channels, spatial..., k)
        x = (windows * t.reshape(1, -1, *[1] * (x.ndim - 2), t.shape[-1])).sum(-1)
    return x


def blur_pool(
    x: Tensor, taps: Sequence[Tensor], stride: Sequence[int], pads: Sequence[Sequence[int]], mode: str,
    window: Sequence[int] | None = None, padding: Sequence[int] = (), dilation: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """The (max-)blur pool of x (images, channels, spatial...), float64."""
    if window is not None:
        best = max_indices(x.detach(), window, padding, dilation)
        x = x.flatten(2).gather(2, best.flatten(2)).unflatten(2, best.shape[2:])
    return blur(x, taps, stride, pads, mode)
