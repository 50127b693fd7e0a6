"""One spatial axis of a blur pool, and the reading of arguments into axes. Works on ints and SymInts alike.

Nothing here imports torch: tensors are told by the caller, who has looked at them.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
AXIS_NAMES = ("depth", "height", "width")
LARGEST_BINOMIAL = 1024  # beyond it the outermost taps underflow float64
LARGEST_WINDOW_VOLUME = 65535  # an argmax code has 16 bits at most, one of them taken for "none"
LARGEST = 2**31 - 1
IDENTITY: Any = object()  # the window of no max at all
_BLUR_NUMBERS, _MAX_BLUR_NUMBERS = 4, 7  # of an axis, as the ops take them: the first fields of Axis, or all


class _Shown(reprlib.Repr):
    maxtuple = maxlist = maxdict = 12
    maxstring = maxother = 200

    def repr1(self, x: Any, level: int) -> str:
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return f"{type(x).__name__} of shape {tuple(x.shape)}"
        return super().repr1(x, level)


shown = _Shown().repr
"""A value as messages show it: tensors and arrays by their shape, long texts and containers cut short."""


@dataclass(frozen=True)
class Axis:
    """Everything about one spatial axis but its size.

    A size goes through three steps: the max over ``window`` at stride 1 (``pooled_size``), the padding by
    ``before`` and ``after`` (negative crops), and the correlation with ``taps`` taps at ``stride`` (``out_size``).
    """

    taps: int
    stride: int
    before: int
    after: int
    window: int = 1
    window_padding: int = 0
    window_dilation: int = 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """All of it, as the ops take it."""
        pads, window = (self.before, self.after), (self.window, self.window_padding, self.window_dilation)
        return self.taps, self.stride, *pads, *window

    def pooled_size(self, size: int) -> int:
        return size + 2 * self.window_padding - self.window_dilation * (self.window - 1)

    def out_size(self, size: int) -> int:
        return (self.pooled_size(size) + self.before + self.after - self.taps) // self.stride + 1

    def misses(self, size: int) -> bool:
        """Whether the window lies wholly outside of the map somewhere: a dilated one can step over a small map."""
        if self.window_padding == 0 or size >= self.window_dilation:
            return False
        offsets = [a * self.window_dilation - self.window_padding for a in range(self.window)]
        return not all(any(0 <= i + a < size for a in offsets) for i in range(self.pooled_size(size)))


def binomial(taps: int) -> list[float]:
    """The binomial filter of ``taps`` taps over its sum, 2**(taps - 1)."""
    return [math.comb(taps - 1, t) / 2 ** (taps - 1) for t in range(taps)]


def axis_names(rank: int) -> tuple[str, ...]:
    return AXIS_NAMES[3 - rank :]


def count_axes(numbers: Sequence[int]) -> int:
    """How many axes an op's argument ``axes`` describes: one to three, so that its length alone says of which op."""
    return len(numbers) // (_BLUR_NUMBERS if len(numbers) % _MAX_BLUR_NUMBERS else _MAX_BLUR_NUMBERS)


def code_bits(window_volume: int) -> int:
    """Bits of one packed argmax code: the fewest of 2, 4, 8 or 16 that count the window's positions."""
    return next(bits for bits in (2, 4, 8, 16) if window_volume <= 2**bits)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(op: str, name: str, value: Any, low: int) -> int:
    if not _is_int(value):
        raise TypeError(f"{op}: {name} must be an int, got {shown(value)} of type {type(value).__name__}")
    if not low <= value <= LARGEST:
        raise ValueError(f"{op}: {name} must be from {low} to {LARGEST}, got {value}")
    return value


def per_axis(op: str, name: str, value: Any, rank: int, low: int) -> tuple[int, ...]:
    """An int, or one an axis, as a tuple of ``rank`` ints of at least ``low``."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != rank:
            raise ValueError(
                f"{op}: {name} must be an int or {rank} of them ({', '.join(axis_names(rank))}), got {shown(value)}"
            )
        return tuple(_whole(op, f"{name}[{i}]", v, low) for i, v in enumerate(value))
    return (_whole(op, name, value, low),) * rank


def _padding(op: str, value: Any, taps_size: Sequence[int]) -> tuple[tuple[int, int], ...]:
    rank = len(taps_size)
    if isinstance(value, str):
        if value != "same":
            raise ValueError(f"{op}: padding must be 'same', ints or (before, after) pairs, got {shown(value)}")
        return tuple(((k - 1) // 2, k // 2) for k in taps_size)
    if isinstance(value, Sequence) and any(isinstance(v, Sequence) for v in value):
        if len(value) != rank or any(not isinstance(v, Sequence) or isinstance(v, str) or len(v) != 2 for v in value):
            raise ValueError(
                f"{op}: padding must be 'same', an int, one int an axis or one (before, after) pair for each of "
                f"{', '.join(axis_names(rank))}, got {shown(value)}"
            )
        return tuple(
            (_whole(op, f"padding[{i}][0]", before, -LARGEST), _whole(op, f"padding[{i}][1]", after, -LARGEST))
            for i, (before, after) in enumerate(value)
        )
    return tuple((p, p) for p in per_axis(op, "padding", value, rank, -LARGEST))


# What others call an argument: its name in a max-blur pool, and in a blur pool, or "" where there is none.
_OTHER_NAMES = {
    **dict.fromkeys(("kernel_size", "kernel", "ksize"), ("window", "taps")),
    **dict.fromkeys(("max_pool_size", "pool_size"), ("window", "")),
    **dict.fromkeys(("filt_size", "filter_size", "filt", "blur_kernel_size"), ("taps", "taps")),
    **dict.fromkeys(("dilation", "dilations"), ("window_dilation", "")),
    **dict.fromkeys(("pad", "pads"), ("window_padding", "padding")),
    **dict.fromkeys(("pad_type", "pad_mode", "mode"), ("padding_mode", "padding_mode")),
}
_POOLS_ORDER = ("stride", "window_padding", "window_dilation")  # in which the max pools of nn take them


def by_name(f: F) -> F:
    """Shows the signature of a function without its ``*positions`` and ``**unknown``, which are there to be refused."""
    whole = inspect.signature(f)
    kept = [p for p in whole.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    f.__signature__ = whole.replace(parameters=kept)  # pyright: ignore[reportFunctionMemberAccess]
    return f


def refuse(op: str, has_max: bool, positions: Sequence[Any], unknown: Mapping[str, Any]) -> NoReturn:
    """Raises the TypeError of arguments that are given by position, or by a name that is not ours."""
    if unknown:
        name = next(iter(unknown))
        meant = _OTHER_NAMES.get(name, ("", ""))[0 if has_max else 1]
        raise TypeError(f"{op}: there is no argument {name}{f', it is called {meant}' if meant else ''}")
    got = ", ".join(map(shown, positions))
    if has_max:
        named = ", ".join(f"{name}={shown(p)}" for name, p in zip(_POOLS_ORDER, positions, strict=False))
        hint = f"taps=, stride=, window_padding= ...; what nn.MaxPool takes in this order is {named}"
    else:
        hint = "stride=, padding=, padding_mode= ..., and channels= of a module"
    first = "window" if has_max else "taps"
    raise TypeError(f"{op}: arguments after {first} are given by name, got {got} by position. They are {hint}")


def taps_by_position(op: str, positions: Sequence[Any], unknown: Mapping[str, Any], taps: Any) -> Any:
    """The taps of a max-blur pool that are given after its window: where they can be nothing else, as 1 and 2 can."""
    default = _is_int(taps) and taps == 3
    if unknown or len(positions) != 1 or not default or (_is_int(positions[0]) and positions[0] < 3):
        refuse(op, True, positions, unknown)
    return positions[0]


class Geometry:
    """The axes of one op, checked; ``op_args`` are the arguments of the op that say them.

    Args:
        op: the name of the public function, for messages.
        taps_size: length of the filter along each axis.
        stride, padding, padding_mode, window, window_padding, window_dilation: as the public functions take
            them; ``window`` IDENTITY is the identity prologue.
    """

    __slots__ = ("axes", "has_max", "op", "op_args", "padding_mode", "window_volume")

    def __init__(
        self, op: str, taps_size: Sequence[int], stride: Any, padding: Any, padding_mode: Any,
        window: Any = IDENTITY, window_padding: Any = 0, window_dilation: Any = 1,
    ) -> None:  # fmt: skip
        rank = len(taps_size)
        if not isinstance(padding_mode, str) or padding_mode not in PADDING_MODES:
            raise ValueError(f"{op}: padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        strides = per_axis(op, "stride", stride, rank, 1)
        pads = _padding(op, padding, taps_size)
        self.op = op
        self.padding_mode = padding_mode
        self.has_max = window is not IDENTITY
        windows, wpads, dilations = (1,) * rank, (0,) * rank, (1,) * rank
        self.window_volume = 1
        if self.has_max:
            windows = per_axis(op, "window", window, rank, 1)
            wpads = per_axis(op, "window_padding", window_padding, rank, 0)
            dilations = per_axis(op, "window_dilation", window_dilation, rank, 1)
            for w, p in zip(windows, wpads, strict=True):
                if 2 * p > w:
                    raise ValueError(f"{op}: window_padding must be at most half of window ({w}), got {p}")
            self.window_volume = math.prod(windows)
            if self.window_volume > LARGEST_WINDOW_VOLUME:
                raise ValueError(f"{op}: window must cover at most {LARGEST_WINDOW_VOLUME} positions, got {windows}")
        self.axes = tuple(
            Axis(k, s, before, after, w, p, d)
            for k, s, (before, after), w, p, d in zip(taps_size, strides, pads, windows, wpads, dilations, strict=True)
        )
        every = ([n for a in self.axes for n in a.numbers], padding_mode)
        self.op_args: tuple[list[int], str] = every if self.has_max else self.blur_args

    @classmethod
    def of_op(cls, op: str, axes: Sequence[int], padding_mode: str) -> Geometry:
        """The one that has these ``op_args``; ``op`` is the op's own name."""
        numbers = _MAX_BLUR_NUMBERS if op.startswith("max") else _BLUR_NUMBERS
        rank, rest = divmod(len(axes), numbers)
        if rest or not 1 <= rank <= 3:
            raise ValueError(f"{op}: axes must have {numbers} numbers for each of 1 to 3 axes, got {len(axes)}")
        taps_size, stride, before, after, *window = (axes[n::numbers] for n in range(numbers))
        return cls(op, taps_size, stride, tuple(zip(before, after, strict=True)), padding_mode, *window)

    @property
    def blur_args(self) -> tuple[list[int], str]:
        """The arguments of an op that only blurs."""
        return [n for a in self.axes for n in a.numbers[:_BLUR_NUMBERS]], self.padding_mode

    @property
    def max_args(self) -> tuple[list[int], str]:
        """The arguments of a max-blur that makes the pooled map: taps of 1 at every position."""
        return [n for a in self.axes for n in (1, 1, 0, 0, *a.numbers[_BLUR_NUMBERS:])], "zeros"

    def arguments(self) -> dict[str, Any]:
        """The arguments of the public function, with a value an axis."""
        found: dict[str, Any] = {name: [getattr(a, name) for a in self.axes] for name in ("taps", "stride")}
        found |= {"padding": [(a.before, a.after) for a in self.axes], "padding_mode": self.padding_mode}
        if self.has_max:
            window = ("window", "window_padding", "window_dilation")
            found |= {name: [getattr(a, name) for a in self.axes] for name in window}
        return found

    def padded(self, padding: Mapping[int, tuple[int, int]]) -> Geometry:
        """The same but for the (before, after) of some axes."""
        given = self.arguments()
        given["padding"] = [padding.get(i, pads) for i, pads in enumerate(given["padding"])]
        return Geometry(self.op, *given.values())

    def check(self, x_shape: Sequence[int], item_bytes: int) -> None:
        """Raises ValueError unless every axis has an output, and the whole of it less bytes than an int64 counts.

        Args:
            x_shape: of which the last sizes are those of the axes.
            item_bytes: of one value; 0 leaves the whole unchecked.
        """
        rank = len(self.axes)
        sizes, outs = x_shape[-rank:], []
        for name, axis, size in zip(axis_names(rank), self.axes, sizes, strict=True):
            pooled, out = axis.pooled_size(size), axis.out_size(size)
            if size < 1 or pooled < 1 or axis.misses(size) or out < 1:
                raise ValueError(f"{self.op}: {self._why_empty(name, axis, size)}, got spatial size {tuple(sizes)}")
            outs.append(out)
        if (
            item_bytes and math.prod(x_shape[:-rank]) * math.prod(outs) * item_bytes > 2**63 - 1
        ):  # jit.trace knows no constant of 2**63
            raise ValueError(
                f"{self.op}: padding, stride and the map ask for an output of shape {(*x_shape[:-rank], *outs)}, "
                "allowed are less than 2**63 bytes"
            )

    def _why_empty(self, name: str, axis: Axis, size: int) -> str:
        if size < 1:
            return f"x must not have an empty {name}"
        pooled = axis.pooled_size(size)
        if pooled < 1:
            return (
                f"window must fit the map: {name} {size} with window {axis.window}, window_padding "
                f"{axis.window_padding}, window_dilation {axis.window_dilation} leaves {pooled}"
            )
        if axis.misses(size):
            return (
                f"window must meet the map everywhere: one dilated by {axis.window_dilation} and padded by "
                f"{axis.window_padding} steps over {name} {size}"
            )
        return (
            f"the output would be empty: {name} ({pooled} + {axis.before} + {axis.after} - {axis.taps} taps) // "
            f"{axis.stride} + 1 = {axis.out_size(size)}, allowed from 1 up"
        )
