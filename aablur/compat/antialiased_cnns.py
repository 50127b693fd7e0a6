"""Drop-ins for antialiased-cnns (Zhang): BlurPool and BlurPool1D."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .. import functional
from ..geometry import per_axis
from ._base import Blur, binomial_filter

_MODES = {"refl": "reflect", "reflect": "reflect", "repl": "replicate", "replicate": "replicate", "zero": "zeros"}
_PAD_LAYERS = {
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d),
    "zeros": (nn.ZeroPad1d, nn.ZeroPad2d),
}


class _BlurPool(Blur):
    def __init__(self, channels: int, pad_type: str, filt_size: int, stride: int, pad_off: int) -> None:
        super().__init__()
        op = type(self).__name__
        functional.check_taps_size(op, "filt_size", filt_size)
        per_axis(op, "channels", channels, 1, 0)
        per_axis(op, "pad_off", pad_off, 1, -(2**31))
        if pad_type not in _MODES:
            raise ValueError(f"{op}: pad_type must be one of {', '.join(_MODES)}, got {pad_type!r}")
        self.filt_size, self.stride, self.channels = filt_size, stride, channels
        self.pad_off, self.off = pad_off, (stride - 1) // 2 if isinstance(stride, int) else 0
        self.pad_sizes = [(filt_size - 1) // 2 + pad_off, filt_size // 2 + pad_off] * self.rank
        filt = binomial_filter([filt_size] * self.rank).repeat(channels, 1, *[1] * self.rank)
        self.register_buffer("filt", filt)
        # never called: the settings and the name that its peer keeps there
        self.pad = _PAD_LAYERS[_MODES[pad_type]][self.rank - 1](tuple(self.pad_sizes))
        self._prepare()

    def _prepare(self) -> None:
        pads: Any = self.pad.padding
        modes = {layers[self.rank - 1]: mode for mode, layers in _PAD_LAYERS.items()}
        if type(self.pad) not in modes:
            raise ValueError(f"{type(self).__name__}: pad must be one of torch's layers, got {type(self.pad).__name__}")
        padding = tuple((pads[i], pads[i + 1]) for i in reversed(range(0, 2 * self.rank, 2)))
        self._describe([self.filt_size] * self.rank, self.stride, padding, modes[type(self.pad)])

    def forward(self, inp: Tensor) -> Tensor:
        return self.blur(inp)

    def read_filter(self) -> None:
        super().read_filter()
        if self.filt_size == 1:  # the peer samples, and does not look at its buffer
            self._read = (True, None)


class BlurPool(_BlurPool):
    """``antialiased_cnns.BlurPool``: pad, blur, keep every ``stride``-th value along height and width.

    Pads (filt_size - 1) // 2 + pad_off before and filt_size // 2 + pad_off after, so that with pad_off 0 a size n
    gives ceil(n / stride).

    Args:
        channels: of the map; each has a filter in the buffer.
        pad_type: "refl" or "reflect", "repl" or "replicate", "zero". Default "reflect".
        filt_size: taps, 1 to 1024 (the peer: up to 7). With 1, nothing but the sampling is done, as in the peer.
            Default 4.
        stride: an int, or one for each axis. Default 2.
        pad_off: added to each pad. Default 0.

    State: the buffer ``filt``, (channels, 1, filt_size, filt_size).

    Shape: (..., channels, height, width) -> (..., channels, out height, out width), with a batch or without.

    Raises:
        TypeError, ValueError: an argument is not of the form above; x has another number of channels.

    Source: Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019 (arXiv 1904.11486).
    """

    rank: ClassVar[int] = 2

    def __init__(
        self, channels: int, pad_type: str = "reflect", filt_size: int = 4, stride: int = 2, pad_off: int = 0
    ) -> None:
        super().__init__(channels, pad_type, filt_size, stride, pad_off)


class BlurPool1D(_BlurPool):
    """``antialiased_cnns.BlurPool1D``: `BlurPool` along one axis, 3 taps by default; ``filt`` is (channels, 1, k)."""

    rank: ClassVar[int] = 1

    def __init__(
        self, channels: int, pad_type: str = "reflect", filt_size: int = 3, stride: int = 2, pad_off: int = 0
    ) -> None:
        super().__init__(channels, pad_type, filt_size, stride, pad_off)
