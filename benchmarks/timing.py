"""Interleaved sampling: providers take turns, so that a slow spell of the machine hits all."""

import gc
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_S = 5e-3  # far above the clock's step and the waking of a thread
MIN_ROUNDS = 3
WARM_S = 0.1  # a first call above this is long enough to say how long a call takes

# Seconds that a number of calls took. A CUDA timer would take the same arguments.
Timer = Callable[[Callable[[], object], int], float]


def cpu_timer(call: Callable[[], object], inner: int) -> float:
    """Wall time of `inner` calls in a row."""
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Times:
    """Milliseconds a call, over rounds."""

    median: float
    p20: float
    p80: float


def summary(seconds: list[float]) -> Times:
    """Median, 20th and 80th percentile in milliseconds."""
    p20, median, p80 = np.percentile(np.asarray(seconds) * 1e3, (20, 50, 80))
    return Times(float(median), float(p20), float(p80))


class Others:
    """Cores' worth of processor time that other processes used since this was made."""

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[float, float] | None:
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = (
            int(field) for field in stat.read_text().split()[1:9]
        )
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy - sum(os.times()[:4])

    def cores(self) -> float | None:
        after = self._read()
        if self._before is None or after is None:
            return None
        return max(0.0, (after[1] - self._before[1]) / (after[0] - self._before[0]))


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    budget_s: float,
    timer: Timer = cpu_timer,
) -> dict[str, Times]:
    """Time every call in turn, in an order rotated each round.

    A call that has used up its share of the budget drops out after MIN_ROUNDS, so that a slow
    baseline cannot make a row long; the others go on to `rounds`.
    """
    names = list(calls)
    inner: dict[str, int] = {}
    for name in names:
        first = timer(calls[name], 1)
        once = timer(calls[name], 1) if first < WARM_S else first
        inner[name] = max(1, math.ceil(SAMPLE_S / max(once, 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    share = budget_s / len(names)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                spent = sum(samples[name]) * inner[name]
                if turn < MIN_ROUNDS or spent < share:
                    samples[name].append(timer(calls[name], inner[name]) / inner[name])
    finally:
        if collecting:
            gc.enable()
    return {name: summary(samples[name]) for name in names}
