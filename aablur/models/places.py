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
from .graph import Edit, Event, Untraceable, compile_edits, events_of, map_events
from .sites import Site
from .tape import Call, Node, Ref, Tape, record

ACTIVATIONS = {
    "relu", "relu_", "relu6", "hardtanh", "leaky_relu", "leaky_relu_", "elu", "elu_", "celu", "selu", "gelu", "silu",
    "silu_", "mish", "hardswish", "hardsigmoid", "sigmoid", "sigmoid_", "tanh", "tanh_", "softplus", "prelu", "rrelu",
    "logsigmoid", "softsign", "softshrink", "hardshrink", "tanhshrink", "clamp", "clamp_", "clamp_min",
}  # fmt: skip
BETWEEN = {  # between a convolution and its activation
    "batch_norm", "group_norm", "instance_norm", "dropout", "dropout2d", "feature_dropout", "alpha_dropout", "clone",
    "contiguous", "to", "type", "add", "add_", "sub", "mul", "mul_", "div",
}  # fmt: skip


@dataclass(eq=False)
class Change:
    """One change of one module, made by `apply`."""

    module: nn.Module
    path: str
    part: str  # a part of `surgery.Repaired`, "attribute", "dense" or "edit"
    blur: Blur | None = None
    attribute: tuple[str, Any] | None = None
    dense: Dense | None = None
    edits: tuple[Edit, ...] = ()


@dataclass(eq=False)
class Plan:
    """What to do about a site, ``how`` in words; where nothing can be done, no changes, and ``how`` says why."""

    site: Site
    how: str = ""
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
        if isinstance(call.module, torch.jit.ScriptModule):
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
        module_level = (
            source is not None
            and call.inputs[:1] == (source,)
            and self._takes_only_here(call, source, site.nodes)
            and (self._in_step(call, site) or self._same_at_every_call(call))
            and self._free(call, "blur_before", site)
        )
        if module_level:
            plan.changes.append(Change(call.module, call.path, "blur_before", blur))
            return
        try:
            self._edit(call, [self.tape.nodes[i] for i in self._takers(site)], "before", blur, plan)
        except Untraceable:
            if source is None or not self._all_go_to(source, site):
                raise
            self._after(self.tape.nodes[source], blur, plan)

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
        if whole and (self._in_step(call, site) or self._same_at_every_call(call)):
            plan.changes.append(Change(call.module, call.path, "blur_instead", blur))
            return
        self._edit(call, [node], "instead", blur, plan)

    def _after_activation(self, node: Node, blur: Blur, plan: Plan) -> None:
        """The blur after the activation that follows a convolution, or after what can be reached before it."""
        chain = self._to_activation(node)
        reasons = []
        for at in reversed(chain):
            try:
                self._after(at, blur, plan)
            except Untraceable as reason:
                reasons.append(str(reason))
                continue
            where = "the activation" if at.op in ACTIVATIONS or len(at.inputs) > 1 else at.op
            plan.how = f"stride-1 convolution, blur pool after {where}"
            if reasons:
                plan.how += f" ({reasons[0]})"
            return
        raise Untraceable(reasons[0])

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
        """The blur on what a node puts out, for all that take it."""
        call: Call | None = node.call
        outer = call
        while call is not None and call.result == node.index:
            if self._in_step(call, plan.site) and self._free(call, "blur_after", plan.site):
                plan.changes.append(Change(call.module, call.path, "blur_after", blur))
                return
            outer, call = call.parent, call.parent
        takers = [self.tape.nodes[i] for i in node.users]
        if takers and all(
            self._takes_whole(t, node, plan.site) and self._free(t.call, "blur_before", plan.site) for t in takers
        ):
            for taker in takers:
                plan.changes.append(Change(taker.call.module, taker.call.path, "blur_before", blur))
            return
        assert outer is not None
        inner = next((c for c in self.tape.calls if c.parent is outer and c.result == node.index), None)
        self._edit(outer, [inner if node.call is not outer and inner is not None else node], "after", blur, plan)

    def _takes_whole(self, taker: Node, node: Node, site: Site) -> bool:
        call = taker.call
        return (
            call.inputs[:1] == (node.index,)
            and self._in_step(call, site)
            and self._takes_only_here(call, node.index, [taker.index])
        )

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
                known = map_events(self._calls[id(call.module)][0], self.tape, *self._arguments(call))
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
        events = [self._event(call, what) for what in whats]
        known = self._edited.setdefault(id(call.module), {})
        key = tuple(e.fx_node for e in events)
        name = known.setdefault(
            key, next(n for i in itertools.count() if not hasattr(call.module, n := f"blur_{i + len(known)}"))
        )
        edits = tuple(Edit(e.fx_node, action, name, e.target) for e in events)
        compile_edits(call.module, type(call.module), edits)  # in training too, or it raises
        plan.changes.append(Change(call.module, call.path, "edit", blur, edits=edits))


def apply(changes: Sequence[Change]) -> None:
    """Makes changes; the same one of the same module, at several calls of it, once."""
    edits: dict[int, tuple[nn.Module, list[Edit], dict[str, Blur]]] = {}
    done: set[Any] = set()
    for change in changes:
        key = (id(change.module), change.part, change.attribute)
        if change.part != "edit" and key in done:
            continue
        done.add(key)
        if change.part == "attribute":
            assert change.attribute is not None
            surgery.set_attribute(change.module, *change.attribute)
        elif change.part == "dense":
            assert change.dense is not None
            surgery.put_dense(change.module, change.dense)
        elif change.part == "edit":
            _, mine, blurs = edits.setdefault(id(change.module), (change.module, [], {}))
            mine += [e for e in change.edits if e not in mine]
            if change.blur is not None:
                blurs[change.edits[0].blur] = change.blur
        else:
            assert change.blur is not None
            surgery.put(change.module, change.part, change.blur)
    for module, mine, blurs in edits.values():
        surgery.edit(module, mine, blurs)
