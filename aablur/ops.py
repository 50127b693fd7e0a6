"""The torch ops, and the only file that registers: schemas, reference kernels, fakes, autograd, vmap, forcing.

Each op exists once for every device: torch's dispatcher picks the native kernel of the device, or the reference.
Gradients are ops of the same family, so that any order of derivative comes out of the same few kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from . import backends, decomposition, reference
from .geometry import Geometry, count_axes
from .schemas import SCHEMAS

_library = torch.library.Library("aablur", "FRAGMENT")
if not backends.has_native():
    for _schema in SCHEMAS:
        _library.define(_schema)

_ops = torch.ops.aablur


@lru_cache(maxsize=1024)
def _read(op: str, axes: tuple[int, ...], padding_mode: str) -> Geometry:
    return Geometry.of_op(op, axes, padding_mode)


def _geometry(op: str, axes: list[int], padding_mode: str) -> Geometry:
    """What an op's arguments describe: for the same arguments the same object."""
    return _read(op, tuple(axes), padding_mode)


def _spatial(x: Tensor, axes: list[int]) -> list[int]:
    return list(x.shape[-count_axes(axes) :])


# ---- kernels, which are given a Geometry in place of its numbers -------------------------------------


def _kernel(op: str, body: Callable[..., Any]) -> Callable[..., Any]:
    names = [a.name for a in getattr(_ops, op).default._schema.arguments]
    i = names.index("axes")
    return lambda *args: body(*args[:i], _geometry(op, args[i], args[i + 1]), *args[i + 2 :])


def _blur_pool_backward(
    grad: Tensor, taps: Tensor | None, size: list[int], geometry: Geometry, channels_last: bool
) -> Tensor:
    out = reference.blur_pool_backward(grad, taps, size, geometry)
    return reference.in_layout(out, len(size), channels_last)


def _blur_pool_backward_taps(grad: Tensor, x: Tensor, taps: Tensor, geometry: Geometry) -> Tensor:
    return reference.blur_pool_backward_taps(grad, x, taps, geometry).contiguous()


def _batched(x: Tensor, rank: int) -> Tensor:
    return x if x.ndim == rank + 2 else x.unsqueeze(0)


def _max_blur_pool_codes(x: Tensor, taps: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor]:
    return reference.blur_pool(x, taps, geometry), _codes(x, geometry)


def _codes(x: Tensor, geometry: Geometry) -> Tensor:
    rank = len(geometry.axes)
    channels_last = reference.prefers_channels_last(x, rank)
    _, indices = reference.max_pool_indices(_batched(x, rank).to(reference.accumulator_dtype(x.dtype)), geometry)
    return reference.indices_to_codes(indices, x.shape[-rank:], geometry, channels_last)


def _max_blur_pool_backward(
    grad: Tensor, x: Tensor | None, codes: Tensor | None, taps: Tensor | None, size: list[int], geometry: Geometry,
    channels_last: bool,
) -> Tensor:  # fmt: skip
    indices = _indices(grad, x, codes, size, geometry, channels_last)
    wide = grad.to(reference.accumulator_dtype(grad.dtype))
    pooled = reference.pooled_sizes(geometry, size)
    out = reference.select_adjoint(reference.blur_pool_backward(wide, taps, pooled, geometry), indices, size)
    return reference.in_layout(out.to(grad.dtype), len(size), channels_last)


def _indices(
    grad: Tensor, x: Tensor | None, codes: Tensor | None, size: list[int], geometry: Geometry, channels_last: bool
) -> Tensor:
    """Where each maximum lay, from x or from the codes: flat spatial indices (images, channels, pooled...)."""
    if x is not None:
        return reference.max_pool_indices(
            _batched(x.detach(), len(size)).to(reference.accumulator_dtype(x.dtype)), geometry
        )[1]
    assert codes is not None
    channels_last = channels_last and len(size) > 1  # maps of one axis have one layout
    return reference.codes_to_indices(codes, [*grad.shape[: -len(size)], *size], geometry, channels_last)


# For every device that has no kernels of its own.
_BODIES: dict[str, Callable[..., Any]] = {
    "blur_pool": reference.blur_pool,
    "blur_pool_backward": _blur_pool_backward,
    "blur_pool_backward_taps": _blur_pool_backward_taps,
    "max_blur_pool": reference.blur_pool,
    "max_blur_pool_codes": _max_blur_pool_codes,
    "max_blur_pool_backward": _max_blur_pool_backward,
}
_REFERENCE = {name: _kernel(name, body) for name, body in _BODIES.items()}
for _name, _run in _REFERENCE.items():
    _library.impl(_name, _run, "CompositeExplicitAutograd")


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The forward ops in plain aten, for engines that do not know them: for `ExportedProgram.run_decompositions`.

    Each becomes a max pool, if it has a window, and one depthwise convolution, after a pad unless it pads by zeros; in
    the dtype of x. `torch.onnx.export` of a model needs no table; of an exported program it does::

        torch.onnx.export(program.run_decompositions(aablur.decompositions()), ...)

    Returns:
        op overload -> function of the same signature.
    """

    def max_blur_pool_codes(x: Tensor, taps: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor]:
        return decomposition.blur_pool(x, taps, geometry), _codes(x, geometry)

    bodies: dict[str, Callable[..., Any]] = {
        "blur_pool": decomposition.blur_pool,
        "max_blur_pool": decomposition.blur_pool,
        "max_blur_pool_codes": max_blur_pool_codes,
    }
    return {getattr(_ops, name).default: _kernel(name, body) for name, body in bodies.items()}


def _on_triton(op: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        from . import triton_ops  # its import takes seconds, and may fail where nothing needs it

        with torch.cuda.device_of(args[0]):  # Triton launches on the current device, and on its stream
            return getattr(triton_ops, op)(*args)

    return run


_TRITON = {name: _kernel(name, _on_triton(name)) for name in _REFERENCE}
if backends.presumed() == "triton":
    for _name, _run in _TRITON.items():
        _library.impl(_name, _run, "CUDA")


def _choose_by_card() -> None:
    """Once CUDA's devices are known: where another backend than was presumed serves some, a call goes to the one that
    serves the device of its first tensor."""
    served = backends.serving_cards()
    if set(served) <= {backends.presumed()}:
        return

    def chooser(name: str) -> Callable[..., Any]:
        kernels = {"triton": _TRITON[name], "reference": _REFERENCE[name]}
        compiled = torch.library.get_kernel(f"aablur::{name}", "CUDA") if "cuda" in served else None

        def run(keys: Any, *args: Any) -> Any:
            card = args[0].device.index
            if compiled is not None and served[card] == "cuda":
                return compiled.call_boxed(keys, *args)
            if backends.forced == "cuda":
                raise RuntimeError(f"backend 'cuda' is forced: {backends.why_not('cuda', card)}")
            return kernels[served[card]](*args)

        return run

    with warnings.catch_warnings(), _forced.lifted():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of every override
        for name in _REFERENCE:
            _library.impl(name, chooser(name), "CUDA", with_keyset=True, allow_override=True)


# ---- fakes: shapes and strides without data ----------------------------------------------------------


def _empty(like: Tensor, size: list[int], channels_last: bool) -> Tensor:
    """A map with the batch and channels of `like`."""
    rank = len(size)
    shape = [*like.shape[:-rank], *size]
    if not channels_last or rank == 1:
        return like.new_empty(shape)
    if len(shape) == rank + 1:
        return _empty(like.unsqueeze(0), size, channels_last).squeeze(0)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=reference.channels_last_format(rank))


def _fake_blur_pool(x: Tensor, taps: Tensor | None, geometry: Geometry) -> Tensor:
    rank = len(geometry.axes)
    size = [a.out_size(n) for a, n in zip(geometry.axes, x.shape[-rank:], strict=True)]
    return _empty(x, size, reference.prefers_channels_last(x, rank))


def _fake_max_blur_pool_codes(x: Tensor, taps: Tensor | None, geometry: Geometry) -> tuple[Tensor, Tensor]:
    channels_last = reference.prefers_channels_last(x, len(geometry.axes))
    shape = reference.code_shape(x.shape, geometry, channels_last)
    return _fake_blur_pool(x, taps, geometry), x.new_empty(shape, dtype=torch.uint8)


_FAKE: dict[str, Callable[..., Any]] = {
    "blur_pool": _fake_blur_pool,
    "blur_pool_backward": lambda grad, taps, size, geometry, channels_last: _empty(grad, size, channels_last),
    "blur_pool_backward_taps": lambda grad, x, taps, geometry: torch.empty_like(
        taps, memory_format=torch.contiguous_format
    ),
    "max_blur_pool": _fake_blur_pool,
    "max_blur_pool_codes": _fake_max_blur_pool_codes,
    "max_blur_pool_backward": lambda grad, x, codes, taps, size, geometry, channels_last: _empty(
        grad, size, channels_last
    ),
}
for _name, _run in _FAKE.items():
    torch.library.register_fake(f"aablur::{_name}", _kernel(_name, _run), lib=_library)


# ---- autograd ----------------------------------------------------------------------------------------

# An OpOverload's own way to call it (`_op`) saves a Python frame of nearly a microsecond.
_overloads = {name: getattr(_ops, name).default._op for name in _REFERENCE}
_functions: dict[str, Callable[..., Any]] = {}
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def call(name: str, *args: Any) -> Any:
    """Calls an op, whoever traces or transforms."""
    if _is_traced():
        return getattr(_ops, name).default(*args)
    if torch.is_grad_enabled():
        for a in args[:4]:
            if isinstance(a, Tensor) and a.requires_grad:
                return call_differentiable(name, *args)
    return call_constant(name, *args)


def call_differentiable(name: str, *args: Any) -> Any:
    """`call` where nobody traces or transforms: a Function of ours takes the place of the dispatcher's autograd key,
    which has the same formulas and takes longer."""
    return _functions[name](*args)


def call_constant(name: str, *args: Any) -> Any:
    """`call` where nobody traces or transforms, and no gradient is wanted."""
    with _BelowAutograd():
        return _overloads[name](*args)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _differentiable(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Registers an op's gradient with torch, and makes the Function that `call` uses of the same two formulas."""

    def forward(ctx: Any, *args: Any) -> Any:
        with _BelowAutograd():
            output = op(*args)
        setup(ctx, args, output)
        return output

    op = _overloads[name]
    torch.library.register_autograd(
        f"aablur::{name}", backward, setup_context=lambda ctx, inputs, output: setup(ctx, inputs, output), lib=_library
    )
    body = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(name, (torch.autograd.Function,), body)
    # Function.apply looks for torch.func, as `call` has done, and then calls this.
    _functions[name] = super(torch.autograd.Function, function).apply  # pyright: ignore


def _setup_blur_pool(ctx: Any, inputs: Any, output: Any) -> None:
    x, taps, *ctx.args = inputs
    ctx.size = _spatial(x, ctx.args[0])
    ctx.channels_last = reference.prefers_channels_last(x, len(ctx.size))
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, taps)


def _blur_pool_gradients(ctx: Any, grad: Tensor) -> Any:
    x, taps = ctx.saved_tensors
    needs_x, needs_taps = ctx.needs_input_grad[:2]
    grad_x = call("blur_pool_backward", grad, taps, ctx.size, *ctx.args, ctx.channels_last) if needs_x else None
    grad_taps = call("blur_pool_backward_taps", grad, x, taps, *ctx.args) if needs_taps else None
    return grad_x, grad_taps, *[None] * len(ctx.args)


def _setup_blur_pool_backward(ctx: Any, inputs: Any, output: Any) -> None:
    grad, taps, _, *ctx.args, _ = inputs
    ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, taps)


def _blur_pool_backward_gradients(ctx: Any, grad_out: Tensor) -> Any:
    grad, taps = ctx.saved_tensors
    needs_grad, needs_taps = ctx.needs_input_grad[:2]
    grad_grad = call("blur_pool", grad_out, taps, *ctx.args) if needs_grad else None
    grad_taps = call("blur_pool_backward_taps", grad, grad_out, taps, *ctx.args) if needs_taps else None
    return grad_grad, grad_taps, *[None] * (len(ctx.args) + 2)


def _setup_blur_pool_backward_taps(ctx: Any, inputs: Any, output: Any) -> None:
    grad, x, taps, *ctx.args = inputs
    ctx.size = _spatial(x, ctx.args[0])
    ctx.channels_last = reference.prefers_channels_last(x, len(ctx.size))
    ctx.save_for_backward(grad, x, taps)


def _blur_pool_backward_taps_gradients(ctx: Any, direction: Tensor) -> Any:
    """<direction, d <grad, blur(x, taps)> / d taps> is the sum over axes of <grad, blur(x, taps)> with that axis'
    taps replaced by the direction's: linear in grad and x, and in the taps of the other axes.
    """
    grad, x, taps = ctx.saved_tensors
    sizes = [a.taps for a in _geometry("blur_pool", *ctx.args).axes]
    needs_grad, needs_x, needs_taps = ctx.needs_input_grad[:3]
    wide = reference.accumulator_dtype(x.dtype)
    wide_x, wide_grad = x.to(wide), grad.to(wide)  # shares are added before they are rounded
    grad_grad = grad_x = grad_taps = None
    for axis in range(len(sizes)):

        def with_own(own: Tensor, others: Tensor, axis: int = axis) -> Tensor:
            """The columns of this axis from one, those of the other axes from the other."""
            pairs = zip(own.split(sizes, 1), others.split(sizes, 1), strict=True)
            return torch.cat([a if i == axis else b for i, (a, b) in enumerate(pairs)], 1)

        replaced = with_own(direction, taps)
        if needs_grad:
            share = call("blur_pool", wide_x, replaced, *ctx.args)
            grad_grad = share if grad_grad is None else grad_grad + share
        if needs_x:
            share = call("blur_pool_backward", wide_grad, replaced, ctx.size, *ctx.args, ctx.channels_last)
            grad_x = share if grad_x is None else grad_x + share
        if needs_taps:
            share = call("blur_pool_backward_taps", grad, x, replaced, *ctx.args)
            share = with_own(torch.zeros_like(share), share)
            grad_taps = share if grad_taps is None else grad_taps + share
    grad_grad, grad_x = (g if g is None else g.to(x.dtype) for g in (grad_grad, grad_x))
    return grad_grad, grad_x, grad_taps, *[None] * len(ctx.args)


def _setup_max_blur_pool(ctx: Any, inputs: Any, output: Any) -> None:
    x, taps, *ctx.args = inputs
    ctx.size = _spatial(x, ctx.args[0])
    ctx.channels_last = reference.prefers_channels_last(x, len(ctx.size))
    codes = None
    if isinstance(output, tuple):
        codes = output[1]
        ctx.mark_non_differentiable(codes)
        ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if codes is None or ctx.needs_input_grad[1] else None, codes, taps)


def _max_blur_pool_gradients(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
    x, codes, taps = ctx.saved_tensors
    needs_x, needs_taps = ctx.needs_input_grad[:2]
    grad_x = grad_taps = None
    if grad is not None and needs_x:
        source = (None, codes) if codes is not None else (x, None)
        grad_x = call("max_blur_pool_backward", grad, *source, taps, ctx.size, *ctx.args, ctx.channels_last)
    if grad is not None and needs_taps:
        geometry = _geometry("max_blur_pool", *ctx.args)
        pooled = call("max_blur_pool", x, None, *geometry.max_args)
        grad_taps = call("blur_pool_backward_taps", grad, pooled, taps, *geometry.blur_args)
    return grad_x, grad_taps, *[None] * len(ctx.args)


def _setup_max_blur_pool_backward(ctx: Any, inputs: Any, output: Any) -> None:
    grad, x, codes, taps, ctx.size, *ctx.args, ctx.channels_last = inputs
    ctx.save_for_backward(grad, x, codes, taps)


def _max_blur_pool_backward_gradients(ctx: Any, grad_out: Tensor) -> Any:
    """The max only chose, so the op is linear in grad: choose again from grad_out, then blur."""
    grad, x, codes, taps = ctx.saved_tensors
    geometry = _geometry("max_blur_pool_backward", *ctx.args)
    indices = _indices(grad, x, codes, ctx.size, geometry, ctx.channels_last)
    chosen, blur = reference.select(grad_out, indices), geometry.blur_args
    grad_grad = call("blur_pool", chosen, taps, *blur) if ctx.needs_input_grad[0] else None
    grad_taps = call("blur_pool_backward_taps", grad, chosen, taps, *blur) if ctx.needs_input_grad[3] else None
    return grad_grad, None, None, grad_taps, *[None] * (len(ctx.args) + 2)


_differentiable("blur_pool", _setup_blur_pool, _blur_pool_gradients)
_differentiable("blur_pool_backward", _setup_blur_pool_backward, _blur_pool_backward_gradients)
_differentiable("blur_pool_backward_taps", _setup_blur_pool_backward_taps, _blur_pool_backward_taps_gradients)
_differentiable("max_blur_pool", _setup_max_blur_pool, _max_blur_pool_gradients)
_differentiable("max_blur_pool_codes", _setup_max_blur_pool, _max_blur_pool_gradients)
_differentiable("max_blur_pool_backward", _setup_max_blur_pool_backward, _max_blur_pool_backward_gradients)


# ---- vmap --------------------------------------------------------------------------------------------


def _vmap(name: str, tensors: int, maps: tuple[int, ...]) -> None:
    """Registers an op's vmap rule: batched maps are folded into the batch; other batched arguments are looped over.

    Args:
        tensors: how many of the first arguments may be tensors.
        maps: which of them have a batch to fold into.
    """
    op = getattr(_ops, name).default

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        count = info.batch_size
        batched = [i for i in range(tensors) if in_dims[i] is not None]
        moved = list(args)
        for i in batched:
            moved[i] = args[i].movedim(in_dims[i], 0)
        given = [i for i in maps if args[i] is not None]
        if maps and set(batched) <= set(given):
            for i in given:
                m = moved[i] if i in batched else args[i].expand(count, *args[i].shape)
                moved[i] = m.flatten(0, 1) if _has_batch(op, args, i, in_dims) else m
            out = op(*moved)
            restored = [_unfold(o, count, _has_batch(op, args, given[0], in_dims)) for o in _tuple(out)]
        else:
            calls = [op(*[m[n] if i in batched else m for i, m in enumerate(moved)]) for n in range(count)]
            restored = [torch.stack(parts) for parts in zip(*map(_tuple, calls), strict=True)]
        dims = (0,) * len(restored)
        return (tuple(restored), dims) if len(restored) > 1 else (restored[0], 0)

    torch.library.register_vmap(f"aablur::{name}", rule, lib=_library)


def _tuple(out: Any) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def _has_batch(op: Any, args: tuple[Any, ...], i: int, in_dims: tuple[Any, ...]) -> bool:
    """Whether a sample of map argument i has a batch axis of its own."""
    names = [a.name for a in op._schema.arguments]
    rank = count_axes(args[names.index("axes")])
    return args[i].ndim - (in_dims[i] is not None) == rank + 2


def _unfold(out: Tensor, count: int, has_batch: bool) -> Tensor:
    if has_batch:
        return out.unflatten(0, (count, -1))
    return out.unsqueeze(1) if out.dtype == torch.uint8 else out  # an unbatched map's codes have one image


_vmap("blur_pool", 2, (0,))
_vmap("blur_pool_backward", 2, (0,))
_vmap("blur_pool_backward_taps", 3, ())
_vmap("max_blur_pool", 2, (0,))
_vmap("max_blur_pool_codes", 2, (0,))
_vmap("max_blur_pool_backward", 4, ())


# ---- forcing a backend -------------------------------------------------------------------------------


class _Forced:
    """The backends that are forced, each by a context of `backend`; the last one serves, alone."""

    def __init__(self) -> None:
        self._lock, self._names = RLock(), dict[object, str]()
        self._library: torch.library.Library | None = None
        if backends.forced is not None:
            self.enter(backends.forced)

    def enter(self, name: str) -> object:
        with self._lock:
            library, context = _force(name), object()
            self._names[context] = name
            self._serve(library)
        return context

    def leave(self, context: object) -> None:
        """Contexts of several threads need not end in the order that they began in."""
        with self._lock:
            del self._names[context]
            last = next(reversed(self._names.values()), None)
            self._serve(None if last is None else _force(last))

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Inside, the kernels that are forced are not registered, for others to be found and laid beneath."""
        with self._lock:
            if self._library is not None:
                self._library._destroy()
                self._library = None
            yield
            if self._names:
                self._serve(_force(next(reversed(self._names.values()))))

    def _serve(self, library: torch.library.Library | None) -> None:
        if self._library is not None:
            self._library._destroy()
        self._library = library
        backends.forced = next(reversed(self._names.values()), None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Makes one backend serve every device it can, for tests and benchmarks: eager, compiled, everywhere.

    Args:
        name: "cuda", "triton", "cpu" or "reference". Devices that it does not serve raise a RuntimeError.

    Raises:
        ValueError: no such backend, or it cannot serve here (the message says why).
    """
    context = _forced.enter(name)
    try:
        yield
    finally:
        _forced.leave(context)


def _force(name: str) -> torch.library.Library:
    reason = backends.why_not(name)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot serve: {reason}")
    library = torch.library.Library("aablur", "IMPL")

    def refuse(*args: Any) -> Any:
        raise RuntimeError(f"backend {name!r} is forced, and serves no such device")

    served, kernels = backends.devices(name), {"reference": _REFERENCE, "triton": _TRITON}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of every override
        for op in _REFERENCE:
            for device, key in backends.DEVICE_KEYS.items():
                if device not in served:
                    library.impl(op, refuse, key, allow_override=True)
                elif name in kernels:
                    library.impl(op, kernels[name][op], key, allow_override=True)
            if name != "reference":
                library.impl(op, refuse, "CompositeExplicitAutograd", allow_override=True)
    return library


_forced = _Forced()
if torch.version.cuda is not None:
    torch.cuda._lazy_call(_choose_by_card)  # when something first asks for a CUDA device, or at once if it has
