"""Every blur pool of antialiased-cnns, timm, kornia and composer in a model, swapped for ours, in place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..compat import antialiased_cnns, composer, kornia, timm
from ..compat._base import Blur
from ..geometry import shown
from . import fusion, vendored
from .replace import Swaps, has_hooks, paths
from .vendored import is_code

# (package, class) of the peer: told by name, so that no peer is imported
_OURS: dict[tuple[str, str], type[Blur]] = {
    ("antialiased_cnns", "BlurPool"): antialiased_cnns.BlurPool,
    ("antialiased_cnns", "BlurPool1D"): antialiased_cnns.BlurPool1D,
    ("timm", "BlurPool2d"): timm.BlurPool2d,
    ("kornia", "BlurPool2D"): kornia.BlurPool2D,
    ("kornia", "MaxBlurPool2D"): kornia.MaxBlurPool2D,
    ("composer", "BlurMaxPool2d"): composer.BlurMaxPool2d,
    ("composer", "BlurConv2d"): composer.BlurConv2d,
    ("composer", "BlurPool2d"): composer.BlurPool2d,
}
_PEERS = tuple(dict.fromkeys(package for package, _ in _OURS))
_NOT_SERVED = {("kornia", "EdgeAwareBlurPool2D"): "it blurs away from edges, and keeps the size"}
_HARMLESS = frozenset(("__init__", "__repr__", "extra_repr"))
_PROBE_TOLERANCE = 0.03  # of the largest value: rounding of halves and TF32 stays below, a shifted pixel does not


@dataclass(frozen=True)
class Swapped:
    """A module that was swapped.

    Attributes:
        path: its names in the model, with a comma where it has several.
        was, now: full names of the classes.
        note: what else was done.
    """

    path: str
    was: str
    now: str
    note: str = ""


@dataclass(frozen=True)
class Left:
    """A blur pool that was left as it is: its path and class, and the reason."""

    path: str
    was: str
    reason: str


@dataclass
class Acceleration:
    """What `accelerate` did. ``str`` of it is a table.

    Attributes:
        swapped, left: a row a module.
    """

    swapped: list[Swapped] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    _swaps: Swaps | None = field(default=None, repr=False)

    def restore(self) -> None:
        """Puts the modules of the peers back into the model, with the weights, hooks and mode that it has by now.

        A second call does nothing. It restores the model that was accelerated, not a copy of it.

        Raises:
            RuntimeError: a module that was swapped has itself been replaced since.
        """
        if self._swaps is not None:
            self._swaps.undo()

    def __str__(self) -> str:
        rows = [[s.path, s.was, s.now, s.note] for s in self.swapped]
        rows += [[left.path, left.was, "left", left.reason] for left in self.left]
        head = f"aablur.accelerate: {len(self.swapped)} swapped, {len(self.left)} left"
        if not rows:
            return f"{head}: it has no blur pools of {', '.join(_PEERS)}; aablur.antialias(model) gives it some"
        return "\n".join([head, *_table([["module", "was", "now", "note"], *rows])])


def _table(rows: list[list[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def accelerate(model: nn.Module, *, fuse_max: bool = True) -> Acceleration:
    """Swaps every blur pool of antialiased-cnns, timm, kornia and composer in a model for ours, in place.

    1. Find them by their classes' names; no peer's package is imported. Copies of them in other people's code, and
       blur pools of one's own, are found by what they do: they hold one filter and nothing else, and on noise of
       several sizes give what ours gives (`vendored.counterpart`).
    2. Put ours in their places, on the same buffers, children and hooks: names, state_dict, device, dtype and
       training mode stay. Each is first held against its peer on a small map.
    3. Make one op of a max pool (stride 1) and the blur pool that alone follows it, where a trace of the model, or
       of the module that holds both, proves it. The max pool's place is taken by an ``nn.Identity``: what reads the
       map between the two from outside (``model[:k]``) finds another one. A max or blur with hooks is not fused.

    The outputs stay the same, up to the rounding of sums. What cannot be served exactly is left alone and reported:
    a filter that is not separable or is learnt, a subclass that overrides anything, a forward replaced on the
    instance, a module on the meta device, hooks on its children, the model itself being the blur pool.

    Args:
        model: changed in place. Blur pools of ours that are already there take part in 3.
        fuse_max: whether to do 3. Default True.

    Returns:
        what was swapped, what was left and why; ``restore()`` of it undoes everything.

    Raises:
        TypeError: model is not an ``nn.Module``, or fuse_max not a bool.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(fuse_max, bool):
        raise TypeError(f"accelerate: fuse_max must be a bool, got {shown(fuse_max)}")
    report = Acceleration(_swaps=Swaps(model))
    assert report._swaps is not None
    rows: dict[nn.Module, Swapped] = {}  # by the module that now stands there
    for module in list(model.modules()):
        theirs = next((c for c in type(module).__mro__ if _key(c) in _OURS or _key(c) in _NOT_SERVED), None)
        if theirs is not None:
            ours, reason = _counterpart(module, theirs)
        elif (ours := vendored.counterpart(module)) is not None:
            reason = ""
        else:
            continue
        path, was = ", ".join(paths(model, module)), _name(type(module))
        if module is model:
            ours, reason = None, "it is the model itself, which has no place in a parent"
        if ours is None:
            report.left.append(Left(path, was, reason))
        else:
            report._swaps.replace(module, ours, shares_state=True)
            rows[ours] = Swapped(path, was, _name(type(ours)), "" if theirs else "known by what it does")
    for max_pool, identity, blur, fused in fusion.fuse(report._swaps) if fuse_max else ():
        max_path, path = (", ".join(paths(model, m)) for m in (identity, fused))
        rows[identity] = Swapped(max_path, _name(type(max_pool)), _name(nn.Identity), f"now in {path}")
        row = rows.pop(blur, Swapped(path, _name(type(blur)), ""))
        note = "; ".join(filter(None, (row.note, f"with the max of {max_path}")))
        rows[fused] = Swapped(path, row.was, _name(type(fused)), note)
    report.swapped = [rows[m] for m in model.modules() if m in rows]
    return report


def _key(cls: type) -> tuple[str, str]:
    return cls.__module__.partition(".")[0], cls.__name__


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _counterpart(module: nn.Module, theirs: type) -> tuple[Blur | None, str]:
    """Ours for a peer's module, or None and the reason why there is none."""
    if _key(theirs) in _NOT_SERVED:
        return None, _NOT_SERVED[_key(theirs)]
    cls = type(module)
    added = {name for c in cls.__mro__[: cls.__mro__.index(theirs)] for name, v in vars(c).items() if is_code(v)}
    if added - _HARMLESS:
        return None, f"{cls.__name__} overrides or adds {', '.join(sorted(added - _HARMLESS))}"
    if "forward" in vars(module):
        return None, "its forward is replaced on the instance"
    if hooked := [name for name, child in module.named_modules() if child is not module and has_hooks(child)]:
        return None, f"hooks on its {', '.join(hooked)}"
    try:
        ours = _OURS[_key(theirs)].adopt(module)
    except (AttributeError, TypeError, ValueError) as error:
        return None, f"its attributes are not served: {error}"
    filt = getattr(ours, ours.filter_name)
    if filt.device.type == "meta":
        return None, "its filter is on the meta device, and has no values yet"
    if filt.requires_grad:
        return None, "its filter is learnt"
    if not ours.is_separable:
        return None, "its filter is not separable"
    return (None, reason) if (reason := _disagreement(module, ours, filt)) else (ours, "")


@torch.no_grad()
def _disagreement(theirs: nn.Module, ours: Blur, filt: Tensor) -> str:
    """Why ours is not the same after all, told on a small map: a version of the peer that pads in another way."""
    if any(True for _ in theirs.parameters()):
        return ""  # composer's convolution, whose blur pads as its class says
    channels = filt.shape[0] if filt.ndim > ours.rank else 1
    reach = max(a.taps + abs(a.before) + abs(a.after) + a.window * a.window_dilation for a in ours._spec.geometry.axes)
    shape = [1, channels, *(2 * reach + i for i in range(ours.rank))]
    count = torch.arange(math.prod(shape), dtype=torch.float64, device="cpu")
    x = (count * 1.7 + (count * 0.37).sin()).sin().reshape(shape).to(filt)
    with torch.autocast(x.device.type, enabled=False):
        try:
            expected = type(theirs).forward(theirs, x)
        except Exception as error:  # whatever the peer raises
            return f"its own forward fails on a map of shape {tuple(shape)}: {error}"
        actual = ours.blur(x)
    if actual.shape != expected.shape:
        return f"on a map of shape {tuple(shape)} it gives shape {tuple(expected.shape)}, ours {tuple(actual.shape)}"
    if expected.numel() == 0:
        return ""
    error, largest = (float(t.double().abs().max()) for t in (actual - expected, expected))
    if not error <= _PROBE_TOLERANCE * largest:
        return f"on a map of shape {tuple(shape)} ours differs by {error:.1e}"
    return ""
