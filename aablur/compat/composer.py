"""Drop-ins for composer's BlurPool: blur_2d, blurmax_pool2d, the three modules and apply_blurpool."""

from __future__ import annotations

import copy
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from .. import functional
from ..geometry import per_axis
from ._base import Blur, Spec, binomial_filter, blur

_TAPS = (3, 3)  # of every module, and of the functions without a filter


def _default_filter(channels: int = 1) -> Tensor:
    return binomial_filter(_TAPS).repeat(channels, 1, 1, 1)


def _check_filter(op: str, filter: Any) -> tuple[int, ...]:
    """The odd sizes of a (1 or channels, 1, height, width) filter."""
    if not isinstance(filter, Tensor) or not filter.is_floating_point():
        raise TypeError(f"{op}: filter must be a floating tensor, got {getattr(filter, 'dtype', type(filter))}")
    if filter.ndim != 4 or filter.shape[1] != 1 or not all(size % 2 for size in filter.shape[2:]):
        raise ValueError(
            f"{op}: filter must have shape (1 or channels, 1, height, width), height and width odd, "
            f"got {tuple(filter.shape)}"
        )
    return tuple(filter.shape[2:])


def blur_2d(input: Tensor, channels: int = -1, stride: Any = 1, filter: Tensor | None = None) -> Tensor:
    """``composer.algorithms.blurpool.blur_2d``: pad with zeros, blur, keep every ``stride``-th value.

    Args:
        input: (channels, height, width), with a batch before it or without.
        channels: of the input where it is positive; the peer needs it where it cannot look. Default -1.
        stride: an int, or one for each axis. Default 1.
        filter: (1 or channels, 1, height, width), both odd; None is the 3x3 binomial. It is read on every call,
            which waits for its device: a module reads it once. Not separable, it is run by a plain convolution.

    Raises:
        TypeError, ValueError: an argument is not of the form above.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(blur_2d, (input,), input, channels, stride, filter)
    functional.check_map("blur_2d", 2, input)
    if channels > 0 and input.shape[-3] != channels:
        raise ValueError(f"blur_2d: input must have {channels} channels, got shape {tuple(input.shape)}")
    if filter is None:
        return functional.blur_pool("blur_2d", 2, input, 3, stride, 1, "zeros")
    sizes = _check_filter("blur_2d", filter)
    return blur(input, filter, Spec.of("blur_2d", sizes, stride, [k // 2 for k in sizes], "zeros"))


def blurmax_pool2d(
    input: Tensor, kernel_size: Any = None, stride: Any = 2, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, filter: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``composer.algorithms.blurpool.blurmax_pool2d``: the max at stride 1, then `blur_2d`, in one op.

    Args:
        input, filter: as for `blur_2d`.
        kernel_size: of the max window; None is 2. An int, or one for each axis.
        stride: of the blur: an int, or one for each axis. Default 2.
        padding, dilation: of the max window, as for ``F.max_pool2d``. Defaults 0 and 1.
        ceil_mode: without effect, as in the peer: at stride 1 floor and ceil agree.

    Raises:
        TypeError, ValueError: an argument is not of the form above, or the window does not fit the map.
    """
    if has_torch_function_unary(input):
        arguments = (kernel_size, stride, padding, dilation, ceil_mode, filter)
        return handle_torch_function(blurmax_pool2d, (input,), input, *arguments)
    window = (2 if kernel_size is None else kernel_size, padding, dilation)
    if filter is None:
        return functional.blur_pool("blurmax_pool2d", 2, input, 3, stride, 1, "zeros", window)
    sizes = _check_filter("blurmax_pool2d", filter)
    return blur(input, filter, Spec.of("blurmax_pool2d", sizes, stride, [k // 2 for k in sizes], "zeros", window))


class BlurMaxPool2d(Blur):
    """``composer.algorithms.blurpool.BlurMaxPool2d``: `blurmax_pool2d` in place of an ``nn.MaxPool2d``.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as for ``nn.MaxPool2d``; stride None is kernel_size.

    State: the buffer ``filt2d``, (1, 1, 3, 3).
    """

    filter_name: ClassVar[str] = "filt2d"

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.kernel_size, self.padding, self.dilation, self.ceil_mode = kernel_size, padding, dilation, ceil_mode
        self.stride = kernel_size if stride is None else stride
        self.register_buffer("filt2d", _default_filter())
        self._prepare()

    def _prepare(self) -> None:
        self._describe(_TAPS, self.stride, 1, "zeros", (self.kernel_size, self.padding, self.dilation))

    def forward(self, input: Tensor) -> Tensor:
        return self.blur(input)

    @staticmethod
    def from_maxpool2d(module: nn.MaxPool2d, module_index: int = -1) -> BlurMaxPool2d:
        """The anti-aliased pool in place of a max pool of the same settings."""
        return BlurMaxPool2d(module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)


class BlurConv2d(Blur):
    """``composer.algorithms.blurpool.BlurConv2d``: a convolution with a blur before it, or after it.

    1. ``blur_first``: blur at stride 1, then convolve at ``stride``.
    2. Else: convolve at stride 1, then blur at ``stride`` (kernel_size, where stride is None).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for ``nn.Conv2d``.
        blur_first: Default True.

    State: the module ``conv``, and the buffer ``blur_filter``, (channels that are blurred, 1, 3, 3).

    Raises:
        ValueError: blur_first without a stride.
    """

    filter_name: ClassVar[str] = "blur_filter"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Any, stride: Any = None, padding: Any = 0,
        dilation: Any = 1, groups: int = 1, bias: bool = True, blur_first: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if blur_first and stride is None:
            raise ValueError("BlurConv2d: stride must be given with blur_first, got None")
        conv_stride, blur_stride = (stride, 1) if blur_first else (1, kernel_size if stride is None else stride)
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, conv_stride, padding, dilation, groups, bias)
        self._set_up(conv, blur_stride, blur_first)

    def _set_up(self, conv: nn.Conv2d, blur_stride: Any, blur_first: bool) -> None:
        self.blur_first, self.blur_stride = blur_first, blur_stride
        self.blur_nchannels = conv.in_channels if blur_first else conv.out_channels
        self.conv = conv
        conv._already_blurpooled = True  # pyright: ignore[reportArgumentType]  # the peer's mark: not to be wrapped again
        self.register_buffer("blur_filter", _default_filter(self.blur_nchannels).to(conv.weight))
        self._prepare()

    def _prepare(self) -> None:
        self._describe(_TAPS, self.blur_stride, 1, "zeros")

    def forward(self, input: Tensor) -> Tensor:
        return self.conv(self.blur(input)) if self.blur_first else self.blur(self.conv(input))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blur_first={self.blur_first}"

    @staticmethod
    def from_conv2d(module: nn.Conv2d, module_index: int = -1, blur_first: bool = True) -> BlurConv2d:
        """The anti-aliased convolution in place of another, on the very same parameters.

        So dtype, device and padding_mode stay, which the peer loses, and optimizers go on as they are.
        """
        blur_conv = BlurConv2d.__new__(BlurConv2d)
        nn.Module.__init__(blur_conv)
        conv, stride = module, 1
        if not blur_first:
            conv, stride = copy.copy(module), module.stride
            conv.stride = (1, 1)
        blur_conv._set_up(conv, stride, blur_first)
        return blur_conv.train(module.training)


class BlurPool2d(Blur):
    """``composer.algorithms.blurpool.BlurPool2d``: `blur_2d` as a module.

    Args:
        channels: of the map, each with a filter in the buffer; or 0: one filter for any number. Default 0.
        stride: an int, or one for each axis. Default 2.
        padding: without effect, as in the peer: the blur pads by 1.

    State: the buffer ``blur_filter``, (channels or 1, 1, 3, 3).
    """

    filter_name: ClassVar[str] = "blur_filter"

    def __init__(self, channels: int = 0, stride: Any = 2, padding: Any = 1) -> None:
        super().__init__()
        per_axis("BlurPool2d", "channels", channels, 1, 0)
        self.channels, self.stride, self.padding = channels, stride, padding
        self.register_buffer("blur_filter", _default_filter(max(channels, 1)))
        self._prepare()

    def _prepare(self) -> None:
        self._describe(_TAPS, self.stride, 1, "zeros")

    def forward(self, input: Tensor) -> Tensor:
        return self.blur(input)


def apply_blurpool(
    model: nn.Module, replace_convs: bool = True, replace_maxpools: bool = True, blur_first: bool = True,
    min_channels: int = 16, optimizers: Any = None,
) -> None:  # fmt: skip
    """``composer.functional.apply_blurpool``: blurs the strided convolutions and max pools of a model, in place.

    1. Every ``nn.Conv2d`` with a stride above 1 and ``min_channels`` input channels becomes a `BlurConv2d`.
    2. Every ``nn.MaxPool2d`` with a stride above 1 becomes a `BlurMaxPool2d`.

    The parameters stay the same tensors, with their dtype, device and padding_mode. Max pools of stride 1, which do
    not sample, and those that return indices stay as they are: the peer replaces both.

    Args:
        model: whose children are replaced.
        replace_convs, replace_maxpools: whether to do 1 and 2. Default True.
        blur_first: blur before the convolution; False blurs after it, as the paper, at the cost of a convolution at
            stride 1. Default True.
        min_channels: convolutions with fewer input channels stay, so that the first one does. Default 16.
        optimizers: not needed here, since no parameter is replaced; taken for the peer's signature.

    Raises:
        TypeError: model is not an ``nn.Module``, or is wrapped in DistributedDataParallel: convert what is in it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"apply_blurpool: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise TypeError("apply_blurpool: model must not be wrapped in DistributedDataParallel, convert model.module")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    replaced: dict[nn.Module, Blur] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child not in replaced:
                if replace_convs and _is_strided_conv(child, min_channels):
                    replaced[child] = BlurConv2d.from_conv2d(child, blur_first=blur_first)  # pyright: ignore
                elif replace_maxpools and _is_strided_maxpool(child):
                    replaced[child] = BlurMaxPool2d.from_maxpool2d(child).to(like).train(child.training)  # pyright: ignore
            if child in replaced:
                setattr(parent, name, replaced[child])
    if not any(isinstance(module, (BlurConv2d, BlurMaxPool2d)) for module in model.modules()):
        warnings.warn("apply_blurpool: the model has no strided Conv2d or MaxPool2d to replace", stacklevel=2)


def _is_strided_conv(module: nn.Module, min_channels: int) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and max(module.stride) > 1
        and module.in_channels >= min_channels
        and not getattr(module, "_already_blurpooled", False)
    )


def _is_strided_maxpool(module: nn.Module) -> bool:
    if not isinstance(module, nn.MaxPool2d) or module.return_indices:
        return False
    return max(per_axis("apply_blurpool", "stride", module.stride, 2, 1)) > 1
