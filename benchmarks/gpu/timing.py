"""Time on a GPU: replays of a CUDA graph over sets of maps that together are larger than three second-level caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

ROUNDS = 15
SAMPLE_MS = 4.0
LEAST_STEPS = 10  # of a graph, for the gap before it to count little


@dataclass(frozen=True)
class Times:
    """Milliseconds a step."""

    median: float
    p20: float
    p80: float
    how: str  # "graph", or "events" where the capture failed, or "clock" on a CPU


def rotations(bytes_a_set: int, device: str) -> int:
    """Sets of maps so that none of them is in the cache when its turn comes."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
    return max(1, -(-3 * cache // bytes_a_set))


def _times(sample: Callable[[], float], how: str) -> Times:
    samples = [sample() for _ in range(ROUNDS)]
    fifths = quantiles(samples, n=5)
    return Times(median(samples), fifths[0], fifths[3], how)


def _events(run: Callable[[], object], steps: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / steps


def time_steps(make: Callable[[], Sequence[Callable[[], object]]], device: str, graph: bool = True) -> Times:
    """Times the steps that `make` gives, one after the other. They are made on the stream that they are timed on."""
    if device == "cpu":
        steps = make()
        clock = time.perf_counter

        def sample() -> float:
            start = clock()
            for step in steps:
                step()
            return (clock() - start) * 1e3 / len(steps)

        sample()
        return _times(sample, "clock")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        steps = make()
        for _ in range(3):
            for step in steps:
                step()
        stream.synchronize()

        again = -(-LEAST_STEPS // len(steps)) if graph else 1

        def plain() -> None:
            for _ in range(again):
                for step in steps:
                    step()

        run, how = plain, "events"
        if graph:
            captured = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(captured, stream=stream):
                    plain()
                run, how = captured.replay, "graph"
            except RuntimeError:  # a step that waits for the device, say; its plain calls are timed
                torch.cuda.synchronize()
        run()
        once = _events(run, 1)
        repeats = max(1, int(SAMPLE_MS / max(once, 1e-3)))

        def sample() -> float:
            return _events(lambda: [run() for _ in range(repeats)], repeats * again * len(steps))

        return _times(sample, how)


def host_microseconds(call: Callable[[], object], device: str, calls: int = 2000) -> float:
    """Host time of one call, the least of five runs; the device is waited for between runs alone."""
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter() - start) / calls)
        if device == "cuda":
            torch.cuda.synchronize()
    return best * 1e6
