"""What is timed on a GPU: op x direction x dtype x layout x feature map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..pools import DTYPES, LAYOUTS, MIB, OPS, Pool

DIRECTIONS = ("forward", "backward")
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
class Row(Pool):
    """One row: its direction is one of DIRECTIONS, its group one of MAPS, or "huge"."""

    @property
    def minimal_bytes(self) -> int:
        """Either direction reads one map and writes the other, and writes or reads the codes of a max."""
        return self.map_bytes + self.code_bytes

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
