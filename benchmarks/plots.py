"""Figures of a run: how much faster than the best baseline, and how near to the byte floor."""

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .providers import BASELINES, OURS, PROVIDERS
from .record import Measurement
from .report import SPEEDUP, Row, rows_of
from .workloads import DTYPES, HUGE, LAYOUTS, MOVES, OPS, REGIMES

DPI = 150
KINDS = tuple(itertools.product(LAYOUTS, DTYPES))
KIND_COLOURS = ("#1f5a99", "#8fbce6", "#c6dff5", "#b3541e", "#f0b183", "#f9ddc9")
# Okabe-Ito, which colour-blind readers can tell apart; what is on a GPU alone in other markers.
PROVIDER_STYLES: dict[str, tuple[str, str]] = dict(
    zip(
        (who.name for who in PROVIDERS),
        (
            *(("#888888", "|"), ("#d0103a", "o"), ("#d0103a", "v"), ("#e69f00", "s"), ("#56b4e9", "D")),
            *(("#0072b2", "d"), ("#009e73", "^"), ("#009e73", "<"), ("#888888", "x"), ("#888888", "+")),
        ),
        strict=True,
    )
)


def _plain(value: float, _position: int = 0) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _times(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _size(row: Row) -> str:
    """64 x 112² of 24x64x112x112: the map without its batch."""
    _, channels, height, width = row[OURS].shape.split("x")
    return f"{channels} x {height}²" if height == width else f"{channels} x {height} x {width}"


def _rows(measurements: list[Measurement], regime: str, op: str, direction: str) -> list[Row]:
    wanted = (m for m in measurements if (m.regime, m.op, m.direction) == (regime, op, direction))
    return [row for row in rows_of(wanted) if OURS in row and row[OURS].ms is not None and row[OURS].group != HUGE]


def _kind(row: Row) -> tuple[str, str]:
    return row[OURS].layout, row[OURS].dtype


def _speedup_panel(axes: Axes, rows: list[Row], op: str, direction: str) -> None:
    """A group of bars a map, a bar a layout and dtype, from 1 up and down on a logarithmic scale."""
    groups: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        if (height := SPEEDUP.value(row)) is not None:
            groups.setdefault(_size(row), {})[_kind(row)] = height
    width = 0.85 / max(map(len, groups.values()), default=1)
    for kind, colour in zip(KINDS, KIND_COLOURS, strict=True):
        heights = {  # bars that are there stand side by side, over the map's name
            place + (list(group).index(kind) - (len(group) - 1) / 2) * width: group[kind]
            for place, group in enumerate(
                dict(sorted(g.items(), key=lambda k: KINDS.index(k[0]))) for g in groups.values()
            )
            if kind in group
        }
        if heights:
            tops = [h - 1 for h in heights.values()]
            drawn = axes.bar(list(heights), tops, width * 0.94, 1, color=colour, label=" ".join(kind))
            axes.bar_label(drawn, [_times(h) for h in heights.values()], fontsize=8, padding=2)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(groups)), list(groups))
    axes.margins(y=0.12)


def _floor_panel(axes: Axes, rows: list[Row], op: str, direction: str) -> None:
    """A line a row, a marker a provider, under a heading a layout and dtype."""
    ticks: list[str] = []
    for kind in KINDS:
        same = [row for row in rows if _kind(row) == kind]
        if not same:
            continue
        ticks.append(" ".join(kind))
        for row in same:
            times = [(m.floor_ratio, name) for name, m in row.items() if m.floor_ratio is not None]
            place = len(ticks)
            axes.plot([min(times)[0], max(times)[0]], [place] * 2, color="#dddddd", zorder=1)
            for ratio, name in times:
                colour, marker = PROVIDER_STYLES[name]
                axes.scatter(ratio, place, s=34, c=colour, marker=marker, label=name, zorder=3)
            ticks.append(_size(row))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(ticks)), ticks, fontsize=8)
    for label in axes.get_yticklabels():
        if " x " not in label.get_text():
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel("time / (minimal bytes / bandwidth of copy_)")


Panel = Callable[[Axes, list[Row], str, str], None]


def _figure(
    panels: Mapping[tuple[str, str], list[Row]],
    panel: Panel,
    title: str,
    size: tuple[float, float],
    path: Path,
    height: str = "",
) -> Path:
    """One panel an op and pass, and one legend for all below them. All share one scale if it has a name, `height`."""
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(size[0] * columns, size[1] * lines + 1),
        squeeze=False,
        layout="constrained",
        sharey=bool(height),
    )
    figure.supylabel(height, fontsize=10)
    legend: dict[str, Artist] = {}
    for axes, place in itertools.zip_longest(grid.flat, panels):
        if place is None:
            axes.set_visible(False)
            continue
        panel(axes, panels[place], *place)
        axes.set_title(", ".join(place), fontsize=11, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower left",
        ncols=3 if columns == 1 else len(legend),
        frameon=False,
    )
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _about(about: dict[str, str]) -> str:
    on_cpu = f", {about['threads']} threads, {about['isa']}" if about["device"] == "cpu" else ""
    kept = ", freed memory kept" * (about["freed_memory"] == "kept")
    return f"{about['hardware']}{on_cpu}, torch {about['torch']}, aablur {about['commit']}, {about['date']}{kept}"


def _panels(measurements: list[Measurement], regime: str) -> dict[tuple[str, str], list[Row]]:
    return {place: rows for place in itertools.product(OPS, MOVES) if (rows := _rows(measurements, regime, *place))}


def draw_speedups(measurements: list[Measurement], about: dict[str, str], path: Path, regime: str = "memory") -> Path:
    """The picture of the README: how much faster than the best baseline, map by map."""
    panels = _panels(measurements, regime)
    against = [
        name for name in BASELINES if any(name in row and row[name].ms for rows in panels.values() for row in rows)
    ]
    title = f"Times faster than the fastest of {', '.join(against)}: maps {REGIMES[regime]}\n{_about(about)}"
    maps = max(len({_size(row) for row in rows}) for rows in panels.values())
    size = (max(7.5, 1.25 * maps), 3.2)
    return _figure(panels, _speedup_panel, title, size, path, "best baseline's time / aablur's")


def draw(measurements: list[Measurement], stem: Path, about: dict[str, str]) -> list[Path]:
    """Write the figures that have data beside the CSV, and name them."""
    paths = []
    for regime, where in REGIMES.items():
        panels = _panels(measurements, regime)
        if not panels:
            continue
        path = stem.with_name(f"{stem.name}-speedup-{regime}.png")
        paths.append(draw_speedups(measurements, about, path, regime))
        if regime == "memory":
            title = f"Time over the byte floor (at 1, as fast as memory): maps {where}\n{_about(about)}"
            path = stem.with_name(f"{stem.name}-floor.png")
            most = max(len(rows) for rows in panels.values()) + len(KINDS)
            size = (6.5, 0.19 * most + 0.9)
            paths.append(_figure(panels, _floor_panel, title, size, path))
    return paths
