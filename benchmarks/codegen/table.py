"""Counts every launch that has a budget, in two processes, and prints what was counted beside it."""

from __future__ import annotations

import csv
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from . import budgets, interpreter
from .budgets import Budget
from .launches import Counted, Launch, count

RESULTS = Path(__file__).resolve().parent.parent / "results/codegen-sm90.csv"


def _count(launch: Launch) -> Counted:
    return count(launch)[0]


def _start() -> None:
    import torch

    torch.set_num_threads(1)


def measure(wanted: Sequence[Budget]) -> Sequence[Mapping[int, Counted]]:
    """Of each budget: side -> what its launch issued."""
    places = [(i, side) for i, budget in enumerate(wanted) for side in budget.slots]
    launches = [wanted[i].launch(side) for i, side in places]
    found: list[dict[int, Counted]] = [{} for _ in wanted]
    # Each process reads the listing of a dtype's kernels, of 50 MB: neighbours in the list share it.
    with multiprocessing.get_context("spawn").Pool(min(4, os.cpu_count() or 1), _start) as pool:
        counts = track(pool.imap(_count, launches, 4), "launches", len(launches), console=Console(stderr=True))
        for (i, side), counted in zip(places, counts, strict=True):
            found[i][side] = counted
    return found


def _write(path: Path, wanted: Sequence[Budget], found: Sequence[Mapping[int, Counted]]) -> None:
    with path.open("w", newline="") as file:
        writer = None
        for budget, counts in zip(wanted, found, strict=True):
            for side, counted in counts.items():
                row = {"budget": budget.name, "shape": "x".join(map(str, budget.launch(side).shape)), "side": side}
                row |= {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(counted).items()}
                row["over"] = "; ".join(budget.violations(side, counted))
                if writer is None:
                    writer = csv.DictWriter(file, row, lineterminator="\n")
                    writer.writeheader()
                writer.writerow(row)


def _table(wanted: Sequence[Budget], found: Sequence[Mapping[int, Counted]]) -> Table:
    roofs = ", ".join(f"{slots} on an {card}" for card, slots in budgets.ROOFS.items())
    title = (
        f"Issue slots an element of the larger map, whole launches on sm_90 (budget). Memory allows {roofs} in bf16."
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("launch")
    for side in budgets.SIZES:
        table.add_column(f"{side} px", justify="right")
    for name in ("of the roof", "wavefronts / ideal", "sectors / ideal", "warps an SM", "waves, least", "local"):
        table.add_column(name, justify="right")
    for budget, counts in zip(wanted, found, strict=True):
        cells = [f"{counts[s].slots:.3g} ({budget.slots[s]:.3g})" if s in counts else "" for s in budgets.SIZES]
        roof = budgets.ROOFS["H200"] * (2 if budget.dtype == "fp32" else 1)
        slots, banks = [c.slots for c in counts.values()], [c for c in counts.values() if c.wavefronts_ideal]
        conflicts = f"{max(c.wavefronts / c.wavefronts_ideal for c in banks):.2f}" if banks else ""
        table.add_row(
            budget.name, *cells, f"{max(slots) / roof:.1f}x", conflicts,
            f"{max(c.sectors / c.sectors_ideal for c in counts.values()):.2f}",
            str(min(c.warps_per_sm for c in counts.values())), f"{min(c.waves for c in counts.values()):.2g}",
            str(max(c.spills for c in counts.values())),
        )  # fmt: skip
    return table


def main(update: bool, path: Path | None, only: str) -> int:
    """Counts, prints and writes; 1 where a budget is exceeded."""
    has_cuda = interpreter.LIBRARY.exists()
    wanted = [b for b in budgets.read() if only in b.name and (has_cuda or b.backend != "cuda")]
    found = measure(wanted)
    Console(width=200).print(_table(wanted, found))
    if not has_cuda:
        print("the CUDA kernels were left out: build/machine_code has none, which needs nvcc")
    _write(path or RESULTS, wanted, found)
    print(f"wrote {path or RESULTS}")
    if update:
        reset = {b.name: b.reset(counts) for b, counts in zip(wanted, found, strict=True)}
        budgets.write(reset.get(b.name, b) for b in budgets.read())
        return 0
    over = [
        f"{b.name}, {side} px: {violation}"
        for b, counts in zip(wanted, found, strict=True)
        for side, counted in counts.items()
        for violation in b.violations(side, counted)
    ]
    print("\n".join(over) or "all within their budgets")
    return int(bool(over))
