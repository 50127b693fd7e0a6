"""Whole models in, whole models out: where they alias, and their repair."""

from .antialias import antialias, repairs, restore
from .audit import audit
from .weights import load_antialiased

__all__ = ["antialias", "audit", "load_antialiased", "repairs", "restore"]
