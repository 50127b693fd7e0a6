"""The gate: no time is shown of a result that is wrong. float64 on the device, a few images at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pools import STRIDE
from .providers import BASELINES, OURS, TRITON, Maps, Step
from .rows import Row

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # of the largest magnitude
BASELINE_SLACK = 4  # a chain of ops rounds after each op
CHECKED = (OURS, TRITON, *BASELINES)
MOST_IMAGES = 8  # are judged: the first and the last of a batch


def _float64(x: Tensor, dy: Tensor, row: Row) -> Tensor:
    """The row's result in float64: y, or dx."""
    backward = row.direction == "backward"
    leaf = x.detach().double().requires_grad_(backward)
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64, device=x.device) / 4
    weight = torch.outer(taps, taps).repeat(x.shape[1], 1, 1, 1)
    pooled = F.max_pool2d(leaf, row.window, stride=1) if row.window > 1 else leaf
    y = F.conv2d(F.pad(pooled, (1, 1, 1, 1), mode="reflect"), weight, stride=STRIDE, groups=x.shape[1])
    return torch.autograd.grad(y, leaf, dy.double())[0] if backward else y.detach()


def error_of(row: Row, maps: Maps, step: Step) -> float:
    """The largest error over the largest magnitude; infinite for a wrong shape, dtype or a NaN.

    Freed blocks hold NaN when the step runs, so that what it leaves unwritten shows.
    """
    for n in (row.elements, row.elements // 4 + 1):
        torch.full((n,), torch.nan, dtype=row.dtype, device=maps.x.device)
    got = step().detach()
    images = min(MOST_IMAGES // 2, row.shape[0])
    worst = largest = 0.0
    for part in (slice(0, images), slice(row.shape[0] - images, None)):
        want = _float64(maps.x[part], maps.dy[part], row)
        if got[part].shape != want.shape or got.dtype != row.dtype:
            return float("inf")
        difference = float((got[part].double() - want).abs().max())
        worst = difference if difference > worst or difference != difference else worst
        largest = max(largest, float(want.abs().max()))
    return worst / largest if worst == worst else float("inf")


def is_right(name: str, row: Row, error: float) -> bool:
    return error <= TOLERANCES[row.dtype] * (1 if name in (OURS, TRITON) else BASELINE_SLACK)
