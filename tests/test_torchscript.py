"""Promise: torch.jit.trace and torch.jit.script serve our layers, drop-ins and accelerated models."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import antialiased_cnns
import kornia
import peers
import pytest
import timm
import torch
from composer.algorithms.blurpool import BlurConv2d, BlurMaxPool2d, BlurPool2d
from plain import blur, out
from torch import Tensor, nn

import aablur
from aablur import compat

assert peers
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("error::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:antialias. this model may be trained"),
]

OURS: dict[str, Callable[[], nn.Module]] = {
    "blur": aablur.nn.BlurPool2d,
    "circular": lambda: aablur.nn.BlurPool2d(4, padding_mode="circular"),
    "max": aablur.nn.MaxBlurPool2d,
    "max, recomputed": lambda: aablur.nn.MaxBlurPool2d(3, window_padding=1, recompute=True),
    "learnt": lambda: aablur.nn.BlurPool2d(learnable=True, channels=4),
    "max, learnt": lambda: aablur.nn.MaxBlurPool2d(learnable=True),
    "taps": lambda: aablur.nn.BlurPool2d(torch.tensor([0.2, 0.5, 0.3])),
    "taps and a size": lambda: aablur.nn.BlurPool2d((torch.tensor([0.2, 0.5, 0.3]), 4)),
    "antialiased_cnns": lambda: compat.antialiased_cnns.BlurPool(4),
    "timm": lambda: compat.timm.BlurPool2d(4, 5),
    "timm, any channels": compat.timm.BlurPool2d,
    "kornia": lambda: compat.kornia.BlurPool2D((3, 5)),
    "kornia max": lambda: compat.kornia.MaxBlurPool2D(3),
    "composer": lambda: compat.composer.BlurPool2d(4),
    "composer max": lambda: compat.composer.BlurMaxPool2d(3, 2, 1),
    "composer convolution": lambda: compat.composer.BlurConv2d(4, 4, 3, 2, 1, blur_first=False),
}
REPAIRED = {
    "repaired": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)),
    "repaired, stride 4": lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 4, 1), nn.SiLU()),
}


def _saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(model, file)
    file.seek(0)
    return torch.jit.load(file)


def _gradients(model: Any, x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])


def _same(found: Any, model: nn.Module, gradients: bool = True) -> None:
    for size in ((2, 4, 16, 17), (1, 4, 23, 20)):
        x = torch.randn(size)
        torch.testing.assert_close(found(x), model(x))
        if gradients:
            torch.testing.assert_close(_gradients(found, x), _gradients(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("name", [*OURS, *REPAIRED])
def test_trace(name: str, grad: bool) -> None:
    """It passes torch's own checks with and without gradients, is saved, and has the gradients of the module."""
    x = torch.randn(2, 4, 20, 20)
    layer = OURS[name]() if name in OURS else aablur.antialias(REPAIRED[name](), x, strength=0.5)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), layer).eval()
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, x)
    for found in (traced, _saved(traced)):
        _same(found, model)
    frozen = torch.jit.freeze(_saved(traced))
    torch.testing.assert_close(frozen(x), model(x))
    assert "aablur::" in str(frozen.graph), "the fused op is in it"


def test_trace_of_a_function() -> None:
    traced = torch.jit.trace(lambda x: aablur.blur_pool2d(x), torch.randn(1, 2, 8, 8, requires_grad=True))
    x = torch.randn(1, 2, 11, 9)
    torch.testing.assert_close(_saved(traced)(x), blur(x))


@pytest.mark.parametrize("name", OURS)
def test_script(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), OURS[name]()).eval()
    scripted = torch.jit.script(model)
    for found in (scripted, _saved(scripted)):
        _same(found, model)
    for key, value in model.state_dict().items():
        assert torch.equal(scripted.state_dict()[key], value)
    x = torch.randn(1, 4, 16, 16)
    if name not in ("timm", "taps", "taps and a size"):
        torch.testing.assert_close(scripted.double()(x.double()), model.double()(x.double()))


def test_scripts_of_other_ranks() -> None:
    for layer, shape in (
        (aablur.nn.BlurPool1d(), (2, 4, 16)), (aablur.nn.MaxBlurPool3d(learnable=True), (1, 4, 6, 7, 8)),
        (compat.antialiased_cnns.BlurPool1D(4), (2, 4, 16)),
    ):  # fmt: skip
        x = torch.randn(shape)
        torch.testing.assert_close(_saved(torch.jit.script(layer))(x), layer(x))


PEERS: dict[str, Callable[[], nn.Module]] = {
    "antialiased_cnns": lambda: antialiased_cnns.BlurPool(4),
    "antialiased_cnns, one tap": lambda: antialiased_cnns.BlurPool(4, filt_size=1),
    "antialiased_cnns, zeros": lambda: antialiased_cnns.BlurPool(4, "zero", 5),
    "timm": lambda: timm.layers.BlurPool2d(4),
    "kornia": lambda: kornia.filters.BlurPool2D(3),
    "kornia max": lambda: kornia.filters.MaxBlurPool2D(3),
    "composer convolution": lambda: BlurConv2d(4, 4, 3, 2, 1),
    "composer max": lambda: BlurMaxPool2d(2),
    "composer": lambda: BlurPool2d(4),
    "a max before": lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), antialiased_cnns.BlurPool(4)),
    "two of a kind": lambda: nn.Sequential(
        antialiased_cnns.BlurPool(4), nn.ReLU(), antialiased_cnns.BlurPool(4, "zero")
    ),
    "resnetblur18": lambda: nn.Sequential(nn.Conv2d(4, 3, 1), timm.create_model("resnetblur18")),
    "antialiased resnet18": lambda: nn.Sequential(nn.Conv2d(4, 3, 1), antialiased_cnns.resnet18()),
}


@pytest.mark.parametrize("name", PEERS)
def test_accelerated_models_are_scripted_and_traced(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), PEERS[name]()).eval()
    x = torch.randn(1, 4, 64, 64)
    expected = out(model, x)
    report = aablur.accelerate(model)
    assert report.swapped and not report.left
    scripted, traced = torch.jit.script(model), torch.jit.trace(model, x)
    for found in (scripted, _saved(scripted), traced, _saved(traced)):
        torch.testing.assert_close(found(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out(model, x), expected, rtol=1e-4, atol=1e-4)
    report.restore()  # scripting has put nothing else in their places
    assert torch.equal(out(model, x), expected)


def test_what_a_script_loads_counts() -> None:
    """The buffer, as in the peer: also a filter that is no product of taps."""
    model = nn.Sequential(antialiased_cnns.BlurPool(4))
    aablur.accelerate(model)
    scripted, filt, x = torch.jit.script(model), torch.rand(4, 1, 4, 4), torch.randn(1, 4, 8, 8)
    scripted.load_state_dict({"0.filt": filt})
    theirs = antialiased_cnns.BlurPool(4)
    theirs.load_state_dict({"filt": filt})
    torch.testing.assert_close(scripted(x), theirs(x))


def test_constraints_are_not_passed_over() -> None:
    for constraints in (("sum_to_one",), ("symmetric",)):
        layer = aablur.nn.BlurPool2d(learnable=True, constraints=constraints)
        with pytest.raises(TypeError, match="knows no constraints of taps"):
            torch.jit.script(nn.Sequential(layer))
        with torch.no_grad():
            layer.parametrizations.taps_0.original.copy_(torch.tensor([1.0, 2, 4]))  # pyright: ignore
        x = torch.randn(1, 2, 8, 8)
        torch.testing.assert_close(_saved(torch.jit.trace(layer, x))(x), layer(x))


def test_repaired_models_say_that_they_cannot_be_scripted() -> None:
    model = aablur.antialias(nn.Sequential(nn.MaxPool2d(2)), torch.randn(1, 1, 8, 8))
    with pytest.raises(TypeError, match="a repaired model cannot be scripted: use"):
        torch.jit.script(model)
    torch.jit.script(aablur.restore(model))
