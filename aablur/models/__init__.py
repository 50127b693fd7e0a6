"""Whole models in, whole models out: where they alias, and their repair."""

from .accelerate import accelerate
from .antialias import antialias, repairs, restore
from .audit import audit
from .fold import fold
from .sensitivity import sensitivity
from .weights import load_antialiased

__all__ = ["accelerate", "antialias", "audit", "fold", "load_antialiased", "repairs", "restore", "sensitivity"]
