"""One pool of a feature map, as both benchmarks time it: what it is called, its sizes and its bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

TAPS, STRIDE, WINDOW = 3, 2, 2
PADDING_MODE = "reflect"
OPS = ("blur_pool2d", "max_blur_pool2d")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}

MIB = 1 << 20


@dataclass(frozen=True)
class Pool:
    """One op in one direction over one map."""

    group: str  # of maps: a network's, or where they lie in memory
    op: str
    direction: str
    dtype_name: str
    layout: str
    shape: tuple[int, int, int, int]  # (N, C, H, W) of the input, whatever the layout

    @property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        return "/".join((self.op, self.direction, self.layout, self.dtype_name, self.group, size))

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def memory_format(self) -> torch.memory_format:
        return LAYOUTS[self.layout]

    @property
    def window(self) -> int:
        return WINDOW if self.op == "max_blur_pool2d" else 1

    @property
    def pooled_shape(self) -> tuple[int, int, int, int]:
        n, c, h, w = self.shape
        return n, c, h - self.window + 1, w - self.window + 1

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        n, c, h, w = self.pooled_shape
        return n, c, math.ceil(h / STRIDE), math.ceil(w / STRIDE)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def input_bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def map_bytes(self) -> int:
        """Of the input and the output."""
        return self.input_bytes + math.prod(self.out_shape) * self.dtype.itemsize

    @property
    def code_bytes(self) -> int:
        """Of the place of each maximum: log2(window**2) bits a pooled element."""
        bits = math.ceil(math.log2(self.window**2)) if self.window > 1 else 0
        return math.prod(self.pooled_shape) * bits // 8
