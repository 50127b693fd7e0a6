"""Whole models in, whole models out: where they alias, and their repair."""

from .antialias import antialias, repairs, restore
from .audit import audit

__all__ = ["antialias", "audit", "repairs", "restore"]
