"""The blur pools of other libraries, by their names, signatures, numerics and checkpoints, on our ops.

Changing the import is the whole migration: ``from aablur.compat.kornia import MaxBlurPool2D``. A module in a model
that you do not build yourself is swapped by `aablur.accelerate`.
"""

from . import antialiased_cnns, composer, kornia, timm

__all__ = ["antialiased_cnns", "composer", "kornia", "timm"]
