"""The tables at the end of a run, in plain text, and the bars that aablur is to meet, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import geometric_mean

from .check import TOLERANCES
from .micro import COMPILE_MAX_POOL, CPP_NODE, INFERENCE, NODE
from .providers import (
    BASELINE_SLACK,
    BASELINES,
    COMPILE,
    COMPILED,
    EAGER,
    EAGER_NCHW,
    MAX_POOL,
    OURS,
    PROVIDERS,
    TRITON,
)
from .record import OK, Measurement
from .workloads import BOTH, DTYPES, FORWARD, REGIMES, RESNET50, WINDOWS

Row = dict[str, Measurement]  # provider -> measurement of one row
Line = tuple[str, ...]

ALLOWED = "\n".join(f"  {dtype} {most:.1e}: {why}" for dtype, (most, why) in TOLERANCES.items())
CAPTION = f"""\
Milliseconds a call: the median, and (p80 - p20) / median in per cent.
of copy: bytes a second of the least that must move, over those of copy, which writes to a tensor that exists.
best x: the fastest baseline's time over aablur's. error: the largest, of output and gradient, over the largest
magnitude of the float64 result. saved: bytes kept for backward over the input's bytes, aablur's and eager's (which
include the input where the op keeps it).
Eager runs in the layout that its column names; its time holds the conversions from and to the row's layout.
On a CPU providers take turns, and each call allocates what it needs, as for a user: with glibc, a large tensor costs
page faults, unless --keep-memory is given. torch.compile runs beyond the cache alone: a compilation takes seconds.
On a GPU CUDA graphs are replayed over maps that no cache holds; torch.compile runs on two of the maps.
Errors above these are wrong (a baseline, which rounds after each of its ops, may have {BASELINE_SLACK} times as much):
{ALLOWED}"""


def rows_of(measurements: Iterable[Measurement]) -> list[Row]:
    """Measurements of one name, keyed by provider; names keep their order."""
    rows: dict[str, Row] = {}
    for m in measurements:
        rows.setdefault(m.name, {})[m.provider] = m
    return list(rows.values())


def _ours(measurements: Iterable[Measurement]) -> list[Row]:
    """The rows of feature maps."""
    return [row for row in rows_of(measurements) if OURS in row and row[OURS].regime in REGIMES]


def times_of_ours(row: Row, names: Sequence[str]) -> float | None:
    """The least time of those providers that have one, over ours."""
    least, ours = min((ms for n in names if n in row and (ms := row[n].ms)), default=None), row[OURS].ms
    return least / ours if least and ours else None


def of_copy(row: Row, name: str = OURS) -> float | None:
    ratio = row[name].floor_ratio if name in row else None
    return 1 / ratio if ratio else None


# ---- the bars ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    """Of a row, and how it is combined over rows."""

    title: str
    value: Callable[[Row], float | None]
    combine: Callable[[list[float]], float] = geometric_mean

    def over(self, rows: Iterable[Row]) -> float | None:
        values = [v for row in rows if (v := self.value(row)) is not None]
        return self.combine(values) if values else None


COPY_TIME = Quantity("time / copy", lambda row: row[OURS].ratio_to_copy)
OF_COPY = Quantity("of copy", of_copy)
OF_EAGER = Quantity("eager x", lambda row: times_of_ours(row, EAGER))
OF_COMPILED = Quantity("compile x", lambda row: times_of_ours(row, COMPILED))
SPEEDUP = Quantity("best x", lambda row: times_of_ours(row, BASELINES))
SAVED = Quantity("saved (most)", lambda row: row[OURS].saved_of_input, max)
QUANTITIES = (
    COPY_TIME,
    OF_COPY,
    Quantity("least", of_copy, min),
    OF_EAGER,
    OF_COMPILED,
    SPEEDUP,
    Quantity("triton of copy", lambda row: of_copy(row, TRITON)),
    SAVED,
)


@dataclass(frozen=True)
class Bar:
    """A limit on one quantity of one op and pass on a CPU, over the ResNet-50 maps beyond the cache."""

    quantity: Quantity
    op: str
    direction: str
    limit: float
    at_most: bool = False
    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    def covers(self, quantity: Quantity, m: Measurement) -> bool:
        same = (self.quantity, self.op, self.direction) == (quantity, m.op, m.direction)
        return same and m.dtype in self.dtypes and m.regime == "memory"


# 1 % of the input: shapes and flags may be kept, a tensor of a map's size may not.
BARS = (
    Bar(COPY_TIME, "blur_pool2d", FORWARD, 1.0, True),
    Bar(SPEEDUP, "blur_pool2d", FORWARD, 4.0),
    Bar(SPEEDUP, "blur_pool2d", BOTH, 6.0),
    Bar(SPEEDUP, "max_blur_pool2d", BOTH, 12.0),
    Bar(SAVED, "blur_pool2d", BOTH, 0.01, True),
    Bar(SAVED, "max_blur_pool2d", BOTH, 1 / 16, True, ("float32",)),
)
# On a GPU every row has one: (op, whether the map is aligned) -> least part of the copy's bandwidth.
ROW_BARS = {(op, True): 0.90 if window == 1 else 0.85 for op, (window, _) in WINDOWS.items()}
ROW_BARS |= {(op, False): 0.75 for op in WINDOWS}
OVERHEAD_LIMIT = 3.0  # times F.max_pool2d
INFERENCE_LIMIT_US = 5.0  # beyond F.max_pool2d
IMPORT_LIMIT_MS = 50.0
BUSY_CORES = 0.15  # used by other processes: above this, times say nothing


def is_aligned(m: Measurement) -> bool:
    """Whether rows or pixels are whole 16-byte vectors, of maps larger than 28 on a side."""
    _, channels, _, width = map(int, m.shape.split("x"))
    lanes = channels if m.layout == "channels_last" else width
    return lanes * DTYPES[m.dtype].itemsize % 16 == 0 and width > 28


def verdict(value: float, limit: float, at_most: bool, rows: Sequence[Row], timed: bool = True) -> str:
    """The bar beside its value: a wrong row misses it, and other processes beside the times leave it undecided."""
    met = value <= limit if at_most else value >= limit
    met &= all(row[OURS].status == OK for row in rows)
    busy = timed and any((row[OURS].others_cores or 0) > BUSY_CORES for row in rows)
    return f" {'<=' if at_most else '>='} {limit:.3g} " + ("undecided" if busy else "met" if met else "NOT MET")


# ---- tables ------------------------------------------------------------------------------------------


def aligned(lines: Iterable[Line]) -> str:
    """A table in plain text."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _filled(lines: Iterable[Line]) -> list[Line]:
    """Without the columns in which nothing stands below the title."""
    columns = [c for c in zip(*lines, strict=True) if any(c[1:])]
    return list(zip(*columns, strict=True))


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) < 10**digits else f"{value:.0f}"


def _time(m: Measurement | None) -> str:
    if m is None or m.ms is None or m.ms_p20 is None or m.ms_p80 is None:
        return "" if m is None or m.status == OK else m.status.split(":")[0]
    return f"{_number(m.ms)} {(m.ms_p80 - m.ms_p20) / m.ms:.0%}"


def _error(m: Measurement) -> float | None:
    return max((e for e in (m.relative_error, m.grad_relative_error) if e is not None), default=None)


def _saved(row: Row) -> str:
    mine, eager = row[OURS].saved_of_input, row[EAGER_NCHW].saved_of_input if EAGER_NCHW in row else None
    return "" if mine is None else f"{_number(mine, 2)} / {_number(eager, 2)}"


def line(row: Row) -> str:
    """One row in one line, as the run goes on."""
    m = row.get(OURS) or next(iter(row.values()))
    if m.ms is None:
        return f"{m.name}: {m.provider} {m.status}"
    said = [f"{m.name}: {m.provider} {_number(m.ms)} ms"]
    if OURS in row:
        others = BASELINES if m.regime in REGIMES else (MAX_POOL,)
        beside = ((of_copy(row), "{} of copy"), (times_of_ours(row, others), "best x {}"))
        said += [text.format(_number(v)) for v, text in beside if v]
    return ", ".join(said)


def workload_tables(measurements: Iterable[Measurement]) -> Iterator[str]:
    """A table an op, pass and regime, with a line a row."""
    order = lambda r: (r[OURS].op, r[OURS].direction, r[OURS].regime == "cache", r[OURS].layout, r[OURS].dtype)  # noqa: E731
    names = [who.name for who in PROVIDERS]
    titles = ("layout", "dtype", "input", *names, "of copy", "best x", "error", "saved")
    for (op, direction, cache), group in groupby(sorted(_ours(measurements), key=order), key=lambda r: order(r)[:3]):
        lines = [
            (
                *(row[OURS].layout, row[OURS].dtype, row[OURS].shape),
                *(_time(row.get(name)) for name in names),
                *(_number(of_copy(row)), _number(SPEEDUP.value(row)), _number(_error(row[OURS]), 2), _saved(row)),
            )
            for row in group
        ]
        yield f"{op}, {direction}, {REGIMES['cache' if cache else 'memory']}\n{aligned(_filled([titles, *lines]))}\n"


def groups(measurements: Iterable[Measurement]) -> list[list[Row]]:
    """The rows of the ResNet-50 maps by op, pass, layout, dtype and regime, in the order of the run."""
    found: dict[Line, list[Row]] = {}
    for row in _ours(measurements):
        m = row[OURS]
        if m.group == RESNET50:
            found.setdefault((m.op, m.direction, m.layout, m.dtype, m.regime), []).append(row)
    return list(found.values())


def means(measurements: Sequence[Measurement], device: str) -> Iterator[Line]:
    """Over the ResNet-50 maps, group by group, beside the bars."""
    yield ("op", "pass", "layout", "dtype", "regime", "rows", *(q.title for q in QUANTITIES))
    for rows in groups(measurements):
        m, cells = rows[0][OURS], []
        for quantity in QUANTITIES:
            value = quantity.over(rows)
            cells.append(_number(value))
            for bar in BARS:
                if device == "cpu" and value is not None and bar.covers(quantity, m):
                    cells[-1] += verdict(value, bar.limit, bar.at_most, rows, quantity is not SAVED)
        yield (m.op, m.direction, m.layout, m.dtype, m.regime, str(len(rows)), *cells)


def overheads(measurements: Iterable[Measurement], device: str) -> Iterator[Line]:
    """Of a call on a tiny input, against F.max_pool2d. The bars are a CPU's, of eager calls one by one."""
    also = (COMPILE, COMPILE_MAX_POOL, NODE, CPP_NODE)
    yield ("op", "pass", "in a graph", "us", "max_pool2d's", "us beyond it", "times it", *also)
    for row in rows_of(m for m in measurements if m.regime == "overhead"):
        m, ours, theirs = row[OURS], row[OURS].ms, row[MAX_POOL].ms
        if not ours or not theirs:
            continue
        beyond, times, inference = 1e3 * (ours - theirs), ours / theirs, m.direction == INFERENCE
        bar = (
            verdict(beyond, INFERENCE_LIMIT_US, True, [row])
            if inference
            else verdict(times, OVERHEAD_LIMIT, True, [row])
        )
        cells = [_number(v) for v in (1e3 * ours, 1e3 * theirs, beyond, times)]
        cells[2 if inference else 3] += bar if device == "cpu" and not m.group else ""
        others = (row[name].ms if name in row else None for name in also)
        yield (m.op, m.direction, m.group, *cells, *(_number(ms and 1e3 * ms) for ms in others))


def imports(measurements: Iterable[Measurement]) -> Iterator[str]:
    for row in rows_of(m for m in measurements if m.regime == "import" and m.ms):
        ms = row[OURS].ms or 0
        yield f"import aablur, after torch: {_number(ms)} ms{verdict(ms, IMPORT_LIMIT_MS, True, [row])}\n"


def networks(measurements: Iterable[Measurement]) -> Iterator[Line]:
    yield ("network", "pass", "input", "pools", "ms", "x", "peak MiB")
    for row in rows_of(m for m in measurements if m.regime == "network"):
        ours = row[OURS].ms if OURS in row else None
        for m in row.values():
            ratio = m.ms / ours if m.ms and ours else None
            yield (m.op, m.direction, m.shape, m.provider, _time(m), _number(ratio), _number(m.peak_mib, 5))


def losses(measurements: Iterable[Measurement], device: str) -> Iterator[str]:
    """Rows in which a baseline is faster, or that miss their bar, or are wrong; and why a provider failed."""
    measurements = list(measurements)
    yield from (f"{m.status}: {m.provider}, {m.name}" for m in measurements if m.status != OK)
    for row in _ours(measurements):
        best, part = SPEEDUP.value(row), of_copy(row)
        if best is not None and best < 1:
            yield f"slower than the best baseline by {1 / best:.2f}x: {row[OURS].name}"
        bar = ROW_BARS[row[OURS].op, is_aligned(row[OURS])]
        if device == "cuda" and part is not None and part < bar:
            yield f"{part:.2f} of the copy's bandwidth, {bar} asked: {row[OURS].name}"


def quietness(measurements: Iterable[Measurement]) -> Iterator[str]:
    """A warning if other processes ran beside the measurement."""
    busy = {m.name: m.others_cores for m in measurements if m.others_cores is not None}
    loud = [cores for cores in busy.values() if cores > BUSY_CORES]
    if loud:
        yield (
            f"{len(loud)} of {len(busy)} rows were timed while other processes used more than {BUSY_CORES} cores (at "
            f"most {max(loud):.2f}): threads that wait for each other suffer most, so these times decide no bar. Run "
            "again on a quiet machine."
        )


def report(measurements: list[Measurement], device: str) -> Iterator[str]:
    """All that is said at the end of a run."""
    tables = list(workload_tables(measurements))
    yield from [*tables, f"{CAPTION}\n"] if tables else []
    for title, lines in (
        ("Geometric means over the ResNet-50 maps, and the bars", list(means(measurements, device))),
        ("Host time of a call on a tiny input", list(overheads(measurements, device))),
        ("A step of a whole network; x: its time over aablur's", list(networks(measurements))),
    ):
        if len(lines) > 1:
            yield f"{title}\n{aligned(_filled(lines))}\n"
    yield from imports(measurements)
    yield from losses(measurements, device)
    yield from quietness(measurements)
