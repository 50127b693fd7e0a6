"""What `test_distributed` runs in each of 2 and of 4 processes: maps sharded along spatial axes."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from case import DTYPES, MODES, arrange
from sharded import FUNCTIONS, both_ways, mesh_of, place, refused, same_as_one, silent
from tolerances import assert_close
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import aablur
import aablur.distributed


def check_spatial_2d() -> None:
    """Every padding mode, taps, stride and window; height, width or both sharded; odd sizes; half of it bfloat16."""
    line, plane = mesh_of(1), mesh_of(2)
    pick = random.Random(7)
    for mode in MODES:
        for k in (1, 2, 3, 4, 5, 6):
            for stride in (1, 2, 3, 4):
                for window in (pick.choice((None, 2, 3)),):
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
            y = aablur.blur_pool2d(x, taps, stride=stride, padding_mode=mode)
            assert rows == [forward], (rows, forward)
            y.sum().backward()
            assert rows == [forward, backward], (rows, forward, backward)
    with silent():  # filters that do not overlap
        y = aablur.blur_pool2d(x, 2, padding=0)
        y.backward(torch.ones_like(y))


# ---- what is refused -------------------------------------------------------------------------------------------------


def check_bad_input() -> None:
    line, plane = mesh_of(1), mesh_of(2)
    x = torch.randn(2, 4, 16, 16)
    sharded = place(x, line, [Shard(2)])
    refused(lambda: aablur.blur_pool2d(place(x, plane, [Shard(2), Shard(2)])), ValueError, "x must be", "spatial axis")
    refused(lambda: aablur.blur_pool2d(sharded, 3, stride=0), ValueError, "stride must be from 1")
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
