"""One case: a call, its seeded input, and what the oracle says of it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import oracle
import torch
from tolerances import assert_close
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import aablur

MODES = ("zeros", "reflect", "replicate", "circular")
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "stepped", "channels_sliced", "expanded")
NARROW_LAYOUTS = ("contiguous", "transposed", "sliced", "stepped", "expanded")  # of 1-D maps


@dataclass(frozen=True)
class Case:
    """One call. `taps` entries are k (binomial), "s<k>" (a tensor all channels share) or "c<k>" (one a channel)."""

    group: str
    shape: tuple[int, ...]  # (channels, spatial...), or with a batch before
    rank: int = 2
    taps: Any = 3
    stride: Any = 2
    padding: Any = "same"
    padding_mode: str = "reflect"
    window: Any = None
    window_padding: Any = 0
    window_dilation: Any = 1
    dtype: str = "f32"
    taps_dtype: str = ""  # that of x
    layout: str = "contiguous"
    values: str = "random"

    @property
    def id(self) -> str:
        parts = [self.group, "x".join(map(str, self.shape)), f"k{self.taps}", f"s{self.stride}", f"p{self.padding}"]
        if self.window is not None:
            parts.append(f"w{self.window}p{self.window_padding}d{self.window_dilation}")
        parts += [self.padding_mode, self.dtype, self.taps_dtype, self.layout, self.values]
        drop = str.maketrans("", "", " '()")
        return "-".join(p for p in parts if p not in ("", "random")).translate(drop)

    @property
    def batched(self) -> bool:
        return len(self.shape) == self.rank + 2

    @property
    def function(self) -> str:
        return f"{'blur' if self.window is None else 'max_blur'}_pool{self.rank}d"

    @property
    def taps_per_axis(self) -> tuple[Any, ...]:
        return self.taps if isinstance(self.taps, tuple) else (self.taps,) * self.rank

    def per_axis(self, value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * self.rank

    @property
    def pads(self) -> list[tuple[int, int]]:
        if self.padding == "same":
            sizes = [t if isinstance(t, int) else int(t[1:]) for t in self.taps_per_axis]
            return [((k - 1) // 2, k // 2) for k in sizes]
        return [p if isinstance(p, tuple) else (p, p) for p in self.per_axis(self.padding)]

    @property
    def terms(self) -> int:
        """Of the longest sum, along all axes."""
        sizes = [t if isinstance(t, int) else int(t[1:]) for t in self.taps_per_axis]
        return sum(map(longest_sum, self.shape[-self.rank :], sizes, self.pads))


def longest_sum(size: int, taps: int, pads: tuple[int, int]) -> int:
    """Terms along an axis: a tap each, or each padded copy of an element in its gradient."""
    before, after = pads
    return max(taps, min(size + before + after, taps + max(0, before) + max(0, after)))


def _seed(case: Case, salt: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32((salt + case.id).encode()))


def arrange(x: Tensor, layout: str, rank: int) -> Tensor:
    """The values of x, laid out otherwise in memory; `expanded` repeats the first channel's."""
    batched = x if x.ndim == rank + 2 else x.unsqueeze(0)
    channels_last = torch.channels_last if rank == 2 else torch.channels_last_3d
    if layout == "channels_last":
        batched = batched.contiguous(memory_format=channels_last)
    elif layout == "transposed":
        batched = batched.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif layout in ("sliced", "stepped"):
        step = 2 if layout == "stepped" else 1
        room = batched.new_full([n * step + 5 for n in batched.shape], torch.nan)
        inner = room[tuple(slice(3, 3 + n * step, step) for n in batched.shape)]
        batched = inner.copy_(batched)
    elif layout == "channels_sliced":
        room = batched.new_full([n + 3 * (d == 1) for d, n in enumerate(batched.shape)], torch.nan)
        room = room.contiguous(memory_format=channels_last)
        room[:, 2:-1] = batched
        batched = room[:, 2:-1]
    elif layout == "offset":  # dense, from an address that is no multiple of 16 bytes
        batched = torch.cat((batched.new_full((1,), torch.nan), batched.flatten()))[1:].view(batched.shape)
    elif layout == "expanded":
        batched = batched[:, :1].expand(batched.shape)
    return batched if x.ndim == rank + 2 else batched.squeeze(0)


def make_input(case: Case, device: str = "cpu") -> Tensor:
    seed = _seed(case, "x")
    x = torch.randn(case.shape, generator=seed, dtype=torch.float64)
    if case.values == "ties":
        x = (x * 1.5).round()
    elif case.values == "close":  # alike in float32
        x = 1 + x * 1e-12
    elif case.values == "special":
        chance = torch.rand(case.shape, generator=seed)
        x[chance < 0.5], x[chance < 0.08], x[chance < 0.04] = -torch.inf, torch.inf, torch.nan
    return arrange(x.to(device, DTYPES[case.dtype]), case.layout, case.rank)


def make_taps(case: Case, device: str = "cpu") -> tuple[Any, list[Tensor]]:
    """The argument, and the tensors in it."""
    seed = _seed(case, "taps")
    dtype = DTYPES[case.taps_dtype or case.dtype]
    channels = case.shape[-case.rank - 1]

    def make(entry: Any) -> Any:
        if isinstance(entry, int):
            return entry
        k = int(entry[1:])
        shape = (channels, k) if entry[0] == "c" else (k,)
        made = torch.rand(shape, generator=seed, dtype=torch.float64)
        # An infinity that padding sends to taps of both signs is NaN, or an infinity where the taps are added up first.
        return (made + 0.125 if case.values == "special" else made * 2 - 0.75).to(device, dtype)

    taps = tuple(map(make, case.taps)) if isinstance(case.taps, tuple) else make(case.taps)
    return taps, [t for t in (taps if isinstance(taps, tuple) else (taps,)) if isinstance(t, Tensor)]


def call(case: Case, x: Tensor, taps: Any, **options: Any) -> Tensor:
    function = getattr(aablur, case.function)
    options |= {"taps": taps, "stride": case.stride, "padding": case.padding, "padding_mode": case.padding_mode}
    if case.window is None:
        return function(x, **options)
    options |= {"window_padding": case.window_padding, "window_dilation": case.window_dilation}
    return function(x, case.window, **options)


def judge(case: Case, x: Tensor, taps: Any) -> Tensor:
    """What the oracle says of the call, in float64."""
    entries = taps if isinstance(taps, tuple) else (taps,) * case.rank
    rows = [torch.from_numpy(oracle.binomial(t)) if isinstance(t, int) else t.double() for t in entries]
    batched = x.double() if case.batched else x.double().unsqueeze(0)
    windows = [case.per_axis(v) for v in (case.window, case.window_padding, case.window_dilation)]
    prologue = () if case.window is None else windows
    strides = case.per_axis(case.stride)
    y = oracle.blur_pool(
        batched, [r.reshape(-1, r.shape[-1]) for r in rows], strides, case.pads, case.padding_mode, *prologue
    )
    return y if case.batched else y.squeeze(0)


def verdict(case: Case, x: Tensor, taps: Any, grad: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The oracle's output, gradient of x and gradients of the tensors in taps, each with its magnitude."""

    def run(case: Case, x: Tensor, taps: Any, grad: Tensor) -> list[Tensor]:
        leaves = [x, *[t for t in tree_leaves(taps) if isinstance(t, Tensor)]]
        y = judge(case, x, taps)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    x = x.detach().double().requires_grad_()
    wide = tree_map_only(Tensor, lambda t: t.detach().double().requires_grad_(), taps)
    found = run(case, x, wide, grad.double())
    pooled = x if case.window is None else judge(replace(case, taps=1, stride=1, padding=0), x, 1)
    sizes = tree_map_only(Tensor, lambda t: t.detach().abs().requires_grad_(), wide)
    blurred = run(replace(case, window=None), pooled.detach().abs().requires_grad_(), sizes, grad.double().abs())
    if case.window is not None:
        blurred[1] = torch.autograd.grad(pooled, x, blurred[1])[0]
    return list(zip(found, blurred, strict=True))


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    """Where one is NaN the other is too: its sign and payload are the processor's choice among those it meets."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = [[t.masked_fill(t.isnan(), torch.nan).view(integers[t.element_size()]) for t in m] for m in (a, b)]
    return all(torch.equal(m, n) for m, n in zip(*bits, strict=True))


def assert_right(
    case: Case, results: list[Tensor], expected: list[tuple[Tensor, Tensor]], tensors: list[Tensor]
) -> None:
    """Holds an output, the gradient of x if it is there, and those of the tensors in taps against a verdict."""
    maps, terms = len(results) - len(tensors), case.terms
    for actual, (wanted, magnitude) in zip(results[:maps], expected[:maps], strict=True):
        assert actual.dtype == DTYPES[case.dtype]
        assert_close(actual.cpu(), wanted, magnitude=magnitude, terms=terms)
    for tap, grad, (wanted, magnitude) in zip(tensors, results[maps:], expected[maps:], strict=True):
        assert (grad.dtype, grad.shape) == (tap.dtype, tap.shape)
        sums = DTYPES[case.dtype] if tap.dtype == torch.float64 else tap.dtype
        assert_close(grad.cpu(), wanted, sums, magnitude=magnitude, taps=True, terms=terms)
