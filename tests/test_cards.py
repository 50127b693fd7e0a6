"""Promise: each CUDA device is served by a backend that has code for it, told by fake devices.

No call of a real GPU: torch is told what cards there are.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import conftest
import pytest
import torch
from elsewhere import on_card

import aablur
from aablur import backends, ops, reference
from aablur.geometry import Geometry

ROOT = Path(__file__).parent.parent
RUNS = (  # archs, capability, whether code runs there
    ("75;80;86;90;100;120+PTX", (7, 5), True),
    ("75;80;86;90;100;120+PTX", (8, 0), True),
    ("75;80;86;90;100;120+PTX", (8, 9), True),  # what is compiled for 8.6
    ("75;80;86;90;100;120+PTX", (9, 0), True),
    ("75;80;86;90;100;120+PTX", (10, 3), True),
    ("75;80;86;90;100;120+PTX", (12, 1), True),
    ("75;80;86;90;100;120+PTX", (13, 0), True),  # from PTX
    ("75;80;86;90;100;120+PTX", (11, 0), False),
    ("75;80;86;90;100;120+PTX", (7, 0), False),
    ("80", (8, 6), True),
    ("86", (8, 0), False),
    ("89", (8, 6), False),
    ("86", (8, 9), True),
    ("90", (8, 9), False),
    ("90", (10, 0), False),
    ("90", (9, 0), True),
    ("90+PTX", (10, 0), True),
    ("90+PTX", (8, 9), False),
    ("75+PTX", (12, 0), True),
    ("90a", (9, 0), True),
    ("90a+PTX", (10, 0), False),
    ("100f", (10, 3), True),
    ("100a", (10, 3), False),
    ("100f+PTX", (12, 0), False),
    ("80;86", (8, 7), False),  # Tegra
    ("87", (8, 9), False),
    ("87", (8, 7), True),
    ("80+PTX", (8, 7), True),
    ("", (9, 0), False),
)


@pytest.mark.parametrize(("archs", "capability", "runs"), RUNS)
def test_which_code_runs_where(archs: str, capability: tuple[int, int], runs: bool) -> None:
    assert backends.has_code(archs, capability) == runs


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that announces cards, and a library compiled for `archs`."""

    def announce(archs: str, *cards: tuple[int, int], triton: bool = True) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: cards[i])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"card {i}")
        monkeypatch.setattr(backends, "cuda_archs", lambda: archs)
        monkeypatch.setattr(backends, "_why_not_native", None)
        spec = object() if triton else None
        monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: spec)

    yield announce


def test_no_code_for_the_card(machine: Any) -> None:
    machine("90", (8, 6))
    reason = backends.why_not("cuda")
    assert reason and "code for sm 90" in reason and "card 0 (sm_86)" in reason and 'AABLUR_CUDA_ARCHS="86"' in reason
    info = backends.info()
    assert info.serving["cuda"] == "triton" and info.why_not["cuda"] == reason
    machine("90", (8, 6), triton=False)
    assert backends.info().serving["cuda"] == "reference"
    machine("80;90", (8, 6))
    assert backends.why_not("cuda") is None and backends.info().serving["cuda"] == "cuda"


def test_cards_that_differ(machine: Any) -> None:
    machine("90", (8, 0), (9, 0), (6, 1))
    assert backends.serving_cards() == ["triton", "cuda", "reference"]
    info = backends.info()
    assert [info.serving[f"cuda:{i}"] for i in range(3)] == ["triton", "cuda", "reference"]
    assert "cuda" not in info.serving and "cuda" not in info.why_not and "cuda:1 is served by cuda (sm 90)" in str(info)
    assert backends.why_not("cuda", 0) and not backends.why_not("cuda", 1)
    assert backends.why_not("triton", 2) == "Triton needs compute capability 7.0 or more"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What ran, of kernels that are spies: the compiled ones, Triton's and the reference's."""
    found = []

    def spy(by: str) -> Any:
        return lambda x, *rest: (found.append(f"{by} on {x.device}"), x)[1]

    compiled, chosen = (torch.library.Library("aablur", "IMPL") for _ in range(2))
    for name in ops._REFERENCE:
        compiled.impl(name, spy("cuda"), "CUDA", allow_override=True)
        monkeypatch.setitem(ops._TRITON, name, spy("triton"))
        monkeypatch.setitem(ops._REFERENCE, name, spy("reference"))
    monkeypatch.setattr(ops, "_library", chosen)
    yield found
    for library in (chosen, compiled):
        library._destroy()


def call_on(card: int) -> None:
    """What the dispatcher does with a map of a CUDA device."""
    x = on_card(torch.empty(1, 2, 4, 4), card)
    kernel = torch.library.get_kernel("aablur::blur_pool", "CUDA")
    kernel.call_boxed(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), x, None, [3, 2, 1, 1] * 2, "reflect")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns of every override
def test_each_card_is_served_by_its_backend(machine: Any, served: list[str]) -> None:
    machine("90", (8, 0), (9, 0), (6, 1))
    ops._choose_by_card()
    for card in (2, 1, 0):
        call_on(card)
    assert served == ["reference on cuda:2", "cuda on cuda:1", "triton on cuda:0"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("archs", "cards", "by"),
    [
        ("80;90", [(8, 0), (9, 0)], "cuda"),
        ("90", [(8, 0), (8, 6)], "triton"),
        ("90", [(8, 0)], "triton"),
        ("80", [(9, 0)], "triton"),
    ],
)
def test_cards_that_are_alike(
    archs: str, cards: list[tuple[int, int]], by: str, machine: Any, served: list[str]
) -> None:
    machine(archs, *cards)
    ops._choose_by_card()
    for card in range(len(cards)):
        call_on(card)
    assert served == [f"{by} on cuda:{card}" for card in range(len(cards))]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_forcing_reaches_the_card_that_is_meant(machine: Any, served: list[str]) -> None:
    """In whichever order: forced and then met, or met and then forced."""
    machine("90", (8, 0), (9, 0))
    with aablur.backend("triton"):
        ops._choose_by_card()
        call_on(1)
    with aablur.backend("cuda"):
        call_on(1)
        with pytest.raises(RuntimeError, match="backend 'cuda' is forced: the native library has code for sm 90, and"):
            call_on(0)
    call_on(1)
    assert served == ["triton on cuda:1", "cuda on cuda:1", "cuda on cuda:1"]


def test_importing_asks_no_driver() -> None:
    """Beside a torch with CUDA: a process that has asked cannot fork any more. What is left for later is left."""
    code = """
import torch
torch.version.cuda = "13.0"
def asked(*args):
    raise AssertionError("the driver was asked")
for name in ("is_available", "device_count", "get_device_capability", "get_device_properties", "current_device"):
    setattr(torch.cuda, name, asked)
import aablur
print([f.__name__ for f, _ in torch.cuda._queued_calls if f.__module__ == "aablur.ops"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['_choose_by_card']"


@pytest.mark.parametrize("before", ["tf32", "ieee"])
def test_the_reference_takes_no_tf32(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's convolutions of float32 maps round to 10 bits by default; the setting is as it was afterwards."""
    conv, seen = torch.backends.cudnn.conv, []
    found = conv.fp32_precision
    conv.fp32_precision = before
    for name in ("conv2d", "conv_transpose2d"):
        original = getattr(reference.F, name)

        def spy(*args: Any, original: Any = original, **options: Any) -> Any:
            seen.append(conv.fp32_precision)
            return original(*args, **options)

        monkeypatch.setattr(reference.F, name, spy)
    geometry = Geometry("blur", [3, 3], 2, "same", "reflect")
    exactly = reference._exactly
    monkeypatch.setattr(reference, "_exactly", lambda device: exactly(torch.device("cuda")))
    x, taps = torch.randn(1, 2, 8, 8), torch.rand(1, 6)
    y = reference.blur_pool(x, taps, geometry)
    reference.blur_pool_backward(y, taps, [8, 8], geometry)
    reference.blur_pool_backward_taps(y, x, taps, geometry)
    after, conv.fp32_precision = conv.fp32_precision, found
    assert len(seen) >= 6 and set(seen) == {"ieee"} and after == before


def test_freed_memory_of_every_device_is_poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "full", lambda *args, device, **options: devices.append(device))
    conftest._poison(float("nan"))
    assert set(devices) == {"cpu", "cuda"}
