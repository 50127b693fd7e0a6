"""Writes the README's table of figures of a CPU or a GPU, and its picture, from a results file:
python -m benchmarks.readme RESULTS.csv README.md"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .page import fill
from .plots import draw_speedups
from .providers import EAGER_NCHW, OURS
from .record import OK, Measurement, read
from .report import COPY_TIME, OF_COMPILED, OF_COPY, OF_EAGER, SAVED, Row, groups

BESIDE_COPY = {  # of a device: the column's title, and what stands in it
    "cpu": ("over `copy_` of the input", COPY_TIME, "{:.2g}x"),
    "cuda": ("bandwidth, of a copy's", OF_COPY, "{:.0%}"),
}


def _saved(rows: Sequence[Row]) -> str:
    eager = [row[EAGER_NCHW].saved_of_input or 0 for row in rows if EAGER_NCHW in row]
    mine = SAVED.over(rows)
    beside = f" ({max(eager):.2g})" if eager else ""
    return "" if mine is None else f"{mine:.2g}{beside}"


def table(measurements: Sequence[Measurement], device: str) -> str:
    """Geometric means by op, pass, layout and dtype, of rows beyond the cache in which aablur's result was right.
    float16 has no row: it differs from bfloat16 by conversions alone, and one map of it is measured."""
    title, beside_copy, form = BESIDE_COPY[device]
    lines = [
        f"| maps beyond the cache | {title} | faster than eager, its better layout | than `torch.compile` "
        "| saved for backward, of the input (eager) |\n|---|---|---|---|---|\n"
    ]
    shown = [m for m in measurements if m.dtype != "float16"]
    for rows in groups(shown):
        right = [row for row in rows if row[OURS].regime == "memory" and row[OURS].status == OK]
        if right:
            m = right[0][OURS]
            forms = {beside_copy: form, OF_EAGER: "{:.2g}x", OF_COMPILED: "{:.2g}x"}
            values = ((quantity.over(right), form) for quantity, form in forms.items())
            cells = ["-" if value is None else form.format(value) for value, form in values]
            cells = [f"`{m.op}` {m.direction}, {m.layout}, {m.dtype}", *cells, _saved(right)]
            lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def source(about: dict[str, str]) -> str:
    on_cpu = f" ({about['threads']} threads, {about['isa']})" if about["device"] == "cpu" else ""
    return (
        f"\nGeometric means, `make bench` on {about['hardware']}{on_cpu}, torch {about['torch']}, "
        f"commit {about['commit']}, {about['date']}.\n"
    )


def main(results: str, readme: str) -> None:
    measurements, about = read(Path(results))
    device = about["device"]
    fill(Path(readme), f"figures-{device}", table(measurements, device) + source(about))
    draw_speedups(measurements, about, Path(readme).parent / f"docs/speedup-{device}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
