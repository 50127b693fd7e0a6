"""Loads the native library, and says which backend serves which device, and why the others do not."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from .version import __version__

BACKENDS = ("cuda", "triton", "cpu", "reference")
DEVICE_KEYS = {"cpu": "CPU", "cuda": "CUDA"}  # device type -> dispatch key
_PREFERRED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # device type -> backends, the best first
_TEGRA = (72, 87, 101)  # run code of their own architecture alone
_LEAST_OF_TRITON = (7, 0)
_SEARCH = Path(__file__).parent / "libaablur.so"


def _library() -> Path:
    return Path(os.environ.get("AABLUR_LIBRARY", _SEARCH))


def _not_built() -> dict[str, str]:
    """What of the native library the install could not build, and why: "native" for all of it, or "cuda"."""
    record = _SEARCH.with_name("not_built.json")
    return json.loads(record.read_text()) if record.exists() and _library() == _SEARCH else {}


def _again(flags: str = "") -> str:
    return f"`{flags}pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps aablur`"


def _load() -> str | None:
    """Loads the native library; returns why it could not, or None."""
    path = _library()
    if not path.exists():
        reason = _not_built().get("native", f"{path.name} is missing")
        return (
            f"the native library was not built ({reason}): install a C++17 compiler and ninja, then run {_again()} "
            "beside torch"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path} does not load: {error}"
    return None


_why_not_native = _load()
if _why_not_native is not None and _not_built().get("native") != "AABLUR_NATIVE=0":
    _slow = "every map runs on the reference in plain torch, which is several times slower"
    warnings.warn(f"aablur: {_slow}: {_why_not_native}", RuntimeWarning, stacklevel=2)

# The backend that AABLUR_BACKEND, or a `with aablur.backend(...)`, forces.
forced: str | None = os.environ.get("AABLUR_BACKEND") or None


def why_not(backend: str, card: int | None = None) -> str | None:
    """The reason why a backend cannot serve here, or None if it can. Asks CUDA's driver about its devices.

    Args:
        backend: "cuda", "triton", "cpu" or "reference".
        card: of CUDA's devices, the one that is meant; by default, any.

    Raises:
        ValueError: there is no backend of that name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "cpu":
        return _why_not_native
    if backend == "cuda":
        return _why_not_native or _why_not_cuda(card)
    if backend == "triton":
        return _why_not_triton(card)
    return None


def interprets_triton() -> bool:
    """Whether Triton runs its kernels in its interpreter, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _why_not_triton(card: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: `pip install triton` (torch's CUDA builds bring it)"
    if interprets_triton():
        return None
    if reason := _why_no_cuda_device():
        return reason
    cards = _cards(card)
    least = ".".join(map(str, _LEAST_OF_TRITON))
    return None if max(cards.values()) >= _LEAST_OF_TRITON else f"Triton needs compute capability {least} or more"


def _why_not_cuda(card: int | None) -> str | None:
    if reason := _why_no_cuda_device():
        return reason
    archs = cuda_archs()
    if not archs:
        reason = _not_built().get("cuda", "no nvcc")
        return (
            f"the CUDA kernels were not built ({reason}): install the CUDA toolkit, then run {_again('AABLUR_CUDA=1 ')}"
        )
    cards = _cards(card)
    if any(has_code(archs, capability) for capability in cards.values()):
        return None
    needed = ";".join(sorted({f"{major}{minor}" for major, minor in cards.values()}))
    lacking = ", ".join(f"{torch.cuda.get_device_name(i)} (sm_{a}{b})" for i, (a, b) in cards.items())
    return (
        f"the native library has code for sm {archs}, and none for {lacking}: build it with AABLUR_CUDA_ARCHS="
        f'"{needed}"'
    )


def _why_no_cuda_device() -> str | None:
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def _cards(card: int | None) -> dict[int, tuple[int, int]]:
    """Compute capabilities of CUDA's devices, or of one of them."""
    indices = range(torch.cuda.device_count()) if card is None else (card,)
    return {i: torch.cuda.get_device_capability(i) for i in indices}


def has_code(archs: str, capability: tuple[int, int]) -> bool:
    """Whether a card of this compute capability runs code compiled for `archs`, as "80;90a;120+PTX".

    Machine code runs on its own architecture and on later minor versions of the same major one (not to or from Tegra),
    PTX on all later ones. Code for 90a runs on 9.0 alone, code for 100f on 10.0 and later minor versions.
    Source: CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility".
    """
    major, minor = capability
    for number, kind, ptx in re.findall(r"(\d+)([af]?)(\+PTX)?", archs):
        code = divmod(int(number), 10)
        same = code == capability
        binary = code[0] == major and code[1] <= minor and not {10 * major + minor, int(number)} & {*_TEGRA}
        if same or (binary and kind != "a") or (ptx and not kind and code <= capability):
            return True
    return False


def serving(device: str) -> str:
    """The backend that serves a device ("cuda", or "cuda:1") when none is forced."""
    device_type, _, index = device.partition(":")
    card = int(index) if index else None
    able = (b for b in _PREFERRED.get(device_type, ()) if why_not(b, card) is None)
    return next(able, "reference")


def serving_cards() -> list[str]:
    """The backend that serves each of CUDA's devices when none is forced."""
    return [serving(f"cuda:{i}") for i in range(torch.cuda.device_count())]


def presumed() -> str:
    """The backend that serves CUDA's devices as far as can be told without asking the driver: a process that has asked
    cannot fork any more."""
    if torch.version.cuda is None:
        return "reference"
    if has_native() and cuda_archs():
        return "cuda"
    return "triton" if importlib.util.find_spec("triton") is not None else "reference"


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


def cuda_archs() -> str:
    """The architectures that the CUDA kernels were compiled for, as "80;90+PTX"; empty without them."""
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
    """Which backend serves which device here, and why the others do not. Asks CUDA's driver."""
    devices = ["cpu", *[d for d in ("cuda", "mps", "xpu") if getattr(torch, d).is_available()], "others"]
    if "cuda" in devices and len(set(served := serving_cards())) > 1:
        devices[1:2] = [f"cuda:{i}" for i in range(len(served))]
    reasons = {backend: reason for backend in BACKENDS if (reason := why_not(backend)) is not None}
    return Info(
        version=__version__,
        torch=torch.__version__,
        cpu_isa=cpu_isa() if has_native() else None,
        cuda_archs=(cuda_archs() or None) if has_native() else None,
        forced=forced,
        serving={device: forced or serving(device) for device in devices},
        why_not=reasons,
    )
