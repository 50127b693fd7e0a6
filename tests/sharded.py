"""A function of a sharded map held against the same of the whole, which each process has, by the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from tolerances import assert_close
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

import aablur
import aablur.distributed
from aablur.tiles import chunks

FUNCTIONS = {
    (rank, is_max): getattr(aablur, f"{'max_' * is_max}blur_pool{rank}d")
    for rank in (1, 2, 3)
    for is_max in (False, True)
}


def mesh_of(ndim: int) -> Any:
    world = dist.get_world_size()
    if ndim == 1:
        return init_device_mesh("cpu", (world,), mesh_dim_names=("all",))
    return init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("rows", "columns"))


def place(x: Tensor, mesh: Any, placements: list[Any]) -> Any:
    """x as a DTensor, without communication, its local tensors in the layout of x."""
    local, coordinate = x, mesh.get_coordinate()
    for d, p in enumerate(placements):
        if isinstance(p, Shard):
            start, end = chunks(local.shape[p.dim], mesh.size(d))[coordinate[d]]
            local = local.narrow(p.dim, start, end - start)
        elif isinstance(p, Partial):
            local = local / mesh.size(d)
    layout = torch.channels_last if x.ndim == 4 and not x.is_contiguous() else torch.contiguous_format
    local = local.clone(memory_format=layout)
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=x.shape, stride=x.stride())


def both_ways(f: Callable[..., Any], x: Any, taps: Any, grad: Any) -> tuple[Any, Any, Any]:
    """(output, gradient of x, gradient of taps or None)."""
    x = x.detach().requires_grad_()
    taps = taps.detach().requires_grad_() if isinstance(taps, Tensor) else taps
    y = f(x, taps)
    y.backward(grad(y) if callable(grad) else grad)
    return y.detach(), x.grad, taps.grad if isinstance(taps, Tensor) else None


def same_as_one(f: Callable[..., Any], x: Tensor, taps: Any, mesh: Any, placements: list[Any]) -> DTensor:
    """Compares f of x, sharded, with f of the whole: output, gradients, their placements; taps are plain tensors."""
    whole = f(x, taps)
    grad = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    expected = both_ways(f, x, taps, grad)
    reduced = [Replicate() if isinstance(p, Partial) else p for p in placements]
    y, *grads = both_ways(f, place(x, mesh, placements), taps, lambda _: place(grad, mesh, reduced))
    assert y.shape == whole.shape and y.dtype == whole.dtype
    assert tuple(grads[0].placements) == tuple(reduced), grads[0].placements
    for t in (y, grads[0]):
        assert_local(t)
    assert_close(y.full_tensor(), expected[0].double())
    assert_close(grads[0].full_tensor(), expected[1].double())
    if isinstance(taps, Tensor):
        (*_, magnitude) = both_ways(f, x.abs(), taps.abs(), grad.abs())  # of a sum whose terms may cancel
        assert_close(grads[1], expected[2].double(), magnitude=magnitude.double(), taps=True)
    return y


def assert_local(t: DTensor) -> None:
    """The local tensor has the shape that DTensor's rule of chunks gives it."""
    shape, coordinate = list(t.shape), t.device_mesh.get_coordinate()
    assert coordinate is not None
    for d, p in enumerate(t.placements):
        if isinstance(p, Shard):
            start, end = chunks(shape[p.dim], t.device_mesh.size(d))[coordinate[d]]
            shape[p.dim] = end - start
    local = t.to_local()
    assert list(local.shape) == shape, (local.shape, shape)


@contextmanager
def silent() -> Iterator[None]:
    """Nobody talks in here."""
    with CommDebugMode() as mode:
        yield
    assert mode.get_total_counts() == 0, mode.get_comm_counts()


def refused(f: Callable[[], Any], error: type[Exception], *words: str) -> None:
    with silent():
        try:
            f()
        except error as e:
            assert all(word in str(e) for word in words), str(e)
        else:
            raise AssertionError(f"{words} was not refused")
