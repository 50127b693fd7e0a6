"""The tables at the end of a run."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from rich import box
from rich.table import Table

from .bars import BUSY_CORES, Outcome, Row, best_speedup, ratio_to_copy, rows_of
from .check import BASELINE_SLACK, TOLERANCES
from .providers import BASELINES, EAGER_NCHW, OURS, PROVIDERS
from .record import NOT_COMPILED, OK, Measurement
from .workloads import REGIMES

WIDTH = 175  # of the widest table, for output that is no terminal

ALLOWED = "\n".join(f"  {dtype} {most:.1e}: {why}" for dtype, (most, why) in TOLERANCES.items())

CAPTION = f"""\
Milliseconds a call: median over interleaved rounds, and (p80 - p20) / median in per cent.
x: a baseline's time over aablur's. error: the largest, of output and gradient, over the largest
magnitude of the float64 result. saved: bytes kept for backward over the input's bytes, aablur's
and eager's (which include the input where the op keeps it).
Eager runs in the layout that its column names, and its time holds the conversions from and to
the row's layout. Each call allocates what it needs, as for a user: with glibc, a large tensor
costs page faults, unless --keep-memory is given. copy writes to a tensor that exists.
torch.compile runs in the row's layout, and only beyond the cache: a compilation takes seconds.
Errors above these are wrong (a baseline, which rounds after each of its ops, may have
{BASELINE_SLACK} times as much):
{ALLOWED}"""


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) < 10**digits else f"{value:.0f}"


def _time(m: Measurement) -> str:
    if m.ms is None or m.ms_p20 is None or m.ms_p80 is None:
        return "" if m.status in (OK, NOT_COMPILED) else f"[bold red]{m.status.split(':')[0]}[/]"
    return f"{_number(m.ms)} [dim]{(m.ms_p80 - m.ms_p20) / m.ms:4.0%}[/]"


def _speedups(row: Row) -> str:
    values = (row[name].speedup_of_ours for name in BASELINES)
    return " ".join("-" if v is None else _number(v, 2) for v in values)


def _worst_error(m: Measurement) -> float | None:
    errors = (m.relative_error, m.grad_relative_error)
    return max((e for e in errors if e is not None), default=None)


def _saved(row: Row) -> str:
    ours, eager = row[OURS].saved_of_input, row[EAGER_NCHW].saved_of_input
    return "" if ours is None else f"{_number(ours, 2)} / {_number(eager, 2)}"


def line(row: Row) -> str:
    """One row in one line, for a run without a terminal."""
    m = row[OURS]
    if m.ms is None:
        return f"{m.name}  {m.status}"
    beside = ((ratio_to_copy(row), "{} of copy"), (best_speedup(row), "best x {}"))
    return ", ".join([f"{m.name}  {_number(m.ms)} ms", *(text.format(_number(v)) for v, text in beside if v)])


def workload_tables(measurements: Iterable[Measurement]) -> Iterator[Table]:
    """A table an op, pass and regime, with a line a row."""
    rows = [row for row in rows_of(measurements) if len(row) == len(PROVIDERS)]
    rows.sort(key=lambda r: (r[OURS].op, r[OURS].direction, r[OURS].regime == "cache"))
    by_table = groupby(rows, key=lambda r: (r[OURS].op, r[OURS].direction, r[OURS].regime))
    for (op, direction, regime), group in by_table:
        table = Table(title=f"{op}, {direction}, {REGIMES[regime]}", title_justify="left", box=box.SIMPLE)
        table.add_column("layout, dtype", no_wrap=True)
        table.add_column("input", no_wrap=True)
        for name in PROVIDERS:
            table.add_column(name.replace(" ", "\n"), justify="right")
        baselines = "\n".join(name.removeprefix("eager ") for name in BASELINES)
        for title in ("aablur\n/ copy", "best\nx", f"{baselines} x", "error"):
            table.add_column(title, justify="right")
        if direction != "forward":
            table.add_column("saved", justify="right")
        lines = sorted(group, key=lambda r: (r[OURS].layout, r[OURS].dtype))
        for kind, same in groupby(lines, key=lambda r: (r[OURS].layout, r[OURS].dtype)):
            label = " ".join(kind)
            for row in same:
                m = row[OURS]
                cells = [label, m.shape, *(_time(row[name]) for name in PROVIDERS)]
                cells += [_number(m.ratio_to_copy), _number(best_speedup(row)), _speedups(row)]
                cells += [_number(_worst_error(m), 2)]
                table.add_row(*cells, *([_saved(row)] if direction != "forward" else []))
                label = ""
            table.add_section()
        yield table


def quietness(measurements: Iterable[Measurement]) -> str:
    """A warning if other processes ran beside the measurement; else nothing."""
    busy = {m.name: m.others_cores for m in measurements if m.others_cores is not None}
    loud = [cores for cores in busy.values() if cores > BUSY_CORES]
    if not loud:
        return ""
    return (
        f"{len(loud)} of {len(busy)} rows were timed while other processes used more than "
        f"{BUSY_CORES} cores (at most {max(loud):.2f}): threads that wait for each other suffer "
        "most, so these times decide no bar. Run again on a quiet machine."
    )


def _verdict(outcome: Outcome) -> str:
    if outcome.met is None:
        return _number(outcome.value)
    mark = "[green]met[/]" if outcome.met else "[bold red]not met[/]"
    if outcome.busy:
        mark = "[yellow]undecided[/]"
    return f"{_number(outcome.value)} {outcome.bar} {mark}"


def outcome_table(results: Iterable[Outcome], title: str, names: tuple[str, ...]) -> Table:
    """A line a group under the names of its parts, and each quantity beside its bar."""
    results = list(results)
    quantities = list(dict.fromkeys(r.quantity for r in results))
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for name in names:
        table.add_column(name)
    table.add_column("rows", justify="right")
    for quantity in quantities:
        table.add_column(quantity, justify="right")
    for group, parts in groupby(results, key=lambda r: r.group):
        cells = {part.quantity: part for part in parts}
        count = max(part.count for part in cells.values())
        values = (_verdict(cells[q]) if q in cells else "" for q in quantities)
        table.add_row(*group, str(count), *values)
    return table
