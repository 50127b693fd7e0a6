"""Putting modules in the place of others inside a model, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

STATE = tuple(vars(nn.Module()))  # what every module keeps: parameters, buffers, children, hooks, training mode


@dataclass(frozen=True)
class _Swap:
    parents: tuple[tuple[nn.Module, str], ...]
    old: nn.Module
    new: nn.Module
    shares_state: bool


class Swaps:
    """The replacements made in one model. `undo` takes them back, the last first."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._made: list[_Swap] = []

    def replace(self, old: nn.Module, new: nn.Module, shares_state: bool = False) -> None:
        """Puts `new` in every place where the model holds `old`; its name there stays.

        Args:
            shares_state: `new` keeps its parameters, buffers, children and hooks in the dicts of `old`; then what is
                done to it (moves, loads, hooks, training mode) is carried back by `undo`. Otherwise the training
                mode alone is.
        """
        parents = [(parent, name) for parent in self.model.modules() for name, m in parent._modules.items() if m is old]
        if not parents:
            raise ValueError("replace: old must stand inside the model, and not be the model itself")
        for parent, name in parents:
            parent.register_module(name, new)
        self._made.append(_Swap(tuple(parents), old, new, shares_state))

    def undo(self) -> None:
        """Puts every module back where it was. A place that has been changed since raises RuntimeError.

        A second call does nothing. What is restored is this very model: a copy of it is another model.
        """
        while self._made:
            swap = self._made[-1]
            for parent, name in swap.parents:
                if parent._modules.get(name) is not swap.new:
                    raise RuntimeError(f"undo: {name!r} of a {type(parent).__name__} has been replaced since")
            for parent, name in swap.parents:
                parent.register_module(name, swap.old)
            if swap.shares_state:
                vars(swap.old).update({key: vars(swap.new)[key] for key in STATE})
            else:
                swap.old.train(swap.new.training)
            self._made.pop()


def paths(model: nn.Module, module: nn.Module) -> list[str]:
    """Every name under which the model holds a module; the model itself is ""."""
    return [path for path, m in model.named_modules(remove_duplicate=False) if m is module]


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs anything but its forward."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)
