"""One workload -> its measurements: judge every provider, then time those that are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from .check import Verdict, judge
from .devices import Device, Maps, Others, Run, Step, Times
from .providers import COPY, OURS, PROVIDERS, Call, Provider, step_of, takes_part
from .record import OK, WRONG, Measurement, reason
from .workloads import HUGE, Workload


def blank(workload: Workload, provider: str) -> Measurement:
    """A measurement before it is measured."""
    w = workload
    return Measurement(w.name, w.op, w.direction, w.layout, w.dtype_name, w.regime, w.group, w.size, provider)


def steps(who: Provider, call: Call, workload: Workload, sets: Sequence[Maps]) -> list[Step]:
    """One a set of maps."""
    return [step_of(who, call, workload, maps) for maps in sets]


def measure(workload: Workload, device: Device, providers: Sequence[Provider] = PROVIDERS) -> list[Measurement]:
    """Those of the providers that take part in the row, in their order."""
    sets = [device.maps(workload, number) for number in range(device.sets(workload))]
    found: dict[str, Measurement] = {}
    runs: dict[str, Run] = {}
    for who in providers:
        if not takes_part(who, workload, device):
            continue
        row = blank(workload, who.name)
        try:
            with who.setting():
                call = who.build(workload, device.where)
                if who.slack and workload.group != HUGE:
                    row = _judged(row, judge(who, call, workload, sets[0], device), workload)
            if row.status == OK:
                runs[who.name] = Run(partial(steps, who, call, workload, sets), who.setting)
        except Exception as failure:  # no C++ compiler, no memory: the other providers go on
            row = replace(row, status=reason(failure))
        found[who.name] = row
    others = Others()
    budget_s = 1.5 if workload.regime == "memory" else 0.4
    times = device.time(runs, 0.0 if device.dry else budget_s) if OURS in runs else {}
    busy = others.cores() if times and device.kind == "cpu" else None
    rows = [_timed(row, times, workload) for row in found.values()]
    return [replace(row, others_cores=busy) for row in rows]


def _judged(row: Measurement, verdict: Verdict, workload: Workload) -> Measurement:
    """With its errors and saved bytes."""
    row = replace(row, status=OK if verdict.ok else WRONG)
    if verdict.y:
        row = replace(row, max_abs_error=verdict.y.absolute, relative_error=verdict.y.relative)
    if verdict.dx:
        row = replace(row, grad_max_abs_error=verdict.dx.absolute, grad_relative_error=verdict.dx.relative)
    if (saved := verdict.saved_bytes) is not None:
        row = replace(row, saved_bytes=saved, saved_of_input=saved / workload.input_bytes)
    return row


def _timed(row: Measurement, times: dict[str, Times | Exception], workload: Workload) -> Measurement:
    """With its times, and their ratios to the copy's and to ours where these have times."""
    mine, copy, best = (times.get(name) for name in (row.provider, COPY, OURS))
    if isinstance(mine, Exception):
        return replace(row, status=reason(mine))
    if mine is None:
        return row
    moved = 2 * workload.input_bytes if row.provider == COPY else workload.minimal_bytes
    row = replace(row, ms=mine.median, ms_p20=mine.p20, ms_p80=mine.p80, how=mine.how)
    row = replace(row, gbytes_per_s=moved / mine.median / 1e6)
    if isinstance(best, Times):
        row = replace(row, speedup_of_ours=mine.median / best.median)
    if isinstance(copy, Times):
        floor_ms = copy.median * workload.minimal_bytes / (2 * workload.input_bytes)
        row = replace(row, ratio_to_copy=mine.median / copy.median, floor_ratio=mine.median / floor_ms)
    return row
