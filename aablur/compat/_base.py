"""What the drop-ins share: a peer's filter buffer read as the taps of our ops, and run exactly where it has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from .. import functional, reference
from ..geometry import Geometry, binomial


def binomial_filter(sizes: Sequence[int], dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """The outer product of the binomial taps of each axis, of shape `sizes`."""
    product = torch.ones((), dtype=torch.float64, device=device)
    for size in sizes:
        product = product.unsqueeze(-1) * torch.tensor(binomial(size), dtype=torch.float64, device=device)
    return product.to(dtype or torch.get_default_dtype())


def factor(filt: Tensor, sizes: Sequence[int]) -> tuple[bool, Tensor | None]:
    """Reads a filter as an outer product of taps, which costs a copy to the host.

    1. A filter that is the binomial, to the rounding of its dtype, has no taps of its own: None.
    2. Else the row and the column through each channel's largest entry are its taps.
    3. It is separable if their product is the filter again: every entry to 4 units of rounding in float32 and
       float64, and in halves to the one rounding that turns the product into the filter.

    Args:
        filt: any shape that holds filters of shape `sizes` (a line or a plane): one, or one a channel.

    Returns:
        whether it is separable; and None, or the taps of all axes side by side, (1 or channels, sum of sizes).
    """
    rows = filt.detach().to("cpu", torch.float64).reshape(-1, *sizes)
    info = torch.finfo(filt.dtype)
    slack = info.eps * (4 if filt.dtype in (torch.float32, torch.float64) else 0.5)

    def is_filter(product: Tensor) -> bool:
        return bool(((product - rows).abs() <= slack * rows.abs() + info.tiny * info.eps).all())

    if is_filter(binomial_filter(sizes, torch.float64, "cpu")):
        return True, None
    if len(sizes) == 1:
        taps = rows
    else:
        height, width = sizes
        largest = rows.flatten(1).abs().argmax(1)
        channel = torch.arange(len(rows), device="cpu")
        column, row = rows[channel, :, largest % width], rows[channel, largest // width, :]
        peak = rows.flatten(1)[channel, largest].unsqueeze(1)
        taps = torch.cat([column, torch.where(peak == 0, 0, row / peak)], 1)
        if not is_filter(taps[:, :height, None] * taps[:, None, height:]):
            return False, None
    if bool((taps == taps[:1]).all()):
        taps = taps[:1]
    return True, taps.to(filt.device, reference.accumulator_dtype(filt.dtype)).contiguous()


@dataclass(frozen=True)
class Spec:
    """A blur pool in the words of the public functions, for proxies of torch.fx, and in numbers, for tensors."""

    words: tuple[Any, ...]  # op, sizes of the filter, stride, padding, padding_mode, and the window's three or None
    geometry: Geometry

    @classmethod
    def of(
        cls, op: str, sizes: Sequence[int], stride: Any, padding: Any, padding_mode: str, window: Any = None
    ) -> Spec:
        words = (op, tuple(sizes), stride, padding, padding_mode)
        return cls((*words, window), Geometry(*words, *(window or ())))

    def for_script(self) -> tuple[list[int], list[int], str, list[int]]:
        """The arguments of `scripted`."""
        axes, mode = self.geometry.axes, self.geometry.padding_mode
        pads = [p for a in reversed(axes) for p in (a.before, a.after)]
        window = [
            n for name in ("window", "window_padding", "window_dilation") for n in (getattr(a, name) for a in axes)
        ]
        has_max = self.words[-1] is not None
        return [a.stride for a in axes], pads, "constant" if mode == "zeros" else mode, window if has_max else [0]


def plain(
    x: Tensor, filt: Tensor, op: str, sizes: tuple[int, ...], stride: Any, padding: Any, padding_mode: str, window: Any
) -> Tensor:
    """The max over the window, padding and one depthwise convolution with `filt` as it is, in plain torch.

    For filters that are no outer product of taps, that need a gradient, or whose values cannot be read.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(plain, (x,), x, filt, op, sizes, stride, padding, padding_mode, window)
    geometry = Geometry(op, sizes, stride, padding, padding_mode, *(window or ()))
    geometry.check(x.shape, 0)
    with torch.autocast(x.device.type, enabled=False):
        rank = len(sizes)
        y = (x if x.ndim == rank + 2 else x.unsqueeze(0)).to(reference.accumulator_dtype(x.dtype))
        channels = y.shape[1]
        weight = filt.to(y.device, y.dtype).reshape(-1, 1, *sizes).expand(channels, 1, *sizes)
        if y.numel() == 0:  # torch's convolutions take no empty channels
            out = [a.out_size(n) for a, n in zip(geometry.axes, y.shape[2:], strict=True)]
            y = y.new_zeros(*y.shape[:2], *out) * (y.sum() + weight.sum())
        else:
            if geometry.window_volume > 1:
                y = reference.max_pool(y, geometry)
            for i, axis in enumerate(geometry.axes):
                y = reference._pad(y, 2 + i, axis, geometry.padding_mode)
            conv = (F.conv1d, F.conv2d)[rank - 1]
            y = conv(y, weight, stride=[a.stride for a in geometry.axes], groups=channels)
        y = y.to(x.dtype)
        y = y if x.ndim == rank + 2 else y.squeeze(0)
        return reference.in_layout(y, rank, reference.prefers_channels_last(x, rank))


def scripted(
    x: Tensor, filt: Tensor, stride: list[int], pads: list[int], padding_mode: str, window: list[int]
) -> Tensor:
    """`plain` in the words of torch.jit.script.

    Args:
        pads, padding_mode: as F.pad takes them.
        window: size, padding and dilation of the max along each axis; or [0].
    """
    rank, channels = len(stride), x.size(-1 - len(stride))
    if rank == 1:
        if len(window) > 1:
            x = F.max_pool1d(x, window[0], 1, window[1], window[2])
        weight = filt.to(x.dtype).reshape(-1, 1, filt.size(-1)).expand(channels, 1, -1)
        return F.conv1d(F.pad(x, pads, padding_mode), weight, None, stride, groups=channels)
    if len(window) > 1:
        x = F.max_pool2d(x, window[:2], 1, window[2:4], window[4:])
    weight = filt.to(x.dtype).reshape(-1, 1, filt.size(-2), filt.size(-1)).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(x, pads, padding_mode), weight, None, stride, groups=channels)


def run(x: Tensor, filt: Tensor, spec: Spec, read: tuple[bool, Tensor | None]) -> Tensor:
    """The fused op with what `factor` read, or `plain` where it read nothing."""
    op, sizes, stride, padding, padding_mode, window = spec.words
    rank, handed_over = len(sizes), has_torch_function_unary(x)
    if isinstance(x, Tensor) or not handed_over:
        functional.check_map(op, rank, x)
        is_traced = torch._C._get_tracing_state() is not None  # sizes are tensors then
        if not is_traced and filt.ndim > rank and filt.shape[0] not in (1, x.shape[-rank - 1]):
            raise ValueError(f"{op}: x must have {filt.shape[0]} channels, one a filter, got shape {tuple(x.shape)}")
    separable, taps = read
    if not separable or filt.requires_grad:
        return plain(x, filt, *spec.words)
    if handed_over:
        name = f"{'' if window is None else 'max_'}blur_pool{rank}d"
        return functional.blur_pool(name, rank, x, _per_axis(taps, sizes), stride, padding, padding_mode, window)
    if taps is not None:
        taps = taps.to(x.device, reference.accumulator_dtype(x.dtype))
    return functional.run(x, taps, spec.geometry)


def _per_axis(taps: Tensor | None, sizes: tuple[int, ...]) -> Any:
    """What the public functions take: ints for binomials, or a tensor an axis."""
    if taps is None:
        return sizes
    return tuple(part[0] if len(part) == 1 else part for part in taps.split(sizes, 1))


def _is_readable(filt: Tensor) -> bool:
    """Whether its values can be looked at: not in a graph, a transform of torch.func or a fake."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(filt)  # pyright: ignore
    return type(filt) in (Tensor, nn.Parameter) and not wrapped


def blur(x: Tensor, filt: Tensor, spec: Spec) -> Tensor:
    """`run` for a filter seen for the first time; in a graph, where nothing can be read, it is run plainly."""
    readable = not torch.compiler.is_compiling() and filt.device.type != "meta" and _is_readable(filt)
    return run(x, filt, spec, factor(filt, spec.words[1]) if readable else (False, None))


class Blur(nn.Module):
    """A peer's blur pool: its attributes, its buffer, its numerics, and our op.

    A subclass sets the attributes and the buffer that its peer has, describes the geometry that they mean in
    `_prepare`, and has the forward, which names its argument as the peer does. So one of ours can stand in for one of
    theirs on the same state (`adopt`).

    The buffer is what counts: where it holds other taps than the binomial, they are used. It is read when the module
    is made, loaded or moved, and again when the buffer is assigned or has been edited in place. In a process group,
    where every step broadcasts the buffers, and inside torch.compile, edits in place are not looked for: call
    `read_filter` after one. A filter that is not separable is run exactly, by a plain convolution.
    """

    rank = 2
    filter_name = "filt"
    __jit_unused_properties__: ClassVar[list[str]] = ["is_max", "is_separable"]

    _read = (True, None)
    _values = ()
    if TYPE_CHECKING:  # torch.jit.script reads annotations of attributes, and does not know these
        rank: ClassVar[int]
        filter_name: ClassVar[str]
        _read: tuple[bool, Tensor | None]
        _spec: Spec
        _seen: tuple[Tensor, int]  # the buffer that was read, and its version then; in a tuple it is no buffer itself
        _values: tuple[Tensor, ...]  # what was read, on the host

    def _prepare(self) -> None:
        """Calls `_describe` with the geometry that the attributes mean."""
        raise NotImplementedError

    def _describe(
        self, sizes: Sequence[int], stride: Any, padding: Any, padding_mode: str, window: tuple[Any, ...] | None = None
    ) -> None:
        """Fixes the geometry, in the words of `aablur.max_blur_pool2d`, and reads the buffer."""
        self._spec = Spec.of(type(self).__name__, sizes, stride, padding, padding_mode, window)
        self._for_script = self._spec.for_script()
        self.read_filter()

    @classmethod
    def adopt(cls, theirs: nn.Module) -> Any:
        """A module of this class on the very state of its peer: buffers, children, hooks and attributes are shared.

        Raises:
            ValueError, TypeError: the attributes mean a geometry that the ops do not serve.
        """
        ours = cls.__new__(cls)
        ours.__dict__.update(vars(theirs))
        ours._prepare()
        return ours

    def put_max_before(self, window: Any, window_padding: Any, window_dilation: Any) -> None:
        """From now on the max over a window comes first, in the same op."""
        self._describe(*self._spec.words[1:-1], window=(window, window_padding, window_dilation))

    @property
    def is_max(self) -> bool:
        """Whether the op begins with a max."""
        return self._spec.words[-1] is not None

    @property
    def is_separable(self) -> bool:
        """Whether the buffer is an outer product of taps, which the fused op runs."""
        self._read_if_stale()
        return self._read[0]

    def read_filter(self) -> None:
        """Reads the filter's buffer anew. Needed only after an edit in place that the class cannot see.

        Raises:
            ValueError: it has another size than the module was made for.
        """
        filt, sizes = getattr(self, self.filter_name), self._spec.words[1]
        if tuple(filt.shape[-self.rank :]) != sizes:
            raise ValueError(
                f"{type(self).__name__}: {self.filter_name} must hold filters of shape {sizes}, "
                f"got shape {tuple(filt.shape)}"
            )
        if filt.device.type != "meta":  # there what was read before goes on to hold
            self._read = factor(filt, sizes) if _is_readable(filt) else (False, None)
            self._values = (filt.detach().cpu().clone(),) if _is_readable(filt) else ()
        self._seen = (filt, _version(filt))

    def _read_if_stale(self) -> None:
        filt, (seen, version) = getattr(self, self.filter_name), self._seen
        if filt is seen and _version(filt) == version:
            return
        if filt is not seen or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            self.read_filter()

    def blur(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            stride, pads, padding_mode, window = self._for_script
            return scripted(x, self._scripted_filter(), stride, pads, padding_mode, window)
        else:  # torch.jit.script passes over it
            return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self._read_if_stale()
        return run(x, getattr(self, self.filter_name), self._spec, self._read)

    def _scripted_filter(self) -> Tensor:
        """The buffer, the first of all; torch.jit.script knows no attribute by a variable's name."""
        return [buffer for _, buffer in self.named_buffers()][0]  # noqa: RUF015

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == self.filter_name and "_spec" in vars(self):
            self.read_filter()

    def reset_parameters(self) -> None:
        """Fills the buffer with the binomial filter again."""
        self._fill(binomial_filter(self._spec.words[1]))

    @torch.no_grad()
    def _fill(self, filt: Tensor) -> None:
        getattr(self, self.filter_name).copy_(filt)
        self.read_filter()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        was_meta = getattr(self, self.filter_name).is_meta
        super()._apply(fn, recurse)
        if was_meta and not getattr(self, self.filter_name).is_meta:  # no checkpoint need hold it
            self._fill(self._values[0] if self._values else binomial_filter(self._spec.words[1]))
        self.read_filter()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.read_filter()

    def extra_repr(self) -> str:
        _, sizes, stride, padding, padding_mode, window = self._spec.words
        shown = f"taps={sizes[0] if len(set(sizes)) == 1 else sizes}, stride={stride}, padding={padding!r}"
        shown += f", padding_mode={padding_mode!r}"
        if window is not None:
            shown += f", window={window[0]}, window_padding={window[1]}, window_dilation={window[2]}"
        return shown


def _version(filt: Tensor) -> int:
    return 0 if filt.is_inference() else filt._version
