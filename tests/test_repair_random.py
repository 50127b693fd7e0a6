"""Promise: whatever a model is made of, its repair keeps sizes, is nothing at strength 0, and comes off whole."""

from __future__ import annotations

import copy
import functools
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

from aablur.models import antialias, repairs, restore

CHANNELS, SIZES = 4, ((40, 40), (41, 47), (46, 37))


class Still(nn.BatchNorm2d):
    """The same in training: a norm over the batch sees another map where it stands before the blur."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class Scaled(nn.Conv2d):
    """A forward of its own, that reads its stride."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore
        return F.conv2d(x, self.weight / 2, self.bias, self.stride, self.padding)  # pyright: ignore


def _conv(draw: random.Random) -> nn.Module:
    kernel = draw.choice((1, 2, 3, 3, 3, 5))
    kind = draw.choice((nn.Conv2d, nn.Conv2d, Scaled))
    conv = kind(CHANNELS, CHANNELS, kernel, draw.choice((1, 2, 2, (1, 2), 3)), kernel // 2)
    return parametrizations.weight_norm(conv) if draw.random() < 0.15 else conv


def _pool(draw: random.Random) -> nn.Module:
    if draw.random() < 0.5:
        return draw.choice((nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)))
    return nn.AvgPool2d(2, 2)


def _act(draw: random.Random) -> nn.Module:
    return draw.choice((nn.ReLU, functools.partial(nn.ReLU, inplace=True), nn.SiLU, nn.Identity))()


class Block(nn.Module):
    """Convolution, norm, activation by one of several ways, with a shortcut, an option and a second entry."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.conv, self.act, self.norm = _conv(draw), _act(draw), Still(CHANNELS)
        self.way = draw.randrange(6)
        self.pairs = nn.Sequential(_conv(draw), Still(CHANNELS))
        self.flag = False

    def features(self, x: Tensor) -> Tensor:
        if self.way == 0:
            return self.act(self.norm(self.conv(x)))
        if self.way == 1:
            return self.act(self.pairs(x))
        if self.way == 2:
            y = self.norm(self.conv(x))
            return y * torch.sigmoid(y)
        if self.way == 3:
            return F.relu(self.conv(x)) + 1
        if self.way == 4:  # what follows reads the map twice
            y = self.conv(x)
            return self.act(y) + y.mean()
        return self.act(self.norm(x))[..., ::2, ::2]

    def forward(self, x: Tensor, scale: Any = None, both: bool = False) -> Any:
        y = self.features(x)
        if scale is not None:
            y = y * scale
        if self.flag or both:
            y = y.flip(-1)
        if self.way == 3 and self.training:
            return y + 0
        return y


class Branching(Block):
    """No tracer follows it."""

    def forward(self, x: Tensor, scale: Any = None, both: bool = False) -> Any:
        if float(x.detach().flatten()[0]) > 1e6:
            return x
        return super().forward(x, scale, both)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Net(nn.Module):
    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, CHANNELS, 3, draw.choice((1, 2)), 1), nn.ModuleList()
        for _ in range(draw.randint(1, 2)):
            made: nn.Module = draw.choice((Block, Block, Branching))(draw)
            made = Wrapped(made) if draw.random() < 0.3 else made
            made = nn.Sequential(made, _act(draw)) if draw.random() < 0.3 else made
            self.blocks.append(made)
            if draw.random() < 0.3:
                self.blocks.append(_pool(draw))
            if draw.random() < 0.2:
                self.blocks.append(made)  # the same once more
        self.head = nn.Linear(CHANNELS, 3)
        for m in self.modules():
            if isinstance(m, Still):
                nn.init.normal_(m.bias)

    def encode(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(x)
        return self.head(z.mean((2, 3))), z


Entry = Callable[[Any, Tensor], Any]
ENTRIES: dict[str, Entry] = {
    "forward": lambda net, x: net(x),
    "encode": lambda net, x: net.encode(x),
    "blocks alone": lambda net, x: [b(F.relu(net.stem(x))) for b in net.blocks],
    "options": lambda net, x: [
        b(F.relu(net.stem(x)), scale, both)
        for b in net.modules() if isinstance(b, Block)
        for scale, both in ((2.0, False), (None, True))
    ],
    "features": lambda net, x: [b.features(F.relu(net.stem(x))) for b in net.modules() if isinstance(b, Block)],
    "layers alone": lambda net, x: [
        m(torch.cat([x, x[:, :1]], 1)) for m in net.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))
        if getattr(m, "in_channels", CHANNELS) == CHANNELS
    ],
}  # fmt: skip


def _flip(net: Any) -> Any:
    for b in net.modules():
        if isinstance(b, Block):
            b.flag = True
    return net


def _wrap(net: Any) -> Any:
    for m in net.modules():
        old = m.forward
        m.forward = functools.partial(lambda old, *args, **kwargs: old(*args, **kwargs), old)
    return net


CHANGES: dict[str, Callable[[Any], Any]] = {
    "none": lambda net: net,
    "flags": _flip,
    "copied": copy.deepcopy,
    "wrapped": _wrap,
}


@pytest.mark.parametrize("seed", range(40))
def test_random_models(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    plain = Net(draw).double()
    xs = [torch.randn(2, 3, *size, dtype=torch.float64) for size in SIZES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left, moved, or blurred by itself is said
        still, blurred = (antialias(copy.deepcopy(plain), xs[0], strength=s) for s in (0.0, 1.0))
        for change in draw.sample(sorted(CHANGES), 2):
            nets = [
                CHANGES[change](net) for net in (copy.deepcopy(plain), copy.deepcopy(still), copy.deepcopy(blurred))
            ]
            for training in (False, True):
                for net in nets:
                    net.train(training)
                for name, entry in ENTRIES.items():
                    for x in xs:
                        a, b, c = (_leaves(entry(net, x)) for net in nets)
                        assert [t.shape for t in a] == [t.shape for t in c], (change, name)
                        for t, u in zip(a, b, strict=True):
                            torch.testing.assert_close(u, t, msg=lambda m: f"{change}, {name}, {training}: {m}")  # noqa: B023
        if any(r.done for r in repairs(blurred)):
            assert any(
                not torch.equal(t, u)
                for t, u in zip(_leaves(plain.eval()(xs[0])), _leaves(blurred.eval()(xs[0])), strict=True)
            )
        for net in (still, blurred):
            restore(net)
            assert [type(m) for m in net.modules() if "Parametrized" not in type(m).__name__] == [
                type(m) for m in plain.modules() if "Parametrized" not in type(m).__name__
            ]
            assert list(net.state_dict()) == list(plain.state_dict())
            for training in (False, True):
                for t, u in zip(
                    _leaves(plain.train(training)(xs[1])), _leaves(net.train(training)(xs[1])), strict=True
                ):
                    torch.testing.assert_close(u, t)


def _leaves(value: Any) -> list[Tensor]:
    return [t.detach() for t in tree_leaves(value)]
