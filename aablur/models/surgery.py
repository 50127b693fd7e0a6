"""Blurs put into modules in place, and taken out again.

A repaired module stays the same object, with its parameters, hooks, flags and its name in the model; its class becomes
a subclass that blurs around the module's own forward (as torch's parametrizations do it). Nothing in a state_dict
changes its name, and an optimizer's parameters stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from .blurs import Blur, Dense
from .graph import Edit
from .pattern import PLAIN, Pattern
from .repaired import compile_program, is_repaired, own_class, repaired_class
from .replace import STATE


def _open(module: nn.Module) -> dict[str, Any]:
    """A module's record of repairs, after it has become a `Repaired` one."""
    if not is_repaired(module):
        module.__dict__["_repair"] = {"blurs": {}, "path": ""}
        _change_class(module, repaired_class)
    return vars(module)["_repair"]


def _change_class(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Gives a module another class; the properties that parametrize has put on top of it stay on top."""
    cls = type(module)
    if not parametrize.is_parametrized(module):
        module.__class__ = change(cls)
        return
    base = change(cls.__bases__[0])
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(f"Parametrized{base.__name__}", (base,), own)


def put(module: nn.Module, part: str, blur: Blur) -> None:
    """Puts a blur into a module, which `build` builds."""
    repair = _open(module)
    repair["blurs"][part] = blur
    if part == "blur_instead":
        own = {name: value for name, value in vars(module).items() if name not in STATE and name != "_repair"}
        repair["options"] = {name: value for name, value in own.items() if isinstance(value, (*PLAIN, tuple))}


def put_dense(module: nn.Module, dense: Dense) -> None:
    _open(module)
    module.add_module("blur_dense", dense)


def set_stride(module: nn.Module, stride: tuple[int, ...]) -> None:
    """From now on a layer runs at this stride; its attribute says what it was, to all that rebuild it."""
    repair = _open(module)
    repair["stride"] = stride
    repair["options"] = {"stride": module.stride}


def edit(module: nn.Module, edits: list[Edit], blurs: dict[str, Blur], pattern: Pattern) -> None:
    """Changes a module's forward: `graph.Edit` says where the blurs go; ``blurs`` are its new children.

    `compile_edits` goes on, when all layers have been changed.
    """
    repair = _open(module)
    repair["edits"], repair["pattern"] = edits, pattern
    repair["blurs"] |= blurs


def compile_edits(modules: list[nn.Module]) -> None:
    """Makes the programs of modules that were edited.

    Raises:
        graph.Untraceable: one cannot be traced.
    """
    for module in modules:
        compile_program(module)


def keep(model: nn.Module, moved: set[nn.Module]) -> None:
    """Makes a model look, whenever it runs, whether what was repaired is still there.

    Args:
        moved: the layers at every call of which a rewritten forward blurs.
    """
    kept = {path: m for path, m in model.named_modules() if path and is_repaired(m)}
    for path, module in kept.items():
        vars(module)["_repair"] |= {"path": path, **({"moved": True} if module in moved else {})}
    if kept and not isinstance(model, (nn.ModuleList, nn.ModuleDict)):
        _open(model)["kept"] = kept


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


def transplant(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts a layer in the place of a repaired one, with the blur after it; its whole stride is its own."""
    repair = vars(old)["_repair"]
    if "blur_after" in repair["blurs"]:
        put(new, "blur_after", repair["blurs"]["blur_after"])
        set_stride(new, new.stride)  # type: ignore
        vars(new)["_repair"] |= {k: v for k, v in repair.items() if k in ("path", "moved")}
        new.add_module("blur_after", old._modules["blur_after"])
    elif is_repaired(model):
        kept = vars(model)["_repair"].get("kept", {})
        for path in [path for path, m in kept.items() if m is old]:
            del kept[path]


def restore(model: nn.Module) -> nn.Module:
    """Undoes `aablur.antialias`: the same model, with the forwards that it had.

    Args:
        model: a model that was repaired, or a part of one. Weights stay as they now are; learnt taps are dropped.

    Returns:
        ``model``.

    Raises:
        TypeError: it is no module.
        ValueError: the class of a repaired module was changed again since, by more than torch.nn.utils.parametrize.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    repaired = [m for m in model.modules() if is_repaired(m)]
    own = [own_class(m) for m in repaired]
    for module, cls in zip(repaired, own, strict=True):
        repair = module.__dict__.pop("_repair")
        for part in [*repair["blurs"], "blur_dense"]:
            module._modules.pop(part, None)
        _change_class(module, lambda _, cls=cls: cls)
    return model
