"""``import aablur.distributed`` teaches every function and module of aablur to take DTensors.

A map may be sharded by batch, by channel, and along its spatial axes; the output is sharded alike. Batch and channel
need no communication. Along a spatial axis each rank

1. fetches from the others the rows that its own outputs read and it does not hold, by DTensor's rule of equal chunks
   and by the padding mode, whatever the sizes;
2. runs the op on them, with no more than these rows in memory;
3. in the backward, fetches the gradients of all outputs that read its rows, and sums them where they belong.

So no sum is split over ranks: each output and each gradient of the map is summed in one place and rounded once, as on
one device. The gradient of taps is a sum over ranks.

DDP and FSDP need none of this: their modules see plain tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from . import functional, ops, reference, sharding
from .geometry import Geometry
from .tiles import Interval, Share, Tile, chunks, exchange, length, shares


def _run(x: Any, taps: Tensor | None, geometry: Geometry, recompute: bool) -> Tensor:
    """`functional.run` of a DTensor: on local tensors, or by the rules of `sharding` in a compiled graph and on ranks
    that have no part in the mesh.
    """
    rank = len(geometry.axes)
    if torch.compiler.is_compiling():
        by_rules = not any(p.is_shard() and p.dim >= x.ndim - rank for p in x.placements)
    else:
        by_rules = x.device_mesh.get_coordinate() is None
    if by_rules:
        return functional.run_op(x, _on_mesh(taps, x), geometry, True)
    return _run_eagerly(x, taps, geometry, recompute)


@torch.compiler.disable(reason="ranks talk by their own plans, which a graph does not hold")
def _run_eagerly(x: Any, taps: Any, geometry: Geometry, recompute: bool) -> Tensor:
    cut_axes, mesh, rank = _check(x, taps, geometry), x.device_mesh, len(geometry.axes)
    size, out = x.shape[-rank:], [a.out_size(n) for a, n in zip(geometry.axes, x.shape[-rank:], strict=True)]
    kept = tuple(_kept(p, geometry.has_max) for p in x.placements)
    x = x if kept == x.placements else x.redistribute(placements=kept)
    if taps is not None:
        taps = _local_taps(_on_mesh(taps, x), x, rank)
    cuts = [
        _Cut(
            axis,
            shares(geometry.axes[axis], geometry.padding_mode, size[axis], mesh.size(mesh_dim)),
            mesh.get_local_rank(mesh_dim),
            mesh.get_group(mesh_dim),
        )
        for axis, mesh_dim in sorted(cut_axes.items())
    ]
    local = x.to_local(grad_placements=[Replicate() if isinstance(p, Partial) else p for p in kept])
    batched = local if x.ndim == rank + 2 else local.unsqueeze(0)
    y = _Pool.apply(batched, taps, _Plan(geometry, cuts, list(batched.shape[2:])), recompute)
    y = y if x.ndim == rank + 2 else y.squeeze(0)
    shape = torch.Size([*x.shape[:-rank], *out])
    channels_last = reference.prefers_channels_last(y, rank)
    stride = reference.in_layout(torch.empty(shape, device="meta"), rank, channels_last).stride()
    return DTensor.from_local(y, mesh, kept, run_check=False, shape=shape, stride=stride)


def _local_taps(taps: Any, x: Any, rank: int) -> Tensor:
    """The taps that this rank's channels need; their gradient is a partial sum wherever a rank has a part of x."""
    channels = Shard(x.ndim - rank - 1) if taps.shape[0] > 1 else None
    placements = [Shard(0) if p == channels else Replicate() for p in x.placements]
    gradients = [
        t if p == channels or p == Replicate() else Partial() for t, p in zip(placements, x.placements, strict=True)
    ]
    return taps.redistribute(placements=placements).to_local(grad_placements=gradients)


def _on_mesh(taps: Tensor | None, x: Any) -> Any:
    """Taps that are a plain tensor, the same on each rank, as a DTensor: its gradient is the sum over all ranks."""
    if taps is None or isinstance(taps, DTensor):
        return taps
    return DTensor.from_local(taps, x.device_mesh, [Replicate()] * x.device_mesh.ndim, run_check=False)


def _check(x: Any, taps: Tensor | None, geometry: Geometry) -> dict[int, int]:
    """The dimensions of the mesh that spatial axes are sharded over, by axis.

    Raises:
        ValueError: x or taps is placed in a way that is not served. No rank has talked to another yet.
    """
    op, mesh, rank = geometry.op, x.device_mesh, len(geometry.axes)
    if isinstance(taps, DTensor) and taps.device_mesh != mesh:
        raise ValueError(f"{op}: taps must be on the mesh of x, {mesh}, got {taps.device_mesh}")
    cut_axes: dict[int, int] = {}
    for mesh_dim, placement in enumerate(x.placements):
        if type(placement) not in (Replicate, Shard) and not isinstance(placement, Partial):
            raise ValueError(f"{op}: x must be placed by Shard, Replicate or Partial, got {x.placements}")
        axis = placement.dim - (x.ndim - rank) if isinstance(placement, Shard) else -1
        if axis >= 0 and cut_axes.setdefault(axis, mesh_dim) != mesh_dim:
            raise ValueError(
                f"{op}: x must be sharded along a spatial axis over one dimension of the mesh, got {x.placements}"
            )
    for axis, mesh_dim in cut_axes.items():
        size, count, me = x.shape[axis - rank], mesh.size(mesh_dim), mesh.get_local_rank(mesh_dim)
        held = x._local_tensor.shape[axis - rank]
        start, end = chunks(size, count)[me]
        if held != end - start:
            raise ValueError(
                f"{op}: x must be sharded as DTensor does it: shard {me} of {count} of an axis of {size} holds "
                f"{end - start}, got {held}"
            )
    return cut_axes


def _kept(placement: Any, has_max: bool) -> Any:
    """Partial sums go through the blur, which is linear; anything partial else is reduced first."""
    linear = type(placement) is Partial and placement.reduce_op == "sum" and not has_max
    return placement if linear or not isinstance(placement, Partial) else Replicate()


# ---- spatial axes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """A spatial axis that is sharded: which, over which ranks, and who has what of it."""

    axis: int
    shares: tuple[Share, ...]
    me: int
    group: dist.ProcessGroup

    @property
    def share(self) -> Share:
        return self.shares[self.me]


class _Plan:
    """An op on a map (batch, channels, spatial...) some of whose axes are cut."""

    def __init__(self, geometry: Geometry, cuts: list[_Cut], held: list[int]) -> None:
        """held: the spatial size of what this rank holds of the map."""
        self.geometry, self.cuts, self.rank, self.size = geometry, cuts, len(geometry.axes), held
        outs = {cut.axis: length(cut.share.outs) for cut in cuts}
        self.out = [outs[i] if i in outs else a.out_size(held[i]) for i, a in enumerate(geometry.axes)]

    def geometry_of(self, which: str) -> Geometry:
        """The op's on the tile: that of the whole map, padded otherwise."""
        tiles: list[tuple[int, Tile]] = [(cut.axis, getattr(cut.share, which)) for cut in self.cuts]
        return self.geometry.padded({axis: (tile.before, tile.after) for axis, tile in tiles})

    def is_empty(self, which: str) -> bool:
        return any(getattr(cut.share, which).count == 0 for cut in self.cuts)

    def tile_size(self, which: str) -> list[int]:
        size = list(self.size)
        for cut in self.cuts:
            size[cut.axis] = getattr(cut.share, which).size
        return size

    def fetch(self, x: Tensor, which: str) -> Tensor:
        """The tile of a map whose rows the ranks hold."""
        for cut in self.cuts:
            held, wanted = (tuple(s.rows for s in cut.shares), tuple(getattr(s, which).rows for s in cut.shares))
            x = _fetch(x, 2 + cut.axis, held, wanted, cut)
        return x

    def fetch_gradients(self, grad: Tensor) -> Tensor:
        """The gradient of all that the backward tile computes: 0 for what nobody wants of it."""
        for cut in self.cuts:
            dim, tile = 2 + cut.axis, cut.share.backward
            held, wanted = tuple(s.outs for s in cut.shares), tuple(s.backward.outs for s in cut.shares)
            grad = _fetch(grad, dim, held, wanted, cut)
            parts, filled = [], 0
            for part, place in zip(grad.split([length(o) for o in tile.outs], dim), tile.places, strict=True):
                if place > filled:
                    parts.append(grad.new_zeros(_with(grad.shape, dim, place - filled)))
                parts.append(part)
                filled = place + part.shape[dim]
            grad = torch.cat(parts, dim) if len(parts) > 1 else grad
        return grad

    def crop(self, wide: Tensor, outs: bool) -> Tensor:
        """What this rank holds, of the rows of its backward tile or of the outputs."""
        for cut in self.cuts:
            tile, (start, end) = cut.share.backward, cut.share.outs if outs else cut.share.rows
            place = 0 if start == end else tile.place_of_out(start) if outs else tile.place_of_row(start)
            wide = wide.narrow(2 + cut.axis, place, end - start)
        return wide


def _with(shape: Any, dim: int, size: int) -> list[int]:
    return [size if d == dim else n for d, n in enumerate(shape)]


def _fetch(
    x: Tensor, dim: int, held: tuple[Interval, ...], wanted: tuple[tuple[Interval, ...], ...], cut: _Cut
) -> Tensor:
    """The rows of dimension ``dim`` that this rank wants, dense, in the layout of x. Differentiable."""
    plan = exchange(held, wanted, cut.me)
    if not plan.anyone and plan.pieces == ((cut.me, 0, x.shape[dim]),):
        return x
    if 0 in _with(x.shape, dim, 1):
        return x.new_zeros(_with(x.shape, dim, sum(map(length, wanted[cut.me]))))
    channels_last = reference.prefers_channels_last(x, x.ndim - 2)
    received = x.narrow(dim, 0, 0).movedim(dim, 0)
    if plan.anyone:
        first = x.movedim(dim, 0)
        sent = torch.cat([first[:0], *(first[start:end] for start, end in plan.sends)]).contiguous()
        received = all_to_all_single_autograd(sent, list(plan.receive_counts), list(plan.send_counts), cut.group)
    received = received.movedim(0, dim)
    if channels_last:
        received = received.contiguous(memory_format=reference.channels_last_format(x.ndim - 2))
    parts = [(x if source == cut.me else received).narrow(dim, a, b - a) for source, a, b in plan.pieces]
    # A rank that receives nothing still has its part in the backward of the exchange.
    parts = parts if any(source != cut.me for source, _, _ in plan.pieces) else [received.narrow(dim, 0, 0), *parts]
    return reference.in_layout(torch.cat(parts, dim), x.ndim - 2, channels_last)


class _Pool(torch.autograd.Function):
    """The op on a map (batch, channels, spatial...) of which this rank holds a piece, in its formulas of `ops`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor | None, plan: _Plan, recompute: bool) -> Tensor:
        needs_x, needs_taps = ctx.needs_input_grad[:2]
        has_max = plan.geometry.has_max
        keeps_codes = has_max and needs_x and not recompute
        which = "backward" if keeps_codes else "forward"
        tile, codes = plan.fetch(x, which), None
        ctx.plan, ctx.recompute = plan, has_max and recompute
        if plan.is_empty(which):
            y = x.new_empty([*x.shape[:2], *plan.out])
        elif keeps_codes:
            wide, codes = ops.call("max_blur_pool_codes", tile, taps, *plan.geometry_of(which).op_args)
            y = reference.in_layout(plan.crop(wide, True), plan.rank, reference.prefers_channels_last(tile, plan.rank))
        else:
            y = ops.call("max_blur_pool" if has_max else "blur_pool", tile, taps, *plan.geometry_of(which).op_args)
        ctx.channels_last = reference.prefers_channels_last(tile, plan.rank)
        ctx.save_for_backward(x if needs_taps or ctx.recompute else None, codes, taps)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, codes, taps = ctx.saved_tensors
        plan: _Plan = ctx.plan
        grad_x = grad_taps = None
        if ctx.needs_input_grad[0]:
            grad_x = _grad_x(ctx, grad, x if ctx.recompute else None, codes, taps)
        if ctx.needs_input_grad[1]:
            grad_taps = _grad_taps(plan, grad, x, taps)
        return grad_x, grad_taps, None, None


def _grad_x(ctx: Any, grad: Tensor, x: Tensor | None, codes: Tensor | None, taps: Tensor | None) -> Tensor:
    plan: _Plan = ctx.plan
    wide = plan.fetch_gradients(grad)
    tile = None if x is None else plan.fetch(x, "backward")
    if plan.is_empty("backward"):
        return wide.new_zeros([*grad.shape[:2], *plan.size]) + wide.sum()
    size, args = plan.tile_size("backward"), plan.geometry_of("backward").op_args
    if plan.geometry.has_max:
        found = ops.call("max_blur_pool_backward", wide, tile, codes, taps, size, *args, ctx.channels_last)
    else:
        found = ops.call("blur_pool_backward", wide, taps, size, *args, ctx.channels_last)
    return reference.in_layout(plan.crop(found, False), plan.rank, ctx.channels_last)


def _grad_taps(plan: _Plan, grad: Tensor, x: Tensor, taps: Tensor) -> Tensor:
    tile = plan.fetch(x, "forward")
    if plan.is_empty("forward"):
        return torch.zeros_like(taps) + tile.narrow(0, 0, 0).sum()
    geometry = plan.geometry_of("forward")
    if geometry.has_max:
        tile = ops.call("max_blur_pool", tile, None, *geometry.max_args)
    return ops.call("blur_pool_backward_taps", grad, tile, taps, *geometry.blur_args)


sharding.register()
functional.runs[DTensor] = _run
