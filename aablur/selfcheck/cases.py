"""What is checked: calls that reach each family of kernels, and what is right for them, by the reference in float64."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import functional, reference
from ..geometry import IDENTITY, PADDING_MODES, Geometry

_LAYOUTS = ("contiguous", "channels_last")
_HALVES = ("bfloat16", "float16", "float32")
_SMALLEST = {torch.float16: 2**-25}  # half of float16's last subnormal step
_ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # of a result that is rounded once
_SUMS = {torch.float64: 2e-14}  # of the largest magnitude: float32's sums, or float64's
_FLOAT32_SUMS = 8e-6


@dataclass(frozen=True)
class Case:
    """One call of a public function on random numbers, with its gradients. taps: "s3" a tensor that all channels share,
    "c3" one a channel."""

    family: str
    shape: tuple[int, ...]  # a batch, channels, spatial sizes
    taps: Any = 3
    dtype: str = "float32"
    layout: str = "contiguous"
    values: str = "random"  # or "special": infinities, NaN and ties
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return len(self.shape) - 2

    @property
    def function(self) -> str:
        return f"{'max_' if 'window' in self.options else ''}blur_pool{self.rank}d"

    @property
    def id(self) -> str:
        """Names the case: its numbers are drawn from a seed made of it."""
        about = [self.family, "x".join(map(str, self.shape)), f"taps={self.taps}", self.dtype, self.layout, self.values]
        return " ".join([*about, *(f"{k}={v}" for k, v in self.options.items())]).replace(", ", ",")

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(self.id.encode()))

    def arguments(self) -> tuple[Tensor, Any, Tensor]:
        """x, taps and a number for each of what a gradient begins with, on the CPU."""
        generator, dtype = self._generator(), getattr(torch, self.dtype)
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        if self.values == "special":
            chance = torch.rand(self.shape, generator=generator)
            x = (x * 1.5).round()
            x[chance < 0.2], x[chance < 0.04], x[chance < 0.02] = -torch.inf, torch.inf, torch.nan
        x = x.to(dtype)
        if self.layout == "channels_last":
            x = x.contiguous(memory_format=reference.channels_last_format(self.rank))
        elif self.layout == "strided":
            x = torch.stack((x, x), -1)[..., 0].transpose(-1, -2).contiguous().transpose(-1, -2)
        taps = self.taps
        if isinstance(taps, str):
            rows = [self.shape[1]] if taps[0] == "c" else []
            taps = (torch.rand([*rows, int(taps[1:])], generator=generator) + 0.1).to(dtype)
        return x, taps, torch.randn(1 << 16, generator=generator).to(dtype)

    def results(self, device: str) -> list[tuple[str, Tensor]]:
        """What the functions give: the result, then the gradients of x and of taps."""
        x, taps, numbers = self.arguments()
        x = x.to(device)
        taps = taps.to(device) if isinstance(taps, Tensor) else taps
        function = getattr(functional, self.function)
        if self.values == "special":  # no gradient: infinities have none that is defined
            return [("y", function(x, taps=taps, **self.options))]
        sources = [x.requires_grad_(), *([taps.requires_grad_()] if isinstance(taps, Tensor) else [])]
        y = function(x, taps=taps, **self.options)
        grads = torch.autograd.grad(y, sources, _like(y, numbers))
        return [("y", y.detach()), *zip(("dx", "dtaps"), grads, strict=False)]

    def expected(self) -> list[Tensor]:
        """The same in plain torch and float64, on the CPU."""
        x, taps, numbers = self.arguments()
        options = {k: v for k, v in self.options.items() if k != "recompute"}
        window = [options.pop(k, default) for k, default in _WINDOW.items()] if "window" in options else [IDENTITY]
        x = x.double().requires_grad_(self.values != "special")
        packed = None
        size = taps.shape[-1] if isinstance(taps, Tensor) else taps
        if isinstance(taps, Tensor):
            taps = taps.double().requires_grad_()
            packed = taps.reshape(-1, size).repeat(1, self.rank)
        sizes = list(size) if isinstance(size, tuple) else [size] * self.rank
        arguments = {"stride": 2, "padding": "same", "padding_mode": "reflect"} | options
        y = reference.blur_pool(x, packed, Geometry(self.function, sizes, *arguments.values(), *window))
        if self.values == "special":
            return [y]
        sources = [x, *([taps] if isinstance(taps, Tensor) else [])]
        return [y.detach(), *torch.autograd.grad(y, sources, _like(y, numbers))]


_WINDOW = {"window": 2, "window_padding": 0, "window_dilation": 1}


def _like(y: Tensor, numbers: Tensor) -> Tensor:
    """A gradient of y, laid out as y is."""
    count = -(-y.numel() // numbers.numel())
    return torch.empty_like(y).copy_(numbers.to(y.dtype).repeat(count)[: y.numel()].view(y.shape))


def difference(found: Tensor, expected: Tensor) -> str | None:
    """What is wrong with a result, or None: sums in float32 (float64 of float64), rounded once to its dtype."""
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)}, {tuple(expected.shape)} is right"
    actual = found.detach().cpu().double()
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    allowed = _SUMS.get(found.dtype, _FLOAT32_SUMS) * largest + _SMALLEST.get(found.dtype, 0.0)
    right = (actual == expected) | (actual.isnan() & expected.isnan())
    bound = allowed + _ROUNDING.get(found.dtype, 0.0) * expected.abs()
    right |= expected.isfinite() & ((actual - expected).abs() <= bound.nan_to_num(0, 0, 0))
    if right.all():
        return None
    at = tuple((~right).nonzero()[0].tolist())
    wrong = f"{int((~right).sum())} of {right.numel()} numbers"
    return f"{wrong}, first at {at}: {float(actual[at]):.6g}, {float(expected[at]):.6g} is right"


def cases() -> list[Case]:
    """All of them, those first that between them reach every family in each of its layouts."""
    families: dict[tuple[str, str], list[Case]] = {}
    for case in _generate():
        families.setdefault((case.family, case.layout), []).append(case)
    rounds = itertools.zip_longest(*families.values())
    return [case for turn in rounds for case in turn if case is not None]


def count_families() -> int:
    return len({(case.family, case.layout) for case in _generate()})


def _generate() -> Iterator[Case]:
    modes = itertools.cycle(PADDING_MODES)
    two = {"contiguous": (2, 3, 22, 32), "channels_last": (2, 16, 21, 18)}
    for dtype, layout, taps in itertools.product(_HALVES, _LAYOUTS, (3, 4, 2, 5, 7)):
        options = {"stride": 1 if taps == 2 else 2, "padding_mode": next(modes)}
        yield Case("blur", two[layout], taps, dtype, layout, options=options)
    for dtype, layout, window in itertools.product(_HALVES, _LAYOUTS, (2, 3)):
        options: dict[str, Any] = {"window": window, "padding_mode": next(modes)}
        yield Case("max", two[layout], 4 if window == 2 else 3, dtype, layout, options=options)
    for dtype, layout in itertools.product(_HALVES, _LAYOUTS):
        options = {"window": 3, "window_padding": 1, "padding_mode": next(modes)}
        yield Case("max of a ResNet", (3, 16, 27, 30), 3, dtype, layout, options=options)
    for dtype, layout, window in itertools.product(_HALVES, _LAYOUTS, (2, 3)):
        yield Case("special values", two[layout], 3, dtype, layout, "special", {"window": window})
    for layout, taps in itertools.product(_LAYOUTS, ("c3", "s3", "c5", "s4")):
        yield Case("filters", two[layout], taps, "float32", layout, options={"padding_mode": next(modes)})
    for layout, taps in itertools.product(_LAYOUTS, ("s7", "c7")):
        yield Case("long filters", two[layout], taps, "float32", layout, options={"padding_mode": next(modes)})
    for layout, window in itertools.product(_LAYOUTS, (2, 3)):
        yield Case("filters after a max", two[layout], "s3", "float32", layout, options={"window": window})
    for dtype, layout in itertools.product(_HALVES, _LAYOUTS):
        yield Case("recompute", two[layout], 3, dtype, layout, options={"window": 2, "recompute": True})
    for dtype, layout in itertools.product((*_HALVES, "float64"), _LAYOUTS):
        options = {"stride": 3, "padding": 4, "padding_mode": next(modes)}
        yield Case("any geometry", (2, 5, 9, 11), (2, 6), dtype, layout, options=options)
    for layout, (window, padding, dilation) in itertools.product(
        _LAYOUTS, (((3, 2), 1, 2), (5, 2, 1), ((17, 16), 0, 1))
    ):
        options = {
            "window": window,
            "window_padding": padding,
            "window_dilation": dilation,
            "padding_mode": next(modes),
        }
        yield Case("any window", (2, 3, 20, 21), 3, "float32", layout, options=options)
    for dtype, window in itertools.product(_HALVES, (None, 2)):
        yield Case("lines", (2, 3, 70), 3, dtype, options={} if window is None else {"window": window})
    for dtype, layout in itertools.product(("float32", "bfloat16"), _LAYOUTS):
        yield Case("volumes", (1, 3, 5, 6, 7), 3, dtype, layout, options={"padding_mode": next(modes)})
        yield Case("volumes with a max", (1, 3, 5, 6, 7), 3, dtype, layout, options={"window": 2})
    for dtype, window in itertools.product(("float32", "bfloat16"), (None, 2)):
        options = {"padding_mode": next(modes)} if window is None else {"window": window}
        yield Case("strides", (2, 3, 12, 13), 3, dtype, "strided", options=options)
        yield Case("many planes", (3, 67, 7, 7), 3, dtype, options=options)
        yield Case("large", (1, 2, 210, 170), 3, dtype, options=options)
    for layout in _LAYOUTS:
        yield Case("wide filters", (1, 2, 9, 10), 33, "float32", layout, options={"padding_mode": next(modes)})
