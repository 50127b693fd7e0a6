"""Checks an installed package on the machine it is on: `aablur.check`, `python -m aablur check`."""

from .run import Report, check

__all__ = ["Report", "check"]
