"""Loads the native library, and says which backend serves which device, and why the others do not."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from .version import __version__

BACKENDS = ("cuda", "triton", "cpu", "reference")
DEVICE_KEYS = {"cpu": "CPU", "cuda": "CUDA"}  # device type -> dispatch key
_PREFERRED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # device type -> backends, the best first
_SEARCH = Path(__file__).parent / "libaablur.so"


def _library() -> Path:
    return Path(os.environ.get("AABLUR_LIBRARY", _SEARCH))


def _load() -> str | None:
    """Loads the native library; returns why it could not, or None."""
    path = _library()
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
        return _why_not_triton()
    return None


def interprets_triton() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _why_not_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: `pip install triton` (torch's CUDA builds bring it)"
    return None if interprets_triton() else _why_no_cuda_device()


def _why_not_cuda() -> str | None:
    if not _cuda_archs():
        return (
            "the native library was built without nvcc: install the CUDA toolkit, and run `AABLUR_CUDA=1 pip install "
            "--no-build-isolation --force-reinstall --no-deps aablur`"
        )
    return _why_no_cuda_device()


def _why_no_cuda_device() -> str | None:
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def serving(device_type: str) -> str:
    """The backend that serves a device when none is forced."""
    able = (b for b in _PREFERRED.get(device_type, ()) if why_not(b) is None)
    return next(able, "reference")


def prefers_triton() -> bool:
    """Whether Triton serves CUDA devices. Asks no driver: a process that has asked cannot fork any more."""
    has_cuda_kernels = has_native() and _cuda_archs()
    return torch.version.cuda is not None and not has_cuda_kernels and importlib.util.find_spec("triton") is not None


def devices(backend: str) -> tuple[str, ...]:
    """The device types that a backend serves when it is forced."""
    if backend == "triton":
        return ("cpu",) if interprets_triton() else ("cuda",)
    return tuple(DEVICE_KEYS) if backend == "reference" else (backend,)


def library_path() -> Path:
    """The native library, for C++ programs, which have the ops ``aablur::...`` once they have opened it.

    Raises:
        RuntimeError: there is none here, with the reason.
    """
    if _why_not_native is not None:
        raise RuntimeError(f"library_path: {_why_not_native}")
    return _library()


def has_native() -> bool:
    return _why_not_native is None


def cpu_isa() -> str:
    """The instruction set of the native CPU kernels."""
    return "".join(map(chr, torch.ops.aablur.cpu_isa()))


def _cuda_archs() -> str:
    """The architectures that the CUDA kernels were compiled for; empty without them."""
    return "".join(map(chr, torch.ops.aablur.cuda_archs()))


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
        cpu_isa=cpu_isa() if has_native() else None,
        cuda_archs=_cuda_archs() or None if has_native() else None,
        forced=forced,
        serving={device: forced or serving(device) for device in devices},
        why_not=reasons,
    )
