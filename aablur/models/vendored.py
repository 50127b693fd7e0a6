"""Copies of blur pools in other people's code: known by what they do, whatever they and their attributes are called."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import composer, kornia
from ..compat._base import Blur, Spec, factor, run
from ..geometry import PADDING_MODES
from .replace import has_hooks

_HARMLESS = frozenset(("__init__", "__repr__", "extra_repr", "forward"))
_WITH_MAX: tuple[type[Blur], ...] = (kornia.MaxBlurPool2D, composer.BlurMaxPool2d)
_LARGEST = 64  # taps, strides and pads that are looked for


class BlurPool(Blur):
    """A blur pool on the state of a module of somebody's own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(x)

    @staticmethod
    def on(theirs: nn.Module, name: str, spec: Spec) -> BlurPool:
        """With the filter in the buffer ``name``."""
        cls = _BY_ARGUMENT.get(_arguments(theirs)[0], BlurPool)
        ours = cls.__new__(cls)
        ours.__dict__.update(vars(theirs), rank=len(spec.geometry.axes), filter_name=name)
        ours._describe(*spec.words[1:])
        return ours


class BlurPoolOfInp(BlurPool):
    def forward(self, inp: Tensor) -> Tensor:
        return self.blur(inp)


class BlurPoolOfInput(BlurPool):
    def forward(self, input: Tensor) -> Tensor:
        return self.blur(input)


_BY_ARGUMENT: dict[str, type[BlurPool]] = {"inp": BlurPoolOfInp, "input": BlurPoolOfInput}


def _arguments(module: nn.Module) -> list[str]:
    return list(inspect.signature(type(module).forward).parameters)[1:]


def counterpart(module: nn.Module) -> Blur | None:
    """Ours in the place of a module that is a blur pool; None if it is none, or it cannot be told.

    1. It must hold nothing but one buffer with one filter, or one a channel; and have no code of its own but what
       begins with an underscore and its forward, which takes one argument.
    2. Its stride and its padding are told from the sizes that it gives; where it begins, and the padding mode, by
       trial on noise.
    3. It must agree with ours on other noise: of other sizes, batches and magnitudes, in training and evaluation.

    It is a copy of the module that is run.
    """
    if (name := _filter_of(module)) is None:
        return None
    for cls in _WITH_MAX if name in (cls.filter_name for cls in _WITH_MAX) else ():
        with suppress(Exception):  # attributes that it does not have, or whatever its forward raises
            ours = cls.adopt(module)
            if ours.is_separable and _Probe(module, name, 2).agrees(ours.blur):
                return ours
    for rank in (2, 1):
        with suppress(Exception):  # as above
            for spec in _specs(probe := _Probe(module, name, rank), type(module).__name__):
                ours = BlurPool.on(module, name, spec)
                if ours.is_separable and probe.agrees(ours.blur):
                    return ours
    return None


def _filter_of(module: nn.Module) -> str | None:
    """The name of a module's one buffer, if it holds nothing else and may be a filter."""
    buffers = [name for name, buffer in module._buffers.items() if buffer is not None]
    if len(buffers) != 1 or module._parameters or isinstance(module, (Blur, torch.jit.ScriptModule)):
        return None
    children = [child for child in module.modules() if child is not module]
    if any(has_hooks(m) or m._parameters or m._buffers for m in children) or "forward" in vars(module):
        return None
    classes = [c for c in type(module).__mro__ if c not in (nn.Module, object)]
    code = {name for c in classes for name, value in vars(c).items() if is_code(value)} - _HARMLESS
    if any(not name.startswith("_") or hasattr(nn.Module, name) for name in code) or len(_arguments(module)) != 1:
        return None
    filt: Any = module._buffers[buffers[0]]
    is_plain = type(filt) is Tensor and filt.is_floating_point() and not filt.is_meta and not filt.requires_grad
    is_filter = 2 <= filt.ndim <= 4 and all(n == 1 for n in filt.shape[1:-2]) and 1 < filt.shape[-1] <= _LARGEST
    return buffers[0] if is_plain and is_filter and filt.shape[-2] <= _LARGEST else None


def is_code(value: Any) -> bool:
    """Whether an entry of a class is more than a constant."""
    return callable(value) or isinstance(value, (property, classmethod, staticmethod))


class _Probe:
    """Runs a copy of a module on noise."""

    def __init__(self, module: nn.Module, name: str, rank: int) -> None:
        self.module, self.rank, self.filt = copy.deepcopy(module), rank, getattr(module, name)
        self.forward = type(module).forward
        self.reach = 4 * max(self.filt.shape[-2:])
        self.channels = self._channels()

    def _channels(self) -> int:
        """The first number of channels that the module takes."""
        own = self.filt.shape[0] if self.filt.ndim > self.rank else 1
        for channels in [own] if own > 1 else [3, *(v for v in vars(self.module).values() if type(v) is int)]:
            self.channels = channels
            with suppress(Exception):  # it is another number
                self.run(self.noise([self.reach] * self.rank))
                return channels
        raise ValueError("no number of channels fits")

    @torch.no_grad()
    def run(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False), torch.random.fork_rng(devices=[]):
            return self.forward(self.module, x)

    def noise(self, sizes: Sequence[int], batch: int = 1, scale: float = 1.0) -> Tensor:
        shape = (batch, self.channels, *sizes)
        count = torch.arange(math.prod(shape), dtype=torch.float64, device="cpu")
        return (scale * (count * 1.7 + (count * 0.37).sin()).sin()).reshape(shape).to(self.filt)

    def agrees(self, ours: Callable[[Tensor], Tensor]) -> bool:
        for training, batch, scale, more in (
            (False, 1, 1.0, 0),
            (False, 2, 1.0, 1),
            (True, 1, 100.0, 2),
            (True, 3, 1.0, 9),
        ):
            self.module.train(training)
            x = self.noise([self.reach + (i + 1) * more for i in range(self.rank)], batch, scale)
            if not self.is_same(self.run(x), ours(x)):
                return False
        return True

    def is_same(self, expected: Any, actual: Tensor) -> bool:
        if not isinstance(expected, Tensor) or expected.shape != actual.shape or expected.dtype != actual.dtype:
            return False
        slack = 1e-3 if self.filt.dtype in (torch.float32, torch.float64) else 0.03  # TF32; halves
        return float((actual - expected).abs().max()) <= slack * float(expected.abs().max())


def _specs(probe: _Probe, op: str) -> Iterator[Spec]:
    """The geometries that a module may have, the likeliest first."""
    rank, sizes = probe.rank, probe.filt.shape[-probe.rank :]
    found = [_stride_and_pad(probe, i, rank, k) for i, k in enumerate(sizes)]
    strides = tuple(stride for stride, _ in found)
    begins = [sorted(range(min(pad, 0), max(pad, 0) + 1), key=lambda b, pad=pad: abs(2 * b - pad)) for _, pad in found]
    x = probe.noise([probe.reach] * rank)
    expected = probe.run(x)
    read = factor(probe.filt, sizes)
    for befores in sorted(itertools.product(*begins), key=lambda b: len(set(b))):
        padding = tuple((b, pad - b) for b, (_, pad) in zip(befores, found, strict=True))
        for mode in PADDING_MODES:
            spec = Spec.of(op, tuple(sizes), strides, padding, mode)
            if probe.is_same(expected, run(x, probe.filt, spec, read)):
                yield spec


def _stride_and_pad(probe: _Probe, axis: int, rank: int, taps: int) -> tuple[int, int]:
    """Along one axis: outputs are (n + pad - taps) // stride + 1 for every n, and one more where that divides."""
    base, last, steps = probe.reach, None, []
    for n in range(base, base + 2 * _LARGEST):
        out = probe.run(probe.noise([n if i == axis else base for i in range(rank)])).shape[2 + axis]
        if last is not None and out != last:
            steps.append((n, out))
        if len(steps) == 2:
            (first, out), (second, _) = steps
            pad = (out - 1) * (second - first) + taps - first
            if abs(pad) > _LARGEST:
                break
            return second - first, pad
        last = out
    raise ValueError("its sizes are not those of a blur pool")
