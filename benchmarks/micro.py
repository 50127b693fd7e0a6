"""Two costs that no kernel can hide: the Python of one call, and the import."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import torch
import torch.nn.functional as F

from .devices import Device, Others, Step, Times, interleave, summary
from .providers import MAX_POOL, OURS, Call, blur, max_blur
from .record import Measurement
from .workloads import BOTH, FORWARD

INFERENCE = "inference"  # no gradient is asked for; else the graph is recorded
TINY = (1, 4, 4, 4)
IMPORTS = 7

IMPORT_CODE = """
import time, torch
start = time.perf_counter()
import aablur
print(time.perf_counter() - start)
"""


def _step(op: Call, x: torch.Tensor, backward: bool) -> Step:
    if not backward:
        return lambda: op(x)
    dy = torch.ones_like(op(x)).detach()
    return lambda: torch.autograd.grad(op(x), x, dy)


def overhead(device: Device) -> list[Measurement]:
    """Host time of one eager call on a tiny input, without and with a gradient, beside F.max_pool2d's."""
    measurements = []
    ours: dict[str, Call] = {"blur_pool2d": blur, "max_blur_pool2d": max_blur}
    ops: dict[str, Call] = {MAX_POOL: lambda x: F.max_pool2d(x, 2), **ours}
    for direction in (INFERENCE, FORWARD, BOTH):
        x = torch.rand(TINY, device=device.where).requires_grad_(direction != INFERENCE)
        others = Others()
        calls = {name: _step(op, x, direction == BOTH) for name, op in ops.items()}
        budget_s = 0.0 if device.dry else 2.0
        times = interleave(calls, rounds=device.rounds, budget_s=budget_s, settle=device.settle)
        busy = others.cores() if device.kind == "cpu" else None
        for op in ours:
            name, size = f"overhead/{op}/{direction}", "x".join(map(str, TINY))
            for who, taken in ((OURS, times[op]), (MAX_POOL, times[MAX_POOL])):
                row = Measurement(name, op, direction, "NCHW", "float32", "overhead", "", size, who, others_cores=busy)
                measurements.append(_timed(replace(row, speedup_of_ours=taken.median / times[op].median), taken))
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


def _timed(row: Measurement, taken: Times) -> Measurement:
    return replace(row, ms=taken.median, ms_p20=taken.p20, ms_p80=taken.p80, how=taken.how)
