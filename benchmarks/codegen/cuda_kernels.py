"""What nvcc makes of the hot GPU kernels, with no GPU: registers, spills, loads, instructions an element.

`make codegen` prints the table; tests/test_codegen.py holds every row to its budget. Each kernel is compiled twice: as
it is, for registers and spills, and without its border tiles (AABLUR_INSIDE_ONLY), where the code is straight, so that
what is executed is what is there. Kernels that go plane by plane through shared memory do borders and all in loops:
their instructions are those of every loop times its turns (plane_cuts.py), for planes of several sizes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import plane_cuts
from .sass import Listing, is_alu, is_any, loops, parse

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"


@dataclass(frozen=True)
class Budget:
    """The most that a kernel may take, and the 16-byte accesses that it must have."""

    kernel: str  # as hot_kernels.cu names it
    what: str
    instructions: float  # an element of the larger map, in a tile that touches no border
    registers: int
    wide_loads: int = 0
    wide_stores: int = 0
    side: int = 0  # of planes

    @property
    def name(self) -> str:
        return f"{self.what}, planes of {self.side}" if self.side else self.what


# At the bandwidth of an H200 an element has time for 19 instructions in bfloat16, 39 in float32 (33.4e12 a second). The
# blur's budgets are 8 and 14 where rows or pixels are read 16 bytes at a time. An element read alone pays an address of
# its own; its adjoint's tile of 8 elements does not repay finding the tile. The max takes two comparisons, a selection
# and a mark of its code for each of two candidates: of two halves at once in the forward, which brings bfloat16 to
# about 18; the adjoint adds a conditional sum for each of four positions, which makes it 23.
BUDGETS = (
    Budget("BlurTile<float, 4, 3, 2, 2, 4, false>", "blur, float32, channels_last", 14, 80, 45, 8),
    Budget("BlurTile<float, 1, 3, 2, 2, 8, true>", "blur, float32, NCHW rows", 14, 80, 17),
    Budget("BlurTile<float, 1, 3, 2, 2, 4, false>", "blur, float32, single elements", 19, 80),
    Budget("BlurTile<bfloat16, 8, 3, 2, 2, 4, false>", "blur, bfloat16, channels_last", 8, 128, 45, 8),
    Budget("BlurTile<bfloat16, 1, 3, 2, 4, 8, true>", "blur, bfloat16, NCHW rows", 8, 80, 17),
    Budget("BlurTile<bfloat16, 1, 3, 2, 2, 4, false>", "blur, bfloat16, single elements", 19, 80),
    Budget("BlurBackwardTile<float, 4, 3, 2, 2, 2, false, 1>", "adjoint, float32, channels_last", 14, 80, 4, 4),
    Budget("BlurBackwardTile<float, 1, 3, 2, 4, 4, true, 1>", "adjoint, float32, NCHW rows", 14, 80, 0, 4),
    Budget("BlurBackwardTile<float, 1, 3, 2, 2, 4, false, 1>", "adjoint, float32, single elements", 39, 80),
    Budget("BlurBackwardTile<bfloat16, 8, 3, 2, 2, 4, false, 1>", "adjoint, bfloat16, channels_last", 10, 128, 6, 8),
    Budget("BlurBackwardTile<bfloat16, 1, 3, 2, 8, 4, true, 1>", "adjoint, bfloat16, NCHW rows", 10, 168, 0, 4),
    Budget("BlurBackwardTile<bfloat16, 1, 3, 2, 2, 4, false, 1>", "adjoint, bfloat16, single elements", 39, 80),
    Budget("MaxBlurTile<float, 4, 3, 2, 2, 4, false, 2, true>", "max-blur, float32, channels_last", 39, 168, 60, 8),
    Budget("MaxBlurTile<float, 1, 3, 2, 2, 4, true, 2, true>", "max-blur, float32, NCHW rows", 31, 80, 10),
    Budget("MaxBlurTile<bfloat16, 4, 3, 2, 2, 4, false, 2, true>", "max-blur, bfloat16, channels_last", 18, 128),
    Budget("MaxBlurTile<bfloat16, 1, 3, 2, 4, 6, true, 2, true>", "max-blur, bfloat16, NCHW rows", 19, 128, 14),
    Budget("MaxBlurTile<bfloat16, 1, 3, 2, 2, 4, true, 2, true>", "max-blur, bfloat16, NCHW rows of 8 bytes", 28, 96),
    Budget("BlurBackwardTile<float, 4, 3, 2, 4, 4, false, 2>", "max adjoint, float32, channels_last", 23, 168, 12, 8),
    Budget("BlurBackwardTile<float, 1, 3, 2, 4, 4, true, 2>", "max adjoint, float32, NCHW rows", 39, 128, 0, 4),
    Budget("BlurBackwardTile<bfloat16, 4, 3, 2, 4, 4, false, 2>", "max adjoint, bfloat16, channels_last", 25, 168),
    Budget("BlurBackwardTile<bfloat16, 1, 3, 2, 8, 8, true, 2>", "max adjoint, bfloat16, NCHW rows", 24, 128),
    Budget(
        "BlurBackwardTile<bfloat16, 1, 3, 2, 4, 4, true, 2>", "max adjoint, bfloat16, NCHW rows of 8 bytes", 39, 128
    ),
)

# Planes of rows that are no whole vectors, through shared memory, all included: borders, copies, and what a block and a
# thread set up, which weighs more the smaller a plane is. At 75 % of a copy an element has time for 25 instructions in
# bfloat16 and 52 in float32, with codes for 28 and 57. All are within but the max's adjoint in bfloat16 where planes
# are smallest, or go in several segments: in its loop an element takes 16, of them 8 for sums that depend on codes.
SIDES = (7, 14, 28, 55, 57, 113)
PLANES = {  # kernel -> what, registers, 16-byte loads or copies, 16-byte stores, instructions for each of SIDES
    "BlurPlanes<float, 3, 2>": ("blur, float32", 64, 4, 4, (24, 20, 19, 20, 20, 20)),
    "BlurPlanes<bfloat16, 3, 2>": ("blur, bfloat16", 64, 4, 4, (20, 17, 16, 17, 17, 16)),
    "BlurBackwardPlanes<float, 3, 2>": ("adjoint, float32", 64, 4, 4, (22, 19, 16, 20, 20, 20)),
    "BlurBackwardPlanes<bfloat16, 3, 2>": ("adjoint, bfloat16", 64, 4, 4, (21, 16, 15, 17, 17, 18)),
    "MaxBlurPlanes<float, 3, 2, true>": ("max-blur, float32", 64, 4, 8, (36, 37, 35, 37, 36, 37)),
    "MaxBlurPlanes<bfloat16, 3, 2, true>": ("max-blur, bfloat16", 80, 4, 8, (25, 25, 24, 25, 24, 25)),
    "MaxBackwardPlanes<float, 3, 2>": ("max adjoint, float32", 80, 8, 4, (43, 36, 34, 40, 39, 39)),
    "MaxBackwardPlanes<bfloat16, 3, 2>": ("max adjoint, bfloat16", 128, 8, 4, (31, 26, 25, 29, 28, 32)),
}
BUDGETS += tuple(
    Budget(kernel, what, count, registers, loads, stores, side)
    for kernel, (what, registers, loads, stores, counts) in PLANES.items()
    for side, count in zip(SIDES, counts, strict=True)
)


@dataclass(frozen=True)
class Code:
    """What was found of one kernel."""

    instructions: float  # an element of the larger map, in a tile that touches no border
    alu: float  # of them those of ALU
    registers: int
    spilled_bytes: int
    stack_bytes: int
    local: int  # loads and stores of local memory
    atomics: int
    wide_loads: int
    wide_stores: int


def tool(name: str) -> str | None:
    """Where nvcc or cuobjdump is (Triton's wheel carries the latter), or None."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = os.pathsep.join((os.environ.get("PATH", ""), f"{home}/bin"))
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        path += os.pathsep + str(Path(triton.origin).parent / "backends/nvidia/bin")
    return shutil.which(name, path=path)


def elements(kernel: str) -> int:
    """Elements of the larger map that one thread's tile covers."""
    name, arguments = kernel.rstrip(">").split("<")
    _, lanes, _, stride, columns, rows = (a.strip() for a in arguments.split(",")[:6])
    tile = int(lanes) * int(columns) * int(rows)
    return tile if "Backward" in name else tile * int(stride) ** 2


def _name(symbol: str) -> str:
    """The kernel of `run<kernel>` or `run_blocks<kernel>`, from its mangled name: not everywhere is a demangler."""
    kinds = {"f": "float", "i": "int"}
    match = re.match(r"_ZN6aablur3gpu(?:3run|10run_blocks)INS0_\d+(\w+?)I(.*?)EEEEvT_l?$", symbol)
    assert match, symbol
    rest, parts = match.group(2), []
    while rest:
        if literal := re.match(r"L([ib])(\d+)E", rest):
            parts.append(literal.group(2) if literal.group(1) == "i" else ("false", "true")[int(literal.group(2))])
        elif literal := re.match(r"NS0_\d+([a-z]+\d\d)E", rest):
            parts.append(literal.group(1))
        else:
            literal = re.match(r"[fi]", rest)
            assert literal, symbol
            parts.append(kinds[literal.group(0)])
        rest = rest[literal.end() :]
    return f"{match.group(1)}<{', '.join(parts)}>"


def compile_hot(nvcc: str, target: Path, *extra: str, architecture: int = 90) -> str:
    """Compiles hot_kernels.cu; returns what ptxas says."""
    arch = f"-arch=sm_{architecture}"
    command = [nvcc, "-std=c++17", "-O3", f"-I{CSRC}", arch, "-cubin", "-Xptxas", "-v", *extra, "-o", str(target)]
    done = subprocess.run([*command, str(HERE / "hot_kernels.cu")], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return done.stdout + done.stderr


def _listing(cuobjdump: str, cubin: Path) -> dict[str, Listing]:
    """Kernel -> where its instructions stand and what they are, in order, without the padding."""
    text = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    return {_name(part.split()[0]): parse(part) for part in text.split("Function : ")[1:]}


def _in_straight_code(listing: Listing, counts: Callable[[str], bool] = is_any) -> int:
    return sum(not re.match(r"(@\S+ )?BRA", i) and counts(i) for _, i in listing)


def _in_loops(
    listing: Listing,
    turns: Sequence[float | tuple[float, Sequence[float]]],
    counts: Callable[[str], bool] = is_any,
) -> float:
    """Instructions that a thread executes of code whose loops turn so often; of those that count."""
    all_loops = loops(listing)

    def inside(loop: tuple[int, int]) -> list[tuple[int, int]]:
        return [other for other in all_loops if other != loop and loop[0] <= other[0] and other[1] <= loop[1]]

    def size(loop: tuple[int, int]) -> int:
        return sum(loop[0] <= at <= loop[1] and counts(i) for at, i in listing)

    outer = [loop for loop in all_loops if not any(loop in inside(other) for other in all_loops)]
    assert len(outer) == len(turns), f"{len(outer)} loops, known are {len(turns)}"
    # Without the branch to itself at the end.
    total = float(sum(counts(i) for _, i in listing[:-1]) - sum(map(size, outer)))
    for loop, turn in zip(outer, turns, strict=True):
        times, inner = turn if isinstance(turn, tuple) else (turn, [])
        nested = inside(loop)
        assert len(nested) == len(inner), f"{len(nested)} loops inside one, known are {len(inner)}"
        body = size(loop) + sum((n - 1) * size(one) for n, one in zip(inner, nested, strict=True))
        total += times * body
    return total


def measure() -> dict[str, Code]:
    """Compiles the hot kernels for sm_90 and counts: `name` of a budget -> code."""
    nvcc, cuobjdump = tool("nvcc"), tool("cuobjdump")
    if not (nvcc and cuobjdump):
        raise RuntimeError("nvcc and cuobjdump (from `pip install triton`) are needed")
    with tempfile.TemporaryDirectory() as folder:
        whole, inside = Path(folder, "whole.cubin"), Path(folder, "inside.cubin")
        log = compile_hot(nvcc, whole)
        compile_hot(nvcc, inside, "-DAABLUR_INSIDE_ONLY=true")
        all_code, straight = _listing(cuobjdump, whole), _listing(cuobjdump, inside)
    pattern = r"entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
    resources = {_name(symbol): map(int, rest) for symbol, *rest in re.findall(pattern, log, re.S)}
    unknown = set(resources) ^ {budget.kernel for budget in BUDGETS}
    assert not unknown, f"not both compiled and in BUDGETS: {unknown}"
    of_kernel = {kernel: tuple(numbers) for kernel, numbers in resources.items()}
    codes = {}
    with plane_cuts.cutter() as library:
        for budget in BUDGETS:
            stack, spilled, registers = of_kernel[budget.kernel]
            every, executed = all_code[budget.kernel], straight[budget.kernel]
            if budget.side:
                name, itemsize = budget.kernel.split("<")[0], 4 if "float," in budget.kernel else 2
                cut = plane_cuts.cut_of(library, name, itemsize, budget.side)
                turns = plane_cuts.turns(name, itemsize, budget.side, cut)
                share = cut.threads / plane_cuts.elements(name, cut)
                count, alu = _in_loops(executed, turns) * share, _in_loops(executed, turns, is_alu) * share
            else:
                share = 1 / elements(budget.kernel)
                count, alu = _in_straight_code(executed) * share, _in_straight_code(executed, is_alu) * share
            codes[budget.name] = Code(
                instructions=count,
                alu=alu,
                registers=registers,
                spilled_bytes=spilled,
                stack_bytes=stack,
                local=sum(bool(re.search(r"\b(LDL|STL)\b", i)) for _, i in every),
                atomics=sum(bool(re.search(r"\b(ATOM|ATOMG|ATOMS|RED)\b", i)) for _, i in every),
                wide_loads=sum(bool(re.search(r"(LDG|LDGSTS)\.E\S*\.128", i)) for _, i in executed),
                wide_stores=sum("STG.E.128" in i for _, i in executed),
            )
    return codes
