"""Promise: torch.func and forward mode give the reference's derivatives; vmap serves every function and in_dims."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from case import arrange
from tolerances import assert_close
from torch import Tensor
from torch.autograd import forward_ad, gradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import aablur
from aablur import reference
from aablur.geometry import Geometry

FUNCTIONS = {
    "blur": lambda x, taps: aablur.blur_pool2d(x, taps, padding_mode="circular"),
    "max": lambda x, taps: aablur.max_blur_pool2d(x, 2, taps),
    "recompute": lambda x, taps: aablur.max_blur_pool2d(x, 2, taps, recompute=True),
}


def plain(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The same in aten ops alone."""
    window = () if name == "blur" else (2, 0, 1)
    mode = "circular" if name == "blur" else "reflect"

    def function(x: Tensor, taps: Tensor) -> Tensor:
        packed = torch.cat([taps.reshape(-1, 3)] * 2, 1)
        return reference.blur_pool(x, packed, Geometry("plain", [3, 3], 2, "same", mode, *window))

    return function


each = pytest.mark.parametrize("name", FUNCTIONS)
X, TAPS = (1, 2, 4, 5), (2, 3)


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(X, dtype=torch.float64), torch.rand(TAPS, dtype=torch.float64)


def agree(actual: Any, expected: Any) -> None:
    flat_actual, flat_expected = (torch.utils._pytree.tree_leaves(t) for t in (actual, expected))
    for a, e in zip(flat_actual, flat_expected, strict=True):
        assert e.abs().sum() > 0
        assert_close(a.detach(), e.detach(), taps=True)


@each
def test_transforms(name: str) -> None:
    ours, theirs, args = FUNCTIONS[name], plain(name), inputs()

    def total(f: Any) -> Any:
        return lambda x, t: f(x, t).pow(3).sum()

    tangents = tuple(torch.randn_like(a) for a in args)
    for transform in (
        lambda f: grad(total(f), argnums=(0, 1))(*args),
        lambda f: jacrev(f, argnums=(0, 1))(*args),
        lambda f: jacfwd(f, argnums=(0, 1))(*args),
        lambda f: hessian(total(f), argnums=(0, 1))(*args),
        lambda f: jvp(f, args, tangents),
        lambda f: vjp(f, *args)[1](torch.ones_like(f(*args))),
        lambda f: grad(lambda x: grad(total(f))(x, args[1]).square().sum())(args[0]),
    ):
        agree(transform(ours), transform(theirs))


@each
def test_forward_mode(name: str) -> None:
    x, taps = inputs()
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(FUNCTIONS[name](forward_ad.make_dual(x, tangent), taps))
        wanted = forward_ad.unpack_dual(plain(name)(forward_ad.make_dual(x, tangent), taps))
    assert dual.tangent is not None
    agree((dual.primal, dual.tangent), (wanted.primal, wanted.tangent))
    x = (torch.randperm(x.numel()).reshape(x.shape).double() / 10).requires_grad_()
    assert gradcheck(FUNCTIONS[name], (x, taps.requires_grad_()), check_forward_ad=True, check_backward_ad=False)


@each
def test_gradients_of_each_sample(name: str) -> None:
    """vmap over grad: the gradient of every sample of a batch, of its input and of shared taps."""
    x, taps = torch.randn(5, 2, 6, 7, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)

    def loss(f: Any) -> Any:
        return lambda t, sample: f(sample, t).square().sum()

    per_sample = vmap(grad(loss(FUNCTIONS[name]), argnums=(0, 1)), in_dims=(None, 0))(taps, x)
    each_alone = [grad(loss(plain(name)), argnums=(0, 1))(taps, sample) for sample in x]
    agree(per_sample, [torch.stack(parts) for parts in zip(*each_alone, strict=True)])


def test_per_sample_gradients_of_a_module() -> None:
    module = aablur.nn.MaxBlurPool2d(learnable=True, channels=2).double()
    parameters = dict(module.named_parameters())
    x = torch.randn(4, 2, 6, 7, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(module, parameters, (sample.unsqueeze(0),)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        module.zero_grad()
        module(sample.unsqueeze(0)).square().sum().backward()
        for key, value in module.named_parameters():
            agree(per_sample[key][i], value.grad)


# ---- vmap --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("window", [None, 2])
def test_vmap(window: int | None, rank: int, batched: bool, layout: str) -> None:
    """Equal to a loop for every place of the mapped dimension, of x, of the taps and of both; and its gradient."""
    if rank == 1:
        layout = "transposed"
    function = getattr(aablur, f"{'blur' if window is None else 'max_blur'}_pool{rank}d")
    shape = ((2, 3) if batched else (3,)) + (5, 6, 7)[:rank]
    maps = [arrange(torch.randn(shape), layout, rank) for _ in range(4)]
    taps = [torch.rand(3, 3) for _ in range(4)]

    def f(x: Tensor, t: Tensor) -> Tensor:
        return function(x, taps=t) if window is None else function(x, window, t)

    for x_dim in (None, *range(-1, len(shape) + 1)):
        for taps_dim in (None, 0, 1, 2):
            if x_dim is None and taps_dim is None:
                continue
            x = maps[0] if x_dim is None else torch.stack(maps, x_dim)
            t = taps[0] if taps_dim is None else torch.stack(taps, taps_dim)
            x.requires_grad_()
            expected = torch.stack(
                [f(maps[i * (x_dim is not None)], taps[i * (taps_dim is not None)]) for i in range(4)]
            )
            for out_dim in (0, 1):
                mapped = vmap(f, (x_dim, taps_dim), out_dim)(x, t)
                assert_close(mapped.detach().movedim(out_dim, 0), expected.detach().double())
            (actual,) = torch.autograd.grad(mapped.square().sum(), x)
            moved = x if x_dim is None else x.movedim(x_dim, 0)
            loop = [f(moved if x_dim is None else moved[i], taps[i * (taps_dim is not None)]) for i in range(4)]
            (wanted,) = torch.autograd.grad(torch.stack(loop).square().sum(), x)
            assert_close(actual, wanted.double())
            x = x.detach()


def test_nested_vmap() -> None:
    x = torch.randn(2, 3, 4, 6, 7, 2)
    mapped = vmap(vmap(aablur.blur_pool2d, in_dims=1), in_dims=-1)(x)
    expected = aablur.blur_pool2d(x.permute(5, 1, 0, 2, 3, 4).flatten(0, 2)).unflatten(0, (2, 3, 2)).flatten(2, 2)
    alone = torch.stack([torch.stack([aablur.blur_pool2d(x[:, j, ..., i]) for j in range(3)]) for i in range(2)])
    assert_close(mapped, alone.double())
    assert_close(mapped, expected.double())


def test_vmap_of_the_ops() -> None:
    """The backward ops too, which a double backward under vmap meets."""
    ops, blur = torch.ops.aablur, Geometry("blur_pool", [3, 3], 2, 1, "zeros").op_args
    max_blur = Geometry("max_blur_pool", [3, 3], 2, 1, "zeros", 2).op_args
    x, taps, grad_y = torch.randn(4, 2, 3, 6, 7), torch.rand(4, 3, 6), torch.randn(4, 2, 3, 3, 4)
    grad_m = torch.randn(4, 2, 3, 3, 3)
    codes = torch.stack([ops.max_blur_pool_codes(a, None, *max_blur)[1] for a in x])
    backward = ops.max_blur_pool_backward
    for f, args in (
        (lambda g, t: ops.blur_pool_backward(g, t, [6, 7], *blur, False), (grad_y, taps)),
        (lambda g, a, t: ops.blur_pool_backward_taps(g, a, t, *blur), (grad_y, x, taps)),
        (lambda a, t: ops.max_blur_pool_codes(a, t, *max_blur), (x, taps)),
        (lambda g, c, t: backward(g, None, c, t, [6, 7], *max_blur, False), (grad_m, codes, taps)),
        (lambda g, a, t: backward(g, a, None, t, [6, 7], *max_blur, False), (grad_m, x, taps)),
    ):
        for n in range(len(args)):
            dims = tuple(None if i == n else 0 for i in range(len(args)))
            fixed = tuple(a[0] if i == n else a for i, a in enumerate(args))
            mapped = vmap(f, dims)(*fixed)
            loop = [f(*[a if i == n else a[k] for i, a in enumerate(fixed)]) for k in range(4)]
            for m, e in zip(_tuple(mapped), zip(*map(_tuple, loop), strict=True), strict=True):
                torch.testing.assert_close(m, torch.stack(e))


def _tuple(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)
