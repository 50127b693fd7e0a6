"""Where a model samples: read off a tape, by what runs and not by the names of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from ..geometry import binomial
from . import filters
from .blurs import MixedAverage
from .repaired import is_repaired
from .tape import Node, Ref, Tape
from .views import inner_parts, split_axes, splits_before

TRANSPARENT = {  # these hand a map on, pixel by pixel
    "pad", "contiguous", "to", "type", "float", "half", "dropout", "dropout2d", "clone", "detach", "permute",
    "movedim", "transpose",
}  # fmt: skip
RESHAPES = frozenset(("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"))
UNREPAIRED = frozenset(("index", "as_strided", "grid_sample", "fractional_pool", "reduce"))  # found, but left alone
_SCALES = frozenset(("mul", "__mul__", "__rmul__", "div", "truediv", "__truediv__"))


@dataclass(eq=False)
class Site:
    """One place where a model samples a map.

    Attributes:
        name: the module's path, which ``#2`` and so on tell apart where a module samples in several places. A blur that
            `aablur.antialias` put in has the name that its site had before.
        path: of the module whose forward samples; "" is the model itself.
        kind: "conv", "max_pool", "avg_pool", "lp_pool", "adaptive_pool", "slice", "space_to_depth", "unfold",
            "interpolate", "blur_pool", or one of `UNREPAIRED`: "index" (index_select, gather, a tensor or list of
            positions), "as_strided", "grid_sample", "fractional_pool", "reduce" (a mean, maximum or entry of split
            axes).
        source: file and line.
        stride: one an axis that is sampled. A fraction for interpolations.
        axes: the axes of the map that are sampled, counted from its end: (-2, -1) for the height and width of NCHW.
        map_size, out_size: along those axes, of the map that is sampled and of the result.
        channels: of the sampled map.
        filter: what keeps it from aliasing: "blur" (a low-pass filter), "average" (a box), "weak" (a filter too short
            for the stride), or None; see `filters.judge`.
        nodes: the tape's nodes that it stands for; the first takes the map.
        aliasing, equivariance: what `aablur.audit` measured; None where nothing was.
    """

    name: str
    path: str
    kind: str
    source: str
    stride: tuple[float, ...]
    axes: tuple[int, ...]
    map_size: tuple[int, ...]
    out_size: tuple[int, ...]
    channels: int
    filter: str | None
    nodes: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()  # of slices: the first pixel that is kept, along each axis
    gives_a_map: bool = True  # its output has the axes of its input
    unsplit: tuple[int, ...] = ()  # of "reduce": the shape of the map before its axes were split
    aliasing: float | None = None
    equivariance: float | None = None
    node: Node = field(default=None, repr=False)  # type: ignore - the first of `nodes`
    last: Node = field(default=None, repr=False)  # type: ignore

    @property
    def end(self) -> Node:
        """The node that puts out what it sampled; of slices, the first."""
        return self.node if self.starts else self.last

    @property
    def filtered(self) -> bool:
        return self.filter is not None

    @property
    def patches(self) -> bool:
        """Whether it cuts the map into patches that do not overlap: a patchify stem, a PatchMerging."""
        return self.kind in ("space_to_depth", "unfold") or (self.kind == "conv" and self.kernel == self.stride)


def per_axis(value: Any, rank: int) -> tuple[int, ...]:
    value = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else (value,)
    return tuple(int(v) for v in (value * rank if len(value) == 1 else value))


def rank_of(op: str) -> int:
    return int(next(c for c in op if c.isdigit()))


# ---- one reader a kind: (node, tape) -> what is known of the site, or None --------------------------------


def _window(node: Node, stride_at: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    rank = rank_of(node.op)
    kernel = per_axis(node.argument(1, "kernel_size"), rank)
    stride = node.argument(stride_at, "stride")
    return rank, kernel, kernel if stride is None or stride == [] else per_axis(stride, rank)


def _conv(node: Node, tape: Tape) -> dict[str, Any] | None:
    rank = rank_of(node.op)
    weight = node.facts["weight"]
    stride, dilation = (per_axis(node.argument(i, n, 1), rank) for i, n in ((3, "stride"), (5, "dilation")))
    groups, channels = node.argument(6, "groups", 1), node.args[0].shape[-rank - 1]
    blur = filters.of_convolution(weight, groups, channels, dilation)
    is_blur = blur is not None and filters.judge([blur], stride, range(-rank, 0)) is not None
    return {
        "kind": "blur_pool" if is_blur else "conv",
        "stride": stride,
        "kernel": tuple(weight.shape[2:]),
        "filters": [blur] if is_blur else [],
    }


def _max_pool(node: Node, tape: Tape) -> dict[str, Any] | None:
    _, kernel, stride = _window(node, 2)
    return {"kind": "max_pool", "stride": stride, "kernel": kernel}


def _avg_pool(node: Node, tape: Tape) -> dict[str, Any] | None:
    _, kernel, stride = _window(node, 2)
    if all(n == 1 for n in node.shape[-len(kernel) :]) and kernel == node.args[0].shape[-len(kernel) :]:
        return None  # the whole map to one value
    return {"kind": "avg_pool", "stride": stride, "kernel": kernel, "filters": [filters.box(kernel)]}


def _lp_pool(node: Node, tape: Tape) -> dict[str, Any] | None:
    rank = rank_of(node.op)
    kernel = per_axis(node.argument(2, "kernel_size"), rank)
    stride = node.argument(3, "stride")
    return {
        "kind": "lp_pool",
        "stride": kernel if stride is None else per_axis(stride, rank),
        "kernel": kernel,
        "filter": "average",
    }


def _adaptive_kind(node: Node, rank: int, kind: str) -> dict[str, Any]:
    """Of an op that takes a map to another size."""
    sizes = zip(node.args[0].shape[-rank:], node.shape[-rank:], strict=True)
    return {"kind": kind, "stride": tuple(n / m if 1 < m < n else 1 for n, m in sizes)}


def _adaptive_pool(node: Node, tape: Tape) -> dict[str, Any] | None:
    found = _adaptive_kind(node, rank_of(node.op), "adaptive_pool")
    return found | {"filter": "average" if "avg" in node.op else None}


def _interpolate(node: Node, tape: Tape) -> dict[str, Any] | None:
    mode = node.argument(3, "mode", "nearest")
    smooth = node.argument(6, "antialias", False)
    found = _adaptive_kind(node, len(node.shape) - 2, "interpolate")
    return found | {"filter": "blur" if smooth else "average" if mode == "area" else None}


def as_taps(taps: Any, rank: int) -> tuple[Any, ...]:
    """One entry an axis."""
    return tuple(taps) if isinstance(taps, (tuple, list)) else (taps,) * rank


def _blur(node: Node, tape: Tape) -> dict[str, Any] | None:
    rank = rank_of(node.op)
    taps = as_taps(node.kwargs["taps"], rank)
    values = as_taps(node.facts["taps"], rank)
    blur = filters.of_taps([torch.tensor(binomial(t)) if isinstance(t, int) else t for t in values])
    return {
        "kind": "blur_pool",
        "stride": per_axis(node.kwargs["stride"], rank),
        "kernel": tuple(t.shape[-1] if isinstance(t, Ref) else t for t in taps),
        "filters": [] if blur is None else [blur],
    }


def _pixel_unshuffle(node: Node, tape: Tape) -> dict[str, Any] | None:
    r = node.argument(1, "downscale_factor")
    return {"kind": "space_to_depth", "stride": (r, r), "kernel": (r, r)}


def _unfold(node: Node, tape: Tape) -> dict[str, Any] | None:
    if len(node.args) == 4:  # Tensor.unfold(dimension, size, step): one axis
        axis, size, step = node.args[1:]
        axis = axis - len(node.args[0].shape) if axis >= 0 else axis
        if axis <= 1 - len(node.args[0].shape):
            return None  # pictures or channels
        return {"kind": "unfold", "stride": (step,), "kernel": (size,), "axes": (axis,)}
    stride = per_axis(node.argument(4, "stride", 1), 2)
    return {"kind": "unfold", "stride": stride, "kernel": per_axis(node.argument(1, "kernel_size"), 2)}


def strided_slices(node: Node) -> list[tuple[int, int, int]]:
    """(axis from the end, step, start) of the slices with steps of an index."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if any(isinstance(i, Ref) and len(i.shape) > 1 for i in index):
        return []  # a mask may stand for several axes
    rank = len(node.args[0].shape)
    used = sum(i is not None and i is not Ellipsis for i in index)
    axis, found = 0, []
    for i in index:
        if i is Ellipsis:
            axis += rank - used
        elif i is not None:
            if isinstance(i, slice) and isinstance(i.step, int) and i.step > 1:
                start = i.indices(node.args[0].shape[axis])[0]
                found.append((axis - rank, i.step, start))
            axis += 1
    return [(a, s, b) for a, s, b in found if a > -rank]  # a batch has no neighbours


def _getitem(node: Node, tape: Tape) -> dict[str, Any] | None:
    if not isinstance(node.args[0], Ref) or not (mine := strided_slices(node)) or len(node.args[0].shape) < 3:
        return None
    axes, stride, _ = zip(*mine, strict=True)
    siblings = [node]
    if (source := node.args[0].node) is not None:
        users = [tape.nodes[i] for i in tape.nodes[source].users if tape.nodes[i].op == "__getitem__"]
        siblings = [
            n for n in users if n.call is node.call and [s[:2] for s in strided_slices(n)] == [s[:2] for s in mine]
        ]
    phases = {tuple(s[2] for s in strided_slices(n)) for n in siblings}
    whole = len(phases) == math.prod(stride)
    if len(axes) == 1 and (whole or axes[0] == 1 - len(node.args[0].shape)):
        return None  # pairs of channels, as rotary embeddings take them, or every other channel
    if whole and node is not siblings[0]:
        return None
    return {
        "kind": "space_to_depth" if whole else "slice",
        "stride": stride,
        "axes": axes,
        "starts": tuple(s[2] for s in mine),
        "nodes": tuple(n.index for n in siblings) if whole else (node.index,),
        "kernel": stride if whole else (),
    }


def _reshape(node: Node, tape: Tape) -> dict[str, Any] | None:
    found = split_axes(node, tape)
    if found is None:
        return None
    axes, stride, nodes = found
    return {"kind": "space_to_depth", "stride": stride, "axes": axes, "nodes": nodes, "kernel": stride}


def _fractional_pool(node: Node, tape: Tape) -> dict[str, Any] | None:
    return _adaptive_kind(node, rank_of(node.op), "fractional_pool")


def _index(node: Node, tape: Tape) -> dict[str, Any] | None:
    """Positions in a tensor: steps of one size, or fewer positions than pixels, in order."""
    shape, axes, stride = node.args[0].shape, [], []
    for axis, positions in node.facts.get("positions", ()):
        steps = {b - a for a, b in pairwise(positions)}
        if len(shape) < 3 or axis <= 1 - len(shape) or not steps or min(steps) < 1:
            continue  # pictures or channels; a shuffle, a table
        step = steps.pop() if len(steps) == 1 else (positions[-1] - positions[0]) / (len(positions) - 1)
        if step > 1:
            axes.append(axis)
            stride.append(step)
    return {"kind": "index", "stride": tuple(stride), "axes": tuple(axes)} if axes else None


def _as_strided(node: Node, tape: Tape) -> dict[str, Any] | None:
    shape, had, made = node.args[0].shape, node.facts["strides"], node.argument(2, "stride")
    rank = len(shape)
    if rank < 3 or len(made) < rank:
        return None
    steps = {a: made[a + rank] / had[a] for a in range(2 - rank, 0) if had[a] and node.shape[a + rank] > 1}
    found = {
        a: int(s) for a, s in steps.items() if s > 1 and s == int(s) and s * node.shape[a + rank] <= shape[a] + s - 1
    }
    return {"kind": "as_strided", "stride": tuple(found.values()), "axes": tuple(found)} if found else None


def _grid_sample(node: Node, tape: Tape) -> dict[str, Any] | None:
    """By the distance of the points in pixels, whatever the sizes."""
    return {"kind": "grid_sample", "stride": tuple(s if s > 1.01 else 1 for s in node.facts["distances"])}


_MEANS = ("mean", "sum", "nanmean", "nansum")
_NORMS = ("norm", "linalg_vector_norm", "vector_norm")
_REDUCTIONS = (
    *_MEANS, *_NORMS, "amax", "amin", "max", "min", "aminmax", "median", "nanmedian", "mode", "quantile", "nanquantile",
    "prod", "std", "var", "logsumexp", "any", "all",
)  # fmt: skip


def _reduce(node: Node, tape: Tape) -> dict[str, Any] | None:
    """A mean or maximum over the inner parts of axes that views have split, or one entry of each part."""
    views, entries = splits_before(node, tape), _entries(node)
    dims = list(entries) if node.op in ("select", "__getitem__") else _dims(node)
    if not views or not dims or not (split := inner_parts(views, dims)):
        return None
    axes, stride = zip(*split.items(), strict=True)
    if entries:
        users = [tape.nodes[i] for i in views[-1].users]
        siblings = [n for n in users if _entries(n).keys() == entries.keys()]
        whole = len({tuple(_entries(n).values()) for n in siblings}) == math.prod(stride)
        if whole and (len(axes) == 1 or node is not siblings[0]):
            return None  # pairs, as rotary embeddings take them; one site for all phases
    found: dict[str, Any] = {"kind": "reduce", "stride": stride, "axes": axes, "unsplit": views[0].args[0].shape}
    if node.op in _NORMS:
        return found | {"filter": "average"}  # as an lp pool
    return found | {"filters": [filters.box(stride)] if node.op in _MEANS else []}


def _dims(node: Node) -> list[int]:
    """The axes over which a node reduces."""
    dims = node.argument(2 if node.op in (*_NORMS, "quantile", "nanquantile") else 1, "dim", node.kwargs.get("axis"))
    if dims is None or isinstance(dims, Ref):
        return []
    return [dims] if isinstance(dims, int) else list(dims)


def _entries(node: Node) -> dict[int, int]:
    """The axes of which a node keeps one entry, and which."""
    rank = len(node.args[0].shape) if node.args and isinstance(node.args[0], Ref) else 0
    if node.op == "select":
        return {node.argument(1, "dim") % rank: node.argument(2, "index")}
    if node.op != "__getitem__" or not rank:
        return {}
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    used = sum(i is not None and i is not Ellipsis for i in index)
    axis, found = 0, {}
    for i in index:
        if type(i) is int:
            found[axis] = i % node.args[0].shape[axis]
        axis += rank - used if i is Ellipsis else i is not None
    return found


_READERS: dict[str, Callable[[Node, Tape], dict[str, Any] | None]] = {
    "pixel_unshuffle": _pixel_unshuffle,
    "unfold": _unfold,
    "interpolate": _interpolate,
    "__getitem__": lambda node, tape: _getitem(node, tape) or _index(node, tape) or _reduce(node, tape),
    **dict.fromkeys(("index_select", "gather", "take_along_dim"), _index),
    "select": _reduce,
    "as_strided": _as_strided,
    **dict.fromkeys(("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), _grid_sample),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("reshape", "view", "unflatten"), _reshape),
}
for _r in (1, 2, 3):
    _READERS |= {f"blur_pool{_r}d": _blur, f"max_blur_pool{_r}d": _blur}
    _READERS |= {f"conv{_r}d": _conv, f"lp_pool{_r}d": _lp_pool, f"avg_pool{_r}d": _avg_pool}
    _READERS |= {f"max_pool{_r}d": _max_pool, f"max_pool{_r}d_with_indices": _max_pool}
    _READERS |= {f"adaptive_{m}_pool{_r}d": _adaptive_pool for m in ("avg", "max")}
    _READERS[f"adaptive_max_pool{_r}d_with_indices"] = _adaptive_pool
    _READERS |= dict.fromkeys((f"fractional_max_pool{_r}d", f"fractional_max_pool{_r}d_with_indices"), _fractional_pool)


def _read(node: Node, tape: Tape) -> dict[str, Any] | None:
    reader = _READERS.get(node.op)
    if reader is None or not node.args or not isinstance(node.args[0], Ref):
        return None
    return reader(node, tape)


def filters_before(node: Node, tape: Tape) -> list[filters.Filter]:
    """The filters that the map of a node went through at stride 1 right before it, one after the other."""
    found: list[filters.Filter] = []
    shape: tuple[int, ...] | None = None  # of the map after reshapes, which must leave the filtered axes as they are
    while (source := node.args[0].node if node.args and isinstance(node.args[0], Ref) else None) is not None:
        node = tape.nodes[source]
        if is_handed_on(node):
            shape = shape or (node.shape if node.op in RESHAPES else None)
            continue
        mine = read_filters(node, tape)
        rank = len(mine[0].power) if mine else 0
        if not mine or (shape and node.shape[-rank:] not in (shape[-rank:], shape[-rank - 1 : -1])):
            break
        found += mine
        if node.op.startswith("max"):
            break
    return found


def is_handed_on(node: Node) -> bool:
    """Whether a node hands a map on pixel by pixel: filters before and after it are one after the other."""
    return node.op in TRANSPARENT | RESHAPES or (node.op in _SCALES and len(node.inputs) == 1) or _crops(node)


def read_filters(node: Node, tape: Tape) -> list[filters.Filter]:
    """What a node at stride 1 filters."""
    read = _read(node, tape) if node.op.startswith(("conv", "avg_pool", "blur_pool", "max_blur_pool")) else None
    return read.get("filters", []) if read and all(s == 1 for s in read["stride"]) else []


def _crops(node: Node) -> bool:
    """Whether a node takes a window of a map, all pixels of it."""
    if node.op != "__getitem__" or not isinstance(node.args[0], Ref):
        return node.op == "narrow"
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return all(i is Ellipsis or (isinstance(i, slice) and i.step in (None, 1)) for i in index)


def _verdict(
    node: Node, tape: Tape, found: dict[str, Any], axes: tuple[int, ...], stride: tuple[float, ...]
) -> str | None:
    """What keeps a map that is sampled from aliasing: its own filter, and those before it."""
    if (declared := found.get("filter")) is not None:
        return declared
    mine = found.get("filters", [])
    if not (mine and node.op.startswith("max")):
        mine = mine + filters_before(node, tape)
    # a filter's axes are its last; of a map with its channels last they lie one before
    shift = 1 if (-1 not in axes and len(axes) > 1) or any(-a > len(f.power) for f in mine for a in axes) else 0
    return filters.judge(mine, stride, [a + shift for a in axes])


def find_sites(tape: Tape, every: bool = False) -> list[Site]:
    """The places of a tape where a map is sampled, in the order in which they run.

    Counted are strided convolutions, max, average, lp and adaptive pools, strided slices, space-to-depth (slices of
    every phase, reshapes, pixel_unshuffle, unfold), interpolations to fewer pixels, and blur pools. A pool of a whole
    map to one value is none, nor is one whose output has the size of its input.

    Args:
        every: also those for which there is no repair: `UNREPAIRED`, and blur pools that are too weak.
    """
    sites: list[Site] = []
    owners = {
        f"{call.path}.{part}".lstrip("."): call.path
        for call in tape.calls
        if is_repaired(call.module)
        for part in vars(call.module)["_repair"]["blurs"]
    }
    for node, found in _sampling(tape):
        axes = found.get("axes") or tuple(range(-len(found["stride"]), 0))
        shape = found.get("unsplit") or _unpadded(node, tape)
        last = tape.nodes[found.get("nodes", (node.index,))[-1]]
        stride = found["stride"]
        kept = [i for i, s in enumerate(stride) if s > 1]
        if found["kind"] != "conv":  # a kernel is compared with the stride along all axes
            axes, stride = tuple(axes[i] for i in kept), tuple(stride[i] for i in kept)
        first = axes[0] if axes[-1] == -1 else axes[-1]
        channels = shape[first - 1] if axes[-1] == -1 else shape[-1]
        size = tuple(shape[a] for a in axes)
        out = tuple(last.shape[a] for a in axes) if last.op == node.op else ()
        if len(out) != len(axes) or found["kind"] in ("space_to_depth", "unfold"):
            out = tuple(int(n // s) for n, s in zip(size, stride, strict=True))
        site = Site(
            name=_named(node.call.path, owners),
            path=node.call.path,
            kind=found["kind"],
            source=node.source,
            stride=stride,
            axes=axes,
            map_size=size,
            out_size=out,
            channels=channels,
            filter=_verdict(node, tape, found, axes, stride),
            nodes=found.get("nodes", (node.index,)),
            kernel=tuple(found.get("kernel", ())),
            starts=found.get("starts", ()),
            unsplit=found.get("unsplit", ()),
            node=node,
            last=last,
            gives_a_map=len(last.shape) == len(shape)
            and all(last.shape[a] == n for a, n in zip(axes, out, strict=True)),
        )
        sites.append(site)
    kept = [s for s in _numbered(sites) if every or s.kind not in UNREPAIRED]
    return [s for s in kept if every or s.kind != "blur_pool" or s.filter == "blur"]


def _unpadded(node: Node, tape: Tape) -> tuple[int, ...]:
    """The shape of the map that a node takes, before a padding of its own."""
    ref = node.args[0]
    while ref.node is not None and tape.nodes[ref.node].op == "pad" and isinstance(tape.nodes[ref.node].args[0], Ref):
        ref = tape.nodes[ref.node].args[0]
    return ref.shape


def _sampling(tape: Tape) -> Iterator[tuple[Node, dict[str, Any]]]:
    for node in tape.nodes:
        found = _read(node, tape)
        if found is not None and any(s > 1 for s in found["stride"]) and not _mixed_in(node):
            yield node, found


def _mixed_in(node: Node) -> bool:
    """Whether it is the blur that is mixed with an average pool: that, the weaker filter, stands for both."""
    call = node.call.parent
    while call is not None and not isinstance(call.module, MixedAverage):
        call = call.parent
    return call is not None


def _named(path: str, owners: dict[str, str]) -> str:
    """The path of a module; of a part of a blur that a repair put in, that of the module which it was put into."""
    parts = path.split(".")
    whole = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
    return next((owners[name] for name in whole if name in owners), path)


def _numbered(sites: list[Site]) -> list[Site]:
    seen: dict[str, int] = {}
    for site in sites:
        name = site.name
        seen[name] = seen.get(name, 0) + 1
        site.name = (name or "(model)") + (f"#{seen[name]}" if seen[name] > 1 else "")
    return sites
