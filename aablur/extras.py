"""Packages beyond torch, imported where they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, what_for: str, extra: str, beside: str = "") -> Any:
    """The module; where it is missing, an ImportError that says which extra brings it.

    Args:
        beside: packages that the extra leaves out, since pip would replace torch by the one that they ask for.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        more = f", and of your torch's release: pip install --no-deps {beside}" if beside else ""
        raise ImportError(f"{what_for} needs {package}: pip install aablur[{extra}]{more} ({error})") from error
