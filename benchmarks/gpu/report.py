"""What a GPU run says at its end: bars, ratios, losses, and two pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean

from .providers import COMPILED, EAGER, OURS, TRITON
from .record import Measurement
from .rows import DIRECTIONS, LAYOUTS, OPS, Row

Group = dict[str, Measurement]  # provider -> measurement, of one row


def rows_of(measurements: Iterable[Measurement]) -> list[Group]:
    return [{m.provider: m for m in group} for _, group in groupby(measurements, key=lambda m: m.name)]


def _ms(row: Group, names: Iterable[str]) -> float | None:
    """The least time of those providers that have one."""
    return min((ms for n in names if n in row and (ms := row[n].ms)), default=None)


def _mean(values: Iterable[float | None]) -> str:
    found = [v for v in values if v is not None]
    return f"{geometric_mean(found):.2f}" if found else "-"


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a and b else None


def summary(measurements: list[Measurement]) -> Iterator[tuple[str, ...]]:
    """A line an op, direction, layout and dtype: geometric means over its rows."""
    yield ("op", "direction", "layout", "dtype", "rows", "of copy", "least", "eager x", "compile x", "triton of copy")
    key = lambda row: (row[OURS].op, row[OURS].direction, row[OURS].layout, row[OURS].dtype)  # noqa: E731
    rows = sorted((r for r in rows_of(measurements) if OURS in r and r[OURS].ms), key=key)
    for names, group in groupby(rows, key=key):
        group = list(group)
        of_copy = [r[OURS].of_copy for r in group]
        least = min(v for v in of_copy if v is not None)
        eager = _mean(_over(_ms(r, EAGER), r[OURS].ms) for r in group)
        compiled = _mean(_over(_ms(r, COMPILED), r[OURS].ms) for r in group)
        triton = _mean(r[TRITON].of_copy if TRITON in r else None for r in group)
        yield (*names, str(len(group)), _mean(of_copy), f"{least:.2f}", eager, compiled, triton)


def _row_of(m: Measurement) -> Row:
    n, c, h, w = map(int, m.shape.split("x"))
    return Row(m.group, m.op, m.direction, m.dtype, m.layout, (n, c, h, w))


def losses(measurements: list[Measurement]) -> Iterator[str]:
    """Rows in which a baseline is faster, or that miss their bar, or are wrong; and why a provider failed."""
    for row in rows_of(measurements):
        ours = row.get(OURS)
        for m in row.values():
            if m.status != "ok":
                yield f"{m.status}: {m.provider}, {m.name}"
        if ours is None or not ours.ms:
            continue
        best = _ms(row, (*EAGER, *COMPILED))
        if best and best < ours.ms:
            yield f"slower than the best baseline by {ours.ms / best:.2f}x: {ours.name}"
        bar = _row_of(ours).bar
        if ours.of_copy is not None and ours.of_copy < bar:
            yield f"{ours.of_copy:.2f} of the copy's bandwidth, {bar} asked: {ours.name}"


def aligned(lines: Iterable[tuple[str, ...]]) -> str:
    """A table in plain text."""
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def draw(measurements: list[Measurement], stem: Path, about: str) -> list[Path]:
    """Two pictures: per cent of the copy's bandwidth a map, and times faster than eager and torch.compile."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows_of(measurements) if OURS in r and r[OURS].ms and r[OURS].group != "huge"]
    paths = []
    for picture in ("bandwidth", "speedup"):
        figure, grid = plt.subplots(
            len(OPS) * len(DIRECTIONS), len(LAYOUTS), figsize=(16, 16), squeeze=False, layout="constrained"
        )
        for axes, (op, direction, layout) in zip(
            grid.flat, ((o, d, lay) for o in OPS for d in DIRECTIONS for lay in LAYOUTS), strict=True
        ):
            panel = [r for r in rows if (r[OURS].op, r[OURS].direction, r[OURS].layout) == (op, direction, layout)]
            if panel:
                (_bandwidth if picture == "bandwidth" else _speedup)(axes, panel)
            axes.set_title(f"{op}, {direction}, {layout}", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(about, x=0.01, ha="left", fontsize=11)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, frameon=False)
        paths.append(stem.with_name(f"{stem.name}-{picture}.png"))
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths


def _ticks(axes, panel: list[Group]) -> dict[str, int]:
    labels = list(dict.fromkeys("x".join(r[OURS].shape.split("x")[1:]) for r in panel))
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=8)
    return {label: i for i, label in enumerate(labels)}


def _bandwidth(axes, panel: list[Group]) -> None:
    places = _ticks(axes, panel)
    for provider, marker in ((OURS, "o"), (TRITON, "^")):
        for dtype, colour in (("bfloat16", "#d0103a"), ("float32", "#1f5a99"), ("float16", "#e69f00")):
            points = [
                (places["x".join(r[provider].shape.split("x")[1:])], 100 * (r[provider].of_copy or 0))
                for r in panel
                if provider in r and r[provider].ms and r[provider].dtype == dtype
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), c=colour, marker=marker, label=f"{provider} {dtype}")
    axes.axhline(100, color="black", linewidth=0.8)
    axes.set_ylim(0, 115)
    axes.set_ylabel("% of the copy's bandwidth")


def _speedup(axes, panel: list[Group]) -> None:
    places = _ticks(axes, panel)
    for names, label, colour in ((EAGER, "eager, its best", "#1f5a99"), (COMPILED, "torch.compile", "#e69f00")):
        for dtype, marker in (("bfloat16", "o"), ("float32", "s"), ("float16", "^")):
            points = [
                (places["x".join(r[OURS].shape.split("x")[1:])], ratio)
                for r in panel
                if r[OURS].dtype == dtype and (ratio := _over(_ms(r, names), r[OURS].ms))
            ]
            if points:
                axes.scatter(*zip(*points, strict=True), c=colour, marker=marker, label=f"{label}, {dtype}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("its time / aablur's")
