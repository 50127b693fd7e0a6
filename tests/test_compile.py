"""Promise: torch.compile takes the ops whole: no graph break, no recompilation, no added copy; alone and in models."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from case import arrange
from modules import modules
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code
from torch.func import grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

import aablur


def net(x: Tensor, taps: Tensor) -> Tensor:
    x = aablur.blur_pool2d(x.relu(), 4, padding_mode="circular")
    x = aablur.max_blur_pool2d(x, taps=(taps, 3), stride=1)
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


@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_inductor(mode: str) -> None:
    """Inductor asserts the strides that the fakes promised."""
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, mode=mode)
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


def test_one_recompilation_over_five_batches() -> None:
    """Left to itself torch.compile makes a graph of the first batch size, one of any batch size, and no other."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter)
    taps = torch.rand(4, 3, requires_grad=True)
    for batch in (2, 3, 4, 5, 8):
        x = torch.randn(batch, 4, 16, 17)
        for actual, expected in zip(both_ways(compiled, x, taps), both_ways(net, x, taps), strict=True):
            torch.testing.assert_close(actual, expected)
    assert counter.frame_count == 2
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_copies_are_added(layout: str) -> None:
    """Between the ops the generated code, forward and backward, holds the activations and nothing that copies."""
    torch._dynamo.reset()
    blur, most = aablur.nn.BlurPool2d(), aablur.nn.MaxBlurPool2d()
    compiled = torch.compile(lambda x: most(blur(x.relu()).relu()).relu(), fullgraph=True)
    x = arrange(torch.randn(2, 8, 32, 33), layout, 2).requires_grad_()

    def step() -> None:
        y = compiled(x)
        y.backward(torch.ones_like(y))

    _, codes = run_and_get_code(step)
    assert len(codes) == 2
    for code, op in zip(codes, ("", "_backward"), strict=True):
        body = code[code.index("def call(") : code.index("runner =")]
        assert body.count(f"torch.ops.aablur.blur_pool{op}.default(") == 1
        kernels = re.findall(
            r"^ +(\w+)\(buf|^ +(\w+)\(.*\)$", code[code.index("def call(") : code.index("runner =")], re.M
        )
        named = [name for pair in kernels for name in pair if name.startswith(("cpp_fused", "triton"))]
        assert 1 <= len(named) <= 3 and all("relu" in n or "threshold_backward" in n for n in named), named
        assert not re.search(r"\.(clone|copy_|contiguous)\b|reinterpret_tensor\(buf", body), body


class Block(nn.Module):
    """A stage of a ResNet as the paper has it: the blur after the activation, and on the shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels)
        self.conv2, self.norm2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels)
        self.blur, self.shortcut = aablur.nn.BlurPool2d(), nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.blur(self.norm1(self.conv1(x)).relu()))
        return (self.norm2(y) + self.shortcut(self.blur(x))).relu()


def small_resnet() -> nn.Sequential:
    pool = aablur.nn.MaxBlurPool2d(3, window_padding=1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, padding=3), aablur.nn.BlurPool2d(learnable=True), nn.ReLU(), pool, Block(8), Block(16)
    )


def step(run: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> list[Tensor]:
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y.square().mean(), list(model.parameters()))]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_whole_model_trains(layout: str) -> None:
    torch._dynamo.reset()
    model = small_resnet()
    x = torch.randn(4, 3, 64, 66)
    if layout == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    compiled = torch.compile(model, fullgraph=True)
    for actual, expected in zip(step(compiled, model, x), step(model, model, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_activation_checkpointing(compile: bool) -> None:
    """The recomputed forward gives the same bits."""
    torch._dynamo.reset()
    model = small_resnet()

    def checkpointed(x: Tensor) -> Tensor:
        for layer in model:
            x = checkpoint(layer, x, use_reentrant=False)
        return x

    run = torch.compile(checkpointed, fullgraph=True, backend="aot_eager") if compile else checkpointed
    x = torch.randn(2, 3, 32, 34)
    for actual, expected in zip(step(run, model, x), step(model, model, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0 if not compile else None, atol=0 if not compile else None)


@pytest.mark.parametrize("name", ["grad", "vmap", "per_sample", "jvp", "jacrev"])
def test_transforms_inside_compile(name: str) -> None:
    torch._dynamo.reset()

    def blurred(x: Tensor) -> Tensor:
        return aablur.max_blur_pool2d(aablur.blur_pool2d(x, padding_mode="circular"), 2)

    def loss(x: Tensor) -> Tensor:
        return blurred(x).pow(3).sum()

    transformed = {
        "grad": grad(loss),
        "vmap": vmap(blurred),
        "per_sample": vmap(grad(loss)),
        "jvp": lambda x: jvp(blurred, (x,), (x.cos(),))[1],
        "jacrev": jacrev(blurred),
    }[name]
    x = torch.randn(2, 2, 8, 9)
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), transformed(x))
