"""Prints what nvcc and Triton make of the hot GPU kernels, beside their budgets, and writes it to results/."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from . import cuda_kernels, triton_kernels

RESULTS = Path(__file__).resolve().parent.parent / "results/codegen-sm90.csv"
COLUMNS = ("instructions", "registers", "wide_loads", "wide_stores")
TITLES = (
    "kernel",
    "instructions an element",
    "registers",
    "16-byte loads",
    "16-byte stores",
    "of ALU",
    "spills, stack",
)


def table_of(title: str, rows: Iterable[tuple[str, Any, Any]]) -> Table:
    """What was counted, each beside its budget."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in TITLES:
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for what, budget, code in rows:
        cells = (f"{getattr(code, c):.3g} ({getattr(budget, c)})" for c in COLUMNS)
        spills = getattr(code, "spilled_bytes", 0) + code.local
        table.add_row(what, *cells, f"{code.alu:.3g}", f"{spills} (0)")
    return table


def main() -> int:
    codes, console = cuda_kernels.measure(), Console(width=130)
    title = "CUDA kernels for sm_90: 3 taps, stride 2, window 2 with codes (budget)"
    console.print(table_of(title, ((b.name, b, codes[b.name]) for b in cuda_kernels.BUDGETS)))
    cuobjdump = cuda_kernels.tool("cuobjdump")
    assert cuobjdump
    title = "Triton kernels for sm_90, their loop over rows (budget)"
    found = [(b.what, b, triton_kernels.measure(b, cuobjdump)) for b in triton_kernels.BUDGETS]
    console.print(table_of(title, found))
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("what", "kernel", *COLUMNS, "alu"))
        rows: list[tuple[str, str, Any]] = [(b.name, b.kernel, codes[b.name]) for b in cuda_kernels.BUDGETS]
        rows += [(f"triton {what}", budget.op, code) for what, budget, code in found]
        for what, kernel, code in rows:
            counts = (getattr(code, column) for column in COLUMNS[1:])
            writer.writerow((what, kernel, f"{code.instructions:.4g}", *counts, f"{code.alu:.4g}"))
        print(f"wrote {file.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
