"""Reshapes followed to their end: which of them move pixels into channels (space to depth)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .tape import Node, Ref, Tape

_VIEWS = frozenset(
    ("reshape", "view", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "contiguous")
)


@dataclass(frozen=True)
class _Part:
    """``size`` steps of ``step`` along axis ``axis`` of the map: what an axis of a view is made of, outermost first."""

    axis: int
    step: int
    size: int


_Axes = list[list[_Part]]


def _regroup(axes: _Axes, shape: tuple[int, ...]) -> _Axes | None:
    """The parts of a reshape's axes; None where an axis is cut at no factor of its size."""
    parts = [p for axis in axes for p in axis if p.size > 1]
    grouped: _Axes = []
    for size in shape:
        group: list[_Part] = []
        while (have := math.prod(p.size for p in group)) < size:
            if not parts:
                return None
            part, want = parts.pop(0), size // have
            if part.size > want:
                if part.size % want:
                    return None
                inner = part.size // want
                parts.insert(0, _Part(part.axis, part.step, inner))
                part = _Part(part.axis, part.step * inner, want)
            group.append(part)
        if have != size:
            return None
        grouped.append(group)
    return grouped


def _order(node: Node, rank: int) -> list[int] | None:
    """How a node that moves axes orders them."""
    arguments = [a for a in node.args[1:] if not isinstance(a, Ref)] or list(node.kwargs.values())
    order = list(range(rank))
    if node.op == "permute":
        dims = arguments[0] if isinstance(arguments[0], (tuple, list)) else arguments
        return [d % rank for d in dims]
    if node.op in ("transpose", "swapaxes"):
        a, b = arguments
        order[a % rank], order[b % rank] = b % rank, a % rank
        return order
    if node.op == "movedim" and all(isinstance(a, int) for a in arguments):
        a, b = arguments
        order.insert(b % rank, order.pop(a % rank))
        return order
    return None


def _windows(axes: _Axes, last: int, channels: int, whole: set[int], cut: int) -> bool:
    """Whether steps beside a whole axis are windows of attention as long as the map: its channels, last, stay alone,
    and several axes are cut, or the windows have joined the batch.
    """
    alone = [(p.axis, p.size) for p in axes[-1]] == [(last, channels)]
    return alone and last not in whole and (cut > 1 or any(p.axis > 0 for p in axes[0]))


def splits_before(node: Node, tape: Tape) -> list[Node]:
    """The views that have split axes of a map right before a node, in order."""
    found: list[Node] = []
    while isinstance(ref := node.args[0], Ref) and ref.node is not None:
        node = tape.nodes[ref.node]
        if node.op not in ("reshape", "view", "unflatten") or not isinstance(node.args[0], Ref):
            break
        if found and len(node.shape) <= len(node.args[0].shape):
            break
        found.insert(0, node)
    return found


def inner_parts(views: list[Node], dims: Iterable[int]) -> dict[int, int]:
    """The axes of a map (from the end) that views split, with the steps of those parts that ``dims`` of them are.

    Those of channels are left out: axis 1 alone, and the last of a map of three axes.
    """
    shape, rank = views[0].args[0].shape, len(views[-1].shape)
    axes: _Axes | None = [[_Part(i, 1, n)] if n > 1 else [] for i, n in enumerate(shape)]
    for view in views:
        axes = _regroup(axes, view.shape) if axes is not None else None
    reduced = {d % rank for d in dims}
    kept = {p.axis for i, group in enumerate(axes or []) if i not in reduced for p in group if p.axis > 0}
    found = {}
    for dim in dims if axes is not None and len(shape) > 2 else ():
        group = axes[dim % rank]  # pyright: ignore[reportOptionalSubscript]
        if len(group) == 1 and group[0].step == 1 and group[0].axis in kept and group[0].size < shape[group[0].axis]:
            found[group[0].axis - len(shape)] = group[0].size
    is_map = any(a > 1 - len(shape) for a in found) and not (len(shape) == 3 and len(found) == 1)
    return dict(sorted(found.items())) if is_map else {}


def split_axes(node: Node, tape: Tape) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Whether a reshape begins a space-to-depth: it cuts an axis in steps, which end up beside whole channels.

    Args:
        node: a reshape.

    Returns:
        None, or the axes of its input that are sampled (from the end), their strides, and the nodes of the whole
        chain of views. Windows of attention, heads and shuffled channels are none: their steps along a map never
        join the axis of its channels.
    """
    shape = node.args[0].shape
    if len(node.shape) <= len(shape) or len(shape) < 3:
        return None
    axes: _Axes | None = [[_Part(i, 1, n)] if n > 1 else [] for i, n in enumerate(shape)]
    chain = []
    while True:
        if node.op in ("reshape", "view", "flatten", "unflatten"):
            axes = _regroup(axes, node.shape)
        elif node.op != "contiguous":
            order = _order(node, len(axes))
            axes = None if order is None else [axes[i] for i in order]
        if axes is None:
            return None
        chain.append(node.index)
        for group in axes:
            whole = {p.axis for p in group if p.axis > 0 and p.size == shape[p.axis]}
            cut = sorted(
                {p.axis: p.size for p in group if p.step == 1 and p.axis > 0 and p.size < shape[p.axis]}.items()
            )
            if cut and whole and not _windows(axes, len(shape) - 1, shape[-1], whole, len(cut)):
                return tuple(a - len(shape) for a, _ in cut), tuple(s for _, s in cut), tuple(chain)
        users = [tape.nodes[i] for i in node.users]
        if len(users) != 1 or users[0].op not in _VIEWS:
            return None
        node = users[0]
