"""Files that are whole at every moment, whatever ends the process that writes them."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path


def write_text(path: str | PathLike[str], text: str) -> None:
    """Writes beside the file, in UTF-8, then takes its place.

    The name beside is always the same, so that what a killed process left there is written over by the next.
    """
    target = Path(os.path.realpath(path)) if Path(path).is_file() else Path(path)
    if target.exists() and not target.is_file():  # a terminal, a pipe
        target.write_text(text, encoding="utf-8")
        return
    beside = _beside(target)
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes a file of `write_text`, if it is there, and what a killed process left beside it."""
    for file in (path, _beside(path)):
        file.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
