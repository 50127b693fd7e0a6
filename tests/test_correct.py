"""Promise: every backend computes what the definition says, forward and both gradients, for every case."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from unittest import mock

import oracle
import pytest
import torch
from case import DTYPES, LAYOUTS, MODES, Case, assert_right, call, judge, make_input, make_taps, verdict
from cases import CASES
from tolerances import assert_close
from torch import Tensor

import aablur
from aablur import reference
from aablur.geometry import Geometry

each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


BACKENDS = ["native", "reference"]
if "triton" not in aablur.info().why_not:
    BACKENDS.append("triton")
if torch.cuda.is_available():
    BACKENDS.append("cuda")


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the case's tensors lie, with the backend that is to be tested serving there."""
    if request.param in ("native", "cuda"):
        place = "cpu" if request.param == "native" else request.param
        assert aablur.info().serving[place] == place
        yield place
    else:
        torch.set_num_threads(1)  # torch's grouped convolutions wait for each other on small maps
        with aablur.backend(request.param):
            yield "cuda" if request.param == "triton" and torch.cuda.is_available() else "cpu"


def _gradient_like(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)


@cache
def _expected(case: Case) -> list[tuple[Tensor, Tensor]]:
    """The oracle's output, input gradient and taps gradients, with their magnitudes."""
    x, (taps, _) = make_input(case), make_taps(case)
    y = judge(case, x, taps)
    return verdict(case, x, taps, _gradient_like(torch.empty(y.shape, dtype=x.dtype)))


def _assert_layout(y: Tensor, x: Tensor, rank: int) -> None:
    """channels_last in, channels_last out; everything else comes out contiguous."""
    batched = x if x.ndim == rank + 2 else x.unsqueeze(0)
    out = y if y.ndim == rank + 2 else y.unsqueeze(0)
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(rank)
    if last and not x.is_contiguous() and batched.is_contiguous(memory_format=last):
        assert out.is_contiguous(memory_format=last), y.stride()
    else:
        assert y.is_contiguous(), y.stride()


@each_case
def test_forward(case: Case, device: str) -> None:
    x = make_input(case, device)
    taps, _ = make_taps(case, device)
    y = call(case, x, taps)
    assert y.dtype == x.dtype
    expected, magnitude = _expected(case)[0]
    assert_close(y.cpu(), expected, magnitude=magnitude)
    _assert_layout(y, x, case.rank)


@each_case
@pytest.mark.parametrize("recompute", [False, True], ids=["codes", "recompute"])
def test_gradients(case: Case, recompute: bool, device: str) -> None:
    """A blur has nothing to recompute: its second run asks for the gradient of the taps alone."""
    x = make_input(case, device).requires_grad_(case.window is not None or not recompute)
    taps, tensors = make_taps(case, device)
    sources = [x] * x.requires_grad + [t.requires_grad_() for t in tensors]
    if not sources:
        return
    y = call(case, x, taps, **({} if case.window is None else {"recompute": recompute}))
    dy = _gradient_like(y).to(device)
    if case.group == "form" or zlib.crc32(case.id.encode()) % 2:  # as it comes from a layer of y's layout
        dy = torch.empty_like(y).copy_(dy)
    grads = torch.autograd.grad(y, sources, dy)
    expected = _expected(case)
    if x.requires_grad:
        _assert_layout(grads[0], x, case.rank)
    else:
        expected = [expected[0], *expected[2:]]
    assert_right(case, [y.detach(), *grads], expected, tensors)


@pytest.mark.parametrize("case", [c for c in CASES if c.window is not None], ids=lambda c: c.id)
def test_codes(case: Case, device: str) -> None:
    """To the byte what the reference says: the same place wins, and what a row leaves of its last byte is zero."""
    x, sizes = make_input(case, device), [t if isinstance(t, int) else int(t[1:]) for t in case.taps_per_axis]
    window = (case.window, case.window_padding, case.window_dilation)
    geometry = Geometry(case.function, sizes, case.stride, case.padding, case.padding_mode, *window)
    codes = torch.ops.aablur.max_blur_pool_codes(x, None, *geometry.op_args)[1]
    with aablur.backend("reference"):
        expected = torch.ops.aablur.max_blur_pool_codes(x, None, *geometry.op_args)[1]
    assert torch.equal(codes, expected)


ONE_CHANNEL = [
    Case("one-channel", (2, 1, 9, 11), window=2),
    Case("one-channel", (1, 1, 40, 7), window=3, window_padding=1, dtype="f64"),
    Case("one-channel", (1, 1, 15, 2), taps=6, padding=((2, 3), (2, 3)), window=(7, 3), window_padding=(2, 1)),
    Case("one-channel", (1, 21, 19), window=(17, 16), dtype="bf16"),
    Case("one-channel", (2, 1, 5, 4, 6), rank=3, taps="s3", window=(2, 1, 2), padding_mode="zeros"),
]


@pytest.mark.parametrize("case", ONE_CHANNEL, ids=lambda c: c.id)
def test_codes_of_one_channel_last(case: Case, device: str) -> None:
    """Both layouts of one channel are one in memory, but not their codes: in channels_last each begins with a byte."""
    x, sizes = make_input(case), [3 if isinstance(t, str) else t for t in case.taps_per_axis]
    window = [case.per_axis(v) for v in (case.window, case.window_padding, case.window_dilation)]
    geometry = Geometry(case.function, sizes, case.stride, case.padding, case.padding_mode, *window)
    size = x.shape[-case.rank :]
    best = oracle.max_indices(x.double().view(-1, 1, *size), *window)
    codes = reference.indices_to_codes(best, size, geometry, channels_last=True).to(device)
    taps = [t.to(reference.accumulator_dtype(x.dtype)).repeat(case.rank)[None] for t in make_taps(case, device)[1]]
    (y, _), (expected, magnitude), *_ = _expected(case)
    grad = _gradient_like(y.to(x.dtype)).to(device)
    args = *(taps or [None]), size, *geometry.op_args, True
    found = torch.ops.aablur.max_blur_pool_backward(grad, None, codes, *args)
    assert_close(found.cpu(), expected, magnitude=magnitude)


def _ran() -> set[bool]:
    """Whether functions of the reference run, forward and backward, each for itself."""
    case = Case("switch", (1, 2, 6, 6), taps="s3", window=2)
    x, (taps, _) = make_input(case).requires_grad_(), make_taps(case)
    taps.requires_grad_()
    names = ("blur_pool", "blur_pool_backward", "blur_pool_backward_taps", "max_pool_indices")
    spies = [mock.patch.object(reference, name, wraps=getattr(reference, name)) for name in names]
    spied = [spy.start() for spy in spies]
    try:
        call(case, x, taps).sum().backward()
        aablur.blur_pool2d(x, taps).sum().backward()
    finally:
        mock.patch.stopall()
    return {spy.called for spy in spied}


def test_forcing_the_reference_switches_every_op_and_back() -> None:
    """Counted in the reference's own functions: none of them runs unless it is forced."""
    assert _ran() == {False}
    with aablur.backend("reference"):
        assert _ran() == {True}
        with aablur.backend("reference"):
            assert _ran() == {True}
        assert _ran() == {True}
    assert _ran() == {False}
    with aablur.backend("cpu"):
        assert _ran() == {False}
        with aablur.backend("reference"), aablur.backend("cpu"):
            assert _ran() == {False}


def test_contexts_that_overlap_leave_nothing_forced() -> None:
    """As those of two threads do. The one entered last serves, until it ends."""
    before = aablur.info().forced
    first, second, third = (aablur.backend(name) for name in ("reference", "cpu", "reference"))
    first.__enter__()
    second.__enter__()
    assert (aablur.info().forced, _ran()) == ("cpu", {False})
    first.__exit__(None, None, None)
    assert (aablur.info().forced, _ran()) == ("cpu", {False})
    third.__enter__()
    assert (aablur.info().forced, _ran()) == ("reference", {True})
    second.__exit__(None, None, None)
    assert (aablur.info().forced, _ran()) == ("reference", {True})
    third.__exit__(None, None, None)
    assert (aablur.info().forced, _ran()) == (before, {False})


def test_more_than_2_31_elements() -> None:
    """2**27 rows of 17, all of them the same 17 numbers: rows are read in place."""
    row = torch.randn(17)
    x = row.expand(1, 1, 2**27, 17)
    y = aablur.blur_pool2d(x, stride=(2**20, 1))
    assert y.shape == (1, 1, 128, 17)
    alone = Case("", (1, 1, 1, 17), stride=1)
    assert_close(y, judge(alone, row.reshape(1, 1, 1, 17), 3).expand_as(y))
    y = aablur.max_blur_pool2d(x, stride=(2**20, 1))
    assert_close(y, judge(replace(alone, window=(1, 2)), row.reshape(1, 1, 1, 17), 3).expand_as(y))


def test_the_cases_cover_what_they_should() -> None:
    blurs = [c for c in CASES if c.window is None]
    maxes = [c for c in CASES if c.window is not None]
    for group in (blurs, maxes):
        assert {(c.padding_mode, c.layout) for c in group if c.rank == 2} >= {(m, n) for m in MODES for n in LAYOUTS}
        assert {(c.dtype, c.layout) for c in group if c.rank == 2} >= {(d, n) for d in DTYPES for n in LAYOUTS}
        assert {(c.dtype, c.padding_mode) for c in group} == {(d, m) for d in DTYPES for m in MODES}
        assert {(c.taps, c.stride) for c in group} >= {
            (k, s) for k in (1, 2, 3, 4, 5, 6, 7, 9, 12) for s in (1, 2, 3, 4)
        }
