"""What the kernels should take on a GPU, by whole launches' counts: python -m benchmarks.model [FILE.csv]

    time = launch + max(bytes / copy bandwidth,
                        issue slots / (issue rate * efficiency), half-rate slots / (half of it * efficiency),
                        wavefronts / (one a clock on each multiprocessor)), the last three stretched by idle SMs

Counts are those of `make codegen` (results/codegen-sm90.csv): whole launches of the sm_90 machine code, borders and
idle lanes included. Assumptions:

- memory: every byte of the maps moves once, at the speed of a copy of the same size. Halos that two blocks read come
  from the second-level cache. Latency is hidden (fewer than 16 warps a multiprocessor will not always hide it).
- issue: a multiprocessor issues 4 warp instructions a clock at most, and EFFICIENCY of that in a kernel of this kind.
  The machine code of sm_90 stands for every card; other architectures compile to other code.
- shared memory gives a wavefront a clock. Local memory is not counted.
- SMs that have no block in the last round idle: the busiest one's blocks over the mean.

A prediction is no measurement: it says which limit binds, and how far off a measured row is. With a file of measured
rows of a card that is known here, prints prediction beside measurement. On an H200 (gpu-nvidia-h200-2026-11-27.csv) the
measured times of 119 of 128 rows are .83 to 1.27 of the predicted ones; backward kernels of channels_last float32 with
a max take 1.35 to 1.4 (latency), channels_last maps of 100 channels, whose vectors are half as wide, 1.5 to 2.15.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .providers import OURS, TRITON
from .record import RESULTS, read
from .report import aligned
from .workloads import BACKWARD, FORWARD, ODD, RESNET50, RESNET_POOL, TRAINING, Workload, catalogue

CODEGEN = RESULTS / "codegen-sm90.csv"
LAUNCH_S = 2e-6  # inside a CUDA graph
EFFICIENCY = 0.7  # of full issue


@dataclass(frozen=True)
class Card:
    """bandwidth: of a copy, bytes read and written a second. clock: boost."""

    name: str
    bandwidth: float
    sms: int
    clock: float

    @property
    def issue(self) -> float:
        """Thread instructions a second: 4 schedulers of 32 lanes."""
        return self.sms * 128 * self.clock


# Bandwidth: measured on the H200; 0.9 of the data sheets' for the others.
CARDS = (
    Card("H200", 4.3e12, 132, 1.98e9),
    Card("H100", 0.9 * 3.35e12, 132, 1.98e9),
    Card("A100", 0.9 * 2.039e12, 108, 1.41e9),
)
OPS = {
    ("blur_pool2d", FORWARD): "blur",
    ("blur_pool2d", BACKWARD): "blur-backward",
    ("max_blur_pool2d", TRAINING): "max-blur-codes",
    ("max_blur_pool2d", BACKWARD): "max-blur-backward",
    (RESNET_POOL, TRAINING): "max-blur-codes window 3 padding 1",
    (RESNET_POOL, BACKWARD): "max-blur-backward window 3 padding 1",
}
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
LAYOUTS = {"NCHW": "nchw", "channels_last": "nhwc"}


@dataclass(frozen=True)
class Count:
    """Of a launch, an element of the larger map; and its blocks for an element."""

    slots: float
    half_rate: float = 0.0
    wavefronts: float = 0.0
    blocks: float = 1.0


Key = tuple[str, str, str, str, int]  # backend, op, layout, dtype, side


def counted(path: Path = CODEGEN) -> dict[Key, Count]:
    """Of launches of full batches; the op's name holds its window and "per channel"."""
    found: dict[Key, Count] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["budget"].endswith("batch full"):
                continue
            backend, op, layout, dtype, *form = row["budget"].split(",")[0].split()
            op = " ".join((op, *form))
            elements = math.prod(map(int, row["shape"].split("x")))
            slots, half_rate, wavefronts = (float(row[k]) for k in ("slots", "half_rate", "wavefronts"))
            blocks = int(row["blocks"]) / elements
            found[backend, op, layout, dtype, int(row["side"])] = Count(slots, half_rate, wavefronts, blocks)
    return found


@dataclass(frozen=True)
class Prediction:
    ms: float
    of_copy: float
    bound: str  # "memory", "issue", "half rate" or "shared memory"


def predict(row: Workload, provider: str, card: Card, counts: dict[Key, Count]) -> Prediction | None:
    """None where no launch of that op and size was counted."""
    backend = "triton" if provider == TRITON else "cuda"
    op, side = OPS[row.op, row.direction], row.shape[-1]
    count = counts.get((backend, op, LAYOUTS[row.layout], DTYPES[row.dtype_name], side))
    if count is None:
        return None
    blocks = count.blocks * row.elements
    idle = math.ceil(blocks / card.sms) / (blocks / card.sms)
    limits = {
        "memory": row.minimal_bytes / card.bandwidth,
        "issue": row.elements * count.slots / (card.issue * EFFICIENCY) * idle,
        "half rate": row.elements * count.half_rate / (card.issue / 2 * EFFICIENCY) * idle,
        "shared memory": row.elements * count.wavefronts / (card.sms * card.clock) * idle,
    }
    bound = max(limits, key=lambda limit: limits[limit])
    seconds = LAUNCH_S + limits[bound]
    return Prediction(seconds * 1e3, limits["memory"] / seconds, bound)


def predictions(rows: list[Workload]) -> Iterator[tuple[str, ...]]:
    counts = counted()
    columns = [(OURS, card) for card in CARDS] + [(TRITON, CARDS[0])]
    titles = [f"{provider}, {card.name}: ms (of copy, bound)" for provider, card in columns]
    yield ("op", "pass", "layout", "dtype", "input", *titles)
    for row in rows:
        found = [predict(row, provider, card, counts) for provider, card in columns]
        if any(found):
            cells = [f"{p.ms:.3f} ({p.of_copy:.2f}, {p.bound})" if p else "" for p in found]
            yield (row.op, row.direction, row.layout, row.dtype_name, row.size, *cells)


def against(path: Path) -> Iterator[tuple[str, ...]]:
    """Measured beside predicted, of a run's file."""
    counts, rows = counted(), {row.name: row for row in catalogue("cuda")}
    measurements, about = read(path)
    gpu = about["hardware"]
    card = next((c for c in CARDS if c.name in gpu), None)
    if card is None:
        raise ValueError(f"path must be of {', '.join(c.name for c in CARDS)}, and {path} is of {gpu!r}")
    yield ("row", "provider", f"measured on {gpu}, ms", "predicted", "measured / predicted", "bound")
    for m in measurements:
        if m.provider not in (OURS, TRITON) or not m.ms or m.name not in rows:
            continue
        if predicted := predict(rows[m.name], m.provider, card, counts):
            times = (f"{m.ms:.4f}", f"{predicted.ms:.4f}", f"{m.ms / predicted.ms:.2f}")
            yield (m.name, m.provider, *times, predicted.bound)


def main() -> None:
    if len(sys.argv) > 1:
        print(aligned(against(Path(sys.argv[1]))))
    else:
        groups = (RESNET50, ODD, "small")
        rows = [r for r in catalogue("cuda") if r.group in groups and r.dtype_name != "float16"]
        print(aligned(predictions(rows)))


if __name__ == "__main__":
    main()
