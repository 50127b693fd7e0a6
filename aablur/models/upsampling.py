"""Where a model makes a map larger so that images of its spectrum appear: read off a tape, as `sites` are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from . import filters
from .sites import is_handed_on, per_axis, rank_of, read_filters, strided_slices
from .tape import Node, Ref, Tape


@dataclass(frozen=True)
class Upsampling:
    """A place that puts zeros between pixels, or copies of them. Both leave images of the map's spectrum above its old
    Nyquist limit (checkerboards) until a low-pass filter takes them out.

    Attributes:
        name: the module's path; "(model)" is the model itself.
        kind: "conv_transpose", "zeros" (pads between pixels, max_unpool) or "nearest".
        source: file and line.
        factor: how much larger, one an axis.
        filter: as of a `Site`: what takes the images out, in the op itself or right after it. A learnt transposed
            convolution is None, whatever it has learnt.
    """

    name: str
    kind: str
    source: str
    factor: tuple[float, ...]
    filter: str | None


_Found = tuple[str, tuple[float, ...], list[filters.Filter]]  # kind, factor, its own filters


def _conv_transpose(node: Node) -> _Found | None:
    rank, weight = rank_of(node.op), node.facts["weight"]
    factor = per_axis(node.argument(3, "stride", 1), rank)
    dilation = per_axis(node.argument(7, "dilation", 1), rank)
    own = filters.of_convolution(weight, node.argument(6, "groups", 1), node.args[0].shape[-rank - 1], dilation)
    return "conv_transpose", factor, [] if own is None else [own]


def _interpolate(node: Node) -> _Found | None:
    if not str(node.argument(3, "mode", "nearest")).startswith("nearest"):
        return None
    rank = len(node.shape) - 2
    factor = tuple(m / n for n, m in zip(node.args[0].shape[-rank:], node.shape[-rank:], strict=True))
    return "nearest", factor, [filters.box([max(1, round(f)) for f in factor])]


def _repeat(node: Node) -> _Found | None:
    times, dim, rank = node.argument(1, "repeats"), node.argument(2, "dim"), len(node.shape)
    if not isinstance(times, int) or not isinstance(dim, int) or rank < 3 or dim % rank < 2:
        return None  # copies of pictures or channels
    factor = tuple(float(times) if i == dim % rank else 1.0 for i in range(2, rank))
    return "nearest", factor, [filters.box([int(f) for f in factor])]


def _max_unpool(node: Node) -> _Found | None:
    rank = rank_of(node.op)
    kernel, stride = node.argument(2, "kernel_size"), node.argument(3, "stride")
    return "zeros", per_axis(kernel if stride is None or stride == () else stride, rank), []


def _pad(node: Node) -> _Found | None:
    """Zeros beside axes of size 1, which a reshape then joins to the axes before them."""
    pads, shape = node.argument(1, "pad"), node.args[0].shape
    if node.argument(2, "mode", "constant") != "constant" or node.argument(3, "value") not in (None, 0):
        return None
    sides = [(-1 - i, sum(pads[2 * i : 2 * i + 2])) for i in range(len(pads) // 2)]
    factor = tuple(1 + more for axis, more in reversed(sides) if shape[axis] == 1 and more > 0)
    return ("zeros", factor, []) if factor and len(shape) - len(factor) > 2 else None


def _setitem(node: Node) -> _Found | None:
    """A map put at every few pixels of another: of zeros, as the others are not known to be set."""
    value: Any = node.args[-1]
    rank = len(node.args[0].shape)
    if not isinstance(value, Ref) or value.node is None or rank < 3:
        return None
    steps = {axis + rank: step for axis, step, _ in strided_slices(node)}
    return "zeros", tuple(float(steps.get(i, 1)) for i in range(2, rank)), []


def _covered(node: Node, tape: Tape) -> bool:
    """Whether what is put in at steps, now and right before and after, leaves no pixel out; True but for the first."""
    first = node.args[0].node
    if first is not None and tape.nodes[first].op == "__setitem__":
        return True
    phases, whole = set(), math.prod(step for _, step, _ in strided_slices(node))
    while node.op == "__setitem__":
        phases.add(tuple(start for *_, start in strided_slices(node)))
        later = [tape.nodes[i] for i in node.users if tape.nodes[i].op == "__setitem__"]
        if not later:
            break
        node = later[0]
    return len(phases) == whole


def _index(node: Node) -> _Found | None:
    """Positions that take each pixel several times over."""
    rank, times = len(node.args[0].shape), {}
    for axis, positions in node.facts.get("positions", ()):
        if all(b - a in (0, 1) for a, b in pairwise(positions)) and len(positions) > len(set(positions)):
            times[axis + rank] = len(positions) / len(set(positions))
    factor = tuple(times.get(i, 1.0) for i in range(2, rank))
    return ("nearest", factor, [filters.box([max(1, round(f)) for f in factor])]) if times and rank > 2 else None


_READERS: dict[str, Callable[[Node], _Found | None]] = {
    "interpolate": _interpolate,
    "repeat_interleave": _repeat,
    "pad": _pad,
    "__setitem__": _setitem,
    **dict.fromkeys(("__getitem__", "index_select"), _index),
    **{f"conv_transpose{r}d": _conv_transpose for r in (1, 2, 3)},
    **{f"max_unpool{r}d": _max_unpool for r in (1, 2, 3)},
}


def _filters_after(node: Node, tape: Tape) -> list[filters.Filter]:
    """The filters that the result of a node alone goes through at stride 1 right after it."""
    found: list[filters.Filter] = []
    while len(node.users) == 1:
        node = tape.nodes[node.users[0]]
        if not is_handed_on(node):
            mine = read_filters(node, tape)
            if not mine or node.op.startswith("max"):
                break
            found += mine
    return found


def find_upsampling(tape: Tape) -> list[Upsampling]:
    """The places of a tape where a map becomes larger by zeros or copies, in the order in which they run."""
    places = []
    for node in tape.nodes:
        reader = _READERS.get(node.op)
        read: Any = reader(node) if reader and node.args and isinstance(node.args[0], Ref) else None
        if read is None or not any(f > 1 for f in read[1]):
            continue
        kind, factor, own = read
        if node.op == "__setitem__" and _covered(node, tape):
            continue
        if node.op == "pad" and not any("shape" in tape.nodes[i].op or tape.nodes[i].op == "view" for i in node.users):
            continue  # a border of an axis of one pixel
        verdict = filters.judge([*own, *_filters_after(node, tape)], factor, range(-len(factor), 0))
        places.append(Upsampling(node.call.path or "(model)", kind, node.source, factor, verdict))
    return places
