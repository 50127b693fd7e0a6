"""IEEE 754 arithmetic on bits, by integers alone: what every rounding of every format gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Format:
    exponent: int  # bits
    mantissa: int  # bits, without the leading one
    nan: int  # what an operation makes; of float64 any NaN will do

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def sign(self) -> int:
        return 1 << (self.width - 1)

    @property
    def inf(self) -> int:
        return ((1 << self.exponent) - 1) << self.mantissa

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @property
    def least(self) -> int:
        """The exponent of the lowest bit of a denormal."""
        return 1 - self.bias - self.mantissa

    def is_nan(self, bits: int) -> bool:
        return bits & ~self.sign > self.inf

    def is_inf(self, bits: int) -> bool:
        return bits & ~self.sign == self.inf

    def is_zero(self, bits: int) -> bool:
        return bits & ~self.sign == 0

    def is_denormal(self, bits: int) -> bool:
        return 0 < bits & ~self.sign < 1 << self.mantissa

    def is_negative(self, bits: int) -> bool:
        return bits & self.sign != 0

    def flush(self, bits: int) -> int:
        return bits & self.sign if self.is_denormal(bits) else bits

    def split(self, bits: int) -> tuple[int, int]:
        """A finite number as m * 2**e, with the sign in m."""
        field, m = bits >> self.mantissa & ((1 << self.exponent) - 1), bits & ((1 << self.mantissa) - 1)
        if field:
            m |= 1 << self.mantissa
        return (-m if self.is_negative(bits) else m), max(field, 1) - 1 + self.least

    def value(self, bits: int) -> Fraction:
        m, e = self.split(bits)
        return Fraction(m) * Fraction(2) ** e

    def number(self, bits: int) -> Fraction | float:
        """What compares as the number does: zeros alike, NaN with nothing."""
        if self.is_nan(bits):
            return math.nan
        if self.is_inf(bits):
            return -math.inf if self.is_negative(bits) else math.inf
        return self.value(bits)

    def round(self, m: int, e: int, mode: str = "rn", more: bool = False, negative_zero: bool = False) -> int:
        """The bits of m * 2**e, rounded once. `more`: a little farther from zero than that."""
        sign = self.sign if m < 0 or (m == 0 and negative_zero) else 0
        m = abs(m)
        if m == 0 and not more:
            return sign
        lowest = max(e + m.bit_length() - 1 - self.mantissa, self.least)
        if lowest <= e:
            if more:  # a bit more on the way
                m, e = 2 * m + 1, e - 1
                lowest = max(e + m.bit_length() - 1 - self.mantissa, self.least)
                if lowest <= e:
                    raise ValueError("too few bits to know how to round")
            else:
                m, e = m << (e - lowest), lowest
        shift = lowest - e
        kept, rest, half = m >> shift, m & ((1 << shift) - 1), 1 << shift >> 1
        inexact = rest != 0 or more
        if mode == "rn":
            up = shift > 0 and (rest > half or (rest == half and (more or kept & 1 == 1)))
        elif mode == "rz":
            up = False
        else:
            up = inexact and (mode == "rm") == bool(sign)
        kept += up
        bits = kept + ((lowest - self.least) << self.mantissa)  # a carry goes on into the exponent
        if bits >= self.inf:
            away = mode == "rn" or (mode == "rp" and not sign) or (mode == "rm" and sign)
            bits = self.inf if away else self.inf - 1
        return sign | bits

    def fma(self, a: int, b: int, c: int, mode: str = "rn") -> int:
        if self.is_nan(a) or self.is_nan(b) or self.is_nan(c):
            return self.nan
        negative = self.is_negative(a) != self.is_negative(b)
        if self.is_inf(a) or self.is_inf(b):
            if self.is_zero(a) or self.is_zero(b) or (self.is_inf(c) and self.is_negative(c) != negative):
                return self.nan
            return self.inf | (self.sign if negative else 0)
        if self.is_inf(c):
            return c
        (ma, ea), (mb, eb), (mc, ec) = self.split(a), self.split(b), self.split(c)
        m, e = ma * mb, ea + eb
        is_zero, both = m == 0 and mc == 0, negative and self.is_negative(c)
        either = negative or self.is_negative(c)
        if e > ec:
            m, e = m << (e - ec), ec
        m += mc << (ec - e)
        minus = (both or (either and mode == "rm")) if is_zero else mode == "rm"
        return self.round(m, e, mode, negative_zero=minus)

    def add(self, a: int, b: int, mode: str = "rn") -> int:
        return self.fma(a, self.bias << self.mantissa, b, mode)

    def mul(self, a: int, b: int, mode: str = "rn") -> int:
        if self.is_nan(a) or self.is_nan(b):
            return self.nan
        negative = self.is_negative(a) != self.is_negative(b)
        if self.is_inf(a) or self.is_inf(b):
            return self.nan if self.is_zero(a) or self.is_zero(b) else self.inf | (self.sign if negative else 0)
        (ma, ea), (mb, eb) = self.split(a), self.split(b)
        return self.round(ma * mb, ea + eb, mode, negative_zero=negative)

    def div(self, a: int, b: int, mode: str = "rn") -> int:
        if self.is_nan(a) or self.is_nan(b):
            return self.nan
        sign = self.sign if self.is_negative(a) != self.is_negative(b) else 0
        if self.is_inf(a):
            return self.nan if self.is_inf(b) else self.inf | sign
        if self.is_zero(b):
            return self.nan if self.is_zero(a) else self.inf | sign
        if self.is_inf(b) or self.is_zero(a):
            return sign
        (ma, ea), (mb, eb) = self.split(a), self.split(b)
        more_bits = 2 * self.mantissa + 8
        quotient, rest = divmod(abs(ma) << more_bits, abs(mb))
        return self.round(-quotient if sign else quotient, ea - eb - more_bits, mode, more=rest != 0)

    def sqrt(self, a: int, mode: str = "rn") -> int:
        if self.is_nan(a) or (self.is_negative(a) and not self.is_zero(a)):
            return self.nan
        if self.is_inf(a) or self.is_zero(a):
            return a
        m, e = self.split(a)
        shift = 2 * self.mantissa + 8 + (e & 1)
        root = math.isqrt(m << shift)
        return self.round(root, (e - shift) // 2, mode, more=root * root != m << shift)

    def pick(self, a: int, b: int, wants_min: bool, propagates: bool = False) -> int:
        """min or max: the other of a NaN and a number unless NaN propagates, -0 below +0."""
        if self.is_nan(a) or self.is_nan(b):
            if propagates or (self.is_nan(a) and self.is_nan(b)):
                return self.nan
            return b if self.is_nan(a) else a

        def key(v: int) -> tuple[Fraction | float, bool]:
            return self.number(v), not self.is_negative(v)

        return min(a, b, key=key) if wants_min else max(a, b, key=key)

    def convert(self, to: Format, bits: int, mode: str = "rn") -> int:
        if self.is_nan(bits):
            return to.nan
        sign = to.sign if self.is_negative(bits) else 0
        if self.is_inf(bits):
            return to.inf | sign
        m, e = self.split(bits)
        return to.round(m, e, mode, negative_zero=sign != 0)

    def of_integer(self, value: int, mode: str = "rn") -> int:
        return self.round(value, 0, mode)

    def integral(self, bits: int, mode: str) -> int:
        """The integer that a finite number is rounded to: rni, rzi, rmi or rpi."""
        value = self.value(bits)
        down = math.floor(value)
        if mode == "rmi" or value == down:
            return down
        if mode == "rpi":
            return down + 1
        if mode == "rzi":
            return down if value > 0 else down + 1
        rest = value - down
        return down + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and down % 2 == 1))

    def to_integer(self, bits: int, mode: str, width: int, signed: bool) -> int:
        """Clamped to the range; NaN is as PTX says."""
        if self.is_nan(bits):
            return 1 << (width - 1) if self.width == 64 or width == 64 else 0
        least, most = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if signed else (0, (1 << width) - 1)
        if self.is_inf(bits):
            return (least if self.is_negative(bits) else most) % (1 << width)
        return min(max(self.integral(bits, mode), least), most) % (1 << width)

    def to_integral(self, bits: int, mode: str) -> int:
        """Rounded to an integer, in the format."""
        if self.is_nan(bits):
            return self.nan
        if self.is_inf(bits):
            return bits
        return self.round(self.integral(bits, mode), 0, negative_zero=self.is_negative(bits))


F16 = Format(5, 10, 0x7FFF)
BF16 = Format(8, 7, 0x7FFF)
F32 = Format(8, 23, 0x7FFFFFFF)
F64 = Format(11, 52, 0x7FF8000000000000)
