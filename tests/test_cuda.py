"""Promise, on an NVIDIA GPU: graphs capture the ops, streams and devices are those in force, AMP loops train.

Collected only where torch finds a CUDA device; `make gpu` runs it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from case import arrange
from torch import Tensor, nn

import aablur


@pytest.fixture(params=[name for name in ("cuda", "triton") if name not in aablur.info().why_not], autouse=True)
def forced(request: pytest.FixtureRequest) -> Iterator[str]:
    with aablur.backend(request.param):
        yield request.param


def net(device: str = "cuda") -> nn.Sequential:
    layers = [aablur.nn.BlurPool2d(learnable=True), nn.ReLU(), aablur.nn.MaxBlurPool2d(3, window_padding=1)]
    return nn.Sequential(nn.Conv2d(8, 8, 3), *layers, aablur.nn.MaxBlurPool2d(recompute=True)).to(device)


def step(run: nn.Module, parameters: list[nn.Parameter], x: Tensor) -> list[Tensor]:
    y = run(x)
    return [y.detach().clone(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_graphs_capture_both_directions(layout: str) -> None:
    """A training step captured once and replayed on other data: nothing waits for the host."""
    model = net()
    parameters = list(model.parameters())
    sample = arrange(torch.randn(2, 8, 32, 33, device="cuda"), layout, 2).requires_grad_()
    graphed = torch.cuda.make_graphed_callables(net(), (sample.detach().clone().requires_grad_(),))
    assert isinstance(graphed, nn.Module)
    graphed.load_state_dict(model.state_dict())
    for _ in range(3):
        x = arrange(torch.randn(2, 8, 32, 33, device="cuda"), layout, 2).requires_grad_()
        same(step(graphed, list(graphed.parameters()), x), step(model, parameters, x))


def test_reduce_overhead() -> None:
    """torch.compile's own CUDA graphs."""
    model = net()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x = torch.randn(2, 8, 32, 33, device="cuda", requires_grad=True)
        torch.compiler.cudagraph_mark_step_begin()
        same(step(compiled, list(model.parameters()), x), step(model, list(model.parameters()), x))


def test_the_current_stream() -> None:
    """On a side stream that is late to write x, the ops come after it."""
    x, late = torch.zeros(4, 8, 64, 64, device="cuda"), torch.randn(4, 8, 64, 64, device="cuda")
    expected = aablur.blur_pool2d(late), aablur.max_blur_pool2d(late)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.copy_(late)
        found = aablur.blur_pool2d(x), aablur.max_blur_pool2d(x)
    stream.synchronize()
    assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))


def test_the_device_of_the_map() -> None:
    """The last device's map is served there, whichever device is current, and that one stays current."""
    last = torch.cuda.device_count() - 1
    x = torch.randn(2, 8, 20, 21, device=f"cuda:{last}", requires_grad=True)
    with torch.cuda.device(0):
        y = aablur.max_blur_pool2d(aablur.blur_pool2d(x))
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert torch.cuda.current_device() == 0
    assert y.device == grad.device == x.device
    host = x.detach().cpu().requires_grad_()
    with aablur.backend("reference"):
        expected = aablur.max_blur_pool2d(aablur.blur_pool2d(host))
        (expected_grad,) = torch.autograd.grad(expected.sum(), host)
    torch.testing.assert_close(y.cpu(), expected)
    torch.testing.assert_close(grad.cpu(), expected_grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_loop_with_autocast_and_scaled_gradients(dtype: torch.dtype) -> None:
    model = net().to(memory_format=torch.channels_last)
    optimizer, scaler = torch.optim.SGD(model.parameters(), 1e-3), torch.amp.GradScaler("cuda")
    x = arrange(torch.randn(4, 8, 32, 33, device="cuda"), "channels_last", 2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype):
            y = model(x)
            assert y.dtype == dtype
            loss = (y.float() - 1).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_same_bits_every_run() -> None:
    torch.use_deterministic_algorithms(True)
    model, x = net()[1:], torch.randn(8, 8, 65, 67, device="cuda", dtype=torch.float16, requires_grad=True)
    first = step(model, list(model.parameters()), x)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(step(model, list(model.parameters()), x), first, strict=True))
