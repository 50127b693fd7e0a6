"""Conversions between formats, and between them and integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .exact import BF16, F16, F32, F64
from .floats import flushing, saturating
from .halves import relu
from .integers import signed
from .operands import FORMATS, M16, M32, MODES, Op

INTEGER_MODES = ("rni", "rzi", "rmi", "rpi")


def between_floats() -> Iterator[Op]:
    for mode in MODES:
        for to, of in (("f32", "f64"), ("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64")):
            if of == "f64" and to == "bf16":
                continue
            if to.endswith("f16") and mode not in ("rn", "rz") and (to == "bf16" or of == "f32"):
                continue

            def narrowed(a: int, to: str = to, of: str = of, mode: str = mode) -> int:
                return FORMATS[of].convert(FORMATS[to], a, mode)

            yield Op(
                f"cvt_{mode}_{to}_{of}", f"cvt.{mode}.{to}.{of} $d, $a;", f"{of} -> {to}", narrowed, variants=False
            )
    for to, of, since in (("f64", "f32", 80), ("f32", "f16", 80), ("f64", "f16", 80), ("f32", "bf16", 90)):

        def widened(a: int, to: str = to, of: str = of) -> int:
            return FORMATS[of].convert(FORMATS[to], a)

        yield Op(f"cvt_{to}_{of}", f"cvt.{to}.{of} $d, $a;", f"{of} -> {to}~", widened, since, variants=False)
    upper = "{.reg .b16 l, h; mov.b32 {l, h}, $a; cvt.f32.f16 $d, h;}"
    yield Op("cvt_f32_upper", upper, "f16x2 -> f32~", lambda a: F16.convert(F32, a >> 16))
    for mode in ("rn", "rz"):
        for to in ("f16", "bf16"):
            form = FORMATS[to]

            def narrow(a: int, to: str = to, mode: str = mode) -> int:
                return F32.convert(FORMATS[to], a, mode)

            def pair(a: int, b: int, f: Callable[[int], int] = narrow) -> int:
                return f(a) << 16 | f(b)

            positive = relu(form, narrow)
            types = f"f32 f32 -> {to}x2"
            yield Op(f"pack_{mode}_{to}", f"cvt.{mode}.{to}x2.f32 $d, $a, $b;", types, pair)
            yield Op(
                f"pack_{mode}_relu_{to}",
                f"cvt.{mode}.relu.{to}x2.f32 $d, $a, $b;",
                types,
                lambda a, b, f=positive: pair(a, b, f),
            )
            yield Op(f"cvt_{mode}_relu_{to}", f"cvt.{mode}.relu.{to}.f32 $d, $a;", f"f32 -> {to}", positive)
    yield Op("cvt_sat_f32", "cvt.sat.f32.f32 $d, $a;", "f32 -> f32", saturating(F32, lambda a: F32.convert(F32, a)))
    yield Op("cvt_ftz_f16", "cvt.rn.ftz.f16.f32 $d, $a;", "f32 -> f16", lambda a: F32.convert(F16, F32.flush(a)))
    flushed = flushing(F32, lambda a: a)
    yield Op("cvt_ftz_f32_f64", "cvt.rn.ftz.f32.f64 $d, $a;", "f64 -> f32", lambda a: flushed(F64.convert(F32, a)))
    yield Op("cvt_ftz_f64_f32", "cvt.ftz.f64.f32 $d, $a;", "f32 -> f64", lambda a: F32.convert(F64, F32.flush(a)))
    code = "r = __bfloat16_as_ushort(__float2bfloat16(__uint_as_float(a)));"
    yield Op("float2bfloat16", code, "f32 -> bf16", lambda a: F32.convert(BF16, a))
    code = "r = __float_as_uint(__bfloat162float(__ushort_as_bfloat16(a)));"
    yield Op("bfloat162float", code, "bf16 -> f32~", lambda a: BF16.convert(F32, a))
    for mode in INTEGER_MODES:
        for kind in ("f32", "f64", "f16"):
            form = FORMATS[kind]

            def integral(a: int, kind: str = kind, mode: str = mode) -> int:
                return FORMATS[kind].to_integral(a, mode)

            types = f"near{kind} -> {kind}"
            yield Op(f"round_{mode}_{kind}", f"cvt.{mode}.{kind}.{kind} $d, $a;", types, integral, variants=False)
    code = "cvt.rpi.ftz.f32.f32 $d, $a;"
    yield Op("round_rpi_ftz", code, "f32 -> f32", lambda a: F32.to_integral(F32.flush(a), "rpi"), variants=False)


def to_integers() -> Iterator[Op]:
    for kind in ("f32", "f64", "f16"):
        for mode in INTEGER_MODES:
            for to in ("s32", "u32", "s64", "u64", "s16", "u16", "s8", "u8"):
                if int(to[1:]) < 32 and mode != "rzi":
                    continue

                def whole(a: int, kind: str = kind, mode: str = mode, to: str = to) -> int:
                    bits = int(to[1:])
                    v = FORMATS[kind].to_integer(a, mode, bits, to[0] == "s")
                    return signed(v, bits) % (1 << max(bits, 16)) if to[0] == "s" else v

                types = f"near{kind} -> i{max(16, int(to[1:]))}"
                name = f"cvt_{mode}_{to}_{kind}"
                yield Op(name, f"cvt.{mode}.{to}.{kind} $d, $a;", types, whole, variants=False)
    yield Op(
        "cvt_rpi_ftz_s32",
        "cvt.rpi.ftz.s32.f32 $d, $a;",
        "f32 -> i32",
        lambda a: F32.to_integer(F32.flush(a), "rpi", 32, True),
    )
    text = "{.reg .f32 x; abs.f32 x, $a; neg.f32 x, x; cvt.rmi.s32.f32 $d, x;}"
    yield Op("cvt_minus_abs", text, "nearf32 -> i32", lambda a: F32.to_integer(a | F32.sign, "rmi", 32, True))


def of_integers() -> Iterator[Op]:
    for to in ("f32", "f64", "f16"):
        for of in ("s32", "u32", "s64", "u64", "s16", "u16", "s8", "u8"):
            for mode in MODES:
                if mode != "rn" and (int(of[1:]) < 32 or to == "f16"):
                    continue

                def made(a: int, to: str = to, of: str = of, mode: str = mode) -> int:
                    bits = int(of[1:])
                    v = a & ((1 << bits) - 1)
                    return FORMATS[to].of_integer(signed(v, bits) if of[0] == "s" else v, mode)

                types = f"i{max(16, int(of[1:]))} -> {to}"
                name = f"cvt_{mode}_{to}_{of}"
                yield Op(name, f"cvt.{mode}.{to}.{of} $d, $a;", types, made, variants=False)
    for byte in range(4):
        code = f"r = __float_as_uint((float)(unsigned char)(a >> {8 * byte}));"
        yield Op(f"byte_{byte}", code, "i32 -> f32", lambda a, b=byte: F32.of_integer(a >> (8 * b) & 255))
        code = f"r = __float_as_uint((float)(signed char)(a >> {8 * byte}));"
        yield Op(f"signed_byte_{byte}", code, "i32 -> f32", lambda a, b=byte: F32.of_integer(signed(a >> (8 * b), 8)))
    for half in range(2):
        code = f"r = __float_as_uint((float)(unsigned short)(a >> {16 * half}));"
        yield Op(f"half_{half}", code, "i32 -> f32", lambda a, h=half: F32.of_integer(a >> (16 * h) & M16))
        code = f"r = __float_as_uint((float)(short)(a >> {16 * half}));"
        yield Op(f"signed_half_{half}", code, "i32 -> f32", lambda a, h=half: F32.of_integer(signed(a >> (16 * h), 16)))
    code = "r = __float_as_uint((float)-(int)a);"
    yield Op("minus", code, "i32 -> f32", lambda a: F32.of_integer(signed(-a & M32)))


def conversions() -> Iterator[Op]:
    yield from between_floats()
    yield from to_integers()
    yield from of_integers()
