"""A progress bar where there is someone to see it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(show: bool | None, images: int | None) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more images are done. show: None is on a terminal, if rich is installed."""
    if show is None:
        show = sys.stderr.isatty() and _has_rich()
    if not show:
        yield lambda done: None
        return
    if not _has_rich():
        raise ImportError("a progress bar needs the package rich: pip install aablur[robustness]")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("images", total=images)
        yield lambda done: bar.advance(task, done)


def _has_rich() -> bool:
    from importlib.util import find_spec

    return find_spec("rich") is not None
