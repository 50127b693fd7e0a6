"""Promise: imports go one way, importing costs torch alone, everything public is documented, no compiler is needed."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from case import call, make_input, make_taps
from cases import CASES
from tolerances import assert_close

import aablur
from aablur.geometry import Axis
from aablur.schemas import SCHEMAS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aablur"
LEVELS = (  # each may import what stands before it, never beside or after it
    ("version", "schemas", "geometry", "extras", "files"),
    ("progress", "backends", "triton_kernels", "reference", "tiles"),
    ("triton_banded",),
    ("triton_ops", "decomposition", "sharding", "arguments"),
    ("ops",),
    ("functional", "inductor"),
    ("nn", "distributed"),
    ("compat", "selfcheck"),
    ("models",),
    ("robustness",),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def part(path: Path) -> str:
    """The module or subpackage of aablur that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Parts of aablur that a file imports, wherever in it."""
    package = ("aablur", *path.relative_to(PACKAGE).parts[:-1])
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            names += [[*base, alias.name] for alias in node.names]
    return {
        ([*name, "__init__"])[1] for name in names if name[0] == "aablur" and (len(name) > 1 or path.stem != "__init__")
    }


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    here = part(path)
    assert here in LEVEL, f"{here} has no place in LEVELS"
    for other in imported(path) - {here}:
        other = other if other in LEVEL else "__init__"
        assert LEVEL[other] < LEVEL[here], f"{here} imports {other}"


def test_the_import_reader_reads() -> None:
    assert imported(PACKAGE / "ops.py") == {
        "arguments",
        "backends",
        "decomposition",
        "reference",
        "triton_ops",
        "geometry",
        "schemas",
    }
    assert imported(PACKAGE / "geometry.py") == set()
    assert "nn" in imported(PACKAGE / "__init__.py")


def test_geometry_knows_no_torch() -> None:
    assert "torch" not in re.sub(r'""".*?"""', "", (PACKAGE / "geometry.py").read_text(), flags=re.S)


def python(code: str, cwd: Path = ROOT, **env: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | env, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_pulls_in_torch_alone() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import aablur
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""
    assert set(python(code).split()) <= {"aablur", "torch", *sys.stdlib_module_names}


def test_importing_leaves_whole_models_for_later() -> None:
    code = """
import sys, aablur
assert not {"aablur.models", "aablur.compat", "aablur.robustness"} & set(sys.modules), "imported at once"
assert set(aablur.__all__) <= set(dir(aablur))
from aablur import *
print(audit.__module__, compat.timm.__name__, hasattr(aablur, "audits"))
"""
    assert python(code).split() == ["aablur.models.audit", "aablur.compat.timm", "False"]


@pytest.mark.parametrize("name", ["robustness.measure", "compat.timm.BlurPool2d", "audit", "nn.BlurPool2d"])
def test_everything_is_there_after_one_import(name: str) -> None:
    assert python(f"import aablur; print(aablur.{name}.__name__)").strip() == name.split(".")[-1]


def test_the_library_is_found() -> None:
    code = "import torch, aablur; torch.ops.load_library(aablur.library_path()); print(aablur.library_path().name)"
    assert python(code).strip() == "libaablur.so"
    code = "import aablur\ntry: aablur.library_path()\nexcept RuntimeError as error: print(error)"
    assert "library_path: the native library was not built" in python(code, AABLUR_LIBRARY="/nonexistent")


def test_importing_warns_and_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import torch, aablur"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def public() -> list[tuple[str, object]]:
    names = [(name, getattr(aablur, name)) for name in aablur.__all__ if name != "__version__"]
    return names + [
        (f"nn.{name}", value) for name, value in vars(aablur.nn).items() if inspect.isclass(value) and name[0] != "_"
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [p for p in public() if p[0] not in ("nn.Any", "nn.Tensor", "nn.Geometry")],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_everything_public_is_documented(name: str, value: object) -> None:
    doc = inspect.getdoc(value)
    assert doc and len(doc) > 30
    if name in ("blur_pool2d", "max_blur_pool2d", "nn.BlurPool2d", "nn.MaxBlurPool2d"):
        for argument in inspect.signature(value).parameters:
            assert re.search(rf"^[ \w,]*\b{argument}\b[ \w,]*:", doc, re.M), f"{argument} is not documented"
        assert "Raises:" in doc


def test_all_is_all() -> None:
    modules = ("compat", "nn", "robustness")
    exported = {n for n, v in vars(aablur).items() if n[0] != "_" and (n in modules or not inspect.ismodule(v))}
    assert exported == set(aablur.__all__) - {"__version__"}
    for rank in (1, 2, 3):
        for stem in ("BlurPool", "MaxBlurPool"):
            assert issubclass(getattr(aablur.nn, f"{stem}{rank}d"), torch.nn.Module)


def test_registered_schemas_are_those_of_the_page() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aablur::")}
    assert names == {"aablur::" + schema.split("(")[0] for schema in SCHEMAS}
    for schema in SCHEMAS:
        parsed = torch._C.parse_schema(f"aablur::{schema}")
        assert getattr(torch.ops.aablur, parsed.name.split("::")[1]).default._schema == parsed


def test_axes_are_told_alike_in_words() -> None:
    """The names of DESIGN: one spelling everywhere."""
    for schema in (s for s in SCHEMAS if "Tensor" in s):
        assert "taps, " in schema and "int[] axes, str padding_mode" in schema
    names = ["taps", "stride", "before", "after", "window", "window_padding", "window_dilation"]
    assert [field.name for field in fields(Axis)] == names and Axis(*range(7)).numbers == tuple(range(7))
    members = re.findall(
        r"^  I (.+);", (ROOT / "csrc" / "core" / "axis.h").read_text().split("struct BasicAxis")[1], re.M
    )
    assert re.findall(r"(\w+) = [01]", ", ".join(members))[:8] == ["size", *names]
    for rank in (1, 2, 3):  # what is given by position to be refused is not shown
        blur = inspect.signature(getattr(aablur, f"blur_pool{rank}d")).parameters
        assert list(blur) == ["x", "taps", "stride", "padding", "padding_mode"]
        most = inspect.signature(getattr(aablur, f"max_blur_pool{rank}d")).parameters
        assert list(most) == ["x", "window", *list(blur)[1:], "window_padding", "window_dilation", "recompute"]


# ---- C++: which room sees which --------------------------------------------------------------------

CSRC = ROOT / "csrc"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.is_file())
ROOMS = {"core": {"core"}, "cpu": {"core", "cpu"}, "gpu": {"core", "gpu"}, "ops": {"core", "cpu", "gpu", "ops"}}
KNOW_TORCH = {"ops/library.cpp", "ops/ops.cpp", "ops/problem.h", "cpu/backend.cpp", "gpu/backend.cpp"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_rooms_of_csrc(path: Path) -> None:
    """core is below cpu and gpu, which do not see each other; ops is above all; torch is known above core alone."""
    name, text = str(path.relative_to(CSRC)), path.read_text()
    own = set(re.findall(r'#include "(.+?)"', text)) - {"schemas.inc"}  # which the build writes
    assert all((CSRC / header).is_file() for header in own), "includes are written from csrc"
    assert {header.split("/")[0] for header in own} <= ROOMS[path.parent.name]
    assert name in KNOW_TORCH or "torch" not in " ".join(re.findall(r"#include <(.+?)>", text))
    assert name == "cpu/simd.h" or not re.search(r"\b_(mm|pext|cvts)|intrin\.h", text), "simd.h has the intrinsics"


# ---- without the native library ----------------------------------------------------------------------

SOME = [case for case in CASES if 0 not in case.shape][::9]
WITHOUT = """
import sys, torch, aablur
sys.path.insert(0, {tests!r})
from test_structure import results
print(aablur.info(), aablur.__file__, sep="\\n")
torch.save(results(), {target!r})
"""


def results() -> list[list[torch.Tensor]]:
    torch.set_num_threads(1)
    found = []
    for case in SOME:
        x, (taps, tensors) = make_input(case).requires_grad_(), make_taps(case)
        y = call(case, x, taps)
        found.append(
            [y.detach(), *torch.autograd.grad(y, [x, *[t.requires_grad_() for t in tensors]][:1], torch.ones_like(y))]
        )
    return found


def same(path: Path) -> None:
    for case, ours, theirs in zip(SOME, results(), torch.load(path), strict=True):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert a.dtype == b.dtype and a.stride() == b.stride(), case.id
            assert_close(a, b.double(), taps=i > 1)


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    said = python(
        WITHOUT.format(tests=str(ROOT / "tests"), target=str(tmp_path / "r.pt")),
        AABLUR_LIBRARY="/nonexistent",
        PYTHONPATH=str(ROOT),
    )
    assert "cpu    is served by reference" in said
    assert "cpu cannot serve: the native library was not built (nonexistent is missing)" in said and "compiler" in said
    same(tmp_path / "r.pt")


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    said = python("import aablur; print(aablur.info())", AABLUR_LIBRARY=str(broken), PYTHONPATH=str(ROOT))
    assert f"cpu cannot serve: {broken} does not load: " in said


def test_an_install_without_a_compiler(tmp_path: Path) -> None:
    """A wheel for any platform, with no library in it, which runs on the reference."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "aablur", source / "aablur", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "csrc", source / "csrc")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, env=os.environ | {"CXX": "/nonexistent/c++"}, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"aablur-{aablur.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    packed = {str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site" / "aablur").rglob("*.py")}
    assert packed == {str(p.relative_to(ROOT)) for p in FILES}
    assert (tmp_path / "site" / "aablur" / "py.typed").exists()
    said = python(
        WITHOUT.format(tests=str(ROOT / "tests"), target=str(tmp_path / "r.pt")),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert str(tmp_path / "site") in said and "cpu    is served by reference" in said
    same(tmp_path / "r.pt")


# ---- extras ------------------------------------------------------------------------------------------


def test_extras_do_not_replace_torch() -> None:
    """pip takes the newest release of what an extra names: nothing there may ask for a torch."""
    (extras,) = re.findall(r"optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.S)
    names = re.findall(r"\"([\w-]+)", extras)
    assert {"rich", "matplotlib", "scikit-image"} <= set(names)
    for name in names:
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        torches = [need for need in needs if re.match(r"torch(vision|audio)?\b", need) and "extra ==" not in need]
        assert not torches, (name, torches)
