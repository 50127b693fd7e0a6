"""Promise: gradients of any order, through every layout, from next to nothing saved."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from case import DTYPES, LAYOUTS, MODES, NARROW_LAYOUTS, Case, arrange, call, judge, verdict
from tolerances import SMALLEST, TAPS_ABSOLUTE, assert_close
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import aablur

SIZES = {1: (9,), 2: (5, 6), 3: (3, 4, 5)}


def distinct(*shape: int) -> Tensor:
    """Values far enough apart that a finite difference changes no maximum."""
    count = torch.Size(shape).numel()
    return (torch.randperm(count).reshape(shape).double() / count).requires_grad_()


def filters(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64).add(0.25).requires_grad_()


def check(function: Any, *inputs: Any) -> None:
    assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [1, 2, 3])
class TestNumericalGradients:
    def test_blur(self, rank: int, mode: str) -> None:
        f = getattr(aablur, f"blur_pool{rank}d")
        check(lambda x: f(x, padding_mode=mode), distinct(2, 1, *SIZES[rank]))
        check(lambda x: f(x, 4, stride=1, padding=5, padding_mode=mode), distinct(1, *SIZES[rank]))

    @pytest.mark.parametrize("rows", [(), (2,)], ids=["shared", "channel"])
    def test_blur_with_taps(self, rank: int, mode: str, rows: tuple[int, ...]) -> None:
        f = getattr(aablur, f"blur_pool{rank}d")
        x = distinct(1, 2, *SIZES[rank])
        check(
            lambda x, *taps: f(x, taps, padding=2, padding_mode=mode), x, *[filters(*rows, 2 + i) for i in range(rank)]
        )

    @pytest.mark.parametrize("recompute", [False, True], ids=["codes", "recompute"])
    def test_max_blur(self, rank: int, mode: str, recompute: bool) -> None:
        f = getattr(aablur, f"max_blur_pool{rank}d")
        options = {"window_padding": 1, "padding_mode": mode, "recompute": recompute}
        check(lambda x: f(x, 2, **options), distinct(1, 2, *SIZES[rank]))

    @pytest.mark.parametrize("recompute", [False, True], ids=["codes", "recompute"])
    @pytest.mark.parametrize("rows", [(), (2,)], ids=["shared", "channel"])
    def test_max_blur_with_taps(self, rank: int, mode: str, rows: tuple[int, ...], recompute: bool) -> None:
        f = getattr(aablur, f"max_blur_pool{rank}d")
        size = SIZES[rank] if rank < 3 else (2, 3, 3)
        x = distinct(1, 2, *size)
        options = {"padding": 1, "padding_mode": mode, "recompute": recompute}
        check(lambda x, taps: f(x, 2, taps, **options), x, filters(*rows, 3))


@pytest.mark.parametrize("recompute", [False, True], ids=["codes", "recompute"])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_gradients_of_any_layout(rank: int, batched: bool, window: int | None, recompute: bool) -> None:
    """The gradient that arrives may be expanded, sliced, transposed or channels_last, whatever x was."""
    if window is None and recompute:
        window = 3
    layouts = NARROW_LAYOUTS if rank == 1 else LAYOUTS
    case = Case("", ((2, 5) if batched else (5,)) + (8, 7, 9)[:rank], rank=rank, window=window, padding_mode="circular")
    taps = torch.randn(5, 3)
    for x_layout in layouts:
        for layout in layouts:
            x = arrange(torch.randn(case.shape), x_layout, rank).requires_grad_()
            leaf = taps.clone().requires_grad_()
            y = call(case, x, leaf, **({"recompute": recompute} if window else {}))
            grad = arrange(torch.randn(y.shape), layout, rank)
            y.backward(grad)
            wide, wide_taps = x.detach().double().requires_grad_(), taps.double().requires_grad_()
            judge(case, wide, wide_taps).backward(grad.double())
            assert_close(x.grad, wide.grad)
            assert_close(leaf.grad, wide_taps.grad, taps=True)


@pytest.mark.parametrize("places", [(0, 0), (0, 0, 0), (0, 0, 1), (1, 0, 1), (0, None, 0)], ids=str)
@pytest.mark.parametrize("rows", [(), (3,)], ids=["shared", "channel"])
@pytest.mark.parametrize("taps_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_tensor_for_several_axes(dtype: str, taps_dtype: str, rows: tuple[int, ...], places: Any) -> None:
    """Each axis has a share in its gradient: their sum is rounded, and not they."""
    taps = [torch.randn(*rows, 3).to(DTYPES[taps_dtype]).requires_grad_() for _ in set(places) - {None}]
    given = tuple(3 if p is None else taps[p] for p in places)
    shape = (2, 3, *(9, 8, 7)[: len(places)])
    for window in (None, 2):
        case = Case("", shape, rank=len(places), window=window, dtype=dtype)
        x = torch.randn(shape).to(DTYPES[dtype])
        y = call(case, x, given)
        grad = torch.randn(y.shape).to(y.dtype)
        judged = iter(verdict(case, x, given, grad)[2:])  # a pair for each place
        pairs = [(p, next(judged)) for p in places if p is not None]
        for i, (tensor, found) in enumerate(zip(taps, torch.autograd.grad(y, taps, grad), strict=True)):
            assert found.dtype == tensor.dtype
            expected, magnitude = (sum(pair[n] for p, pair in pairs if p == i) for n in (0, 1))
            sums = torch.float64 if dtype == "f64" else torch.float32
            rounding = torch.finfo(tensor.dtype).eps / 2 * expected.abs() + SMALLEST.get(tensor.dtype, 0)
            assert ((found - expected).abs() <= TAPS_ABSOLUTE[sums] * magnitude + rounding).all()


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_second_gradients_of_halves(dtype: str, rank: int) -> None:
    """Of the taps' gradient, by the map and by the output's gradient: sums over the axes, too."""
    case = Case("", (2, 3, *(9, 8, 7)[:rank]), rank=rank, dtype=dtype)
    x, taps, direction = torch.randn(case.shape).to(DTYPES[dtype]), torch.randn(3), torch.randn(3)
    grad = torch.randn(call(case, x, taps).shape).to(x.dtype)

    def second(function: Any, x: Tensor, taps: Tensor, grad: Tensor, direction: Tensor) -> list[Tensor]:
        x, taps, grad = (t.detach().requires_grad_() for t in (x, taps, grad))
        (grad_taps,) = torch.autograd.grad(function(case, x, taps), taps, grad, create_graph=True)
        return list(torch.autograd.grad(grad_taps, (x, grad), direction))

    wide = [t.double() for t in (x, taps, grad, direction)]
    expected, magnitudes = second(judge, *wide), second(judge, *[t.abs() for t in wide])
    for found, right, size in zip(second(call, x, taps, grad, direction), expected, magnitudes, strict=True):
        assert_close(found, right, magnitude=size)


def test_expanded_gradients() -> None:
    """sum() sends a gradient of stride 0."""
    for window in (None, 2):
        case = Case("", (2, 3, 7, 9), window=window)
        x = torch.randn(case.shape).requires_grad_()
        wide = x.detach().double().requires_grad_()
        call(case, x, 3).sum().backward()
        judge(case, wide, 3).sum().backward()
        assert_close(x.grad, wide.grad)


@pytest.mark.parametrize("recompute", [False, True], ids=["codes", "recompute"])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_penalty(window: int | None, recompute: bool, layout: str) -> None:
    """Double backward with create_graph: d |dy/dx|**2 / d (taps, x, weights)."""
    case = Case("", (2, 4, 7, 9), window=window, padding_mode="replicate")
    options = {"recompute": recompute} if window else {}
    taps = torch.rand(4, 3, dtype=torch.float64)
    x = arrange(torch.randn(case.shape, dtype=torch.float64), layout, 2)

    def penalty(function: Any) -> list[Tensor]:
        leaf_x, leaf_taps = x.detach().clone().requires_grad_(), taps.clone().requires_grad_()
        y = function(leaf_x, leaf_taps)
        grad_x, grad_taps = torch.autograd.grad(y.square().sum(), [leaf_x, leaf_taps], create_graph=True)
        loss = grad_x.square().sum() + (grad_taps * grad_taps).sum()
        return [grad_x, grad_taps, *torch.autograd.grad(loss, [leaf_x, leaf_taps])]

    ours = penalty(lambda x, t: call(case, x, t, **options))
    theirs = penalty(lambda x, t: judge(case, x, t))
    for actual, expected in zip(ours, theirs, strict=True):
        assert_close(actual.detach(), expected.detach(), taps=True)


def test_third_order() -> None:
    """Every derivative of x**3 after a blur comes from the same few ops."""
    x = torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True)
    taps = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    for leaf in (x, taps):
        orders = []
        for f in (lambda: aablur.blur_pool1d(x, taps), lambda: judge(Case("", (1, 2, 6), rank=1), x, taps)):
            value = f().pow(3).sum()
            for _ in range(3):
                (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
                value = grad.pow(2).sum()
            orders.append(value.detach())
        torch.testing.assert_close(*orders, rtol=1e-12, atol=0)


@pytest.mark.parametrize("window", [None, 2])
def test_only_what_is_wanted(window: int | None) -> None:
    case = Case("", (2, 3, 7, 9), window=window)
    x, taps = torch.randn(case.shape), torch.rand(3)
    assert not call(case, x, taps).requires_grad
    wanted = taps.clone().requires_grad_()
    y = call(case, x, wanted)
    y.square().sum().backward(retain_graph=True)
    once, wide = wanted.grad.clone(), taps.double().requires_grad_()
    judge(case, x, wide).square().sum().backward()
    assert_close(once, wide.grad, taps=True)
    y.square().sum().backward()
    assert_close(wanted.grad, 2 * wide.grad, taps=True)
    with pytest.raises(RuntimeError, match="second time"):
        y.square().sum().backward()
    with torch.no_grad():
        assert not call(case, x.clone().requires_grad_(), wanted).requires_grad


@pytest.mark.parametrize("window", [None, 2])
def test_results_may_be_changed_in_place(window: int | None) -> None:
    """Nothing of the output is saved; a changed input that was saved is noticed."""
    case = Case("", (2, 3, 8, 8), window=window)
    x = torch.randn(case.shape, requires_grad=True)
    kept = torch.autograd.grad(call(case, x, 3).mul(2).sum(), x)
    assert torch.equal(torch.autograd.grad(call(case, x, 3).mul_(2).sum(), x)[0], kept[0])
    taps, moved = torch.rand(3, requires_grad=True), x * 1
    y = call(case, moved, taps)
    moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- what is saved -----------------------------------------------------------------------------------


def saved_by(f: Any) -> list[Tensor]:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        f()
    return saved


def storage_bytes(tensors: list[Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_blur_saves_shapes_alone(layout: str) -> None:
    x = arrange(torch.randn(2, 8, 28, 28), layout, 2).requires_grad_()
    assert saved_by(lambda: aablur.blur_pool2d(x)) == []
    taps = torch.rand(8, 3)
    assert storage_bytes(saved_by(lambda: aablur.blur_pool2d(x, taps))) <= 8 * 6 * 4
    kept = saved_by(lambda: aablur.blur_pool2d(x, taps.requires_grad_()))
    assert any(t.data_ptr() == x.data_ptr() for t in kept)
    assert storage_bytes(kept) <= x.nbytes + 8 * 6 * 4


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [112, 56, 28, 14, 7, 57])
def test_max_blur_saves_two_bits(size: int, layout: str) -> None:
    """A code takes 2 bits (3x3: 4), and a row of them whole bytes: at most a sixteenth of float32's bytes (an eighth),
    but where a single code begins a row's last byte.
    """
    x = arrange(torch.randn(2, 8, size, size), layout, 2).requires_grad_()
    for window, bits in ((2, 2), (3, 4)):
        saved = saved_by(lambda window=window: aablur.max_blur_pool2d(x, window))
        pooled = size - window + 1
        rows, row = (2 * pooled**2, 8) if layout == "channels_last" else (2 * 8 * pooled, pooled)
        assert {t.dtype for t in saved} == {torch.uint8}
        assert storage_bytes(saved) == rows * math.ceil(row * bits / 8)
        assert storage_bytes(saved) * 32 <= x.nbytes * bits * (1.07 if row * bits % 8 == 2 else 1)


def test_recompute_saves_x_alone() -> None:
    x = torch.randn(2, 8, 28, 28, requires_grad=True)
    (saved,) = saved_by(lambda: aablur.max_blur_pool2d(x, recompute=True))
    assert saved.data_ptr() == x.data_ptr() and saved.shape == x.shape


def test_nothing_is_saved_without_a_gradient() -> None:
    x = torch.randn(2, 8, 28, 28)
    assert saved_by(lambda: aablur.max_blur_pool2d(x)) == saved_by(lambda: aablur.blur_pool2d(x)) == []
