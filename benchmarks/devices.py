"""How time is taken on a device: interleaved wall time on a CPU, replays of CUDA graphs on a GPU."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import ClassVar

import torch
from torch import Tensor

from .workloads import Workload

SAMPLE_S = 5e-3  # far above the clock's step and the waking of a thread
MIN_ROUNDS = 3
LEAST_STEPS = 10  # of a CUDA graph, for the gap before it to count little

# Parameters of mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4

Step = Callable[[], object]


@dataclass(frozen=True)
class Maps:
    """One set of a workload's maps, of those that are rotated over."""

    x: Tensor
    dy: Tensor


@dataclass(frozen=True)
class Times:
    """Milliseconds a call, over rounds."""

    median: float
    p20: float
    p80: float
    how: str  # clock; graph, or events where the capture failed


@dataclass(frozen=True)
class Run:
    """What is timed: its steps, one a set of maps, are made, warmed up and timed inside its setting."""

    make: Callable[[], Sequence[Step]]
    setting: Callable[[], AbstractContextManager[object]] = nullcontext
    graph: bool = True


def summary(seconds: Sequence[float], how: str = "clock") -> Times:
    """Median, 20th and 80th percentile in milliseconds."""
    p20, _, _, p80 = quantiles(seconds, n=5, method="inclusive")
    return Times(1e3 * median(seconds), 1e3 * p20, 1e3 * p80, how)


def timed(call: Step, inner: int) -> float:
    """Wall time of `inner` calls in a row."""
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return time.perf_counter() - start


def interleave(
    calls: Mapping[str, Step], *, rounds: int, budget_s: float, settle: Step = lambda: None, sample_s: float = SAMPLE_S
) -> dict[str, Times]:
    """Time every call in turn, in an order rotated each round, so that a slow spell of the machine hits all.

    Each sample follows one call that is not timed. Others' turns may take seconds, in which a virtual machine gives
    memory that is free back to its host: what its return costs then is no part of a call that is made again and again.

    A call that has used up its share of the budget drops out after MIN_ROUNDS, so that a slow baseline cannot make a
    row long; the others go on to `rounds`. `settle` waits for a device, outside of the samples.
    """
    names = list(calls)
    share = budget_s / max(len(names), 1)
    inner: dict[str, int] = {}
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            calls[name]()
            once = min(timed(calls[name], 1) for _ in range(3))  # one may have met another process
            inner[name] = math.ceil(sample_s / max(once, 1e-9))
        for turn in range(rounds if names else 0):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                spent = sum(samples[name]) * inner[name]
                if len(samples[name]) < MIN_ROUNDS or spent < share:
                    calls[name]()
                    samples[name].append(timed(calls[name], inner[name]) / inner[name])
                    settle()
    finally:
        if collecting:
            gc.enable()
    return {name: summary(samples[name]) for name in names}


def noise(shape: tuple[int, ...], dtype: torch.dtype, where: str, seed: int) -> Tensor:
    return torch.randn(shape, dtype=dtype, device=where, generator=torch.Generator(where).manual_seed(seed))


@dataclass(frozen=True)
class Device(ABC):
    """Where workloads run. `kind` says whose: a dry run of those of a GPU runs on the CPU, too."""

    kind: str  # cpu or cuda
    rounds: int = 15
    dry: bool = False

    where: ClassVar[str] = "cpu"  # torch's device
    images_judged: ClassVar[int | None] = None  # of a batch, the first and the last; None: all

    @abstractmethod
    def time(self, runs: Mapping[str, Run], budget_s: float) -> dict[str, Times | Exception]:
        """The times of each run, or why it failed."""

    def sets(self, workload: Workload) -> int:
        """How many sets of maps the steps rotate over. Beyond the cache two: while one is read, the other leaves it."""
        return 2 if workload.regime == "memory" else 1

    def maps(self, workload: Workload, number: int) -> Maps:
        """The same maps for the same number, in the workload's layout and dtype."""
        x = self.input(workload, number)
        dy = noise(workload.out_shape, workload.dtype, self.where, 2 * number + 1)
        x, dy = (t.contiguous(memory_format=workload.memory_format) for t in (x, dy))
        return Maps(x, dy)

    def input(self, workload: Workload, number: int) -> Tensor:
        return noise(workload.shape, workload.dtype, self.where, 2 * number)

    def settle(self) -> None:  # noqa: B027
        """Wait until the device is idle."""

    def peak_mib(self, step: Step) -> float | None:
        """Of the device's memory while a step runs, where it is known."""
        return None


class Cpu(Device):
    def time(self, runs: Mapping[str, Run], budget_s: float) -> dict[str, Times | Exception]:
        calls: dict[str, Step] = {}
        failed: dict[str, Exception] = {}
        for name, run in runs.items():
            try:
                with run.setting():
                    turn = cycle(run.make())
                    next(turn)()
            except Exception as failure:  # no compiler, no memory: the others go on
                failed[name] = failure
                continue
            calls[name] = lambda turn=turn: next(turn)()
        return interleave(calls, rounds=self.rounds, budget_s=budget_s) | failed

    def input(self, workload: Workload, number: int) -> Tensor:
        """A feature map of photographs; noise in a dry run, which needs torch alone."""
        if self.dry:
            return super().input(workload, number)
        from .photos import feature_map

        return feature_map(workload.shape).to(workload.dtype, copy=True)


class Cuda(Device):
    where = "cuda"
    images_judged = 8

    def sets(self, workload: Workload) -> int:
        """As many as hold three second-level caches: none is in the cache when its turn comes."""
        cache = torch.cuda.get_device_properties(self.where).L2_cache_size
        return max(1, -(-3 * cache // workload.minimal_bytes))

    def settle(self) -> None:
        torch.cuda.synchronize()

    def peak_mib(self, step: Step) -> float | None:
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20

    def time(self, runs: Mapping[str, Run], budget_s: float) -> dict[str, Times | Exception]:
        """One run after the other: their graphs would not fit into memory side by side."""
        found: dict[str, Times | Exception] = {}
        for name, run in runs.items():
            try:
                with run.setting():
                    found[name] = self._replays(run)
            except Exception as failure:  # no compiler, no memory: the others go on
                found[name] = failure
        return found

    def _replays(self, run: Run) -> Times:
        """Events around replays of a graph of the steps, which are made on the stream that they are timed on."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            steps = run.make()
            for _ in range(3):
                for step in steps:
                    step()
            stream.synchronize()
            again = -(-LEAST_STEPS // len(steps)) if run.graph else 1

            def plain() -> None:
                for _ in range(again):
                    for step in steps:
                        step()

            replay, how = plain, "events"
            if run.graph:
                graph = torch.cuda.CUDAGraph()
                try:
                    with torch.cuda.graph(graph, stream=stream):
                        plain()
                    replay, how = graph.replay, "graph"
                except RuntimeError:  # a step that waits for the device, say; its plain calls are timed
                    torch.cuda.synchronize()
            replay()
            repeats = max(1, int(SAMPLE_S / max(_events(replay, 1), 1e-6)))
            seconds = [_events(replay, repeats) / (repeats * again * len(steps)) for _ in range(self.rounds)]
        return summary(seconds, how)


def _events(call: Step, times: int) -> float:
    """Seconds that the current stream takes for so many calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def device_of(kind: str, rounds: int = 15, dry: bool = False) -> Device:
    """The device to measure on; a dry run of either needs no GPU.

    Raises:
        ValueError: torch finds no such device.
    """
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {kind!r}")
    if dry or kind == "cpu":
        return Cpu(kind, rounds, dry)
    if not torch.cuda.is_available():
        raise ValueError("device is cuda, and torch finds no CUDA device; --dry-run runs tiny maps on the CPU")
    return Cuda(kind, rounds)


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks for the next call; True if it will.

    By default it gives blocks above 32 MiB back to the system, and the next tensor of that size costs a page fault
    every 4 KiB, several times what a copy of it costs. Eager, with its padded copies and indices, pays most. Both are
    worth knowing: a plain Python process has the default, one under jemalloc or tcmalloc keeps its memory.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    no_maps = libc.mallopt(M_MMAP_MAX, 0)
    no_trim = libc.mallopt(M_TRIM_THRESHOLD, -1)
    return bool(no_maps and no_trim)


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
