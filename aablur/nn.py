"""Modules: the functions with their arguments fixed, and taps that can be learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import has_torch_function_unary

from . import functional
from .geometry import Geometry, binomial, by_name, refuse, shown, taps_by_position

_LARGEST_INT = 32  # above it a number was meant for channels, which timm's DenseNet passes first


class _Symmetric(nn.Module):
    """The nearest filter that reads the same from both ends."""

    def forward(self, taps: Tensor) -> Tensor:
        return (taps + taps.flip(-1)) / 2

    def right_inverse(self, taps: Tensor) -> Tensor:
        return taps


class _SumToOne(nn.Module):
    """The nearest filter whose taps sum to one: what is missing is spread over them evenly."""

    def forward(self, taps: Tensor) -> Tensor:
        return taps + (1 - taps.sum(-1, keepdim=True)) / taps.shape[-1]

    def right_inverse(self, taps: Tensor) -> Tensor:
        return taps


def _numbers(part: Any) -> Any:
    """The values of an axis' taps, as numbers; of an int, and where there are none to read, the binomial filter's."""
    if isinstance(part, Tensor) and type(part) in (Tensor, nn.Parameter) and not part.is_meta:
        return part.detach().double().tolist()
    return binomial(part.shape[-1] if isinstance(part, Tensor) else part)


_CONSTRAINTS: dict[str, type[nn.Module]] = {"sum_to_one": _SumToOne, "symmetric": _Symmetric}


def _constraints(op: str, names: Any, learnable: bool) -> list[type[nn.Module]]:
    if isinstance(names, str) or not isinstance(names, Sequence) or any(n not in _CONSTRAINTS for n in names):
        raise ValueError(f"{op}: constraints must be a sequence of {', '.join(_CONSTRAINTS)}, got {names!r}")
    if names and not learnable:
        raise ValueError(f"{op}: constraints {tuple(names)} are for learnable taps, got learnable=False")
    return [rule for name, rule in _CONSTRAINTS.items() if name in names]


class _BlurPool(nn.Module):
    """What the six modules share: the filter, held as ints, buffers or parameters."""

    rank: int
    if TYPE_CHECKING:  # there are as many as axes, or none
        taps_0: Tensor
        taps_1: Tensor
        taps_2: Tensor

    def __init__(
        self, taps: Any, stride: Any, padding: Any, padding_mode: str, learnable: bool, channels: int | None,
        window: tuple[Any, Any, Any] | None = None, recompute: bool = False,
        device: Any = None, dtype: torch.dtype | None = None, constraints: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        op = type(self).__name__
        if not isinstance(learnable, bool):
            raise TypeError(f"{op}: learnable must be a bool, got {shown(learnable)}")
        if not isinstance(recompute, bool):
            raise TypeError(f"{op}: recompute must be a bool, got {shown(recompute)}")
        if channels is not None and (not isinstance(channels, int) or isinstance(channels, bool) or channels < 1):
            raise ValueError(f"{op}: channels must be a positive int or None, got {shown(channels)}")
        rules = _constraints(op, constraints, learnable)
        self.stride, self.padding, self.padding_mode = stride, padding, padding_mode
        self.learnable, self.channels, self.recompute = learnable, channels, recompute
        self._window = window
        parts = list(taps) if isinstance(taps, (tuple, list)) else [taps] * self.rank
        if len(parts) != self.rank:
            raise ValueError(f"{op}: taps must hold one entry for each of {self.rank} axes, got {len(parts)}")
        sizes = [self._size_of(op, i, part) for i, part in enumerate(parts)]
        self._set_geometry(Geometry(op, sizes, stride, padding, padding_mode, *(window or ())))
        self._constant = not learnable and not any(isinstance(p, Tensor) for p in parts)
        self.taps: Any = tuple(sizes)
        self._initial: tuple[Any, ...] = () if self._constant else tuple(map(_numbers, parts))
        if not self._constant:
            for i, part in enumerate(parts):
                self._hold(i, part, device, dtype)
                for rule in rules:
                    parametrize.register_parametrization(self, f"taps_{i}", rule())

    def _size_of(self, op: str, i: int, part: Any) -> int:
        if not isinstance(part, Tensor):
            if functional.check_taps_size(op, f"taps[{i}]", part) > _LARGEST_INT:
                raise ValueError(
                    f"{op}: taps[{i}] as an int must be at most {_LARGEST_INT}, got {part}. Channels are named "
                    "(channels=...), the aa_layer for a caller who passes them first is aablur.compat.timm.BlurPool2d, "
                    "and a longer filter is given as a tensor"
                )
            return part
        if not part.is_floating_point():
            raise TypeError(f"{op}: taps[{i}] must be a floating tensor, got {part.dtype}")
        if part.layout != torch.strided:
            raise TypeError(f"{op}: taps[{i}] must be a dense tensor, got layout {part.layout}")
        if part.ndim not in (1, 2) or part.shape[-1] < 1:
            raise ValueError(f"{op}: taps[{i}] must have shape (k,) or (channels, k), got {tuple(part.shape)}")
        return part.shape[-1]

    def _hold(self, i: int, part: Any, device: Any, dtype: torch.dtype | None) -> None:
        values = part.detach() if isinstance(part, Tensor) else torch.tensor(binomial(part), dtype=torch.float64)
        values = values.to(device=device, dtype=dtype or (part.dtype if isinstance(part, Tensor) else None))
        if dtype is None and not isinstance(part, Tensor):
            values = values.to(torch.get_default_dtype())
        if self.channels is not None and values.ndim == 1:
            values = values.expand(self.channels, -1)
        values = values.clone()
        name = f"taps_{i}"
        if self.learnable:
            self.register_parameter(name, nn.Parameter(values))
        else:
            self.register_buffer(name, values)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives the taps the values that they were made with: what torch calls after ``to_empty``."""
        for i, numbers in enumerate(self._initial):
            held = self._held(i)
            values = torch.tensor(numbers, dtype=torch.float64, device=None if held.is_meta else held.device)
            values = values.expand(held.shape).to(held.dtype)
            if hasattr(held, "device_mesh"):  # a DTensor, as FSDP2 makes them
                from torch.distributed.tensor import distribute_tensor

                values = distribute_tensor(values, held.device_mesh, held.placements)
            held.copy_(values)

    def _held(self, i: int) -> Any:
        """The parameter or buffer that holds the taps of an axis."""
        rules = getattr(self, "parametrizations", {})
        return rules[f"taps_{i}"].original if f"taps_{i}" in rules else getattr(self, f"taps_{i}")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """As torch's; taps that no checkpoint holds, and buffers that leave the meta device, are made again."""
        was_meta = [b.is_meta for b in self._buffers.values() if b is not None]
        super()._apply(fn, recurse)
        if self._buffers and (self._non_persistent_buffers_set or any(was_meta)):
            self.reset_parameters()
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        """As torch's; ``assign=True`` takes a model off the meta device without `_apply`."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        lost = [name for name in self._non_persistent_buffers_set if getattr(self, name).is_meta]
        if lost and local_metadata.get("assign_to_params_buffers"):
            for name in lost:
                self._buffers[name] = torch.empty_like(getattr(self, name), device=torch.get_default_device())
            self.reset_parameters()

    def put_max_before(self, window: Any, window_padding: Any, window_dilation: Any) -> None:
        """From now on the max over a window comes first, in the same op, as `aablur.max_blur_pool2d` says."""
        self._window = (window, window_padding, window_dilation)
        arguments = (self.taps, self.stride, self.padding, self.padding_mode)
        self._set_geometry(Geometry(self._geometry.op, *arguments, *self._window))

    def _set_geometry(self, geometry: Geometry) -> None:
        self._geometry, self._op_args, self._has_max = geometry, geometry.op_args, geometry.has_max

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            axes, padding_mode = self._op_args
            if self._has_max:
                return torch.ops.aablur.max_blur_pool(x, self._scripted_taps(x), axes, padding_mode)
            else:
                return torch.ops.aablur.blur_pool(x, self._scripted_taps(x), axes, padding_mode)
        else:  # torch.jit.script passes over it
            return self._run(x)

    def __prepare_scriptable__(self) -> _BlurPool:
        if parametrize.is_parametrized(self):
            raise TypeError(
                f"{type(self).__name__}: torch.jit.script knows no constraints of taps: use torch.jit.trace"
            )
        return self

    def _scripted_taps(self, x: Tensor) -> Tensor | None:
        """`functional.pack_taps` in the words of torch.jit.script."""
        if not hasattr(self, "taps_0"):
            return None
        else:
            parts: list[Tensor] = [self.taps_0]
            if hasattr(self, "taps_1"):
                parts.append(self.taps_1)
            if hasattr(self, "taps_2"):
                parts.append(self.taps_2)
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            rows = [part.to(dtype).reshape(-1, part.size(-1)) for part in parts]
            channels = max([row.size(0) for row in rows])
            return torch.cat([row.expand(channels, -1) for row in rows], 1)

    def _run(self, x: Tensor) -> Tensor:
        geometry = self._geometry
        if has_torch_function_unary(x):  # a proxy of torch.fx, a subclass, a mode
            if isinstance(x, Tensor):
                functional.check_map(geometry.op, self.rank, x)
            arguments = (self.filters(), self.stride, self.padding, self.padding_mode, self._window, self.recompute)
            name = f"{'blur' if self._window is None else 'max_blur'}_pool{self.rank}d"
            return functional.blur_pool(name, self.rank, x, *arguments)
        if self._constant:
            return functional.run(x, None, geometry, self.recompute)
        taps = functional.pack_taps(geometry.op, self.rank, self.filters(), x)[0]
        return functional.run(x, taps, geometry, self.recompute)

    def filters(self) -> tuple[Any, ...]:
        """The taps of each axis: ints of binomial filters, or tensors (k,) or (channels, k)."""
        return self.taps if self._constant else tuple(getattr(self, f"taps_{i}") for i in range(self.rank))

    def extra_repr(self) -> str:
        shown = [] if self._window is None else [f"window={self._window[0]}"]
        shown += [f"taps={self.taps[0] if len(set(self.taps)) == 1 else self.taps}", f"stride={self.stride}"]
        shown += [f"padding={self.padding!r}", f"padding_mode={self.padding_mode!r}"]
        if self._window is not None and self._window[1:] != (0, 1):
            shown += [f"window_padding={self._window[1]}", f"window_dilation={self._window[2]}"]
        shown += [f"{name}=True" for name in ("learnable", "recompute") if getattr(self, name)]
        if self.channels is not None:
            shown.append(f"channels={self.channels}")
        return ", ".join(shown)


class _Blur(_BlurPool):
    @by_name
    def __init__(
        self, taps: Any = 3, *positions: Any, stride: Any = 2, padding: Any = "same", padding_mode: str = "reflect",
        learnable: bool = False, channels: int | None = None, constraints: Sequence[str] = (),
        device: Any = None, dtype: torch.dtype | None = None, **unknown: Any,
    ) -> None:  # fmt: skip
        if positions or unknown:
            refuse(type(self).__name__, False, positions, unknown)
        super().__init__(
            taps, stride, padding, padding_mode, learnable, channels, None, False, device, dtype, constraints
        )


class _MaxBlur(_BlurPool):
    @by_name
    def __init__(
        self, window: Any = 2, *positions: Any, taps: Any = 3, stride: Any = 2, padding: Any = "same",
        padding_mode: str = "reflect", learnable: bool = False, window_padding: Any = 0, window_dilation: Any = 1,
        recompute: bool = False, channels: int | None = None, constraints: Sequence[str] = (), device: Any = None,
        dtype: torch.dtype | None = None, **unknown: Any,
    ) -> None:  # fmt: skip
        if positions or unknown:
            taps = taps_by_position(type(self).__name__, positions, unknown, taps)
        prologue = (window, window_padding, window_dilation)
        super().__init__(
            taps, stride, padding, padding_mode, learnable, channels, prologue, recompute, device, dtype, constraints
        )


class BlurPool1d(_Blur):
    """`BlurPool2d` along one axis, as `aablur.blur_pool1d`."""

    rank = 1


class BlurPool2d(_Blur):
    """Anti-aliased downsampling as a module: `aablur.blur_pool2d` with its arguments fixed.

    The class itself is an ``aa_layer`` for timm: ``timm.create_model("resnet50", aa_layer=aablur.nn.BlurPool2d)``.

    Arguments after ``taps`` are given by name.

    Args:
        taps, stride, padding, padding_mode: as for `aablur.blur_pool2d`. A tensor given as taps becomes a buffer.
            An int is at most 32: a larger one is taken for channels in the wrong place, and refused.
        learnable: the taps become parameters, one filter an axis (``taps_0`` the height's, ``taps_1`` the width's),
            which start from ``taps``. Default False.
        channels: with learnable or tensor taps, one filter a channel: (channels, k). Default None: all channels
            share one.
        constraints: what learnable taps keep to, as torch parametrizations: "sum_to_one", so that a constant map
            stays as it is, "symmetric", so that nothing moves, or both. Default (): free taps.
        device, dtype: of the taps that are held as tensors. Binomial taps that are not learnable are held as
            numbers: such a module has no state, and serves any device and dtype.

    Shape: (..., channels, height, width) -> (..., channels, out height, out width), as `aablur.blur_pool2d`.

    Raises:
        TypeError, ValueError: as `aablur.blur_pool2d`, when the module is made as far as that can be told.
    """

    rank = 2


class BlurPool3d(_Blur):
    """`BlurPool2d` along three axes, as `aablur.blur_pool3d`."""

    rank = 3


class MaxBlurPool1d(_MaxBlur):
    """`MaxBlurPool2d` along one axis, as `aablur.max_blur_pool1d`."""

    rank = 1


class MaxBlurPool2d(_MaxBlur):
    """Anti-aliased max pooling as a module: `aablur.max_blur_pool2d` with its arguments fixed.

    In place of ``nn.MaxPool2d(k, stride, padding)``: ``MaxBlurPool2d(k, stride=stride, window_padding=padding)``.
    Arguments after ``window`` are given by name (taps of 3 or more may follow it).

    Args:
        window, window_padding, window_dilation, recompute: as for `aablur.max_blur_pool2d`.
        taps, stride, padding, padding_mode, learnable, channels, constraints, device, dtype: as for `BlurPool2d`.

    Shape: (..., channels, height, width) -> (..., channels, out height, out width), as `aablur.max_blur_pool2d`.

    Raises:
        TypeError, ValueError: as `aablur.max_blur_pool2d`, when the module is made as far as that can be told.
    """

    rank = 2


class MaxBlurPool3d(_MaxBlur):
    """`MaxBlurPool2d` along three axes, as `aablur.max_blur_pool3d`."""

    rank = 3
