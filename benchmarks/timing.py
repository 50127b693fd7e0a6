"""Interleaved sampling: providers take turns, so that a slow spell of the machine hits all."""

import ctypes
import gc
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_S = 5e-3  # far above the clock's step and the waking of a thread
MIN_ROUNDS = 3

# Parameters of mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def timed(call: Callable[[], object], inner: int) -> float:
    """Wall time of `inner` calls in a row."""
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return time.perf_counter() - start


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks for the next call; True if it will.

    By default it gives blocks above 32 MiB back to the system, and the next tensor of that size
    costs a page fault every 4 KiB, several times what a copy of it costs. Eager, with its padded
    copies and indices, pays most. Both are worth knowing: a plain Python process has the
    default, one under jemalloc or tcmalloc keeps its memory.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    no_maps = libc.mallopt(M_MMAP_MAX, 0)
    no_trim = libc.mallopt(M_TRIM_THRESHOLD, -1)
    return bool(no_maps and no_trim)


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
) -> dict[str, Times]:
    """Time every call in turn, in an order rotated each round.

    Each sample follows one call that is not timed. Others' turns may take seconds, in which a virtual machine gives
    memory that is free back to its host: what its return costs then is no part of a call that is made again and again.

    A call that has used up its share of the budget drops out after MIN_ROUNDS, so that a slow
    baseline cannot make a row long; the others go on to `rounds`. Every call has run before.
    """
    names = list(calls)
    share = budget_s / len(names)
    inner: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            calls[name]()
            inner[name] = math.ceil(SAMPLE_S / max(timed(calls[name], 1), 1e-9))
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                spent = sum(samples[name]) * inner[name]
                if len(samples[name]) < MIN_ROUNDS or spent < share:
                    calls[name]()
                    samples[name].append(timed(calls[name], inner[name]) / inner[name])
    finally:
        if collecting:
            gc.enable()
    return {name: summary(samples[name]) for name in names}
