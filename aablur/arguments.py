"""What an op's arguments must be to one another, for backends whose kernels do not check them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import reference
from .geometry import LARGEST_BINOMIAL, Geometry

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check(op: str, geometry: Geometry, given: Mapping[str, Any]) -> None:
    """Raises ValueError unless the arguments of a raw op fit together, as the native library's ops do.

    Args:
        given: the op's arguments by name; of ``x``, ``grad``, ``codes``, ``taps`` and ``size`` those that it has.
    """
    x, grad, codes, rank = given.get("x"), given.get("grad"), given.get("codes"), len(geometry.axes)
    if "codes" in given and (x is None) == (codes is None):
        raise ValueError(f"{op}: give either x or codes")
    for name, m in (("x", x), ("grad", grad)):
        if m is not None and (m.dtype not in FLOATS or m.ndim not in (rank + 1, rank + 2)):
            raise ValueError(
                f"{op}: {name} must be float16, bfloat16, float32 or float64 with {rank + 1} or {rank + 2} dimensions, "
                f"got {m.dtype} of shape {tuple(m.shape)}"
            )
    any_map = grad if x is None else x
    assert any_map is not None
    size = given.get("size", any_map.shape[-rank:])
    if len(size) != rank:
        raise ValueError(f"{op}: size must have one entry for each of {rank} axes, got {len(size)}")
    if any(a.taps < 1 for a in geometry.axes):
        raise ValueError(f"{op}: axes must have taps from 1 up, got {[a.taps for a in geometry.axes]}")
    geometry.check(size, 0)
    if grad is not None:
        _check_gradient(op, geometry, grad, x, size)
    _check_taps(op, geometry, given.get("taps"), any_map)
    if codes is not None:
        shape = [*any_map.shape[:-rank], *size]
        channels_last = given["channels_last"] and rank > 1  # maps of one axis have one layout
        expected = (torch.uint8, reference.code_shape(shape, geometry, channels_last), any_map.device)
        if (codes.dtype, list(codes.shape), codes.device) != expected or not codes.is_contiguous():
            raise ValueError(f"{op}: codes must be those that max_blur_pool_codes returned, of shape {expected[1]}")


def _check_gradient(op: str, geometry: Geometry, grad: Tensor, x: Tensor | None, size: Any) -> None:
    rank = len(size)
    out = [a.out_size(n) for a, n in zip(geometry.axes, size, strict=True)]
    if list(grad.shape[-rank:]) != out:
        raise ValueError(f"{op}: grad must have the output's size {out}, got shape {tuple(grad.shape)}")
    if x is None:
        return

    def kind(m: Tensor) -> tuple[Any, ...]:
        return m.shape[-rank - 1], math.prod(m.shape[: -rank - 1]), m.dtype, m.device

    if kind(x) != kind(grad) or list(x.shape[-rank:]) != list(size):
        raise ValueError(
            f"{op}: x must have the images, channels, dtype and device of grad and the size {list(size)}, got "
            f"{x.dtype} of shape {tuple(x.shape)} beside {grad.dtype} of shape {tuple(grad.shape)}"
        )


def _check_taps(op: str, geometry: Geometry, taps: Tensor | None, x: Tensor) -> None:
    sizes = [a.taps for a in geometry.axes]
    if taps is None:
        if max(sizes) > LARGEST_BINOMIAL:
            raise ValueError(f"{op}: without taps, axes must have at most {LARGEST_BINOMIAL} taps, got {sizes}")
        return
    dtype, channels = reference.accumulator_dtype(x.dtype), x.shape[-len(sizes) - 1]
    fits = taps.ndim == 2 and taps.shape[1] == sum(sizes) and taps.shape[0] in (1, channels)
    if not fits or taps.dtype != dtype or taps.device != x.device or not taps.is_contiguous():
        raise ValueError(
            f"{op}: taps must be a contiguous {dtype} tensor of shape (1, {sum(sizes)}) or ({channels}, {sum(sizes)}) "
            f"on the device of x, got {taps.dtype} of shape {tuple(taps.shape)}"
        )
