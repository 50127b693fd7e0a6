"""Promise: the modules of aablur.compat are their peers': names, signatures, attributes, numerics at every size,
checkpoints; and they serve what the peers fail at.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from drop_ins import CHANNELS, ONE_EACH, PAIRS, PEERS, Pair, assert_same, described
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import aablur
from aablur.compat._base import binomial_filter, factor

each_pair = pytest.mark.parametrize("pair", ONE_EACH, ids=lambda p: p.id)


# ---- the same at every size --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "name"), [(peer, name) for peer, (_, names) in PEERS.items() for name in names], ids="-".join
)
def test_signatures(peer: str, name: str) -> None:
    ours, theirs = getattr(getattr(aablur.compat, peer), name), getattr(PEERS[peer][0], name)

    def arguments(f: Any) -> list[Any]:
        return [(p.name, p.default, p.kind) for p in inspect.signature(f).parameters.values()]

    assert arguments(ours) == arguments(theirs)
    if isinstance(ours, type):
        assert arguments(ours.forward) == arguments(theirs.forward)
    assert ours.__name__ == theirs.__name__


@pytest.mark.parametrize("peer", PEERS)
def test_outputs_and_gradients(peer: str) -> None:
    some = [pair for pair in PAIRS if pair.peer == peer]
    assert len(some) > 30
    for pair in some:
        theirs, ours = pair.same()
        for size in pair.sizes():
            assert_same(ours, theirs, torch.randn(2, CHANNELS, *size), msg=lambda m, p=pair: f"{p.id}: {m}")


@pytest.mark.parametrize("peer", PEERS)
def test_buffers_names_and_attributes(peer: str) -> None:
    for pair in (p for p in PAIRS if p.peer == peer):
        theirs, ours = pair.theirs(), pair.ours()
        assert described(ours.state_dict().items()) == described(theirs.state_dict().items()), pair.id
        assert described(ours.named_buffers()) == described(theirs.named_buffers()), pair.id
        for (_, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            assert torch.equal(a, b)
        assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
        attributes = [{n: v for n, v in vars(m).items() if n[0] != "_"} for m in (ours, theirs)]
        assert attributes[0] == attributes[1], pair.id


class Ops(TorchDispatchMode):
    """The names of the ops that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func).removesuffix(".default"))
        return func(*args, **kwargs or {})


@each_pair
def test_our_op_is_what_runs(pair: Pair) -> None:
    module = pair.ours()
    x = torch.randn(2, CHANNELS, *pair.sizes()[0])
    for edit in (1.0, 0.5):  # the binomial, and taps from the buffer
        with torch.no_grad():
            getattr(module, module.filter_name).mul_(edit)
        with Ops() as ops:
            module(x)
        assert ops.names & {"aablur.blur_pool", "aablur.max_blur_pool"}
        plain = {"aten.convolution", "aten.max_pool2d_with_indices", "aten.constant_pad_nd", "aten.reflection_pad2d"}
        assert ops.names & plain == ({"aten.convolution"} if pair.name == "BlurConv2d" else set())


# ---- checkpoints: the buffer is what counts ----------------------------------------------------------


def other_filter(like: Tensor, rank: int) -> Tensor:
    """Another separable filter of this shape, one a channel where there are several."""
    k, lead = like.shape[-1], like.shape[: like.ndim - rank]
    if rank == 1:
        return torch.randn(*lead, k)
    return torch.randn(*lead, k, 1) * torch.randn(*lead, 1, k)


def put(module: Any, filt: Tensor) -> None:
    """Into the buffer, by a checkpoint where there is one."""
    name = module.filter_name if hasattr(module, "filter_name") else FILTER_NAMES[type(module)]
    state = module.state_dict()
    if name in state:
        module.load_state_dict({**state, name: filt})
    else:
        setattr(module, name, filt.clone())


FILTER_NAMES = {type(pair.theirs()): pair.filter_name() for pair in ONE_EACH}


@each_pair
def test_checkpoints_in_both_directions(pair: Pair) -> None:
    theirs, ours = pair.same()
    x = torch.randn(2, CHANNELS, *pair.sizes()[0])
    k = getattr(ours, pair.filter_name())
    for filt in (other_filter(k, pair.rank), torch.randn(k.shape)):  # separable, and not
        put(theirs, filt)
        put(ours, filt)
        assert ours.is_separable == (factor(filt, k.shape[-pair.rank :])[0])
        assert_same(ours, theirs, x, atol=1e-4, rtol=1e-4)
    if pair.filter_name() in theirs.state_dict():
        stream = io.BytesIO()
        torch.save(ours.state_dict(), stream)
        stream.seek(0)
        fresh = pair.theirs()
        assert fresh.load_state_dict(torch.load(stream)) == ([], [])
        assert torch.equal(fresh(x), theirs(x))
        fresh = pair.ours()
        assert fresh.load_state_dict(theirs.state_dict(), assign=True) == ([], [])
        assert torch.equal(fresh(x), ours(x))


@each_pair
def test_every_way_to_change_the_buffer(pair: Pair) -> None:
    x = torch.randn(2, CHANNELS, *pair.sizes()[0])
    name = pair.filter_name()
    for separable in (True, False) if pair.rank == 2 else (True,):
        like = getattr(pair.ours(), name)
        filt = other_filter(like, pair.rank) if separable else torch.randn(like.shape)
        theirs, ours = pair.same()
        first = theirs(x)
        put(theirs, filt)
        expected = theirs(x)
        out = torch.func.functional_call(ours, {name: filt}, x)
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours(x), first)  # and back
        with torch.no_grad():
            getattr(ours, name).copy_(filt)
        torch.testing.assert_close(ours(x), expected, atol=1e-4, rtol=1e-4)
        assert ours.is_separable == separable
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), copy.copy(ours)):
            assert torch.equal(other(x), ours(x))
        ours.double()  # where a product rounded to float32 is no product any more: it is run plainly
        torch.testing.assert_close(ours(x.double()).float(), expected, atol=1e-4, rtol=1e-4)


def test_a_filter_of_another_size_is_refused() -> None:
    module = aablur.compat.kornia.BlurPool2D(3)
    with pytest.raises(ValueError, match=r"kernel must hold filters of shape \(3, 3\), got shape \(5, 5\)"):
        module.kernel = binomial_filter([5, 5])


def test_broadcast_buffers_are_not_read_again() -> None:
    """In a process group every step writes the buffers anew, with what is in them."""
    module = aablur.compat.antialiased_cnns.BlurPool(2)
    x = torch.randn(1, 2, 8, 8)
    expected = module(x)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with torch.no_grad():
            module.filt.mul_(2)
        assert torch.equal(module(x), expected)
        module.read_filter()
        torch.testing.assert_close(module(x), 2 * expected)
    finally:
        torch.distributed.destroy_process_group()


def test_learnt_filters_get_gradients() -> None:
    pair = ONE_EACH[0]
    x = torch.randn(2, CHANNELS, 9, 8)
    gradients = []
    for module in pair.same():
        module.filt = nn.Buffer(torch.ones_like(module.filt).requires_grad_())
        gradients.append(torch.autograd.grad(module(x).square().sum(), module.filt)[0])
    torch.testing.assert_close(*gradients)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 3), (2, 5), (7,)], ids=str)
def test_factor_finds_the_taps(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    assert factor(binomial_filter(sizes, dtype), sizes) == (True, None)
    assert factor(binomial_filter(sizes, dtype).expand(3, 1, *sizes), sizes) == (True, None)
    for _ in range(50):
        rows = [torch.randint(-8, 9, (3, k)).double() for k in sizes]  # products of few bits, zeros among them
        product = rows[0][:, :, None] * rows[1][:, None, :] if len(sizes) == 2 else rows[0]
        separable, taps = factor(product.to(dtype).unsqueeze(1), sizes)
        assert separable and taps is not None
        parts = taps.double().split(list(sizes), 1)
        again = parts[0][:, :, None] * parts[1][:, None, :] if len(sizes) == 2 else parts[0]
        torch.testing.assert_close(again.expand_as(product), product, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factor_refuses_what_is_not_separable(dtype: torch.dtype) -> None:
    """Down to one entry that is 16 units of rounding (in halves: 2) away from the product."""
    eps = torch.finfo(dtype).eps * (2 if dtype in (torch.float16, torch.bfloat16) else 16)
    for k in (2, 3, 5):
        for i in range(k * k):
            filt = binomial_filter([k, k], dtype).reshape(-1)
            filt[i] *= 1 + eps
            assert factor(filt, [k, k]) == (False, None)
            assert not factor(torch.stack([torch.ones_like(filt), filt]), [k, k])[0]
    assert not factor(torch.full((3, 3), torch.nan, dtype=dtype), [3, 3])[0]
    assert not factor(torch.eye(3, dtype=dtype), [3, 3])[0]
    assert factor(torch.zeros(3, 3, dtype=dtype), [3, 3])[0]


def test_large_binomials_are_known_in_halves() -> None:
    for k in range(2, 20):
        for dtype in (torch.float16, torch.bfloat16):
            module = aablur.compat.timm.BlurPool2d(3, k).to(dtype)
            assert module.is_separable and module._read[1] is None, (k, dtype)


# ---- what the peers fail at --------------------------------------------------------------------------


@each_pair
def test_halves_doubles_and_unbatched_maps(pair: Pair) -> None:
    theirs, ours = pair.same()
    x = torch.randn(2, CHANNELS, *pair.sizes()[0])
    expected = theirs(x)
    if pair.name != "BlurConv2d":  # whose convolution takes its own dtype alone
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            out = ours(x.to(dtype))
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), theirs(x.to(dtype).float()).double(), atol=0.02, rtol=0.02)
    torch.testing.assert_close(torch.stack([ours(m) for m in x]), expected)
    assert ours(x[:0]).shape == (0, *expected.shape[1:])
    half = copy.deepcopy(ours).half()
    assert half.is_separable and half._read[1] is None
    torch.testing.assert_close(half(x.half()).float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("size", [1, 2])
def test_maps_smaller_than_the_filter(size: int) -> None:
    """Where the peers raise: the periodic reflection, which is NumPy's."""
    x = torch.randn(1, CHANNELS, size, size)
    padded = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect"))
    for peer, args in (("antialiased_cnns", (CHANNELS, "reflect", 5)), ("timm", (CHANNELS, 5))):
        theirs, ours = Pair(peer, "BlurPool" if peer != "timm" else "BlurPool2d", args).same()
        with pytest.raises(RuntimeError):
            theirs(x)
        expected = nn.functional.conv2d(padded, ours.filt, stride=2, groups=CHANNELS)
        torch.testing.assert_close(ours(x), expected)


def test_the_wrong_number_of_channels_is_refused() -> None:
    for module in (
        aablur.compat.antialiased_cnns.BlurPool(6),
        aablur.compat.timm.BlurPool2d(6),
        aablur.compat.composer.BlurPool2d(6),
    ):
        with pytest.raises(ValueError, match=r"x must have 6 channels, one a filter, got shape \(1, 3, 8, 8\)"):
            module(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda c: c.antialiased_cnns.BlurPool(3, "circular"), ValueError, "pad_type must be one of refl"),
        (lambda c: c.antialiased_cnns.BlurPool(3, filt_size=0), ValueError, "filt_size must be from 1"),
        (lambda c: c.antialiased_cnns.BlurPool(3.0), TypeError, "channels must be an int"),
        (lambda c: c.antialiased_cnns.BlurPool(3, pad_off=0.5), TypeError, "pad_off must be an int"),
        (lambda c: c.antialiased_cnns.BlurPool(3, stride=0), ValueError, "stride must be from 1"),
        (lambda c: c.timm.BlurPool2d(3, 1), ValueError, "filt_size must be at least 2"),
        (lambda c: c.timm.BlurPool2d(0), ValueError, "channels must be from 1"),
        (lambda c: c.timm.BlurPool2d(pad_mode="zeros"), ValueError, "pad_mode must be one of reflect, constant"),
        (lambda c: c.timm.create_aa("bluer"), ValueError, "aa_layer must be one of avg"),
        (lambda c: c.kornia.BlurPool2D((3, 3, 3)), ValueError, "kernel_size must be an int or two"),
        (lambda c: c.kornia.MaxBlurPool2D(3, max_pool_size=0), ValueError, "window must be from 1"),
        (lambda c: c.kornia.blur_pool2d(torch.ones(1, 1, 4, 4, dtype=torch.int32), 3), TypeError, "x must be one of"),
        (lambda c: c.composer.BlurPool2d(-1), ValueError, "channels must be from 0"),
        (lambda c: c.composer.BlurConv2d(3, 3, 3), ValueError, "stride must be given"),
        (lambda c: c.composer.blur_2d(torch.ones(1, 3, 4, 4), 2), ValueError, "input must have 2 channels"),
        (lambda c: c.composer.blur_2d(torch.ones(1, 3, 4, 4), filter=torch.ones(1, 1, 2, 3)), ValueError, "odd"),
        (lambda c: c.composer.blur_2d(torch.ones(1, 3, 4, 4), filter=torch.ones(3, 3)), ValueError, "filter must have"),
        (lambda c: c.composer.blur_2d(torch.ones(1, 3, 4, 4), filter=3), TypeError, "filter must be a floating"),
        (lambda c: c.composer.apply_blurpool(3), TypeError, "model must be a torch.nn.Module"),
    ],
)
def test_bad_input(call: Callable[[Any], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(aablur.compat)


# ---- at home in torch --------------------------------------------------------------------------------


@each_pair
def test_compile_and_export(pair: Pair) -> None:
    torch._dynamo.reset()
    module = pair.ours().eval()
    x = torch.randn(2, CHANNELS, *pair.sizes()[0])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    like = getattr(module, module.filter_name).clone()
    for filt in (like, other_filter(like, pair.rank), torch.randn(like.shape)):
        put(module, filt)
        assert_same(compiled, module, x)
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
        more = torch.cat([x, x])
        torch.testing.assert_close(program.module()(more), module(more))


@pytest.mark.parametrize("separable", [True, False])
def test_torch_func(separable: bool) -> None:
    pair = ONE_EACH[0]
    theirs, ours = pair.same()
    filt = other_filter(ours.filt, 2) if separable else torch.randn(ours.filt.shape)
    x, v = torch.randn(2, 1, CHANNELS, 7, 6)
    for module in (theirs, ours):
        put(module, filt)
    torch.testing.assert_close(
        torch.func.jvp(ours, (x,), (v,)), torch.func.jvp(theirs, (x,), (v,)), atol=1e-4, rtol=1e-4
    )
    jacobians = [torch.func.jacrev(lambda t, m=m: m(t).square())(x) for m in (ours, theirs)]
    torch.testing.assert_close(*jacobians, atol=1e-3, rtol=1e-3)


def test_autocast_keeps_the_dtype_of_the_map() -> None:
    for pair in (p for p in ONE_EACH if p.name != "BlurConv2d"):
        module, x = pair.ours(), torch.randn(2, CHANNELS, *pair.sizes()[0])
        like = getattr(module, module.filter_name)
        for filt in (like.clone(), torch.randn(like.shape)):
            put(module, filt)
            expected = module(x)
            with torch.autocast("cpu", torch.bfloat16):
                out = module(x)
            assert out.dtype == torch.float32 and torch.equal(out, expected)


@each_pair
def test_symbolic_tracing(pair: Pair) -> None:
    """The graph calls the public function, or the plain one where the filter is not separable."""
    x = torch.randn(2, CHANNELS, *pair.sizes()[0])
    module = pair.ours()
    like = getattr(module, module.filter_name)
    for filt in (like, other_filter(like, pair.rank), torch.randn(like.shape)):
        put(module, filt)
        traced = torch.fx.symbolic_trace(module)
        assert torch.equal(traced(x), module(x))
        called = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
        assert called == [f"{'max_' if module.is_max else ''}blur_pool{pair.rank}d" if module.is_separable else "plain"]


@each_pair
def test_onnx(pair: Pair) -> None:
    module = pair.ours().eval()
    x = torch.randn(2, CHANNELS, *pair.sizes()[0])
    put(module, other_filter(getattr(module, module.filter_name), pair.rank))
    program = torch.onnx.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.cat([x, x])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), module(x).detach(), atol=1e-4, rtol=1e-4)


@each_pair
def test_meta_and_empty(pair: Pair) -> None:
    """Made on meta, materialised, then loaded: the values count that are there by then."""
    expected = pair.ours()
    with torch.device("meta"):
        module = pair.ours()
    x = torch.randn(2, CHANNELS, *pair.sizes()[0])
    assert module(x.to("meta")).shape == expected(x).shape
    module.to_empty(device="cpu")
    if hasattr(module, "init_non_persistent_buffers"):
        module.init_non_persistent_buffers()
    elif module.filter_name not in module.state_dict():
        put(module, getattr(expected, module.filter_name))
    module.load_state_dict(expected.state_dict())
    assert torch.equal(module(x), expected(x))


@each_pair
def test_another_default_device(pair: Pair) -> None:
    """The buffer is read on the host, whatever the device that tensors are made on."""
    module, x = pair.ours(), torch.randn(2, CHANNELS, *pair.sizes()[0])
    filt = other_filter(getattr(module, module.filter_name), pair.rank)
    put(module, filt)
    expected = module(x)
    with torch.device("meta"):
        put(module, filt)
        assert module.is_separable and torch.equal(module(x), expected)


def test_vmap_over_filters() -> None:
    """An ensemble on stacked buffers, whose values no one can look at."""
    modules = [aablur.compat.antialiased_cnns.BlurPool(2, filt_size=3) for _ in range(3)]
    for module in modules:
        put(module, torch.randn(2, 1, 3, 3))
    _, buffers = torch.func.stack_module_state(modules)  # pyright: ignore[reportArgumentType]
    x = torch.randn(1, 2, 8, 8)
    out = torch.func.vmap(lambda b: torch.func.functional_call(modules[0], b, x))(buffers)
    torch.testing.assert_close(out, torch.stack([module(x) for module in modules]))
