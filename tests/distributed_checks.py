"""What `test_distributed` runs in each of 2 and of 4 processes: data parallel, and maps by batch and channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from case import arrange
from sharded import FUNCTIONS, both_ways, mesh_of, place, refused, same_as_one, silent
from tolerances import assert_close
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import aablur
import aablur.distributed
from aablur.geometry import Geometry

OPS = torch.ops.aablur


# ---- data parallel: plain tensors, nothing of ours -------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        aablur.nn.MaxBlurPool2d(2, 3, learnable=True), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        aablur.nn.BlurPool2d(4, learnable=True, channels=8), nn.Conv2d(8, 4, 1),
        aablur.nn.BlurPool2d(3, padding_mode="circular"), aablur.nn.MaxBlurPool2d(3, stride=1, recompute=True),
    )  # fmt: skip


def one_process() -> tuple[Tensor, dict[str, Tensor]]:
    model = network()
    x = torch.randn(8, 3, 21, 18, generator=torch.Generator().manual_seed(4))
    model(x).square().mean().backward()
    return x, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def my_part(x: Tensor) -> Tensor:
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def check_ddp() -> None:
    x, expected = one_process()
    model = nn.parallel.DistributedDataParallel(network())
    model(my_part(x)).square().mean().backward()
    for name, p in model.module.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-6)
    assert len(expected) == 10


def check_fsdp2() -> None:
    x, expected = one_process()
    model = network()
    for part in model:
        if next(part.parameters(), None) is not None:
            fully_shard(part, mesh=mesh_of(1))
    fully_shard(model, mesh=mesh_of(1))
    assert all(isinstance(p, DTensor) for p in model.parameters())
    model(my_part(x)).square().mean().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad.full_tensor(), expected[name], rtol=1e-4, atol=1e-6)


# ---- batch and channel -----------------------------------------------------------------------------------------------


def check_batch_and_channel() -> None:
    """No communication, but for the gradient of taps that a plain tensor holds: its sum."""
    mesh, turn = mesh_of(1), 0  # batch and channel, recomputed and not, take turns
    for rank, size in ((1, (11,)), (2, (9, 7)), (3, (5, 6, 7))):
        for batched in (True, False):
            shape = (8, 4, *size) if batched else (4, *size)
            for is_max in (False, True):
                function = FUNCTIONS[rank, is_max]
                for layout in ("contiguous", "channels_last")[: max(1, rank)]:
                    x = arrange(torch.randn(shape), layout if rank > 1 else "contiguous", rank)
                    for taps in (4, torch.rand(3), torch.rand(4, 5)):
                        turn += 1
                        dim, options = batched * (turn % 2), {"recompute": turn // 2 % 2 == 0} if is_max else {}

                        def f(x: Any, taps: Any, function: Any = function, options: Any = options) -> Any:
                            return function(x, taps=taps, **options)

                        with silent():
                            y = f(place(x, mesh, [Shard(dim)]).requires_grad_(), taps)
                            assert y.placements == (Shard(dim),)
                            if isinstance(taps, int):
                                y.backward(torch.ones_like(y))
                        same_as_one(f, x, taps, mesh, [Shard(dim)])


def check_partial_and_replicated() -> None:
    mesh = mesh_of(1)
    x = torch.randn(2, 4, 9, 7)
    for taps in (3, torch.rand(3), torch.rand(4, 3)):
        for function in (aablur.blur_pool2d, aablur.max_blur_pool2d):

            def f(x: Any, taps: Any, function: Any = function) -> Any:
                return function(x, taps=taps)

            assert same_as_one(f, x, taps, mesh, [Replicate()]).placements == (Replicate(),)
            y = same_as_one(f, x, taps, mesh, [Partial()])
            assert y.placements == ((Partial() if function is aablur.blur_pool2d else Replicate()),), y.placements
        # A mean is reduced before, a maximum can only be.
        local = torch.full((2, 4, 9, 7), float(dist.get_rank()))
        for kind, value in (("avg", (dist.get_world_size() - 1) / 2), ("max", dist.get_world_size() - 1.0)):
            y = aablur.blur_pool2d(DTensor.from_local(local, mesh, [Partial(kind)], run_check=False), taps)
            assert_close(y.full_tensor(), aablur.blur_pool2d(torch.full_like(local, value), taps).double())


def check_taps_that_are_dtensors() -> None:
    mesh = mesh_of(1)
    x, shared, own = torch.randn(8, 8, 9, 7), torch.rand(3), torch.rand(8, 3)
    for function in (aablur.blur_pool2d, aablur.max_blur_pool2d):
        for dim in (0, 1, 2, 3):
            for taps, placement in ((shared, Replicate()), (own, Replicate()), (own, Shard(0)), (shared, Partial())):

                def f(x: Any, taps: Any, function: Any = function) -> Any:
                    return function(x, taps=taps)

                grad = torch.randn(f(x, taps).shape)
                expected = both_ways(f, x, taps, grad)
                found = both_ways(
                    f, place(x, mesh, [Shard(dim)]), place(taps, mesh, [placement]),
                    lambda y, grad=grad: place(grad, mesh, list(y.placements)),
                )  # fmt: skip
                for a, e in zip(found, expected, strict=True):
                    assert_close(a.full_tensor(), e.double(), taps=a is found[2])


def check_two_meshes_of_batch_and_channel() -> None:
    mesh = mesh_of(2)
    for taps in (3, torch.rand(3), torch.rand(4, 3)):
        for placements in ([Shard(0), Shard(1)], [Shard(1), Replicate()], [Shard(0), Shard(0)], [Shard(1), Shard(2)]):
            for function in (aablur.blur_pool2d, aablur.max_blur_pool2d):
                x = torch.randn(8, 4, 9, 10)
                y = same_as_one(lambda x, t, f=function: f(x, taps=t), x, taps, mesh, placements)
                assert list(y.placements) == placements


def check_more_ranks_than_samples_or_channels() -> None:
    mesh, few = mesh_of(1), dist.get_world_size() - 1
    for dim, shape in ((0, (few, 4, 9, 7)), (1, (2, few, 9, 7)), (0, (few, 9, 7))):
        for taps in (3, torch.rand(3), torch.rand(shape[-3], 3)):
            for function in (aablur.blur_pool2d, aablur.max_blur_pool2d):
                y = same_as_one(lambda x, t, f=function: f(x, taps=t), torch.randn(shape), taps, mesh, [Shard(dim)])
                assert y.placements == (Shard(dim),)


def check_a_mesh_of_some_ranks() -> None:
    mesh = DeviceMesh("cpu", list(range(dist.get_world_size() - 1)))
    for dim in (0, 2):
        x = torch.randn(4, 4, 9, 7, requires_grad=True)
        sharded = distribute_tensor(x.detach(), mesh, [Shard(dim)]).requires_grad_()
        y = aablur.max_blur_pool2d(sharded)
        assert y.shape == (4, 4, 4, 3)
        y.sum().backward()
        if mesh.get_coordinate() is not None:
            assert y.placements == (Shard(dim),)
            assert_close(y.detach().full_tensor(), aablur.max_blur_pool2d(x).detach().double())


def check_a_layout_that_torch_tells_wrong() -> None:
    """torch's convolution of a channels_last DTensor says its result is contiguous, and distribute_tensor says of
    a contiguous copy that it is channels_last: the codes of the max must not believe it.
    """
    mesh = mesh_of(1)
    weight, x = torch.rand(6, 3, 3, 3), torch.randn(8, 3, 9, 8).contiguous(memory_format=torch.channels_last)

    def f(x: Any, taps: Any) -> Any:
        w = place(weight, mesh, [Replicate()]) if isinstance(x, DTensor) else weight
        return aablur.max_blur_pool2d(F.conv2d(x, w, padding=1), taps=taps)

    same_as_one(f, x, 3, mesh, [Shard(0)])
    same_as_one(f, x, torch.rand(6, 3), mesh, [Shard(0)])
    given = distribute_tensor(x, mesh, [Shard(0)]).requires_grad_()
    aablur.max_blur_pool2d(given).sum().backward()
    (expected,) = torch.autograd.grad(aablur.max_blur_pool2d(x.requires_grad_()).sum(), x)
    assert_close(given.grad.full_tensor(), expected.double())


# ---- the ops themselves ----------------------------------------------------------------------------------------------


def op_samples(layout: str) -> list[Any]:
    """(op, tensors, numbers): every op, its taps shared, one a channel or none, twice with other strides."""
    samples = []
    for stride in ([2, 1], [1, 2]):
        arguments: Any = ("blur_pool", [3, 2], stride, ((1, 1), (0, 1)), "reflect")
        blur, max_blur = Geometry(*arguments).op_args, Geometry(*arguments, [2, 3], [0, 1], [1, 1]).op_args
        x, last = arrange(torch.randn(8, 4, 6, 7), layout, 2), layout == "channels_last"
        for taps in (None, torch.rand(1, 5), torch.rand(4, 5)):
            y, (m, codes) = OPS.blur_pool(x, taps, *blur), OPS.max_blur_pool_codes(x, taps, *max_blur)
            grad, grad_m = (arrange(torch.randn(t.shape), layout, 2) for t in (y, m))
            samples += [
                ("blur_pool", (x, taps), blur),
                ("blur_pool_backward", (grad, taps), ([6, 7], *blur, last)),
                ("max_blur_pool", (x, taps), max_blur),
                ("max_blur_pool_codes", (x, taps), max_blur),
                ("max_blur_pool_backward", (grad_m, None, codes, taps), ([6, 7], *max_blur, last)),
                ("max_blur_pool_backward", (grad_m, x, None, taps), ([6, 7], *max_blur, last)),
            ]
            if taps is not None:
                samples.append(("blur_pool_backward_taps", (grad, x, taps), blur))
    return samples


def check_rules_of_the_ops() -> None:
    """Every op by batch and by channel gives what one device gives, codes to the byte, and nobody talks; but for
    codes in channels_last, which cannot be sharded by channel: they are refused, or where given replicated.
    """
    mesh = mesh_of(1)
    for layout in ("contiguous", "channels_last"):
        for op, tensors, numbers in op_samples(layout):
            run = getattr(OPS, op)
            expected = run(*tensors, *numbers)
            taps = tensors[-1]
            for dim in (0, 1):
                kind = {4: Shard(dim), 3: Shard(dim), 2: Shard(0) if dim == 1 and taps is not None and len(taps) > 1
                        else Replicate()}  # fmt: skip
                mixed = dim == 1 and layout == "channels_last"
                if mixed and any(t is not None and t.ndim == 3 for t in tensors):
                    kind[3] = Replicate()
                given = [None if t is None else place(t, mesh, [kind[t.ndim]]) for t in tensors]
                if mixed and op == "max_blur_pool_codes":
                    refused(lambda run=run, a=given, n=numbers: run(*a, *n), Exception, "x in channels_last must be")
                    continue
                with CommDebugMode() as talk:
                    found = run(*given, *numbers)
                assert (talk.get_total_counts() > 0) == (kind[3] != kind[4]), (op, dim, layout, talk.get_comm_counts())
                pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
                for a, e in pairs:
                    assert a.shape == e.shape and a.dtype == e.dtype
                    if a.dtype == torch.uint8:
                        assert torch.equal(a.full_tensor(), e)
                    else:
                        assert_close(a.full_tensor(), e.double(), taps=op == "blur_pool_backward_taps")


def check_partial_in_the_ops() -> None:
    """Sums go through what is linear in them; the max ops are given the sum."""
    mesh = mesh_of(1)
    for op, tensors, numbers in op_samples("contiguous"):
        run = getattr(OPS, op)
        expected = run(*tensors, *numbers)
        for i, t in enumerate(tensors):
            if t is None or t.ndim != 4:
                continue
            given = [
                None if u is None else place(u, mesh, [Partial() if j == i else Replicate()])
                for j, u in enumerate(tensors)
            ]
            found = run(*given, *numbers)
            first, e = (found[0], expected[0]) if isinstance(found, tuple) else (found, expected)
            assert any(isinstance(p, Partial) for p in first.placements) == ("max" not in op), (op, first.placements)
            assert_close(first.full_tensor(), e.double(), taps=op == "blur_pool_backward_taps")


# ---- torch.compile ---------------------------------------------------------------------------------------------------


def check_compile() -> None:
    """One graph where nobody talks; along spatial axes the op runs between two graphs."""
    mesh = mesh_of(1)
    x, taps = torch.randn(4, 4, 16, 14), torch.rand(4, 3)
    for function, dim in ((aablur.blur_pool2d, 1), (aablur.max_blur_pool2d, 0), (aablur.max_blur_pool2d, 2)):
        torch._dynamo.reset()

        def f(x: Any, taps: Any, function: Any = function) -> Any:
            return function(x.relu(), taps=taps) * 2

        compiled = torch.compile(f, fullgraph=dim < 2, backend="aot_eager")
        given = place(x, mesh, [Shard(dim)]), place(taps, mesh, [Replicate()])
        found = both_ways(compiled, *given, torch.ones_like)
        expected = both_ways(f, x, taps, torch.ones_like)
        assert found[0].placements == (Shard(dim),)
        for a, e in zip(found, expected, strict=True):
            assert_close(a.full_tensor(), e.double(), taps=a is found[2])
