"""Integer and bit instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from .operands import M16, M32, M64, Op


def signed(v: int, width: int = 32) -> int:
    v &= (1 << width) - 1
    return v - (1 << width) if v >> (width - 1) else v


def s64(v: int) -> int:
    return signed(v, 64)


def divided(a: int, b: int) -> int:
    """Towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a - divided(a, b) * b


def funnel(low: int, high: int, by: int, left: bool, wraps: bool) -> int:
    n, v = by & 31 if wraps else min(by, 32), high << 32 | low
    return (v << n >> 32 if left else v >> n) & M32


def extract(a: int, at: int, length: int, width: int, is_signed: bool) -> int:
    at, length = at & 255, length & 255
    if length == 0:
        return 0
    sign = a >> min(at + length - 1, width - 1) & 1 if is_signed else 0
    return sum((a >> (at + i) & 1 if i < length and at + i < width else sign) << i for i in range(width))


def insert(a: int, b: int, at: int, length: int, width: int) -> int:
    for i in range(length):
        if at + i < width:
            b = b & ~(1 << (at + i)) | (a >> i & 1) << (at + i)
    return b


def table(lut: int, a: int, b: int, c: int) -> int:
    return sum((lut >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i for i in range(32))


def permuted(a: int, b: int, sel: int) -> int:
    out, eight = 0, b << 32 | a
    for i in range(4):
        nibble = sel >> (4 * i) & 15
        byte = eight >> (8 * (nibble & 7)) & 255
        out |= (byte if nibble < 8 else 255 * (byte >> 7)) << (8 * i)
    return out


def permuted_as(mode: str, a: int, b: int, sel: int) -> int:
    n, eight = sel & 3, b << 32 | a
    picks = {
        "f4e": [n, n + 1, n + 2, n + 3],
        "b4e": [n, (n - 1) % 8, (n - 2) % 8, (n - 3) % 8],
        "rc8": [n] * 4,
        "ecl": [max(i, n) for i in range(4)],
        "ecr": [min(i, n) for i in range(4)],
        "rc16": [0, 1, 0, 1] if n % 2 == 0 else [2, 3, 2, 3],
    }[mode]
    return sum((eight >> (8 * p) & 255) << (8 * i) for i, p in enumerate(picks))


def leading(v: int, width: int, is_signed: bool, distance: bool = False) -> int:
    if is_signed and v >> (width - 1):
        v = ~v & ((1 << width) - 1)
    if v == 0:
        return M32
    return width - v.bit_length() if distance else v.bit_length() - 1


def reverse(v: int, width: int) -> int:
    return int(format(v, f"0{width}b")[::-1], 2)


def clamp(v: int, low: int, high: int) -> int:
    return min(max(v, low), high)


HALVES_64 = ".reg .b32 al, ah, bl, bh; mov.b64 {al, ah}, $a; mov.b64 {bl, bh}, $b;"


def integers() -> Iterator[Op]:
    two, three = "i32 i32 -> i32", "i32 i32 i32 -> i32"
    yield Op("add", "add.s32 $d, $a, $b;", two, lambda a, b: a + b & M32)
    yield Op("sub", "sub.s32 $d, $a, $b;", two, lambda a, b: a - b & M32)
    yield Op("add16", "add.s16 $d, $a, $b;", "i16 i16 -> i16", lambda a, b: a + b & M16)
    yield Op("add_64", "add.s64 $d, $a, $b;", "i64 i64 -> i64", lambda a, b: a + b & M64)
    yield Op("sub_64", "sub.s64 $d, $a, $b;", "i64 i64 -> i64", lambda a, b: a - b & M64)
    yield Op("neg_64", "neg.s64 $d, $a;", "i64 -> i64", lambda a: -a & M64)
    three_64 = "i64 i64 i64 -> i64"
    yield Op("add3", "r = a + b + c;", three, lambda a, b, c: a + b + c & M32)
    yield Op("sub3", "r = a - b - c;", three, lambda a, b, c: a - b - c & M32)
    yield Op("add3_64", "r = a + b + c;", three_64, lambda a, b, c: a + b + c & M64)
    yield Op("sub3_64", "r = c - a - b;", three_64, lambda a, b, c: c - a - b & M64)
    yield Op("add_shifted_64", "r = a + (b << 3);", "i64 i64 -> i64", lambda a, b: a + (b << 3) & M64)
    yield Op("index_64", "r = a + 4ll * (int)b;", "i64 i32 -> i64", lambda a, b: a + 4 * signed(b) & M64)
    yield Op("unsigned_index_64", "r = a + 8ull * b;", "i64 i32 -> i64", lambda a, b: a + 8 * b & M64)
    yield Op("shifted_sum", "r = (a << 5) + b;", two, lambda a, b: (a << 5) + b & M32)
    yield Op("shifted_difference", "r = b - (a << 5);", two, lambda a, b: b - (a << 5) & M32)
    yield Op("scaled_down", "r = ((int)a >> 7) + b;", two, lambda a, b: (signed(a) >> 7) + b & M32)
    yield Op("halved", "r = (int)a / 2 + b;", two, lambda a, b: divided(signed(a), 2) + b & M32)
    for name, first, second, f in (
        ("add_cc", "add.cc.u32", "addc.u32", lambda a, b: a + b & M64),
        ("sub_cc", "sub.cc.u32", "subc.u32", lambda a, b: a - b & M64),
    ):
        text = f"{{{HALVES_64} {first} al, al, bl; {second} ah, ah, bh; mov.b64 $d, {{al, ah}};}}"
        yield Op(name, text, "i64 i64 -> i64", f)
    # A shifted number taken away, whose carry out is 1 where the number is zero.
    yield Op("less_twice_64", "r = b - (a << 1);", "i64 i64 -> i64", lambda a, b: b - 2 * a & M64)
    # The third limb of a sum and of a difference of 96 bits.
    for name, how, sign in (("add_96", "add", 1), ("sub_96", "sub", -1)):
        text = f"{{{HALVES_64} {how}.cc.u32 al, al, bl; {how}c.cc.u32 ah, ah, bh; {how}c.u32 $d, $c, 7;}}"
        yield Op(
            name, text, "i64 i64 i32 -> i32", lambda a, b, c, s=sign: (a + (c << 64) + s * (b + (7 << 64))) >> 64 & M32
        )
    text = "{.reg .b32 t; add.cc.u32 t, $a, $b; addc.u32 $d, $c, $c;}"
    yield Op("carry_only", text, three, lambda a, b, c: 2 * c + (a + b >> 32) & M32)

    yield Op("mul_lo", "mul.lo.s32 $d, $a, $b;", two, lambda a, b: a * b & M32)
    yield Op("mul_hi_s", "mul.hi.s32 $d, $a, $b;", two, lambda a, b: signed(a) * signed(b) >> 32 & M32)
    yield Op("mul_hi_u", "mul.hi.u32 $d, $a, $b;", two, lambda a, b: a * b >> 32)
    yield Op("mul_wide_s", "mul.wide.s32 $d, $a, $b;", "i32 i32 -> i64", lambda a, b: signed(a) * signed(b) & M64)
    yield Op("mul_wide_u", "mul.wide.u32 $d, $a, $b;", "i32 i32 -> i64", lambda a, b: a * b)
    yield Op(
        "mul_wide_s16", "mul.wide.s16 $d, $a, $b;", "i16 i16 -> i32", lambda a, b: signed(a, 16) * signed(b, 16) & M32
    )
    yield Op("mul_wide_u16", "mul.wide.u16 $d, $a, $b;", "i16 i16 -> i32", lambda a, b: a * b)
    yield Op("mul_lo_16", "mul.lo.s16 $d, $a, $b;", "i16 i16 -> i16", lambda a, b: a * b & M16)
    yield Op("mul24_s", "mul24.lo.s32 $d, $a, $b;", two, lambda a, b: signed(a, 24) * signed(b, 24) & M32)
    yield Op("mad_lo", "mad.lo.s32 $d, $a, $b, $c;", three, lambda a, b, c: a * b + c & M32)
    yield Op("mul_sub", "r = c - a * b;", three, lambda a, b, c: c - a * b & M32)
    yield Op("mad_hi_s", "mad.hi.s32 $d, $a, $b, $c;", three, lambda a, b, c: (signed(a) * signed(b) >> 32) + c & M32)
    yield Op("mad_hi_u", "mad.hi.u32 $d, $a, $b, $c;", three, lambda a, b, c: (a * b >> 32) + c & M32)
    wide = "i32 i32 i64 -> i64"
    yield Op("mad_wide_s", "mad.wide.s32 $d, $a, $b, $c;", wide, lambda a, b, c: signed(a) * signed(b) + c & M64)
    yield Op("mad_wide_u", "mad.wide.u32 $d, $a, $b, $c;", wide, lambda a, b, c: a * b + c & M64)
    yield Op("mad_wide_minus", "r = (unsigned long long)a * b - c;", wide, lambda a, b, c: a * b - c & M64)
    text = "{.reg .b32 l, h, cl, ch; mov.b64 {cl, ch}, $c; mad.lo.cc.u32 l, $a, $b, cl;"
    text += "madc.hi.u32 h, $a, $b, ch; mov.b64 $d, {l, h};}"
    yield Op("mad_cc", text, wide, lambda a, b, c: a * b + c & M64)
    yield Op("mul_lo_64", "mul.lo.u64 $d, $a, $b;", "i64 i64 -> i64", lambda a, b: a * b & M64)
    yield Op("mul_hi_u64", "mul.hi.u64 $d, $a, $b;", "i64 i64 -> i64", lambda a, b: a * b >> 64)
    yield Op("mul_hi_s64", "mul.hi.s64 $d, $a, $b;", "i64 i64 -> i64", lambda a, b: s64(a) * s64(b) >> 64 & M64)
    yield Op("mad_lo_64", "mad.lo.s64 $d, $a, $b, $c;", three_64, lambda a, b, c: a * b + c & M64)
    yield Op("mad_hi_u64", "mad.hi.u64 $d, $a, $b, $c;", three_64, lambda a, b, c: (a * b >> 64) + c & M64)
    yield Op("square_plus", "r = a * a + 12345u * b;", two, lambda a, b: a * a + 12345 * b & M32)
    for width, kind in ((32, "32"), (64, "64")):
        mask = (1 << width) - 1
        types = f"i{kind} divisor{kind} -> i{kind}"
        for what, of in (("div", divided), ("rem", remainder)):
            yield Op(f"{what}_u{kind}", f"{what}.u{kind} $d, $a, $b;", types, lambda a, b, f=of: f(a, b))
            text = f"{what}.s{kind} $d, $a, $b;"
            yield Op(
                f"{what}_s{kind}", text, types, lambda a, b, f=of, w=width, m=mask: f(signed(a, w), signed(b, w)) & m
            )
    for n in (3, 7, 10, 641):
        yield Op(f"div_by_{n}", f"r = (int)a / {n};", "i32 -> i32", lambda a, n=n: divided(signed(a), n) & M32)
        yield Op(f"rem_by_{n}", f"r = a % {n}u;", "i32 -> i32", lambda a, n=n: a % n)
        yield Op(f"div_by_{n}_64", f"r = a / {n}u;", "i64 -> i64", lambda a, n=n: a // n)
    yield Op("sad_s", "sad.s32 $d, $a, $b, $c;", three, lambda a, b, c: c + abs(signed(a) - signed(b)) & M32)
    yield Op("sad_u", "sad.u32 $d, $a, $b, $c;", three, lambda a, b, c: c + abs(a - b) & M32)
    for left, right in product("su", "su"):

        def dot(a: int, b: int, c: int, left: str = left, right: str = right) -> int:
            for i in range(4):
                x, y = a >> (8 * i) & 255, b >> (8 * i) & 255
                c += (signed(x, 8) if left == "s" else x) * (signed(y, 8) if right == "s" else y)
            return c & M32

        yield Op(f"dp4a_{left}{right}", f"dp4a.{left}32.{right}32 $d, $a, $b, $c;", three, dot)

    yield Op("shl", "shl.b32 $d, $a, $b;", "i32 by -> i32", lambda a, n: a << min(n, 32) & M32)
    yield Op("shr_u", "shr.u32 $d, $a, $b;", "i32 by -> i32", lambda a, n: a >> min(n, 32))
    yield Op("shr_s", "shr.s32 $d, $a, $b;", "i32 by -> i32", lambda a, n: signed(a) >> min(n, 32) & M32)
    yield Op("shl_16", "shl.b16 $d, $a, $b;", "i16 by -> i16", lambda a, n: a << min(n, 16) & M16)
    yield Op("shr_s16", "shr.s16 $d, $a, $b;", "i16 by -> i16", lambda a, n: signed(a, 16) >> min(n, 16) & M16)
    yield Op("shr_u16", "shr.u16 $d, $a, $b;", "i16 by -> i16", lambda a, n: a >> min(n, 16))
    yield Op("shl_64", "shl.b64 $d, $a, $b;", "i64 by -> i64", lambda a, n: a << min(n, 64) & M64)
    yield Op("shr_u64", "shr.u64 $d, $a, $b;", "i64 by -> i64", lambda a, n: a >> min(n, 64))
    yield Op("shr_s64", "shr.s64 $d, $a, $b;", "i64 by -> i64", lambda a, n: s64(a) >> min(n, 64) & M64)
    for side, mode in product("lr", ("wrap", "clamp")):
        yield Op(
            f"shf_{side}_{mode}",
            f"shf.{side}.{mode}.b32 $d, $a, $b, $c;",
            "i32 i32 by -> i32",
            lambda a, b, n, s=side, m=mode: funnel(a, b, n, s == "l", m == "wrap"),
        )
    for sign, width in product("us", (32, 64)):
        yield Op(
            f"bfe_{sign}{width}",
            f"bfe.{sign}{width} $d, $a, $b, $c;",
            f"i{width} at at -> i{width}",
            lambda a, p, n, w=width, s=sign: extract(a, p, n, w, s == "s"),
        )
    for width in (32, 64):
        text = f"{{.reg .b32 n; and.b32 n, $c, 31; add.u32 n, n, 9; bfi.b{width} $d, $a, $b, $c, n;}}"
        yield Op(
            f"bfi_b{width}",
            text,
            f"i{width} i{width} at -> i{width}",
            lambda a, b, p, w=width: insert(a, b, p & 255, (p & 31) + 9, w),
        )
    yield Op("bfi_fixed", "bfi.b32 $d, $a, $b, 5, 11;", two, lambda a, b: insert(a, b, 5, 11, 32))
    for mode in ("clamp", "wrap"):

        def mask_of(p: int, n: int, wraps: bool = mode == "wrap") -> int:
            p, n = (p & 31, n & 31) if wraps else (min(p, 32), min(n, 32))
            return ((1 << n) - 1) << p & M32

        def extended(a: int, n: int, is_signed: bool, wraps: bool = mode == "wrap") -> int:
            n = n & 31 if wraps else min(n, 32)
            if n == 0:
                return 0
            kept = a & ((1 << n) - 1)
            return (signed(kept, n) if is_signed else kept) & M32

        yield Op(f"bmsk_{mode}", f"bmsk.{mode}.b32 $d, $a, $b;", "at at -> i32", mask_of)
        for sign in "su":
            yield Op(
                f"szext_{mode}_{sign}",
                f"szext.{mode}.{sign}32 $d, $a, $b;",
                "i32 by -> i32",
                lambda a, n, s=sign, f=extended: f(a, n, s == "s"),
                variants=False,  # ptxas 13.0 reads the number of bits from a constant bank that is none
            )
    for lut in (0x80, 0xF8, 0x96, 0xE8, 0x1B, 0xCA, 0x3A, 0xFE, 0x01, 0x6A):
        yield Op(
            f"lop3_{lut:02x}",
            f"lop3.b32 $d, $a, $b, $c, {lut:#x};",
            three,
            lambda a, b, c, t=lut: table(t, a, b, c),
            variants=lut in (0x1B, 0xCA),
        )
    for width in (16, 32, 64):
        types, mask = f"i{width} i{width} -> i{width}", (1 << width) - 1
        yield Op(f"and_{width}", f"and.b{width} $d, $a, $b;", types, lambda a, b: a & b)
        yield Op(f"or_{width}", f"or.b{width} $d, $a, $b;", types, lambda a, b: a | b)
        yield Op(f"xor_{width}", f"xor.b{width} $d, $a, $b;", types, lambda a, b: a ^ b)
        yield Op(f"not_{width}", f"not.b{width} $d, $a;", f"i{width} -> i{width}", lambda a, m=mask: ~a & m)
    yield Op("cnot", "cnot.b32 $d, $a;", "i32 -> i32", lambda a: int(a == 0))
    yield Op("prmt", "prmt.b32 $d, $a, $b, $c;", "i32 i32 sel -> i32", permuted)
    for mode in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"):
        yield Op(
            f"prmt_{mode}",
            f"prmt.b32.{mode} $d, $a, $b, $c;",
            "i32 i32 sel -> i32",
            lambda a, b, s, m=mode: permuted_as(m, a, b, s),
        )
    for width in (32, 64):
        types = f"i{width} -> i32"
        yield Op(f"popc_{width}", f"popc.b{width} $d, $a;", types, lambda a: a.bit_count())
        yield Op(f"clz_{width}", f"clz.b{width} $d, $a;", types, lambda a, w=width: w - a.bit_length())
        yield Op(f"brev_{width}", f"brev.b{width} $d, $a;", f"i{width} -> i{width}", lambda a, w=width: reverse(a, w))
        for sign in "us":
            for name, distance in (("bfind", False), ("bfind.shiftamt", True)):
                yield Op(
                    f"{name.replace('.', '_')}_{sign}{width}",
                    f"{name}.{sign}{width} $d, $a;",
                    types,
                    lambda a, w=width, s=sign, x=distance: leading(a, w, s == "s", x),
                )
    for width in (16, 32, 64):
        types, mask = f"i{width} i{width} -> i{width}", (1 << width) - 1
        for what, of in (("min", min), ("max", max)):
            yield Op(f"{what}_u{width}", f"{what}.u{width} $d, $a, $b;", types, lambda a, b, f=of: f(a, b))
            yield Op(
                f"{what}_s{width}",
                f"{what}.s{width} $d, $a, $b;",
                types,
                lambda a, b, f=of, w=width, m=mask: f(signed(a, w), signed(b, w)) & m,
            )
        yield Op(
            f"abs_s{width}",
            f"abs.s{width} $d, $a;",
            f"i{width} -> i{width}",
            lambda a, w=width, m=mask: abs(signed(a, w)) & m,
        )
    yield Op(
        "clamped",
        "r = max(0, min((int)a, (int)b));",
        two,
        lambda a, b: max(0, min(signed(a), signed(b))),
    )
    for name, of in (("min", min), ("max", max)):
        yield Op(
            f"three_{name}",
            f"r = {name}({name}((int)a, (int)b), (int)c);",
            three,
            lambda a, b, c, f=of: f(map(signed, (a, b, c))) & M32,
        )
        yield Op(f"three_{name}_u", f"r = {name}({name}(a, b), c);", three, lambda a, b, c, f=of: f(a, b, c))
    yield Op(
        "three_max_relu",
        "r = __vimax3_s32_relu(a, b, c);",
        three,
        lambda a, b, c: max(0, *map(signed, (a, b, c))),
    )
    yield Op(
        "three_min_s16x2",
        "r = __vimin3_s16x2(a, b, c);",
        three,
        lambda a, b, c: sum((min(signed(v >> s, 16) for v in (a, b, c)) & M16) << s for s in (0, 16)),
    )
    yield Op(
        "add_halves",
        "add.u16x2 $d, $a, $b;",
        two,
        lambda a, b: sum(((a >> s) + (b >> s) & M16) << s for s in (0, 16)),
        since=90,
    )
    yield Op("add_min", "r = min((int)(a + b), (int)c);", three, lambda a, b, c: min(signed(a + b), signed(c)) & M32)
    yield Op("add_max_u", "r = max(a + b, c);", three, lambda a, b, c: max(a + b & M32, c))
    yield Op(
        "viaddmin_relu",
        "r = __viaddmin_s32_relu(a, b, c);",
        three,
        lambda a, b, c: max(0, min(signed(a + b), signed(c))),
    )
    yield Op(
        "vimin_s16x2",
        "r = __vmins2(a, b);",
        two,
        lambda a, b: sum((min(signed(a >> s, 16), signed(b >> s, 16)) & M16) << s for s in (0, 16)),
    )
    for width in (32, 64):
        orders = [("s", c) for c in ("eq", "ne", "lt", "le", "gt", "ge")]
        orders += [("u", c) for c in ("eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs")]
        types = f"i{width} i{width} -> i32"
        yield Op(
            f"setp_{width}",
            all_comparisons([(f"{s}{width}", c) for s, c in orders]),
            types,
            integer_comparisons(orders, width),
        )
        for sign in "su":
            yield Op(
                f"setp_combined_{sign}{width}",
                combined_comparisons(f"{sign}{width}", "lt", width),
                f"i{width} i{width} i32 -> i32",
                lambda a, b, c, s=sign, w=width: combinations(
                    signed(a, w) < signed(b, w) if s == "s" else a < b, c & 1 == 1
                ),
            )
        yield Op(
            f"selp_{width}",
            f"{{.reg .pred p; setp.gt.s32 p, $c, 5; selp.b{width} $d, $a, $b, p;}}",
            f"i{width} i{width} i32 -> i{width}",
            lambda a, b, c: a if signed(c) > 5 else b,
        )
    yield Op("set_u32", "set.lt.u32.s32 $d, $a, $b;", two, lambda a, b: M32 if signed(a) < signed(b) else 0)
    yield Op("set_f32", "set.ge.f32.u32 $d, $a, $b;", two, lambda a, b: 0x3F800000 if a >= b else 0)
    yield Op("slct", "slct.b32.s32 $d, $a, $b, $c;", three, lambda a, b, c: a if signed(c) >= 0 else b)
    text = (
        "{.reg .pred p, q, r, s, t; .reg .b32 n; setp.lt.s32 p, $a, $b; setp.lt.u32 q, $a, $c; setp.ne.s32 r, $b, $c;"
        "and.pred s, p, q; xor.pred t, s, r; or.pred t, t, !p; not.pred s, t; selp.b32 $d, 1, 0, t;"
        "@s add.u32 $d, $d, 2; and.pred t, r, !q; @t add.u32 $d, $d, 4; @!t add.u32 $d, $d, 8;}"
    )

    def logic(a: int, b: int, c: int) -> int:
        p, q, r = signed(a) < signed(b), a < c, b != c
        t = ((p and q) != r) or not p
        return t + 2 * (not t) + (4 if r and not q else 8)

    yield Op("predicates", text, three, logic)
    for to, of in (("s8", "s32"), ("u8", "s32"), ("s16", "s32"), ("u16", "s32"), ("s8", "u32"), ("u32", "s32")):

        def saturated(a: int, to: str = to, of: str = of) -> int:
            bits, value = int(to[1:]), signed(a) if of[0] == "s" else a
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if to[0] == "s" else (0, (1 << bits) - 1)
            return clamp(value, low, high) & M32

        yield Op(f"cvt_sat_{to}_{of}", f"cvt.sat.{to}.{of} $d, $a;", "i32 -> i32", saturated)
    for to, of in (("s64", "s32"), ("u64", "u32"), ("s64", "s16"), ("s64", "s8"), ("s32", "s64"), ("u16", "u64")):
        width, source = int(to[1:]), int(of[1:])
        yield Op(
            f"cvt_{to}_{of}",
            f"cvt.{to}.{of} $d, $a;",
            f"i{max(source, 16)} -> i{width}",
            lambda a, w=width, s=source, k=of[0]: (signed(a, s) if k == "s" else a & ((1 << s) - 1)) & ((1 << w) - 1),
        )
    for of in ("s8", "u8", "s16", "u16"):
        bits = int(of[1:])
        yield Op(
            f"cvt_s32_{of}",
            f"cvt.s32.{of} $d, $a;",
            "i32 -> i32",
            lambda a, s=bits, k=of[0]: (signed(a, s) if k == "s" else a & ((1 << s) - 1)) & M32,
        )


def all_comparisons(of: list[tuple[str, str]]) -> str:
    """A bit of the result for each."""
    text = "{.reg .pred p; mov.b32 $d, 0;"
    for bit, (kind, comparison) in enumerate(of):
        text += f"setp.{comparison}.{kind} p, $a, $b; @p or.b32 $d, $d, {1 << bit};"
    return text + "}"


def integer_comparisons(of: list[tuple[str, str]], width: int) -> Callable[[int, int], int]:
    def f(a: int, b: int) -> int:
        found = 0
        for bit, (sign, comparison) in enumerate(of):
            x, y = (signed(a, width), signed(b, width)) if sign == "s" else (a, b)
            holds = {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}
            holds |= {"lo": x < y, "ls": x <= y, "hi": x > y, "hs": x >= y}
            found |= holds[comparison] << bit
        return found

    return f


def combined_comparisons(kind: str, comparison: str, width: int) -> str:
    """A comparison and its opposite, each with a condition, plain and negated: 12 bits."""
    text = "{.reg .pred p, q, c; .reg .b32 n; mov.b32 $d, 0; and.b32 n, $c, 1; setp.eq.u32 c, n, 1;"
    bit = 1
    for combine in ("and", "or", "xor"):
        for negation in ("", "!"):
            text += f"setp.{comparison}.{combine}.{kind} p|q, $a, $b, {negation}c;"
            text += f"@p or.b32 $d, $d, {bit}; @q or.b32 $d, $d, {2 * bit};"
            bit *= 4
    return text + "}"


def combinations(holds: bool, condition: bool) -> int:
    found, bit = 0, 1
    for combine in ("and", "or", "xor"):
        for c in (condition, not condition):
            for h in (holds, not holds):
                found |= bit * {"and": h and c, "or": h or c, "xor": h != c}[combine]
                bit *= 2
    return found
