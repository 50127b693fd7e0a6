"""Packages beyond torch, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, what_for: str, extra: str) -> Any:
    """The module; where it is missing, an ImportError that says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"{what_for} needs {package}: pip install aablur[{extra}] ({error})") from error
