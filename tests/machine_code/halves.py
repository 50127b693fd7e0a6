"""Arithmetic and comparisons of float16 and bfloat16, one by one and in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

from .exact import BF16, F16, Format
from .floats import ORDERED, UNORDERED, compares, flushing, saturating
from .integers import all_comparisons
from .operands import M16, Op


def twice(f: Callable[..., int]) -> Callable[..., int]:
    return lambda *args: sum(f(*(v >> s & M16 for v in args)) << s for s in (0, 16))


def once(f: Callable[..., int]) -> Callable[..., int]:
    return f


def relu(form: Format, f: Callable[..., int]) -> Callable[..., int]:
    def g(*args: int) -> int:
        v = f(*args)
        return form.nan if form.is_nan(v) else 0 if form.is_negative(v) else v

    return g


def comparisons_of_pairs(kind: str, form: Format, since: int) -> Iterator[Op]:
    pair, unit = f"{kind}x2", form.bias << form.mantissa
    types, cast = f"{pair} {pair} -> i32", "as_half2" if kind == "f16" else "as_bfloat162"
    for comparison in (*ORDERED, *UNORDERED, "num", "nan"):
        text = f"{{.reg .pred p, q; setp.{comparison}.{pair} p|q, $a, $b; selp.b32 $d, 1, 0, p; @q add.u32 $d, $d, 2;}}"

        def both(a: int, b: int, c: str = comparison) -> int:
            return compares(form, c, a & M16, b & M16) + 2 * compares(form, c, a >> 16, b >> 16)

        yield Op(f"setp_{comparison}_{pair}", text, types, both, since, comparison in ("lt", "neu"))
    for comparison, mask in (("gt", "__hgt2_mask"), ("leu", "__hleu2_mask")):

        def value(a: int, b: int, c: str = comparison, yes: int = unit) -> int:
            return yes if compares(form, c, a, b) else 0

        yield Op(f"set_{comparison}_{pair}", f"set.{comparison}.{pair}.{pair} $d, $a, $b;", types, twice(value), since)
        code = f"r = {mask}({cast}(a), {cast}(b));"
        yield Op(f"mask_{comparison}_{pair}", code, types, twice(lambda a, b, f=value: f(a, b, yes=M16)))


def arithmetic(kind: str, form: Format, wide: str, since: int) -> Iterator[Op]:
    wrap = once if wide == kind else twice
    bits = 16 if wide == kind else 32
    one, two, three = (f"{' '.join([wide] * n)} -> {wide}" for n in (1, 2, 3))
    yield Op(f"add_{wide}", f"add.{wide} $d, $a, $b;", two, wrap(form.add), since)
    yield Op(f"sub_{wide}", f"sub.{wide} $d, $a, $b;", two, wrap(lambda a, b: form.add(a, b ^ form.sign)), since)
    yield Op(f"mul_{wide}", f"mul.{wide} $d, $a, $b;", two, wrap(form.mul), since)
    yield Op(f"fma_{wide}", f"fma.rn.{wide} $d, $a, $b, $c;", three, wrap(form.fma))
    yield Op(f"fma_relu_{wide}", f"fma.rn.relu.{wide} $d, $a, $b, $c;", three, wrap(relu(form, form.fma)))
    text = f"{{.reg .b{bits} t; mul.rn.{wide} t, $a, $b; add.rn.{wide} $d, t, $c;}}"
    yield Op(f"mul_add_{wide}", text, three, wrap(lambda a, b, c: form.add(form.mul(a, b), c)), since)
    for what, nan in product(("min", "max"), (True, False)):

        def picked(a: int, b: int, what: str = what, nan: bool = nan) -> int:
            return form.pick(a, b, what == "min", nan)

        suffix = ".NaN" if nan else ""
        yield Op(
            f"{what}{suffix.lower().replace('.', '_')}_{wide}", f"{what}{suffix}.{wide} $d, $a, $b;", two, wrap(picked)
        )
    text = f"{{.reg .b{bits} x, y; neg.{wide} x, $a; abs.{wide} y, $c; neg.{wide} y, y; fma.rn.{wide} $d, x, $b, y;}}"
    yield Op(f"signs_{wide}", text, three, wrap(lambda a, b, c: form.fma(a ^ form.sign, b, c | form.sign)))
    yield Op(f"neg_{wide}", f"neg.{wide} $d, $a;", one + "~", wrap(lambda a: a ^ form.sign))
    yield Op(f"abs_{wide}", f"abs.{wide} $d, $a;", one + "~", wrap(lambda a: a & ~form.sign))
    if kind == "f16":
        yield Op(f"add_sat_{wide}", f"add.sat.{wide} $d, $a, $b;", two, wrap(saturating(form, form.add)))
        yield Op(f"fma_sat_{wide}", f"fma.rn.sat.{wide} $d, $a, $b, $c;", three, wrap(saturating(form, form.fma)))
        yield Op(f"add_ftz_{wide}", f"add.ftz.{wide} $d, $a, $b;", two, wrap(flushing(form, form.add)))
        yield Op(f"fma_ftz_{wide}", f"fma.rn.ftz.{wide} $d, $a, $b, $c;", three, wrap(flushing(form, form.fma)))
        least = flushing(form, lambda a, b: form.pick(a, b, True))
        yield Op(f"min_ftz_{wide}", f"min.ftz.{wide} $d, $a, $b;", two, wrap(least))


def halves() -> Iterator[Op]:
    for kind, form, since in (("f16", F16, 80), ("bf16", BF16, 90)):
        yield from arithmetic(kind, form, kind, since)
        yield from arithmetic(kind, form, f"{kind}x2", since)
        yield from comparisons_of_pairs(kind, form, since)
        every = [*ORDERED, *UNORDERED, "num", "nan"]

        def all_of(a: int, b: int, form: Format = form, every: list[str] = every) -> int:
            return sum(compares(form, c, a, b) << i for i, c in enumerate(every))

        text = all_comparisons([(kind, c) for c in every])
        yield Op(f"setp_{kind}", text, f"{kind} {kind} -> i32", all_of, since)
