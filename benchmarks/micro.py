"""Two costs that no kernel can hide: the Python of one call, and the import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from .devices import Device, Others, Step, Times, interleave, summary
from .providers import COMPILE, MAX_POOL, OURS, Call, blur, max_blur
from .record import Measurement
from .workloads import BOTH, FORWARD

INFERENCE = "inference"  # no gradient is asked for; else the graph is recorded
TINY = (1, 4, 4, 4)
MANY = 10  # calls in one graph
SAMPLE_S, SAMPLES = 3e-4, 20  # many short samples, a round: most fall between two turns of other processes
COMPILE_MAX_POOL, NODE, CPP_NODE = f"{COMPILE} {MAX_POOL}", "node in Python", "node in C++"
IMPORTS = 7

IMPORT_CODE = """
import time, torch
start = time.perf_counter()
import aablur
print(time.perf_counter() - start)
"""


class _View(torch.autograd.Function):
    """A node in Python, of which everything beyond torch's own view is the price."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def _each(op: Call, xs: list[Tensor]) -> list[Tensor]:
    return [op(x) for x in xs]


def _step(call: Callable[..., Any], given: Tensor | list[Tensor], backward: bool) -> Step:
    if not backward:
        return lambda: call(given)
    dy = tree_map(torch.ones_like, call(given))
    return lambda: torch.autograd.grad(call(given), given, dy)


def overhead(device: Device, compiled: bool = False) -> list[Measurement]:
    """Host time of a call on a tiny input, without and with a gradient, beside F.max_pool2d's.

    With `compiled` also by torch.compile, alone and as one of many calls in a graph, and that of an autograd node that
    does nothing, in Python and in C++. All times are of one call.
    """
    measurements = []
    ours: dict[str, Call] = {"blur_pool2d": blur, "max_blur_pool2d": max_blur}
    nodes: dict[str, Call] = {NODE: super(torch.autograd.Function, _View).apply, CPP_NODE: lambda x: x.view_as(x)}  # pyright: ignore
    for calls, direction in product((1, MANY) if compiled else (1,), (INFERENCE, FORWARD, BOTH)):
        xs = [torch.rand(TINY, device=device.where).requires_grad_(direction != INFERENCE) for _ in range(calls)]
        given = xs if calls > 1 else xs[0]
        ops: dict[str, Callable[..., Any]] = {MAX_POOL: _max_pool, **ours}
        if calls > 1:
            ops = {name: partial(_each, op) for name, op in ops.items()}
        timed = dict(ops)
        if compiled:
            torch._dynamo.reset()  # which else asks the guards of earlier graphs, too
            timed |= {f"{COMPILE} {name}": torch.compile(op, dynamic=False, fullgraph=True) for name, op in ops.items()}
            timed |= nodes if calls == 1 and direction != INFERENCE else {}
        others = Others()
        steps = {name: _step(call, given, direction == BOTH) for name, call in timed.items()}
        rounds, budget_s = (device.rounds, 0.0) if device.dry else (SAMPLES * device.rounds, float("inf"))
        times = interleave(steps, rounds=rounds, budget_s=budget_s, settle=device.settle, sample_s=SAMPLE_S)
        busy = others.cores() if device.kind == "cpu" else None
        for op in ours:
            name, group = f"overhead/{op}/{direction}", f"{calls} calls" if calls > 1 else ""
            row = Measurement(
                f"{name}/{group}" if group else name, op, direction, "NCHW", "float32", "overhead", group,
                "x".join(map(str, TINY)), OURS, others_cores=busy,
            )  # fmt: skip
            keys = {OURS: op, MAX_POOL: MAX_POOL, COMPILE: f"{COMPILE} {op}", COMPILE_MAX_POOL: COMPILE_MAX_POOL}
            for who, key in (keys | {name: name for name in nodes}).items():
                if key in times:
                    speedup = times[key].median / times[op].median
                    measurements.append(_timed(replace(row, provider=who, speedup_of_ours=speedup), times[key], calls))
    return measurements


def import_time() -> list[Measurement]:
    """`import aablur` after `import torch`, in fresh interpreters."""
    command = [sys.executable, "-c", IMPORT_CODE]
    others = Others()
    seconds = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(IMPORTS)
    ]
    busy = others.cores()
    row = Measurement("import/aablur", "aablur", "", "", "", "import", "", "", OURS, others_cores=busy)
    return [_timed(row, summary(seconds))]


def _timed(row: Measurement, taken: Times, calls: int = 1) -> Measurement:
    return replace(row, ms=taken.median / calls, ms_p20=taken.p20 / calls, ms_p80=taken.p80 / calls, how=taken.how)
