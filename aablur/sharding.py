"""DTensor's sharding rules of the six ops: what each may be given, and gives, on one dimension of a mesh.

Replicated; sharded by batch; sharded by channel, with taps a channel sharded alike, and shared ones replicated, so
that their gradient is a partial sum. The blur is linear in the map: of partial sums it makes partial sums; the max
is not. Anything else, a sharded height or width too, is first redistributed to one of these by DTensor itself.

Codes, (images, planes an image, bytes a plane), are sharded by batch along their first dimension, and by channel along
their second where each channel is a plane, of whole bytes. In channels_last an image is one plane whose channels share
bytes: the codes of a shard by channel are no slice of it. There the op is refused, since the redistributed map, too,
would be contiguous, and its codes others than promised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from . import reference
from .geometry import count_axes

_OPS = {  # what the tensors are that go in, and come out
    "blur_pool": (("map", "taps"), ("map",)),
    "blur_pool_backward": (("map", "taps"), ("map",)),
    "blur_pool_backward_taps": (("map", "map", "taps"), ("taps",)),
    "max_blur_pool": (("map", "taps"), ("map",)),
    "max_blur_pool_codes": (("map", "taps"), ("map", "codes")),
    "max_blur_pool_backward": (("map", "map", "codes", "taps"), ("map",)),
}
_LINEAR = ("blur_pool", "blur_pool_backward", "blur_pool_backward_taps")


def _rule(name: str) -> Callable[..., Any]:
    ins, outs = _OPS[name]
    schema = getattr(torch.ops.aablur, name).default._schema
    axes = [a.name for a in schema.arguments].index("axes")

    def rule(*args: Any) -> list[tuple[list[Any], list[Any]]]:
        """(placements of the outputs, placements of the arguments): every pair that the op allows."""
        tensors, rank = args[: len(ins)], count_axes(args[axes])
        shared_taps = tensors[-1] is None or tensors[-1].shape[0] == 1
        absent = [None] * (len(args) - len(ins))

        def pair(of_map: Any, of_taps: Any, of_codes: Any, of_taps_out: Any) -> tuple[list[Any], list[Any]]:
            given = {"map": of_map, "taps": of_taps, "codes": of_codes}
            placed = [None if t is None else given[role] for role, t in zip(ins, tensors, strict=True)]
            return [{**given, "taps": of_taps_out}[role] for role in outs], [*placed, *absent]

        pairs = [pair(Replicate(), Replicate(), Replicate(), Replicate())]
        if tensors[0].ndim == rank + 2:
            pairs.append(pair(Shard(0), Replicate(), Shard(0), Partial()))
        if _codes_mix_channels(name, args, rank):
            if name == "max_blur_pool_codes" and any(p not in (Replicate(), Shard(0)) for p in args[0].placements):
                raise ValueError(
                    f"{name}: x in channels_last must be replicated or sharded by batch, got {args[0].placements}; "
                    "without codes (recompute=True) it may be sharded by channel too"
                )
        else:
            taps = (Replicate(), Partial()) if shared_taps else (Shard(0), Shard(0))
            pairs.append(pair(Shard(tensors[0].ndim - rank - 1), taps[0], Shard(1), taps[1]))
        for i in (i for i, role in enumerate(ins) if role == "map" and name in _LINEAR):
            placed = [None if t is None else Partial() if j == i else Replicate() for j, t in enumerate(tensors)]
            pairs.append(([Partial()], [*placed, *absent]))
        return pairs

    return rule


def _codes_mix_channels(name: str, args: tuple[Any, ...], rank: int) -> bool:
    """Whether the op makes or reads codes of a channels_last map, whose channels share bytes."""
    if name == "max_blur_pool_codes":
        meta = args[0].tensor_meta
        x = torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device="meta")
        return reference.prefers_channels_last(x, rank)
    return name == "max_blur_pool_backward" and args[2] is not None and args[-1] and rank > 1


def register() -> None:
    """Tells DTensor these rules."""
    infos = DTensor._op_dispatcher.sharding_propagator.op_to_schema_info
    for name in _OPS:
        op = getattr(torch.ops.aablur, name).default
        register_sharding(op)(_rule(name))
        # register_sharding caches what a rule said by the arguments from the first int on. Ours are lists of ints:
        # without this a stride of 1 is given the output shape of the stride of 2 that came before.
        infos[op] = replace(infos[op], static_argnum=len(_OPS[name][0]))
