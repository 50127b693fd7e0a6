"""Writes the README's table of figures, and its picture, from a results file:
python -m benchmarks.readme RESULTS.csv README.md"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .page import fill
from .plots import draw_speedups
from .providers import EAGER_NCHW, OURS
from .record import OK, Measurement, read
from .report import COPY_TIME, OF_COMPILED, OF_EAGER, SAVED, Row, groups

HEAD = (
    "| maps beyond the cache | over `copy_` of the input | faster than eager, its better layout | than `torch.compile` "
    "| saved for backward, of the input (eager) |\n|---|---|---|---|---|\n"
)


def _saved(rows: Sequence[Row]) -> str:
    eager = [row[EAGER_NCHW].saved_of_input or 0 for row in rows if EAGER_NCHW in row]
    mine = SAVED.over(rows)
    return "" if mine is None else f"{mine:.2g} ({max(eager):.2g})"


def table(measurements: Sequence[Measurement]) -> str:
    """Geometric means by op, pass, layout and dtype, of rows beyond the cache in which aablur's result was right."""
    lines = []
    for rows in groups(measurements):
        right = [row for row in rows if row[OURS].regime == "memory" and row[OURS].status == OK]
        if right:
            m = right[0][OURS]
            values = (quantity.over(right) for quantity in (COPY_TIME, OF_EAGER, OF_COMPILED))
            cells = ["-" if v is None else f"{v:.2g}x" for v in values]
            cells = [f"`{m.op}` {m.direction}, {m.layout}, {m.dtype}", *cells, _saved(right)]
            lines.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(lines)


def source(about: dict[str, str]) -> str:
    on_cpu = f" ({about['threads']} threads, {about['isa']})" if about["device"] == "cpu" else ""
    return (
        f"\nGeometric means, `make bench` on {about['hardware']}{on_cpu}, torch {about['torch']}, "
        f"commit {about['commit']}, {about['date']}.\n"
    )


def main(results: str, readme: str) -> None:
    measurements, about = read(Path(results))
    fill(Path(readme), "figures", table(measurements) + source(about))
    draw_speedups(measurements, about, Path(readme).parent / "docs/speedup-memory.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
