"""The one list of cases that every backend meets, their seeded inputs, and what the oracle says of them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import oracle
import torch
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
    elif layout == "expanded":
        batched = batched[:, :1].expand(batched.shape)
    return batched if x.ndim == rank + 2 else batched.squeeze(0)


def make_input(case: Case) -> Tensor:
    seed = _seed(case, "x")
    x = torch.randn(case.shape, generator=seed, dtype=torch.float64)
    if case.values == "ties":
        x = (x * 1.5).round()
    elif case.values == "close":  # alike in float32
        x = 1 + x * 1e-12
    elif case.values == "special":
        chance = torch.rand(case.shape, generator=seed)
        x[chance < 0.5], x[chance < 0.08], x[chance < 0.04] = -torch.inf, torch.inf, torch.nan
    return arrange(x.to(DTYPES[case.dtype]), case.layout, case.rank)


def make_taps(case: Case) -> tuple[Any, list[Tensor]]:
    """The argument, and the tensors in it."""
    seed = _seed(case, "taps")
    dtype = DTYPES[case.taps_dtype or case.dtype]
    channels = case.shape[-case.rank - 1]

    def made(entry: Any) -> Any:
        if isinstance(entry, int):
            return entry
        k = int(entry[1:])
        shape = (channels, k) if entry[0] == "c" else (k,)
        return (torch.rand(shape, generator=seed, dtype=torch.float64) * 2 - 0.75).to(dtype)

    taps = tuple(map(made, case.taps)) if isinstance(case.taps, tuple) else made(case.taps)
    return taps, [t for t in (taps if isinstance(taps, tuple) else (taps,)) if isinstance(t, Tensor)]


def call(case: Case, x: Tensor, taps: Any, **options: Any) -> Tensor:
    function = getattr(aablur, case.function)
    if case.window is None:
        return function(x, taps, case.stride, case.padding, case.padding_mode)
    options |= {"window_padding": case.window_padding, "window_dilation": case.window_dilation}
    return function(x, case.window, taps, case.stride, case.padding, case.padding_mode, **options)


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


# ---- the list ----------------------------------------------------------------------------------------


def _both(case: Case, window: Any = 2) -> Iterator[Case]:
    yield case
    yield replace(case, group=f"max-{case.group}", window=window)


def _generate() -> Iterator[Case]:
    pick = random.Random(1904).choice
    modes, dtypes, layouts = list(MODES), list(DTYPES), list(LAYOUTS)

    for k in (1, 2, 3, 4, 5, 6, 7, 9, 12):
        for s in (1, 2, 3, 4, (2, 1), (1, 3)):
            yield from _both(Case(
                "taps", (2, 3, 13, 18), taps=k, stride=s, padding_mode=pick(modes), dtype=pick(dtypes), layout=pick(layouts),
            ))  # fmt: skip
    for width in (1, 2, 7, 14, 15, 16, 17, 28, 31, 32, 33, 56, 57, 63, 64, 65, 112):
        for dtype in dtypes:
            yield from _both(Case(
                "width", (1, 2, pick((3, 4, 6)), width + 1), taps=pick((2, 3, 4, 5)), stride=pick((1, 2, 2, 3)), dtype=dtype,
                padding_mode=pick(modes), layout=pick(layouts), padding=((1, 2), (2, 3)),
            ), (2, 2))  # fmt: skip
            yield Case("width", (3, 5, width), taps=3, dtype=dtype, padding_mode=pick(modes))
    for height, width in ((4, 4), (7, 7), (8, 8), (14, 14), (57, 57)):
        for dtype in dtypes:
            for layout in ("contiguous", "channels_last"):
                yield from _both(
                    Case("plane", (2, 5, height, width), dtype=dtype, layout=layout, padding_mode=pick(modes))
                )
    for channels in (1, 3, 4, 5, 64, 65, 100):
        for dtype in dtypes:
            yield from _both(Case(
                "channels", (2, channels, 6, 7), taps=pick((2, 3, 4, 5)), stride=pick((1, 2, 3)), dtype=dtype,
                padding_mode=pick(modes), layout="channels_last",
            ), pick((2, 3)))  # fmt: skip
    for mode in modes:
        for layout in layouts:
            for size in ((5, 7), (9, 3)):
                yield from _both(
                    Case("odd", (2, 3, *size), padding_mode=mode, layout=layout, dtype=pick(dtypes), taps=pick((3, 5)))
                )
        for size in ((1, 1), (2, 1), (1, 9), (2, 2)):
            yield Case("tiny", (2, 3, *size), taps=5, padding_mode=mode, dtype=pick(dtypes), layout=pick(layouts))
            yield Case("tiny", (2, 3, *size), taps=4, padding_mode=mode, window=2, window_padding=1, dtype=pick(dtypes))
        for padding in (
            0,
            1,
            (2, 0),
            ((0, 3), (2, 1)),
            ((-1, -2), (-2, 1)),
            ((-3, 4), (5, -4)),
            ((13, 20), (19, 8)),
            ((-7, 9), (30, -25)),
        ):
            yield from _both(Case(
                "pads", (2, 2, 6, 5), taps=(2, 3), padding=padding, padding_mode=mode, dtype=pick(dtypes), layout=pick(layouts),
                stride=pick((1, 2, 3)),
            ), (1, 2))  # fmt: skip
        for layout in ("contiguous", "channels_last", "stepped"):  # few planes: cut into bands
            yield from _both(
                Case(
                    "bands",
                    (1, 1 if layout == "contiguous" else 33, 131, 9),
                    layout=layout,
                    padding_mode=mode,
                    dtype=pick(dtypes),
                )
            )
        yield from _both(Case("bands", (1, 1, 70, 3, 40), rank=3, padding_mode=mode), (2, 1, 2))

    for window in (1, 2, 3, (2, 3), (3, 1), (5, 5), (17, 16)):
        for dtype in dtypes:
            size = (19, 21) if window == (17, 16) else (9, 11)
            for layout in ("contiguous", "channels_last", pick(("transposed", "sliced", "channels_sliced", "stepped"))):
                yield Case("window", (2, 3, *size), window=window, dtype=dtype, layout=layout, padding_mode=pick(modes))
    yield Case("window", (1, 2, 300, 2), window=(257, 1), stride=(7, 1))  # 16-bit codes
    for window, padding, dilation in (
        (2, 1, 1),
        (3, 1, 1),
        (3, 1, 2),
        ((3, 2), (1, 0), (1, 3)),
        ((5, 4), (2, 1), (1, 2)),
        (2, 1, 3),
    ):
        for layout in ("contiguous", "channels_last"):
            for values in ("random", "ties", "special"):
                yield Case(
                    "window", (2, 3, 8, 9), window=window, window_padding=padding, window_dilation=dilation, layout=layout,
                    dtype=pick(dtypes), padding_mode=pick(modes), values=values, stride=pick((1, 2)),
                )  # fmt: skip
    for dtype in dtypes:
        for layout in ("contiguous", "channels_last", "transposed"):
            for values in ("ties", "special"):
                for window in (2, 3):
                    yield Case(
                        "values",
                        (2, 5, 9, 35),
                        window=window,
                        dtype=dtype,
                        layout=layout,
                        values=values,
                        padding_mode=pick(modes),
                    )
            yield Case("values", (2, 5, 9, 35), dtype=dtype, layout=layout, values="special", padding_mode=pick(modes))
    for layout in ("contiguous", "channels_last"):
        yield Case("values", (2, 3, 9, 11), window=2, dtype="f64", layout=layout, values="close")

    for mode in modes:
        for layout in NARROW_LAYOUTS:
            yield from _both(
                Case(
                    "1d",
                    (2, 3, pick((9, 16, 33, 70))),
                    rank=1,
                    taps=pick((2, 3, 5)),
                    padding_mode=mode,
                    dtype=pick(dtypes),
                    layout=layout,
                )
            )
        for layout in layouts:
            yield from _both(Case(
                "3d", (2, 3, *pick(((5, 6, 7), (3, 9, 17), (8, 2, 5)))), rank=3, taps=pick((2, 3, 4)), stride=pick((1, 2, (1, 2, 3))),
                padding_mode=mode, dtype=pick(dtypes), layout=layout,
            ), pick((2, (1, 2, 2))))  # fmt: skip
    yield Case("3d", (1, 2, 5, 6, 7), rank=3, window=(3, 2, 3), window_padding=(1, 0, 1), window_dilation=(1, 2, 1))

    for taps in ("s3", "c3", "s4", "c1", ("s3", 2), (1, "c5"), ("c2", "s6"), ("s12", "c9")):
        for dtype in dtypes:
            for layout in ("contiguous", "channels_last"):
                yield from _both(Case(
                    "tensor", (2, 5, 7, 9), taps=taps, dtype=dtype, layout=layout, padding_mode=pick(modes), stride=pick((1, 2, (3, 2))),
                ), pick((2, 3)))  # fmt: skip
    for layout in ("transposed", "sliced", "channels_sliced", "stepped", "expanded"):
        yield from _both(
            Case("tensor", (2, 5, 7, 9), taps=("c3", "s4"), layout=layout, padding_mode=pick(modes), dtype=pick(dtypes))
        )
    for dtype, taps_dtype in (
        ("f16", "f32"),
        ("bf16", "f32"),
        ("bf16", "f64"),
        ("f32", "bf16"),
        ("f32", "f64"),
        ("f64", "f32"),
    ):
        yield Case("tensor", (2, 5, 7, 9), taps="c3", dtype=dtype, taps_dtype=taps_dtype)
    for padding in (((-1, 4), (9, -2)), ((11, 8), (3, 14))):
        yield from _both(Case("tensor", (2, 3, 6, 7), taps="s3", padding=padding, padding_mode=pick(modes)))
    for rank, size in ((1, (40,)), (3, (5, 6, 7))):
        for dtype in dtypes:
            for layout in ("contiguous", "channels_last")[:rank]:
                for kind in "sc":
                    yield from _both(
                        Case(
                            "tensor",
                            (2, 3, *size),
                            rank=rank,
                            taps=f"{kind}3",
                            dtype=dtype,
                            layout=layout,
                            padding_mode=pick(modes),
                        )
                    )
    for layout in ("contiguous", "channels_last"):
        yield Case("tensor", (3, 33, 67, 5), taps="c3", layout=layout)
        yield Case("tensor", (1, 1, 131, 20), taps="s3", layout=layout)

    for rank in (1, 2, 3):
        for layout in NARROW_LAYOUTS if rank == 1 else LAYOUTS:
            taps = pick((3, "c3", "s4"))
            yield from _both(
                Case(
                    "unbatched",
                    (5, *(7, 6, 9)[:rank]),
                    rank=rank,
                    taps=taps,
                    layout=layout,
                    dtype=pick(dtypes),
                    padding_mode=pick(modes),
                )
            )
        for shape in ((0, 3, *(7, 6, 9)[:rank]), (2, 0, *(7, 6, 9)[:rank]), (0, *(7, 6, 9)[:rank])):
            for layout in ("contiguous", "channels_last")[:rank]:
                yield from _both(
                    Case("empty", shape, rank=rank, taps=pick((3, "s3")), layout=layout, dtype=pick(dtypes))
                )


CASES = list({case.id: case for case in _generate()}.values())
