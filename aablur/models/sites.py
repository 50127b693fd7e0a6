"""Where a model samples: read off a tape, by what runs and not by the names of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .tape import Node, Ref, Tape
from .views import split_axes

TRANSPARENT = {  # these hand a map on, pixel by pixel
    "pad", "contiguous", "to", "type", "float", "half", "dropout", "dropout2d", "clone", "detach", "permute",
    "movedim", "transpose",
}  # fmt: skip


VIEWS = {"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"}  # these do where they keep its axes


@dataclass(eq=False)
class Site:
    """One place where a model samples a map.

    Attributes:
        name: the module's path, which ``#2`` and so on tell apart where a module samples in several places.
        path: of the module whose forward samples; "" is the model itself.
        kind: "conv", "max_pool", "avg_pool", "lp_pool", "adaptive_pool", "slice", "space_to_depth", "unfold",
            "interpolate" or "blur_pool".
        source: file and line.
        stride: one an axis that is sampled. A fraction for interpolations.
        axes: the axes of the map that are sampled, counted from its end: (-2, -1) for the height and width of NCHW.
        map_size, out_size: along those axes, of the map that is sampled and of the result.
        channels: of the sampled map.
        filter: what keeps it from aliasing: "blur" (a low-pass filter), "average" (a box), or None.
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


def is_low_pass(weight: Tensor, groups: int, channels: int, stride: tuple[float, ...]) -> bool:
    """Whether a convolution is a blur: one positive filter a channel, that damps what the stride would fold.

    The mean power of its response above the new Nyquist limit (of the frequencies along each axis on its own, the
    others at zero) must be at most 0.3 of that at frequency zero; Rect-2 has 0.18, a single tap 1.
    """
    if weight.is_meta or weight.shape[1] != 1 or groups != channels or weight.shape[0] != channels:
        return False
    if bool((weight < 0).any()):
        return False
    filters = weight.detach().double().flatten(0, 1)
    for axis, s in zip(range(-len(stride), 0), stride, strict=True):
        others = [a for a in range(1, filters.ndim) if a - filters.ndim != axis]
        profile = filters.sum(others) if others else filters
        power = torch.fft.rfft(profile, 256).abs().square()
        damped = power[:, math.floor(256 / (2 * max(s, 2))) + 1 :].mean(1)
        if bool((power[:, 0] == 0).any()) or bool((damped > 0.3 * power[:, 0]).any()):
            return False
    return True


# ---- one reader a kind: (node, tape) -> what is known of the site, or None --------------------------------


def _window(node: Node, stride_at: int) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    rank = rank_of(node.op)
    kernel = per_axis(node.argument(1, "kernel_size"), rank)
    stride = node.argument(stride_at, "stride")
    return rank, kernel, kernel if stride is None or stride == [] else per_axis(stride, rank)


def _conv(node: Node, tape: Tape) -> dict[str, Any] | None:
    rank = rank_of(node.op)
    weight = node.facts["weight"]
    stride = per_axis(node.argument(3, "stride", 1), rank)
    groups, channels = node.argument(6, "groups", 1), node.args[0].shape[-rank - 1]
    blur = is_low_pass(weight, groups, channels, stride)
    return {
        "kind": "blur_pool" if blur else "conv",
        "stride": stride,
        "kernel": tuple(weight.shape[2:]),
        "filter": "blur" if blur else None,
    }


def _max_pool(node: Node, tape: Tape) -> dict[str, Any] | None:
    _, kernel, stride = _window(node, 2)
    return {"kind": "max_pool", "stride": stride, "kernel": kernel}


def _avg_pool(node: Node, tape: Tape) -> dict[str, Any] | None:
    _, kernel, stride = _window(node, 2)
    if all(n == 1 for n in node.shape[-len(kernel) :]) and kernel == node.args[0].shape[-len(kernel) :]:
        return None  # the whole map to one value
    return {"kind": "avg_pool", "stride": stride, "kernel": kernel, "filter": "average"}


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


def _adaptive_pool(node: Node, tape: Tape) -> dict[str, Any] | None:
    rank = rank_of(node.op)
    sizes = zip(node.args[0].shape[-rank:], node.shape[-rank:], strict=True)
    stride = tuple(n / m if 1 < m < n else 1 for n, m in sizes)
    return {"kind": "adaptive_pool", "stride": stride, "filter": "average" if "avg" in node.op else None}


def _interpolate(node: Node, tape: Tape) -> dict[str, Any] | None:
    rank = len(node.shape) - 2
    sizes = zip(node.args[0].shape[-rank:], node.shape[-rank:], strict=True)
    stride = tuple(n / m if 1 < m < n else 1 for n, m in sizes)
    mode = node.argument(3, "mode", "nearest")
    smooth = node.argument(6, "antialias", False)
    return {
        "kind": "interpolate",
        "stride": stride,
        "filter": "blur" if smooth else "average" if mode == "area" else None,
    }


def as_taps(taps: Any, rank: int) -> tuple[Any, ...]:
    """One entry an axis."""
    return tuple(taps) if isinstance(taps, (tuple, list)) else (taps,) * rank


def _blur(node: Node, tape: Tape) -> dict[str, Any] | None:
    rank = rank_of(node.op)
    taps = as_taps(node.kwargs["taps"], rank)
    return {
        "kind": "blur_pool",
        "stride": per_axis(node.kwargs["stride"], rank),
        "kernel": tuple(t.shape[-1] if isinstance(t, Ref) else t for t in taps),
        "filter": "blur",
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


def _slices(node: Node) -> list[tuple[int, int, int]]:
    """(axis from the end, step, start) of the slices with steps of an index."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if any(isinstance(i, (Ref, list)) for i in index):
        return []
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
    if not isinstance(node.args[0], Ref) or not (mine := _slices(node)) or len(node.args[0].shape) < 3:
        return None
    axes, stride, _ = zip(*mine, strict=True)
    siblings = [node]
    if (source := node.args[0].node) is not None:
        users = [tape.nodes[i] for i in tape.nodes[source].users if tape.nodes[i].op == "__getitem__"]
        siblings = [n for n in users if n.call is node.call and [s[:2] for s in _slices(n)] == [s[:2] for s in mine]]
    phases = {tuple(s[2] for s in _slices(n)) for n in siblings}
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


_READERS: dict[str, Callable[[Node, Tape], dict[str, Any] | None]] = {
    "pixel_unshuffle": _pixel_unshuffle,
    "unfold": _unfold,
    "interpolate": _interpolate,
    "__getitem__": _getitem,
    **dict.fromkeys(("reshape", "view", "unflatten"), _reshape),
}
for _r in (1, 2, 3):
    _READERS |= {f"blur_pool{_r}d": _blur, f"max_blur_pool{_r}d": _blur}
    _READERS |= {f"conv{_r}d": _conv, f"lp_pool{_r}d": _lp_pool, f"avg_pool{_r}d": _avg_pool}
    _READERS |= {f"max_pool{_r}d": _max_pool, f"max_pool{_r}d_with_indices": _max_pool}
    _READERS |= {f"adaptive_{m}_pool{_r}d": _adaptive_pool for m in ("avg", "max")}
    _READERS[f"adaptive_max_pool{_r}d_with_indices"] = _adaptive_pool


def _read(node: Node, tape: Tape) -> dict[str, Any] | None:
    reader = _READERS.get(node.op)
    if reader is None or not node.args or not isinstance(node.args[0], Ref):
        return None
    return reader(node, tape)


def filter_before(node: Node, tape: Tape) -> str | None:
    """What filters the map that a node takes, at stride 1 right before it, however its axes are viewed between."""
    sizes = node.args[0].shape[-2:] if node.args and isinstance(node.args[0], Ref) else ()
    while (source := node.args[0].node if node.args and isinstance(node.args[0], Ref) else None) is not None:
        node = tape.nodes[source]
        if node.op.startswith(("conv", "avg_pool", "blur_pool", "max_blur_pool")):
            found = _read(node, tape)
            return None if found is None else found.get("filter")
        before = node.args[0].shape if node.args and isinstance(node.args[0], Ref) else ()
        at = _positions(sizes, node.shape)
        if node.op in VIEWS and at and _positions(sizes, before):
            continue
        crops = node.op == "__getitem__" and len(before) == len(node.shape) and not _slices(node)
        if node.op not in TRANSPARENT and not crops:
            return None
        if at and len(before) == len(node.shape) and node.op not in ("permute", "movedim", "transpose"):
            sizes = tuple(before[i] for i in at)  # of a pad or a crop
    return None


def _positions(sizes: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
    """The axes of a shape that have these sizes, in order; [] where it lacks one. The last ones, of several."""
    found, end = [], len(shape)
    for n in reversed(sizes):
        end = next((i for i in range(end - 1, -1, -1) if shape[i] == n), -1)
        if end < 0:
            return []
        found.insert(0, end)
    return found


def find_sites(tape: Tape) -> list[Site]:
    """Every place of a tape where a map is sampled, in the order in which they run.

    Counted are strided convolutions, max, average, lp and adaptive pools, strided slices, space-to-depth (slices of
    every phase, reshapes, pixel_unshuffle, unfold), interpolations to fewer pixels, and blur pools. A pool of a whole
    map to one value is none, nor is one whose output has the size of its input.
    """
    sites: list[Site] = []
    for node, found in _sampling(tape):
        axes = found.get("axes") or tuple(range(-len(found["stride"]), 0))
        shape = _unpadded(node, tape)
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
            name=node.call.path,
            path=node.call.path,
            kind=found["kind"],
            source=node.source,
            stride=stride,
            axes=axes,
            map_size=size,
            out_size=out,
            channels=channels,
            filter=found.get("filter") or filter_before(node, tape),
            nodes=found.get("nodes", (node.index,)),
            kernel=tuple(found.get("kernel", ())),
            starts=found.get("starts", ()),
            node=node,
            last=last,
            gives_a_map=len(last.shape) == len(shape)
            and all(last.shape[a] == n for a, n in zip(axes, out, strict=True)),
        )
        sites.append(site)
    return _numbered(sites)


def _unpadded(node: Node, tape: Tape) -> tuple[int, ...]:
    """The shape of the map that a node takes, before a padding of its own."""
    ref = node.args[0]
    while ref.node is not None and tape.nodes[ref.node].op == "pad" and isinstance(tape.nodes[ref.node].args[0], Ref):
        ref = tape.nodes[ref.node].args[0]
    return ref.shape


def _sampling(tape: Tape) -> Iterator[tuple[Node, dict[str, Any]]]:
    for node in tape.nodes:
        found = _read(node, tape)
        if found is not None and any(s > 1 for s in found["stride"]):
            yield node, found


def _numbered(sites: list[Site]) -> list[Site]:
    seen: dict[str, int] = {}
    for site in sites:
        seen[site.path] = seen.get(site.path, 0) + 1
        site.name = (site.path or "(model)") + (f"#{seen[site.path]}" if seen[site.path] > 1 else "")
    return sites
