"""The functions people call: arguments become axes, the path is chosen, an op does the work."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_unary

from . import backends, decomposition, ops, reference
from .geometry import LARGEST_BINOMIAL, Geometry, _is_int, by_name, refuse, shown, taps_by_position

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOATS = frozenset(_DTYPES)
_PLAIN = frozenset((int, str))  # a cache would take 1.0 and True for 1
runs: dict[type, Callable[..., Tensor]] = {}  # how maps of a class other than Tensor are run: see aablur.distributed


@by_name
def blur_pool1d(
    x: Tensor, taps: Any = 3, *positions: Any, stride: Any = 2, padding: Any = "same", padding_mode: str = "reflect",
    **unknown: Any,
) -> Tensor:  # fmt: skip
    """`blur_pool2d` along one axis: x is (channels, width) or (batch, channels, width)."""
    if positions or unknown:
        refuse("blur_pool1d", False, positions, unknown)
    return blur_pool("blur_pool1d", 1, x, taps, stride, padding, padding_mode)


@by_name
def blur_pool2d(
    x: Tensor, taps: Any = 3, *positions: Any, stride: Any = 2, padding: Any = "same", padding_mode: str = "reflect",
    **unknown: Any,
) -> Tensor:  # fmt: skip
    """Anti-aliased downsampling: blur, then keep every ``stride``-th value (BlurPool).

    Along the height, then along the width:

    1. Pad by ``padding`` in ``padding_mode``; a negative pad crops.
    2. Correlate with ``taps``, in float32 (float64 for float64).
    3. Keep every ``stride``-th value, from the first.

    The result is rounded once to the dtype of ``x``. On a CPU with the native library this is one pass: ``x`` is
    read once, the result written once, and the backward needs nothing but shapes.

    Arguments after ``taps`` are given by name.

    Args:
        x: (channels, height, width) or (batch, channels, height, width); float16, bfloat16, float32 or float64.
            Contiguous and channels_last maps come out as they came in; other strides come out contiguous, and
            are copied once where their rows are not contiguous.
        taps: the filter. An int k is the binomial filter of k taps over its sum: 3 is [1, 2, 1] / 4. A tensor (k,)
            or (channels, k) is used as given, not normalised, and gets a gradient if it requires one. A tuple holds
            one of these for each of height and width. Default 3.
        stride: an int, or one for each of height and width. Default 2.
        padding: "same" pads (k - 1) // 2 before and k // 2 after, so that a size n gives ceil(n / stride). Or an
            int; or one for each axis; or one (before, after) pair for each axis. Default "same".
        padding_mode: "zeros", "reflect", "replicate" or "circular". Unlike torch's, "reflect" and "circular" go on
            periodically on maps smaller than the pad. Default "reflect".

    Returns:
        (..., channels, out height, out width) with out = (size + before + after - k) // stride + 1.

    Raises:
        TypeError, ValueError: an argument is not of the form above, or the output would be empty.

    Source: Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019 (arXiv 1904.11486).
    """
    if positions or unknown:
        refuse("blur_pool2d", False, positions, unknown)
    return blur_pool("blur_pool2d", 2, x, taps, stride, padding, padding_mode)


@by_name
def blur_pool3d(
    x: Tensor, taps: Any = 3, *positions: Any, stride: Any = 2, padding: Any = "same", padding_mode: str = "reflect",
    **unknown: Any,
) -> Tensor:  # fmt: skip
    """`blur_pool2d` along three axes: x is (channels, depth, height, width), with or without a batch before."""
    if positions or unknown:
        refuse("blur_pool3d", False, positions, unknown)
    return blur_pool("blur_pool3d", 3, x, taps, stride, padding, padding_mode)


@by_name
def max_blur_pool1d(
    x: Tensor, window: Any = 2, *positions: Any, taps: Any = 3, stride: Any = 2, padding: Any = "same",
    padding_mode: str = "reflect", window_padding: Any = 0, window_dilation: Any = 1, recompute: bool = False,
    **unknown: Any,
) -> Tensor:  # fmt: skip
    """`max_blur_pool2d` along one axis: x is (channels, width) or (batch, channels, width)."""
    if positions or unknown:
        taps = taps_by_position("max_blur_pool1d", positions, unknown, taps)
    prologue = (window, window_padding, window_dilation)
    return blur_pool("max_blur_pool1d", 1, x, taps, stride, padding, padding_mode, prologue, recompute)


@by_name
def max_blur_pool2d(
    x: Tensor, window: Any = 2, *positions: Any, taps: Any = 3, stride: Any = 2, padding: Any = "same",
    padding_mode: str = "reflect", window_padding: Any = 0, window_dilation: Any = 1, recompute: bool = False,
    **unknown: Any,
) -> Tensor:  # fmt: skip
    """Anti-aliased max pooling: max at stride 1, then blur, then keep every ``stride``-th value (MaxBlurPool).

    1. Max over ``window`` at stride 1, as ``F.max_pool2d(x, window, 1, window_padding, window_dilation)``: the first
       maximum wins a tie, NaN propagates.
    2. `blur_pool2d` of that map with ``taps``, ``stride``, ``padding`` and ``padding_mode``.

    The map between the two is never stored. For the backward the position of each maximum is kept in 2 bits (windows
    of up to 4 positions; 4 bits up to 16, 8 up to 256), or with ``recompute`` only ``x`` itself is.

    Arguments after ``window`` are given by name (taps of 3 or more may follow it): in torch's max pools their positions
    mean other things. In place of ``F.max_pool2d(x, k, stride, padding)``:
    ``max_blur_pool2d(x, k, stride=stride, window_padding=padding)``.

    Args:
        x: as for `blur_pool2d`.
        window: size of the max window: an int, or one for each of height and width; at most 65535 positions in all.
            Default 2.
        taps, stride, padding, padding_mode: as for `blur_pool2d`; padding acts on the map after the max.
        window_padding: padding of the max with -inf, at most half the window: an int or one for each axis.
            Default 0.
        window_dilation: steps between window positions: an int or one for each axis. Default 1.
        recompute: for the backward, save ``x`` and find the maxima again, instead of saving codes. Costs one more
            read of ``x``; saves memory where ``x`` is kept anyway. Default False.

    Returns:
        (..., channels, out height, out width) with out = (pooled + before + after - k) // stride + 1 and
        pooled = size + 2 * window_padding - window_dilation * (window - 1).

    Raises:
        TypeError, ValueError: an argument is not of the form above, the window does not fit the map, or the output
            would be empty.

    Source: Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019 (arXiv 1904.11486).
    """
    if positions or unknown:
        taps = taps_by_position("max_blur_pool2d", positions, unknown, taps)
    prologue = (window, window_padding, window_dilation)
    return blur_pool("max_blur_pool2d", 2, x, taps, stride, padding, padding_mode, prologue, recompute)


@by_name
def max_blur_pool3d(
    x: Tensor, window: Any = 2, *positions: Any, taps: Any = 3, stride: Any = 2, padding: Any = "same",
    padding_mode: str = "reflect", window_padding: Any = 0, window_dilation: Any = 1, recompute: bool = False,
    **unknown: Any,
) -> Tensor:  # fmt: skip
    """`max_blur_pool2d` along three axes: x is (channels, depth, height, width), with or without a batch before."""
    if positions or unknown:
        taps = taps_by_position("max_blur_pool3d", positions, unknown, taps)
    prologue = (window, window_padding, window_dilation)
    return blur_pool("max_blur_pool3d", 3, x, taps, stride, padding, padding_mode, prologue, recompute)


def blur_pool(
    op: str, rank: int, x: Tensor, taps: Any, stride: Any, padding: Any, padding_mode: Any,
    prologue: tuple[Any, Any, Any] | None = None, recompute: bool = False,
) -> Tensor:  # fmt: skip
    """What all of the above are: ``prologue`` is None, or (window, window_padding, window_dilation)."""
    if has_torch_function_unary(x):  # a proxy of torch.fx, a subclass, a mode: to them this is one function
        return _handed_over(op, x, taps, stride, padding, padding_mode, prologue, recompute)
    arguments = (stride, padding, padding_mode, *(prologue or ()))
    if type(taps) is int and _PLAIN.issuperset(map(type, arguments)) and not torch.compiler.is_compiling():
        packed, geometry = None, _cached_geometry(op, rank, taps, *arguments)
    else:
        packed, taps_size = pack_taps(op, rank, taps, x)
        geometry = Geometry(op, taps_size, *arguments)
    if not isinstance(recompute, bool):
        raise TypeError(f"{op}: recompute must be a bool, got {shown(recompute)}")
    return run(x, packed, geometry, recompute)


def _handed_over(
    op: str, x: Any, taps: Any, stride: Any, padding: Any, padding_mode: Any,
    prologue: tuple[Any, Any, Any] | None, recompute: bool,
) -> Any:  # fmt: skip
    """The public function by torch's `__torch_function__` protocol."""
    arguments = {"taps": taps, "stride": stride, "padding": padding, "padding_mode": padding_mode}
    if prologue is not None:
        arguments |= dict(zip(("window", "window_padding", "window_dilation"), prologue, strict=True))
        arguments["recompute"] = recompute
    return handle_torch_function(globals()[op], (x,), x, **arguments)


@lru_cache(maxsize=1024)
def _cached_geometry(op: str, rank: int, taps: int, *arguments: int | str) -> Geometry:
    return Geometry(op, [check_taps_size(op, "taps", taps)] * rank, *arguments)


def run(x: Tensor, taps: Tensor | None, geometry: Geometry, recompute: bool = False) -> Tensor:
    """Checks the map and chooses the path: the reference where the ops' rules do not reach, else the ops."""
    if _is_watched():
        return _run_watched(x, taps, geometry, recompute)
    _check_dense(geometry.op, x)
    if x._has_symbolic_sizes_strides:  # pyright: ignore[reportAttributeAccessIssue]
        _check(geometry, x.shape, x.dtype)
    else:
        _check_once(geometry, x.shape, x.dtype)
    if runs and type(x) in runs:
        return runs[type(x)](x, taps, geometry, recompute)
    return run_op(x, taps, geometry, recompute, is_plain=True)


def _run_watched(x: Tensor, taps: Tensor | None, geometry: Geometry, recompute: bool) -> Tensor:
    check_map(geometry.op, len(geometry.axes), x)
    if torch._C._get_tracing_state() is None:  # to jit.trace sizes are tensors; the op checks them again
        geometry.check(x.shape, 0 if torch.compiler.is_compiling() else x.element_size())
    if torch.onnx.is_in_onnx_export():
        return decomposition.blur_pool(x, taps, geometry)
    if runs and type(x) in runs:
        return runs[type(x)](x, taps, geometry, recompute)
    if _needs_aten():
        if backends.forced not in (None, "reference"):
            raise RuntimeError(
                f"{geometry.op}: backend {backends.forced!r} is forced, and does not serve forward mode or the "
                "gradients of torch.func"
            )
        return reference.blur_pool(x, taps, geometry)
    return run_op(x, taps, geometry, recompute)


def _is_watched() -> bool:
    """Whether someone traces or transforms what is called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def run_op(x: Tensor, taps: Tensor | None, geometry: Geometry, recompute: bool, is_plain: bool = False) -> Tensor:
    """The op that makes what is asked for, and saves for the backward what is allowed.

    Args:
        is_plain: nobody traces or transforms, as is known already.
    """
    differentiable = torch.is_grad_enabled() and (x.requires_grad or (taps is not None and taps.requires_grad))
    has_codes = differentiable and geometry.has_max and x.requires_grad and not recompute
    if not is_plain and torch._C._get_tracing_state() is not None:
        has_codes = False  # jit.trace must record the same op, whether or not a gradient is wanted later
    name = "max_blur_pool_codes" if has_codes else "max_blur_pool" if geometry.has_max else "blur_pool"
    call = ops.call if not is_plain else ops.call_differentiable if differentiable else ops.call_constant
    out = call(name, x, taps, *geometry.op_args)
    return out[0] if has_codes else out


def _needs_aten() -> bool:
    """Whether this is forward mode or a gradient of torch.func, whose rules the ops cannot carry."""
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return any(level.key() != functorch.TransformType.Vmap for level in functorch.get_interpreter_stack() or ())


# Dynamo enters and leaves transforms as it traces, and guards on them: it may ask, but cannot follow.
_needs_aten._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


# ---- arguments ---------------------------------------------------------------------------------------


def check_map(op: str, rank: int, x: Any) -> None:
    """Raises unless x is a map of this rank: a floating tensor with its channels, batched or not."""
    _check_dense(op, x)
    _check_kind(op, rank, x.shape, x.dtype)


def _check_dense(op: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(
            f"{op}: x must be a dense tensor, got layout {'nested' if x.layout == torch.strided else x.layout}"
        )


def _check_kind(op: str, rank: int, shape: torch.Size, dtype: torch.dtype) -> None:
    if dtype not in _FLOATS:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES)
        raise TypeError(f"{op}: x must be one of {allowed}, got {str(dtype).removeprefix('torch.')}")
    if len(shape) not in (rank + 1, rank + 2):
        raise ValueError(
            f"{op}: x must have {rank + 1} dimensions (channels first) or {rank + 2} (a batch before them), "
            f"got shape {tuple(shape)}"
        )


def _check(geometry: Geometry, shape: torch.Size, dtype: torch.dtype) -> None:
    _check_kind(geometry.op, len(geometry.axes), shape, dtype)
    geometry.check(shape, dtype.itemsize)


_check_once = lru_cache(maxsize=1024)(_check)


def check_taps_size(op: str, name: str, taps: Any) -> int:
    if not _is_int(taps):
        raise TypeError(f"{op}: {name} must be an int or a tensor, or a tuple with one an axis, got {shown(taps)}")
    if not 1 <= taps <= LARGEST_BINOMIAL:
        raise ValueError(f"{op}: {name} must be from 1 to {LARGEST_BINOMIAL}, got {taps}")
    return taps


def pack_taps(op: str, rank: int, taps: Any, x: Tensor) -> tuple[Tensor | None, list[int]]:
    """The taps of all axes side by side, (1 or channels, sum of sizes), and their sizes; None if all are binomial.
    Both they and x are checked."""
    check_map(op, rank, x)
    parts = list(taps) if isinstance(taps, (tuple, list)) else [taps] * rank
    if len(parts) != rank:
        raise ValueError(f"{op}: taps must hold one entry for each of {rank} axes, got {len(parts)}")
    names = [f"taps[{i}]" for i in range(rank)] if isinstance(taps, (tuple, list)) else ["taps"] * rank
    for name, part in zip(names, parts, strict=True):
        if isinstance(part, Tensor):
            _check_taps_tensor(op, name, part, x, x.shape[-rank - 1])
        else:
            check_taps_size(op, name, part)
    sizes = [p.shape[-1] if isinstance(p, Tensor) else p for p in parts]
    if not any(isinstance(p, Tensor) for p in parts):
        return None, sizes
    dtype = reference.accumulator_dtype(x.dtype)
    rows: list[Tensor] = []
    for i, part in enumerate(parts):
        earlier = [j for j in range(i) if parts[j] is part and isinstance(part, Tensor)]
        if earlier:  # one cast a tensor: the shares of its gradient are added before they are rounded
            rows.append(rows[earlier[0]])
        elif isinstance(part, Tensor):
            rows.append(part.to(dtype).reshape(-1, part.shape[-1]))
        else:
            rows.append(reference.binomial_row(part, dtype, x))
    channels = next((p.shape[0] for p in parts if isinstance(p, Tensor) and p.ndim == 2), 1)
    packed = torch.cat([r.expand(channels, -1) for r in rows], 1) if rank > 1 else rows[0]
    return packed.contiguous(), sizes


def _check_taps_tensor(op: str, name: str, taps: Tensor, x: Tensor, channels: int) -> None:
    if taps.dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be a floating tensor, got {str(taps.dtype).removeprefix('torch.')}")
    if taps.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {taps.layout}")
    is_traced = torch._C._get_tracing_state() is not None  # to jit.trace sizes are tensors; the op checks them again
    if not is_traced and (
        taps.ndim not in (1, 2) or taps.shape[-1] < 1 or (taps.ndim == 2 and taps.shape[0] != channels)
    ):
        raise ValueError(
            f"{op}: {name} must have shape (k,) or ({channels}, k), a row a channel of x, got {tuple(taps.shape)}"
        )
    if taps.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of x, {x.device}, got {taps.device}")
