"""How far a result may lie from the oracle's: |actual - expected| <= absolute * magnitude + relative * |expected|.

The magnitude of a sum is the sum of its terms' absolute values: what rounding errors grow with when terms cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 20  # terms, along all axes
TOLERANCES = {  # dtype: (absolute, relative); the worst of all cases is a fourth of it
    torch.float64: (2e-15, 0.0),  # a few roundings of 2**-53 along each axis
    torch.float32: (1e-6, 0.0),  # the same of 2**-24
    torch.bfloat16: (1e-6, 2**-8 * 1.0001),  # float32's sums, rounded once to 8 bits
    torch.float16: (1e-6, 2**-11 * 1.0001),  # float32's sums, rounded once to 11 bits
}
SMALLEST = {torch.float16: 2**-25}  # half of float16's last subnormal step
TAPS_ABSOLUTE = {
    torch.float64: 1e-14,  # sums over whole maps
    torch.float32: 2e-6,  # the same, in float32 by the reference
    torch.bfloat16: 2e-6,  # float32's sums, rounded once, as above
    torch.float16: 2e-6,
}


def largest(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def assert_close(
    actual: Tensor,
    expected: Tensor,
    dtype: torch.dtype | None = None,
    *,
    magnitude: Tensor | None = None,
    taps: bool = False,
    terms: int = 0,
) -> None:
    """What is not finite must be equal.

    Args:
        actual: what is judged.
        expected: the oracle's, float64.
        dtype: the dtype that sums were taken in and results rounded to; that of `actual` by default.
        magnitude: of each number expected; by default, four times the largest of them all.
        taps: a gradient of taps.
        terms: added up, one after the other, where they are more than what TOLERANCES is for.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    dtype = dtype or actual.dtype
    absolute, relative = TOLERANCES[dtype]
    if taps:
        absolute = TAPS_ABSOLUTE[dtype]
    absolute *= max(1, terms / FEW)
    actual, expected, smallest = actual.double(), expected.double(), SMALLEST.get(actual.dtype, 0)
    magnitude = torch.full_like(expected, 4 * largest(expected)) if magnitude is None else magnitude
    allowed = absolute * magnitude + relative * expected.abs() + smallest
    right = (actual == expected) | (actual.isnan() & expected.isnan())
    right |= expected.isfinite() & ((actual - expected).abs() <= allowed.nan_to_num(0, 0, 0))
    if not right.all():
        where = tuple((~right).nonzero()[0].tolist())
        raise AssertionError(
            f"{int((~right).sum())} of {right.numel()} differ, first at {where}: {float(actual[where])} for "
            f"{float(expected[where])} (allowed {float(allowed[where])})"
        )
