"""What is measured: op x pass x layout x dtype x feature map, for each device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

TAPS, STRIDE = 3, 2
PADDING_MODE = "reflect"
RESNET_POOL = "max_blur_pool2d 3x3"  # in the place of F.max_pool2d(x, 3, 2, 1), which ResNets have once
WINDOWS = {"blur_pool2d": (1, 0), "max_blur_pool2d": (2, 0), RESNET_POOL: (3, 1)}  # op -> window, its padding
OPS = tuple(WINDOWS)
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REGIMES = {"memory": "beyond the cache", "cache": "inside the cache"}

FORWARD, TRAINING, BACKWARD, BOTH = "forward", "forward in training", "backward", "forward+backward"
# How often any implementation moves the input and the output, and the codes of a max, through memory.
MOVES = {FORWARD: (1, 0), TRAINING: (1, 1), BACKWARD: (1, 1), BOTH: (2, 2)}
PASSES = {  # device -> op -> passes. Without a max both forwards are one.
    "cpu": dict.fromkeys(OPS, (FORWARD, BOTH)),
    "cuda": {op: (TRAINING if window > 1 else FORWARD, BACKWARD) for op, (window, _) in WINDOWS.items()},
}

# (channels, side) of what networks downsample at 224 pixels, and what is awkward. A map stands in one group.
RESNET50, ODD, HUGE = "ResNet-50", "odd", "huge"
MAPS = {
    RESNET50: ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7)),
    ODD: ((64, 57), (64, 113), (64, 55), (100, 56), (3, 224)),
    "small": ((2048, 14),),
    "DenseNet-121": ((128, 56), (256, 28), (512, 14)),
    "ConvNeXt": ((96, 56), (192, 28), (384, 14)),
}
HUGE_SHAPE = (17, 64, 1504, 1504)  # more than 2**31 elements
ODD_SIDE = MAPS[ODD][0][1]  # the CPU measures the first of the odd maps
BFLOAT16_SIDES = (112, 14)

MIB = 1 << 20
GPU_INPUT = 128 * MIB  # at least: the bars speak of 64 MB and more
DEFAULT_CACHE = 32 * MIB
# A guest of a few cores is told the cache of the whole socket: where 504 MiB were, copies from 64 MiB up slowed down.
LARGEST_CACHE = 64 * MIB


@dataclass(frozen=True)
class Workload:
    """One row of the tables: one op in one pass over one feature map."""

    regime: str  # of REGIMES: where the map lies
    group: str  # of MAPS, or HUGE
    op: str
    direction: str  # of MOVES
    dtype_name: str
    layout: str
    shape: tuple[int, int, int, int]  # (N, C, H, W) of the input, whatever the layout

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        return "/".join((self.op, self.direction, self.layout, self.dtype_name, self.regime, self.group, self.size))

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def memory_format(self) -> torch.memory_format:
        return LAYOUTS[self.layout]

    @property
    def window(self) -> int:
        return WINDOWS[self.op][0]

    @property
    def window_padding(self) -> int:
        return WINDOWS[self.op][1]

    @property
    def pooled_shape(self) -> tuple[int, int, int, int]:
        n, c, h, w = self.shape
        less = self.window - 1 - 2 * self.window_padding
        return n, c, h - less, w - less

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
    def minimal_bytes(self) -> int:
        """Bytes that any implementation must move through memory: maps, and log2(window**2) bits a pooled element."""
        maps, codes = MOVES[self.direction]
        map_bytes = self.input_bytes + math.prod(self.out_shape) * self.dtype.itemsize
        code_bytes = math.prod(self.pooled_shape) * math.ceil(math.log2(self.window**2)) // 8
        return maps * map_bytes + codes * code_bytes


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core as Linux reports it, up to LARGEST_CACHE; else a guess."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = max((1024 * int(s.read_text().strip("K\n")) for s in sizes), default=DEFAULT_CACHE)
    return min(found, LARGEST_CACHE)


def batch_for(image_bytes: int, regime: str, device: str, cache_bytes: int) -> int:
    """Images in a batch so that the input leaves, or stays well inside, the cache."""
    if regime == "memory":  # whole eights, as training batches are
        least = GPU_INPUT if device == "cuda" else max(64 * MIB, 2 * cache_bytes)
        return 8 * math.ceil(least / image_bytes / 8)
    # an eighth: eager keeps a padded copy, indices and both gradients beside the input
    return max(1, cache_bytes // 8 // image_bytes)


def _maps(device: str) -> Iterator[tuple[str, str, str, tuple[int, int]]]:
    """(regime, group, dtype, map). float16 differs from bfloat16 by conversions alone: one map of it."""
    if device == "cpu":
        for regime, group, dtype in product(REGIMES, (RESNET50, ODD), ("float32", "bfloat16")):
            yield from ((regime, group, dtype, m) for m in MAPS[group] if group != ODD or m[1] == ODD_SIDE)
        return
    for group, dtype in product(MAPS, ("bfloat16", "float32", "float16")):
        maps = MAPS[group] if dtype != "float16" else MAPS[group][:1] * (group == RESNET50)
        yield from (("memory", group, dtype, m) for m in maps)


def catalogue(device: str, cache_bytes: int | None = None) -> Iterator[Workload]:
    """Every workload of a device, what is asked for first comes first; those that share an input are neighbours."""
    cache_bytes = cache_bytes or last_level_cache()
    for regime, group, dtype, (channels, side) in _maps(device):
        batch = batch_for(channels * side**2 * DTYPES[dtype].itemsize, regime, device, cache_bytes)
        for op, layout in product(OPS, LAYOUTS):
            if op == RESNET_POOL and (channels, side) != MAPS[RESNET50][0]:
                continue
            for direction in PASSES[device][op]:
                yield Workload(regime, group, op, direction, dtype, layout, (batch, channels, side, side))
    if device == "cuda":
        for op, layout in product(OPS, LAYOUTS):
            if op != RESNET_POOL:
                yield Workload("memory", HUGE, op, PASSES[device][op][0], "bfloat16", layout, HUGE_SHAPE)


def dry_catalogue(device: str) -> Iterator[Workload]:
    """Tiny maps, which prove the program: their times say nothing."""
    for dtype, (group, shape), op, layout in product(
        ("bfloat16", "float32"), ((RESNET50, (2, 16, 16, 16)), (ODD, (2, 3, 11, 9))), OPS, LAYOUTS
    ):
        for direction in PASSES[device][op]:
            yield Workload("memory", group, op, direction, dtype, layout, shape)


def is_quick(workload: Workload, device: str) -> bool:
    """The rows of --quick. On a CPU a minute: one map beyond the cache, the odd one inside it."""
    if device == "cuda":
        return workload.group == RESNET50
    side = workload.shape[2]
    if workload.regime == "memory":
        return side == 56 and workload.dtype_name == "float32"
    return side == ODD_SIDE


def is_default(workload: Workload, device: str) -> bool:
    """On a CPU, the rows of some nine minutes on two cores, most of it the baselines beyond the cache."""
    if device == "cuda" or workload.regime == "cache":
        return True
    return workload.shape[2] in BFLOAT16_SIDES if workload.dtype_name == "bfloat16" else workload.group != ODD
