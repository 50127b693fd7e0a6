"""What launches may issue, and what they are counted on: data in budgets.csv, a row an op, layout, dtype and batch."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields
from importlib.metadata import version
from pathlib import Path

from .launches import DTYPES, Counted, Launch

FILE = Path(__file__).with_name("budgets.csv")
# (side, channels): the maps of a ResNet-50 at 224 px, and one whose rows are no whole vectors.
SIZES = {112: 64, 56: 256, 28: 512, 14: 1024, 7: 2048, 57: 64}
FULL = 64 << 20  # bytes of a full batch
# The issue slots an element that a card has in the time in which memory moves a map and a quarter of bfloat16: all
# instructions a second (SMs x 128 lanes x 1.98 GHz) over elements of 2.5 bytes (4.3 TB/s measured, 3.35 x .9 TB/s).
ROOFS = {"H200": 19, "H100": 28}
SLACK = 1.03  # of a budget over what was counted when it was set
TRITON = "3.9"  # whose code of Triton's kernels was counted
OTHER_TRITON, OTHER_WARPS = 1.05, 4  # over these slots, and below these warps, another Triton's code may be


@dataclass(frozen=True)
class Budget:
    """At most so many issue slots an element at each side, wavefronts and sectors over the ideal; at least so many
    warps of a multiprocessor. Spills and atomics are 0 unless `local` says that there are some.
    """

    backend: str
    op: str
    layout: str
    dtype: str
    batch: str  # "1", or "full"
    rank: int  # spatial axes, all of one size
    window: int
    window_padding: int
    per_channel: bool
    slots: Mapping[int, float]  # side -> most
    wavefronts: float
    sectors: float
    warps: int
    local: bool
    reason: str

    @property
    def name(self) -> str:
        extra = f" window {self.window} padding {self.window_padding}" if self.window_padding else ""
        extra += " per channel" if self.per_channel else ""
        extra += " 3-D" if self.rank == 3 else ""
        return f"{self.backend} {self.op} {self.layout} {self.dtype}{extra}, batch {self.batch}"

    def launch(self, side: int) -> Launch:
        channels = SIZES[side]
        itemsize = DTYPES[self.dtype].itemsize
        images = 1 if self.batch == "1" else max(1, FULL // (channels * side**self.rank * itemsize))
        return Launch(
            self.op, self.dtype, self.layout, (images, channels, *[side] * self.rank), per_channel=self.per_channel,
            window=self.window, window_padding=self.window_padding, backend=self.backend,
        )  # fmt: skip

    def violations(self, side: int, counted: Counted) -> list[str]:
        """What a count exceeds."""
        slots, warps = self.slots[side], self.warps
        if self.backend == "triton" and not version("triton").startswith(f"{TRITON}."):
            slots, warps = slots * OTHER_TRITON, warps - OTHER_WARPS
        found = {
            "wrong result": (counted.correct is False, "", ""),
            "slots": (counted.slots > slots, counted.slots, slots),
            "wavefronts": (
                counted.wavefronts > self.wavefronts * counted.wavefronts_ideal,
                counted.wavefronts / max(counted.wavefronts_ideal, 1e-9),
                self.wavefronts,
            ),
            "sectors": (
                counted.sectors > self.sectors * counted.sectors_ideal,
                counted.sectors / counted.sectors_ideal,
                self.sectors,
            ),
            "warps": (counted.warps_per_sm < warps, counted.warps_per_sm, warps),
            "spills": (counted.spills > 0 and not self.local, counted.spills, 0),
            "atomics": (counted.atomics > 0, counted.atomics, 0),
        }
        return [f"{what} {value} ({most})" for what, (is_over, value, most) in found.items() if is_over]

    def reset(self, counted: Mapping[int, Counted]) -> Budget:
        """The same, set to what was counted."""

        def above(value: float) -> float:
            return math.ceil(value * SLACK * 100) / 100

        ratios = [c.wavefronts / c.wavefronts_ideal for c in counted.values() if c.wavefronts_ideal]
        kept = asdict(self) | {
            "slots": {side: above(c.slots) for side, c in counted.items()},
            "wavefronts": above(max(ratios, default=1 / SLACK)),
            "sectors": above(max(c.sectors / c.sectors_ideal for c in counted.values())),
            "warps": min(c.warps_per_sm for c in counted.values()),
            "local": any(c.spills for c in counted.values()),
        }
        return Budget(**kept)


def read() -> list[Budget]:
    with FILE.open(newline="") as file:
        return [
            Budget(
                backend=row["backend"],
                op=row["op"],
                layout=row["layout"],
                dtype=row["dtype"],
                batch=row["batch"],
                rank=int(row["rank"]),
                window=int(row["window"]),
                window_padding=int(row["window_padding"]),
                per_channel=row["per_channel"] == "True",
                slots={int(s.split(":")[0]): float(s.split(":")[1]) for s in row["slots"].split()},
                wavefronts=float(row["wavefronts"]),
                sectors=float(row["sectors"]),
                warps=int(row["warps"]),
                local=row["local"] == "True",
                reason=row["reason"],
            )
            for row in csv.DictReader(file)
        ]


def write(budgets: Iterable[Budget]) -> None:
    with FILE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(Budget))
        for budget in budgets:
            values = dict(zip((f.name for f in fields(Budget)), astuple(budget), strict=True))
            values["slots"] = " ".join(f"{side}:{most:g}" for side, most in budget.slots.items())
            writer.writerow(values.values())
