"""Cases drawn at random: calls that must agree with the oracle, and calls of raw ops that must be refused or agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from case import DTYPES, LAYOUTS, MODES, NARROW_LAYOUTS, Case
from torch import Tensor

from aablur.geometry import Geometry
from aablur.schemas import SCHEMAS

OPS = torch.ops.aablur
MOST = 40_000  # elements of a map, and of its output
LARGEST_SIZE = {1: 150, 2: 24, 3: 9}
NAMES = tuple(schema.split("(")[0] for schema in SCHEMAS if "axes" in schema)
HOSTILE = (0, 1, -1, 2, 3, 5, 17, -17, 300, 2**31 - 1, 2**31, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
NOT_FLOATS = (torch.int32, torch.uint8, torch.bool, torch.complex64)


def geometry_of(case: Case) -> Geometry:
    sizes = [t if isinstance(t, int) else int(t[1:]) for t in case.taps_per_axis]
    window = () if case.window is None else (case.window, case.window_padding, case.window_dilation)
    return Geometry("", sizes, case.stride, case.padding, case.padding_mode, *window)


def serves(case: Case, most: int = MOST) -> bool:
    """Whether the arguments are good ones, and no map has more than `most` elements."""
    try:
        geometry = geometry_of(case)
        geometry.check(case.shape, 0)
    except ValueError:
        return False
    size, images = case.shape[-case.rank :], math.prod(case.shape[: -case.rank])
    out = [a.out_size(n) for a, n in zip(geometry.axes, size, strict=True)]
    return images * max(math.prod(size), math.prod(out)) <= most


def random_case(pick: Random, most: int = MOST) -> Case:
    """A case of any kind that serves."""
    while not serves(case := any_case(pick), most):
        pass
    return case


def gradients_of(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """The taps whose gradient means something: infinity times the gradient of what nobody reads is 0, or nothing."""
    return [] if case.values == "special" else tensors


def any_case(pick: Random) -> Case:
    """A case of any kind, which may ask for an empty output, or a large one."""
    rank = pick.choice((1, 2, 2, 2, 3))

    def an_axis(draw: Any) -> Any:
        """One for all axes, or one each."""
        return draw() if pick.random() < 0.5 else tuple(draw() for _ in range(rank))

    def a_tap() -> Any:
        k = pick.randint(1, 9) if pick.random() < 0.95 else pick.randint(10, 40)
        return pick.choice((k, f"s{k}", f"c{k}"))

    def a_pad() -> int:
        return pick.randint(-4, 4) if pick.random() < 0.8 else pick.randint(-10, 40)

    def a_pair() -> tuple[int, int]:
        """Now and then one that moves the output far out of the map, where every mode but zeros goes on."""
        far = 0 if pick.random() < 0.95 else pick.choice((-1, 1)) * pick.randint(1, 100_000)
        return a_pad() + far, a_pad() - far

    most = 4 if pick.random() < 0.3 else LARGEST_SIZE[rank]
    size = [pick.randint(1, most) for _ in range(rank)]
    if pick.random() < 0.1:
        size[pick.randint(0, rank - 1)] = pick.randint(1, 3000)
    channels = pick.choice((1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 48, 64, 65, 130))
    batch = pick.choice(((), (1,), (2,), (3,)))
    padding = pick.choice((
        lambda: "same", lambda: an_axis(a_pad), lambda: tuple(a_pair() for _ in range(rank)),
    ))()  # fmt: skip
    taps, dtype = an_axis(a_tap), pick.choice(tuple(DTYPES))
    case = Case(
        "random", (*batch, channels, *size), rank, taps,
        an_axis(lambda: pick.randint(1, 5) if pick.random() < 0.95 else pick.randint(6, 100)), padding,
        pick.choice(MODES), dtype=dtype, taps_dtype=pick.choice(("", "", "", *DTYPES)),
        layout=pick.choice(NARROW_LAYOUTS if rank == 1 else LAYOUTS),
        values=pick.choice(("random", "random", "ties", "special")),
    )  # fmt: skip
    if pick.random() < 0.5:
        return case
    window = tuple(pick.choice((1, 2, 2, 3, 3, 4, 7)) for _ in range(rank))
    half = tuple(pick.randint(0, w // 2) for w in window)
    dilation = tuple(pick.choice((1, 1, 1, 2, 3)) for _ in range(rank))
    return replace(case, window=window, window_padding=half, window_dilation=dilation)


@dataclass(frozen=True)
class Surroundings:
    """What a call must not depend on: threads, where its maps lie, how the output's gradient lies."""

    threads: int
    guarded: str  # maps "end" or "begin" where memory that nobody may touch begins or ends; "" for neither
    grad_layout: str
    recompute: bool


def random_surroundings(pick: Random, case: Case) -> Surroundings:
    layouts = NARROW_LAYOUTS if case.rank == 1 else LAYOUTS
    return Surroundings(
        pick.randint(2, 16), pick.choice(("end", "end", "begin", "")), pick.choice(layouts), pick.random() < 0.5
    )


# ---- raw ops -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RawCall:
    """A call of an op with arguments of which some may not fit the others."""

    op: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        def show(a: Any) -> str:
            return f"{a.dtype} {tuple(a.shape)} strides {a.stride()}" if isinstance(a, Tensor) else repr(a)

        return f"{self.op}({', '.join(f'{name}={show(a)}' for name, a in self.arguments.items())})"


def random_raw_call(pick: Random) -> RawCall:
    """Arguments that fit, of which up to three are then replaced."""
    case = random_case(pick, 2000)
    tensors = torch.Generator().manual_seed(pick.randint(0, 2**32))
    name = pick.choice([n for n in NAMES if n.startswith("max") == (case.window is not None)])
    size, dtype = list(case.shape[-case.rank :]), DTYPES[case.dtype]
    geometry, channels = geometry_of(case), case.shape[-case.rank - 1]
    out = [a.out_size(n) for a, n in zip(geometry.axes, size, strict=True)]

    def a_map(size: list[int]) -> Tensor:
        return torch.randn([*case.shape[: -case.rank], *size], generator=tensors).to(dtype)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = sum(a.taps for a in geometry.axes)
    x, taps = a_map(size), torch.rand(pick.choice((1, channels)), numbers, generator=tensors).to(wide)
    fitting: dict[str, Any] = {"x": x, "grad": a_map(out), "taps": taps, "size": size, "channels_last": False}
    fitting |= dict(zip(("axes", "padding_mode"), geometry.op_args, strict=True))
    if name.startswith("max"):
        fitting["codes"] = OPS.max_blur_pool_codes(x, None, *geometry.op_args)[1]
    if name == "max_blur_pool_backward":
        fitting[pick.choice(("x", "codes"))] = None
    if pick.random() < 0.3 and name != "blur_pool_backward_taps":
        fitting["taps"] = None
    arguments = {a.name: fitting[a.name] for a in getattr(OPS, name).default._schema.arguments}
    for _ in range(pick.randint(0, 3)):
        changed = pick.choice(tuple(arguments))
        arguments[changed] = _replaced(pick, tensors, changed, arguments[changed], fitting)
    return RawCall(name, arguments)


def _replaced(pick: Random, tensors: torch.Generator, name: str, value: Any, fitting: dict[str, Any]) -> Any:
    if name == "channels_last":
        return not value
    if name == "padding_mode":
        return pick.choice((*MODES, "", "same", "reflec", "zeros\0", "x" * 10_000))
    if name in ("axes", "size"):
        return _other_numbers(pick, list(value))
    if value is None:
        return fitting["taps"] if name == "taps" else fitting[name]
    if pick.random() < 0.1 and name in ("taps", "x", "codes") and not isinstance(value, list):
        return None
    return _other_tensor(pick, tensors, value)


def _other_numbers(pick: Random, numbers: list[int]) -> list[int]:
    if pick.random() < 0.2 or not numbers:
        return pick.choice((numbers[:-1], [*numbers, 1], numbers * 2, numbers[: len(numbers) // 2], []))
    i = pick.randint(0, len(numbers) - 1)
    near = pick.random() < 0.5
    numbers[i] = numbers[i] + pick.randint(-3, 3) if near else pick.choice(HOSTILE)
    return numbers


def _other_tensor(pick: Random, tensors: torch.Generator, value: Tensor) -> Tensor:
    kind = pick.choice(("size", "size", "empty", "rank", "dtype", "strides", "expanded", "bytes"))
    shape = list(value.shape)
    if kind == "dtype":
        return value.to(pick.choice((*DTYPES.values(), *NOT_FLOATS)))
    if kind == "strides":
        return value.transpose(0, -1).contiguous().transpose(0, -1) if value.ndim else value
    if kind == "rank":
        return value.unsqueeze(pick.randint(0, value.ndim)) if pick.random() < 0.5 else value.flatten()
    if kind == "bytes" and value.dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=tensors)
    if not shape:
        return value
    i = pick.randint(0, len(shape) - 1)
    if kind == "expanded":
        return value[(slice(None),) * i + (slice(0, 1),)].expand(shape)
    shape[i] = 0 if kind == "empty" else max(0, shape[i] + pick.choice((-1, 1, 2)))
    return torch.zeros(shape, dtype=value.dtype)
