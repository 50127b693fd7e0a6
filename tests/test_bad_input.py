"""Promise: bad input is a TypeError or ValueError that names the argument, what came and what is allowed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import aablur

BLURS = [f"blur_pool{rank}d" for rank in (1, 2, 3)]
MAXES = [f"max_blur_pool{rank}d" for rank in (1, 2, 3)]
MODES = "zeros, reflect, replicate, circular"
FLOATS = "float16, bfloat16, float32, float64"


def rank_of(name: str) -> int:
    return int(name[-2])


def good(name: str) -> Tensor:
    return torch.randn(2, 3, *(6, 7, 8)[: rank_of(name)])


def module_of(name: str) -> Any:
    stem = "MaxBlurPool" if name.startswith("max") else "BlurPool"
    return getattr(aablur.nn, f"{stem}{rank_of(name)}d")


def fails(error: type[Exception], fragments: tuple[str, ...], f: Any, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(error) as caught:
        f(*args, **kwargs)
    assert caught.type is error
    for fragment in fragments:
        assert fragment in str(caught.value), f"{fragment!r} not in {str(caught.value)!r}"


MAPS = {  # what is given for x: what is raised, what the message says
    "list": (lambda x: x.tolist(), TypeError, ("x must be a torch.Tensor", "got list")),
    "none": (lambda x: None, TypeError, ("x must be a torch.Tensor", "got NoneType")),
    "numpy": (lambda x: x.numpy(), TypeError, ("x must be a torch.Tensor", "got ndarray")),
    "low": (lambda x: x[0, 0], ValueError, ("x must have {low} dimensions", "or {high}", "got shape")),
    "high": (lambda x: x[None, None], ValueError, ("x must have {low} dimensions", "or {high}", "got shape")),
    "int64": (lambda x: x.long(), TypeError, ("x must be one of", FLOATS, "got int64")),
    "uint8": (lambda x: x.byte(), TypeError, ("x must be one of", FLOATS, "got uint8")),
    "bool": (lambda x: x > 0, TypeError, ("x must be one of", FLOATS, "got bool")),
    "complex": (lambda x: x.to(torch.complex64), TypeError, ("x must be one of", FLOATS, "got complex64")),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), TypeError, ("x must be one of", FLOATS, "got float8_e4m3fn")),
    "sparse": (lambda x: x.to_sparse(), TypeError, ("x must be a dense tensor", "torch.sparse_coo")),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), TypeError, ("x must be a dense tensor", "nested")),
    "jagged": (
        lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
        TypeError,
        ("x must be a dense tensor", "jagged"),
    ),
    "mkldnn": (lambda x: x.to_mkldnn(), TypeError, ("x must be a dense tensor", "mkldnn")),
    "empty": (lambda x: x[..., :0], ValueError, ("x must not have an empty width", "spatial size")),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("what", MAPS)
@pytest.mark.parametrize("name", BLURS + MAXES)
def test_maps(name: str, what: str) -> None:
    make, error, fragments = MAPS[what]
    rank = rank_of(name)
    x = make(good(name))
    expected = tuple(f.format(low=rank + 1, high=rank + 2) for f in fragments)
    fails(error, (f"{name}: ", *expected), getattr(aablur, name), x)
    fails(error, (module_of(name).__name__ + ": ", *expected), module_of(name)(), x)


BIG = 2**31
WHOLE = "must be from 1 to 2147483647"
ARGUMENTS = [  # argument, value, what is raised, what the message says beside the argument's name
    *[("stride", v, ValueError, (WHOLE, f"got {v}")) for v in (0, -1, BIG, 2**70)],
    *[("stride", v, TypeError, ("must be an int", f"got {v!r}")) for v in (2.0, True, "2", None)],
    ("stride", (1, 2, 3, 4), ValueError, ("must be an int or {rank} of them ({axes})", "got (1, 2, 3, 4)")),
    ("stride", (), ValueError, ("must be an int or {rank} of them ({axes})", "got ()")),
    ("padding", "valid", ValueError, ("must be 'same', ints or (before, after) pairs", "got 'valid'")),
    *[("padding", v, TypeError, ("must be an int", f"got {v!r}")) for v in (1.0, True, None)],
    *[("padding", v, ValueError, ("must be from -2147483647 to 2147483647", f"got {v}")) for v in (BIG, -BIG, 2**70)],
    ("padding", (1, 2, 3, 4), ValueError, ("must be an int or {rank} of them ({axes})", "got (1, 2, 3, 4)")),
    ("padding", ((1, 2),) * 4, ValueError, ("one (before, after) pair for each of {axes}", "got ((1, 2), (1, 2)")),
    ("padding", ((1, 2, 3),), ValueError, ("one (before, after) pair for each of {axes}", "got ((1, 2, 3),)")),
    *[("padding_mode", v, ValueError, (f"one of {MODES}", f"got {v!r}")) for v in ("valid", "Zeros", None, ["zeros"])],
    *[("taps", v, ValueError, ("must be from 1 to 1024", f"got {v}")) for v in (0, -3, 1025, 2**70)],
    *[("taps", v, TypeError, ("must be an int or a tensor", f"got {v!r}")) for v in (3.0, True, "3", None)],
    ("taps", (3, 3, 3, 3), ValueError, ("one entry for each of {rank} axes", "got 4")),
    ("taps", torch.ones(3, dtype=torch.int64), TypeError, ("must be a floating tensor", "int64")),
    ("taps", torch.ones(3, dtype=torch.complex64), TypeError, ("must be a floating tensor", "complex64")),
    ("taps", torch.ones(()), ValueError, ("must have shape (k,) or (", "got ()")),
    ("taps", torch.ones(0), ValueError, ("must have shape (k,) or (", "got (0,)")),
    ("taps", torch.ones(3, 3, 3), ValueError, ("must have shape (k,) or (", "got (3, 3, 3)")),
    ("taps", torch.ones(3).to_sparse(), TypeError, ("must be a dense tensor", "sparse")),
]  # fmt: skip
MAX_ARGUMENTS = [
    *[("window", v, ValueError, (WHOLE, f"got {v}")) for v in (0, -1, BIG)],
    *[("window", v, TypeError, ("must be an int", f"got {v!r}")) for v in (2.0, True, "2", None)],
    ("window", (2, 2, 2, 2), ValueError, ("must be an int or {rank} of them ({axes})", "got (2, 2, 2, 2)")),
    ("window", 65536, ValueError, ("must cover at most 65535 positions", "got (65536")),
    *[("window_padding", v, ValueError, ("must be at most half of window (2)", "got 2")) for v in (2,)],
    *[("window_padding", v, ValueError, ("must be from 0 to 2147483647", f"got {v}")) for v in (-1, BIG)],
    *[("window_padding", v, TypeError, ("must be an int", f"got {v!r}")) for v in (0.0, False, None)],
    *[("window_dilation", v, ValueError, (WHOLE, f"got {v}")) for v in (0, -1, BIG)],
    *[("window_dilation", v, TypeError, ("must be an int", f"got {v!r}")) for v in (1.0, True, None)],
    *[("recompute", v, TypeError, ("must be a bool", f"got {v!r}")) for v in (0, 1, None, "yes")],
]
CALLS = [(n, *row) for n in BLURS + MAXES for row in ARGUMENTS] + [(n, *row) for n in MAXES for row in MAX_ARGUMENTS]


def _id(call: tuple[Any, ...]) -> str:
    return re.sub(r"\s+", "", f"{call[0]}-{call[1]}-{call[2]!r}")


@pytest.mark.parametrize("call", CALLS, ids=_id)
def test_arguments(call: tuple[Any, ...]) -> None:
    """The function when it is called, the module when it is made."""
    name, argument, value, error, fragments = call
    rank = rank_of(name)
    axes = ", ".join(("depth", "height", "width")[3 - rank :])
    expected = (argument, *[f.format(rank=rank, axes=axes) for f in fragments])
    fails(error, (f"{name}: ", *expected), getattr(aablur, name), good(name), **{argument: value})
    fails(error, (module_of(name).__name__ + ": ", *expected), module_of(name), **{argument: value})


@pytest.mark.parametrize("name", BLURS + MAXES)
def test_equal_numbers_of_other_types(name: str) -> None:
    """1.0 == True == 1, also as keys of a cache that has seen the good call."""
    f, x, one = getattr(aablur, name), good(name), (1,) * rank_of(name)
    for argument in ("padding", "stride") + (("window", "window_padding", "window_dilation") if name in MAXES else ()):
        for value in (1, one):
            f(x, **{"window": 2, "padding": 1, argument: value} if name in MAXES else {argument: value})
        for value in (1.0, True, tuple(map(float, one)), tuple(map(bool, one))):
            good_ones = {"window": 2, "padding": 1} if name in MAXES else {}
            fails(TypeError, (f"{name}: {argument}", "must be an int", "got "), f, x, **{**good_ones, argument: value})


@pytest.mark.parametrize("name", BLURS + MAXES)
class TestArgumentsAgainstTheMap:
    def both(
        self, name: str, error: type[Exception], fragments: tuple[str, ...], x: Tensor | None = None, **kwargs: Any
    ) -> None:
        x = good(name) if x is None else x
        fails(error, (f"{name}: ", *fragments), getattr(aablur, name), x, **kwargs)
        fails(error, (module_of(name).__name__ + ": ", *fragments), module_of(name)(**kwargs), x)

    def test_taps_of_other_channels(self, name: str) -> None:
        self.both(name, ValueError, ("taps", "must have shape (k,) or (3, k)", "got (4, 3)"), taps=torch.ones(4, 3))

    def test_taps_elsewhere(self, name: str) -> None:
        taps = torch.ones(3, device="meta")
        self.both(name, ValueError, ("taps", "must be on the device of x, cpu", "got meta"), taps=taps)

    def test_empty_output(self, name: str) -> None:
        self.both(
            name,
            ValueError,
            ("the output would be empty", "12 taps) // 2 + 1 = ", "allowed from 1 up"),
            taps=12,
            padding=0,
        )
        self.both(name, ValueError, ("the output would be empty", "-9"), padding=-9)

    def test_output_too_large(self, name: str) -> None:
        """An output of more than 2**63 bytes: the size that it would have had."""
        x = good(name)[:1].expand(2**33, *good(name).shape[1:])
        self.both(name, ValueError, ("padding", "output"), x=x, padding=2**31 - 1, stride=1)


@pytest.mark.parametrize("name", MAXES)
def test_windows_that_do_not_fit(name: str) -> None:
    f, x = getattr(aablur, name), good(name)
    fails(ValueError, (f"{name}: window must fit the map", "with window 9", "leaves -2"), f, x, 9)
    fails(
        ValueError, (f"{name}: window must fit the map", "window_dilation 7", "leaves -1"), f, x, 2, window_dilation=7
    )
    fails(
        ValueError,
        (f"{name}: window must meet the map", "dilated by 7", "padded by 1"),
        f,
        x,
        window_dilation=7,
        window_padding=1,
    )


def test_modules_only() -> None:
    for name in BLURS + MAXES:
        module = module_of(name)
        fails(TypeError, (f"{module.__name__}: learnable must be a bool", "got 1"), module, learnable=1)
        for channels in (0, -1, 2.0, True, "3"):
            fails(
                ValueError,
                (f"{module.__name__}: channels must be a positive int", f"got {channels!r}"),
                module,
                channels=channels,
            )
        fails(
            ValueError,
            (f"{module.__name__}: taps", "(3, k)", "got (4, 3)"),
            module(learnable=True, channels=4),
            good(name),
        )


# ---- backends ----------------------------------------------------------------------------------------


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True)


def test_backends() -> None:
    for name in ("tpu", "CPU", "", None, 3):
        fails(
            ValueError,
            ("backend must be one of cuda, triton, cpu, reference", f"got {name!r}"),
            aablur.backend(name).__enter__,
        )
    if not torch.cuda.is_available():
        for name in ("cuda", "triton"):
            fails(ValueError, (f"backend '{name}' cannot serve: ",), aablur.backend(name).__enter__)
    with aablur.backend("cpu"), pytest.raises(RuntimeError, match="backend 'cpu' is forced, and serves no such device"):
        torch.ops.aablur.blur_pool.default.redispatch(
            torch._C.DispatchKeySet(torch._C.DispatchKey.XPU), torch.randn(1, 1, 4), None, [3, 2, 1, 1], "zeros"
        )
    x = torch.randn(1, 1, 4)
    with aablur.backend("cpu"), pytest.raises(RuntimeError, match="'cpu' is forced, and does not serve forward mode"):
        torch.func.grad(lambda x: aablur.blur_pool1d(x).sum())(x)


def test_info_names_the_forced_backend() -> None:
    with aablur.backend("reference"):
        info = aablur.info()
        assert info.forced == "reference" and set(info.serving.values()) == {"reference"}
    assert aablur.info().forced == os.environ.get("AABLUR_BACKEND", None)


def test_backends_from_the_environment() -> None:
    unknown = python("import aablur", AABLUR_BACKEND="nonsense")
    assert unknown.returncode != 0
    assert "backend must be one of cuda, triton, cpu, reference, got 'nonsense'" in unknown.stderr
    show = "import aablur, torch; print(aablur.info()); aablur.blur_pool1d(torch.randn(1, 1, 4))"
    forced = python(show, AABLUR_BACKEND="reference")
    assert forced.returncode == 0 and "reference is forced" in forced.stdout
    assert python(show, AABLUR_BACKEND="").returncode == 0
    unknown = python("import aablur", AABLUR_LIBRARY="/nonexistent", AABLUR_BACKEND="cpu")
    assert unknown.returncode != 0 and "backend 'cpu' cannot serve: " in unknown.stderr
    unknown = python(show, AABLUR_CPU_ISA="sse9")
    assert unknown.returncode != 0
    assert "AABLUR_CPU_ISA must be avx512, avx2 or portable" in unknown.stderr and "not sse9" in unknown.stderr


# ---- positions and names of other libraries ----------------------------------------------------------

POOLS = [*[getattr(aablur, name) for name in BLURS + MAXES], *map(module_of, BLURS + MAXES)]


def called(pool: Any) -> tuple[Any, list[Any], bool]:
    """A pool with its map, if it is a function, and whether it has a max."""
    name = pool.__name__
    return pool, [] if isinstance(pool, type) else [good(name)], "max" in name.lower()


@pytest.mark.parametrize("pool", POOLS, ids=lambda p: p.__name__)
def test_positions_that_mean_other_things_elsewhere(pool: Any) -> None:
    """`MaxBlurPool2d(3, 2, 1)` as nn.MaxPool2d's, `BlurPool2d(16, 3, 2)` as adobe's."""
    f, x, is_max = called(pool)
    if is_max:
        fails(TypeError, (f"{f.__name__}: arguments after window", "by name", "got 2 ", "stride=2"), f, *x, 3, 2)
        fails(TypeError, ("got 2, 1 by position", "stride=2, window_padding=1"), f, *x, 3, 2, 1)
        fails(TypeError, ("got 3, 2 by position", "stride=3, window_padding=2"), f, *x, 2, 3, 2)
        fails(TypeError, ("stride=2, window_padding=1, window_dilation=1",), f, *x, 3, 2, 1, 1, True)
        fails(TypeError, ("got 5 by position",), f, *x, 2, 5, taps=7)
    else:
        fails(TypeError, (f"{f.__name__}: arguments after taps", "by name", "got 3, 2", "stride="), f, *x, 16, 3, 2)
        fails(TypeError, ("got 2 by position", "stride=", "channels="), f, *x, 3, 2)


@pytest.mark.parametrize("name", BLURS + MAXES)
def test_what_may_stay_a_position(name: str) -> None:
    f, module, x = getattr(aablur, name), module_of(name), good(name)
    if name in BLURS:
        calls = [((5,), {"taps": 5})]
    else:
        calls = [((3,), {"window": 3}), ((3, 5), {"window": 3, "taps": 5})]
        taps = torch.rand(4)
        calls += [((2, taps), {"window": 2, "taps": taps}), ((2, (2,) * rank_of(name)), {"window": 2, "taps": 2})]
    for args, kwargs in calls:
        assert torch.equal(f(x, *args), f(x, **kwargs)) and torch.equal(module(*args)(x), module(**kwargs)(x))


@pytest.mark.parametrize("pool", POOLS, ids=lambda p: p.__name__)
def test_names_of_other_libraries(pool: Any) -> None:
    f, x, is_max = called(pool)
    for name, of_max, of_blur in (
        ("kernel_size", "window", "taps"), ("filt_size", "taps", "taps"), ("dilation", "window_dilation", ""),
        ("pad_type", "padding_mode", "padding_mode"), ("max_pool_size", "window", ""), ("nonsense", "", ""),
    ):  # fmt: skip
        meant = of_max if is_max else of_blur
        said = (f"{f.__name__}: there is no argument {name}", f", it is called {meant}" if meant else name)
        fails(TypeError, said, f, *x, **{name: 3})
        fails(TypeError, said, f, *x, 3, **{name: 3})
