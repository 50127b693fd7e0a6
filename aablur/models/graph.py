"""Edits of a forward: torch.fx traces it with its children as leaves, and blurs are put between its operations."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import fx, nn

from .pattern import PLAIN, Pattern
from .replace import STATE
from .tape import Call, Node, Recorder, Tape, undisturbed

LATER = "aablur_blurs_later"  # the keyword by which a rewritten forward tells a layer that it blurs for it
MADE = "_aablur_made"  # marks classes that stand over a module's own
_TORCHS = frozenset((*dir(nn.Module), *STATE))  # what every module has
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Untraceable(Exception):
    pass


@dataclass(frozen=True)
class Edit:
    """One change of a traced forward.

    Attributes:
        node: the name of the operation in the graph.
        action: "after" (its result goes through the blur), "before" (its map does, for it alone), "instead" (the blur
            takes its place), "stride" (a convolution runs at stride 1), or "defer" (a layer leaves its blur to this
            forward).
        blur: the path, from the module, of what blurs.
        target: what the operation calls, as a check on a graph that is traced again.
        since: of "after": the layer that left its blur. What it gives goes to ``node``, and nowhere else.
        last: of "after": the forward ends there, so that its caller can take over the blur in turn.
    """

    node: str
    action: str
    blur: str = ""
    target: str = ""
    since: str = ""
    last: bool = False


# ---- traces --------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Children are leaves; what the pattern has as constants is constant. It refuses what a graph does not keep."""

    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        self._pattern, self._state = pattern, _state()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        def run(*tensors: Any) -> Any:
            bound = self._pattern.arguments(tensors)
            return root_fn(self.root, *bound.args, **bound.kwargs)

        names = [f"tensor_{i}" for i in range(self._pattern.count())]
        return run, [self.create_proxy("placeholder", name, (), {}) for name in names]

    def create_arg(self, a: Any) -> Any:
        known = [*self.root.parameters(), *self.root.buffers(), *self.tensor_attrs]
        if isinstance(a, torch.Tensor) and not any(a is t for t in known):
            return self.create_node("call_function", _constant(a), (), {}, "constant")  # fx would put it on the module
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _state() != self._state:
            raise ValueError("it changes the modes of gradients or autocast")
        return super().create_node(*args, **kwargs)


def _constant(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """What gives a tensor that a forward takes from elsewhere than its arguments and its module."""

    def constant() -> torch.Tensor:
        return tensor

    return constant


def _state() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *(
        torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")
    )  # fmt: skip


def frozen(value: Any, seen: frozenset[int] = frozenset()) -> Any:
    """What a forward may branch on in a value, to compare it with what it is later: the contents of plain objects and
    containers; functions and classes themselves; of tensors and modules that they are there.
    """
    if value is None or isinstance(value, (*PLAIN, Enum, torch.dtype, torch.device)):
        return type(value), value
    if isinstance(value, (type, FunctionType, BuiltinFunctionType, MethodType, partial)):
        return value
    if isinstance(value, (torch.Tensor, nn.Module)) or id(value) in seen:
        return object
    seen |= {id(value)}
    if isinstance(value, Mapping):
        return type(value), [(key, frozen(v, seen)) for key, v in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value), [frozen(v, seen) for v in value]
    return (type(value), frozen(vars(value), seen)) if hasattr(value, "__dict__") else object


def _fact(module: nn.Module, name: str) -> Any:
    """`frozen` of an attribute, as the class defines it or the instance has it; None where there is none."""
    state = vars(module)
    if name in state:
        return frozen(state[name])
    for part in ("_parameters", "_buffers", "_modules"):
        if name in state[part]:
            return frozen(state[part][name])
    for cls in type(module).__mro__:
        if name in vars(cls) and MADE not in vars(cls):
            return frozen(vars(cls)[name]) if not isinstance(vars(cls)[name], property) else object
    return None


_MODES: dict[str, Callable[[], bool]] = {
    "is_grad_enabled": torch.is_grad_enabled,
    "is_autocast_enabled": torch.is_autocast_enabled,
}


class _Reads:
    """What a forward reads, on which it may branch: attributes, of its module and of those below it, names of its
    file, modes of torch. ``methods`` are the module's other methods that it calls.
    """

    def __init__(self) -> None:
        self.flags: dict[tuple[str, str], Any] = {}  # by path and name
        self.names: list[tuple[dict[str, Any], str, Any]] = []
        self.modes: dict[tuple[bool, str], bool] = {}  # in training and in evaluation
        self.methods: set[str] = set()
        self.containers: list[tuple[str, Any, Any]] = []  # with copies

    def note(self, module: nn.Module, path: str, name: str) -> None:
        fact = self.flags[path, name] = _fact(module, name)
        if isinstance(fact, FunctionType):
            self.note_function(fact, vars(module)["training"])
            if not path:
                self.methods.add(name)
        if isinstance(value := vars(module).get(name), (list, dict, set)):
            self.containers.append((name, value, value.copy()))

    def note_function(self, function: Any, training: bool) -> None:
        for name in getattr(getattr(function, "__code__", None), "co_names", ()):
            if name in _MODES:
                self.modes[training, name] = _MODES[name]()
            value = function.__globals__.get(name, ...)
            if isinstance(value, (*PLAIN, list, tuple, set, dict)) and not name.startswith("__"):
                self.names.append((function.__globals__, name, frozen(value)))

    def check_containers(self) -> None:
        """Raises where a list or the like has been changed, after it has undone that."""
        for name, now, before in self.containers:
            entries = [[*c.keys(), *c.values()] if isinstance(c, dict) else [*c] for c in (now, before)]
            if len(entries[0]) != len(entries[1]) or any(a is not b for a, b in zip(*entries, strict=True)):
                now.clear()
                (now.extend if isinstance(now, list) else now.update)(before)
                raise ValueError(f"it changes its {name}")


@contextmanager
def _watched(module: nn.Module, own: type[nn.Module], training: bool, reads: _Reads) -> Iterator[None]:
    """For the time of a trace: notes what a forward reads of its module and of those below, and lets it set nothing."""
    paths = {id(m): path for path, m in module.named_modules()}
    class_now, set_now = module.__class__, nn.Module.__setattr__
    modes = [(vars(m), m.training) for m in module.modules()]

    def get(self: Any, name: str) -> Any:
        path = paths.get(id(self))
        by_fx = sys._getframe(1).f_globals.get("__name__", "").startswith("torch.fx.")
        if path is not None and not by_fx and (name not in _TORCHS or (path and name in ("training", "forward"))):
            reads.note(self, path, name)
        return object.__getattribute__(self, name)

    def set_(self: Any, name: str, value: Any) -> None:
        if id(self) in paths:
            raise ValueError(f"it sets its attribute {name}")
        set_now(self, name, value)

    module.__class__ = type(own.__name__, (class_now,), {"forward": own.forward, MADE: True})
    for state, _ in modes:
        state["training"] = training
    Module: Any = nn.Module
    Module.__getattribute__, Module.__setattr__ = get, set_
    try:
        yield
    finally:
        del Module.__getattribute__
        Module.__setattr__ = set_now
        module.__class__ = class_now
        for state, mode in modes:
            state["training"] = mode


def _trace(module: nn.Module, own: type[nn.Module], pattern: Pattern, training: bool, reads: _Reads) -> fx.Graph:
    """The graph of a module's own forward, in one mode; ``reads`` gets what it read."""
    if "forward" in vars(module):
        raise Untraceable(f"{own.__name__}.forward is set on the instance")
    before = random.getstate(), torch.get_rng_state()
    try:
        with torch.set_grad_enabled(training), _watched(module, own, training, reads):
            reads.note_function(own.forward, training)
            graph = _Tracer(pattern).trace(module)
        reads.check_containers()
        if random.getstate() != before[0] or not torch.equal(torch.get_rng_state(), before[1]):
            raise ValueError("it draws random numbers that no graph keeps")
        return graph
    except Exception as error:  # a branch on data, a len() of a proxy: whatever the forward does that fx cannot follow
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise Untraceable(f"{own.__name__}.forward cannot be traced: {reason}") from error
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])


# ---- edits ---------------------------------------------------------------------------------------------


def _first_argument(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs["input"]


def _apply(graph: fx.Graph, edits: Sequence[Edit], deferred: bool) -> list[list[str]]:
    """Edits a graph; ``deferred`` leaves out the blur that its caller takes over.

    Returns:
        what runs between each layer that left its blur and the blur.
    """
    nodes = {node.name: node for node in graph.nodes}
    for e in edits:
        if e.node not in nodes or _target(nodes[e.node]) != e.target:
            raise Untraceable("its forward does other things in training than in evaluation")
    between = [_between(nodes[e.since], nodes[e.node], e.last) for e in edits if e.since]
    for e in edits:
        node = nodes[e.node]
        if e.action == "stride":
            node.args, node.kwargs = _at_stride_one(node)
        elif e.action == "defer":
            node.kwargs = {**node.kwargs, LATER: True}
        elif e.action == "after":
            if not (deferred and e.last):
                with graph.inserting_after(node):
                    blur = graph.call_module(e.blur, (node,))
                node.replace_all_uses_with(blur, delete_user_cb=lambda user, blur=blur: user is not blur)
        elif e.action == "before":
            source = _first_argument(node)
            made = next((n for n in graph.nodes if n.op == "call_module" and n.target == e.blur), None)
            if made is None:
                with graph.inserting_before(node):
                    made = graph.call_module(e.blur, (source,))
            if node.args:
                node.args = (made, *node.args[1:])
            else:
                node.kwargs = {**node.kwargs, "input": made}
        else:
            if len(node.all_input_nodes) > 1:
                raise Untraceable("its window depends on the map")
            with graph.inserting_before(node):
                blur = graph.call_module(e.blur, (_first_argument(node),))
            node.replace_all_uses_with(blur)
            graph.erase_node(node)
    return between


def _between(start: fx.Node, end: fx.Node, last: bool) -> list[str]:
    """What reads, directly or not, what ``start`` gives, up to ``end``.

    Raises:
        Untraceable: some of it does not go to ``end``, or the forward does not end there although ``last`` says so.
    """
    found, todo = [start], [start]
    while todo:
        node = todo.pop(0)
        new = [user for user in node.users if node is not end and user not in found]
        found, todo = found + new, todo + new
    needed, todo = {end}, [end]
    while todo:
        new = [n for n in todo.pop().all_input_nodes if n not in needed]
        needed, todo = needed.union(new), todo + new
    if not needed.issuperset(found):
        raise Untraceable("others read its map before the activation")
    if last and [user.op for user in end.users] != ["output"]:
        raise Untraceable("its forward does not end there")
    return [_target(node) for node in found]


def _at_stride_one(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = node.args, dict(node.kwargs)
    if len(args) > 3:
        args = (*args[:3], 1, *args[4:])
    else:
        kwargs["stride"] = 1
    return args, kwargs


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


class Program:
    """A rewritten forward: what runs in its place, and when it may not.

    Args:
        module: whose forward it is.
        own: the class that has the forward.
        edits: of its graph, in training as in evaluation.
        pattern: of the calls that it stands for.

    Raises:
        Untraceable: with the reason.
    """

    def __init__(self, module: nn.Module, own: type[nn.Module], edits: Sequence[Edit], pattern: Pattern) -> None:
        self.own, self.forward, self.pattern, self.bind = own, own.forward, pattern, pattern.binder()
        self.layout, reads = _layout(module), _Reads()
        self.flags, self.names, self.modes, self.methods = reads.flags, reads.names, reads.modes, reads.methods
        self.deferred = tuple(e.target for e in edits if e.action == "defer")
        self.last = any(e.last for e in edits)
        self.runs: dict[tuple[bool, bool], Callable[..., Any]] = {}
        between = set()
        for training in (False, True):
            for deferred in (False, True) if self.last else (False,):
                graph = _trace(module, own, pattern, training, reads)
                between.add(str(_apply(graph, edits, deferred)))
                graph.lint()
                code = graph.python_code(root_module="self")
                scope = dict(code.globals)
                exec(compile(code.src, f"<aablur: {own.__name__}>", "exec"), scope)
                self.runs[training, deferred] = scope["forward"]
        if len(between) > 1:
            raise Untraceable("its forward does other things in training than in evaluation")

    def why_not(self, module: nn.Module) -> str:
        """Why the module's forward must run as it was written; "" where it need not."""
        if self.own.forward is not self.forward:
            return f"{self.own.__name__}.forward was replaced"
        if _layout(module) != self.layout:
            return "its children have changed"
        for (path, name), fact in self.flags.items():
            owner = at(module, path)
            if name == "training":
                same = owner is not None and owner.training == module.training
            elif torch.compiler.is_compiling():  # whose guards know plain values alone
                same = not _is_plain(fact) or getattr(owner, name, ...) == fact[1]
            else:
                same = owner is not None and _fact(owner, name) == fact
            if not same:
                return f"its attribute {f'{path}.{name}'.lstrip('.')} has changed"
        for names, name, fact in () if torch.compiler.is_compiling() else self.names:
            if frozen(names.get(name, ...)) != fact:
                return f"{name} has changed"
        for (training, name), value in self.modes.items():
            if training == module.training and _MODES[name]() != value:
                return f"it asks for {name}, which was {value} when it was repaired"
        for path in self.deferred:
            if not can_defer(module.get_submodule(path)):
                return f"{path} has changed"
        return ""

    def tensors(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[list[Any] | None, str]:
        """What to run it on; or None, and why it may not run."""
        if reason := self.why_not(module):
            return None, reason
        return self.pattern.tensors(self.bind(*args, **kwargs)), "its arguments are of other kinds"


def _is_plain(fact: Any) -> bool:
    return isinstance(fact, tuple) and isinstance(fact[1], PLAIN)


def at(module: nn.Module, path: str) -> Any:
    """What is at a path in a module; None where nothing is."""
    found: Any = module
    for name in path.split(".") if path else ():
        found = None if found is None else found._modules.get(name)
    return found


def can_defer(module: nn.Module) -> bool:
    """Whether a layer, called with `LATER`, leaves its blur to the caller."""
    state = vars(module)
    if "forward" in state or "_repair" not in state:
        return False
    program = state["_repair"].get("program")
    if program is not None:
        return program.last and not program.why_not(module)
    return "stride" in state["_repair"] and "edits" not in state["_repair"]


def _layout(module: nn.Module) -> tuple[Any, ...]:
    """The names of a module's children, and of those of its containers, over which a forward may loop."""
    blurs = vars(module)["_repair"]["blurs"] if "_repair" in vars(module) else ()
    return tuple(
        (name, None if child is None else _layout(child) if isinstance(child, _CONTAINERS) else ())
        for name, child in module._modules.items()
        if name not in blurs and name != "blur_dense"
    )


@dataclass(frozen=True)
class Event:
    """What a forward does next: a function of its own (a node of the tape), or a call of a child."""

    what: Node | Call
    fx_node: str = ""
    target: str = ""

    @property
    def name(self) -> tuple[str, Any]:
        if isinstance(self.what, Node):
            return self.what.op.rstrip("_"), self.what.shape  # fx writes x += y as x + y
        return "call", id(self.what.module)


def events_of(call: Call, tape: Tape) -> list[Event]:
    """The functions and the children's calls of one call of a module, in order."""
    found = [(c.began, 0, Event(c)) for c in tape.calls if c.parent is call]
    found += [(i, 1, Event(tape.nodes[i])) for i in call.nodes if tape.nodes[i].op != "input"]
    return [e for *_, e in sorted(found, key=lambda entry: entry[:2])]


class _Interpreter(fx.Interpreter):
    """Runs a graph under a recorder, and notes which of its nodes each event belongs to."""

    def __init__(self, module: nn.Module, graph: fx.Graph, recorder: Recorder) -> None:
        super().__init__(module, graph=graph)
        self.recorder = recorder
        self.events: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = len(self._now())
        out = super().run_node(n)
        self.events[n.name] = len(self._now()) - before
        return out

    def _now(self) -> list[Event]:
        return events_of(self.recorder.root, self.recorder.tape)


def map_events(call: Call, tape: Tape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Event]:
    """The events of a call, each with the node of the traced forward that it comes from ("" if it shares one).

    Args:
        args, kwargs: what the module was called with.

    Raises:
        Untraceable: the forward cannot be traced, or its graph does other things than the forward.
    """
    module = call.module
    own = type(module)
    recorder = Recorder(module)
    try:
        pattern = Pattern(own.forward, args, kwargs)
        graph = _trace(module, own, pattern, False, _Reads())
        interpreter = _Interpreter(module, graph, recorder)
        given = pattern.tensors(pattern.binder()(*args, **kwargs))
        with undisturbed(module), recorder:
            interpreter.run(*(given or ()))
    except Untraceable:
        raise
    except Exception as error:  # the graph was traced, and does not do what the forward does
        raise Untraceable(f"the trace of {own.__name__}.forward does not run: {type(error).__name__}") from error
    by_name = {n.name: n for n in graph.nodes}
    nodes = [name for name, count in interpreter.events.items() for _ in range(count)]
    again, first = events_of(recorder.root, recorder.tape), events_of(call, tape)
    if [e.name for e in again] != [e.name for e in first]:
        raise Untraceable(f"{own.__name__}.forward does other things when it is traced")
    return [
        replace(e, fx_node=n, target=_target(by_name[n])) if interpreter.events[n] == 1 else e
        for e, n in zip(first, nodes, strict=True)
    ]
