"""Promise: no call copies from the host's memory, or waits for it: CUDA graphs capture every op, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from elsewhere import Elsewhere, on_card
from test_torch import SAMPLES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import aablur
from aablur import ops, reference
from aablur.geometry import binomial

FROM_THE_HOST = ("aten::lift_fresh", "aten::lift", "aten::scalar_tensor")  # of a list of numbers, or of one
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


class OnTheDevice(TorchDispatchMode):
    """Fails on what brings numbers from the host or waits for the device. `bodies` run the package's own ops."""

    def __init__(self, bodies: dict[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.bodies, self.seen = bodies, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        self.seen.add(name)
        assert name not in FROM_THE_HOST + WAITS, name
        if func.namespace == "aablur":
            with self:
                return self.bodies[name.split("::")[1]](*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        devices = {t.device for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
        assert len(devices) < 2, f"{name} copies between {devices}"
        return out


class _NoKernel:
    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: None


@pytest.fixture(params=["reference", "triton"])
def bodies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    if request.param == "triton":
        pytest.importorskip("triton")
        from aablur import triton_banded, triton_kernels, triton_ops

        for module in (triton_kernels, triton_banded):
            for name in [n for n in vars(module) if n.endswith("_kernel")]:
                monkeypatch.setattr(module, name, _NoKernel())
        assert triton_ops.kernels is triton_kernels
        yield ops._TRITON
    else:
        yield ops._REFERENCE


def everything(x: Tensor, row: Tensor) -> None:
    """Every public function on x (two axes), forward, backward and twice backward, with filters of every kind."""
    shared = row.detach().requires_grad_()
    for taps in (3, 20, shared, (shared, 4), (18, shared)):
        for function, options in (
            (aablur.blur_pool2d, {}),
            (aablur.max_blur_pool2d, {}),
            (aablur.max_blur_pool2d, {"recompute": True}),
        ):
            for mode in ("zeros", "reflect", "replicate", "circular"):
                leaf = x.detach().requires_grad_()
                sources = [leaf, shared] if isinstance(taps, tuple) or taps is shared else [leaf]
                y = function(leaf, taps=taps, padding_mode=mode, **options)
                grads = torch.autograd.grad(y.square().sum(), sources, create_graph=True)
                torch.autograd.grad(sum(g.square().sum() for g in grads), sources)
                with torch.no_grad():
                    function(x, taps=taps, padding_mode=mode, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_second_call_stays_on_the_device(dtype: torch.dtype, bodies: dict[str, Any]) -> None:
    x, row = torch.randn(2, 3, 9, 10).to(dtype), torch.rand(3).to(dtype)
    everything(x, row)
    if bodies is ops._REFERENCE:
        with aablur.backend("reference"):
            everything(x, row)
    with OnTheDevice(bodies) as mode:
        if bodies is ops._TRITON:
            everything(x, row)  # makes the rows that Triton's kernels read from memory, as the reference's do
        everything(x, row)
    assert {f"aablur::{name}" for name in ops._REFERENCE} <= mode.seen and len(mode.seen) > 20


def test_all_is_made_on_the_device_of_the_map(bodies: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of maps of another device than the CPU, here `meta`, which knows no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    for op, args in (p.values for p in SAMPLES):
        moved = tree_map_only(Tensor, lambda t: t.to("meta"), args)
        bodies[op](*moved)
        with OnTheDevice(bodies):
            found = bodies[op](*moved)
        assert all(t.is_meta for t in tree_leaves(found))


@pytest.mark.parametrize("taps", [1, 2, 5, 31])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows(taps: int, dtype: torch.dtype) -> None:
    """Copied once, or filled in while something traces: the same numbers."""
    x = torch.empty(1)
    expected = torch.tensor([binomial(taps)], dtype=dtype)
    row = reference.binomial_row(taps, dtype, x)
    assert torch.equal(row, expected) and row is reference.binomial_row(taps, dtype, x)
    assert torch.equal(reference.filled_row(taps, dtype, x), expected)
    assert torch.equal(torch.vmap(lambda x: reference.binomial_row(taps, dtype, x))(torch.empty(2, 1))[1], expected)


def test_rows_of_inference_mode_serve_training() -> None:
    reference._rows.clear()
    x, taps = torch.randn(1, 2, 9, 9), torch.rand(3, requires_grad=True)
    with aablur.backend("reference"):
        with torch.inference_mode():
            aablur.blur_pool2d(x, taps=(taps.detach(), 5))
        aablur.blur_pool2d(x.requires_grad_(), taps=(taps, 5)).sum().backward()
    assert taps.grad is not None


def test_a_first_call_under_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is copied, and what a graph will fill in is kept for no other call."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(reference, "Tensor", Elsewhere)
    before = dict(reference._rows)
    row = reference.binomial_row(5, torch.float32, on_card(torch.empty(1), 0))
    assert row.flatten().tolist() == [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16] and reference._rows == before


def test_double_backward_of_the_taps() -> None:
    """The columns of an axis are replaced without a table of which is whose."""
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64, requires_grad=True)
    taps = [torch.rand(3, k, dtype=torch.float64, requires_grad=True) for k in (2, 3)]
    assert torch.autograd.gradgradcheck(lambda x, a, b: aablur.blur_pool2d(x, (a, b)), (x, *taps))
