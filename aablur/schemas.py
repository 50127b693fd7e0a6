"""The schemas of the torch ops: setup.py compiles them into the native library, ops.py defines them without it.

`axes` holds the numbers of each axis, axis after axis, the height before the width: taps, stride, before, after; of a
max-blur then window, window_padding, window_dilation (`geometry.Axis`). One list, since torch takes the better part of
a microsecond to read one. `taps` is None for the binomial filters of those sizes, or the filters of all axes side by
side: (1, sum of sizes) or one row a channel. `size` is the spatial size of x. `codes` holds packed argmax codes:
(images, planes an image, bytes a plane). What cpu_isa and cuda_archs return are characters: torch leaks a str.
"""

_GEOMETRY = "int[] axes, str padding_mode"

SCHEMAS = (
    f"blur_pool(Tensor x, Tensor? taps, {_GEOMETRY}) -> Tensor",
    f"blur_pool_backward(Tensor grad, Tensor? taps, SymInt[] size, {_GEOMETRY}, bool channels_last) -> Tensor",
    f"blur_pool_backward_taps(Tensor grad, Tensor x, Tensor taps, {_GEOMETRY}) -> Tensor",
    f"max_blur_pool(Tensor x, Tensor? taps, {_GEOMETRY}) -> Tensor",
    f"max_blur_pool_codes(Tensor x, Tensor? taps, {_GEOMETRY}) -> (Tensor, Tensor)",
    f"max_blur_pool_backward(Tensor grad, Tensor? x, Tensor? codes, Tensor? taps, SymInt[] size, {_GEOMETRY}, "
    "bool channels_last) -> Tensor",
    "cpu_isa() -> int[]",
    "cuda_archs() -> int[]",
)
