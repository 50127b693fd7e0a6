"""One forward pass as a graph: every torch function that ran, on what, in which module, at which line.

A tape is taken by running the model, so any model has one, whatever its forward does. It is what `sites` reads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

_SKIPPED = tuple(f"{Path(p).parent}{os.sep}" for p in (torch.__file__, Path(__file__).parent))


@dataclass(eq=False)
class Call:
    """One call of a module: ``order`` counts the calls of the same module, ``result`` is the node of its output."""

    module: nn.Module
    path: str
    parent: Call | None
    order: int
    inputs: tuple[int | None, ...] = ()
    result: int | None = None
    source: str = ""
    began: int = 0  # the index of the next node when it began
    nodes: list[int] = field(default_factory=list)  # of its own forward, without those of its children


@dataclass(frozen=True)
class Ref:
    """A tensor among the arguments of a node: the node that made it (None: a parameter or buffer), its shape."""

    node: int | None
    shape: tuple[int, ...]


@dataclass(eq=False)
class Node:
    """One torch function that ran: ``args`` and ``kwargs`` with each tensor replaced by a `Ref`."""

    index: int
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    call: Call
    source: str
    users: list[int] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # what must be read off the tensors while they are there

    @property
    def inputs(self) -> list[int]:
        refs = [r for r in tree_leaves((self.args, self.kwargs), is_leaf=_is_ref) if isinstance(r, Ref)]
        return [r.node for r in refs if r.node is not None]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


def _is_ref(value: Any) -> bool:
    return isinstance(value, Ref)


@dataclass
class Tape:
    nodes: list[Node]
    calls: list[Call]

    def calls_of(self, module: nn.Module) -> list[Call]:
        return [c for c in self.calls if c.module is module]


class _Enough(Exception):
    """Raised to end a run after the last node that is observed."""


Observer = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Recorder(TorchFunctionMode):
    """Records what runs inside of it.

    Args:
        model: whose modules give the paths.
        observers: by node of an earlier tape: called in place of its function, with (func, args, kwargs); returns
            the result.
        evaluate: how every other function is run: func(*args, **kwargs) by default.
        stop: whether to end the run by `_Enough` after the last observed node.
    """

    def __init__(
        self, model: nn.Module, observers: Mapping[Node, Observer] | None = None, evaluate: Observer | None = None,
        stop: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tape = Tape([], [])
        self._paths = {id(m): name for name, m in model.named_modules(remove_duplicate=True)}
        self._observers = {(node.index, node.op): observer for node, observer in (observers or {}).items()}
        self._evaluate = evaluate
        self._last = max((index for index, _ in self._observers), default=-1) if stop else None
        self._maker = WeakTensorKeyDictionary()  # tensor -> the node that made it, last; a tape keeps no tensor alive
        self._stack = [Call(model, "", None, 0)]
        self.root = self._stack[0]
        self._orders: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:  # so that the map is always the first argument
            args = (kwargs.pop("input"),)
        index = len(self.tape.nodes)
        refs_args, refs_kwargs = tree_map_only(Tensor, self._ref, (tuple(args), kwargs))
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__"):
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if (observer := self._observers.get((index, name))) is not None:
            out = observer(func, args, kwargs)
        elif self._evaluate is not None:
            out = self._evaluate(func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        made = [t for t in tree_leaves(args[0] if name == "__setitem__" else out) if isinstance(t, Tensor)]
        if not made or not tree_leaves((refs_args, refs_kwargs), is_leaf=_is_ref):
            return out
        self._add(name, refs_args, refs_kwargs, made, self._stack[-1], _source())
        self._facts(self.tape.nodes[-1], args, kwargs)
        if self._last is not None and index >= self._last:
            raise _Enough
        return out

    def _ref(self, t: Tensor) -> Ref:
        return Ref(self._maker.get(t), tuple(t.shape))

    def _add(self, op: str, args: Any, kwargs: Any, made: list[Tensor], call: Call, source: str) -> None:
        node = Node(len(self.tape.nodes), op, args, kwargs, tuple(made[0].shape), call, source)
        for i in dict.fromkeys(node.inputs):
            self.tape.nodes[i].users.append(node.index)
        self.tape.nodes.append(node)
        call.nodes.append(node.index)
        for t in made:
            self._maker[t] = node.index

    def _facts(self, node: Node, args: Any, kwargs: Any) -> None:
        if node.op.startswith("conv") and (weight := args[1] if len(args) > 1 else kwargs.get("weight")) is not None:
            node.facts["weight"] = weight.detach()
        if "blur_pool" in node.op:
            node.facts["taps"] = kwargs["taps"]
        if node.op in ("index_select", "__getitem__"):
            node.facts["positions"] = _positions(args, kwargs)
        if node.op in ("gather", "take_along_dim"):
            node.facts["positions"] = _positions_along(args, kwargs)
        if node.op == "as_strided":
            node.facts["strides"] = args[0].stride()
        if node.op.startswith("grid_sample"):
            node.facts["distances"] = _distances(args[0], args[1] if len(args) > 1 else kwargs["grid"])

    # ---- modules

    def _enter(self, module: nn.Module, args: Any) -> None:
        parent = self._stack[-1]
        path = self._paths.get(id(module))
        order = self._orders[id(module)] = self._orders.get(id(module), -1) + 1
        call = Call(module, parent.path if path is None else path, parent, order, source=_source())
        call.began = len(self.tape.nodes)
        if parent is self.root and module is self.root.module:
            for t in (t for t in tree_leaves(args) if isinstance(t, Tensor)):
                if t not in self._maker:
                    self._add("input", (), {}, [t], call, "")
        call.inputs = tuple(self._maker.get(t) for t in tree_leaves(args) if isinstance(t, Tensor))
        self.tape.calls.append(call)
        self._stack.append(call)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        call = self._stack.pop()
        tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        unknown = [t for t in tensors if t not in self._maker]
        if unknown:  # of a function that nothing of torch sees into: a script, an extension
            refs = tuple(map(self._ref, (t for t in tree_leaves(args) if isinstance(t, Tensor))))
            self._add(f"module:{type(module).__name__}", refs, {}, unknown, call, call.source)
        if len(tensors) == 1:
            call.result = self._maker[tensors[0]]

    def __enter__(self) -> Recorder:
        self._handles = (
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave),
        )
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*exc)


def _positions(args: Any, kwargs: Any) -> list[tuple[int, list[int]]]:
    """(axis from the end, positions) of the tensors of whole numbers, each along one axis, that index a tensor."""
    x = args[0]
    if not isinstance(x, Tensor):
        return []
    if not isinstance(args[1] if len(args) > 1 else None, tuple):  # index_select(x, dim, index), or x[index]
        named = [*args[1:], *(kwargs[key] for key in ("dim", "index") if key in kwargs)]
        pairs = [(named[0] if len(named) > 1 else 0, named[-1])]
    else:
        index = args[1]
        used = sum(i is not None and i is not Ellipsis for i in index)
        pairs, axis = [], 0
        for i in index:
            pairs.append((axis, i))
            axis += x.ndim - used if i is Ellipsis else i is not None
    found = []
    for axis, i in pairs:
        if isinstance(i, Tensor) and i.dtype == torch.bool and i.ndim == 1 and not i.is_meta:
            i = i.nonzero()
        if isinstance(i, (list, range)) and all(type(k) is int for k in i):
            found.append((axis if axis < 0 else axis - x.ndim, list(i)))
        if hasattr(i, "__array__") and not isinstance(i, Tensor):
            i = torch.as_tensor(i)
        if (
            isinstance(i, Tensor)
            and not i.is_floating_point()
            and i.dtype != torch.bool
            and not i.is_meta
            and i.numel() == max(i.shape, default=0)
        ):
            found.append((axis if axis < 0 else axis - x.ndim, i.flatten().tolist()))
    return found


def _positions_along(args: Any, kwargs: Any) -> list[tuple[int, list[int]]]:
    """Those of gather and take_along_dim, where they are the same beside every pixel."""
    given = [*args[1:], *kwargs.values()]
    index = next((v for v in given if isinstance(v, Tensor)), None)
    axis = next((v for v in given if type(v) is int), None)
    if index is None or axis is None or index.is_meta or index.ndim != args[0].ndim or not index.numel():
        return []
    rows = index.movedim(axis, -1).flatten(0, -2)
    return [(axis if axis < 0 else axis - index.ndim, rows[0].tolist())] if bool((rows == rows[0]).all()) else []


def _distances(x: Tensor, grid: Tensor) -> tuple[float, ...]:
    """How far neighbouring points of a grid are apart along each axis, in pixels: the median; 1 on the meta device."""
    rank, found = grid.shape[-1], []
    if grid.is_meta:
        return (1.0,) * rank
    for k in range(rank):  # the last coordinate of a point is along the first axis
        points = grid[..., rank - 1 - k].detach().float()
        steps = points.diff(dim=k + 1).abs()
        found.append(float(steps.median()) * x.shape[k + 2] / 2 if steps.numel() else 1.0)
    return tuple(found)


def _source() -> str:
    """The file and line that is being run, of the nearest frame outside of torch and of this package."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((*_SKIPPED, "<")):
        frame = frame.f_back
    if frame is None:
        return ""
    path = Path(frame.f_code.co_filename)
    parts = path.parts
    if "site-packages" in parts:
        parts = parts[parts.index("site-packages") + 1 :]
    return f"{'/'.join(parts[-3:]).lstrip('/')}:{frame.f_lineno}"


def as_args(example_input: Any) -> tuple[Any, ...]:
    """The arguments of a call: a tuple has several, a list or dict (of a detector's pictures) is one."""
    return example_input if isinstance(example_input, tuple) else (example_input,)


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile(module)`` wraps; any other is itself."""
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


def _uncompiled_run() -> Any:
    """Lets what was compiled run eagerly: what a recorder sees must be the model's own functions."""
    is_loaded = "torch._dynamo" in sys.modules  # else nothing is compiled, and its import takes seconds
    return torch.compiler.set_stance("force_eager") if is_loaded else nullcontext()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """In eval mode, without gradients, uncompiled; training flags and random numbers are afterwards what they were."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _uncompiled_run():
            yield
    finally:
        for m in training:
            m.training = True


def uninitialised(model: nn.Module) -> bool:
    """Whether it has lazy modules that have not seen an input."""
    return any(map(is_lazy, (*model.parameters(), *model.buffers())))


def initialise(model: nn.Module, example_input: Any) -> None:
    """Lets lazy modules see an input, as any first run does: a tape of that run would be of their making."""
    if uninitialised(model):
        with undisturbed(model):
            model(*as_args(example_input))


def record(
    model: nn.Module, example_input: Any, observers: Mapping[Node, Observer] | None = None,
    evaluate: Observer | None = None, stop: bool = False,
) -> Tape:  # fmt: skip
    """The tape of ``model(*example_input)``, in eval mode; the arguments are those of `Recorder`."""
    initialise(model, example_input)
    recorder = Recorder(model, observers, evaluate, stop)
    with undisturbed(model), recorder, suppress(_Enough):
        model(*as_args(example_input))
    return recorder.tape
