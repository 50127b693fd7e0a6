"""Fused anti-aliased downsampling for PyTorch: BlurPool and MaxBlurPool, one pass over memory a direction."""

from . import compat, nn
from .backends import info
from .functional import (
    blur_pool1d,
    blur_pool2d,
    blur_pool3d,
    max_blur_pool1d,
    max_blur_pool2d,
    max_blur_pool3d,
)
from .inductor import compile_passes
from .models import accelerate, antialias, audit, fold, load_antialiased, repairs, restore, sensitivity
from .ops import backend, decompositions
from .version import __version__

__all__ = [
    "__version__",
    "accelerate",
    "antialias",
    "audit",
    "backend",
    "blur_pool1d",
    "blur_pool2d",
    "blur_pool3d",
    "compat",
    "compile_passes",
    "decompositions",
    "fold",
    "info",
    "load_antialiased",
    "max_blur_pool1d",
    "max_blur_pool2d",
    "max_blur_pool3d",
    "nn",
    "repairs",
    "restore",
    "sensitivity",
]
