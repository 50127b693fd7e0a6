"""An axis of a map cut over several ranks: what each holds, what it must read, and what it computes from that.

Ints alone: nothing here knows of torch, of ranks that talk, or of values. An interval is (start, end), end excluded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from .geometry import Axis

Interval = tuple[int, int]


@dataclass(frozen=True)
class Tile:
    """Rows of the map on which the op, differently padded, has the same outputs as on the whole map.

    The rows lie side by side, and rows between them may be missing: a map in circular mode keeps both its ends and
    loses its middle. Where outputs on both sides are wanted, a multiple of the stride is missing, and those that would
    read there are computed for nothing.

    rows: intervals of the map, ascending.
    outs: intervals of the outputs that are wanted, ascending.
    places: where each of ``outs`` begins among the outputs computed.
    count: how many outputs are computed, from the first wanted to the last.
    before, after: the padding with which that is so.
    """

    rows: tuple[Interval, ...] = ()
    outs: tuple[Interval, ...] = ()
    places: tuple[int, ...] = ()
    count: int = 0
    before: int = 0
    after: int = 0

    @property
    def size(self) -> int:
        return sum(length(r) for r in self.rows)

    def place_of_row(self, row: int) -> int:
        """Where a row of the map lies in the tile."""
        offset = 0
        for start, end in self.rows:
            if start <= row < end:
                return offset + row - start
            offset += end - start
        raise ValueError(f"row {row} is not in {self.rows}")

    def place_of_out(self, out: int) -> int:
        """Where an output that is wanted lies among those computed."""
        for (start, end), place in zip(self.outs, self.places, strict=True):
            if start <= out < end:
                return place + out - start
        raise ValueError(f"output {out} is not in {self.outs}")


@dataclass(frozen=True)
class Share:
    """What one rank has of an axis.

    rows, outs: of the map and of the output, those it holds.
    forward: the tile of its outputs.
    backward: the tile of all outputs that read a row it holds, and of its own: from their gradients comes that of
        its rows, each summed in one place and in one order, as on one device.
    """

    rows: Interval
    outs: Interval
    forward: Tile
    backward: Tile


def length(interval: Interval) -> int:
    return interval[1] - interval[0]


def overlap(a: Interval, b: Interval) -> Interval:
    start = max(a[0], b[0])
    return start, max(start, min(a[1], b[1]))


def chunks(size: int, count: int) -> tuple[Interval, ...]:
    """DTensor's rule: shards of ceil(size / count) rows, the last ones smaller or empty."""
    step = -(-size // count)
    return tuple((min(i * step, size), min((i + 1) * step, size)) for i in range(count))


def union(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(i for i in intervals if length(i) > 0):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


@lru_cache(maxsize=1024)
def shares(axis: Axis, padding_mode: str, size: int, count: int) -> tuple[Share, ...]:
    """The shares of ``count`` ranks in an axis of ``size`` rows."""
    found = []
    for rows, outs in zip(chunks(size, count), chunks(axis.out_size(size), count), strict=True):
        readers = union([outs, *_readers(axis, padding_mode, size, rows)])
        forward = _tile(axis, padding_mode, size, union([outs]), [])
        found.append(Share(rows, outs, forward, _tile(axis, padding_mode, size, readers, [rows])))
    return tuple(found)


def _tile(axis: Axis, padding_mode: str, size: int, outs: Sequence[Interval], keep: Sequence[Interval]) -> Tile:
    """The smallest tile that has these outputs and keeps these rows."""
    spans = [_span(axis, out) for out in outs]
    read = [_window_rows(axis, size, q) for span in spans for q in _fold(axis, padding_mode, size, span)]
    rows = tuple(_aligned(union([*keep, *read]), axis.stride if len(outs) > 1 else 1))
    if not outs:
        return Tile(rows)
    starts = [start - _missing_before(rows, _anchor(axis, size, start)) for start, _ in spans]
    places = tuple((start - starts[0]) // axis.stride for start in starts)
    count = places[-1] + length(outs[-1])
    pooled = axis.pooled_size(sum(map(length, rows)))
    after = starts[0] + (count - 1) * axis.stride + axis.taps - pooled
    return Tile(rows, tuple(outs), places, count, -starts[0], after)


def _aligned(rows: Sequence[Interval], stride: int) -> list[Interval]:
    """The same, and more, so that a multiple of the stride is missing between one interval and the next."""
    found = list(rows[:1])
    for start, end in rows[1:]:
        start -= (start - found[-1][1]) % stride
        found = union([*found, (start, end)])
    return found


def _missing_before(rows: Sequence[Interval], row: int) -> int:
    """How many rows of the map before this one, which is in ``rows``, are not."""
    ends = [0, *(end for _, end in rows)]
    missing = accumulate(start - end for (start, _), end in zip(rows, ends, strict=False))
    return next(m for (start, end), m in zip(rows, missing, strict=True) if start <= row < end)


def _anchor(axis: Axis, size: int, position: int) -> int:
    """A row of the map that a tile which begins to read at this padded position has."""
    pooled = min(max(position, 0), axis.pooled_size(size) - 1)
    return max(pooled - axis.window_padding, 0)


# ---- which reads which: outputs, positions of the padded map, rows of the pooled map, rows of the map --------------


def _span(axis: Axis, outs: Interval) -> Interval:
    """The positions, padded, that outputs read."""
    return outs[0] * axis.stride - axis.before, (outs[1] - 1) * axis.stride - axis.before + axis.taps


def _window_rows(axis: Axis, size: int, pooled: Interval) -> Interval:
    """The rows of the map that rows of the pooled map read, with those that a dilated window steps over."""
    start, reach = pooled[0] - axis.window_padding, axis.window_dilation * (axis.window - 1)
    return max(start, 0), min(pooled[1] - axis.window_padding + reach, size)


def _folds_once(axis: Axis, padding_mode: str, pooled: int) -> bool:
    return padding_mode in ("zeros", "replicate") or max(axis.before, axis.after) < pooled


def _fold(axis: Axis, padding_mode: str, size: int, span: Interval) -> list[Interval]:
    """The rows of the pooled map that padded positions fold to, and the edge past which any of them lie."""
    pooled = axis.pooled_size(size)
    if not _folds_once(axis, padding_mode, pooled):
        return [(0, pooled)]
    start, end = span
    found = [overlap(span, (0, pooled))]
    if start < 0:
        found.append((0, 1 - start) if padding_mode == "reflect" else (0, 1))
        if padding_mode == "circular":
            found.append((pooled + start, pooled))
    if end > pooled:
        found.append((2 * pooled - 1 - end, pooled) if padding_mode == "reflect" else (pooled - 1, pooled))
        if padding_mode == "circular":
            found.append((0, end - pooled))
    return found


def _readers(axis: Axis, padding_mode: str, size: int, rows: Interval) -> list[Interval]:
    """The outputs that read any of these rows of the map, and perhaps a few that do not."""
    pooled, everything = axis.pooled_size(size), (0, axis.out_size(size))
    if length(rows) == 0:
        return []
    if not _folds_once(axis, padding_mode, pooled):
        return [everything]
    reach = axis.window_dilation * (axis.window - 1)
    start, end = overlap((rows[0] + axis.window_padding - reach, rows[1] + axis.window_padding), (0, pooled))
    if start == end:
        return []
    found = [(start, end)]
    if padding_mode == "reflect":
        found += [overlap((1 - end, 1 - start), (-axis.before, 0))]
        found += [overlap((2 * pooled - 1 - end, 2 * pooled - 1 - start), (pooled, pooled + axis.after))]
    elif padding_mode == "circular":
        found += [overlap((start - pooled, end - pooled), (-axis.before, 0))]
        found += [overlap((start + pooled, end + pooled), (pooled, pooled + axis.after))]
    elif padding_mode == "replicate":
        found += [(-axis.before, 0)] * (start == 0) + [(pooled, pooled + axis.after)] * (end == pooled)
    outs = []
    for first, last in found:
        if first < last:
            o = -(-(first + axis.before - axis.taps + 1) // axis.stride), (last - 1 + axis.before) // axis.stride + 1
            outs.append(overlap(o, everything))
    return outs


# ---- who sends what to whom --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exchange:
    """One rank's part in bringing wanted rows from the ranks that hold them.

    sends: rows to send, as intervals of those that this rank holds; receivers ascend.
    send_counts, receive_counts: rows to and from each rank.
    pieces: what the wanted rows are made of, ascending: (source rank, start, end), an interval of the rows held where
        the source is this rank itself, and of the rows received otherwise.
    anyone: whether any rank sends anything.
    """

    sends: tuple[Interval, ...]
    send_counts: tuple[int, ...]
    receive_counts: tuple[int, ...]
    pieces: tuple[tuple[int, int, int], ...]
    anyone: bool


@lru_cache(maxsize=4096)
def exchange(held: tuple[Interval, ...], wanted: tuple[tuple[Interval, ...], ...], me: int) -> Exchange:
    """How rank ``me`` gets the rows it wants, where each rank holds and wants these."""

    def between(source: int, target: int) -> list[Interval]:
        parts = [overlap(held[source], w) for w in wanted[target]]
        return [(a - held[source][0], b - held[source][0]) for a, b in parts if b > a]

    ranks = range(len(held))
    sent = [between(me, r) if r != me else [] for r in ranks]
    got = [between(r, me) if r != me else [] for r in ranks]
    receive_counts = tuple(sum(map(length, parts)) for parts in got)
    cursor = list(accumulate(receive_counts, initial=0))
    pieces = []
    for w in wanted[me]:
        for source in ranks:
            start, end = overlap(held[source], w)
            if start == end:
                continue
            if source == me:
                pieces.append((me, start - held[me][0], end - held[me][0]))
            else:
                pieces.append((source, cursor[source], cursor[source] + end - start))
                cursor[source] += end - start
    anyone = any(between(a, b) for a in ranks for b in ranks if a != b)
    send_counts = tuple(sum(map(length, parts)) for parts in sent)
    return Exchange(tuple(p for parts in sent for p in parts), send_counts, receive_counts, tuple(pieces), anyone)
