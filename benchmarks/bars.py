"""The bars that aablur is to meet, as data, and the verdict of a run on each."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from statistics import geometric_mean

from .micro import INFERENCE, MAX_POOL
from .providers import BASELINES, OURS
from .record import OK, Measurement
from .workloads import RESNET50_MAPS

Row = dict[str, Measurement]  # provider -> measurement of one row


def best_speedup(row: Row) -> float | None:
    """Time of the fastest baseline over ours."""
    speedups = [m.speedup_of_ours for name in BASELINES if (m := row.get(name)) and m.speedup_of_ours is not None]
    return min(speedups, default=None)


def ratio_to_copy(row: Row) -> float | None:
    return row[OURS].ratio_to_copy


def saved_fraction(row: Row) -> float | None:
    return row[OURS].saved_of_input


@dataclass(frozen=True)
class Bar:
    """A limit on one quantity of one op and pass, over the ResNet-50 maps beyond the cache."""

    quantity: str
    value: Callable[[Row], float | None]
    op: str
    direction: str
    limit: float
    at_most: bool
    combine: Callable[[list[float]], float] = geometric_mean
    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:.3g}"


COPY_RATIO = "time / copy"
SPEEDUP = "best baseline / aablur"
SAVED = "saved / input (worst)"

# 1 % of the input: shapes and flags may be kept, a tensor of a map's size may not.
BARS = (
    Bar(COPY_RATIO, ratio_to_copy, "blur_pool2d", "forward", 1.0, True),
    Bar(SPEEDUP, best_speedup, "blur_pool2d", "forward", 4.0, False),
    Bar(SPEEDUP, best_speedup, "blur_pool2d", "forward+backward", 6.0, False),
    Bar(SPEEDUP, best_speedup, "max_blur_pool2d", "forward+backward", 12.0, False),
    Bar(SAVED, saved_fraction, "blur_pool2d", "forward+backward", 0.01, True, max),
    Bar(
        SAVED,
        saved_fraction,
        "max_blur_pool2d",
        "forward+backward",
        1 / 16,
        True,
        max,
        ("float32",),
    ),
)
OVERHEAD_LIMIT = 3.0  # times F.max_pool2d
INFERENCE_LIMIT_US = 5.0  # beyond F.max_pool2d
IMPORT_LIMIT_MS = 50.0
BUSY_CORES = 0.15  # used by other processes: above this, times say nothing

QUANTITIES = (
    (COPY_RATIO, ratio_to_copy, geometric_mean),
    (SPEEDUP, best_speedup, geometric_mean),
    (SAVED, saved_fraction, max),
)


def rows_of(measurements: Iterable[Measurement]) -> list[Row]:
    """Measurements of one name, keyed by provider; names keep their order."""
    return [{m.provider: m for m in group} for _, group in groupby(measurements, key=lambda m: m.name)]


@dataclass(frozen=True)
class Outcome:
    """One quantity of one group (op, pass, layout, dtype, regime), and its bar if it has one."""

    group: tuple[str, ...]
    quantity: str
    value: float
    count: int
    bar: str = ""
    met: bool | None = None
    busy: bool = False  # other processes disturbed the times, so that they decide nothing


def _busy(rows: list[Row]) -> bool:
    return any((row[OURS].others_cores or 0) > BUSY_CORES for row in rows)


def outcomes(measurements: Iterable[Measurement]) -> Iterator[Outcome]:
    """Geometric means (worst case for saved bytes) over the ResNet-50 maps, group by group."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    sizes = {f"{c}x{s}x{s}" for c, s in RESNET50_MAPS}
    for row in rows_of(measurements):
        if not (m := row.get(OURS)):
            continue
        if m.shape.partition("x")[2] in sizes and m.regime in ("memory", "cache"):
            key = (m.op, m.direction, m.layout, m.dtype, m.regime)
            groups.setdefault(key, []).append(row)
    for key, rows in sorted(groups.items(), key=lambda item: (item[0][4] == "cache", item[0])):
        for quantity, of_row, combine in QUANTITIES:
            values = [v for row in rows if (v := of_row(row)) is not None]
            if not values:
                continue
            value = combine(values)
            bar = next((b for b in BARS if b.quantity == quantity and _covers(b, key)), None)
            right = all(row[OURS].status == OK for row in rows)
            met = right and bar.met(value) if bar else None
            busy = quantity != SAVED and _busy(rows)
            yield Outcome(key, quantity, value, len(values), str(bar or ""), met, busy)


def _covers(bar: Bar, key: tuple[str, ...]) -> bool:
    op, direction, _, dtype, regime = key
    return (bar.op, bar.direction) == (op, direction) and dtype in bar.dtypes and regime == "memory"


def micro_outcomes(measurements: Iterable[Measurement]) -> Iterator[Outcome]:
    """Call overhead against F.max_pool2d, and the import."""
    for row in rows_of(m for m in measurements if m.regime in ("overhead", "import")):
        ours = row[OURS]
        if ours.ms is None:
            continue
        group = ("call overhead", ours.op, ours.direction)
        if (pool := row.get(MAX_POOL)) and ours.direction == INFERENCE:
            value = 1e3 * (ours.ms - (pool.ms or float("nan")))
            bar, limit, quantity = f"<= {INFERENCE_LIMIT_US:.3g}", INFERENCE_LIMIT_US, "us beyond max_pool2d's"
        elif pool:
            value = 1 / (pool.speedup_of_ours or float("nan"))
            bar, limit, quantity = f"<= {OVERHEAD_LIMIT:.3g}", OVERHEAD_LIMIT, "time / max_pool2d"
        else:
            value, group = ours.ms, ("import", "aablur", "")
            bar, limit, quantity = f"< {IMPORT_LIMIT_MS:.3g}", IMPORT_LIMIT_MS, "ms beyond torch's"
        yield Outcome(group, quantity, value, 1, bar, value <= limit, _busy([row]))
