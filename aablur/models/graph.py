"""Edits of a forward: torch.fx traces it with its children as leaves, and blurs are put between its operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from .tape import Call, Node, Recorder, Tape, undisturbed


class Untraceable(Exception):
    pass


@dataclass(frozen=True)
class Edit:
    """One change of a traced forward.

    Attributes:
        node: the name of the operation in the graph.
        action: "after" (its result goes through the blur), "before" (its map does, for it alone), "instead" (the blur
            takes its place), or "stride" (a convolution runs at stride 1).
        blur: the name of the child that blurs.
        target: what the operation calls, as a check on a graph that is traced again.
    """

    node: str
    action: str
    blur: str = ""
    target: str = ""


class _Children(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _trace(module: nn.Module, own: type[nn.Module], training: bool) -> fx.Graph:
    """The graph of a module's own forward, in one mode."""
    class_now, flag = module.__class__, module.training
    module.__class__ = own
    module.training = training
    try:
        return _Children().trace(module)
    except Exception as error:  # a branch on data, a len() of a proxy: whatever the forward does that fx cannot follow
        raise Untraceable(f"{own.__name__}.forward cannot be traced: {str(error).splitlines()[0]}") from error
    finally:
        module.__class__, module.training = class_now, flag


def _first_argument(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs["input"]


def _apply(graph: fx.Graph, edits: Sequence[Edit]) -> None:
    nodes = {node.name: node for node in graph.nodes}
    for e in edits:
        node = nodes.get(e.node)
        if node is None or _target(node) != e.target:
            raise Untraceable("its forward does other things in training than in evaluation")
        if e.action == "stride":
            node.args, node.kwargs = _at_stride_one(node)
        elif e.action == "after":
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
            with graph.inserting_before(node):
                blur = graph.call_module(e.blur, (_first_argument(node),))
            node.replace_all_uses_with(blur)
            graph.erase_node(node)


def _at_stride_one(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = node.args, dict(node.kwargs)
    if len(args) > 3:
        args = (*args[:3], 1, *args[4:])
    else:
        kwargs["stride"] = 1
    return args, kwargs


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def compile_edits(module: nn.Module, own: type[nn.Module], edits: Sequence[Edit]) -> dict[bool, Callable[..., Any]]:
    """The edited forward in training (True) and in evaluation: flags that it reads are fixed when it is traced.

    Raises:
        Untraceable: with the reason.
    """
    programs = {}
    for training in (True, False):
        graph = _trace(module, own, training)
        _apply(graph, edits)
        graph.lint()
        code = graph.python_code(root_module="self")
        scope = dict(code.globals)
        exec(compile(code.src, f"<aablur: {own.__name__}>", "exec"), scope)
        programs[training] = scope["forward"]
    return programs


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
    graph = _trace(module, type(module), False)
    recorder = Recorder(module)
    interpreter = _Interpreter(module, graph, recorder)
    names = [n.target for n in graph.nodes if n.op == "placeholder"]
    given = [*args, *(kwargs[str(n)] for n in names[len(args) :] if str(n) in kwargs)]
    with undisturbed(module), recorder:
        interpreter.run(*given)
    by_name = {n.name: n for n in graph.nodes}
    nodes = [name for name, count in interpreter.events.items() for _ in range(count)]
    again, first = events_of(recorder.root, recorder.tape), events_of(call, tape)
    if [e.name for e in again] != [e.name for e in first]:
        raise Untraceable(f"{type(module).__name__}.forward does other things when it is traced")
    return [
        Event(e.what, n, _target(by_name[n])) if interpreter.events[n] == 1 else Event(e.what)
        for e, n in zip(first, nodes, strict=True)
    ]
