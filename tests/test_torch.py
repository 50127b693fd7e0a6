"""Promise: the ops are at home in torch: opcheck, compile, export, autocast, meta, torch.func, vmap, pickling."""

from __future__ import annotations

import copy
import io
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
from aablur.geometry import Geometry

OPS = torch.ops.aablur
ARGUMENTS: Any = ("blur_pool", [3, 2], [2, 1], ((1, 1), (0, 1)), "reflect")
BLUR = Geometry(*ARGUMENTS).op_args
MAX_BLUR = Geometry(*ARGUMENTS, [2, 3], [0, 1], [1, 1]).op_args


def samples() -> list[Any]:
    """(op, arguments): every op of the namespace, with and without taps, in both layouts, batched or not."""
    found = []
    for layout in ("contiguous", "channels_last"):
        for batched in (True, False):
            shape = (2, 3, 6, 7) if batched else (3, 6, 7)
            x = arrange(torch.randn(shape), layout, 2)
            last = layout == "channels_last"
            for taps in (None, torch.rand(1, 5), torch.rand(3, 5)):
                y, m = OPS.blur_pool(x, taps, *BLUR), OPS.max_blur_pool(x, taps, *MAX_BLUR)
                codes = OPS.max_blur_pool_codes(x, taps, *MAX_BLUR)[1]
                grad, grad_m = torch.randn_like(y), torch.randn_like(m)
                found += [
                    ("blur_pool", (x, taps, *BLUR)),
                    ("blur_pool_backward", (grad, taps, [6, 7], *BLUR, last)),
                    ("max_blur_pool", (x, taps, *MAX_BLUR)),
                    ("max_blur_pool_codes", (x, taps, *MAX_BLUR)),
                    ("max_blur_pool_backward", (grad_m, None, codes, taps, [6, 7], *MAX_BLUR, last)),
                    ("max_blur_pool_backward", (grad_m, x, None, taps, [6, 7], *MAX_BLUR, last)),
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
    """Shapes, strides and dtypes of every fourth case, forward and gradient, as FakeTensor and on meta."""

    def described(t: Tensor) -> Any:
        return t.shape, t.stride(), t.dtype

    for case in CASES[::4]:
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


# ---- whole models ------------------------------------------------------------------------------------


def small_net() -> nn.Sequential:
    first = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), aablur.nn.BlurPool2d((3, 4), learnable=True, channels=4)]
    return nn.Sequential(*first, nn.Conv2d(4, 4, 3), nn.ReLU(), aablur.nn.MaxBlurPool2d(3, 3, window_padding=1))


def test_proxies_see_one_function() -> None:
    """torch.fx holds a pool as one call of the public function, with everything that it was given."""
    net, x = small_net().eval(), torch.randn(2, 3, 16, 17)
    traced = torch.fx.symbolic_trace(net)
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert called == [aablur.blur_pool2d, aablur.max_blur_pool2d]
    assert torch.equal(traced(x), net(x))
    for case in CASES[::7]:
        x, (taps, tensors) = make_input(case), make_taps(case)
        graph = torch.fx.Graph()
        tracer = torch.fx.proxy.GraphAppendingTracer(graph)
        proxy_x, *proxies = (torch.fx.Proxy(graph.placeholder(f"t{i}"), tracer) for i in range(1 + len(tensors)))
        given = iter(proxies)
        out: Any = call(case, proxy_x, tree_map_only(Tensor, lambda _, given=given: next(given), taps))
        graph.output(out.node)
        again = torch.fx.GraphModule({}, graph)(x, *tensors)
        torch.testing.assert_close(again, call(case, x, taps), rtol=0, atol=0, equal_nan=True, msg=case.id)


class Named(Tensor):
    """A subclass with no more than torch's own `__torch_function__`."""


def test_subclasses_and_modes() -> None:
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    net, x = small_net(), torch.randn(2, 3, 16, 17)
    expected = net(x)
    out = net(x.as_subclass(Named))
    assert type(out) is Named and torch.equal(out.as_subclass(Tensor), expected)
    with Mode():
        assert torch.equal(net(x), expected)
    assert {aablur.blur_pool2d, aablur.max_blur_pool2d} <= set(seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_with_autocast_and_scaled_gradients(dtype: torch.dtype) -> None:
    """The usual loop: float32 weights, half maps, a scaled loss, a step; the scale falls where a gradient overflows."""
    net = small_net().to(memory_format=torch.channels_last)
    optimizer, scaler = torch.optim.SGD(net.parameters(), 0.01), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = torch.randn(2, 3, 16, 17).contiguous(memory_format=torch.channels_last)
    for i in range(3):
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            y = net(x)
            assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
            loss = y.float().square().mean() * (torch.inf if i == 1 else 1)
        scaler.scale(loss).backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True)]
        assert not any(moved) if i == 1 else all(m for m, p in zip(moved, net.parameters(), strict=True) if p.ndim > 1)
    assert scaler.get_scale() == 2.0**9


def test_models_are_saved_and_loaded() -> None:
    net, x = small_net().eval(), torch.randn(2, 3, 16, 17)
    whole, state = io.BytesIO(), io.BytesIO()
    torch.save(net, whole)
    torch.save(net.state_dict(), state)
    other = small_net().eval()
    other.load_state_dict(torch.load(io.BytesIO(state.getvalue()), weights_only=True))
    for loaded in (other, torch.load(io.BytesIO(whole.getvalue()), weights_only=False)):
        assert torch.equal(loaded(x), net(x))


@pytest.mark.filterwarnings("ignore")  # torch.ao is moving to a package of its own
def test_quantisation_aware_training() -> None:
    """Prepared by tracing, trained a step, converted: the pools stay what they are between int8 convolutions."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

    x = torch.randn(2, 3, 16, 17)
    prepared = prepare_qat_fx(small_net().train(), get_default_qat_qconfig_mapping("x86"), (x,))
    prepared(x).sum().backward()
    assert all(p.grad is not None for p in prepared.parameters())
    with torch.no_grad():
        expected = prepared.eval()(x)
        converted = convert_fx(prepared)
        called = {node.target for node in converted.graph.nodes if node.op == "call_function"}
        assert {aablur.blur_pool2d, aablur.max_blur_pool2d, torch.quantize_per_tensor} <= called
        torch.testing.assert_close(converted(x), expected, rtol=0, atol=0.02 * expected.abs().max().item())
