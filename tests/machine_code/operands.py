"""An instruction, its operands and what it must give."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from .exact import BF16, F16, F32, F64, Format

M16, M32, M64 = 2**16 - 1, 2**32 - 1, 2**64 - 1
MODES = ("rn", "rz", "rm", "rp")
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
WIDTHS = {"i16": 16, "i32": 32, "i64": 64, "by": 32, "at": 32, "sel": 32, "divisor32": 32, "divisor64": 64}
WIDTHS |= {"f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f16x2": 32, "bf16x2": 32}
WIDTHS |= {"angle": 32, "nearf16": 16, "nearf32": 32, "nearf64": 64}


@dataclass(frozen=True)
class Op:
    name: str
    body: str  # PTX of $d, $a, $b, $c, or C++ of r, a, b, c where it begins with "r ="
    types: str  # kinds of the operands, then the result's: "i32 by -> i32"; with ~, any NaN is as good
    f: Callable[..., int]
    since: int = 80  # the first architecture that has it
    variants: bool = True  # also with operands that are constants, immediates and all uniform
    error: float = 0  # relative, of results that only come near; float32
    least: float = 2.0**-140  # below that, of this

    @property
    def kinds(self) -> list[str]:
        return self.types.split("->")[0].split()

    @property
    def result(self) -> str:
        return self.types.split("->")[1].strip()

    @property
    def widths(self) -> list[int]:
        """Of the operands, then of the result."""
        return [WIDTHS[kind] for kind in (*self.kinds, self.result.rstrip("~"))]

    def accepts(self, found: int, expected: int) -> bool:
        if found == expected:
            return True
        kind = self.result.rstrip("~")
        lane = kind.removesuffix("x2")
        form = FORMATS.get(lane)
        if form is None:
            return False
        if self.error:
            x, y = form.number(found), form.number(expected)
            return x == y or abs(x - y) <= self.error * max(abs(y), self.least)
        if kind != "f64" and "~" not in self.result:
            return False
        parts = [
            (found >> s & ((1 << form.width) - 1), expected >> s & ((1 << form.width) - 1))
            for s in range(0, WIDTHS[kind], form.width)
        ]
        return all(x == y or (form.is_nan(x) and form.is_nan(y)) for x, y in parts)


def float_corners(form: Format) -> list[int]:
    one = form.bias << form.mantissa
    found = [0, 1, (1 << form.mantissa) - 1, 1 << form.mantissa, form.inf - 1, form.inf, form.inf | 1, form.nan]
    found += [one, one - 1, one + 1, one + (1 << form.mantissa), one + (1 << form.mantissa >> 1), one >> 1 & form.inf]
    found.append(one + (1 << form.mantissa >> 4))  # squared, halfway between bfloat16s
    return found + [v | form.sign for v in found]


def corners(kind: str) -> list[int]:
    if kind in FORMATS:
        return float_corners(FORMATS[kind])
    if kind.endswith("x2"):
        few = float_corners(FORMATS[kind[:-2]])
        return [low | few[(7 * i + 3) % len(few)] << 16 for i, low in enumerate(few)]
    if kind in ("by", "at"):
        return [
            0,
            1,
            2,
            7,
            8,
            15,
            16,
            17,
            31,
            32,
            33,
            40,
            63,
            64,
            65,
            127,
            128,
            255,
            *([256, M32] if kind == "by" else []),
        ]
    if kind == "sel":
        return [0, 1, 2, 3, 4, 7, 0x3210, 0x7654, 0x89AB, 0xFEDC, 0x0123, 0x4567, 0x5410, 0x7632, 0xFFFF]
    if kind.startswith("near"):
        form = FORMATS[kind[4:]]
        near = []
        for value in (
            0.5,
            1.5,
            2.5,
            3.5,
            127.5,
            128.5,
            255.5,
            32767.5,
            65535.5,
            2.0**23 + 1,
            2.0**31,
            2.0**32,
            2.0**63,
        ):
            for v in (value - 0.5, value, math.nextafter(value, 0), math.nextafter(value, math.inf), 2 * value):
                m, e = F64.split(bits_of_double(v))
                near += [form.round(m, e), form.round(-m, e)]
        return sorted({*near, *float_corners(form)})
    if kind == "angle":
        return [F32.round(*F64.split(bits_of_double(v))) for v in (0.0, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0, -0.3, -1.0, -2.5)]
    width = WIDTHS[kind]
    found = [0, 1, 2, 3, 7, 31, 32, 255, 256, 10**4, 2**15 - 1, 2**15, M16]
    if width > 16:
        found += [2**16, 2**24 - 1, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, M32 - 1, M32]
    if width > 32:
        found += [2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**63 + 1, M64 - 1, M64]
    found = [*found, *(-v % 2**width for v in (1, 2, 3, 255, 2**15))]
    return sorted({v for v in found if v or not kind.startswith("divisor")})


def bits_of_double(v: float) -> int:
    """By exact steps, not by the machine's own layout."""
    if v == 0:
        return F64.sign if math.copysign(1, v) < 0 else 0
    m, e = math.frexp(v)
    return F64.round(int(math.ldexp(m, 53)), e - 53)


def randomly(kind: str, rng: random.Random) -> int:
    width = WIDTHS[kind]
    if kind in ("by", "at"):
        return rng.randrange(70)
    if kind == "sel":
        return rng.randrange(2**16)
    if kind == "angle":
        return F32.round(*F64.split(bits_of_double(rng.uniform(-3, 3))))
    if kind.startswith("near"):
        form = FORMATS[kind[4:]]
        return form.round(rng.randrange(-(2**20), 2**20), rng.choice((-1, -2, -5, -21, 3, 12, 30)))
    if kind.endswith("x2"):
        return randomly(kind[:-2], rng) | randomly(kind[:-2], rng) << 16
    if kind in FORMATS:
        form = FORMATS[kind]
        field = rng.choice((rng.randrange(1 << form.exponent), form.bias + rng.randrange(-3, 4)))
        mantissa = rng.choice((rng.randrange(1 << form.mantissa), 1 << rng.randrange(form.mantissa)))
        return rng.randrange(2) << (width - 1) | min(field, (1 << form.exponent) - 1) << form.mantissa | mantissa
    value = rng.randrange(2**width) >> rng.choice((0, 0, rng.randrange(width)))
    return value or 5 if kind.startswith("divisor") else value


def operands(op: Op, count: int = 1024) -> list[tuple[int, ...]]:
    """Corners with corners, then mixtures and random ones."""
    rng = random.Random(op.name)
    pools = [corners(kind) for kind in op.kinds]
    found = list(product(*pools))
    rng.shuffle(found)
    found = found[: count * 3 // 4]
    while len(found) < count:
        made = [
            rng.choice(p) if rng.randrange(3) == 0 else randomly(k, rng) for p, k in zip(pools, op.kinds, strict=True)
        ]
        if len(made) == 3 and op.kinds[2] in FORMATS and rng.randrange(2):  # sums that cancel
            form = FORMATS[op.kinds[2]]
            made[2] = form.mul(made[0], made[1]) ^ form.sign
        found.append(tuple(made))
    return found
