"""The schemas of the torch ops: setup.py compiles them into the native library, ops.py defines them without it.

Axes come first to last (height before width); `padding` lists (before, after) an axis. `taps` is None for the
binomial filters of `taps_size`, or the filters of all axes side by side: (1, sum(taps_size)) or one row a channel.
`size` is the spatial size of x. `codes` holds packed argmax codes: (images, planes an image, bytes a plane).
"""

_BLUR = "int[] taps_size, int[] stride, int[] padding, str padding_mode"
_WINDOW = "int[] window, int[] window_padding, int[] window_dilation"

SCHEMAS = (
    f"blur_pool(Tensor x, Tensor? taps, {_BLUR}) -> Tensor",
    f"blur_pool_backward(Tensor grad, Tensor? taps, SymInt[] size, {_BLUR}, bool channels_last) -> Tensor",
    f"blur_pool_backward_taps(Tensor grad, Tensor x, Tensor taps, {_BLUR}) -> Tensor",
    f"max_blur_pool(Tensor x, Tensor? taps, {_BLUR}, {_WINDOW}) -> Tensor",
    f"max_blur_pool_codes(Tensor x, Tensor? taps, {_BLUR}, {_WINDOW}) -> (Tensor, Tensor)",
    f"max_blur_pool_backward(Tensor grad, Tensor? x, Tensor? codes, Tensor? taps, SymInt[] size, {_BLUR}, "
    f"{_WINDOW}, bool channels_last) -> Tensor",
    "cpu_isa() -> str",
    "cuda_archs() -> str",
)
