"""Drop-ins for kornia's blur pools (0.9): BlurPool2D, MaxBlurPool2D, blur_pool2d and max_blur_pool2d."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from torch import Tensor

from .. import functional
from ..geometry import shown
from ._base import Blur, binomial_filter


def _sizes(op: str, kernel_size: Any) -> list[int]:
    sizes = list(kernel_size) if isinstance(kernel_size, (tuple, list)) else [kernel_size] * 2
    if len(sizes) != 2:
        raise ValueError(f"{op}: kernel_size must be an int or two of them, got {shown(kernel_size)}")
    return [functional.check_taps_size(op, "kernel_size", size) for size in sizes]


def _warn_of_ceil_mode(ceil_mode: bool | None) -> None:
    if ceil_mode is not None:
        warnings.warn(
            "ceil_mode has no effect: the max runs at stride 1, where floor and ceil agree. Leave it out, as kornia "
            "will.",
            DeprecationWarning,
            stacklevel=3,
        )


def blur_pool2d(input: Tensor, kernel_size: tuple[int, int] | int, stride: int = 2) -> Tensor:
    """``kornia.filters.blur_pool2d``: pad with zeros, blur, keep every ``stride``-th value along height and width.

    Pads (k - 1) // 2 before and k // 2 after, so that a size n gives ceil(n / stride).

    Args:
        input: (channels, height, width), with a batch before it or without; a floating dtype, which the result keeps.
        kernel_size: taps, 1 to 1024, or (of the height, of the width), which need not be equal.
        stride: an int, or one for each axis. Default 2.

    Raises:
        TypeError, ValueError: an argument is not of the form above.
    """
    taps = tuple(_sizes("blur_pool2d", kernel_size))
    return functional.blur_pool2d(input, taps[0] if taps[0] == taps[1] else taps, stride=stride, padding_mode="zeros")


def max_blur_pool2d(
    input: Tensor, kernel_size: tuple[int, int] | int, stride: int = 2, max_pool_size: int = 2,
    ceil_mode: bool | None = None,
) -> Tensor:  # fmt: skip
    """``kornia.filters.max_blur_pool2d``: the max over ``max_pool_size`` at stride 1, then `blur_pool2d`.

    Args:
        input, kernel_size, stride: as for `blur_pool2d`.
        max_pool_size: of the max window, without padding: an int, or one for each axis. Default 2.
        ceil_mode: deprecated in kornia, without effect: warns unless it is None.

    Raises:
        TypeError, ValueError: an argument is not of the form above, or the window does not fit the map.
    """
    _warn_of_ceil_mode(ceil_mode)
    taps = tuple(_sizes("max_blur_pool2d", kernel_size))
    return functional.max_blur_pool2d(
        input, max_pool_size, taps=taps[0] if taps[0] == taps[1] else taps, stride=stride, padding_mode="zeros"
    )


class BlurPool2D(Blur):
    """``kornia.filters.BlurPool2D``: `blur_pool2d` as a module.

    Args:
        kernel_size, stride: as for `blur_pool2d`.

    State: the buffer ``kernel``, of the shape of the filter, not in the state_dict.
    """

    filter_name: ClassVar[str] = "kernel"

    def __init__(self, kernel_size: tuple[int, int] | int, stride: int = 2) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        kernel = binomial_filter(_sizes(type(self).__name__, kernel_size))
        self.register_buffer("kernel", kernel, persistent=False)
        self._prepare()

    def _prepare(self) -> None:
        self._describe(_sizes(type(self).__name__, self.kernel_size), self.stride, "same", "zeros")

    def forward(self, input: Tensor) -> Tensor:
        return self.blur(input)


class MaxBlurPool2D(Blur):
    """``kornia.filters.MaxBlurPool2D``: `max_blur_pool2d` as a module, in one op.

    Args:
        kernel_size, stride, max_pool_size, ceil_mode: as for `max_blur_pool2d`.

    State: the buffer ``kernel``, of the shape of the filter, not in the state_dict.
    """

    filter_name: ClassVar[str] = "kernel"

    def __init__(
        self, kernel_size: tuple[int, int] | int, stride: int = 2, max_pool_size: int = 2, ceil_mode: bool | None = None
    ) -> None:
        super().__init__()
        _warn_of_ceil_mode(ceil_mode)
        self.kernel_size, self.stride = kernel_size, stride
        self.max_pool_size, self.ceil_mode = max_pool_size, bool(ceil_mode)
        kernel = binomial_filter(_sizes(type(self).__name__, kernel_size))
        self.register_buffer("kernel", kernel, persistent=False)
        self._prepare()

    def _prepare(self) -> None:
        sizes = _sizes(type(self).__name__, self.kernel_size)
        self._describe(sizes, self.stride, "same", "zeros", (self.max_pool_size, 0, 1))

    def forward(self, input: Tensor) -> Tensor:
        return self.blur(input)
