"""Promise: the ops themselves, called with arguments that do not fit together, raise; they never crash or hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import aablur
from aablur.geometry import Geometry
from aablur.schemas import SCHEMAS

OPS = torch.ops.aablur
BLUR: dict[str, Any] = {"axes": [3, 2, 1, 1] * 2, "padding_mode": "zeros"}
MAX_BLUR: dict[str, Any] = {"axes": [3, 2, 1, 1, 2, 0, 1] * 2, "padding_mode": "zeros"}
WRONG_NUMBERS: dict[str, list[int]] = {  # in the order of an axis' numbers
    "taps": [0, -3, 2**62, 2**63 - 1],
    "stride": [0, -1, 2**62, 2**63 - 1],
    "before": [-9, -(2**62), 2**63 - 1, -(2**63)],
    "after": [-9, 2**62, 2**63 - 1, -(2**63)],
    "window": [0, 9, 2**40, 2**62, 2**63 - 1],
    "window_padding": [2, -1, 2**62, 2**63 - 1, -(2**63)],
    "window_dilation": [0, 9, 2**62, 2**63 - 1],
}
WRONG_SHAPES = [torch.ones(1, 5), torch.ones(2, 6), torch.ones(6)]  # of taps
WRONG: dict[str, list[Any]] = {  # argument: values that fit no other
    "padding_mode": ["nonsense", ""],
    "taps": [*WRONG_SHAPES, torch.ones(1, 6).double(), torch.ones(1, 6).int()],
    "x": [torch.ones(2, 3, 6, 7).int(), torch.ones(6, 7), torch.ones(1, 1, 1, 6, 7), torch.ones(2, 3, 0, 7)],
    "grad": [torch.ones(2, 3, 4, 4), torch.ones(2, 4), torch.ones(2, 3, 3, 4).double(), torch.ones(2, 3, 3, 4).int()],
    "size": [[6], [6, 9], [6, 7, 8], [-6, 7], []],
    "codes": [torch.zeros(2, 3, 1).byte(), torch.zeros(2, 3, 11), torch.zeros(66).byte(), None],
}
MORE: dict[str, dict[str, list[Any]]] = {  # of ops that are given both grad and x or codes
    "blur_pool_backward_taps": {"grad": [torch.ones(1, 3, 3, 4), torch.ones(2, 2, 3, 4), torch.ones(3, 3, 4)]},
    "max_blur_pool_backward": {"grad": [torch.ones(1, 3, 3, 3), torch.ones(2, 2, 3, 3), torch.ones(3, 3, 3)]},
}


def good(op: str) -> dict[str, Any]:
    """Arguments that fit."""
    x, is_max = torch.randn(2, 3, 6, 7), op.startswith("max")
    arguments = {"x": x, "taps": torch.rand(1, 6), "size": [6, 7], "channels_last": False}
    arguments |= MAX_BLUR if is_max else BLUR
    arguments["grad"] = torch.randn(2, 3, 3, 3) if is_max else torch.randn(2, 3, 3, 4)
    arguments["codes"] = OPS.max_blur_pool_codes(x, None, **MAX_BLUR)[1]
    if op == "max_blur_pool_backward":
        arguments["x"] = None
    return {a.name: arguments[a.name] for a in getattr(OPS, op).default._schema.arguments}


def wrong_axes(right: list[int]) -> list[list[int]]:
    """Axes too few or too many, numbers that are missing, and each number out of its range, on either axis."""
    numbers, wrongs = len(right) // 2, list(WRONG_NUMBERS.values())
    found = [[], right[:-1], right[:numbers], [*right, 1], right * 2, right[:numbers] * 3]
    for i in range(len(right)):
        for wrong in wrongs[i % numbers]:
            found.append([wrong if j == i else n for j, n in enumerate(right)])
    return found


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("given", ["codes", "x"])
@pytest.mark.parametrize("op", [s.split("(")[0] for s in SCHEMAS if "axes" in s])
def test_ops_refuse_what_does_not_fit(op: str, given: str, backend: str) -> None:
    with aablur.backend(backend):
        _refuses_what_does_not_fit(op, given)


def _refuses_what_does_not_fit(op: str, given: str) -> None:
    call, right = getattr(OPS, op), good(op)
    if op == "max_blur_pool_backward" and given == "x":
        right |= {"codes": None, "x": torch.randn(2, 3, 6, 7)}
    call(**right)
    for wrong in wrong_axes(right["axes"]):
        with pytest.raises((RuntimeError, ValueError)):
            call(**{**right, "axes": wrong})
            pytest.fail(f"{op} accepted axes {wrong}")
    for argument in right.keys() & WRONG.keys():
        if right[argument] is None:
            continue
        for wrong in WRONG[argument] + MORE.get(op, {}).get(argument, []):
            with pytest.raises((RuntimeError, ValueError)):
                call(**{**right, argument: wrong})
                pytest.fail(f"{op} accepted {argument} {wrong}")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("op", [s.split("(")[0] for s in SCHEMAS if "axes" in s])
def test_taps_beside_empty_maps_are_checked(op: str, backend: str) -> None:
    right = good(op)
    maps = [name for name in ("x", "grad", "codes") if isinstance(right.get(name), torch.Tensor)]
    with aablur.backend(backend):
        for empty in (right | {m: right[m][:0] for m in maps}, right | {m: right[m][:, :0] for m in maps}):
            getattr(OPS, op)(**empty)
            for taps in WRONG_SHAPES:
                with pytest.raises((RuntimeError, ValueError), match="taps must "):
                    getattr(OPS, op)(**{**empty, "taps": taps})


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_maps_of_one_axis_have_one_layout(backend: str) -> None:
    x, blur, most = torch.randn(2, 3, 9), [3, 2, 1, 1], [3, 2, 1, 1, 2, 0, 1]
    with aablur.backend(backend):
        y, codes = OPS.max_blur_pool_codes(x, None, most, "zeros")
        grad = torch.randn(2, 3, 5)
        for op, tensors, axes in (
            (OPS.blur_pool_backward, (grad, None), blur),
            (OPS.max_blur_pool_backward, (torch.randn_like(y), None, codes, None), most),
            (OPS.max_blur_pool_backward, (torch.randn_like(y), x, None, None), most),
        ):
            first, last = (op(*tensors, [9], axes, "zeros", channels_last) for channels_last in (False, True))
            assert torch.equal(first, last) and first.stride() == last.stride()


def test_either_x_or_codes() -> None:
    with pytest.raises(RuntimeError, match="either x or codes"):
        OPS.max_blur_pool_backward(**{**good("max_blur_pool_backward"), "x": torch.randn(2, 3, 6, 7)})


@pytest.mark.parametrize(
    "call",
    [
        "blur_pool(x, None, [3, 1, 2**63 - 1, 2**63 - 1], 'zeros')",
        "blur_pool_backward(x, None, [6], [3, 2**63 - 1, 17, 2**62], 'reflect', False)",
        "blur_pool(x, None, [2**30, 1, 2**30, 0], 'zeros')",
        "max_blur_pool(x, None, [1, 1, 0, 0, 2, 2**63 - 1, 1], 'zeros')",
        "max_blur_pool_codes(x, None, [1, 1, 0, 0, 1, 2**62, 1], 'zeros')",
        "max_blur_pool_backward(x, None, x.byte(), None, [1], [1, 1, 0, 0, 2, 2**63 - 1, 1], 'zeros', False)",
        # outputs of 2**64 elements, also of no image: products that overflow to 0
        "blur_pool(torch.ones(1, 1, 4, 4), None, [3, 1, 2**31 - 1, 2**31 - 1] * 2, 'zeros')",
        "blur_pool(torch.ones(0, 1, 4, 4), None, [3, 1, 2**31 - 1, 2**31 - 1] * 2, 'zeros')",
        "blur_pool_backward(x[None], None, [2**32] * 2, [3, 2**31 - 1, 1 - 2**31, 5 - 2**31] * 2, 'zeros', False)",
        # partial sums of 2**41 images
        "blur_pool_backward_taps(*[x.expand(2**41, 1, 1)] * 2, torch.ones(1, 2**23), [2**23, 1, 2**22, 2**22 - 1], "
        "'replicate')",
    ],
)
def test_numbers_of_63_bits(call: str) -> None:
    """Sums and products that overflow, or would take years."""
    code = f"import torch, aablur; x = torch.ones(1, 1, 1); print(torch.ops.aablur.{call})"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "RuntimeError" in done.stderr, done


@pytest.mark.parametrize("window", [[2, 2], [3, 3], [3, 1], [5, 4]])
def test_codes_that_no_forward_made(window: list[int]) -> None:
    """Codes beyond the window, as memory damage would leave them: numbers of no meaning, but no crash."""
    x, args = torch.randn(2, 3, 9, 17), Geometry("codes", [3, 3], 2, 1, "zeros", window).op_args
    y, codes = OPS.max_blur_pool_codes(x, None, *args)
    for byte in (0xFF, 0xAA):
        OPS.max_blur_pool_backward(torch.ones_like(y), None, torch.full_like(codes, byte), None, [9, 17], *args, False)
