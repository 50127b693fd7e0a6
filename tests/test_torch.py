"""Promise: the ops are at home in torch: opcheck, compile, export, autocast, meta, torch.func, vmap, pickling."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from case import Case, arrange, call, make_input, make_taps
from cases import CASES
from modules import modules
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import aablur

OPS = torch.ops.aablur
BLUR = ([3, 2], [2, 1], [1, 1, 0, 1], "reflect")
WINDOW = ([2, 3], [0, 1], [1, 1])


def samples() -> list[Any]:
    """(op, arguments): every op of the namespace, with and without taps, in both layouts, batched or not."""
    found = []
    for layout in ("contiguous", "channels_last"):
        for batched in (True, False):
            shape = (2, 3, 6, 7) if batched else (3, 6, 7)
            x = arrange(torch.randn(shape), layout, 2)
            last = layout == "channels_last"
            for taps in (None, torch.rand(1, 5), torch.rand(3, 5)):
                y, m = OPS.blur_pool(x, taps, *BLUR), OPS.max_blur_pool(x, taps, *BLUR, *WINDOW)
                codes = OPS.max_blur_pool_codes(x, taps, *BLUR, *WINDOW)[1]
                grad, grad_m = torch.randn_like(y), torch.randn_like(m)
                found += [
                    ("blur_pool", (x, taps, *BLUR)),
                    ("blur_pool_backward", (grad, taps, [6, 7], *BLUR, last)),
                    ("max_blur_pool", (x, taps, *BLUR, *WINDOW)),
                    ("max_blur_pool_codes", (x, taps, *BLUR, *WINDOW)),
                    ("max_blur_pool_backward", (grad_m, None, codes, taps, [6, 7], *BLUR, *WINDOW, last)),
                    ("max_blur_pool_backward", (grad_m, x, None, taps, [6, 7], *BLUR, *WINDOW, last)),
                ]
                if taps is not None:
                    found.append(("blur_pool_backward_taps", (grad, x, taps, *BLUR)))
    return [pytest.param(op, args, id=f"{op}-{i}") for i, (op, args) in enumerate(found)]


SAMPLES = samples()


def test_samples_cover_every_op() -> None:
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aablur::")}
    assert {p.values[0] for p in SAMPLES} == names - {"cpu_isa", "cuda_archs"}


@pytest.mark.parametrize("gradient", [False, True], ids=["plain", "gradient"])
@pytest.mark.parametrize(("op", "args"), SAMPLES)
def test_opcheck(op: str, args: tuple[Any, ...], gradient: bool) -> None:
    ready = [
        a.detach().clone().requires_grad_(gradient) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in args
    ]
    results = torch.library.opcheck(getattr(OPS, op).default, tuple(ready))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}


def test_fakes_equal_the_real_ones() -> None:
    """Shapes, strides and dtypes of every case, forward and gradient, as FakeTensor and on meta."""

    def described(t: Tensor) -> Any:
        return t.shape, t.stride(), t.dtype

    for case in CASES:
        x, (taps, _) = make_input(case).requires_grad_(), make_taps(case)
        real = call(case, x, taps)
        (grad,) = torch.autograd.grad(real, x, torch.ones_like(real))
        mode = FakeTensorMode()
        fake_x = mode.from_tensor(x.detach()).requires_grad_()
        fake_taps = tree_map_only(Tensor, mode.from_tensor, taps)
        with mode:
            fake = call(case, fake_x, fake_taps)
            (fake_grad,) = torch.autograd.grad(fake, fake_x, torch.ones_like(fake))
        assert described(fake) == described(real), case.id
        assert described(fake_grad) == described(grad), case.id
        meta = call(case, x.detach().to("meta"), tree_map_only(Tensor, lambda t: t.to("meta"), taps))
        assert meta.device.type == "meta" and meta.shape == real.shape and meta.dtype == real.dtype


# ---- modes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True], ids=["native", "reference"])
def test_autocast_keeps_the_dtype(force: bool) -> None:
    """A float32 module on a bfloat16 map inside autocast, and back: as F.avg_pool2d does, nothing is cast."""
    x = torch.randn(2, 4, 8, 9)

    def outputs(dtype: torch.dtype) -> list[Tensor]:
        given = x.to(dtype).requires_grad_()
        return [
            t
            for m in modules()
            for y in [m(given)]
            for t in (y.detach(), torch.autograd.grad(y.float().sum(), given)[0])
        ]

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        if force:
            with aablur.backend("reference"):
                plain = outputs(dtype)
                with torch.autocast("cpu", torch.bfloat16):
                    cast = outputs(dtype)
        else:
            plain = outputs(dtype)
            with torch.autocast("cpu", torch.bfloat16):
                cast = outputs(dtype)
        for a, b in zip(plain, cast, strict=True):
            assert a.dtype == b.dtype == dtype and torch.equal(a, b)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_deterministic_algorithms(padding_mode: str) -> None:
    torch.use_deterministic_algorithms(True)
    x, taps = torch.randn(2, 3, 9, 9, requires_grad=True), torch.rand(3, requires_grad=True)
    for f in (aablur.blur_pool2d, aablur.max_blur_pool2d):
        f(x, taps=taps, padding_mode=padding_mode).sum().backward()
    with aablur.backend("reference"):
        aablur.max_blur_pool2d(x, taps=taps, padding_mode=padding_mode).sum().backward()


def test_inference_mode_and_no_grad() -> None:
    x, taps = torch.randn(2, 3, 9, 9), torch.rand(3, 3, requires_grad=True)
    case = Case("", tuple(x.shape))
    expected = call(case, x, taps).detach()
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            assert torch.equal(call(case, x, taps), expected)
            assert torch.equal(aablur.nn.BlurPool2d(taps)(x), expected)


@pytest.mark.parametrize("index", range(8))
def test_modules_are_copied_pickled_and_loaded(index: int) -> None:
    module, x = modules()[index], torch.randn(2, 4, 8, 9)
    for parameter in module.parameters():
        nn.init.uniform_(parameter)
    expected = module(x)
    loaded = modules()[index]
    assert loaded.load_state_dict(module.state_dict()).missing_keys == []
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        assert torch.equal(other(x), expected) and repr(other) == repr(module)
    wide = copy.deepcopy(module).double()
    assert wide(x.double()).dtype == torch.float64
    torch.testing.assert_close(wide(x.double()).float(), expected)
    empty = copy.deepcopy(module).to("meta")
    assert empty(x.to("meta")).shape == expected.shape
