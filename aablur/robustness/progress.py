"""A progress bar where there is someone to see it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from .extras import require


@contextmanager
def progress_bar(show: bool | None, images: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more images are done. show: None is on a terminal, if rich is installed."""
    if show is None:
        show = sys.stderr.isatty() and find_spec("rich") is not None
    if not show:
        yield lambda done: None
        return
    bars, console = require("rich.progress", "a progress bar"), require("rich.console", "a progress bar")
    columns = (bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    with bars.Progress("images", *columns, console=console.Console(stderr=True)) as bar:
        task = bar.add_task("images", total=images)
        yield lambda done: bar.advance(task, done)
