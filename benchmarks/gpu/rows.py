"""What is timed on a GPU: op x direction x dtype x layout x feature map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

TAPS, STRIDE, WINDOW = 3, 2, 2
OPS = ("blur_pool2d", "max_blur_pool2d")
DIRECTIONS = ("forward", "backward")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}

MIB = 1 << 20
LEAST_BYTES = 128 * MIB  # of an input: the bars speak of 64 MB and more

# (channels, side) of what networks downsample at 224 pixels, and what is awkward. A map stands in one group.
MAPS = {
    "ResNet-50": ((64, 112), (256, 56), (512, 28), (1024, 14)),
    "odd": ((64, 113), (64, 57), (64, 55), (100, 56), (3, 224)),
    "small": ((2048, 7), (2048, 14)),
    "DenseNet-121": ((128, 56), (256, 28), (512, 14)),
    "ConvNeXt": ((96, 56), (192, 28), (384, 14)),
}
HUGE_SHAPE = (17, 64, 1504, 1504)  # more than 2**31 elements
BARS = {  # (op, whether the map is aligned): least fraction of the copy's bandwidth
    ("blur_pool2d", True): 0.90,
    ("max_blur_pool2d", True): 0.85,
    ("blur_pool2d", False): 0.75,
    ("max_blur_pool2d", False): 0.75,
}


@dataclass(frozen=True)
class Row:
    """One op in one direction over one map."""

    group: str  # of MAPS, or "huge"
    op: str
    direction: str
    dtype_name: str
    layout: str
    shape: tuple[int, int, int, int]  # of the input

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
    def pooled(self) -> tuple[int, int, int, int]:
        n, c, h, w = self.shape
        return n, c, h - self.window + 1, w - self.window + 1

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        n, c, h, w = self.pooled
        return n, c, math.ceil(h / STRIDE), math.ceil(w / STRIDE)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def input_bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def minimal_bytes(self) -> int:
        """Either direction reads one map and writes the other, and writes or reads 2-bit codes for a max."""
        codes = math.prod(self.pooled) // 4 if self.window > 1 else 0
        return self.input_bytes + math.prod(self.out_shape) * self.dtype.itemsize + codes

    @property
    def is_aligned(self) -> bool:
        """Whether rows or pixels are whole 16-byte vectors, of maps larger than 28 on a side."""
        _, channels, _, width = self.shape
        lanes = channels if self.layout == "channels_last" else width
        return lanes * self.dtype.itemsize % 16 == 0 and width > 28

    @property
    def bar(self) -> float:
        return BARS[self.op, self.is_aligned]


def batch_for(channels: int, side: int, itemsize: int) -> int:
    return 8 * math.ceil(LEAST_BYTES / (channels * side * side * itemsize) / 8)


def catalogue() -> Iterator[Row]:
    """What is asked for first comes first. float16 differs from bfloat16 by conversions alone: a map of it."""
    for group, maps in MAPS.items():
        for dtype, layout in itertools.product(DTYPES, LAYOUTS):
            for channels, side in maps if dtype != "float16" else maps[:1] * (group == "ResNet-50"):
                shape = (batch_for(channels, side, DTYPES[dtype].itemsize), channels, side, side)
                for op, direction in itertools.product(OPS, DIRECTIONS):
                    yield Row(group, op, direction, dtype, layout, shape)
    for op, layout in itertools.product(OPS, LAYOUTS):
        yield Row("huge", op, "forward", "bfloat16", layout, HUGE_SHAPE)


def dry_catalogue() -> Iterator[Row]:
    """Tiny maps, for a run without a GPU: it proves the program, and its times say nothing."""
    for dtype, layout, op, direction in itertools.product(("bfloat16", "float32"), LAYOUTS, OPS, DIRECTIONS):
        yield Row("ResNet-50", op, direction, dtype, layout, (2, 16, 16, 16))
        yield Row("odd", op, direction, dtype, layout, (2, 3, 11, 9))
