"""Arithmetic and comparisons of float32 and float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

from .exact import F32, F64, Format
from .integers import M32, all_comparisons, combinations, combined_comparisons
from .operands import MODES, Op, bits_of_double

ORDERED = ("eq", "ne", "lt", "le", "gt", "ge")
UNORDERED = tuple(f"{c}u" for c in ORDERED)


def compares(form: Format, comparison: str, a: int, b: int) -> bool:
    unordered = form.is_nan(a) or form.is_nan(b)
    if comparison in ("num", "nan"):
        return unordered == (comparison == "nan")
    if unordered:
        return comparison in UNORDERED
    x, y = form.number(a), form.number(b)
    return {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[comparison[:2]]


def flushing(form: Format, f: Callable[..., int]) -> Callable[..., int]:
    return lambda *args: form.flush(f(*map(form.flush, args)))


def saturating(form: Format, f: Callable[..., int]) -> Callable[..., int]:
    one = form.bias << form.mantissa

    def g(*args: int) -> int:
        v = f(*args)
        return 0 if form.is_nan(v) or form.is_negative(v) else min(v, one)

    return g


def double_of(bits: int) -> float:
    v = F32.number(bits)
    return math.copysign(0, -1 if F32.is_negative(bits) else 1) if v == 0 else float(v)


def approximately(f: Callable[[float], float]) -> Callable[[int], int]:
    """float32, of flushed operands: rounded from double's own function, which is compared with a tolerance."""

    def g(a: int) -> int:
        x = double_of(F32.flush(a))
        try:
            y = f(x)
        except (ValueError, OverflowError):
            y = math.nan
        except ZeroDivisionError:
            y = math.copysign(math.inf, x)
        if math.isnan(y):
            return F32.nan
        if math.isinf(y):
            return F32.inf | (F32.sign if y < 0 else 0)
        return F32.flush(F32.round(*F64.split(bits_of_double(y)), negative_zero=math.copysign(1, y) < 0))

    return g


def logarithm(x: float) -> float:
    return -math.inf if x == 0 else math.log2(x)


def power(x: float) -> float:
    return math.inf if x > 1024 else 0.0 if x < -1100 else 2.0**x


def root_reciprocal(x: float) -> float:
    return math.copysign(math.inf, x) if x == 0 else 1 / math.sqrt(x)


def floats() -> Iterator[Op]:
    for kind, form in (("f32", F32), ("f64", F64)):
        width = form.width
        for mode in MODES:
            is_first = mode == "rn"
            of2, of3 = f"{kind} {kind} -> f{width}", f"{kind} {kind} {kind} -> f{width}"
            yield Op(
                f"add_{mode}_{kind}",
                f"add.{mode}.{kind} $d, $a, $b;",
                of2,
                lambda a, b, f=form, m=mode: f.add(a, b, m),
                variants=is_first,
            )
            yield Op(
                f"sub_{mode}_{kind}",
                f"sub.{mode}.{kind} $d, $a, $b;",
                of2,
                lambda a, b, f=form, m=mode: f.add(a, b ^ f.sign, m),
                variants=is_first,
            )
            yield Op(
                f"mul_{mode}_{kind}",
                f"mul.{mode}.{kind} $d, $a, $b;",
                of2,
                lambda a, b, f=form, m=mode: f.mul(a, b, m),
                variants=is_first,
            )
            yield Op(
                f"fma_{mode}_{kind}",
                f"fma.{mode}.{kind} $d, $a, $b, $c;",
                of3,
                lambda a, b, c, f=form, m=mode: f.fma(a, b, c, m),
                variants=is_first,
            )
            yield Op(
                f"div_{mode}_{kind}",
                f"div.{mode}.{kind} $d, $a, $b;",
                of2,
                lambda a, b, f=form, m=mode: f.div(a, b, m),
                variants=is_first,
            )
            yield Op(
                f"rcp_{mode}_{kind}",
                f"rcp.{mode}.{kind} $d, $a;",
                f"{kind} -> f{width}",
                lambda a, f=form, m=mode: f.div(f.bias << f.mantissa, a, m),
                variants=False,
            )
            yield Op(
                f"sqrt_{mode}_{kind}",
                f"sqrt.{mode}.{kind} $d, $a;",
                f"{kind} -> f{width}",
                lambda a, f=form, m=mode: f.sqrt(a, m),
                variants=False,
            )
        for what in ("min", "max"):
            yield Op(
                f"{what}_{kind}",
                f"{what}.{kind} $d, $a, $b;",
                of2,
                lambda a, b, f=form, w=what: f.pick(a, b, w == "min"),
            )
        negated = (
            f"{{.reg .{kind} x, y; neg.{kind} x, $a; abs.{kind} y, $c; neg.{kind} y, y; fma.rn.{kind} $d, x, $b, y;}}"
        )
        yield Op(
            f"signs_{kind}",
            negated,
            of3,
            lambda a, b, c, f=form: f.fma(a ^ f.sign, b, c | f.sign),
        )
        yield Op(
            f"abs_sum_{kind}",
            f"{{.reg .{kind} x, y; abs.{kind} x, $a; abs.{kind} y, $b; sub.rn.{kind} $d, x, y;}}",
            of2,
            lambda a, b, f=form: f.add(a & ~f.sign, b | f.sign),
        )
        for name, f1 in (("abs", lambda a, f=form: a & ~f.sign), ("neg", lambda a, f=form: a ^ f.sign)):
            yield Op(f"{name}_{kind}", f"{name}.{kind} $d, $a;", f"{kind} -> f{width}~", f1, variants=False)
        yield Op(
            f"copysign_{kind}",
            f"copysign.{kind} $d, $a, $b;",
            of2 + "~",
            lambda a, b, f=form: b & ~f.sign | a & f.sign,
        )
        every = [*ORDERED, *UNORDERED, "num", "nan"]
        yield Op(
            f"setp_{kind}",
            all_comparisons([(kind, c) for c in every]),
            f"{kind} {kind} -> i32",
            lambda a, b, f=form, every=every: sum(compares(f, c, a, b) << i for i, c in enumerate(every)),
        )
        for comparison in ("lt", "geu"):
            yield Op(
                f"setp_combined_{comparison}_{kind}",
                combined_comparisons(kind, comparison, width),
                f"{kind} {kind} i32 -> i32",
                lambda a, b, c, f=form, k=comparison: combinations(compares(f, k, a, b), c & 1 == 1),
            )
        text = "{.reg .pred p; mov.b32 $d, 0;"
        tests = ("finite", "infinite", "number", "notanumber", "normal", "subnormal")
        for i, name in enumerate(tests):
            text += f"testp.{name}.{kind} p, $a; @p or.b32 $d, $d, {1 << i};"

        def tested(a: int, f: Format = form) -> int:
            nan, inf = f.is_nan(a), f.is_inf(a)
            normal = not (nan or inf or f.is_denormal(a))
            return sum(v << i for i, v in enumerate((not nan and not inf, inf, not nan, nan, normal, f.is_denormal(a))))

        yield Op(f"testp_{kind}", text + "}", f"{kind} -> i32", tested)
    two, three, one = "f32 f32 -> f32", "f32 f32 f32 -> f32", "f32 -> f32"
    for mode in MODES:
        yield Op(
            f"add_ftz_{mode}",
            f"add.{mode}.ftz.f32 $d, $a, $b;",
            two,
            flushing(F32, lambda a, b, m=mode: F32.add(a, b, m)),
            variants=False,
        )
        yield Op(
            f"mul_ftz_{mode}",
            f"mul.{mode}.ftz.f32 $d, $a, $b;",
            two,
            flushing(F32, lambda a, b, m=mode: F32.mul(a, b, m)),
            variants=False,
        )
        yield Op(
            f"fma_ftz_{mode}",
            f"fma.{mode}.ftz.f32 $d, $a, $b, $c;",
            three,
            flushing(F32, lambda a, b, c, m=mode: F32.fma(a, b, c, m)),
            variants=False,
        )
    yield Op("add_sat", "add.sat.f32 $d, $a, $b;", two, saturating(F32, F32.add))
    yield Op("mul_sat", "mul.sat.f32 $d, $a, $b;", two, saturating(F32, F32.mul))
    yield Op("fma_sat", "fma.rn.sat.f32 $d, $a, $b, $c;", three, saturating(F32, F32.fma))
    yield Op("div_ftz", "div.rn.ftz.f32 $d, $a, $b;", two, flushing(F32, F32.div))
    yield Op("sqrt_ftz", "sqrt.rn.ftz.f32 $d, $a;", one, flushing(F32, F32.sqrt), variants=False)
    for what, nan in product(("min", "max"), (True, False)):
        name, propagates = f"{what}{'_nan' if nan else ''}", ".NaN" if nan else ""
        yield Op(
            f"{name}_ftz",
            f"{what}.ftz{propagates}.f32 $d, $a, $b;",
            two,
            flushing(F32, lambda a, b, w=what, n=nan: F32.pick(a, b, w == "min", n)),
        )
        if nan:
            yield Op(
                f"{name}_f32",
                f"{what}.NaN.f32 $d, $a, $b;",
                two,
                lambda a, b, w=what: F32.pick(a, b, w == "min", True),
            )

        def by_magnitude(a: int, b: int, w: str = what, n: bool = nan) -> int:
            v = F32.pick(a & ~F32.sign, b & ~F32.sign, w == "min", n)
            return v if F32.is_nan(v) else v | (a ^ b) & F32.sign

        yield Op(f"{name}_xorsign", f"{what}{propagates}.xorsign.abs.f32 $d, $a, $b;", two, by_magnitude, since=90)
    yield Op(
        "setp_ftz",
        all_comparisons([("ftz.f32", c) for c in ("eq", "lt", "geu", "ne")]),
        "f32 f32 -> i32",
        lambda a, b: sum(
            compares(F32, c, F32.flush(a), F32.flush(b)) << i for i, c in enumerate(("eq", "lt", "geu", "ne"))
        ),
    )
    yield Op("set_lt", "set.lt.f32.f32 $d, $a, $b;", two, lambda a, b: 0x3F800000 if compares(F32, "lt", a, b) else 0)
    yield Op(
        "set_neu",
        "set.neu.u32.f32 $d, $a, $b;",
        "f32 f32 -> i32",
        lambda a, b: M32 if compares(F32, "neu", a, b) else 0,
    )
    yield Op(
        "slct_f32",
        "slct.f32.f32 $d, $a, $b, $c;",
        "i32 i32 f32 -> i32",
        lambda a, b, c: a if compares(F32, "ge", c, 0) else b,
    )
    yield Op(
        "selp_f32",
        "{.reg .pred p; setp.gt.f32 p, $c, $a; selp.f32 $d, $a, $b, p;}",
        "f32 f32 f32 -> i32",
        lambda a, b, c: a if compares(F32, "gt", c, a) else b,
    )
    near = 2.0**-20
    yield Op("div_full", "div.full.f32 $d, $a, $b;", "angle angle -> f32", F32.div, error=near, variants=False)
    for name, f in (("rcp", lambda x: 1 / x), ("sqrt", math.sqrt), ("rsqrt", root_reciprocal)):
        yield Op(f"{name}_approx", f"{name}.approx.ftz.f32 $d, $a;", one, approximately(f), error=near)
    yield Op("ex2_approx", "ex2.approx.ftz.f32 $d, $a;", one, approximately(power), error=near)
    yield Op("lg2_approx", "lg2.approx.ftz.f32 $d, $a;", one, approximately(logarithm), error=near)
    for name, f, error in (("sin", math.sin, 2.0**-19), ("cos", math.cos, 2.0**-19), ("tanh", math.tanh, 2.0**-10)):
        yield Op(f"{name}_approx", f"{name}.approx.f32 $d, $a;", "angle -> f32", approximately(f), error=error, least=1)
    yield Op(
        "expf", "r = __float_as_uint(expf(__uint_as_float(a)));", "angle -> f32", approximately(math.exp), error=near
    )
    yield Op(
        "logf",
        "r = __float_as_uint(logf(fabsf(__uint_as_float(a))));",
        "angle -> f32",
        approximately(lambda x: math.log(abs(x)) if x else -math.inf),
        error=near,
    )
