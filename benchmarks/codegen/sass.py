"""Machine code as cuobjdump lists it: what stands where, what loops, and what a multiprocessor has fewer lanes for."""

from __future__ import annotations

import re

Listing = list[tuple[int, str]]  # where an instruction stands, and what it is

# Integers, bits, comparisons, selections and conversions: 64 lanes a clock, where 128 are issued (CUDA C++ Programming
# Guide, throughput of arithmetic instructions; 8.0, 8.9 and 9.0 alike).
_ALU = re.compile(
    r"(@\S+ )?(LOP3|PLOP3|SHF|PRMT|IADD3|VIADD|LEA|SEL|FSEL|[IFH]SETP2?|HSET2|[FHI]MNMX2?|VIMNMX|R2P|P2R|MOV|F2FP|F2F|"
    r"IABS|SGXT|BMSK)\b"
)


def parse(text: str) -> Listing:
    """The instructions of one kernel in order, without the padding."""
    found = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.M)
    return [(int(at, 16), i) for at, i in found if not re.match(r"(@\S+ )?NOP", i)]


def loops(listing: Listing) -> list[tuple[int, int]]:
    """Where each loop begins and ends, in order."""
    found = []
    for at, instruction in listing:
        branch = re.search(r"BRA.*?(0x[0-9a-f]+)", instruction)
        if branch and int(branch[1], 16) < at:
            found.append((int(branch[1], 16), at))
    return sorted(found)


def is_any(instruction: str) -> bool:
    return True


def is_alu(instruction: str) -> bool:
    return _ALU.match(instruction) is not None
