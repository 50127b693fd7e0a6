"""Any model on a torus: every padding becomes circular while it runs, so that shifts have no border to meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..geometry import Geometry
from .sites import as_taps, per_axis, rank_of


def wrap(x: Tensor, before: Sequence[int], after: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Circular padding of any width, along any axes; a negative one crops."""
    for axis, b, a in zip(axes, before, after, strict=True):
        if b or a:
            n = x.shape[axis]
            x = x.index_select(axis, torch.arange(-b, n + a, device=x.device) % n)
    return x


@dataclass(frozen=True)
class Window:
    """An op that slides a window over a map: ``run(padded map, stride)`` is the op without its padding."""

    x: Tensor
    reach: tuple[int, ...]  # along each axis, pixels that an output sees beyond its first
    before: tuple[int, ...]
    stride: tuple[int, ...]
    run: Callable[[Tensor, tuple[int, ...]], Any]

    def on_torus(self, stride: tuple[int, ...] | None = None) -> Any:
        """With circular padding: one output a pixel of the map, of which every ``stride``-th is kept."""
        after = [r - b for r, b in zip(self.reach, self.before, strict=True)]
        padded = wrap(self.x, self.before, after, range(-len(self.reach), 0))
        return self.run(padded, self.stride if stride is None else stride)


def _argument(args: Sequence[Any], kwargs: dict[str, Any], at: int, name: str, default: Any = None) -> Any:
    return args[at] if len(args) > at else kwargs.get(name, default)


def _conv(name: str, func: Any, args: Any, kwargs: Any) -> Window:
    rank = rank_of(name)
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    defaults = (None, None, None, 1, 0, 1, 1)
    x, weight, bias, stride, padding, dilation, groups = (
        _argument(args, kwargs, i, n, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True))
    )
    dilation = per_axis(dilation, rank)
    reach = tuple(d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
    if isinstance(padding, str):
        padding = tuple(r // 2 for r in reach) if padding == "same" else 0
    return Window(
        x,
        reach,
        per_axis(padding, rank),
        per_axis(stride, rank),
        lambda padded, s: func(padded, weight, bias, s, 0, dilation, groups),
    )


def _pool(name: str, func: Any, args: Any, kwargs: Any) -> Window:
    rank, is_max = rank_of(name), name.startswith("max")
    x, kernel, stride = (_argument(args, kwargs, i, n) for i, n in enumerate(("input", "kernel_size", "stride")))
    kernel = per_axis(kernel, rank)
    dilation = per_axis(_argument(args, kwargs, 4, "dilation", 1), rank) if is_max else (1,) * rank
    extra: dict[str, Any] = {"dilation": dilation} if is_max else {}
    if "indices" in name:
        extra["return_indices"] = True
    return Window(
        x,
        tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True)),
        per_axis(_argument(args, kwargs, 3, "padding", 0), rank),
        kernel if stride is None or stride == [] else per_axis(stride, rank),
        lambda padded, s: func(padded, kernel, s, **extra),
    )


def _blur(name: str, func: Any, args: Any, kwargs: Any) -> Window:
    """One of our pools, which hand themselves over with everything but the map by name."""
    taps = as_taps(kwargs["taps"], rank_of(name))
    sizes = [t.shape[-1] if isinstance(t, Tensor) else t for t in taps]
    prologue = [kwargs[k] for k in ("window", "window_padding", "window_dilation") if k in kwargs]
    axes = Geometry(name, sizes, kwargs["stride"], kwargs["padding"], kwargs["padding_mode"], *prologue).axes
    again = kwargs | {"padding": 0, "padding_mode": "zeros"} | ({"window_padding": 0} if prologue else {})
    return Window(
        args[0],
        tuple(a.taps - 1 + a.window_dilation * (a.window - 1) for a in axes),
        tuple(a.before + a.window_padding for a in axes),
        tuple(a.stride for a in axes),
        lambda padded, s: func(padded, **again | {"stride": s}),
    )


_WINDOWS: dict[str, Callable[[str, Any, Any, Any], Window]] = {
    **{f"{op}{r}d": _blur for op in ("blur_pool", "max_blur_pool") for r in (1, 2, 3)},
    **{f"conv{r}d": _conv for r in (1, 2, 3)},
    **{f"{op}_pool{r}d{end}": _pool for op in ("avg", "max") for r in (1, 2, 3) for end in ("", "_with_indices")},
}


class Torus:
    """Runs torch functions with circular padding in place of their own: an ``evaluate`` of `tape.Recorder`."""

    def __init__(self) -> None:
        self._padded = WeakTensorKeyDictionary()  # a padded map, while it is alive: the map, pads before

    def window(self, func: Any, args: Any, kwargs: Any) -> Window | None:
        """The op as a window over its map, from which a padding of its own has been taken off; None if it is none."""
        name = getattr(func, "__name__", "")
        if name not in _WINDOWS:
            return None
        window = _WINDOWS[name](name, func, args, kwargs)
        if (known := self._padded.get(window.x)) is not None:
            x, pads = known
            before = tuple(b + p for b, p in zip(window.before, pads[-len(window.before) :], strict=True))
            window = replace(window, x=x, before=before)
        return window

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        if (window := self.window(func, args, kwargs)) is not None:
            return window.on_torus()
        if func is F.pad and (pads := _spatial_pads(*args, **kwargs)):
            x = args[0] if args else kwargs["input"]
            out = wrap(x, [b for b, _ in pads], [a for _, a in pads], range(-len(pads), 0))
            self.note_pad(func, args, kwargs, out)
            return out
        return func(*args, **kwargs)

    def note_pad(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Remembers that ``out`` is a padded map, so that the window that takes it finds the map itself."""
        if func is F.pad and (pads := _spatial_pads(*args, **kwargs)):
            x = args[0] if args else kwargs["input"]
            self._padded[out] = (x, [0] * (x.ndim - len(pads)) + [b for b, _ in pads])


def _spatial_pads(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """(before, after) of the last axes; empty where nothing is padded, or channels are."""
    pads = [(pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)][::-1]
    moved = [axis for axis, p in zip(range(-len(pads), 0), pads, strict=True) if any(p)]
    return [] if not moved or moved == [-3] or input.ndim + moved[0] < 1 else pads
