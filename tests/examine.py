"""What is wrong with the case of a seed (random_case.py): a worker of fuzz.py, which answers each seed with a line.

1. Output and gradients are held against the oracle, with maps that end, or begin, where readable memory does, on one
   thread and on up to sixteen, whose bits must be the same.
2. Every fourth is a call of a raw op with arguments that may not fit: it raises, or does what the reference does.
   Codes that name no element of the map mean nothing: then it raises, or stays within its memory.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from random import Random
from typing import Any

import torch
from case import Case, arrange, assert_right, call, longest_sum, make_input, make_taps, same_bits, verdict
from guarded import Guarded
from random_case import MOST, RawCall, Surroundings, gradients_of, random_case, random_raw_call, random_surroundings
from tolerances import assert_close, largest
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import aablur
from aablur import reference
from aablur.geometry import Geometry

ON_MACHINE_CODE = os.environ.get("AABLUR_MACHINE_CODE") == "1"


def examine(seed: int) -> None:
    """Raises unless the case of a seed is right."""
    pick = Random(seed)
    if pick.random() < 0.25:
        return _examine_raw(random_raw_call(pick), pick.choice((None, True, False)))
    case = random_case(pick, 2000 if ON_MACHINE_CODE else MOST)
    around = random_surroundings(pick, case)
    try:
        _examine_call(case, around)
    except Exception as error:
        raise AssertionError(f"{case}, {around}") from error


def _examine_call(case: Case, around: Surroundings) -> None:
    def place(t: Tensor) -> Tensor:
        if not around.guarded:
            return t
        span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
        memory = Guarded(span * t.element_size())
        kept.append(memory)
        flat = memory.copy(t.as_strided((span,), (1,), t.storage_offset()), around.guarded == "end")
        return flat.as_strided(t.shape, t.stride())

    kept: list[Guarded] = []
    x = place(make_input(case)).requires_grad_()
    taps = tree_map_only(Tensor, lambda t: place(t).requires_grad_(), make_taps(case)[0])
    tensors = [t for t in (taps if isinstance(taps, tuple) else (taps,)) if isinstance(t, Tensor)]
    tensors = gradients_of(case, tensors)
    options = {} if case.window is None else {"recompute": around.recompute}

    def results() -> list[Tensor]:
        y = call(case, x, taps, **options)
        return [y.detach(), *torch.autograd.grad(y, [x, *tensors], grad)]

    torch.set_num_threads(1)
    grad = torch.randn(call(case, x.detach(), taps).shape, generator=torch.Generator().manual_seed(3))
    grad = place(arrange(grad.to(x.dtype), around.grad_layout, case.rank))
    first = results()
    assert_right(case, first, verdict(case, x, taps, grad)[: len(first)], tensors)
    if ON_MACHINE_CODE:
        return
    torch.set_num_threads(around.threads)
    assert same_bits(first, results()), "other bits with other threads"


def _examine_raw(raw: RawCall, at_end: bool | None) -> None:
    def place(t: Any) -> Any:
        if at_end is None or not isinstance(t, Tensor) or not t.numel() or not t.is_contiguous():
            return t
        kept.append(Guarded(t.numel() * t.element_size()))
        return kept[-1].copy(t, at_end)

    def outcome(arguments: dict[str, Any]) -> Any:
        try:
            return tree_leaves(getattr(torch.ops.aablur, raw.op)(**arguments))
        except (RuntimeError, ValueError, TypeError) as error:
            return error

    def refused(outcome: Any) -> bool:
        return isinstance(outcome, Exception)

    kept: list[Guarded] = []
    arguments = {name: place(a) for name, a in raw.arguments.items()}
    geometry, terms = None, 0
    try:
        geometry = Geometry.of_op(raw.op, arguments["axes"], arguments["padding_mode"])
        size = arguments["size"] if "size" in arguments else arguments["x"].shape[-len(geometry.axes) :]
        count = 1
        for axis, n in zip(geometry.axes, size, strict=False):
            count *= max(1, n, axis.pooled_size(n), axis.out_size(n))
            terms += longest_sum(axis.pooled_size(n), axis.taps, (axis.before, axis.after))
        if count > MOST or any(abs(n) > 10**6 for n in size):
            return  # asked for rightly, perhaps, and takes long
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    torch.set_num_threads(2)
    ours = outcome(arguments)
    if any(abs(n) > 10**6 for n in arguments["axes"]):
        return
    if geometry and not refused(ours) and not _name_elements(geometry, arguments):
        return
    with aablur.backend("reference"):
        theirs = outcome(arguments)
    said = [o if refused(o) else [(t.dtype, t.shape) for t in o] for o in (ours, theirs)]
    if refused(ours) and refused(theirs):
        return
    assert said[0] == said[1], f"{raw}: {said[0]!r}, of the reference {said[1]!r}"
    wide = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, arguments)
    linear = ("grad", "taps") if raw.op.startswith("max") else ("grad", "taps", "x")
    sizes = {name: a.abs() if name in linear and isinstance(a, Tensor) else a for name, a in wide.items()}
    with aablur.backend("reference"):
        exact, magnitudes = outcome(wide), outcome(sizes)
    try:
        for a, b, right, magnitude in zip(ours, theirs, exact, magnitudes, strict=True):
            if a.dtype == torch.uint8:
                assert torch.equal(a, b), "other codes"
            else:
                of_taps = raw.op == "blur_pool_backward_taps"
                magnitude = magnitude.abs().clamp(min=4 * largest(right))
                assert_close(a, right, magnitude=magnitude, taps=of_taps, terms=terms)
    except AssertionError as error:
        raise AssertionError(str(raw)) from error


def _name_elements(geometry: Geometry, arguments: dict[str, Any]) -> bool:
    """Whether all codes, if an op that takes these arguments was given any, name an element of the map."""
    codes, size = arguments.get("codes"), arguments.get("size", [])
    if codes is None:
        return True
    shape, rank = [*arguments["grad"].shape[: -len(size)], *size], len(size)
    code = reference.codes_of_maxima(codes, shape, geometry, arguments["channels_last"] and rank > 1)
    inside = code < geometry.window_volume
    for i, (axis, n) in reversed(list(enumerate(zip(geometry.axes, size, strict=True)))):
        p = torch.arange(code.shape[2 + i]).reshape(-1, *[1] * (rank - 1 - i))
        source = p - axis.window_padding + code % axis.window * axis.window_dilation
        inside &= (source >= 0) & (source < n)
        code = code // axis.window
    return bool(inside.all())


def work() -> None:
    """Says null once it is ready, then of each seed, a line, what is wrong with it, or null."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is no answer
    print("null", file=answers, flush=True)
    for line in sys.stdin:
        wrong = None
        try:
            examine(int(line))
        except Exception:
            wrong = traceback.format_exc()
        print(json.dumps(wrong), file=answers, flush=True)


if __name__ == "__main__":
    work()
