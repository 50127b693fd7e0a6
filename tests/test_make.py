"""Promise: the Makefile's targets for GPUs find the card, and leave their results in OUT whatever fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.__main__ import arguments

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "aablur/libaablur.so").exists(), reason="the library is not built")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of programs, for PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def make(tools: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("AABLUR_CUDA_ARCHS", "MAKEFLAGS", "OUT", "TORCH")}
    env |= {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"} | environment
    command = ["make", *arguments, f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


def counts_in(path: Path) -> tuple[int, int]:
    """How many ran, and how many failed."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    return sum(int(s.attrib["tests"]) for s in suites), sum(int(s.attrib["failures"]) for s in suites)


def test_a_dry_run_of_the_tests(tools: Path, tmp_path: Path) -> None:
    done = make(tools, "gpu-test", "DRY_RUN=1", f"OUT={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compile " not in done.stdout, "a library that serves is used as it is"
    ran, failed = counts_in(tmp_path / "test.xml")
    assert ran > 5 and failed == 0


@pytest.mark.parametrize("finds", [False, True], ids=["clean", "finds"])
def test_a_dry_run_of_the_sanitizer(finds: bool, tools: Path, tmp_path: Path) -> None:
    """One that finds something fails the target, and the other tool runs all the same."""
    body = 'echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $*" >> "$0.log"; tool=$2; shift 6; "$@" || exit 1; '
    program(tools / "compute-sanitizer", body + ('test "$tool" != memcheck' if finds else "true"))
    done = make(tools, "gpu-sanitize", "DRY_RUN=1", f"OUT={tmp_path}")
    assert (done.returncode != 0) == finds, done.stdout + done.stderr
    said = (tools / "compute-sanitizer.log").read_text().splitlines()
    assert [line.split(" --error-exitcode 1 ")[0] for line in said] == ["1 --tool memcheck", "1 --tool racecheck"]
    for tool in ("memcheck", "racecheck"):
        ran, failed = counts_in(tmp_path / f"{tool}.xml")
        assert 10 < ran < 60 and failed == 0


def test_a_dry_run_of_the_benchmark(tools: Path, tmp_path: Path) -> None:
    options = "BENCH=--only blur_pool2d/forward/NCHW/float32/memory/odd --no-network"
    done = make(tools, "gpu-bench", "DRY_RUN=1", f"OUT={tmp_path}", options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("*.csv"))


def test_one_failure_stops_nothing(tools: Path, tmp_path: Path) -> None:
    """All three parts begin, each after the last has failed."""
    done = make(tools, "gpu", f"OUT={tmp_path}", "LIMITED=false", AABLUR_LIBRARY="/nonexistent.so")
    assert done.returncode != 0
    assert done.stderr.count("gpu-library] Error") == 3


@pytest.mark.parametrize(
    ("cards", "archs"), [(None, "90"), ("8.6", "86"), ("9.0\n8.0\n9.0", "80;90"), ("12.0", "120"), ("No devices", "90")]
)
def test_the_architectures_of_the_cards(cards: str | None, archs: str, tools: Path) -> None:
    program(tools / "nvidia-smi", "exit 9" if cards is None else f'printf "{cards}\n"')
    done = make(tools, "--eval", "print-archs: ; @echo archs=$$AABLUR_CUDA_ARCHS", "print-archs")
    assert f"archs={archs}\n" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("torch_version", "folder", "lines"),
    [
        ("2.13.0", ".venv", ["torch==2.13.0", "--no-deps -r .venv/peers.txt"]),
        ("2.14.1", ".venv-2.14.1", ["torch==2.14.1", "--no-deps -r .venv-2.14.1/peers.txt torchvision==0.29.1"]),
    ],
)
def test_another_torch(torch_version: str, folder: str, lines: list[str], tools: Path) -> None:
    """In an environment of its own, with the torchvision that goes with it and the Triton that it brings."""
    done = make(tools, "--dry-run", "--always-make", f"{folder}/done", f"TORCH={torch_version}")
    assert done.returncode == 0, done.stderr
    installs = [
        line.split("--disable-pip-version-check ")[1].strip()
        for line in done.stdout.splitlines()
        if "pip install" in line
    ]
    assert [installs[0], installs[2]] == lines
    chosen = next(line for line in done.stdout.splitlines() if line.startswith("grep"))
    pattern = chosen.split("'")[1]
    left = subprocess.run(
        ["grep", "-v", pattern, ROOT / "requirements-peers.txt"], capture_output=True, text=True
    ).stdout
    assert ("triton==" in left) == ("torchvision==" in left) == (torch_version == "2.13.0")
    assert "timm==" in left and "mosaicml==" in left


def test_the_device_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert arguments(["--quick"]).device == device
        for given in ("cpu", "cuda"):
            assert arguments(["--device", given, "--only", "x"]).device == given
