"""Tables and figures of one or several results in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from os import PathLike

from ..files import write_text
from ..models.loading import RANDOM
from .corruptions import ALEXNET
from .plots import figure, panels
from .result import Result, Value
from .statistics import Statistic

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid #8884; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
figure { display: inline-block; margin: .5rem; background: #fff; padding: .3rem; border-radius: 6px; }
figure img { max-width: 100%; display: block; }
.warning { border-left: 4px solid #d80; padding: .3rem .8rem; background: #d802; }
.scroll { overflow-x: auto; }
"""


def report(results: Sequence[Result], path: str | PathLike[str], title: str = "Robustness") -> None:
    """Writes the page: what was run, a table of every statistic with its standard error, and the figures.

    Args:
        results: of `measure`, one a column.
        path: of the HTML file.
        title: of the page.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("report: results must hold at least one result")
    parts = [
        f"<h1>{escape(title)}</h1>",
        *_warnings(results),
        "<h2>Results</h2>",
        "<p>Means over images &#177; their standard errors.</p>",
        _table(["Perturbation", "Statistic", *(r.model for r in results)], _rows(results)),
        *_relative(results),
        "<h2>Figures</h2>",
        *(_figure(panel) for panel in panels(results)),
        "<h2>What the statistics are</h2>",
        _table(["Statistic", "Meaning"], [[s, Statistic(s).meaning] for s in _statistics(results)]),
        "<h2>Runs</h2>",
        _table(["", "", *(r.model for r in results)], _runs(results)),
    ]
    write_text(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n",
    )


def _warnings(results: Sequence[Result]) -> list[str]:
    said = [f"{r.model}: interrupted; the values are those of {r.images} images." for r in results if not r.complete]
    said += [f"{r.model}: the weights are random." for r in results if r.settings.get("weights") == RANDOM]
    said += [
        f"{r.model}: {len(r.skipped)} images could not be read, and are left out: "
        + "; ".join(f"number {i} ({reason})" for i, reason in list(r.skipped.items())[:5])
        + (" ..." if len(r.skipped) > 5 else ".")
        for r in results
        if r.skipped
    ]
    if any(r.labels == "predicted" for r in results):
        said.append("The data have no labels: accuracy and confidence are those of each model's own clean answers.")
    return [f'<p class="warning">{escape(text)}</p>' for text in said]


def _rows(results: Sequence[Result]) -> list[list[str]]:
    """One row for each statistic that has one value, in the order they were measured."""
    keys = dict.fromkeys(
        (name, statistic)
        for r in results
        for name, measured in r.measurements.items()
        for statistic in measured.values
        if not Statistic(statistic).by_view
    )
    return [[name, statistic, *(_cell(r, name, statistic) for r in results)] for name, statistic in keys]


def _cell(result: Result, name: str, statistic: str) -> str:
    measured = result.measurements.get(name)
    values = measured.values.get(statistic) if measured else None
    return _number(values[0]) if values else ""


def _number(value: Value) -> str:
    error = "" if math.isnan(value.standard_error) else f" \u00b1 {100 * value.standard_error:.2f}"
    return f"{100 * value.mean:.2f}{error} %"


def _relative(results: Sequence[Result]) -> list[str]:
    """mCE and mFR, relative to the first model where there are several."""
    rows = []
    if _alike([r.errors() for r in results]):
        if all(r.classes == 1000 and set(r.errors()) <= set(ALEXNET) for r in results):
            rows.append(["mCE", "AlexNet on ImageNet", *(f"{100 * r.mean_corruption_error():.1f} %" for r in results)])
        if len(results) > 1 and all(error > 0 for error in results[0].errors().values()):
            cells = [f"{100 * r.mean_corruption_error(results[0]):.1f} %" for r in results]
            rows.append(["mCE", results[0].model, *cells])
    if len(results) > 1 and _alike([r.flip_rates() for r in results]) and min(results[0].flip_rates().values()) > 0:
        cells = [f"{100 * r.mean_flip_rate(results[0]):.1f} %" for r in results]
        rows.append(["mFR", results[0].model, *cells])
    return [_table(["Mean", "Relative to", *(r.model for r in results)], rows)] if rows else []


def _alike(of: list[dict[str, float]]) -> bool:
    """Whether the same kinds were measured of every model."""
    return bool(of[0]) and all(kinds.keys() == of[0].keys() for kinds in of)


def _statistics(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(s for r in results for m in r.measurements.values() for s in m.values))


def _runs(results: Sequence[Result]) -> list[list[str]]:
    facts = ("images", "complete", "labels", "classes", "views", "seconds")
    rows = [[fact, "", *(_plain(getattr(r, fact)) for r in results)] for fact in facts]
    rows.append(["views a second", "", *(f"{r.views / r.seconds:,.0f}" if r.seconds else "" for r in results)])
    for kind in ("settings", "environment"):
        keys = dict.fromkeys(key for r in results for key in getattr(r, kind))
        rows += [[key, kind, *(_plain(getattr(r, kind).get(key)) for r in results)] for key in keys]
    return rows


def _plain(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of plain text: here, and nowhere else, it becomes HTML."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _figure(panel: tuple) -> str:
    buffer = io.BytesIO()
    figure(panel).savefig(buffer, format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{escape(panel[0])}" src="data:image/svg+xml;base64,{data}"></figure>'
