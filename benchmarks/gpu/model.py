"""What the kernels should take on a GPU, from bytes and counted instructions: python -m benchmarks.gpu.model [FILE.csv]

    time = launch + max(minimal bytes / the card's copy bandwidth, elements * instructions an element / its issue rate,
                        elements * those of integers, bits, comparisons and conversions / half of that rate)

Instructions are those of `make codegen` (results/codegen-sm90.csv), of the CUDA C++ kernels and of Triton's. A
prediction is no measurement: it says which of the limits binds and how far off a measured row is. What shared memory
takes is not in it. With a file of measured rows of a card that is known here, prints prediction beside measurement.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..record import RESULTS
from .providers import OURS, TRITON
from .record import Measurement, read
from .report import aligned
from .rows import Row, catalogue

CODEGEN = RESULTS / "codegen-sm90.csv"
LAUNCH_S = 2e-6  # inside a CUDA graph


@dataclass(frozen=True)
class Card:
    """bandwidth: of a copy, bytes read and written a second. issue: thread instructions a second."""

    name: str
    bandwidth: float
    issue: float


# Issue: multiprocessors * 4 schedulers * 32 lanes * boost clock. Bandwidth: measured on the H200; 0.9 of the data
# sheets' 2039 and 1008 GB/s for the others.
CARDS = (
    Card("H200", 4.3e12, 132 * 128 * 1.98e9),
    Card("A100", 0.9 * 2.039e12, 108 * 128 * 1.41e9),
    Card("RTX 4090", 0.9 * 1.008e12, 128 * 128 * 2.52e9),
)
KINDS = {
    ("blur_pool2d", "forward"): "blur",
    ("blur_pool2d", "backward"): "adjoint",
    ("max_blur_pool2d", "forward"): "max-blur",
    ("max_blur_pool2d", "backward"): "max adjoint",
}


@dataclass(frozen=True)
class Count:
    """Instructions an element of the larger map: all, and those that a card does at half its rate."""

    all: float
    alu: float = 0.0


def counted(path: Path = CODEGEN) -> dict[str, Count]:
    """Of each kernel."""
    with path.open(newline="") as file:
        return {row["what"]: Count(float(row["instructions"]), float(row["alu"])) for row in csv.DictReader(file)}


def instructions(row: Row, provider: str, counts: dict[str, Count]) -> Count | None:
    """Of the provider's kernel that serves the row; None if it is not among those counted."""
    _, channels, _, width = row.shape
    dtype = "bfloat16" if row.dtype_name == "float16" else row.dtype_name  # they differ by conversions
    if provider == TRITON:
        op = ("max_" if row.window > 1 else "") + "blur_pool" + ("_backward" if row.direction == "backward" else "")
        share_bytes = row.window > 1 and row.layout == "channels_last" and channels % 4 > 0
        name = f"triton {op}{'_codes' * (op == 'max_blur_pool')}, {dtype}, {row.layout}"
        return None if share_bytes else counts.get(name)
    wide = 16 // row.dtype.itemsize  # elements that a thread reads at once
    vector = 4 if row.window > 1 else wide
    if row.layout == "channels_last":
        path = "channels_last" if channels % vector == 0 else "single elements"
    else:
        path = f"planes of {width}" if width % wide else "NCHW rows"
    return counts.get(f"{KINDS[row.op, row.direction]}, {dtype}, {path}")


@dataclass(frozen=True)
class Prediction:
    ms: float
    of_copy: float
    bound: str  # "memory", "issue" or "alu"


def predict(row: Row, provider: str, card: Card, counts: dict[str, Count]) -> Prediction | None:
    count = instructions(row, provider, counts)
    if count is None:
        return None
    limits = {
        "memory": row.minimal_bytes / card.bandwidth,
        "issue": row.elements * count.all / card.issue,
        "alu": row.elements * count.alu / (card.issue / 2),
    }
    bound = max(limits, key=lambda limit: limits[limit])
    seconds = LAUNCH_S + limits[bound]
    return Prediction(seconds * 1e3, limits["memory"] / seconds, bound)


def predictions(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    counts = counted()
    columns = [(OURS, card) for card in CARDS] + [(TRITON, CARDS[0])]
    titles = [f"{provider}, {card.name}: ms (of copy, bound)" for provider, card in columns]
    yield ("op", "direction", "layout", "dtype", "input", *titles)
    for row in rows:
        found = [predict(row, provider, card, counts) for provider, card in columns]
        if any(found):
            cells = [f"{p.ms:.3f} ({p.of_copy:.2f}, {p.bound})" if p else "" for p in found]
            yield (row.op, row.direction, row.layout, row.dtype_name, "x".join(map(str, row.shape)), *cells)


def against(path: Path) -> Iterator[tuple[str, ...]]:
    """Measured beside predicted, of a run's file."""
    counts, rows = counted(), {row.name: row for row in catalogue()}
    measured: list[Measurement] = [m for m in read(path) if m.provider in (OURS, TRITON) and m.ms and m.name in rows]
    with path.open(newline="") as file:
        gpu = next(csv.DictReader(file))["gpu"]
    card = next((c for c in CARDS if c.name.split()[-1] in gpu), None)
    if card is None:
        raise SystemExit(f"{path} is of {gpu!r}; known are {', '.join(c.name for c in CARDS)}")
    yield ("row", "provider", f"measured on {gpu}, ms", "predicted", "measured / predicted", "bound")
    for m in measured:
        predicted = predict(rows[m.name], m.provider, card, counts)
        if predicted and m.ms:
            yield (
                m.name,
                m.provider,
                f"{m.ms:.4f}",
                f"{predicted.ms:.4f}",
                f"{m.ms / predicted.ms:.2f}",
                predicted.bound,
            )


def main() -> None:
    if len(sys.argv) > 1:
        print(aligned(against(Path(sys.argv[1]))))
    else:
        groups = ("ResNet-50", "odd", "small")
        print(aligned(predictions([r for r in catalogue() if r.group in groups and r.dtype_name != "float16"])))


if __name__ == "__main__":
    main()
