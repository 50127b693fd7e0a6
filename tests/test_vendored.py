"""Promise: aablur.accelerate finds copies of blur pools by what they do, and takes nothing else for one."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain import out
from torch import Tensor, nn

import aablur

TAPS = {2: [1.0, 1], 3: [1.0, 2, 1], 4: [1.0, 3, 3, 1], 5: [1.0, 4, 6, 4, 1]}


def _plane(taps: int) -> Tensor:
    row = torch.tensor(TAPS[taps])
    return torch.outer(row, row) / row.sum() ** 2


class Downsample(nn.Module):
    """As the paper's first release had it."""

    def __init__(
        self, channels: int, pad: Any = nn.ReflectionPad2d, taps: int = 3, stride: int = 2, off: int = 0
    ) -> None:
        super().__init__()
        before, after = (taps - 1) // 2 + off, taps // 2 + off
        self.channels, self.stride = channels, stride
        self.register_buffer("filt", _plane(taps).repeat(channels, 1, 1, 1))
        self.pad = pad((before, after, before, after))

    filt: Tensor

    def forward(self, inp: Tensor) -> Tensor:
        return F.conv2d(self.pad(inp), self.filt, stride=self.stride, groups=inp.shape[1])


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("taps", (torch.tensor(TAPS[3]) / 4).repeat(4, 1, 1))

    taps: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return F.conv1d(F.pad(input, (1, 1), "replicate"), self.taps, stride=2, groups=input.shape[1])


class Own(nn.Module):
    """Any padding, a filter that no checkpoint holds, a helper."""

    def __init__(
        self, mode: str = "reflect", stride: Any = 2, pads: tuple[int, ...] = (1, 1, 1, 1), taps: int = 3
    ) -> None:
        super().__init__()
        self.register_buffer("h", _plane(taps), persistent=False)
        self.mode, self.step, self.pads = mode, stride, pads

    h: Tensor

    def _weight(self, channels: int) -> Tensor:
        return self.h.expand(channels, 1, *self.h.shape)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, self.pads, self.mode), self._weight(x.shape[1]), stride=self.step, groups=x.shape[1])


class OfFour(nn.Module):
    """One filter, a fixed number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.register_buffer("kernel", _plane(4)[None, None])

    kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.repeat(self.width, 1, 1, 1), stride=2, padding=1, groups=self.width)


class Rows(nn.Module):
    """Along one axis of two, with taps that are not binomial."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.tensor([0.2, 0.5, 0.3]).repeat(4, 1, 1, 1))

    w: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 0, 0)), self.w, stride=(1, 2), groups=4)


class WithMax(nn.Module):
    """kornia's attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.max_pool_size = 3, 2, 2
        self.register_buffer("kernel", _plane(3))

    kernel: Tensor

    def forward(self, x: Tensor) -> Tensor:
        y, channels = F.max_pool2d(x, self.max_pool_size, 1), x.shape[1]
        return F.conv2d(y, self.kernel.expand(channels, 1, 3, 3), padding=1, stride=self.stride, groups=channels)


BLURS: dict[str, Callable[[], nn.Module]] = {
    "the paper's": lambda: Downsample(4),
    "zeros, 4 taps": lambda: Downsample(4, nn.ZeroPad2d, 4),
    "replicated, cropped": lambda: Downsample(4, nn.ReplicationPad2d, 5, 2, -1),
    "more padding, stride 1": lambda: Downsample(4, nn.ReflectionPad2d, 3, 1, 1),
    "stride 4, 2 taps": lambda: Downsample(4, nn.ReflectionPad2d, 2, 4),
    "one axis": Line,
    "own": Own,
    "own, circular": lambda: Own("circular", 3, (2, 1, 1, 2), 4),
    "own, each axis otherwise": lambda: Own("constant", (1, 2), (0, 1, 2, 0)),
    "of four channels": OfFour,
    "rows": Rows,
    "with a max": WithMax,
}


def _noise(name: str) -> Tensor:
    return torch.randn(2, 4, 33) if name == "one axis" else torch.randn(2, 4, 33, 30)


@pytest.mark.parametrize("name", BLURS)
def test_what_is_found(name: str) -> None:
    theirs, x = BLURS[name](), _noise(name)
    model = nn.Sequential(nn.Identity(), copy.deepcopy(theirs)).eval()
    state = model.state_dict()
    report = aablur.accelerate(model)
    assert [(s.path, s.note) for s in report.swapped] == [("1", "known by what it does")] and not report.left
    expected = out(theirs, x)
    torch.testing.assert_close(out(model, x), expected)
    assert model.state_dict().keys() == state.keys() and all(
        torch.equal(model.state_dict()[k], v) for k, v in state.items()
    )
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    for again in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.jit.trace(model, x),
        torch.jit.load(file),
    ):
        torch.testing.assert_close(again(x), expected)
    x.requires_grad_()
    gradients = [torch.autograd.grad(m(x).square().sum(), x)[0] for m in (model, theirs)]
    torch.testing.assert_close(*gradients)
    report.restore()
    assert type(model[1]) is type(theirs)


@pytest.mark.parametrize("name", ["the paper's", "one axis", "own"])
def test_names_of_arguments(name: str) -> None:
    theirs = BLURS[name]()
    model = nn.Sequential(copy.deepcopy(theirs))
    aablur.accelerate(model)
    (argument,) = inspect.signature(theirs.forward).parameters
    x = _noise(name)
    torch.testing.assert_close(model[0](**{argument: x}), theirs(x))


def test_dtypes_and_other_filters() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model, theirs = nn.Sequential(Own().to(dtype)), Own().to(dtype)
        assert aablur.accelerate(model).swapped
        x = torch.randn(1, 3, 20, 20, dtype=dtype)
        torch.testing.assert_close(model(x), theirs(x))
    model, theirs, filt = nn.Sequential(Downsample(4)), Downsample(4), torch.rand(4, 1, 3, 3)
    assert aablur.accelerate(model).swapped
    model.load_state_dict({"0.filt": filt})
    theirs.load_state_dict({"filt": filt})
    x = torch.randn(1, 4, 12, 12)
    torch.testing.assert_close(model(x), theirs(x))


def test_a_max_before_is_fused() -> None:
    model, x = nn.Sequential(nn.MaxPool2d(2, 1), Downsample(4)), torch.randn(1, 4, 20, 20)
    expected = model(x)
    report = aablur.accelerate(model)
    assert [s.note for s in report.swapped] == ["now in 1", "known by what it does; with the max of 0"]
    torch.testing.assert_close(model(x), expected)


class Rectified(Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class OtherwiseInTraining(Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.training else 1)


class OtherwiseWhenLarge(Own):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(max=10)


class Counts(Own):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class TwoArguments(Own):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * scale


class WithMethod(Own):
    def taps(self) -> Tensor:
        return self.h


class WithCall(Own):
    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(4, 1, 3, 3))

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask.mean()


class Normalised(Own):
    """Its buffer is not the filter that it uses."""

    def _weight(self, channels: int) -> Tensor:
        return 2 * super()._weight(channels)


def _hooked() -> nn.Module:
    made = Downsample(4)
    made.pad.register_forward_hook(lambda *_: None)
    return made


def _with(module: Own, **values: Any) -> nn.Module:
    for name, value in values.items():
        setattr(module, name, value)
    return module


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "rectified": Rectified,
    "otherwise in training": OtherwiseInTraining,
    "otherwise when large": OtherwiseWhenLarge,
    "counts": Counts,
    "two arguments": TwoArguments,
    "a method": WithMethod,
    "a call": WithCall,
    "a gate": Gate,
    "another filter": Normalised,
    "not separable": lambda: _with(Own(), h=torch.rand(3, 3)),
    "learnt": lambda: _with(Own(), extra=nn.Parameter(torch.ones(1))),
    "a second buffer": lambda: _with(Own(), extra=nn.Buffer(torch.ones(1))),
    "its forward set on it": lambda: _with(Own(), forward=lambda x: x),
    "hooks inside": _hooked,
    "on the meta device": lambda: Own().to("meta"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_none(name: str) -> None:
    module = OTHERS[name]()
    before = dict(vars(module))
    model = nn.Sequential(module)
    report = aablur.accelerate(model)
    assert report.swapped == [] and model[0] is module and vars(module) == before


def test_the_model_itself_and_models_without() -> None:
    report = aablur.accelerate(Own())
    assert "the model itself" in report.left[0].reason
    report = aablur.accelerate(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), aablur.nn.BlurPool2d()))
    assert not report.swapped and not report.left
