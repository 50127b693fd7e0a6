"""What a repaired module does when it is called, by whichever path.

A layer that sampled is right by itself: it runs at stride 1 and blurs right after. A forward that was rewritten
(`graph.Program`) calls it with the keyword `graph.LATER`, and blurs in a better place, after the activation. It does so
only where everything that its trace took for granted still holds; else it runs as it was written, and every layer that
it calls blurs for itself. So sizes and filters hold on every path, and no state says who is calling.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from functools import cache, wraps
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .graph import LATER, MADE, Program, Untraceable, at

_CONVS: Any = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class Repaired:
    """Mixed into a module's class by `repaired_class`. ``_repair`` holds what was changed:

    "blurs": `Blur` of each child that blurs: "blur_before" the forward, "blur_instead" of it, "blur_after" it, or
    "blur_0" and so on, between the operations of a rewritten one. "stride": what is left of a layer's own. "options":
    the attributes that its blur was made for. "edits", "pattern", "program": of a rewritten forward. "path": in the
    model. "moved": whether a rewritten forward does the blur of this layer. "kept", of the model itself: every repaired
    module by its path.
    """

    _repair: dict[str, Any]
    _modules: dict[str, nn.Module]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward" and vars(self).get("_repair", {}).get("blurs"):
            _say(self, "its forward was set on the instance: unless that calls the one that it replaces, nothing blurs")
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> Any:
        raise TypeError(
            "aablur: a repaired model cannot be scripted: use torch.jit.trace or torch.export, or aablur.restore first"
        )

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if "_repair" in state:
            state["_repair"] = {k: v for k, v in state["_repair"].items() if k != "program"}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore
        if "edits" in state.get("_repair", {}):
            try:
                compile_program(self)  # type: ignore
            except Untraceable as reason:  # its code is not what it was when it was saved
                _say(self, str(reason))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (own_class(self),), self.__getstate__()  # type: ignore


def _empty(cls: type[nn.Module]) -> nn.Module:
    made = repaired_class(cls)
    return made.__new__(made)


@cache
def repaired_class(cls: type[nn.Module]) -> Any:
    """A class that does what cls does, and blurs; its forward has the signature of cls's."""

    @wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "_repair" not in vars(self):  # a slice of a Sequential, or restored while somebody keeps this method
            return cls.forward(self, *args, **kwargs)
        return _forward(self, cls, args, kwargs)

    forward.__signature__ = inspect.signature(cls.forward)  # type: ignore - which inspect.getfullargspec reads
    names = {"__doc__": cls.__doc__, "__module__": cls.__module__, "forward": forward, MADE: True}
    for name in set(dir(cls)) - set(dir(nn.Module)):
        if not name.startswith("__") and isinstance(method := inspect.getattr_static(cls, name), FunctionType):
            names[name] = _entry(cls, name, method)
    return type(f"Repaired{cls.__name__}", (Repaired, cls), names)


def _entry(cls: type[nn.Module], name: str, method: Any) -> Any:
    """Another method than forward: it says so where a rewritten forward has blurs in what was once this method."""

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        program = vars(self).get("_repair", {}).get("program")
        if program is not None and name in program.methods and _blurs_inside(self):
            _say(self, f"its {name} is called from outside, and runs as it was written, without the blurs inside of it")
        return getattr(cls, name)(self, *args, **kwargs)

    return run


def _blurs_inside(module: Any) -> bool:
    """Whether its rewritten forward has blurs of its own, which no layer stands in for."""
    return any(name not in ("blur_before", "blur_after") for name in module._repair["blurs"])


def is_repaired(module: nn.Module) -> bool:
    return isinstance(module, Repaired) and "_repair" in vars(module)


def own_class(module: Any) -> type[nn.Module]:
    """The class that a repaired module had, without what torch.nn.utils.parametrize has put on it."""
    made = type(module)
    if nn.utils.parametrize.is_parametrized(module):
        made = made.__bases__[0]
    if made.__bases__[:1] != (Repaired,):
        raise ValueError(f"restore: {made.__name__} was changed again after antialias: undo that first")
    return made.__bases__[1]


def compile_program(module: Any) -> None:
    repair = module._repair
    repair["program"] = Program(module, own_class(module), repair["edits"], repair["pattern"])


# ---- calls ---------------------------------------------------------------------------------------------


def _forward(module: Any, own: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    repair, parts, later = module._repair, module._modules, kwargs.pop(LATER, False)
    if "kept" in repair:
        _check_kept(module)
    for name, value in repair.get("options", {}).items():
        if getattr(module, name, None) != value:
            raise RuntimeError(
                f"aablur: {repair['path'] or own.__name__} was repaired with {name} = {value!r}, which is "
                f"{getattr(module, name, None)!r} now: aablur.restore(model), change it, and repair it again"
            )
    if args and isinstance(args[0], Tensor) and args[0].is_quantized and (repair["blurs"] or "stride" in repair):
        raise TypeError(
            f"aablur: {repair['path'] or own.__name__} is repaired, and takes no quantised map: quantise the model "
            "before aablur.antialias, or after aablur.restore"
        )
    if "blur_before" in parts:
        args, kwargs = _with_first(own, args, kwargs, parts["blur_before"])
    if "blur_instead" in parts:
        out = parts["blur_instead"](_first(own, args, kwargs))
    elif "blur_dense" in parts:

        def layer(x: Tensor) -> Any:
            given, named = _with_first(own, args, kwargs, lambda _: x)
            return own.forward(module, *given, **named)

        out = parts["blur_dense"](layer, _first(own, args, kwargs))
    elif "edits" in repair:
        out, later = _rewritten(module, own, args, kwargs, later), False
    elif "stride" in repair:
        out = _at_stride(module, own, repair["stride"], args, kwargs)
        if "moved" in repair and not later:
            _say(module, "it is called outside of the forward that blurs for it: it blurs right after itself")
    else:
        out = own.forward(module, *args, **kwargs)
    if "blur_after" not in parts or later:
        return out
    if not isinstance(out, (Tensor, fx.Proxy)):
        raise TypeError(f"aablur: {own.__name__} must give one map, as when it was repaired, got {type(out).__name__}")
    return parts["blur_after"](out)


def _rewritten(module: Any, own: type[nn.Module], args: Any, kwargs: Any, later: bool) -> Any:
    """The rewritten forward, or where it may not run the forward as it was written."""
    program = module._repair.get("program")
    tensors, reason = program.tensors(module, args, kwargs) if program else (None, "it cannot be traced any more")
    if tensors is not None:
        return program.runs[module.training, later](module, *tensors)
    for path in program.deferred if program else ():
        found = at(module, path)
        if found is None or not any(map(is_repaired, found.modules())):
            raise RuntimeError(_replaced(f"{module._repair['path']}.{path}".lstrip("."), found))
    if later:
        raise RuntimeError(
            f"aablur: {module._repair['path'] or own.__name__} cannot leave its blur to others: {reason}"
        )
    if _blurs_inside(module):
        _say(module, f"its forward runs as it was written, without the blurs inside of it: {reason}")
    return own.forward(module, *args, **kwargs)


def _first(own: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs[_first_name(own)]


def _with_first(
    own: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return (), kwargs | {_first_name(own): change(kwargs[_first_name(own)])}


@cache
def _first_name(own: type[nn.Module]) -> str:
    return list(inspect.signature(own.forward).parameters)[1]


def _at_stride(module: Any, own: Any, stride: tuple[int, ...], args: Any, kwargs: Any) -> Any:
    """A layer's own forward at another stride than its attribute says, which others read and rebuild it from."""
    for kind, convolve in _CONVS.items():
        if own.forward is kind.forward and own._conv_forward is kind._conv_forward:
            x, padding = _first(own, args, kwargs), module.padding
            if module.padding_mode != "zeros":
                x, padding = F.pad(x, module._reversed_padding_repeated_twice, module.padding_mode), 0
            return convolve(x, module.weight, module.bias, stride, padding, module.dilation, module.groups)
    if torch.compiler.is_compiling():  # where no thread runs beside
        before = module.stride
        module.stride = stride
        try:
            return own.forward(module, *args, **kwargs)
        finally:
            module.stride = before
    other = copy.copy(vars(module))  # the same parameters, buffers and children in the same dicts
    twin = own.__new__(type(module))
    vars(twin).update(other, stride=stride)
    out = own.forward(twin, *args, **kwargs)
    for name, value in vars(twin).items():
        if name != "stride" and value is not other.get(name, _empty):
            vars(module)[name] = value
    return out


def _check_kept(model: Any) -> None:
    """Raises where a module that was repaired has been replaced since, so that its filter is gone."""
    for path, module in model._repair["kept"].items():
        found = at(model, path)
        if isinstance(found, Repaired) or found is module or any(m is module for m in model.modules()):
            continue
        raise RuntimeError(_replaced(path, found))


def _replaced(path: str, found: Any) -> str:
    now = "nothing" if found is None else f"a {type(found).__name__}"
    return (
        f"aablur: {path} was repaired, and {now} is in its place since, which does not blur. Fuse, convert or replace "
        "layers before aablur.antialias; or aablur.restore(model), change it, and repair it again"
    )


def _say(module: Any, what: str) -> None:
    """Warns once a module."""
    if torch.compiler.is_compiling() or module._repair.get("said"):
        return
    module._repair["said"] = True
    warnings.warn(f"aablur: {module._repair['path'] or type(module).__name__}: {what}", stacklevel=4)
