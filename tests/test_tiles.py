"""Promise: an axis cut over ranks is computed from pieces, bit for bit, and a rank reads no more than it needs.

Here without processes: each rank's tile is cut from the whole map. Values are small whole numbers, whose sums float32
holds exactly: in any order they give the same bits, unless one is rounded in parts, or of other terms.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from case import DTYPES, MODES
from torch import Tensor

from aablur.geometry import IDENTITY, Axis, Geometry
from aablur.tiles import Share, Tile, chunks, exchange, length, shares

OPS = torch.ops.aablur


@dataclass
class Line:
    """An op along one axis, its map, its results, and the gradient that comes to it."""

    geometry: Geometry
    x: Tensor
    grad: Tensor
    y: Tensor
    grad_x: Tensor

    @property
    def axis(self) -> Axis:
        return self.geometry.axes[0]


def forward(x: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor | None]:
    if geometry.has_max:
        return OPS.max_blur_pool_codes(x, None, *geometry.op_args)
    return OPS.blur_pool(x, None, *geometry.op_args), None


def backward(grad: Tensor, codes: Tensor | None, size: int, geometry: Geometry) -> Tensor:
    args = geometry.op_args
    if codes is None:
        return OPS.blur_pool_backward(grad, None, [size], *args, False)
    return OPS.max_blur_pool_backward(grad, None, codes, None, [size], *args, False)


def lines(mode: str, count: int) -> list[Line]:
    pick, found = random.Random(mode), []
    while len(found) < count:
        taps, stride = pick.randint(1, 7), pick.randint(1, 4)
        size = pick.choice((pick.randint(1, 12), pick.randint(8, 60)))
        padding = pick.choice(("same", "same", ((pick.randint(-4, 9), pick.randint(-4, 9)),)))
        window = pick.choice((IDENTITY, 2, 3, 4))
        window_padding = 0 if window is IDENTITY else pick.randint(0, window // 2)
        dilation = 1 if window is IDENTITY else pick.choice((1, 1, 2, 3))
        geometry = Geometry("line", [taps], stride, padding, mode, window, window_padding, dilation)
        try:
            geometry.check((2, 3, size), 8)
        except ValueError:
            continue
        dtype = DTYPES[pick.choice(list(DTYPES))]
        out = geometry.axes[0].out_size(size)
        x, grad = (torch.randint(-99, 100, (2, 3, n)).to(dtype) for n in (size, out))
        y, codes = forward(x, geometry)
        found.append(Line(geometry, x, grad, y, backward(grad, codes, size, geometry)))
    return found


def on_tile(line: Line, tile: Tile) -> Geometry:
    return line.geometry.padded({0: (tile.before, tile.after)})


def cut(x: Tensor, tile: Tile) -> Tensor:
    return torch.cat([x[..., start:end] for start, end in tile.rows], -1)


def check_outputs(line: Line, share: Share) -> None:
    tile = share.forward
    assert tile.count == length(share.outs)
    if tile.count:
        y, _ = forward(cut(line.x, tile), on_tile(line, tile))
        assert torch.equal(y, line.y[..., slice(*share.outs)])


def check_gradients(line: Line, share: Share) -> None:
    tile, (start, end) = share.backward, share.rows
    expected = line.grad_x[..., start:end]
    if tile.count == 0:
        assert (expected == 0).all()
        return
    grad = line.grad.new_zeros(2, 3, tile.count)
    for outs, place in zip(tile.outs, tile.places, strict=True):
        grad[..., place : place + length(outs)] = line.grad[..., slice(*outs)]
    args = on_tile(line, tile)
    y, codes = forward(cut(line.x, tile), args)
    if length(share.outs):
        place = tile.place_of_out(share.outs[0])
        assert torch.equal(y[..., place : place + length(share.outs)], line.y[..., slice(*share.outs)])
    if start < end:
        place = tile.place_of_row(start)
        assert torch.equal(backward(grad, codes, tile.size, args)[..., place : place + end - start], expected)


@pytest.mark.parametrize("mode", MODES)
def test_tiles_give_the_bits_of_the_whole(mode: str) -> None:
    for line in lines(mode, 600):
        for world in (2, 3, 4):
            for share in shares(line.axis, mode, line.x.shape[-1], world):
                check_outputs(line, share)
                check_gradients(line, share)


@pytest.mark.parametrize("mode", MODES)
def test_exchanges_bring_every_row(mode: str) -> None:
    """What each rank sends is what the others expect, and is put in order."""
    for line in lines(mode, 100):
        size = line.x.shape[-1]
        for world in (2, 3, 4):
            parts = shares(line.axis, mode, size, world)
            for which in ("forward", "backward"):
                held, wanted = tuple(p.rows for p in parts), tuple(getattr(p, which).rows for p in parts)
                plans = [exchange(held, wanted, me) for me in range(world)]
                inbox: list[list[int]] = [[] for _ in range(world)]
                for source, plan in enumerate(plans):
                    sent = [held[source][0] + i for start, end in plan.sends for i in range(start, end)]
                    for target, count in enumerate(plan.send_counts):
                        assert count == plans[target].receive_counts[source]
                        inbox[target] += sent[:count]
                        sent = sent[count:]
                    assert not sent
                for me, plan in enumerate(plans):
                    own = range(*held[me])
                    rows = [r for s, a, b in plan.pieces for r in (own if s == me else inbox[me])[a:b]]
                    assert rows == [r for w in wanted[me] for r in range(*w)]
                    assert plan.anyone == any(map(len, inbox))


def test_chunks_are_those_of_dtensor() -> None:
    for size in range(20):
        for count in (1, 2, 3, 4, 7):
            found = chunks(size, count)
            pieces = torch.arange(size).chunk(count) if size else ()
            assert [tuple(range(*c)) for c in found if length(c)] == [tuple(p.tolist()) for p in pieces]
            assert len(found) == count


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [1, 3])
def test_a_rank_holds_no_more_than_its_shard_and_a_halo(mode: str, window: int) -> None:
    for taps in range(1, 8):
        for stride in (1, 2, 3, 4):
            axis = Axis(taps, stride, (taps - 1) // 2, taps // 2, window, window // 2)
            halo = 2 * (taps + window + stride)
            for share in shares(axis, mode, 4 * 12 * 25, 4):
                assert share.forward.size <= length(share.rows) + halo
                assert share.backward.size <= length(share.rows) + halo
                assert share.backward.count <= length(share.outs) + halo
