"""Promise: the ops are at home in torch: opcheck, compile, export, autocast, meta, torch.func, vmap, pickling."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from case import Case, arrange, call, make_input, make_taps
from cases import CASES
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


# ---- torch.compile and export ------------------------------------------------------------------------


def net(x: Tensor, taps: Tensor) -> Tensor:
    x = aablur.blur_pool2d(x.relu(), 4, padding_mode="circular")
    x = aablur.max_blur_pool2d(x, 2, (taps, 3), 1)
    return aablur.max_blur_pool2d(x * 2, (3, 2), window_padding=1, recompute=True).sin()


def both_ways(f: Callable[..., Tensor], x: Tensor, *leaves: Tensor) -> list[Tensor]:
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_(), *leaves]
    y = f(*inputs)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(dynamic: bool, layout: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    taps = torch.rand(4, 3, requires_grad=True)
    for batch, height, width in ((2, 16, 17), (3, 21, 16)):
        x = arrange(torch.randn(batch, 4, height, width), layout, 2)
        eager = both_ways(net, x, taps)
        for actual, expected in zip(both_ways(compiled, x, taps), eager, strict=True):
            torch.testing.assert_close(actual, expected)
            assert actual.stride() == expected.stride()


def test_inductor() -> None:
    """The default backend asserts the strides that the fakes promised."""
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True)
    taps = torch.rand(4, 3, requires_grad=True)
    for layout in ("contiguous", "channels_last"):
        x = arrange(torch.randn(2, 4, 16, 17), layout, 2)
        for actual, expected in zip(both_ways(compiled, x, taps), both_ways(net, x, taps), strict=True):
            torch.testing.assert_close(actual, expected)


def test_no_recompilation_over_batches_and_sizes() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(
        lambda x: aablur.max_blur_pool2d(aablur.blur_pool2d(x)), fullgraph=True, dynamic=True, backend=counter
    )
    for batch, size in ((2, 16), (5, 16), (3, 31), (7, 57)):
        compiled(torch.randn(batch, 3, size, size + 1))
    assert counter.frame_count == 1


def modules() -> list[nn.Module]:
    return [
        aablur.nn.BlurPool2d(), aablur.nn.BlurPool2d(5, padding_mode="zeros"), aablur.nn.BlurPool2d(3, learnable=True),
        aablur.nn.BlurPool2d((3, 4), learnable=True, channels=4), aablur.nn.BlurPool2d(torch.tensor([0.25, 0.5, 0.25])),
        aablur.nn.MaxBlurPool2d(), aablur.nn.MaxBlurPool2d(3, window_padding=1, recompute=True),
        aablur.nn.MaxBlurPool2d(2, 4, learnable=True, channels=4),
    ]  # fmt: skip


def test_modules_inside_compile() -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 4, 12, 13)
    for module in modules():
        model = nn.Sequential(nn.Conv2d(4, 4, 3), module, nn.ReLU())
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        actual = torch.autograd.grad(compiled(x).square().sum(), list(model.parameters()))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)


def test_export_with_a_dynamic_batch() -> None:
    for module in modules():
        batch, height = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("height", min=8, max=256)
        program = torch.export.export(
            module.eval(), (torch.randn(2, 4, 12, 13),), dynamic_shapes=({0: batch, 2: height},)
        )
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        for shape in ((1, 4, 12, 13), (7, 4, 31, 13)):
            x = torch.randn(shape)
            torch.testing.assert_close(loaded(x), module(x))


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
