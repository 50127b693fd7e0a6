"""Builds the native library with ninja; without a compiler or torch's headers, a pure install on the reference.

AABLUR_NATIVE=0 forbids the native library, AABLUR_NATIVE=1 insists on it; AABLUR_CUDA=0 and 1 likewise for the CUDA
kernels, which nvcc compiles for AABLUR_CUDA_ARCHS where it is there. AABLUR_VARIANT builds for tests alone, into
build/<variant>, and leaves the package as it is: `sanitize` with AddressSanitizer and UndefinedBehaviorSanitizer,
`gpu_on_host` the same with the GPU kernels run on the host in place of the CPU's.
"""

import io
import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "libaablur.so"
OLDEST_TORCH = "0x020a000000000000ULL"  # the stable ABI of torch 2.10
VARIANT = os.environ.get("AABLUR_VARIANT", "native")
SANITIZE = VARIANT != "native"
INSIST = SANITIZE or os.environ.get("AABLUR_NATIVE") == "1"
FORBID = os.environ.get("AABLUR_NATIVE") == "0"

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
# Instruction set -> flags. GCC 12's own AVX-512 header trips its own -Wuninitialized.
X86_ISAS = {
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mbmi2 "
    "-Wno-maybe-uninitialized -Wno-uninitialized",
    "avx2": "-mavx2 -mfma -mf16c -mbmi2",
}
ELEMENTS = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}  # C++ types
DEFAULT_CUDA_ARCHS = "75;80;86;90;100;120+PTX"


def find_nvcc() -> str | None:
    """The CUDA compiler, where CUDA kernels are wanted."""
    asked = os.environ.get("AABLUR_CUDA")
    if VARIANT != "native" or asked == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = next(
        (str(nvcc) for home in homes if home and (nvcc := Path(home, "bin/nvcc")).exists()), shutil.which("nvcc")
    )
    if asked == "1" and not found:
        raise RuntimeError("AABLUR_CUDA=1, and there is no nvcc in CUDA_HOME, /usr/local/cuda or PATH")
    return found


def cuda_architectures(nvcc: str) -> list[str]:
    """What to compile for, "90" or "120+PTX": the architectures asked for, or the default ones that this nvcc knows."""
    asked = os.environ.get("AABLUR_CUDA_ARCHS")
    if asked:
        return asked.replace(".", "").replace(" ", ";").split(";")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    found = [a for a in DEFAULT_CUDA_ARCHS.split(";") if f"compute_{a.removesuffix('+PTX')}" in known]
    return [*found[:-1], found[-1].removesuffix("+PTX") + "+PTX"]


def architecture_flags(architectures: list[str]) -> str:
    flags = []
    for arch in architectures:
        number = arch.removesuffix("+PTX")
        flags.append(f"-gencode arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode arch=compute_{number},code=compute_{number}")
    return " ".join(flags)


def write_ninja(build: Path, target: Path, nvcc: str | None) -> None:
    """Writes build.ninja: every source an object, cpu/kernels.cpp one an instruction set, all one library."""
    import torch
    from ninja import ninja_syntax

    torch_root = Path(torch.__file__).parent
    (build / "schemas.inc").write_text(schemas_as_c())
    x86 = platform.machine() in ("x86_64", "AMD64")
    isas = {"portable": "", **(X86_ISAS if x86 else {})}
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    optimise = ["-O1", "-g", *sanitize, "-Wno-maybe-uninitialized"] if SANITIZE else ["-O3"]
    includes = f"-I{ROOT}/csrc"
    flags = ["-std=c++17", "-fPIC", "-fvisibility=hidden", includes, *optimise]
    torch_flags = [f"-isystem{torch_root}/include", f"-I{build}", f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}"]
    if x86:
        torch_flags.append("-DAABLUR_X86")

    text = io.StringIO()
    ninja = ninja_syntax.Writer(text, width=10000)
    ninja.variable("cxx", os.environ.get("CXX", "c++"))
    ninja.variable("cflags", [*WARNINGS, *flags, *os.environ.get("CXXFLAGS", "").split()])
    ninja.rule(
        "compile",
        "$cxx -MMD -MF $out.d $cflags $extra -c $in -o $out",
        depfile="$out.d",
        deps="gcc",
        description="compile $out",
    )
    ninja.rule("link", "$cxx -shared $in -o $out $ldflags", description="link $out")
    torch_extra = " ".join(torch_flags)
    objects: list[str] = []

    def compiled(name: str, source: str, extra: str, rule: str = "compile", **options: object) -> None:
        objects.extend(
            ninja.build([f"{name}.o"], rule, str(ROOT / "csrc" / source), variables={"extra": extra}, **options)
        )

    link = [f"-L{torch_root}/lib", "-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed"]
    link += sanitize if SANITIZE else ["-Wl,-s"]
    architectures = cuda_architectures(nvcc) if nvcc else []
    compiled(
        "library",
        "ops/library.cpp",
        f"{torch_extra} '-DAABLUR_CUDA_ARCHS=\"{';'.join(architectures)}\"'",
        implicit=["schemas.inc"],
    )
    if VARIANT == "gpu_on_host":
        compiled("gpu", "gpu/backend.cpp", f"{torch_extra} -DAABLUR_GPU_ON_HOST")
        for element, type_name in ELEMENTS.items():
            extra = f"-DAABLUR_ELEMENT={element} -DAABLUR_TYPE={type_name}"
            compiled(f"gpu_on_host.{element}", "gpu/instantiate_on_host.cpp", extra)
    else:
        compiled("cpu", "cpu/backend.cpp", torch_extra)
        for isa, isa_flags in isas.items():
            compiled(f"kernels.{isa}", "cpu/kernels.cpp", f"-DAABLUR_ISA={isa} {isa_flags}")
    if nvcc:
        home = Path(nvcc).resolve().parent.parent
        ninja.variable("nvcc", nvcc)
        ninja.variable(
            "nvccflags",
            f"-std=c++17 -O3 {includes} -Werror all-warnings "
            f"-Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas "
            f"-Xfatbin -compress-all --threads 4 {architecture_flags(architectures)}",  # 4 architectures side by side
        )
        ninja.rule(
            "cuda",
            "$nvcc -MMD -MF $out.d $nvccflags $extra -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
            description="compile $out",
        )
        for element, type_name in ELEMENTS.items():
            extra = f"-DAABLUR_ELEMENT={element} -DAABLUR_TYPE={type_name}"
            compiled(f"cuda.{element}", "gpu/instantiate.cu", extra, "cuda")
        compiled("gpu", "gpu/backend.cpp", torch_extra)
        link += [
            f"-L{home}/lib64",
            f"-L{home}/targets/x86_64-linux/lib",
            "-lcudart_static",
            "-lrt",
            "-ldl",
            "-lpthread",
        ]
    ninja.build([str(target)], "link", objects, variables={"ldflags": " ".join(link)})
    (build / "build.ninja").write_text(text.getvalue())


def schemas_as_c() -> str:
    schemas = runpy.run_path(str(ROOT / "aablur/schemas.py"))["SCHEMAS"]
    return "".join(f'"{schema}",\n' for schema in schemas)


def run_ninja(build: Path, target: Path) -> None:
    """Builds the library; without the CUDA kernels where nvcc fails and nobody insists on them."""
    ninja = [sys.executable, "-m", "ninja", "-C", str(build)]
    if nvcc := find_nvcc():
        try:
            write_ninja(build, target, nvcc)
            subprocess.run(ninja, check=True)
            return
        except (OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("AABLUR_CUDA") == "1":
                raise
            print(f"aablur: CUDA kernels not built ({error})", file=sys.stderr)
    write_ninja(build, target, None)
    subprocess.run(ninja, check=True)


class BuildNative(build_ext):
    def build_extension(self, ext: Extension) -> None:
        build = ROOT / "build" / VARIANT
        target = build / LIBRARY
        try:
            if FORBID:
                raise RuntimeError("AABLUR_NATIVE=0")
            build.mkdir(parents=True, exist_ok=True)
            run_ninja(build, target)
        except (RuntimeError, ImportError, OSError, subprocess.CalledProcessError) as error:
            if INSIST:
                raise
            print(f"aablur: native library not built ({error}); aablur will run on the reference", file=sys.stderr)
            return
        if not SANITIZE:
            destination = Path(self.get_ext_fullpath(ext.name))
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(target, destination)

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")[:-1], LIBRARY)

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if os.path.exists(path)]

    def copy_extensions_to_source(self) -> None:
        self.extensions = [e for e in self.extensions if Path(self.build_lib, self.get_ext_filename(e.name)).exists()]
        super().copy_extensions_to_source()


class Wheel(bdist_wheel):
    """Tags a wheel with the native library py3-none-<platform> (it holds no Python ABI), one without it any."""

    def get_tag(self) -> tuple[str, str, str]:
        built = Path(self.bdist_dir or "")
        native = any(built.rglob(LIBRARY)) if self.bdist_dir and built.exists() else True
        return ("py3", "none", super().get_tag()[2] if native else "any")


setup(
    ext_modules=[Extension("aablur.native", [])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
