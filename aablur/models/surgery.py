"""Blurs put into modules in place, and taken out again.

A repaired module stays the same object, with its parameters, hooks, flags and its name in the model; its class becomes
a subclass that blurs around the module's own forward (as torch's parametrizations do it). Nothing in a state_dict
changes its name, and an optimizer's parameters stay what they were.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from .blurs import Blur, Dense
from .graph import Edit, compile_edits

PARTS = ("blur_before", "blur_instead", "blur_after", "blur_dense")


class Repaired:
    """Mixed into a module's class: ``blur_before``, its own forward (or ``blur_instead``), ``blur_after``.

    ``blur_dense`` runs its forward at every pixel (`blurs.Dense`). ``_repair`` holds what was changed.
    """

    _repair: dict[str, Any]
    _modules: dict[str, nn.Module]
    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        parts = self._modules
        if "blur_before" in parts:
            args = (parts["blur_before"](args[0]), *args[1:])
        if "blur_instead" in parts:
            out = parts["blur_instead"](args[0])
        elif "blur_dense" in parts:
            own = super().forward  # type: ignore
            out = parts["blur_dense"](lambda x: own(x, *args[1:], **kwargs), args[0])
        elif "programs" in self._repair:
            out = self._repair["programs"][self.training](self, *args, **kwargs)
        else:
            out = super().forward(*args, **kwargs)  # type: ignore
        return parts["blur_after"](out) if "blur_after" in parts else out

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_repair"] = {k: v for k, v in self._repair.items() if k != "programs"}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore
        if "edits" in self._repair:
            _compile(self)  # type: ignore

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (_own_class(self),), self.__getstate__()  # type: ignore


def _empty(cls: type[nn.Module]) -> nn.Module:
    made = repaired_class(cls)
    return made.__new__(made)


@cache
def repaired_class(cls: type[nn.Module]) -> Any:
    return type(f"Repaired{cls.__name__}", (Repaired, cls), {"__doc__": cls.__doc__, "__module__": cls.__module__})


def is_repaired(module: nn.Module) -> bool:
    return isinstance(module, Repaired)


def _own_class(module: nn.Module) -> type[nn.Module]:
    """The class that a repaired module had."""
    made = type(module)
    if made.__bases__[:1] != (Repaired,):
        raise ValueError(
            f"restore: {made.__name__} was changed again after antialias (torch.nn.utils.parametrize?): undo that first"
        )
    return made.__bases__[1]


def _open(module: nn.Module) -> dict[str, Any]:
    """A module's record of repairs, after it has become a `Repaired` one."""
    if not is_repaired(module):
        module.__class__ = repaired_class(type(module))
        module.__dict__["_repair"] = {"attributes": {}, "blurs": {}}
    return module._repair  # type: ignore


def put(module: nn.Module, part: str, blur: Blur) -> None:
    """Puts a blur into a module, which `build` builds."""
    _open(module)["blurs"][part] = blur


def put_dense(module: nn.Module, dense: Dense) -> None:
    _open(module)
    module.add_module("blur_dense", dense)


def set_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Changes an attribute, and remembers what it was."""
    _open(module)["attributes"].setdefault(name, getattr(module, name))
    setattr(module, name, value)


def edit(module: nn.Module, edits: list[Edit], blurs: dict[str, Blur]) -> None:
    """Changes a module's forward: `graph.Edit` says where the blurs, its new children, go.

    Raises:
        graph.Untraceable: it cannot be traced.
    """
    have = list(module._repair.get("edits", ())) if is_repaired(module) else []  # type: ignore
    own = _own_class(module) if is_repaired(module) else type(module)
    programs = compile_edits(module, own, [*have, *edits])
    repair = _open(module)
    repair["edits"], repair["programs"] = [*have, *edits], programs
    repair["blurs"] |= blurs


def _compile(module: nn.Module) -> None:
    module._repair["programs"] = compile_edits(module, _own_class(module), module._repair["edits"])  # type: ignore


def build(model: nn.Module, strength: float | None = None) -> list[nn.Parameter]:
    """Builds the blurs of a model, all at one strength if it is given; returns the taps that can be learnt."""
    learnt = []
    for module in [m for m in model.modules() if is_repaired(m)]:
        like = next(iter([*module.parameters(), *module.buffers(), *model.parameters()]), None)
        for part, blur in module._repair["blurs"].items():  # type: ignore
            made = blur.build(blur.strength if strength is None else strength, like)
            made.train(module.training)
            module.add_module(part, made)
            learnt += list(made.parameters())
    return learnt


def restore(model: nn.Module) -> nn.Module:
    """Undoes `aablur.antialias`: the same model, with the forwards that it had.

    Args:
        model: a model that was repaired, or a part of one. Weights stay as they now are; learnt taps are dropped.

    Returns:
        ``model``.

    Raises:
        TypeError: it is no module.
        ValueError: the class of a repaired module was changed again since, by torch.nn.utils.parametrize.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    repaired = [m for m in model.modules() if is_repaired(m)]
    own = [_own_class(m) for m in repaired]
    for module, cls in zip(repaired, own, strict=True):
        repair = module.__dict__.pop("_repair")
        for part in [*repair["blurs"], "blur_dense"]:
            module._modules.pop(part, None)
        module.__class__ = cls
        for name, value in repair["attributes"].items():
            setattr(module, name, value)
    return model
