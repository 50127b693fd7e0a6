"""The list of what is measured: op x pass x layout x dtype x feature map x batch."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

TAPS = 3
STRIDE = 2
WINDOW = 2
PADDING_MODE = "reflect"

OPS = ("blur_pool2d", "max_blur_pool2d")
PASSES = ("forward", "forward+backward")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

REGIMES = {"memory": "beyond the cache", "cache": "inside the cache"}

RESNET50_MAPS = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))
ODD_MAP = (64, 57)
BFLOAT16_SIZES = (112, 14)

MIB = 1 << 20
DEFAULT_CACHE = 32 * MIB
# A guest of a few cores is told the cache of the whole socket: where 504 MiB were, copies from 64 MiB up slowed down.
LARGEST_CACHE = 64 * MIB


@dataclass(frozen=True)
class Workload:
    """One row: an op in one pass over one feature map."""

    op: str
    direction: str  # one of PASSES
    layout: str
    dtype_name: str
    shape: tuple[int, int, int, int]  # (N, C, H, W) of the input, whatever the layout
    regime: str  # one of REGIMES; the cache is the last level's

    @cached_property
    def name(self) -> str:
        size = "x".join(map(str, self.shape))
        return "/".join((self.op, self.direction, self.layout, self.dtype_name, self.regime, size))

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def memory_format(self) -> torch.memory_format:
        return LAYOUTS[self.layout]

    @property
    def backward(self) -> bool:
        return self.direction == "forward+backward"

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
    def input_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def minimal_bytes(self) -> int:
        """Bytes that any implementation must move through memory.

        Forward reads x and writes y. Backward reads dy and writes dx; for a max it also needs
        the place of each maximum, log2(window**2) bits a pooled element, written and read once.
        """
        x_and_y = self.input_bytes + math.prod(self.out_shape) * self.dtype.itemsize
        if not self.backward:
            return x_and_y
        code_bits = math.ceil(math.log2(self.window**2)) if self.window > 1 else 0
        return 2 * x_and_y + 2 * math.prod(self.pooled_shape) * code_bits // 8


def last_level_cache() -> int:
    """Bytes of the largest of the first core as Linux reports it up to LARGEST_CACHE, else a
    guess."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = max((1024 * int(s.read_text().strip("K\n")) for s in sizes), default=DEFAULT_CACHE)
    return min(found, LARGEST_CACHE)


def batch_for(image_bytes: int, regime: str, cache_bytes: int) -> int:
    """Images in a batch so that the input leaves, or stays well inside, the cache."""
    if regime == "memory":
        # 64 MiB or twice the cache; whole eights, as training batches are
        images = max(64 * MIB, 2 * cache_bytes) / image_bytes
        return 8 * math.ceil(images / 8)
    # an eighth: eager keeps a padded copy, indices and both gradients beside the input
    return max(1, cache_bytes // 8 // image_bytes)


def catalogue(cache_bytes: int | None = None) -> Iterator[Workload]:
    """Every workload; those that share an input and a float64 reference are neighbours."""
    cache_bytes = cache_bytes or last_level_cache()
    for regime, (channels, size), dtype, op in itertools.product(REGIMES, (*RESNET50_MAPS, ODD_MAP), DTYPES, OPS):
        image_bytes = channels * size * size * DTYPES[dtype].itemsize
        shape = (batch_for(image_bytes, regime, cache_bytes), channels, size, size)
        for direction, layout in itertools.product(PASSES, LAYOUTS):
            yield Workload(op, direction, layout, dtype, shape, regime)


def is_quick(workload: Workload) -> bool:
    """The rows of a one-minute look: one map beyond the cache, the odd one inside it."""
    size = workload.shape[2]
    if workload.regime == "memory":
        return size == 56 and workload.dtype_name == "float32"
    return size == ODD_MAP[1]


def is_default(workload: Workload) -> bool:
    """The rows of some nine minutes on two cores, most of it the baselines beyond the cache."""
    size = workload.shape[2]
    if workload.regime == "cache":
        return True
    return size in BFLOAT16_SIZES if workload.dtype_name == "bfloat16" else size != ODD_MAP[1]
