"""Promise: a max pool and the blur pool after it become one op where a trace of the model proves it, and only there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peers  # noqa: F401  # isort: skip  # makes the next imports possible
import antialiased_cnns
import kornia.filters
import pytest
import timm
import torch
from torch import Tensor, nn

import aablur


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and every gradient."""
    x = x.clone().requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


class Net(nn.Module):
    """A max pool and a blur pool, with a body that says what lies between them."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], max_pool: nn.Module | None = None) -> None:
        super().__init__()
        self.pool = max_pool or nn.MaxPool2d(3, 1, 1)
        self.blur = timm.layers.BlurPool2d(3)
        self.other = nn.ReLU()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def untraceable(net: Any, x: Tensor) -> Tensor:
    return net.blur(net.pool(x)) if x.sum() > -1e9 else x


class Untraceable(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > -1e9 else x


def shared_max() -> nn.Module:
    pool = nn.MaxPool2d(3, 1, 1)
    return Untraceable(nn.Sequential(nn.Sequential(pool, timm.layers.BlurPool2d(3)), nn.Sequential(pool)))


def with_hook(model: nn.Module, path: str) -> nn.Module:
    model.get_submodule(path).register_forward_hook(lambda m, a, out: out * 1.5)
    return model


def apart() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, 1)), nn.Sequential(timm.layers.BlurPool2d(3), nn.ReLU())
    )


def instance_forward() -> nn.Module:
    model = pair(nn.MaxPool2d(2, 1))
    model.forward = lambda input: model[0](input).sum()
    return model


def not_separable() -> nn.Module:
    blur = aablur.compat.kornia.BlurPool2D(3)
    blur.kernel[0, 0] += 0.1
    return blur


def pair(max_pool: nn.Module) -> nn.Module:
    return nn.Sequential(max_pool, timm.layers.BlurPool2d(3))


FUSED: dict[str, Callable[[], nn.Module]] = {
    "forward": lambda: Net(lambda net, x: net.other(net.blur(net.pool(x)))),
    "twice": lambda: Net(lambda net, x: net.blur(net.pool(net.blur(net.pool(x))))),
    "sequential": lambda: pair(nn.MaxPool2d(2, 1)),
    "dilated": lambda: pair(nn.MaxPool2d((2, 3), (1, 1), (0, 1), 2)),
    "ceil": lambda: pair(nn.MaxPool2d(2, 1, ceil_mode=True)),
    "apart": apart,
    "untraceable around a sequential": lambda: Untraceable(pair(nn.MaxPool2d(2, 1))),
    "hook around both": lambda: with_hook(nn.Sequential(nn.Sequential(*pair(nn.MaxPool2d(2, 1)))), "0"),
    "1-D": lambda: nn.Sequential(nn.Flatten(2), nn.MaxPool1d(3, 1), antialiased_cnns.BlurPool1D(3)),
    "ours": lambda: nn.Sequential(nn.MaxPool2d(3, 1), aablur.nn.BlurPool2d(torch.rand(3), learnable=True)),
}
NOT_FUSED: dict[str, Callable[[], nn.Module]] = {
    "read elsewhere": lambda: Net(lambda net, x: (y := net.pool(x)).mean() + net.blur(y)),
    "returned": lambda: Net(lambda net, x: torch.cat([(y := net.pool(x)).flatten(), net.blur(y).flatten()])),
    "something between": lambda: Net(lambda net, x: net.blur(net.pool(x) * 2)),
    "module between": lambda: Net(lambda net, x: net.blur(net.other(net.pool(x)))),
    "blur also elsewhere": lambda: Net(lambda net, x: net.blur(net.pool(x)).mean() + net.blur(x)),
    "untraceable": lambda: Net(untraceable),
    "stride": lambda: pair(nn.MaxPool2d(2, 2)),
    "stride of one axis": lambda: pair(nn.MaxPool2d(2, (1, 2))),
    "hook on the max": lambda: with_hook(pair(nn.MaxPool2d(2, 1)), "0"),
    "hook on the blur": lambda: with_hook(pair(nn.MaxPool2d(2, 1)), "1"),
    "hook between": lambda: with_hook(apart(), "0"),
    "shared": shared_max,
    "forward of the instance": lambda: instance_forward(),
    "max with a max": lambda: nn.Sequential(nn.MaxPool2d(2, 1), kornia.filters.MaxBlurPool2D(3)),
    "not separable": lambda: nn.Sequential(
        nn.MaxPool2d(2, 1), not_separable()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FUSED, *NOT_FUSED])
def test_max_pools_are_fused_where_it_is_proven(name: str) -> None:
    model = (FUSED | NOT_FUSED)[name]()
    reference = copy.deepcopy(model)
    x = torch.randn(2, 3, 16, 17)
    report = aablur.accelerate(model)
    assert sum("now in" in row.note for row in report.swapped) == (name in FUSED)
    assert report.left == [] and type(model) is type(reference)
    for actual, expected in zip(step(model, x), step(reference, x), strict=True):
        torch.testing.assert_close(actual, expected)
    before = [type(m) for m in reference.modules()]
    report.restore()
    assert [type(m) for m in model.modules()] == before
    assert torch.equal(model(x), reference(x))
    assert not any("now in" in row.note for row in aablur.accelerate(model, fuse_max=False).swapped)


def test_hooks_do_not_run_while_the_model_is_traced() -> None:
    model = nn.Sequential(nn.Sequential(nn.MaxPool2d(2, 1), timm.layers.BlurPool2d(3)))
    seen: list[Any] = []
    for module in (model, model[0]):
        module.register_forward_hook(lambda *a: seen.append(a))
    assert len(aablur.accelerate(model).swapped) == 2 and seen == []
