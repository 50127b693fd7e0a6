"""Promise: what an install could not build is said and recorded, and warnings of a compiler break no user's install."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
import torch

ROOT = Path(__file__).parent.parent
COMPILER = "/nonexistent/c++"
TOOLS = ("AABLUR_CUDA", "AABLUR_NATIVE", "AABLUR_WERROR", "AABLUR_VARIANT", "AABLUR_LIBRARY", "CUDA_HOME", "CUDA_PATH")


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py as a module, which builds in tmp_path."""
    for name in TOOLS:
        monkeypatch.delenv(name, raising=False)
    return load(monkeypatch, tmp_path)


def load(monkeypatch: pytest.MonkeyPatch, build: Path) -> ModuleType:
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    spec = importlib.util.spec_from_file_location("setup_of_aablur", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BUILD", build)
    return module


def copy_of_the_source(to: Path) -> Path:
    shutil.copytree(ROOT / "aablur", to / "aablur", ignore=shutil.ignore_patterns("*.so", "*.json", "__pycache__"))
    shutil.copytree(ROOT / "csrc", to / "csrc")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to)
    return to


def installed(tmp_path: Path, **environment: str) -> tuple[Path, str]:
    """Where a wheel is unpacked that was built from the source with this environment, and what its build said."""
    source = copy_of_the_source(tmp_path / "source")
    env = {k: v for k, v in os.environ.items() if k not in TOOLS} | environment
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    return tmp_path / "site", done.stderr


def info(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", "import aablur; print(aablur.info())"]
    env = {k: v for k, v in os.environ.items() if k not in TOOLS} | {"PYTHONPATH": str(site)}
    return subprocess.run(command, cwd=site, env=env, capture_output=True, text=True)


def test_a_compiler_that_is_missing(tmp_path: Path) -> None:
    site, said = installed(tmp_path, CXX=COMPILER)
    last = said.strip().splitlines()[-1]
    assert last.startswith("aablur: WARNING: the native kernels were NOT built (") and COMPILER in last
    done = info(site)
    assert f"{COMPILER}: not found" in done.stdout and "the reference in plain torch" in done.stderr
    assert "--no-cache-dir" in done.stdout  # pip would take its wheel of the first try again
    assert info(site, "-W", "error").returncode != 0


@pytest.mark.parametrize("module", ["torch", "ninja"])
def test_a_build_that_cannot_import(module: str, tmp_path: Path) -> None:
    """An isolated build has no torch; a --no-build-isolation one may have no ninja."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / f"{module}.py").write_text(f"raise ImportError('No module named {module}')")
    site, said = installed(tmp_path, PYTHONPATH=str(hidden))
    expected = "--no-build-isolation" if module == "torch" else "No module named ninja"
    assert expected in said.strip().splitlines()[-1]
    assert expected in info(site).stdout


def test_a_reference_that_was_chosen_is_no_fault(tmp_path: Path) -> None:
    site, _ = installed(tmp_path, AABLUR_NATIVE="0")
    done = info(site, "-W", "error")
    assert done.returncode == 0 and "(AABLUR_NATIVE=0)" in done.stdout


def test_warnings_are_errors_where_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setup: ModuleType) -> None:
    nvcc = str(tmp_path / "bin/nvcc")
    monkeypatch.setattr(setup, "cuda_architectures", lambda nvcc: ["90"])
    setup.write_ninja(nvcc)
    assert "Werror" not in (tmp_path / "build.ninja").read_text()
    monkeypatch.setenv("AABLUR_WERROR", "1")
    strict = load(monkeypatch, tmp_path)
    monkeypatch.setattr(strict, "cuda_architectures", lambda nvcc: ["90"])
    strict.write_ninja(nvcc)
    text = (tmp_path / "build.ninja").read_text()
    assert "-Wextra -Wno-psabi -Werror " in text and "-Werror all-warnings" in text
    assert "AABLUR_WERROR := 1" in (ROOT / "Makefile").read_text()


def fake_nvcc(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (home / "bin").mkdir(parents=True)
    nvcc = home / "bin/nvcc"
    nvcc.write_text("#!/bin/sh\necho compute_90\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(home))
    return str(nvcc)


def test_cuda_kernels_are_built_for_a_torch_with_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setup: ModuleType
) -> None:
    nvcc = fake_nvcc(tmp_path / "cuda", monkeypatch)
    for cuda, asked, found in ((None, None, None), (None, "1", nvcc), ("13.0", None, nvcc), ("13.0", "0", None)):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.delenv("AABLUR_CUDA", raising=False)
        if asked:
            monkeypatch.setenv("AABLUR_CUDA", asked)
        assert setup.find_nvcc() == found, (cuda, asked)


def test_an_nvcc_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setup: ModuleType) -> None:
    """The rest is built, and what is missing is said; with AABLUR_CUDA=1 it is an error."""
    fake_nvcc(tmp_path / "cuda", monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    why = "nvcc fatal   : Unsupported gpu architecture 'compute_120'"

    def run(command: list[str]) -> None:
        if "rule cuda" in (tmp_path / "build.ninja").read_text():
            raise RuntimeError(why)

    monkeypatch.setattr(setup, "run", run)
    assert setup.run_ninja() == {"cuda": why}
    monkeypatch.setenv("AABLUR_CUDA", "1")
    with pytest.raises(RuntimeError, match="Unsupported gpu architecture"):
        setup.run_ninja()


def test_the_line_that_tells_why(setup: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    script = "print('[1/9] compile'); print('FAILED: a.o'); print('a.cpp:3: error: no'); print('9 errors'); exit(1)"
    with pytest.raises(RuntimeError, match=r"^a\.cpp:3: error: no$"):
        setup.run([sys.executable, "-c", script])
    assert "[1/9] compile" in capfd.readouterr().out
    setup.run([sys.executable, "-c", "print('error of no weight')"])


def test_what_was_not_built_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from aablur import backends

    monkeypatch.setattr(backends, "_SEARCH", tmp_path / "libaablur.so")
    (tmp_path / "not_built.json").write_text(json.dumps({"cuda": "nvcc said no"}))
    monkeypatch.delenv("AABLUR_LIBRARY", raising=False)
    monkeypatch.setattr(backends, "_why_not_native", None)
    monkeypatch.setattr(backends, "_why_no_cuda_device", lambda: None)
    monkeypatch.setattr(backends, "cuda_archs", lambda: "")
    reason = backends.why_not("cuda")
    assert reason and "(nvcc said no)" in reason and "AABLUR_CUDA=1 pip install" in reason
    monkeypatch.setenv("AABLUR_LIBRARY", "/another.so")  # of which the record says nothing
    assert "(no nvcc)" in str(backends.why_not("cuda"))
