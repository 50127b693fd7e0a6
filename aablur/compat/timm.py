"""Drop-ins for timm's anti-aliasing layer: BlurPool2d and create_aa."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..geometry import per_axis
from ._base import Blur, binomial_filter

_MODES = {"reflect": "reflect", "constant": "zeros", "replicate": "replicate", "circular": "circular"}


class BlurPool2d(Blur):
    """``timm.layers.BlurPool2d``: pad, blur, keep every ``stride``-th value along height and width.

    Pads ((stride - 1) + (filt_size - 1)) // 2 before and after: it depends on the stride. Every timm family takes
    this class as its ``aa_layer``.

    Args:
        channels: of the map, each with a filter in the buffer; or None: one filter for any number. Default None.
        filt_size: taps, 2 to 1024. Default 3.
        stride: an int, or one for each axis. Default 2.
        pad_mode: "reflect", "constant" (zeros), "replicate" or "circular". Default "reflect".
        device, dtype: of the buffer. The op does not need it where x is: the taps follow x.

    State: the buffer ``filt``, (channels or 1, 1, filt_size, filt_size), not in the state_dict.

    Shape: (..., channels, height, width) -> (..., channels, out height, out width), with a batch or without.

    Raises:
        TypeError, ValueError: an argument is not of the form above; x has another number of channels.
    """

    def __init__(
        self, channels: int | None = None, filt_size: int = 3, stride: int = 2, pad_mode: str = "reflect",
        device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        functional.check_taps_size("BlurPool2d", "filt_size", filt_size)
        if filt_size < 2:
            raise ValueError(f"BlurPool2d: filt_size must be at least 2, got {filt_size}")
        if channels is not None:
            per_axis("BlurPool2d", "channels", channels, 1, 1)
        height, width = (
            (s - 1 + filt_size - 1) // 2 for s in per_axis("BlurPool2d", "stride", stride, 2, 1)
        )  # as the peer: symmetric
        self.channels, self.filt_size, self.stride, self.pad_mode = channels, filt_size, stride, pad_mode
        self.padding = [width, width, height, height]
        filt = binomial_filter([filt_size] * 2, dtype, device).repeat(channels or 1, 1, 1, 1)
        self.register_buffer("filt", filt, persistent=False)
        self._prepare()

    def _prepare(self) -> None:
        if self.pad_mode not in _MODES:
            raise ValueError(f"BlurPool2d: pad_mode must be one of {', '.join(_MODES)}, got {self.pad_mode!r}")
        left, right, top, bottom = self.padding
        padding = ((top, bottom), (left, right))
        self._describe([self.filt_size] * 2, self.stride, padding, _MODES[self.pad_mode])

    def forward(self, x: Tensor) -> Tensor:
        return self.blur(x)

    def init_non_persistent_buffers(self) -> None:
        """What timm calls on a model that was made on the meta device."""
        self.reset_parameters()


def create_aa(
    aa_layer: Any, channels: int | None = None, stride: int = 2, enable: bool = True,
    noop: type[nn.Module] | None = nn.Identity, device: Any = None, dtype: torch.dtype | None = None,
) -> nn.Module | None:  # fmt: skip
    """``timm.layers.create_aa``: the anti-aliasing layer that a name, class or partial stands for.

    1. Without ``aa_layer`` or ``enable``: ``noop()``, or None where ``noop`` is None.
    2. "avg" or "avgpool" is ``nn.AvgPool2d``, "blur" or "blurpool" is `BlurPool2d`, "blurpc" is `BlurPool2d` with
       "constant" padding; cases, "-" and "_" make no difference. Anything else is called as it is.
    3. It is called with ``channels`` and ``stride``, a BlurPool2d also with ``device`` and ``dtype``.
    4. If it takes no such arguments (TypeError), it is called with the stride alone, as an average pool is.

    Args:
        aa_layer: a name as above, a class, a partial, or None.
        channels, stride, device, dtype: for the layer.
        enable: False makes the noop. Default True.
        noop: class of the layer that does nothing, or None. Default ``nn.Identity``.

    Raises:
        ValueError: a name that stands for nothing.
    """
    if not aa_layer or not enable:
        return noop() if noop is not None else None
    layer: Callable[..., nn.Module] = _named(aa_layer) if isinstance(aa_layer, str) else aa_layer
    arguments = {"channels": channels, "stride": stride}
    made_by = layer.func if isinstance(layer, partial) else layer
    if isinstance(made_by, type) and issubclass(made_by, BlurPool2d):
        given = layer.keywords if isinstance(layer, partial) else {}
        placed = {"device": device, "dtype": dtype}
        arguments |= {k: v for k, v in placed.items() if v is not None and k not in given}
    try:
        return layer(**arguments)
    except TypeError:
        return layer(stride)


def _named(name: str) -> Callable[..., nn.Module]:
    key = name.lower().replace("_", "").replace("-", "")
    layers: dict[str, Callable[..., nn.Module]] = {
        **dict.fromkeys(("avg", "avgpool"), nn.AvgPool2d),
        **dict.fromkeys(("blur", "blurpool"), BlurPool2d),
        "blurpc": partial(BlurPool2d, pad_mode="constant"),
    }
    if key not in layers:
        raise ValueError(f"create_aa: aa_layer must be one of {', '.join(layers)} or a class, got {name!r}")
    return layers[key]
