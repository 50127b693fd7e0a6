"""Writes the README's table of figures, and its picture, from a results file:
python -m benchmarks.readme RESULTS.csv README.md"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from statistics import geometric_mean

from .page import fill
from .plots import draw_speedups
from .record import read

HEAD = (
    "| maps beyond the cache | over `copy_` of the input | faster than eager, its better layout | than `torch.compile` "
    "| saved for backward, of the input (eager) |\n|---|---|---|---|---|\n"
)

Row = dict[str, dict[str, str]]  # provider -> measurement


def rows_of(path: Path) -> list[Row]:
    """The rows beyond the cache in which aablur's result was right."""
    rows: dict[str, Row] = {}
    with path.open() as file:
        for measurement in csv.DictReader(file):
            if measurement["regime"] == "memory":
                rows.setdefault(measurement["name"], {})[measurement["provider"]] = measurement
    return [row for row in rows.values() if row["aablur"]["status"] == "ok"]


def _ms(row: Row, *providers: str) -> float | None:
    """The least time of those providers that have one."""
    return min((float(row[p]["ms"]) for p in providers if p in row and row[p]["ms"]), default=None)


def _mean(row_values: list[float | None]) -> str:
    values = [v for v in row_values if v is not None]
    return f"{geometric_mean(values):.2g}x" if values else "-"


def _saved(rows: list[Row], provider: str) -> str:
    values = [float(row[provider]["saved_of_input"]) for row in rows if row[provider]["saved_of_input"]]
    return f"{max(values):.2g}" if values else "-"


def table(rows: list[Row]) -> str:
    """Geometric means by op, pass, layout and dtype."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        ours = row["aablur"]
        groups.setdefault((ours["op"], ours["pass"], ours["layout"], ours["dtype"]), []).append(row)
    lines = []
    for (op, direction, layout, dtype), group in groups.items():
        copies = [_over(_ms(row, "aablur"), _ms(row, "copy")) for row in group]
        eager = [_over(_ms(row, "eager NCHW", "eager channels_last"), _ms(row, "aablur")) for row in group]
        compiled = [_over(_ms(row, "compile"), _ms(row, "aablur")) for row in group]
        saved = f"{_saved(group, 'aablur')} ({_saved(group, 'eager NCHW')})" if "backward" in direction else ""
        name = f"`{op}` {direction}, {layout}, {dtype}"
        lines.append(f"| {name} | {_mean(copies)} | {_mean(eager)} | {_mean(compiled)} | {saved} |\n")
    return HEAD + "".join(lines)


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def source(rows: list[Row]) -> str:
    ours = rows[0]["aablur"]
    return (
        f"\nGeometric means, `make bench` on {ours['device']} "
        f"({ours['threads']} threads, {ours['isa']}), torch {ours['torch']}, commit {ours['commit']}, {ours['date']}.\n"
    )


def main(results: str, readme: str) -> None:
    rows = rows_of(Path(results))
    fill(Path(readme), "figures", table(rows) + source(rows))
    draw_speedups(*read(Path(results)), Path(readme).parent / "docs/speedup-memory.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
