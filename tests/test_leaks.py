"""Promise: a call leaves no memory behind, of whatever op, in either direction."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_torch import SAMPLES
from torch import Tensor

import aablur

CALLS = 3_000
LEAST = 16  # bytes a call: malloc's smallest block has 32, and what Python and torch keep now and then is less
OPS = torch.ops.aablur


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def bytes_in_use() -> int:
    """Of all of malloc's blocks, those that it has asked the system for one by one included."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return found.uordblks + found.hblkhd


def leaked(call: Callable[[], Any]) -> float:
    """Bytes a call, once caches are filled."""
    for _ in range(100):
        call()
    before = bytes_in_use()
    for _ in range(CALLS):
        call()
    return (bytes_in_use() - before) / CALLS


def calls() -> list[Any]:
    """Each op once in each layout, then forward and backward of the public functions."""
    found = {}
    for sample in SAMPLES:
        op, args = sample.values
        kinds = tuple(a is None for a in args)
        found.setdefault((op, kinds), lambda op=op, args=args: getattr(OPS, op)(*args))
    named = {f"{op}-{i}": call for i, ((op, _), call) in enumerate(found.items())}
    named |= {name: getattr(OPS, name) for name in ("cpu_isa", "cuda_archs")}
    return [pytest.param(call, id=name) for name, call in named.items()]


@pytest.mark.parametrize("call", calls())
def test_ops_leak_nothing(call: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    assert leaked(call) < LEAST


@pytest.mark.parametrize("recompute", [None, False, True])
def test_training_leaks_nothing(recompute: bool | None) -> None:
    torch.set_num_threads(1)
    x, taps = torch.randn(2, 3, 6, 7, requires_grad=True), torch.rand(3, requires_grad=True)

    def step() -> list[Tensor]:
        if recompute is None:
            y = aablur.blur_pool2d(x, taps)
        else:
            y = aablur.max_blur_pool2d(x, taps=taps, recompute=recompute)
        return list(torch.autograd.grad(y.sum(), (x, taps)))

    assert leaked(step) < LEAST


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_no_mode_leaks(padding_mode: str) -> None:
    torch.set_num_threads(1)
    x = torch.randn(1, 2, 6)
    assert leaked(lambda: OPS.blur_pool(x, None, [3, 2, 1, 1], padding_mode)) < LEAST
