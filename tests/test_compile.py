"""Promise: torch.compile takes the ops whole: no graph break, no recompilation, no added copy; alone and in models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from case import arrange
from modules import modules
from torch import Tensor, nn

import aablur


def net(x: Tensor, taps: Tensor) -> Tensor:
    x = aablur.blur_pool2d(x.relu(), 4, padding_mode="circular")
    x = aablur.max_blur_pool2d(x, 2, (taps, 3), 1)
    return aablur.max_blur_pool2d(x * 2, (3, 2), window_padding=1, recompute=True).sin()


def both_ways(f: Callable[..., Tensor], x: Tensor, *leaves: Tensor) -> list[Tensor]:
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_(), *leaves]
    y = f(*inputs)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(dynamic: bool, layout: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    taps = torch.rand(4, 3, requires_grad=True)
    for batch, height, width in ((2, 16, 17), (3, 21, 16)):
        x = arrange(torch.randn(batch, 4, height, width), layout, 2)
        eager = both_ways(net, x, taps)
        for actual, expected in zip(both_ways(compiled, x, taps), eager, strict=True):
            torch.testing.assert_close(actual, expected)
            assert actual.stride() == expected.stride()


def test_inductor() -> None:
    """The default backend asserts the strides that the fakes promised."""
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True)
    taps = torch.rand(4, 3, requires_grad=True)
    for layout in ("contiguous", "channels_last"):
        x = arrange(torch.randn(2, 4, 16, 17), layout, 2)
        for actual, expected in zip(both_ways(compiled, x, taps), both_ways(net, x, taps), strict=True):
            torch.testing.assert_close(actual, expected)


def test_no_recompilation_over_batches_and_sizes() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(
        lambda x: aablur.max_blur_pool2d(aablur.blur_pool2d(x)), fullgraph=True, dynamic=True, backend=counter
    )
    for batch, size in ((2, 16), (5, 16), (3, 31), (7, 57)):
        compiled(torch.randn(batch, 3, size, size + 1))
    assert counter.frame_count == 1


def test_modules_inside_compile() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 4, 12, 13)
    for module in modules():
        model = nn.Sequential(nn.Conv2d(4, 4, 3), module, nn.ReLU())
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        actual = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)
