"""The gate: no time is shown of a result that is wrong. float64 in plain torch, and what a call saves for backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import Device, Maps
from .providers import COMPILED, Call, Provider, step_of
from .workloads import FORWARD, STRIDE, Workload

# Largest error allowed, as a fraction of the largest magnitude of the float64 result.
TOLERANCES = {
    "float32": (2e-6, "some twenty roundings of 2**-24 in the sums of 9 taps"),
    "bfloat16": (2**-8, "sums in float32, then one rounding of at most 2**-9"),
    "float16": (2**-11, "sums in float32, then one rounding of at most 2**-12"),
}
CHUNK = 1 << 20  # elements at a time: float64 copies of a whole batch would be large


@dataclass(frozen=True)
class Reference:
    """float64 results of one op on one set of maps, by parts of the batch."""

    parts: list[slice]
    y: list[Tensor]
    dx: list[Tensor]


def float64_op(x: Tensor, window: int, window_padding: int = 0) -> Tensor:
    """max at stride 1, reflect pad of the pooled map, binomial blur, each a torch function."""
    if window > 1:
        x = F.max_pool2d(x, window, stride=1, padding=window_padding)
    row = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64, device=x.device)
    weight = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, None, STRIDE, 0, 1, x.shape[1])


def _parts(workload: Workload, most: int | None) -> Iterator[slice]:
    """Of the whole batch, or of its first and last images; no part is much more than CHUNK elements."""
    images, size = workload.shape[0], max(1, CHUNK // math.prod(workload.shape[1:]))
    half = images if most is None or most >= images else most // 2
    for start, end in ((0, half), (max(half, images - half), images)):
        yield from (slice(i, min(i + size, end)) for i in range(start, end, size))


@lru_cache(maxsize=1)  # a catalogue keeps the rows of one reference together
def _reference(workload: Workload, device: Device) -> Reference:
    maps = device.maps(workload, 0)
    parts, ys, dxs = list(_parts(workload, device.images_judged)), [], []
    for part in parts:
        leaf = maps.x[part].double().contiguous(memory_format=torch.channels_last).requires_grad_()
        y = float64_op(leaf, workload.window, workload.window_padding)
        ys.append(y.detach().contiguous())
        dxs.append(torch.autograd.grad(y, leaf, maps.dy[part].double())[0].contiguous())
    return Reference(parts, ys, dxs)


def reference(workload: Workload, device: Device) -> Reference:
    """Shared by a map's layouts and passes."""
    return _reference(replace(workload, layout="NCHW", direction=FORWARD), device)


@contextmanager
def poisoned(sizes: tuple[int, ...], where: str, fill: bool) -> Iterator[None]:
    """Fresh memory holds NaN: freed blocks do, and what torch.empty hands out if `fill`.

    The fill is part of the deterministic mode, which torch.compile guards on (it would compile again for the timing)
    and which chooses other kernels on a GPU: these get the freed blocks alone.
    """
    was_on = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(fill or was_on, warn_only=True)
    for size in sizes:
        torch.full((size,), 0xFF, dtype=torch.uint8, device=where)  # all ones is a NaN in every float dtype
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warned)


@dataclass(frozen=True)
class Error:
    absolute: float
    relative: float  # to the largest magnitude of the float64 result


def error(got: Tensor, wants: list[Tensor], parts: list[slice], shape: tuple[int, ...], dtype: torch.dtype) -> Error:
    """Largest difference; infinite for a NaN, a wrong shape or a wrong dtype."""
    if got.shape != shape or got.dtype != dtype:
        return Error(math.inf, math.inf)
    pairs = zip(parts, wants, strict=True)
    worst = float(torch.stack([(got[part].detach().double() - want).abs().max() for part, want in pairs]).max())
    worst = math.inf if math.isnan(worst) else worst
    return Error(worst, worst / max(float(want.abs().max()) for want in wants))


@dataclass(frozen=True)
class Verdict:
    """How far a provider's result is from float64, and what it keeps for its backward."""

    ok: bool
    y: Error | None
    dx: Error | None
    saved_bytes: int | None


def judge(who: Provider, call: Call, workload: Workload, maps: Maps, device: Device) -> Verdict:
    """Call a provider once, on the maps of number 0 and poisoned memory, and compare. It is the first warm-up."""
    truth = reference(workload, device)
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    compiled = who.name in COMPILED
    sizes = (workload.input_bytes, maps.dy.nbytes, workload.input_bytes // 16)
    with poisoned(sizes, device.where, fill=device.where == "cpu" and not compiled):
        if workload.direction == FORWARD or compiled:
            y, dx = step_of(who, call, workload, maps)()
        else:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                y, dx = step_of(who, call, workload, maps)()
    for constant in call.buffers() if isinstance(call, torch.nn.Module) else ():  # no cost of a call
        storages.pop(constant.untyped_storage().data_ptr(), None)

    results = ((y, truth.y, workload.out_shape), (dx, truth.dx, workload.shape))
    y_error, dx_error = (
        None if got is None else error(got, wants, truth.parts, shape, workload.dtype) for got, wants, shape in results
    )
    tolerance = TOLERANCES[workload.dtype_name][0] * who.slack
    ok = all(e.relative <= tolerance for e in (y_error, dx_error) if e is not None)
    if who.slack == 1 and y is not None:  # ours keeps the layout
        ok &= y.is_contiguous(memory_format=workload.memory_format)
    saved = sum(storages.values()) if workload.direction != FORWARD and not compiled else None
    return Verdict(ok, y_error, dx_error, saved)
