"""Reports for people: a table in the terminal, a picture."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..extras import require

if TYPE_CHECKING:
    from .audit import Report

HEADINGS = ("where", "what", "stride", "map", "filter", "aliased energy", "equivariance error", "source")


def by(sizes: tuple[float, ...]) -> str:
    """(2, 2) as 2, (2, 1) as 2x1, map sizes as 56x56."""
    shown = [f"{s:g}" for s in sizes]
    return shown[0] if len(set(shown)) == 1 and len(shown) > 1 and float(shown[0]) < 8 else "x".join(shown)


def cells(report: Report) -> list[list[str]]:
    """The table's rows, in the order of `HEADINGS`."""
    rows = []
    for s in report.sites:
        figures = ["-" if v is None else f"{v:.4f}" for v in (s.aliasing, s.equivariance)]
        sizes = "x".join(map(str, s.map_size))
        rows.append([s.name, s.kind, by(s.stride), f"{s.channels}x{sizes}", s.filter or "none", *figures, s.source])
    return rows


def summary(report: Report) -> str:
    many, name = len(report.sites), type(report.model).__name__
    about = "".join(f"; {what}: {where}" for what, where in report.about.items())
    return f"{name}: {many} sampling place{'s' * (many != 1)}, {len(report.unfiltered)} unfiltered{about}"


def text_table(headings: tuple[str, ...], rows: list[list[str]], title: str, width: int = 160) -> str:
    """A table as text, by rich; columns of plain text where rich is not installed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text  # plain: names in brackets are no markup
    except ImportError:
        lines = [list(headings), *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
        body = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([title, *body])
    made = Table(title=Text(title), title_justify="left")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=width)
    console.print(made)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # pyright: ignore


def as_text(report: Report) -> str:
    tables = [text_table(HEADINGS, cells(report), summary(report))]
    if report.upsampling:
        rows = [[u.name, u.kind, by(u.factor), u.filter or "none", u.source] for u in report.upsampling]
        tables.append(text_table(("where", "what", "factor", "filter", "source"), rows, "Upsampling"))
    return "\n".join(tables)


@contextmanager
def progress_bar(wanted: bool, title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A function to call with what is being done, after each of ``total`` steps; it shows nothing without rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        wanted = False
    if not wanted:
        yield lambda name: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda name: bar.update(task, advance=1, description=name)


def as_drawn(text: str) -> str:
    """A text that matplotlib draws as it is: dollars enclose no formula."""
    return text.replace("$", r"\$")


def plot(report: Report, path: str | Path, heatmaps: bool) -> None:
    """Bars of both figures a site; below them, if wanted, the heat maps of Zhang's Figure 5, one a site.

    Its scales are the same for all models, so that two pictures can be compared.
    """
    matplotlib = require("matplotlib", "a plot", "models")
    matplotlib.use("Agg", force=False)
    plt = require("matplotlib.pyplot", "a plot", "models")
    sites = report.sites
    names = [as_drawn(s.name) for s in sites]
    maps = report.heatmaps(progress=sys.stderr.isatty()) if heatmaps and sites else None
    columns = min(6, max(1, len(sites)))  # of heat maps
    rows = -(-len(sites) // columns) if maps is not None else 0
    bars = max(2.0, 0.3 * len(sites) + 1)
    figure = plt.figure(figsize=(12, bars + 2.3 * rows), layout="constrained")
    figure.suptitle(as_drawn(summary(report)), x=0.01, ha="left", fontsize=10)
    grid = figure.add_gridspec(1 + rows, 2 * columns, height_ratios=[bars, *[2.3] * rows])
    colour_of = {None: "tab:red", "weak": "tab:orange"}
    colours = [colour_of.get(s.filter, "tab:blue") for s in sites]
    figures = {
        "aliasing": ("energy above the new Nyquist limit", "fraction of the map's energy"),
        "equivariance": ("equivariance error", "squared difference, of the answer's energy"),
    }
    for i, (key, (title, label)) in enumerate(figures.items()):
        ax = figure.add_subplot(grid[0, i * columns : (i + 1) * columns])
        values = [getattr(s, key) for s in sites]
        ax.barh(range(len(sites)), [v or 0 for v in values], color=colours)
        for at in (at for at, v in enumerate(values) if v is None):
            ax.annotate("not measured", (0, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
        ax.set_yticks(range(len(sites)), names if i == 0 else [""] * len(sites), fontsize=8)
        ax.invert_yaxis()
        ax.set_xlim(left=0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(label, fontsize=8)
        ax.tick_params(axis="x", labelsize=8)
    names_of = {"tab:red": "no filter", "tab:orange": "weak filter", "tab:blue": "filtered"}
    for ax, right in zip(figure.axes, (1, 2), strict=True):  # no more than all; nothing in common
        ax.set_xlim(0, right)
    shown = [c for c in names_of if c in colours]
    handles = [plt.Rectangle((0, 0), 1, 1, color=c) for c in shown]
    figure.legend(handles, [names_of[c] for c in shown], fontsize=8, loc="outside lower left", ncols=3, frameon=False)
    image = None
    if maps is not None:
        scale = require("matplotlib.colors", "a plot", "models").LogNorm(1e-4, 2, clip=True)
        for i, name in enumerate(names):
            at = 2 * (i % columns)
            ax = figure.add_subplot(grid[1 + i // columns, at : at + 2])
            image = ax.imshow(maps[i].numpy(), origin="lower", norm=scale, cmap="magma")
            ax.set_title(name, fontsize=7)
            ax.tick_params(labelsize=6)
            ax.set_xlabel("shift to the right, px", fontsize=7)
            if at == 0:
                ax.set_ylabel("shift down, px", fontsize=7)
        bar = figure.colorbar(image, ax=figure.axes[2:], shrink=0.8)
        bar.set_label("equivariance error\nof the model up to there", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
