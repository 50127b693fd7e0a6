"""Figures of one or several results side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..models.show import as_drawn
from .extras import require
from .statistics import Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .result import Measurement, Result, Value

CONSISTENCIES = (Statistic.CONSISTENCY, Statistic.CONSISTENCY_ALL_PAIRS)
WORST = (Statistic.ACCURACY, Statistic.WORST_CASE)
Panel = tuple[str, float, float, Callable[["Axes"], None]]  # title, width and height in inches, what draws it


def panels(results: Sequence[Result]) -> list[Panel]:
    """What there is to draw."""
    found: list[Panel] = []
    if bars := _scalars(results, CONSISTENCIES):
        found.append(("Consistency under shifts", *_bar_size(results, bars), lambda ax: _bars(ax, results, bars)))
    if robust := _worst(results):
        found.append(
            ("Accuracy, and in the worst case", *_bar_size(results, robust), lambda ax: _bars(ax, results, robust))
        )
    if "diagonal shift" in _measured(results):
        found.append(("Confidence along the diagonal", 6.4, 3.6, lambda ax: _curves(ax, results, "diagonal shift")))
    for result in results:
        for name, title in (("shift grid", "Accuracy by shift"), ("translations x rotations", "Accuracy by rotation")):
            if (measured := result.measurements.get(name)) is None:
                continue
            if name == "shift grid":
                draw = partial(_grid, measured=measured, scale=_scale(results, name))
            else:
                draw = partial(_rotations, measured=measured)
            size = (4.6, 3.8) if name == "shift grid" else (6.4, 3.6)
            found.append((f"{title}: {result.model}", *size, draw))
        if maps := result.layers:
            columns = min(6, len(maps))
            size = (1.7 * columns, 1.9 * math.ceil(len(maps) / columns))
            found.append((f"Loss of equivariance by layer: {result.model}", *size, lambda ax, m=maps: _layers(ax, m)))
    if errors := {r.model: r.errors() for r in results if r.errors()}:
        found.append(("Error under corruptions", 9.0, 3.8, lambda ax: _kinds(ax, errors, "error")))
    if flips := {r.model: r.flip_rates() for r in results if r.flip_rates()}:
        found.append(("Flip rate along sequences", 9.0, 3.6, lambda ax: _kinds(ax, flips, "flip rate")))
    return found


def figure(panel: Panel) -> Figure:
    """One panel, on a figure of its own."""
    figures = require("matplotlib.figure", "a plot")
    title, width, height, draw = panel
    made = figures.Figure(figsize=(width, height), layout="constrained")
    ax = made.add_subplot()
    ax.set_title(as_drawn(title), fontsize=10)
    draw(ax)
    return made


def plot(results: Sequence[Result], path: str | PathLike[str] | None = None) -> Figure:
    """All figures of results side by side on one sheet.

    Args:
        results: of `measure`, on the same data.
        path: where to save it (.png, .svg, .pdf); None does not.

    Returns:
        A matplotlib Figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    figures = require("matplotlib.figure", "a plot")
    all_panels = panels(results)
    if not all_panels:
        raise ValueError("plot: nothing that was measured has a figure")
    origins = {r.model: (r.settings.get("weights"), r.settings.get("data")) for r in results}
    said = [f"{model} (weights: {weights}; data: {data})" for model, (weights, data) in origins.items() if weights]
    columns = min(2, len(all_panels))
    rows = math.ceil(len(all_panels) / columns)
    made = figures.Figure(figsize=(7.2 * columns, 3.9 * rows), layout="constrained")
    if said:
        made.suptitle(as_drawn("\n".join(said)), fontsize=9)
    for i, (title, _, _, draw) in enumerate(all_panels):
        ax = made.add_subplot(rows, columns, i + 1)
        ax.set_title(as_drawn(title), fontsize=10)
        draw(ax)
    if path is not None:
        made.savefig(path, dpi=120)
    return made


def _measured(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for r in results for name in r.measurements))


Bars = list[tuple[str, str, Statistic]]  # label, perturbation, statistic


def _scalars(results: Sequence[Result], statistics: Sequence[Statistic]) -> Bars:
    return [
        (name, name, statistic)
        for name in _measured(results)
        for statistic in statistics
        if any(r.measurements[name].values.get(statistic.value) for r in results if name in r.measurements)
    ]


def _worst(results: Sequence[Result]) -> Bars:
    worst = [(f"worst case of\n{n}", n, s) for _, n, s in _scalars(results, [Statistic.WORST_CASE])]
    clean: Bars = [("clean", "clean", Statistic.ACCURACY)] if "clean" in _measured(results) else []
    return clean + worst if worst else []


def _in_per_cent(ax: Axes) -> None:
    """Fractions are drawn, and written in per cent, as in the tables."""
    ax.yaxis.set_major_formatter(require("matplotlib.ticker", "a plot").PercentFormatter(1))


def _bar_size(results: Sequence[Result], bars: Bars) -> tuple[float, float]:
    return 1.6 + max(3.4, 0.5 * len(bars) * (len(results) + 1)), 3.6


def _bars(ax: Axes, results: Sequence[Result], bars: Bars) -> None:
    """A group for each quantity, a bar for each model, with 95 % intervals."""
    bars_of = []
    for j, result in enumerate(results):
        here = [(i, _only(result, name, statistic)) for i, (_, name, statistic) in enumerate(bars)]
        drawn = [(i + (j + 0.5) / (len(results) + 1) - 0.5, v) for i, v in here if v is not None]
        made = ax.bar(
            [x for x, _ in drawn], [v.mean for _, v in drawn], 0.9 / (len(results) + 1),
            yerr=[_half(v) for _, v in drawn], capsize=2, align="edge",
        )  # fmt: skip
        for bar, (_, v) in zip(made, drawn, strict=True):  # at its foot, where the interval seldom is
            box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "boxstyle": "round,pad=0.15"}
            at = (bar.get_x() + bar.get_width() / 2, 0.02)
            ax.text(*at, f"{100 * v.mean:.1f}", fontsize=7, ha="center", bbox=box, zorder=5)
        bars_of.append((made, result.model))
    ax.set_xticks(range(len(bars)), [as_drawn(label) for label, _, _ in bars], fontsize=8)
    ax.set_ylim(0, 1)
    _in_per_cent(ax)
    ax.grid(axis="y", alpha=0.3)
    _several(ax, bars_of)


def _only(result: Result, name: str, statistic: Statistic) -> Value | None:
    measured = result.measurements.get(name)
    values = measured.values.get(statistic.value) if measured else None
    return values[0] if values else None


def _half(value: Value) -> float:
    """Half a 95 % interval; 0 where one image tells nothing of it."""
    return 0.0 if math.isnan(value.standard_error) else 1.96 * value.standard_error


def _curves(ax: Axes, results: Sequence[Result], name: str) -> None:
    """Probability of the label, with its 95 % band, and dotted the largest of the other classes."""
    lines = []
    for result in results:
        if (measured := result.measurements.get(name)) is None:
            continue
        x = [int(view) for view in measured.views]
        true, wrong = (measured.values[s.value] for s in (Statistic.CONFIDENCE_BY_VIEW, Statistic.WRONG_BY_VIEW))
        (line,) = ax.plot(x, [v.mean for v in true])
        lines.append((line, result.model))
        low, high = [v.mean - _half(v) for v in true], [v.mean + _half(v) for v in true]
        ax.fill_between(x, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        ax.plot(x, [v.mean for v in wrong], ":", color=line.get_color())
    ax.set_xlabel("diagonal shift, px")
    ax.set_ylabel("probability\n(dotted: largest wrong class)", fontsize=8)
    ax.set_ylim(0, 1)
    _in_per_cent(ax)
    ax.grid(alpha=0.3)
    _several(ax, lines)


def _scale(results: Sequence[Result], name: str) -> tuple[float, float]:
    """From the least to the largest accuracy of any model at any view, so that maps can be compared."""
    measured = [r.measurements[name] for r in results if name in r.measurements]
    means = [v.mean for m in measured for v in m.values[Statistic.ACCURACY_BY_VIEW.value]]
    return min(means), max(means)


def _grid(ax: Axes, measured: Measurement, scale: tuple[float, float]) -> None:
    """Accuracy at each shift around the middle; `scale`: that of the colours."""
    reach, step = measured.settings["range"], measured.settings["step"]
    side = reach // step + 1
    means = [v.mean for v in measured.values[Statistic.ACCURACY_BY_VIEW.value]]
    half = reach / 2 + step / 2
    image = ax.imshow(
        [means[i * side : (i + 1) * side] for i in range(side)],
        extent=(-half, half, half, -half),
        cmap="viridis",
        aspect="auto",
        vmin=scale[0],
        vmax=scale[1],
    )
    ax.set_xlabel("shift to the left, px")
    ax.set_ylabel("shift up, px")
    _in_per_cent(ax.figure.colorbar(image, ax=ax, label="accuracy").ax)


def _rotations(ax: Axes, measured: Measurement) -> None:
    """Accuracy by angle: the mean over translations, and the range over them."""
    of = measured.settings
    means = [v.mean for v in measured.values[Statistic.ACCURACY_BY_VIEW.value]]
    count = of["rotations"]
    every = len(means) // count
    groups = [means[i * every : (i + 1) * every] for i in range(count)]
    angles = [0.0] if count == 1 else [of["rotation"] * (2 * i / (count - 1) - 1) for i in range(count)]
    ax.fill_between(angles, [min(g) for g in groups], [max(g) for g in groups], alpha=0.2, linewidth=0)
    ax.plot(angles, [sum(g) / every for g in groups], marker=".", label="mean over translations (band: all of them)")
    ax.set_xlabel("rotation, degrees")
    ax.set_ylabel("accuracy")
    ax.set_ylim(0, 1)
    _in_per_cent(ax)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)


def _layers(ax: Axes, maps: dict[str, list[list[float]]]) -> None:
    """A small heat map for each place that samples: shift down by shift right, on one scale."""
    columns = min(6, len(maps))
    rows = math.ceil(len(maps) / columns)
    ax.set_axis_off()
    for i, (name, errors) in enumerate(maps.items()):
        row, column = divmod(i, columns)
        inset = ax.inset_axes((column / columns, 1 - (row + 1) / rows, 0.86 / columns, 0.72 / rows))
        inset.imshow(errors, vmin=0, vmax=2, cmap="magma", origin="lower")
        inset.set_title(as_drawn(name).replace(" (", "\n("), fontsize=6)
        inset.set_xticks([0, len(errors) - 1])
        inset.set_yticks([0, len(errors) - 1])
        inset.tick_params(labelsize=6, length=2)


def _kinds(ax: Axes, values: dict[str, dict[str, float]], what: str) -> None:
    """A group of bars for each kind, a bar for each model."""
    kinds = list(dict.fromkeys(kind for found in values.values() for kind in found))
    bars = []
    for j, (model, found) in enumerate(values.items()):
        x = [i + j / (len(values) + 1) for i in range(len(kinds))]
        bars.append((ax.bar(x, [found.get(kind, math.nan) for kind in kinds], 0.9 / (len(values) + 1)), model))
    ax.set_xticks(
        range(len(kinds)), [as_drawn(kind).replace("_", " ") for kind in kinds], rotation=35, ha="right", fontsize=8
    )
    ax.set_ylabel(what)
    _in_per_cent(ax)
    ax.grid(axis="y", alpha=0.3)
    _several(ax, bars)


def _several(ax: Axes, drawn: list[tuple[Any, str]]) -> None:
    """A legend below the axes, where there are several models: what was drawn of each, and its name."""
    if len(drawn) > 1:
        handles, names = zip(*drawn, strict=True)
        below = -0.38 if any(label.get_rotation() for label in ax.get_xticklabels()) else -0.2
        columns = 1 if max(map(len, names)) > 24 else min(len(names), 4)
        ax.legend(
            handles,
            [as_drawn(name) for name in names],
            fontsize=8,
            loc="upper center",
            bbox_to_anchor=(0.5, below),
            ncols=columns,
        )
