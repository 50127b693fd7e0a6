"""The peers, and pairs of theirs and ours: what the tests of aablur.compat and aablur.accelerate share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peers  # noqa: F401  # makes the imports below possible
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import antialiased_cnns
    import composer.algorithms.blurpool
    import kornia.filters
    import timm.layers

import aablur

PEERS = {
    "antialiased_cnns": (antialiased_cnns, ["BlurPool", "BlurPool1D"]),
    "timm": (timm.layers, ["BlurPool2d", "create_aa"]),
    "kornia": (kornia.filters, ["BlurPool2D", "MaxBlurPool2D", "blur_pool2d", "max_blur_pool2d"]),
    "composer": (
        composer.algorithms.blurpool,
        ["BlurPool2d", "BlurMaxPool2d", "BlurConv2d", "blur_2d", "blurmax_pool2d", "apply_blurpool"],
    ),
}
CHANNELS = 4


@dataclass(frozen=True)
class Pair:
    """One class of a peer and the arguments it is made with."""

    peer: str
    name: str
    args: tuple[Any, ...]
    rank: int = 2

    def theirs(self) -> Any:
        return getattr(PEERS[self.peer][0], self.name)(*self.args)

    def ours(self) -> Any:
        return getattr(getattr(aablur.compat, self.peer), self.name)(*self.args)

    def same(self) -> tuple[Any, Any]:
        """Both, with the same parameters."""
        theirs, ours = self.theirs(), self.ours()
        ours.load_state_dict(theirs.state_dict())
        return theirs, ours

    def filter_name(self) -> str:
        return self.ours().filter_name

    def sizes(self) -> list[tuple[int, ...]]:
        return [(9, 14), (16, 11)] if self.rank == 2 else [(9,), (16,)]

    @property
    def id(self) -> str:
        return "-".join(map(str, (self.peer, self.name, *self.args)))


def pairs() -> list[Pair]:
    found = []
    for stride in (1, 2, 3, 4):
        for k in range(1, 8):
            for i, mode in enumerate(("refl", "reflect", "repl", "replicate", "zero")):
                off = (k + i + stride) % 3 - 1
                for o in {0, off}:
                    args = (CHANNELS, mode, k, stride, o)
                    found.append(Pair("antialiased_cnns", "BlurPool", args))
                    found.append(Pair("antialiased_cnns", "BlurPool1D", args, 1))
            found.append(Pair("kornia", "BlurPool2D", (k, stride)))
            found += [Pair("kornia", "MaxBlurPool2D", (k, stride, w)) for w in (1, 2, 3, (2, 3))]
            for mode in ("reflect", "constant", "replicate", "circular") if k > 1 else ():
                found.append(Pair("timm", "BlurPool2d", ((None, CHANNELS)[k % 2], k, stride, mode)))
        found += [Pair("composer", "BlurPool2d", (c, s)) for c in (0, CHANNELS) for s in (stride, (stride, 2))]
        for window, padding, dilation in ((2, 0, 1), (3, 1, 1), ((2, 3), (1, 0), (2, 1))):
            found.append(Pair("composer", "BlurMaxPool2d", (window, stride, padding, dilation)))
        for blur_first in (True, False):
            found.append(Pair("composer", "BlurConv2d", (CHANNELS, 6, 3, stride, 1, 1, 2, True, blur_first)))
    found += [
        Pair("composer", "BlurMaxPool2d", (2,)),
        Pair("timm", "BlurPool2d", ()),
        Pair("kornia", "BlurPool2D", (3,)),
    ]
    found += [Pair("antialiased_cnns", "BlurPool", (CHANNELS,)), Pair("antialiased_cnns", "BlurPool1D", (CHANNELS,), 1)]
    return found


PAIRS = pairs()
ONE_EACH = [
    Pair("antialiased_cnns", "BlurPool", (CHANNELS, "reflect", 4)),
    Pair("antialiased_cnns", "BlurPool1D", (CHANNELS, "zero", 3), 1),
    Pair("timm", "BlurPool2d", (CHANNELS, 3)),
    Pair("timm", "BlurPool2d", (None, 4, 3, "circular")),
    Pair("kornia", "BlurPool2D", (4,)),
    Pair("kornia", "MaxBlurPool2D", (3, 2, 3)),
    Pair("composer", "BlurPool2d", (CHANNELS,)),
    Pair("composer", "BlurMaxPool2d", (3, 2, 1)),
    Pair("composer", "BlurConv2d", (CHANNELS, 6, 3, 2, 1)),
    Pair("composer", "BlurConv2d", (CHANNELS, 6, 3, 2, 1, 1, 1, True, False)),
]


def both_ways(f: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    y = f(x)
    (gradient,) = torch.autograd.grad(y, x, torch.cos(torch.arange(y.numel())).reshape(y.shape).to(y))
    return [y.detach(), gradient]


def assert_same(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor, **close: Any) -> None:
    for actual, expected in zip(both_ways(ours, x), both_ways(theirs, x), strict=True):
        torch.testing.assert_close(actual, expected, **close)


def described(state: Any) -> Any:
    return [(name, t.shape, t.dtype) for name, t in state]
