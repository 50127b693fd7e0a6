"""The list of what is measured: op x pass x layout x dtype x feature map x batch."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import pools
from .pools import LAYOUTS, MIB, OPS, Pool

PASSES = ("forward", "forward+backward")
DTYPES = {name: pools.DTYPES[name] for name in ("float32", "bfloat16")}
REGIMES = {"memory": "beyond the cache", "cache": "inside the cache"}

RESNET50_MAPS = ((64, 112), (256, 56), (512, 28), (1024, 14), (2048, 7))
ODD_MAP = (64, 57)
BFLOAT16_SIZES = (112, 14)

DEFAULT_CACHE = 32 * MIB
# A guest of a few cores is told the cache of the whole socket: where 504 MiB were, copies from 64 MiB up slowed down.
LARGEST_CACHE = 64 * MIB


@dataclass(frozen=True)
class Workload(Pool):
    """One row: its direction is one of PASSES, its group one of REGIMES."""

    @property
    def regime(self) -> str:
        """Where its map lies: beyond the last level's cache, or in it."""
        return self.group

    @property
    def backward(self) -> bool:
        return self.direction == "forward+backward"

    @property
    def minimal_bytes(self) -> int:
        """Bytes that any implementation must move through memory.

        Forward reads x and writes y. Backward reads dy and writes dx; a max's codes are written and read once.
        """
        return 2 * (self.map_bytes + self.code_bytes) if self.backward else self.map_bytes


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
            yield Workload(regime, op, direction, dtype, layout, shape)


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
