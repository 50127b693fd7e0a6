"""Loads the native library, and says which backend serves which device, and why the others do not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from .version import __version__

BACKENDS = ("cuda", "triton", "cpu", "reference")
DEVICE_KEYS = {"cpu": "CPU", "cuda": "CUDA"}  # native backend, which is also its device's type -> dispatch key
_SEARCH = Path(__file__).parent / "libaablur.so"


def _load() -> str | None:
    """Loads the native library; returns why it could not, or None."""
    path = Path(os.environ.get("AABLUR_LIBRARY", _SEARCH))
    if not path.exists():
        return (
            f"the native library was not built ({path.name} is missing): install a C++17 compiler and ninja, then "
            "run `pip install --no-build-isolation --force-reinstall --no-deps aablur` beside torch"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path} does not load: {error}"
    return None


_why_not_native = _load()

# The backend that AABLUR_BACKEND, or a `with aablur.backend(...)`, forces.
forced: str | None = os.environ.get("AABLUR_BACKEND") or None


def why_not(backend: str) -> str | None:
    """The reason why a backend cannot serve here, or None if it can.

    Raises:
        ValueError: there is no backend of that name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "cpu":
        return _why_not_native
    if backend == "cuda":
        return _why_not_native or _why_not_cuda()
    if backend == "triton":
        return "this version of aablur has no Triton kernels yet"
    return None


def _why_not_cuda() -> str | None:
    if not torch.ops.aablur.cuda_archs():
        return (
            "the native library was built without nvcc: install the CUDA toolkit, and run `AABLUR_CUDA=1 pip install "
            "--no-build-isolation --force-reinstall --no-deps aablur`"
        )
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def serving(device_type: str) -> str:
    """The backend that serves a device when none is forced."""
    return device_type if device_type in DEVICE_KEYS and why_not(device_type) is None else "reference"


def has_native() -> bool:
    return _why_not_native is None


@dataclass(frozen=True)
class Info:
    """What serves here: print it, or read its fields."""

    version: str
    torch: str
    cpu_isa: str | None  # the instruction set of the native CPU kernels
    cuda_archs: str | None  # the architectures that the CUDA kernels were compiled for
    forced: str | None  # the backend that AABLUR_BACKEND or aablur.backend(...) forces
    serving: dict[str, str]  # device type -> backend
    why_not: dict[str, str]  # backend -> why it cannot serve

    def __str__(self) -> str:
        lines = [f"aablur {self.version}, torch {self.torch}"]
        if self.forced:
            lines.append(f"  {self.forced} is forced")
        for device, backend in self.serving.items():
            detail = {"cpu": f" ({self.cpu_isa})", "cuda": f" (sm {self.cuda_archs})"}.get(backend, "")
            lines.append(f"  {device:<6} is served by {backend}{detail}")
        lines += [f"  {backend} cannot serve: {reason}" for backend, reason in self.why_not.items()]
        return "\n".join(lines)


def info() -> Info:
    """Which backend serves which device here, and why the others do not."""
    devices = ["cpu", *[d for d in ("cuda", "mps", "xpu") if getattr(torch, d).is_available()], "others"]
    reasons = {backend: reason for backend in BACKENDS if (reason := why_not(backend)) is not None}
    return Info(
        version=__version__,
        torch=torch.__version__,
        cpu_isa=torch.ops.aablur.cpu_isa() if has_native() else None,
        cuda_archs=torch.ops.aablur.cuda_archs() or None if has_native() else None,
        forced=forced,
        serving={device: forced or serving(device) for device in devices},
        why_not=reasons,
    )
