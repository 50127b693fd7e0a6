"""What a forward was called with, apart from the tensors: what a trace of it is good for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

PLAIN = (bool, int, float, str, type(None))


class Pattern:
    """What a forward was called with: where it was given tensors, and what the rest was, on which it may branch.

    A trace has the rest as constants, so a graph stands for calls of the same pattern alone.
    """

    def __init__(self, forward: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.signature = _signature(forward)
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = list(bound.arguments.values())
        self._read(tree_map(lambda leaf: Tensor if isinstance(leaf, Tensor) else leaf, values))

    def _read(self, values: list[Any]) -> None:
        self.values = values  # with `Tensor` in the place of every tensor
        self.forms: list[tuple[list[Any], TreeSpec]] = [tree_flatten(value) for value in values]

    def __getstate__(self) -> tuple[Any, ...]:
        return self.signature, self.values

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.signature = state[0]
        self._read(state[1])

    def count(self) -> int:
        return sum(leaf is Tensor for leaves, _ in self.forms for leaf in leaves)

    def arguments(self, tensors: Sequence[Any]) -> inspect.BoundArguments:
        """The arguments of a call of this pattern, with these tensors."""
        supply = iter(tensors)
        values = [
            tree_unflatten([next(supply) if leaf is Tensor else leaf for leaf in leaves], spec)
            for leaves, spec in self.forms
        ]
        arguments: Any = dict(zip(self.signature.parameters, values, strict=True))
        return inspect.BoundArguments(self.signature, arguments)

    def tensors(self, values: Sequence[Any]) -> list[Any] | None:
        """The tensors of a call, in order; None if it is of another pattern."""
        found = []
        for value, (leaves, spec) in zip(values, self.forms, strict=True):
            if spec.is_leaf():
                given: list[Any] = [value]
            else:
                given, form = tree_flatten(value)
                if form != spec:
                    return None
            for leaf, known in zip(given, leaves, strict=True):
                if known is Tensor and isinstance(leaf, (Tensor, fx.Proxy)):
                    found.append(leaf)
                elif leaf is not known and not (type(leaf) is type(known) and type(leaf) in PLAIN and leaf == known):
                    return None
        return found

    def binder(self) -> Callable[..., tuple[Any, ...]]:
        """A function of the forward's signature that gives the values of its parameters, in order."""
        defaults = {n: p.default for n, p in self.signature.parameters.items() if p.default is not p.empty}
        named = [
            p.replace(annotation=p.empty, default=_Name(f"_{n}") if n in defaults else p.empty)
            for n, p in self.signature.parameters.items()
        ]
        scope: dict[str, Any] = {f"_{n}": value for n, value in defaults.items()}
        names = "".join(f"{n}, " for n in self.signature.parameters)
        exec(f"def forward{inspect.Signature(named)}: return ({names})", scope)
        return scope["forward"]


class _Name(str):
    """A name that stands for a default in the text of a signature."""

    __repr__ = str.__str__


def _signature(forward: Any) -> inspect.Signature:
    """That of a module's class's forward, without self."""
    whole = inspect.signature(forward)
    return whole.replace(parameters=list(whole.parameters.values())[1:], return_annotation=inspect.Signature.empty)
