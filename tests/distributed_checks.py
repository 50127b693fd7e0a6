"""What `test_distributed` runs in each of 2 and of 4 processes: the same seeds everywhere, so each knows the whole."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from case import DTYPES, MODES, arrange
from tolerances import assert_close
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DeviceMesh, DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

import aablur
import aablur.distributed
from aablur.tiles import chunks

OPS = torch.ops.aablur
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
    mesh = mesh_of(1)
    for rank, size in ((1, (11,)), (2, (9, 7)), (3, (5, 6, 7))):
        for batched in (True, False):
            shape = (8, 4, *size) if batched else (4, *size)
            for is_max in (False, True):
                function = FUNCTIONS[rank, is_max]
                for layout in ("contiguous", "channels_last")[: max(1, rank)]:
                    x = arrange(torch.randn(shape), layout if rank > 1 else "contiguous", rank)
                    for taps in (4, torch.rand(3), torch.rand(4, 5)):
                        for dim in (0, 1)[: batched + 1]:
                            for recompute in (False, True)[: is_max + 1]:
                                options = {"recompute": recompute} if is_max else {}

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
        blur, window = ([3, 2], stride, [1, 1, 0, 1], "reflect"), ([2, 3], [0, 1], [1, 1])
        x, last = arrange(torch.randn(8, 4, 6, 7), layout, 2), layout == "channels_last"
        for taps in (None, torch.rand(1, 5), torch.rand(4, 5)):
            y, (m, codes) = OPS.blur_pool(x, taps, *blur), OPS.max_blur_pool_codes(x, taps, *blur, *window)
            grad, grad_m = (arrange(torch.randn(t.shape), layout, 2) for t in (y, m))
            samples += [
                ("blur_pool", (x, taps), blur),
                ("blur_pool_backward", (grad, taps), ([6, 7], *blur, last)),
                ("max_blur_pool", (x, taps), (*blur, *window)),
                ("max_blur_pool_codes", (x, taps), (*blur, *window)),
                ("max_blur_pool_backward", (grad_m, None, codes, taps), ([6, 7], *blur, *window, last)),
                ("max_blur_pool_backward", (grad_m, x, None, taps), ([6, 7], *blur, *window, last)),
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


# ---- spatial axes ----------------------------------------------------------------------------------------------------


def check_spatial_2d() -> None:
    """Every padding mode, taps, stride and window; height, width or both sharded; odd sizes; half of it bfloat16."""
    line, plane = mesh_of(1), mesh_of(2)
    pick = random.Random(7)
    for mode in MODES:
        for k in (1, 2, 3, 4, 5, 6):
            for stride in (1, 2, 3, 4):
                for window in (None, 2, 3) if dist.get_world_size() > 2 else (pick.choice((None, 2, 3)),):
                    size = (pick.randint(3, 27), pick.randint(3, 27))
                    dtype = pick.choice((torch.float32, torch.bfloat16))
                    x = torch.randn(2, 4, *size).to(dtype)
                    x = arrange(x, pick.choice(("contiguous", "channels_last")), 2)
                    taps = pick.choice((k, k, torch.rand(k), torch.rand(4, k)))
                    mesh, placements = pick.choice((
                        (line, [Shard(2)]), (line, [Shard(3)]), (plane, [Shard(2), Shard(3)]),
                        (plane, [Shard(3), Shard(2)]),
                    ))  # fmt: skip
                    options: dict[str, Any] = {"stride": stride, "padding_mode": mode}
                    if window is not None:
                        options |= {"window": window, "window_padding": pick.choice((0, 1))}
                        options |= {"recompute": pick.choice((True, False))}
                    function = FUNCTIONS[2, window is not None]
                    y = same_as_one(lambda x, t, f=function, o=options: f(x, taps=t, **o), x, taps, mesh, placements)
                    assert list(y.placements) == placements


def check_spatial_is_exact() -> None:
    """The bits of one device. Sums of small whole numbers are exact in any order, unless rounded in parts."""
    mesh = mesh_of(1)
    for mode in MODES:
        for is_max in (False, True):
            for dtype in (torch.bfloat16, torch.float64):
                for dim in (2, 3):
                    x = arrange(torch.randint(-99, 100, (2, 4, 37, 41)).to(dtype), "channels_last", 2)

                    def f(x: Any, taps: Any, is_max: bool = is_max, mode: str = mode) -> Any:
                        return FUNCTIONS[2, is_max](x, taps=taps, padding_mode=mode)

                    grad = arrange(torch.randint(-99, 100, f(x, 5).shape).to(dtype), "channels_last", 2)
                    expected = both_ways(f, x, 5, grad)
                    placed = place(grad, mesh, [Shard(dim)])
                    y, grad_x, _ = both_ways(f, place(x, mesh, [Shard(dim)]), 5, placed)
                    assert torch.equal(y.full_tensor(), expected[0])
                    assert torch.equal(grad_x.full_tensor(), expected[1])


def check_spatial_shapes() -> None:
    """1-D and 3-D, unbatched, empty batches, shards with nothing in them, maps smaller than the filter, wide pads."""
    line, plane, turn = mesh_of(1), mesh_of(2), 0
    for mode in MODES:
        for is_max in (False, True):
            for rank, shape, mesh, placements, options in (
                (1, (2, 3, 23), line, [Shard(2)], {}),
                (1, (3, 23), line, [Shard(1)], {}),
                (1, (2, 3, 9), line, [Shard(2)], {}),  # 4 ranks: 3, 3, 3, 0
                (1, (2, 3, 5), line, [Shard(2)], {"stride": 1}),  # 2, 2, 1, 0
                (1, (2, 3, 3), line, [Shard(2)], {}),
                (1, (2, 3, 2), line, [Shard(2)], {"padding": 7}),
                (1, (2, 3, 17), line, [Shard(2)], {"padding": ((-2, -4),)}),
                (1, (2, 3, 17), line, [Shard(2)], {"padding": ((-3, 9),), "stride": 3}),
                (1, (2, 3, 17), line, [Shard(2)], {"padding": ((21, 40),)}),
                (1, (2, 3, 30), line, [Shard(2)], {"taps": 1, "stride": 7, "padding": 0}),
                (2, (3, 13, 9), plane, [Shard(1), Shard(2)], {}),
                (2, (3, 13, 9), plane, [Replicate(), Shard(1)], {}),
                (2, (0, 3, 13, 9), line, [Shard(2)], {}),
                (2, (2, 0, 13, 9), line, [Shard(3)], {}),
                (2, (2, 3, 2, 3), plane, [Shard(2), Shard(3)], {"stride": 1}),
                (2, (2, 3, 1, 1), line, [Shard(3)], {"padding": 2} | ({"window": 1} if is_max else {})),
                (2, (4, 4, 13, 9), plane, [Shard(0), Shard(2)], {}),
                (2, (4, 4, 13, 9), plane, [Shard(3), Shard(1)], {}),
                (2, (2, 2, 13, 9), plane, [Partial(), Shard(3)], {}),
                (3, (2, 2, 5, 6, 7), line, [Shard(2)], {}),
                (3, (2, 2, 5, 6, 7), plane, [Shard(4), Shard(3)], {}),
                (3, (2, 5, 6, 7), plane, [Shard(1), Shard(3)], {"stride": (1, 2, 3)}),
            ):
                window: dict[str, Any] = {}
                if is_max and "window" not in options:
                    window = {"window": 2, "window_padding": 1}
                function = FUNCTIONS[rank, is_max]
                given = {"taps": 3} | options | window | {"padding_mode": mode}
                k, channels = given.pop("taps"), shape[-rank - 1]
                taps = (k, torch.rand(k), torch.rand(channels, k))[0 if 0 in shape else (turn := turn + 1) % 3]
                same_as_one(
                    lambda x, t, f=function, o=given: f(x, taps=t, **o), torch.randn(shape), taps, mesh, placements
                )


def check_spatial_dilated_windows() -> None:
    mesh = mesh_of(1)
    for mode in MODES:
        for window, padding, dilation in ((3, 1, 2), (2, 1, 3), ((4, 1), (2, 0), (1, 1)), ((1, 5), (0, 1), (1, 2))):
            for dim in (2, 3):
                for dtype in ("f16", "f32"):
                    x = (torch.randn(2, 3, 17, 19) * 1.5).round().to(DTYPES[dtype])  # ties

                    def f(x: Any, taps: Any, o: Any = (window, padding, dilation, mode)) -> Any:
                        w, p, d, mode = o
                        return aablur.max_blur_pool2d(
                            x, w, taps, padding_mode=mode, window_padding=p, window_dilation=d
                        )

                    same_as_one(f, x, 4, mesh, [Shard(dim)])


def check_modules_on_a_sharded_map() -> None:
    """Plain parameters, each rank with all of them: gradients are those of the whole map on every rank."""
    mesh = mesh_of(1)
    model = nn.Sequential(
        aablur.nn.BlurPool2d(3, stride=1, learnable=True), aablur.nn.MaxBlurPool2d(2, 4, learnable=True, channels=4),
        aablur.nn.MaxBlurPool2d(3, window_padding=1), aablur.nn.BlurPool2d(5, padding_mode="zeros"),
    )  # fmt: skip
    x = torch.randn(2, 4, 41, 35)
    for dim in (2, 3):
        alone, sharded = copy.deepcopy(model), copy.deepcopy(model)
        y = alone(x)
        y.square().sum().backward()
        found = sharded(place(x, mesh, [Shard(dim)]))
        assert found.placements == (Shard(dim),)
        found.square().sum().backward()
        assert_close(found.detach().full_tensor(), y.detach().double())
        for p, q in zip(alone.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad)


def check_gradients_that_nobody_wants() -> None:
    """Of taps alone; of nothing, in each of torch's ways to say so."""
    mesh = mesh_of(1)
    x, taps = torch.randn(2, 4, 21, 10), torch.rand(4, 3)
    for function in (aablur.blur_pool2d, aablur.max_blur_pool2d):
        for dim in (0, 1, 2):
            learnt, found = (taps.clone().requires_grad_() for _ in range(2))
            expected = function(x, taps=learnt)
            expected.sum().backward()
            function(place(x, mesh, [Shard(dim)]), taps=found).sum().backward()
            assert_close(found.grad, learnt.grad.double(), taps=True)
            for context in (torch.no_grad, torch.inference_mode):
                with context():
                    y = function(place(x, mesh, [Shard(dim)]), taps=found)
                    assert_close(y.full_tensor(), expected.detach().double())


def check_gradients_of_gradients() -> None:
    """float64, the gradient of a function of the gradients, of every input, in each way a map can be placed."""
    mesh = mesh_of(1)
    grad = torch.randn(4, 4, 6, 5, dtype=torch.float64)

    def second(f: Any, x: Any, taps: Any, weight: Any) -> list[Tensor]:
        inputs = [t.detach().requires_grad_() for t in (x, taps) if isinstance(t, Tensor)]
        y = f(inputs[0], inputs[1] if len(inputs) > 1 else taps)
        first = torch.autograd.grad((y * weight).pow(2).sum(), inputs, create_graph=True)
        total = sum((g.pow(2).sum() if not isinstance(g, DTensor) else full(g.pow(2).sum())) for g in first)
        return list(torch.autograd.grad(total, inputs))  # pyright: ignore

    def full(t: Any) -> Tensor:
        return t.redistribute(placements=[Replicate()]).to_local()

    for mode in MODES:
        for is_max in (False, True):
            x = torch.randn(4, 4, 12, 10, dtype=torch.float64)

            def f(x: Any, taps: Any, is_max: bool = is_max, mode: str = mode) -> Any:
                o: dict[str, Any] = {"window": 3, "window_padding": 1} if is_max else {}
                return FUNCTIONS[2, is_max](x, taps=taps, padding_mode=mode, **o)

            for dim, taps in ((2, 3), (3, 3), (2, torch.rand(3).double()), (3, torch.rand(4, 3).double())):
                expected = second(f, x, taps, grad)
                found = second(f, place(x, mesh, [Shard(dim)]), taps, place(grad, mesh, [Shard(dim)]))
                for a, e in zip(found, expected, strict=True):
                    a = a.full_tensor() if isinstance(a, DTensor) else a
                    torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


# ---- what moves ------------------------------------------------------------------------------------------------------


@contextmanager
def listening() -> Iterator[list[int]]:
    """How many rows each exchange brings to this rank."""
    real, rows = aablur.distributed.all_to_all_single_autograd, []

    def listen(sent: Tensor, receive: list[int], send: list[int], group: Any) -> Tensor:
        rows.append(sum(receive))
        return real(sent, receive, send, group)

    aablur.distributed.all_to_all_single_autograd = listen
    try:
        yield rows
    finally:
        aablur.distributed.all_to_all_single_autograd = real


def check_only_halos_move() -> None:
    mesh, world, me = mesh_of(1), dist.get_world_size(), dist.get_rank()
    x = place(torch.randn(2, 3, 16 * world, 8), mesh, [Shard(2)]).requires_grad_()
    for taps, stride, mode, forward, backward in (
        (3, 2, "reflect", int(me > 0), int(me < world - 1)),
        (3, 2, "circular", 1, 1),
        (5, 2, "zeros", 2 * (me > 0) + 1 * (me < world - 1), 1 * (me > 0) + 1 * (me < world - 1)),
        (4, 4, "replicate", int(me > 0), int(me < world - 1)),
    ):
        with listening() as rows:
            y = aablur.blur_pool2d(x, taps, stride, padding_mode=mode)
            assert rows == [forward], (rows, forward)
            y.sum().backward()
            assert rows == [forward, backward], (rows, forward, backward)
    with silent():  # filters that do not overlap
        y = aablur.blur_pool2d(x, 2, 2, padding=0)
        y.backward(torch.ones_like(y))


# ---- what is refused -------------------------------------------------------------------------------------------------


def refused(f: Callable[[], Any], error: type[Exception], *words: str) -> None:
    with silent():
        try:
            f()
        except error as e:
            assert all(word in str(e) for word in words), str(e)
        else:
            raise AssertionError(f"{words} was not refused")


def check_bad_input() -> None:
    line, plane = mesh_of(1), mesh_of(2)
    x = torch.randn(2, 4, 16, 16)
    sharded = place(x, line, [Shard(2)])
    refused(lambda: aablur.blur_pool2d(place(x, plane, [Shard(2), Shard(2)])), ValueError, "x must be", "spatial axis")
    refused(lambda: aablur.blur_pool2d(sharded, 3, 0), ValueError, "stride must be from 1")
    refused(lambda: aablur.blur_pool2d(sharded, 3, padding_mode="mirror"), ValueError, "padding_mode must be one of")
    refused(lambda: aablur.max_blur_pool2d(sharded, 17), ValueError, "window must fit the map")
    refused(lambda: aablur.blur_pool2d(sharded, 9, padding=((-9, 0), (0, 0))), ValueError, "output would be empty")
    refused(lambda: aablur.blur_pool2d(sharded, torch.rand(3, 3)), ValueError, "taps must have shape (k,) or (4, k)")
    refused(lambda: aablur.blur_pool2d(sharded.to(torch.int32)), TypeError, "x must be one of")
    elsewhere = place(torch.rand(3), plane, [Replicate(), Replicate()])
    refused(lambda: aablur.blur_pool2d(sharded, elsewhere), ValueError, "taps must be on the mesh of x")
    rows = 3 if dist.get_rank() == 0 else 8  # not DTensor's chunks
    shape = torch.Size([2, 4, 3 + 8 * (dist.get_world_size() - 1), 16])
    odd = DTensor.from_local(torch.randn(2, 4, rows, 16), line, [Shard(2)], run_check=False, shape=shape,
                             stride=torch.empty(shape).stride())  # fmt: skip
    if dist.get_rank() == 0:
        refused(lambda: aablur.blur_pool2d(odd), ValueError, "x must be sharded as DTensor does it", "got 3")


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
