"""The judge: float64 results in plain torch, tolerances, and what a call saves for backward."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .photos import feature_map
from .pools import STRIDE
from .providers import COMPILE, OURS, Provider, outputs
from .workloads import DTYPES, Workload

# Largest error allowed, as a fraction of the largest magnitude of the float64 result.
TOLERANCES = {
    "float32": (2e-6, "some twenty roundings of 2**-24 in the sums of 9 taps and 4 windows"),
    "bfloat16": (2**-8, "sums in float32, then one rounding of at most 2**-9"),
}
BASELINE_SLACK = 4  # a chain of ops rounds after each op, and its pad adds in the dtype itself
CHUNK = 1 << 20  # elements at a time: float64 copies of a whole batch would be large


@dataclass(frozen=True)
class Reference:
    """float64 results for one op on one input; shared by its layouts and passes."""

    dy: Tensor  # in the dtype of the row, contiguous
    y: Tensor
    dx: Tensor


def float64_op(x: Tensor, window: int) -> Tensor:
    """max at stride 1, reflect pad of the pooled map, binomial blur, each a torch function."""
    if window > 1:
        x = F.max_pool2d(x, window, stride=1)
    row = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    weight = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, None, STRIDE, 0, 1, x.shape[1])


def _images(shape: Sequence[int]) -> int:
    return max(1, CHUNK // math.prod(shape[1:]))


@lru_cache(maxsize=1)  # a catalogue keeps the rows of one reference together
def _reference(
    window: int, dtype_name: str, shape: tuple[int, int, int, int], out: tuple[int, int, int, int]
) -> Reference:
    dtype = DTYPES[dtype_name]
    x = feature_map(shape).to(dtype)
    dy = torch.randn(out, generator=torch.Generator().manual_seed(0)).to(dtype)
    ys, dxs = [], []
    images = _images(shape)
    for x_part, dy_part in zip(x.split(images), dy.split(images), strict=True):
        leaf = x_part.double().contiguous(memory_format=torch.channels_last).requires_grad_()
        y = float64_op(leaf, window)
        ys.append(y.detach().contiguous())
        dxs.append(torch.autograd.grad(y, leaf, dy_part.double())[0].contiguous())
    return Reference(dy, torch.cat(ys), torch.cat(dxs))


def reference(workload: Workload) -> Reference:
    return _reference(workload.window, workload.dtype_name, workload.shape, workload.out_shape)


@contextmanager
def poisoned(sizes: tuple[int, ...], fill: bool) -> Iterator[None]:
    """Fresh memory holds NaN: freed blocks do, and what torch.empty hands out if `fill`.

    The fill is part of the deterministic mode, which torch.compile guards on (it would compile
    again for the timing), so a compiled call gets the freed blocks alone.
    """
    was_on = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(fill or was_on, warn_only=True)
    for size in sizes:
        torch.full((size,), 0xFF, dtype=torch.uint8)  # all ones is a NaN in every float dtype
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warned)


@dataclass(frozen=True)
class Error:
    absolute: float
    relative: float  # to the largest magnitude of the float64 result


def error(got: Tensor, want: Tensor) -> Error:
    """Largest difference; infinite where a NaN or a wrong shape makes it undefined."""
    if got.shape != want.shape:
        return Error(float("inf"), float("inf"))
    images = _images(want.shape)
    parts = zip(got.detach().contiguous().split(images), want.split(images), strict=True)
    worst = float(torch.stack([g.double().sub_(w).abs_().max() for g, w in parts]).max())
    worst = float("inf") if math.isnan(worst) else worst
    return Error(worst, worst / float(want.abs().max()))


@dataclass(frozen=True)
class Verdict:
    """How far a provider's result is from float64, and what it keeps for its backward."""

    ok: bool
    y: Error
    dx: Error | None = None
    saved_bytes: int | None = None


def judge(who: Provider, workload: Workload, x: Tensor, dy: Tensor) -> Verdict:
    """Call a provider once on poisoned memory and compare; the call is its first warm-up."""
    truth = reference(workload)
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    compiled = who.name == COMPILE
    sizes = (workload.input_bytes, truth.dy.nbytes, workload.input_bytes // 16)
    with poisoned(sizes, fill=not compiled):
        if workload.backward and not compiled:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                y, dx = outputs(who.call, x, dy, workload)
        else:
            y, dx = outputs(who.call, x, dy, workload)
    for constant in who.constants:
        storages.pop(constant.untyped_storage().data_ptr(), None)

    y_error = error(y, truth.y)
    dx_error = error(dx, truth.dx) if dx is not None else None
    tolerance = TOLERANCES[workload.dtype_name][0] * (1 if who.name == OURS else BASELINE_SLACK)
    ok = all(e.relative <= tolerance for e in (y_error, dx_error) if e is not None)
    if who.name == OURS:
        ok &= y.dtype == workload.dtype and y.is_contiguous(memory_format=workload.memory_format)
    saved = sum(storages.values()) if workload.backward and not compiled else None
    return Verdict(ok, y_error, dx_error, saved)
