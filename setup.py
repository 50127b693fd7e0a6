"""Builds the native library with ninja; without a compiler or torch's headers, a pure install on the reference.

AABLUR_NATIVE=0 forbids the native library, AABLUR_NATIVE=1 insists on it; AABLUR_CUDA=0 and 1 likewise for the CUDA
kernels, which nvcc compiles for AABLUR_CUDA_ARCHS where it is there and torch has CUDA. What could not be built is
said, and recorded beside the library for `aablur.info()`. AABLUR_WERROR=1 makes warnings errors. AABLUR_VARIANT builds
for tests alone, into build/<variant>, and leaves the package as it is: `sanitize` with AddressSanitizer and
UndefinedBehaviorSanitizer, `machine_code` with the CUDA kernels in place of the CPU's, executed on the CPU by the
interpreter of tests/sass.
"""

import atexit
import io
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "libaablur.so"
NOT_BUILT = "not_built.json"  # beside it: the part that could not be built -> why; aablur/backends.py reads it
OLDEST_TORCH = "0x020a000000000000ULL"  # the stable ABI of torch 2.10
BUILD = ROOT / "build"
VARIANT = os.environ.get("AABLUR_VARIANT", "native")
INSIST = VARIANT != "native" or os.environ.get("AABLUR_NATIVE") == "1"
FORBID = os.environ.get("AABLUR_NATIVE") == "0"

STRICT = os.environ.get("AABLUR_WERROR") == "1"
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", *["-Werror"] * STRICT]
# Instruction set -> flags. GCC 12's own AVX-512 header trips its own -Wuninitialized.
X86_ISAS = {
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mbmi2 "
    "-Wno-maybe-uninitialized -Wno-uninitialized",
    "avx2": "-mavx2 -mfma -mf16c -mbmi2",
}
# Functions by which an op comes to a tensor's memory, and leaves it: tests/sass/runtime.cpp watches them.
WATCHED = (
    "aoti_torch_empty_strided",
    "torch_get_const_data_ptr",
    "torch_get_mutable_data_ptr",
    "aoti_torch_get_data_ptr",
    "aoti_torch_delete_tensor_object",
)
ELEMENTS = {"float16": "float16", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}  # C++ types
EXECUTED_ARCH = "90"  # by the interpreter of tests/sass
DEFAULT_CUDA_ARCHS = "75;80;86;90;100;120+PTX"


def find_nvcc() -> str | None:
    """The CUDA compiler, where CUDA kernels are wanted: by a torch that has CUDA, or who asks for them."""
    import torch

    asked = os.environ.get("AABLUR_CUDA")
    wanted = asked == "1" or torch.version.cuda is not None or VARIANT == "machine_code"
    if VARIANT == "sanitize" or asked == "0" or not wanted:
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


def write_ninja(nvcc: str | None) -> None:
    """Writes build.ninja: of each variant a library, of objects compiled with its flags. CUDA's are shared."""
    import torch
    from ninja import ninja_syntax

    torch_root = Path(torch.__file__).parent
    (BUILD / "schemas.inc").write_text(schemas_as_c())
    x86 = platform.machine() in ("x86_64", "AMD64")
    # On x86, portable code is for processors before 2013: half the time of compiling is worth more.
    isas = {"portable": "-O2", **X86_ISAS} if x86 else {"portable": ""}
    architectures = cuda_architectures(nvcc) if nvcc else []
    common = ["-std=c++17", "-fPIC", "-fvisibility=hidden", f"-I{ROOT}/csrc"]
    sees_torch = f"-isystem{torch_root}/include -I{BUILD} -DTORCH_TARGET_VERSION={OLDEST_TORCH}"
    links_torch = f"-L{torch_root}/lib -Wl,--no-as-needed -ltorch_cpu -Wl,--as-needed"

    text = io.StringIO()
    ninja = ninja_syntax.Writer(text, width=10000)
    ninja.variable("cxx", os.environ.get("CXX", "c++"))
    ninja.variable("cflags", [*WARNINGS, *common, *os.environ.get("CXXFLAGS", "").split()])
    depends = {"depfile": "$out.d", "deps": "gcc", "description": "compile $out"}
    ninja.rule("compile", "$cxx -MMD -MF $out.d $cflags $flags -c $in -o $out", **depends)
    ninja.rule("link", "$cxx -shared $in -o $out $flags", description="link $out")

    defines_of = {e: f"-DAABLUR_ELEMENT={e} -DAABLUR_TYPE={type_name}" for e, type_name in ELEMENTS.items()}

    def compiled(name: str, source: str | Path, flags: str, rule: str = "compile") -> str:
        implicit = ["schemas.inc"] if name.endswith("library") else None
        ninja.build([f"{name}.o"], rule, str(ROOT / source), variables={"flags": flags}, implicit=implicit)
        return f"{name}.o"

    def library(variant: str, objects: list[str], flags: str, archs: Sequence[str] = (), serves: str = "") -> list[str]:
        define = f"'-DAABLUR_CUDA_ARCHS=\"{';'.join(archs)}\"'"
        return [
            compiled(f"{variant}/library", "csrc/ops/library.cpp", f"{flags} {sees_torch} {define}"),
            compiled(f"{variant}/ops", "csrc/ops/ops.cpp", f"{flags} {sees_torch} {serves}"),
            *objects,
        ]

    def cpu(variant: str, flags: str, isas: dict[str, str]) -> list[str]:
        defines = "-DAABLUR_X86" if "avx2" in isas else ""
        kernels = [
            compiled(
                f"{variant}/{isa}.{element}", "csrc/cpu/kernels.cpp", f"{flags} -DAABLUR_ISA={isa} {define} {of_isa}"
            )
            for isa, of_isa in isas.items()
            for element, define in defines_of.items()
        ]
        return [compiled(f"{variant}/cpu", "csrc/cpu/backend.cpp", f"{flags} {sees_torch} {defines}"), *kernels]

    def linked(target: str, objects: list[str], flags: str) -> None:
        ninja.build([target], "link", objects, variables={"flags": flags})

    native, links_native = cpu("native", "-O3", isas), f"{links_torch} -Wl,-s"
    # The interpreter of machine code, with a driver of CUDA for Triton and, beside CUDA objects, CUDA's runtime.
    of_cpu = X86_ISAS["avx2"] if x86 else ""
    interpreter = {
        source.stem: compiled(f"machine_code/{source.stem}", source, f"-O3 -frounding-math {of_cpu}")
        for source in sorted((ROOT / "tests/sass").glob("*.cpp"))
    }
    runtime, driver = (interpreter.pop(part, "") for part in ("runtime", "driver"))
    machine_code = ["machine_code/libcuda.so.1"]
    linked(machine_code[0], [*interpreter.values(), driver], "-Wl,-soname,libcuda.so.1")
    if nvcc:
        home = Path(nvcc).resolve().parent.parent
        ninja.variable("nvcc", nvcc)
        ninja.variable(
            "nvccflags",
            f"-std=c++17 -O3 -I{ROOT}/csrc --expt-relaxed-constexpr {'-Werror all-warnings ' * STRICT}"
            f"-Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wno-unknown-pragmas "
            "-Xfatbin -compress-all --threads 4",  # 4 architectures side by side
        )
        ninja.rule("cuda", "$nvcc -MMD -MF $out.d $nvccflags $flags -c $in -o $out", **depends)

        def cuda_objects(folder: str, archs: list[str]) -> list[str]:
            flags = architecture_flags(archs)
            return [
                compiled(f"{folder}/{e}", "csrc/gpu/instantiate.cu", f"{define} {flags}", "cuda")
                for e, define in defines_of.items()
            ]

        cuda = cuda_objects("cuda", architectures)
        is_executed = any(arch.removesuffix("+PTX") == EXECUTED_ARCH for arch in architectures)
        executed = cuda if is_executed else cuda_objects("machine_code/cuda", [EXECUTED_ARCH])
        backend = compiled("cuda/backend", "csrc/gpu/backend.cpp", f"-O3 {sees_torch}")
        native += [backend, *cuda]
        links_native += f" -L{home}/lib64 -L{home}/targets/x86_64-linux/lib -lcudart_static -lrt -ldl -lpthread"

        objects = [backend, *executed, *interpreter.values(), runtime]
        wraps = " ".join(f"-Wl,--wrap={name}" for name in WATCHED)
        machine_code.append(f"machine_code/{LIBRARY}")
        objects = library("machine_code", objects, "-O3", serves="-DAABLUR_MACHINE_CODE")
        linked(machine_code[1], objects, f"{wraps} {links_torch}")
    ninja.build(["machine_code"], "phony", machine_code)
    native = library("native", native, "-O3", architectures, "-DAABLUR_CUDA" if nvcc else "")
    linked(f"native/{LIBRARY}", native, links_native)
    ninja.build(["native"], "phony", [f"native/{LIBRARY}"])
    checks = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
    checked = f"-O1 -g1 {checks} -Wno-maybe-uninitialized -Wno-uninitialized"
    of_this_cpu = cpu("sanitize", checked, {"portable": "-march=native"})  # it runs where it was compiled
    linked(f"sanitize/{LIBRARY}", library("sanitize", of_this_cpu, checked), f"{links_torch} {checks}")
    ninja.build(["sanitize"], "phony", [f"sanitize/{LIBRARY}"])
    (BUILD / "build.ninja").write_text(text.getvalue())


def schemas_as_c() -> str:
    schemas = runpy.run_path(str(ROOT / "aablur/schemas.py"))["SCHEMAS"]
    return "".join(f'"{schema}",\n' for schema in schemas)


def run_ninja() -> dict[str, str]:
    """Builds the library; without the CUDA kernels where nvcc fails and nobody insists on them.

    Returns:
        what could not be built -> why.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise RuntimeError("torch cannot be imported where it is built: `pip install --no-build-isolation`") from error
    ninja = [sys.executable, "-m", "ninja", "-C", str(BUILD), VARIANT]
    missing = {}
    if nvcc := find_nvcc():
        try:
            write_ninja(nvcc)
            run(ninja)
            return {}
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("AABLUR_CUDA") == "1":
                raise
            missing["cuda"] = str(error)
    write_ninja(None)
    run(ninja)
    return missing


def run(command: list[str]) -> None:
    """Runs it, and prints what it prints; of a failure raises the line that tells why."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.strip())
    if process.returncode:
        telling = (line for line in lines if re.search(r"\berror\b|not found|No such file|No module", line, re.I))
        raise RuntimeError(next(telling, lines[-1] if lines else f"{command[0]} returned {process.returncode}"))


def say(line: str) -> None:
    """To who installs: pip keeps a build's output to itself, so to the terminal too."""
    print(line, file=sys.stderr)
    if not sys.stderr.isatty():
        try:
            with open("/dev/tty", "w") as terminal:
                print(f"\n{line}", file=terminal)
        except OSError:  # there is none
            pass


class BuildNative(build_ext):
    missing: dict[str, str]

    def run(self) -> None:
        self.missing = {}
        super().run()
        if VARIANT == "native":
            self.record()

    def build_extension(self, ext: Extension) -> None:
        try:
            if FORBID:
                raise RuntimeError("AABLUR_NATIVE=0")
            BUILD.mkdir(parents=True, exist_ok=True)
            self.missing = run_ninja()
        except (RuntimeError, ImportError, OSError, subprocess.CalledProcessError) as error:
            if INSIST:
                raise
            self.missing = {"native": str(error)}
            return
        if VARIANT == "native":
            destination = Path(self.get_ext_fullpath(ext.name))
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(BUILD / VARIANT / LIBRARY, destination)

    def record(self) -> None:
        """Says what is missing, here and beside the library."""
        record = Path(self.get_ext_fullpath("aablur.native")).with_name(NOT_BUILT)
        record.unlink(missing_ok=True)
        if not self.missing:
            return
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(self.missing))
        serves = {"native": "the reference in plain torch", "cuda": "Triton, or the reference"}
        for part, reason in self.missing.items():
            atexit.register(
                say, f"aablur: WARNING: the {part} kernels were NOT built ({reason}): {serves[part]} will run instead"
            )

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")[:-1], LIBRARY)

    def get_outputs(self) -> list[str]:
        found = super().get_outputs()
        return [path for path in (*found, *{str(Path(p).with_name(NOT_BUILT)) for p in found}) if os.path.exists(path)]

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
