"""Promise: the same bits every run, whatever the threads, and whatever lay in memory before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from case import Case, call, make_input, make_taps, same_bits
from cases import CASES
from torch import Tensor
from torch.utils._pytree import tree_leaves

from aablur.geometry import Geometry

OPS = torch.ops.aablur
LARGE = [  # enough work, and few enough planes, that threads share a plane; more than one round of partial sums
    Case("large", (2, 3, 190, 131), taps="s3"),
    Case("large", (1, 1, 400, 301), taps="c4", padding_mode="circular", dtype="bf16"),
    Case("large", (2, 70, 61, 57), taps="c3", layout="channels_last", padding_mode="zeros"),
    Case("large", (1, 33, 150, 40), taps="s5", layout="channels_last", dtype="f16"),
    Case("large", (4, 64, 31, 33), taps="c3", stride=1, padding_mode="replicate", dtype="f64"),
    Case("large", (2, 3, 20, 40, 50), rank=3, taps="s3"),
    Case("large", (1, 2, 400, 60), taps="s3", dtype="f64"),
    Case("large", (8, 16, 3000), rank=1, taps="c3", dtype="bf16"),
]
LARGE += [
    Case("large", c.shape, c.rank, c.taps, c.stride, c.padding, c.padding_mode, 2, dtype=c.dtype, layout=c.layout)
    for c in LARGE
]


NARROW = [
    Case("narrow", (1, 5, 16, 2), taps=4, stride=1, padding_mode="circular"),
    Case("narrow", (1, 8, 64, 1), taps=5),
    Case("narrow", (1, 17, 24, 9), 2, 5, 1, "same", "replicate", (1, 2), dtype="f64", values="special"),  # NaN
]
for _size in ((16, 1), (17, 2), (24, 1), (24, 2), (31, 1), (31, 2), (40, 1), (63, 1), (3, 16), (130, 3)):
    for _taps, _stride, _mode in ((3, 2, "reflect"), ("s4", 1, "circular"), ("c2", 2, "zeros"), (5, (2, 1), "reflect")):
        for _dtype in ("f32", "bf16", "f64"):
            for _window, _padding in ((None, 0), ((2, 1), 0), ((3, 1), (1, 0))):
                NARROW.append(Case(
                    "narrow", (1, 5, *_size), taps=_taps, stride=_stride, padding_mode=_mode, dtype=_dtype,
                    window=_window, window_padding=_padding,
                ))  # fmt: skip
for _size in ((17, 1, 1), (17, 2, 1), (1, 16, 2), (24, 1, 1)):
    NARROW += [
        Case("narrow", (1, 7, *_size), rank=3, taps=_taps, stride=_stride, window=_window)
        for _taps in (2, "s3")
        for _stride in (1, 2)
        for _window in (None, (2, 1, 1) if _size[0] > 1 else (1, 2, 1))
    ]


def results(case: Case, recompute: bool = False) -> list[Tensor]:
    """Output, input gradient and taps gradients."""
    x, (taps, tensors) = make_input(case).requires_grad_(), make_taps(case)
    leaves = [x, *[t.requires_grad_() for t in tensors]]
    y = call(case, x, taps, **({"recompute": recompute} if case.window is not None else {}))
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("recompute", [False, True], ids=["codes", "recompute"])
@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
def test_runs_and_threads(case: Case, recompute: bool) -> None:
    first = results(case, recompute)
    for threads in (1, 2, 3, 2, 1):
        torch.set_num_threads(threads)
        assert torch.get_num_threads() == threads
        assert same_bits(results(case, recompute), first), threads


@pytest.mark.parametrize("recompute", [False, True], ids=["codes", "recompute"])
def test_narrow_maps_on_any_number_of_threads(recompute: bool) -> None:
    """Threads decide into how many bands a plane is cut, and on nothing else."""
    for case in [*NARROW, *(c for c in CASES if c.group.endswith(("narrow", "tiny", "plane", "bands", "1d")))]:
        if case.window is None and recompute:
            continue
        torch.set_num_threads(1)
        first = results(case, recompute)
        for threads in range(2, 17):
            torch.set_num_threads(threads)
            assert torch.get_num_threads() == threads
            assert same_bits(results(case, recompute), first), (case.id, threads)


def test_samples_of_a_batch_do_not_meet() -> None:
    """The same bits alone as in a batch: neither the cut into bands nor the neighbours change a sum."""
    for layout in ("contiguous", "channels_last"):
        for window in (None, 2):
            case = Case("batch", (5, 3, 33, 31), window=window, layout=layout)
            x = make_input(case)
            together = call(case, x, 3)
            for i in range(5):
                alone = call(case, x[i : i + 1], 3)
                assert torch.equal(alone[0], together[i])


def poisons(sizes: list[int]) -> Iterator[int]:
    """Freed blocks of these sizes, full of NaN (0xff), of ones' bits (0x3f), of other codes (0xa5)."""
    for byte in (0xFF, 0x3F, 0xA5):
        blocks = [torch.full((size,), byte, dtype=torch.uint8) for size in sizes for _ in range(3)]
        del blocks
        yield byte


@pytest.mark.parametrize("recompute", [False, True], ids=["codes", "recompute"])
def test_nothing_comes_from_memory_as_it_was(recompute: bool) -> None:
    """Outputs, gradients, codes and work space are allocated without being filled: all must be written."""
    for case in [*CASES, *LARGE]:
        if case.window is None and recompute:
            continue
        first = results(case, recompute)
        sizes = sorted({max(1, t.numel() * t.element_size()) for t in [*first, make_input(case)]})
        for byte in poisons(sizes):
            assert same_bits(results(case, recompute), first), (case.id, hex(byte))


def test_codes_are_written_whole() -> None:
    """What lies between the rows of codes, and past the last, is the same every time."""
    for case in CASES:
        if case.window is None or not case.batched:
            continue
        x = make_input(case)
        window = (case.window, case.window_padding, case.window_dilation)
        args = Geometry("codes", [3] * case.rank, 2, 1, case.padding_mode, *window).op_args
        first = OPS.max_blur_pool_codes(x, None, *args)
        for byte in poisons([max(1, t.numel() * t.element_size()) for t in tree_leaves(first)]):
            again = OPS.max_blur_pool_codes(x, None, *args)
            assert torch.equal(again[1], first[1]), (case.id, hex(byte))
