"""Two costs that no kernel can hide: the Python of one call, and the import."""

import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .providers import OURS, ours, ours_max
from .record import Measurement
from .timing import Others, Times, interleave, summary
from .workloads import PASSES

MAX_POOL = "F.max_pool2d"
INFERENCE = "inference"  # no gradient is asked for; else the graph is recorded
TINY = (1, 4, 4, 4)
IMPORTS = 7

IMPORT_CODE = """
import time, torch
start = time.perf_counter()
import aablur
print(time.perf_counter() - start)
"""


def _call(op: Callable[[Tensor], Tensor], x: Tensor, backward: bool) -> Callable[[], object]:
    if not backward:
        return lambda: op(x)
    dy = torch.ones_like(op(x)).detach()
    return lambda: torch.autograd.grad(op(x), x, dy)


def overhead(rounds: int) -> list[Measurement]:
    """One eager call on a tiny input, without and with a gradient, beside F.max_pool2d's."""
    measurements = []
    for direction in (INFERENCE, *PASSES):
        x = torch.rand(TINY).requires_grad_(direction != INFERENCE)
        others = Others()
        ops = {"blur_pool2d": ours, "max_blur_pool2d": ours_max}
        backward = direction == PASSES[1]
        calls = {name: _call(op, x, backward) for name, op in ops.items()}
        pool = _call(lambda t: F.max_pool2d(t, 2), x, backward)
        times = interleave({MAX_POOL: pool, **calls}, rounds=rounds, budget_s=2.0)
        busy = others.cores()
        for op in ops:
            for who, time in ((OURS, times[op]), (MAX_POOL, times[MAX_POOL])):
                measurements.append(_row("overhead", op, direction, who, time, times[op], busy))
    return measurements


def import_time() -> list[Measurement]:
    """`import aablur` after `import torch`, in fresh interpreters."""
    command = [sys.executable, "-c", IMPORT_CODE]
    others = Others()
    seconds = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(IMPORTS)
    ]
    busy = others.cores()
    return [_row("import", "aablur", "", OURS, summary(seconds), None, busy)]


def _row(
    regime: str,
    op: str,
    direction: str,
    who: str,
    time: Times,
    of_ours: Times | None,
    busy: float | None,
) -> Measurement:
    tiny = regime == "overhead"
    return Measurement(
        name=f"{regime}/{op}/{direction}" if direction else f"{regime}/{op}",
        op=op,
        direction=direction,
        layout="NCHW" if tiny else "",
        dtype="float32" if tiny else "",
        regime=regime,
        shape="x".join(map(str, TINY)) if tiny else "",
        provider=who,
        ms=time.median,
        ms_p20=time.p20,
        ms_p80=time.p80,
        speedup_of_ours=time.median / of_ours.median if of_ours else None,
        others_cores=busy,
    )
