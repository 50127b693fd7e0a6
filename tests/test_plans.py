"""Promise: time and memory of a call follow from its maps, not from pads and strides; long axes are right, too."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from case import MODES, Case, assert_right, call, make_input, make_taps, verdict

import aablur

LARGEST = 2**31 - 1
LISTED = 2**16  # csrc/cpu/kernels.h: most_listed_rows


def source(p: int, n: int, mode: str) -> int | None:
    """What padded position p of a line of n reads, from the definitions of the modes."""
    if 0 <= p < n:
        return p
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if p < 0 else n - 1
    if mode == "circular":
        return p % n
    return 0 if n == 1 else (n - 1) - abs((p % (2 * n - 2)) - (n - 1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_the_largest_pads_and_strides(n: int, mode: str) -> None:
    """Every output lies 2**31 - 1 from the next: what lies between takes no time."""
    for stride, before, after in (
        (LARGEST, LARGEST, LARGEST), (LARGEST - 5, LARGEST, LARGEST - 1), (2**30, LARGEST, 17), (2**20, 2**24, 2**24),
    ):  # fmt: skip
        out = (n + before + after - 3) // stride + 1
        matrix = torch.zeros(out, n, dtype=torch.float64)
        for o, tap in itertools.product(range(out), range(3)):
            i = source(o * stride - before + tap, n, mode)
            if i is not None:
                matrix[o, i] += (0.25, 0.5, 0.25)[tap]
        x = torch.randn(2, n, dtype=torch.float64, requires_grad=True)
        y = aablur.blur_pool1d(x, stride=stride, padding=((before, after),), padding_mode=mode)
        torch.testing.assert_close(y, x @ matrix.T)
        grad = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, grad)[0], grad @ matrix)


@pytest.mark.parametrize("shape", [(1, 1, 2**24), (1, 1, 2**24, 1)], ids=["width", "height"])
def test_peak_memory_of_a_long_axis(shape: tuple[int, ...]) -> None:
    """A map of 64 MiB: its output has 32, a row of sums 64, tables and all else 16 at most."""
    code = (
        "import resource, torch, aablur\n"
        "torch.set_num_threads(1)\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        f"x = torch.randn({shape})\n"
        "f = aablur.blur_pool1d if x.ndim == 3 else aablur.blur_pool2d\n"
        "aablur.blur_pool1d(x[..., :9] if x.ndim == 3 else x[:, :, :9, 0])\n"
        "before = peak()\n"
        "y = f(x)\n"
        "forward = peak() - before\n"
        "y, grad = f(x.requires_grad_()), torch.ones_like(y)\n"
        "before = peak()\n"
        "y.backward(grad)\n"
        "print(forward, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    forward, backward = map(float, done.stdout.split())
    assert forward < 112 and backward < 112, (forward, backward)


def long_cases() -> list[Case]:
    found = []
    turns = itertools.cycle(
        itertools.product(("f32", "f64", "bf16"), ("s3", 4, "c5"), ((3, 5), (-7, 4), (0, 0), (2, -9), (1, 1)))
    )
    for stride, mode, window in itertools.product((1, 2, 3), MODES, (None, 2)):
        dtype, taps, pads = next(turns)
        n = stride * LISTED + 300
        case = Case("long", (1, 1, n), 1, taps, stride, (pads,), mode, window, dtype=dtype)
        tall = Case("tall", (1, 1, n, 2), 2, taps, (stride, 1), (pads, (2, 3)), mode, window, dtype=dtype)
        found += [case, tall]
        if stride == 2:
            last = Case(
                "last", (1, 3, 2, n), 2, taps, (1, stride), ((2, 3), pads), mode, window, layout="channels_last"
            )
            found.append(last)
    return found


@pytest.mark.parametrize("case", long_cases(), ids=lambda c: c.id)
def test_long_axes(case: Case) -> None:
    """Of whose tables the inside is left out."""
    x, (taps, tensors) = make_input(case).requires_grad_(), make_taps(case)
    leaves = [x, *[t.requires_grad_() for t in tensors]]
    y = call(case, x, taps)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    results = [y.detach(), *torch.autograd.grad(y, leaves, grad)]
    assert_right(case, results, verdict(case, x, taps, grad), tensors)
