"""Promise: the ops themselves, called with arguments that do not fit together, raise; they never crash or hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aablur.geometry import Geometry
from aablur.schemas import SCHEMAS

OPS = torch.ops.aablur
BLUR: dict[str, Any] = {"axes": [3, 2, 1, 1] * 2, "padding_mode": "zeros"}
MAX_BLUR: dict[str, Any] = {"axes": [3, 2, 1, 1, 2, 0, 1] * 2, "padding_mode": "zeros"}
WRONG_NUMBERS: dict[str, list[int]] = {  # in the order of an axis' numbers
    "taps": [0, -3, 2**62],
    "stride": [0, -1, 2**62],
    "before": [-9, -(2**62)],
    "after": [-9, 2**62],
    "window": [0, 9, 2**40],
    "window_padding": [2, -1],
    "window_dilation": [0, 9, 2**62],
}
WRONG: dict[str, list[Any]] = {  # argument: values that fit no other
    "padding_mode": ["nonsense", ""],
    "taps": [torch.ones(1, 5), torch.ones(2, 6), torch.ones(6), torch.ones(1, 6).double(), torch.ones(1, 6).int()],
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


@pytest.mark.parametrize("given", ["codes", "x"])
@pytest.mark.parametrize("op", [s.split("(")[0] for s in SCHEMAS if "axes" in s])
def test_ops_refuse_what_does_not_fit(op: str, given: str) -> None:
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


def test_either_x_or_codes() -> None:
    with pytest.raises(RuntimeError, match="either x or codes"):
        OPS.max_blur_pool_backward(**{**good("max_blur_pool_backward"), "x": torch.randn(2, 3, 6, 7)})


@pytest.mark.parametrize(
    "call",
    [
        "blur_pool(x, None, [3, 1, 2**63 - 1, 2**63 - 1], 'zeros')",
        "blur_pool_backward(x, None, [6], [3, 2**63 - 1, 17, 2**62], 'reflect', False)",
        "blur_pool(x, None, [2**30, 1, 2**30, 0], 'zeros')",
    ],
)
def test_numbers_of_63_bits(call: str) -> None:
    """Sizes that overflow, or would take years."""
    code = f"import torch, aablur; x = torch.ones(1, 1, 1); print(torch.ops.aablur.{call})"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "RuntimeError" in done.stderr, done


@pytest.mark.parametrize("window", [[2, 2], [3, 3], [3, 1], [5, 4]])
def test_codes_that_no_forward_made(window: list[int]) -> None:
    """Codes beyond the window, as memory damage would leave them: numbers of no meaning, but no crash."""
    x, args = torch.randn(2, 3, 9, 17), Geometry("codes", [3, 3], 2, 1, "zeros", window).op_args
    y, codes = OPS.max_blur_pool_codes(x, None, *args)
    for byte in (0xFF, 0xAA):
        OPS.max_blur_pool_backward(torch.ones_like(y), None, torch.full_like(codes, byte), None, [9, 17], *args, False)
