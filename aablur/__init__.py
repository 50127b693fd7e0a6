"""Fused anti-aliased downsampling for PyTorch: BlurPool and MaxBlurPool, one pass over memory a direction."""

import importlib
import typing

from . import nn
from .backends import info, library_path
from .functional import (
    blur_pool1d,
    blur_pool2d,
    blur_pool3d,
    max_blur_pool1d,
    max_blur_pool2d,
    max_blur_pool3d,
)
from .ops import backend, decompositions
from .version import __version__

if typing.TYPE_CHECKING:
    from . import compat, robustness
    from .inductor import compile_passes
    from .models import accelerate, antialias, audit, fold, load_antialiased, repairs, restore, sensitivity
    from .selfcheck import check
else:

    def __getattr__(name: str) -> object:
        """Import what works on whole models when it is first asked for: it takes longer than all the rest."""
        if name not in __all__:
            raise AttributeError(f"module 'aablur' has no attribute {name!r}")
        is_module = name in ("compat", "robustness")
        place = name if is_module else {"check": "selfcheck", "compile_passes": "inductor"}.get(name, "models")
        home = importlib.import_module(f".{place}", __name__)
        return globals().setdefault(name, home if is_module else getattr(home, name))

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "__version__",
    "accelerate",
    "antialias",
    "audit",
    "backend",
    "blur_pool1d",
    "blur_pool2d",
    "blur_pool3d",
    "check",
    "compat",
    "compile_passes",
    "decompositions",
    "fold",
    "info",
    "library_path",
    "load_antialiased",
    "max_blur_pool1d",
    "max_blur_pool2d",
    "max_blur_pool3d",
    "nn",
    "repairs",
    "restore",
    "robustness",
    "sensitivity",
]
