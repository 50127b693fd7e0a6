"""A progress bar where there is someone to see it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from .extras import require


@contextmanager
def progress_bar(
    show: bool | None, total: int | None, unit: str = "images", extra: str = "robustness"
) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more are done. show: None is on a terminal, if rich is installed."""
    if show is None:
        show = sys.stderr.isatty() and find_spec("rich") is not None
    if not show:
        yield lambda done: None
        return
    bars, console = (require(f"rich.{module}", "a progress bar", extra) for module in ("progress", "console"))
    columns = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    with bars.Progress(unit, *columns, console=console.Console(stderr=True)) as bar:
        task = bar.add_task(unit, total=total)
        yield lambda done: bar.advance(task, done)
