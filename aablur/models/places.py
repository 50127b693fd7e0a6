"""Where a blur can be put: before a site, in its place, or after the activation that follows it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import surgery
from .blurs import Blur, Dense
from .graph import Edit, Event, Program, Untraceable, events_of, map_events
from .pattern import Pattern
from .sites import Site
from .tape import Call, Node, Ref, Tape, record

ACTIVATIONS = {
    "relu", "relu_", "relu6", "hardtanh", "leaky_relu", "leaky_relu_", "elu", "elu_", "celu", "selu", "gelu", "silu",
    "silu_", "mish", "hardswish", "hardsigmoid", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "prelu", "rrelu",
    "logsigmoid", "softsign", "softshrink", "hardshrink", "tanhshrink", "clamp", "clamp_", "clamp_min",
}  # fmt: skip
BETWEEN = {  # between a convolution and its activation: all but norms over the map, which see what was sampled
    "batch_norm", "dropout", "dropout2d", "feature_dropout", "alpha_dropout", "clone",
    "contiguous", "to", "type", "add", "add_", "sub", "mul", "mul_", "div",
}  # fmt: skip


@dataclass(eq=False)
class Change:
    """One change of one module, made by `apply`."""

    module: nn.Module
    path: str
    part: str  # where the blur goes ("blur_before", "blur_instead", "blur_after"), "stride", "dense" or "edit"
    blur: Blur | None = None
    stride: tuple[int, ...] = ()
    dense: Dense | None = None
    edits: tuple[Edit, ...] = ()
    pattern: Pattern | None = None


@dataclass(eq=False)
class Plan:
    """What to do about a site, ``how`` in words; where nothing can be done, no changes, and ``how`` says why."""

    site: Site
    how: str = ""
    moved: bool = False  # a rewritten forward does the layer's blur
    changes: list[Change] = field(default_factory=list)


class Places:
    """Finds the modules, and the operations in their forwards, where blurs of one tape's sites can go.

    Args:
        model, args: what the tape was taken of.
        tape: with every site on it.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], tape: Tape) -> None:
        self.model, self.args, self.tape = model, args, tape
        self._events: dict[int, list[Event] | Untraceable] = {}
        self._patterns: dict[int, Pattern] = {}
        self._calls: dict[int, list[Call]] = {}
        for call in tape.calls:
            self._calls.setdefault(id(call.module), []).append(call)
        self._edited: dict[int, dict[tuple[str, ...], str]] = {}  # names of blurs, by the operations that they serve
        self._taken: dict[tuple[int, str], nn.Module] = {}

    def _channels_last(self, site: Site) -> bool:
        return site.axes[-1] != -1

    def _source(self, node: Node) -> int | None:
        """The node that made the map that another takes, before a padding in the same module."""
        ref = node.args[0]
        while ref.node is not None:
            made = self.tape.nodes[ref.node]
            if made.op != "pad" or not self._within(made.call, node.call) or not isinstance(made.args[0], Ref):
                break
            ref = made.args[0]
        return ref.node

    def _in_step(self, call: Call, site: Site) -> bool:
        """Whether a module runs once, or once for each run of the site's module, in the same order (siamese nets)."""
        calls, own = self._calls[id(call.module)], self._calls.get(id(site.node.call.module), [])
        return len(calls) == 1 or (len(calls) == len(own) and call.order == site.node.call.order)

    def _free(self, call: Call, part: str, site: Site) -> bool:
        """Whether a module can be changed, and no other site's plan has taken this part of it; takes it."""
        if isinstance(call.module, torch.jit.ScriptModule) or "forward" in vars(call.module):
            return False
        return self._taken.setdefault((id(call.module), part), site.node.call.module) is site.node.call.module

    def _same_at_every_call(self, call: Call) -> bool:
        """Whether a module has nothing to it but one operation, so that what holds for one call holds for all."""
        calls = self._calls[id(call.module)]
        return all(
            len(c.nodes) == 1 and self.tape.nodes[c.nodes[0]].op == self.tape.nodes[call.nodes[0]].op for c in calls
        )

    def _takes_only_here(self, call: Call, source: int, allowed: Sequence[int]) -> bool:
        """Whether, inside of a module, its input goes to these nodes alone (or through a padding to them)."""
        inside = [u for u in self.tape.nodes[source].users if self._within(self.tape.nodes[u].call, call)]
        for user in inside:
            node = self.tape.nodes[user]
            if user in allowed:
                continue
            if node.op != "pad" or any(u not in allowed for u in node.users):
                return False
        return True

    def _within(self, call: Call | None, outer: Call) -> bool:
        while call is not None and call is not outer:
            call = call.parent
        return call is outer

    def _before(self, site: Site, blur: Blur, plan: Plan) -> None:
        """The blur on the map that a site takes, and on nobody else's."""
        call, source = site.node.call, self._source(site.node)
        if self._takes_first(site) and self._free(call, "blur_before", site):
            plan.changes.append(Change(call.module, call.path, "blur_before", blur))
            return
        try:
            self._edit(call, [self.tape.nodes[i] for i in self._takers(site)], "before", blur, plan)
        except Untraceable:
            if source is None or any(s > 1 for s in blur.stride) or not self._all_go_to(source, site):
                raise
            self._after(self.tape.nodes[source], blur, plan)

    def _takes_first(self, site: Site) -> bool:
        """Whether a site takes what its module is given first, and nobody else in there does, at every call."""
        call, source = site.node.call, self._source(site.node)
        return (
            source is not None
            and call.inputs[:1] == (source,)
            and self._takes_only_here(call, source, site.nodes)
            and (self._in_step(call, site) or self._same_at_every_call(call))
        )

    def _all_go_to(self, source: int, site: Site) -> bool:
        """Whether a node's output goes to a site and to nobody else, maybe through a padding."""
        users = [self.tape.nodes[i] for i in self.tape.nodes[source].users]
        return all(set(n.users if n.op == "pad" else [n.index]) <= set(site.nodes) for n in users)

    def _takers(self, site: Site) -> list[int]:
        """The nodes of a site that take the map itself: the first of a chain of views, each of a set of slices."""
        first = site.node.args[0].node
        return [i for i in site.nodes if self.tape.nodes[i].args[0].node == first]

    def _instead(self, site: Site, blur: Blur, plan: Plan) -> None:
        """The blur in the place of a whole module, or of a function in a forward."""
        call, node = site.node.call, site.node
        whole = call.nodes == [node.index] and call.result == node.index and call.inputs[:1] == (node.args[0].node,)
        whole = whole and type(call.module).__module__.startswith("torch.nn.")  # whose window is no function of the map
        if (
            whole
            and (self._in_step(call, site) or self._same_at_every_call(call))
            and self._free(call, "blur_instead", site)
        ):
            plan.changes.append(Change(call.module, call.path, "blur_instead", blur))
            return
        self._edit(call, [node], "instead", blur, plan)

    def _after_activation(self, node: Node, blur: Blur, plan: Plan) -> None:
        """The blur of a convolution that a forward writes as a function: after the activation, or as near as can be."""
        chain = self._to_activation(node)
        for i, at in reversed(list(enumerate(chain))):
            try:
                self._edit(node.call, [self._outermost(node.call, at)], "after", blur, plan)
            except Untraceable as reason:
                plan.how = f" ({reason})"
                if i == 0:
                    raise
                continue
            plan.how = f"stride-1 convolution, blur pool after {_name(at)}{plan.how}"
            return

    def _later(self, layer: Call, chain: list[Node], plan: Plan) -> bool:
        """Moves the blur of a layer behind what runs on its map alone, by edits of the forwards that call it.

        Each forward on the way out runs the layer (or what holds it) without its blur, and blurs after the last node
        of the chain that it runs itself. It can leave that to its caller in turn where it ends there.

        Args:
            layer: whose blur it is.
            chain: of nodes, the first of which is what the layer puts out.

        Returns:
            whether it was moved.
        """
        call, path, at, pending, moved = layer, "blur_after", 0, [], False
        plan.how = f"stride-1 convolution, blur pool after {_name(chain[0])}"
        while at + 1 < len(chain) and call.parent is not None and call.parent.parent is not None:
            parent = call.parent
            inside = [i for i in range(at + 1, len(chain)) if self._within(chain[i].call, parent)]
            reached, reason = None, ""
            for i in [*reversed(inside), at]:
                try:
                    last = i + 1 < len(chain) and parent.result == chain[i].index
                    edits = self._deferral(parent, call, self._outermost(parent, chain[i]), path, last)
                except Untraceable as error:
                    reason = reason or f" ({error})"
                    continue
                reached = i
                pending.append(Change(parent.module, parent.path, "edit", edits=edits, pattern=self._pattern(parent)))
                break
            if reached is None:
                plan.how += reason
                break
            if reached > at:
                plan.changes += pending
                pending, moved = [], True
                plan.how = f"stride-1 convolution, blur pool after {_name(chain[reached])}{reason}"
            if reason or not last:
                break
            call, path, at = parent, f"{edits[0].target}.{path}", reached
        return moved

    def _deferral(self, parent: Call, call: Call, at: Node | Call, path: str, last: bool) -> tuple[Edit, ...]:
        """Edits by which a forward runs a child without its blur, and blurs after something else that it runs."""
        if not self._free_to_defer(parent):
            raise Untraceable("its blur is another's")
        if type(call.module).__call__ is not nn.Module.__call__:
            raise Untraceable("its __call__ is its own")
        first, end = self._event(parent, call), self._event(parent, at)
        edits = (
            Edit(first.fx_node, "defer", target=first.target),
            Edit(end.fx_node, "after", f"{first.target}.{path}", end.target, first.fx_node, last),
        )
        Program(parent.module, type(parent.module), edits, self._pattern(parent))  # in training too, or it raises
        return edits

    def _free_to_defer(self, parent: Call) -> bool:
        return not any(
            (id(parent.module), part) in self._taken for part in ("blur_instead", "blur_after", "stride")
        ) and not isinstance(parent.module, torch.jit.ScriptModule)

    def _outermost(self, outer: Call, node: Node) -> Node | Call:
        """What a call runs itself that puts out a node: the node, or a child's call."""
        if node.call is outer:
            return node
        for call in self.tape.calls:
            if call.parent is outer and call.result == node.index:
                return call
        raise Untraceable(f"{node.op} is not the last thing that {type(node.call.module).__name__} does")

    def _to_activation(self, node: Node) -> list[Node]:
        """A convolution, and what runs on its result alone up to its activation."""
        chain, at = [node], node
        while at.op not in ACTIVATIONS:
            users = [self.tape.nodes[i] for i in at.users]
            if len(users) == 2 and (gated := self._gate(at, users)) is not None:
                return [*chain, gated]
            if len(users) != 1 or users[0].op not in ACTIVATIONS | BETWEEN or not self._pointwise(users[0]):
                break
            at = users[0]
            chain.append(at)
        return chain

    def _pointwise(self, node: Node) -> bool:
        """Whether a node works on one map alone, at every pixel alike: it adds no map, and no table of positions."""
        if node.op == "batch_norm" and node.argument(5, "training", False):
            return False  # without running statistics it is a norm over the map
        refs = [r for r in node.args if isinstance(r, Ref)]
        pixels = [math.prod(r.shape[2:]) for r in refs if r.node is None]
        return len(node.inputs) == 1 and (node.op in ACTIVATIONS or all(n == 1 for n in pixels))

    def _gate(self, at: Node, users: list[Node]) -> Node | None:
        """x * sigmoid(x) and its like, written out: the product."""
        product = users[1] if users[1].op in ("mul", "mul_") else users[0]
        gate = users[0] if product is users[1] else users[1]
        if product.op not in ("mul", "mul_") or gate.op not in ACTIVATIONS:
            return None
        return product if set(product.inputs) == {at.index, gate.index} else None

    def _after(self, node: Node, blur: Blur, plan: Plan) -> None:
        """The blur, at stride 1, on what a node puts out, for all that take it."""
        call: Call | None = node.call
        outer = call
        while call is not None and call.result == node.index:
            if self._in_step(call, plan.site) and self._free(call, "blur_after", plan.site):
                plan.changes.append(Change(call.module, call.path, "blur_after", blur))
                return
            outer, call = call.parent, call.parent
        assert outer is not None
        self._edit(outer, [self._outermost(outer, node)], "after", blur, plan)

    # ---- forwards

    def _arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a module was called with."""
        kept: list[Any] = []

        def keep(_: Any, args: Any, kwargs: Any) -> None:
            if not kept:
                kept.append((tuple(a.clone() if isinstance(a, Tensor) else a for a in args), dict(kwargs)))

        handle = call.module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            record(self.model, self.args)
        finally:
            handle.remove()
        return kept[0]

    def _event(self, call: Call, what: Node | Call) -> Event:
        """Where, in the traced forward of a module, something happens: the first call stands for all."""
        known = self._events.get(id(call.module))
        if known is None:
            try:
                args, kwargs = self._arguments(call)
                known = map_events(self._calls[id(call.module)][0], self.tape, args, kwargs)
                self._patterns[id(call.module)] = Pattern(type(call.module).forward, args, kwargs)
            except Untraceable as reason:
                known = reason
            self._events[id(call.module)] = known
        if isinstance(known, Untraceable):
            raise known
        at = next(i for i, e in enumerate(events_of(call, self.tape)) if e.what is what)
        event = known[at] if at < len(known) else None
        if event is None or not event.fx_node or event.name[0] != Event(what).name[0]:
            raise Untraceable(f"{type(call.module).__name__}.forward does it where no graph reaches")
        return event

    def _edit(self, call: Call, whats: Sequence[Node | Call], action: str, blur: Blur, plan: Plan) -> None:
        if isinstance(call.module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            raise Untraceable(f"a blur would be one more entry of a {type(call.module).__name__}")
        events = [self._event(call, what) for what in whats]
        known = self._edited.setdefault(id(call.module), {})
        key = tuple(e.fx_node for e in events)
        name = known.setdefault(
            key, next(n for i in itertools.count() if not hasattr(call.module, n := f"blur_{i + len(known)}"))
        )
        edits = tuple(Edit(e.fx_node, action, name, e.target) for e in events)
        Program(call.module, type(call.module), edits, self._pattern(call))  # in training too, or it raises
        plan.changes.append(Change(call.module, call.path, "edit", blur, edits=edits, pattern=self._pattern(call)))

    def _pattern(self, call: Call) -> Pattern:
        """Of the calls that a traced forward stands for."""
        return self._patterns[id(call.module)]


def _name(node: Node) -> str:
    return "the activation" if node.op in ACTIVATIONS or len(node.inputs) > 1 else node.op


def apply(model: nn.Module, plans: Sequence[Plan]) -> None:
    """Makes the changes of plans; the same one of the same module, at several calls of it, once."""
    edits: dict[int, tuple[Change, list[Edit], dict[str, Blur]]] = {}
    done: set[Any] = set()
    for change in (change for plan in plans for change in plan.changes):
        key = (id(change.module), change.part)
        if change.part == "edit":
            _, mine, blurs = edits.setdefault(id(change.module), (change, [], {}))
            mine += [e for e in change.edits if e not in mine]
            if change.blur is not None:
                blurs[change.edits[0].blur] = change.blur
        elif key in done:
            continue
        elif change.part == "stride":
            surgery.set_stride(change.module, change.stride)
        elif change.dense is not None:
            surgery.put_dense(change.module, change.dense)
        else:
            assert change.blur is not None
            surgery.put(change.module, change.part, change.blur)
        done.add(key)
    for change, mine, blurs in edits.values():
        assert change.pattern is not None
        surgery.edit(change.module, mine, blurs, change.pattern)
    surgery.compile_edits([change.module for change, *_ in edits.values()])
    own = [(p.site.node.call.module, p.moved) for p in plans if any(c.part == "stride" for c in p.changes)]
    surgery.keep(model, {m for m, _ in own if all(moved for n, moved in own if n is m)})
