"""Promise: the interpreter of machine code does what NVIDIA's documents say of every instruction, finds every fault
that it is there to find and no other, and counts what it is said to count.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")  # of benchmarks

from machine_code.conversions import conversions
from machine_code.floats import floats
from machine_code.halves import halves
from machine_code.integers import integers
from machine_code.machine import NUMPY, Fault, Machine, Module, compile_for, literal, variants
from machine_code.operands import Op, operands

from benchmarks.codegen.interpreter import DRIVER, tool

pytestmark = pytest.mark.skipif(
    not (tool("nvcc") and tool("cuobjdump") and DRIVER.exists()), reason="no nvcc, no cuobjdump, or no `make variants`"
)

ARCHITECTURES = (80, 90)
OPS = [*integers(), *floats(), *halves(), *conversions()]
SCALARS = {16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Module]:
    folder = tmp_path_factory.mktemp("machine_code")
    with ThreadPoolExecutor(2) as pool:
        cubins = list(pool.map(lambda architecture: compile_for(architecture, OPS, folder), ARCHITECTURES))
    machine = Machine(DRIVER)
    return dict(zip(ARCHITECTURES, (Module(machine, cubin) for cubin in cubins), strict=True))


@pytest.fixture(params=ARCHITECTURES, ids=lambda a: f"sm_{a}")
def module(modules: dict[int, Module], request: pytest.FixtureRequest) -> Module:
    return modules[request.param]


# ---- instructions ------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def rows_of(op: Op) -> tuple[list[tuple[int, ...]], list[int]]:
    rows = operands(op, 512)
    return rows, [op.f(*row) for row in rows]


def launches(op: Op, variant: str) -> Iterator[tuple[list[tuple[int, ...]], list[int], tuple[int, ...]]]:
    """Operands, results, and the scalars of each launch of a variant."""
    rows, results = rows_of(op)
    if set(variant) == {"a"}:
        yield rows, results, rows[0]
        return
    rng = random.Random(variant)
    for _ in range(1 if "l" in variant else 8 if "a" not in variant else 2):
        scalars = rng.choice(rows)
        made = [
            tuple({"a": row[i], "s": scalars[i], "l": literal(op, i)}[v] for i, v in enumerate(variant))
            for row in rng.sample(rows, 96 if "a" in variant else 32)
        ]
        yield made, [op.f(*row) for row in (made if "a" in variant else made[:1])], scalars


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_instruction(op: Op, module: Module, request: pytest.FixtureRequest) -> None:
    """With operands of every kind: registers, constants, immediates, and all of them uniform."""
    if op.since > request.node.callspec.params["module"]:
        return  # such a machine has it not
    for variant in variants(op):
        for rows, results, scalars in launches(op, variant):
            columns = [
                np.array(column, NUMPY[w]) for column, w in zip(zip(*rows, strict=True), op.widths, strict=False)
            ]
            out = np.zeros(len(rows), NUMPY[op.widths[-1]])
            values = [SCALARS[w](v) for v, w in zip(scalars, op.widths, strict=False)]
            module.launch(f"{op.name}__{variant}", len(rows) // 32, 32, *columns, out, *values)
            expected = results if len(results) == len(rows) else results * len(rows)
            for row, found, result in zip(rows, map(int, out), expected, strict=True):
                shown = f"{variant} {[hex(v) for v in row]}: {found:#x}, not {result:#x}"
                assert op.accepts(found, result), shown


# ---- memory ------------------------------------------------------------------------------------------

rng = np.random.default_rng(0)


def some(count: int, dtype: Any = np.uint32) -> np.ndarray:
    return rng.integers(0, np.iinfo(dtype).max, count, dtype, endpoint=True)


def bytes_up_to(most: int, count: int) -> np.ndarray:
    return rng.integers(0, most + 1, count).astype(np.uint32)


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_copies_of_every_width(width: int, module: Module) -> None:
    x = some(96 * width, np.uint8)
    out = np.zeros_like(x)
    module.launch(f"copy_{width}", 3, 32, x, out)
    assert (out == x).all()


@pytest.mark.parametrize("kernel", ["copy_volatile", "copy_read_only", "copy_hinted"])
def test_hints_and_volatile_change_no_value(kernel: str, module: Module) -> None:
    x, out = some(50), np.zeros(50, np.uint32)
    module.launch(kernel, 1, 50, x, out)
    assert (out == (x * np.uint32(2) if kernel == "copy_hinted" else x)).all()


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("sign", ["signed", "unsigned"])
def test_narrow_loads_are_extended_by_their_sign(sign: str, width: int, module: Module) -> None:
    dtype = {"signed1": np.int8, "signed2": np.int16, "unsigned1": np.uint8, "unsigned2": np.uint16}[f"{sign}{width}"]
    x, out = some(64, dtype), np.zeros(64, np.int32)
    module.launch(f"widen_{sign}_{width}", 1, 64, x, out)
    assert (out == x).all()


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_shared_memory_of_every_width(width: int, module: Module) -> None:
    x = some(256 * width, np.uint8).reshape(256, width)
    out = np.zeros_like(x)
    module.launch(f"reverse_{width}", 1, 256, x, out)
    assert (out == x[::-1]).all()


def test_dynamic_shared_memory_follows_the_static(module: Module) -> None:
    x, out = some(128), np.zeros(128, np.uint32)
    module.launch("reverse_dynamic", 1, 128, x, out, shared=512)
    assert (out == x[::-1] + np.uint32(7)).all()
    with pytest.raises(Fault, match="shared access at byte 636 of 636"):
        module.launch("reverse_dynamic", 1, 128, x, out, shared=508)


PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)


def test_constants_at_an_index_of_each_thread(module: Module) -> None:
    at, out, doubles = some(64), np.zeros(64, np.uint32), np.zeros(64)
    module.launch("constants", 1, 64, at, out)
    assert out.tolist() == [(PRIMES[i % 16] + (-1, 2, -3, 4, -5)[i % 5]) % 2**32 for i in at.tolist()]
    module.launch("constants_64", 1, 64, at, doubles)
    assert doubles.tolist() == [(0.5, -1.25, 3.0, 1e300)[i % 4] for i in at.tolist()]


class Packed(ctypes.Structure):
    _fields_ = (("head", ctypes.c_int), ("list", ctypes.c_short * 9), ("tail", ctypes.c_uint64))


def test_structures_are_passed_by_value(module: Module) -> None:
    at, out = some(64), np.zeros(64, np.uint64)
    numbers = [int(v) for v in some(9, np.int16)]
    packed = Packed(-5, (ctypes.c_short * 9)(*numbers), 2**50 + 1)
    module.launch("structure", 1, 64, at, out, packed, ctypes.c_uint8(250))
    assert out.tolist() == [(-5 + numbers[i % 9] + 2**50 + 1 + 250) % 2**64 for i in at.tolist()]


def test_arrays_of_a_thread(module: Module) -> None:
    at, out = rng.permutation(24).astype(np.uint32) + 48, np.zeros(40, np.uint32)
    module.launch("local_array", 1, 40, at, out)
    expected = []
    for t in range(40):
        turned = {int(at[i]) % 24: i * i + t for i in range(24)}
        total = 0
        for i in range(8):
            total = (3 * total + turned[int(at[(t + i) % 24]) % 24]) % 2**32
        expected.append(total)
    assert out.tolist() == expected
    at = rng.permutation(16).astype(np.uint32)
    module.launch("local_bytes", 1, 40, at, out)
    for t in range(40):
        own = np.zeros(16, np.uint8)
        own[(at + t) & 15] = 5 * np.arange(16)
        assert out[t] == int(own[at[t & 15]]) + 256 * int(own.view(np.uint16)[int(at[3]) & 7])


@pytest.mark.parametrize(("kernel", "width", "by"), [("4", 4, 5), ("8", 8, 5), ("16", 16, 5), ("global_only", 16, 9)])
def test_asynchronous_copies(kernel: str, width: int, by: int, module: Module) -> None:
    x = some(128 * width, np.uint8).reshape(128, width)
    out = np.zeros_like(x)
    module.launch(f"async_{kernel}", 1, 128, x, out)
    assert (out == x[np.arange(128) ^ by]).all()


@pytest.mark.parametrize("size", [0, 4, 12, 16])
def test_asynchronous_copies_fill_with_zeros_and_read_no_more(size: int, module: Module) -> None:
    x, out = some(127 * 16 + size, np.uint8), np.full((128, 16), 9, np.uint8)
    module.launch("async_zeros", 1, 128, x, out, ctypes.c_uint32(size))
    whole = np.zeros((128, 16), np.uint8)
    whole.reshape(-1)[: x.size] = x
    whole[:, size:], whole[::2] = 0, 0
    assert (out == whole).all()
    if size:
        with pytest.raises(Fault, match="global access"):
            module.launch("async_zeros", 1, 128, x[:-1], out, ctypes.c_uint32(size))


def test_asynchronous_copies_in_stages(module: Module) -> None:
    x, out = some(6 * 128).reshape(6, 128), np.zeros(128, np.uint32)
    module.launch("async_stages", 1, 128, x, out)
    expected = np.zeros(128, np.uint32)
    for row in x:
        expected = expected * np.uint32(5) + np.roll(row, -1)
    assert (out == expected).all()


@pytest.mark.parametrize("which", range(3))
def test_pointers_to_any_memory(which: int, module: Module) -> None:
    x, out = np.arange(64, dtype=np.uint32) * 8 + 3, np.zeros(64, np.uint32)
    module.launch("any_memory", 1, 64, x, out, ctypes.c_uint32(which))
    for t in range(64):
        own = {(int(x[i]) + i) % 8: t + i for i in range(8)}
        i = t * 5 % 8
        assert out[t] == (2 * x[i], own[i], x[i])[(which + t) % 3]


# ---- what threads of a warp tell each other ----------------------------------------------------------


def shuffled(how: str, lane: int, by: int, width: int) -> int:
    """The lane that CUDA's guide says is read."""
    first = lane // width * width
    if how == "idx":
        return first + by % width
    if how == "up":
        return lane - by if lane - by >= first else lane
    if how == "down":
        return lane + by if lane + by < first + width else lane
    return lane ^ by if lane ^ by < first + width else lane


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("by", [0, 1, 2, 3, 7, 16, 31])
def test_shuffles(by: int, width: int, module: Module) -> None:
    x, out = some(64), np.zeros((8, 64), np.uint32)
    module.launch("shuffles", 1, 64, x, out, ctypes.c_uint32(by), ctypes.c_uint32(width))
    for t in range(64):
        warp, lane = t // 32 * 32, t % 32
        asked = [(how, by, width) for how in ("idx", "up", "down", "xor")]
        asked += [("idx", int(x[t]) & 31, 16), ("up", 3, 8), ("down", 1, 32), ("xor", 16, 32)]
        assert out[:, t].tolist() == [x[warp + shuffled(how, lane, n, w)] for how, n, w in asked]


def test_shuffles_say_whether_a_lane_is_in_range(module: Module) -> None:
    x, out = bytes_up_to(999, 32), np.zeros(32, np.uint32)
    module.launch("shuffle_in_range", 1, 32, x, out)
    assert out.tolist() == [x[t - 5] + 1000 if t >= 5 else x[t] for t in range(32)]


def test_shuffles_of_64_bits(module: Module) -> None:
    x, out = some(32, np.uint64), np.zeros(32, np.uint64)
    module.launch("shuffle_64", 1, 32, x, out)
    assert (out == x[np.arange(32) ^ 7]).all()


def test_votes(module: Module) -> None:
    for most in (90, 210, 255):
        x, out = bytes_up_to(most, 64), np.zeros((4, 64), np.uint32)
        module.launch("votes", 1, 64, x, out)
        for warp in (slice(0, 32), slice(32, 64)):
            v = x[warp]
            assert (out[0, warp] == sum(int(b) << i for i, b in enumerate(v & 1))).all()
            assert (out[1, warp] == int((v > 200).any()) + 2 * int((v < 250).all())).all()
            assert (out[2, warp] == int((v > 100).all() or not (v > 100).any())).all()
            active = sum(int(b) << i for i, b in enumerate(v >> 1 & 1))
            assert (out[3, warp] == np.where(v & 2, active, 0)).all()


def test_masks_of_lanes(module: Module) -> None:
    out = np.zeros(32, np.uint32)
    module.launch("lanes", 1, 32, out)
    for t in range(32):
        below, up_to = (1 << t) - 1, (2 << t) - 1
        assert out[t] == (below + 3 * up_to + 5 * (2**32 - 1 - up_to) + 7 * t) % 2**32


def test_reductions_and_matches(module: Module) -> None:
    x, out = some(32), np.zeros((5, 32), np.uint32)
    module.launch("reductions", 1, 32, x, out)
    both = np.bitwise_and.reduce(x) ^ np.bitwise_or.reduce(x)
    greatest = x.view(np.int32).max().astype(np.uint32)
    assert ([x.sum(dtype=np.uint32), x.min(), greatest, both, np.bitwise_xor.reduce(x)] == out.T).all()
    module.launch("matches", 1, 32, x, out)
    assert out[0].tolist() == [sum(int(v & 3 == w & 3) << i for i, w in enumerate(x)) for v in x]


def test_threads_that_have_parted_shuffle_among_themselves(module: Module) -> None:
    x, out = some(32), np.zeros(32, np.uint32)
    module.launch("shuffle_of_halves", 1, 32, x, out)
    t = np.arange(32)
    assert (out == np.where(t & 16, x[t ^ 3] * np.uint32(2), x[t ^ 5] * np.uint32(3))).all()
    module.launch("shuffle_after_loop", 1, 32, x, out)
    turned = []
    for t in range(32):
        v = int(x[t])
        for n in range(t % 7):
            v = (v * 3 + n) % 2**32
            if v % 11 == 0:
                break
        turned.append(v)
    assert out.tolist() == [(v + turned[t ^ 1]) % 2**32 for t, v in enumerate(turned)]


def test_matrices_of_shared_memory(module: Module, request: pytest.FixtureRequest) -> None:
    x, out = some(128), np.zeros(192, np.uint32)
    matrices = x.view(np.uint16).reshape(4, 8, 8)
    module.launch("matrices", 1, 32, x, out)
    assert (out[:128] == x).all()  # thread t of each has elements 2 t and 2 t + 1
    assert (out[128:].view(np.uint16).reshape(2, 8, 8) == matrices[:2].transpose(0, 2, 1)).all()
    if request.node.callspec.params["module"] >= 90:
        module.launch("store_matrices", 1, 32, x, out)
        assert (out[:128] == x).all()


# ---- control -----------------------------------------------------------------------------------------


def run_divergent(x: list[int], t: int) -> int:
    v = x[t]
    if v % 3 == 0:
        r = v * 5 + x[v % 32] if v % 2 == 0 else v * 5 - x[(v + 1) % 32]
    elif v % 3 == 1:
        r = v ^ 0x55
        for i in range(v % 5):
            r = r * 7 + i
    else:
        r = ~v
    return r + 1


def run_nested_loops(x: list[int], t: int) -> int:
    r = v = x[t]
    for i in range(v % 9):
        for j in range(i, v % 13):
            if (r + j) % 2**32 % 7 == 3:
                continue
            r = (r * 31 + j) % 2**32
            if r % 29 == 5:
                break
        r ^= i
    return r


def called(v: int, w: int) -> int:
    kept = {(v + i) % 2**32 % 6: v * i for i in range(6)}
    return (2 * v + kept[w % 6]) % 2**32


def run_calls(x: list[int], t: int) -> int:
    v = x[t]
    r = (called(v, t) + (called(t, v) if v & 1 else 5)) % 2**32
    return r + called(r, v) if v % 3 else r


def run_cases(x: list[int], t: int) -> int:
    v, n = x[t], x[t] % 12
    if n == 9:
        r = v
        for i in range(v % 8):
            r = r * 5 + x[i]
        return r
    reversed_bits = int(f"{v:032b}"[::-1], 2)
    return {
        0: v * 3 + x[0],
        1: v ^ x[1],
        2: v - x[2] * v,
        3: v // 7,
        4: x[v % 32] + 77,
        5: v + 77,
        6: v.bit_count() + x[6],
        7: v << 5 | x[7],
        8: reversed_bits + x[8],
        10: ~v + x[10],
    }.get(n, 1234567)


@pytest.mark.parametrize(
    ("kernel", "run"),
    [("divergent", run_divergent), ("nested_loops", run_nested_loops), ("calls", run_calls), ("cases", run_cases)],
)
def test_threads_go_their_own_ways(kernel: str, run: Callable[[list[int], int], int], module: Module) -> None:
    # Their remainder by 6 alone may wrap, which called() relies on.
    for x in (some(256) // np.uint32(2), np.arange(256, dtype=np.uint32)):
        out = np.zeros(256, np.uint32)
        module.launch(kernel, 1, 256, x, out)
        assert out.tolist() == [run(x.tolist(), t) % 2**32 for t in range(256)]


def test_threads_leave_early(module: Module) -> None:
    x, n = np.arange(256, dtype=np.uint32), 201
    out, expected = np.zeros(256, np.uint32), np.zeros(256, np.uint32)
    module.launch("early_exit", 4, 64, x, out, ctypes.c_uint32(n))
    for i in range(n):
        v = i
        while v > 1 and v != 97:
            v = 3 * v + 1 if v & 1 else v // 2
            expected[i] += 1
        expected[i] += 0 if v == 97 else 1000
    assert (out == expected).all()
    module.launch("exit_before_barrier", 1, 128, x, out)
    assert (out[:100] == x[:100][::-1]).all()


def test_blocks_of_three_axes(module: Module) -> None:
    out = np.zeros(2 * 5 * 3 * 7, np.uint32)
    module.launch("grid_of_three", 2, (5, 3, 7), out)
    places = [(x, y, z, b) for b in range(2) for z in range(7) for y in range(3) for x in range(5)]
    assert out.tolist() == [x + 100 * y + 10000 * z + 1000000 * b + 200000000 for x, y, z, b in places]


# ---- barriers, used as they should be: no fault ------------------------------------------------------


def test_a_reduction_of_a_block(module: Module) -> None:
    x, out = some(3 * 256), np.zeros(3, np.uint32)
    module.launch("sum_of_block", 3, 256, x, out)
    assert (out == x.reshape(3, 256).sum(1, dtype=np.uint32)).all()


def test_parts_of_a_warp_in_step(module: Module) -> None:
    x, out, t = bytes_up_to(99, 32), np.zeros(32, np.uint32), np.arange(32)
    module.launch("halves_in_step", 1, 32, x, out)
    assert (out == np.where(t < 16, 3 * x[t ^ 1], 5 * x[t ^ 2])).all()
    out[:] = 0
    module.launch("parted_in_step", 1, 32, x, out)
    shared = np.where(t & 1, x, 2 * x)
    turned = x % 7 * (x % 7 - 1) // 2
    assert (out == np.where(t & 1, turned + shared[t ^ 3], shared[t ^ 5])).all()


def test_the_same_value_by_all_is_no_race(module: Module) -> None:
    out = np.zeros(256, np.uint32)
    module.launch("same_value_by_all", 1, 256, out)
    assert (out == 17).all()


def test_barriers_of_parts_of_a_block(module: Module) -> None:
    x, out, t = bytes_up_to(99, 128), np.zeros(128, np.uint32), np.arange(128)
    module.launch("named_barriers", 1, 128, x, out)
    assert (out == np.where(t < 64, 3 * x[t ^ 63] + 3, 4 * x[t ^ 63] + 6)).all()
    out[:] = 0
    module.launch("arrive_and_wait", 1, 64, x, out)
    assert (out[:32] == x[:32][::-1]).all()


def test_barriers_that_vote(module: Module) -> None:
    for most, big in ((200, 0), (200, 255), (200, 256)):
        x, out = bytes_up_to(most, 96), np.zeros(96, np.uint32)
        x[77] = max(x[77], big)
        module.launch("counting_barrier", 1, 96, x, out)
        assert (out == (x & 1).sum() + 1000 * (x > 254).any() + 2000 * (x < 256).all()).all()


RACES = ("read_after_write", "write_after_read", "write_after_write")


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize(("barrier", "by"), [("block", 32), ("block", 1), ("block", 96), ("warp", 1), ("warp", 31)])
def test_what_a_barrier_orders_is_no_race(race: str, barrier: str, by: int, module: Module) -> None:
    x, out, t = some(128), np.zeros(128, np.uint32), np.arange(128)
    module.launch(f"{race}_{barrier}", 1, 128, x, out, ctypes.c_uint32(by))
    assert (out == x[t ^ by] + np.uint32(race != "read_after_write")).all()


def test_own_accesses_and_waited_copies_are_no_race(module: Module) -> None:
    x, out = some(128), np.zeros(128, np.uint32)
    for race in RACES:
        module.launch(f"{race}_none", 1, 128, x, out, ctypes.c_uint32(0))
    module.launch("async_waited", 1, 128, x, out, ctypes.c_uint32(0))
    assert (out == x).all()
    module.launch("write_after_reads_of_all_block", 1, 128, x, out, ctypes.c_uint32(70))
    assert (out == x[0]).all()


# ---- faults ------------------------------------------------------------------------------------------


def faults(message: str) -> Any:
    return pytest.raises(Fault, match=message)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (-4, "outside of the tensors: 4 bytes before one"),
        (-400, "outside of the tensors: 400 bytes before one"),
        (32, "outside of the tensors: .* 0 behind one"),
        (400, "outside of the tensors"),
        (2, "not aligned to 4 bytes"),
        (31, "not aligned to 4 bytes"),
    ],
)
def test_global_accesses_outside_fault(at: int, message: str, module: Module) -> None:
    whole = np.zeros(64, np.uint32)
    x, out = whole[24:32], np.zeros(4, np.uint32)
    with faults(message):
        module.launch("read_at", 1, 1, x, out, ctypes.c_int64(at))
    with faults(message):
        module.launch("write_at", 1, 1, x, ctypes.c_int64(at))
    assert not whole.any()
    module.launch("read_at", 1, 1, x, out, ctypes.c_int64(28))


def test_wide_accesses_must_lie_inside_as_a_whole(module: Module) -> None:
    whole, out = np.zeros(96, np.uint8), np.zeros(16, np.uint8)
    whole = whole[-whole.ctypes.data % 16 :]
    for at, message in ((16, "outside of the tensors"), (-16, "outside of the tensors"), (8, "not aligned to 16")):
        with faults(message):
            module.launch("read_wide_at", 1, 1, whole[16:40], out, ctypes.c_int64(at))
    module.launch("read_wide_at", 1, 1, whole[16:40], out, ctypes.c_int64(0))


def test_one_thread_of_many_faults(module: Module) -> None:
    x, out = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
    module.launch("one_reads_behind", 1, 32, x, out, ctypes.c_uint32(31))
    with faults("outside of the tensors.*one_reads_behind.*LDG"):
        module.launch("one_reads_behind", 1, 32, x, out, ctypes.c_uint32(32))


def test_writes_to_what_is_read_only_fault(module: Module) -> None:
    x, out = np.ones(4, np.uint32), np.zeros(4, np.uint32)
    x.flags.writeable = False
    with faults("write to a tensor that is only read"):
        module.launch("write_read_only", 1, 1, x, out)
    assert (x == 1).all() and out[0] == 1


def test_shared_memory_that_nobody_wrote_faults(module: Module) -> None:
    with faults("shared byte 124 is read and nobody wrote it"):
        module.launch("shared_never_written", 1, 32, np.zeros(64, np.uint32))
    module.launch("shared_never_written", 1, 31, np.zeros(64, np.uint32))


def test_shared_memory_of_an_earlier_block_is_not_written(module: Module) -> None:
    """Blocks follow each other in the same memory."""
    out = np.zeros(64, np.uint32)
    module.launch("shared_at", 2, 32, out, ctypes.c_uint32(4))
    with faults("nobody wrote it.*block 1 of 2"):
        module.launch("first_block_writes", 2, 32, out)


@pytest.mark.parametrize("at", [256, 260, 4096, 2**20, 2**32 - 4])
def test_shared_accesses_out_of_bounds_fault(at: int, module: Module) -> None:
    out = np.zeros(64, np.uint32)
    for kernel in ("shared_at", "shared_written_at"):
        with faults("shared access at byte"):
            module.launch(kernel, 1, 32, out, ctypes.c_uint32(at))
        with faults("shared address .* is not aligned to 4 bytes"):
            module.launch(kernel, 1, 32, out, ctypes.c_uint32(at + 2 & 2**32 - 1))
        module.launch(kernel, 1, 1 if kernel == "shared_written_at" else 32, out, ctypes.c_uint32(252))
    module.launch("dynamic_at", 1, 1, out, ctypes.c_uint32(9), shared=40)
    with faults("shared access at byte 40 of 40"):
        module.launch("dynamic_at", 1, 1, out, ctypes.c_uint32(10), shared=40)


def test_local_memory_that_was_not_written_faults(module: Module) -> None:
    at, out = np.array([4, 3, 4, 5, 7], np.uint32), np.zeros(32, np.uint32)
    module.launch("local_never_written", 1, 3, at, out)
    assert out[:3].tolist() == [0, 1, 2]
    with faults("local byte 24 is read and was never written"):
        module.launch("local_never_written", 1, 4, at, out)
    with faults("local access at byte"):
        module.launch("local_never_written", 1, 1, np.array([1, 99], np.uint32), out)


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize(("barrier", "by"), [("none", 1), ("none", 16), ("none", 32), ("none", 96), ("warp", 32)])
def test_races_are_found(race: str, barrier: str, by: int, module: Module) -> None:
    """Between threads of a warp and of different ones; __syncwarp orders nothing between warps."""
    x, out = some(128), np.zeros(128, np.uint32)
    with faults("race: thread [0-9]+ (reads|writes)|nobody wrote it"):
        module.launch(f"{race}_{barrier}", 1, 128, x, out, ctypes.c_uint32(by))


def test_more_races_are_found(module: Module) -> None:
    x, out = some(128), np.zeros(128, np.uint32)
    with faults("race: thread 1 writes"):
        module.launch("write_of_one_instruction", 1, 32, x, out)
    with faults("race: thread [0-9]+ reads"):
        module.launch("half_in_step", 1, 32, x, out)
    with faults("race: thread 0 reads"):
        module.launch("shuffle_is_no_barrier", 1, 32, x, out)
    for writer in (0, 5, 70):
        with faults("race: .*(that others read|reads shared byte)"):
            module.launch("write_after_reads_of_all_none", 1, 128, x, out, ctypes.c_uint32(writer))


def test_asynchronous_copies_that_nobody_waits_for_fault(module: Module) -> None:
    x, out = some(6 * 128), np.zeros(128, np.uint32)
    zero, one = ctypes.c_uint32(0), ctypes.c_uint32(1)
    for by in (zero, one):
        with faults("read before its asynchronous copy was waited for"):
            module.launch("async_not_waited", 1, 128, x, out, by)
    with faults("race: thread [0-9]+ reads|before its asynchronous copy"):
        module.launch("async_waited", 1, 128, x, out, one)
    with faults("read before its asynchronous copy was waited for"):
        module.launch("async_one_stage_late", 1, 128, x, out)
    with faults("read before its asynchronous copy was waited for"):
        module.launch("async_not_committed", 1, 128, x, out)
    with faults("written while an asynchronous copy is under way"):
        module.launch("write_under_async", 1, 128, x, out)
    module.launch("async_over_write", 1, 128, x, out, zero)
    assert (out == x[:128]).all()
    with faults("race: thread [0-9]+ writes"):
        module.launch("async_over_write", 1, 128, x, out, one)


def test_barriers_that_not_all_reach_fault(module: Module) -> None:
    x, out = np.zeros(128, np.uint32), np.zeros(129, np.uint32)
    x[3:40] = 20
    with faults("only some threads of a warp reach"):
        module.launch("barrier_of_some", 1, 64, x, out)
    module.launch("barriers_at_two_places", 1, 64, np.full(3, 5, np.uint32), out)
    with faults("different calls of __syncthreads"):
        module.launch("barriers_at_two_places", 1, 64, np.zeros(3, np.uint32), out)
    with faults("wait for ever at a barrier"):
        module.launch("barrier_missed", 1, 96, x, out)


@pytest.mark.parametrize(("kernel", "text"), [("clocks", "CS2R|S2UR|SR_CLOCK"), ("adds_atomically", "RED|ATOM")])
def test_instructions_that_are_not_known_stop_with_their_text(kernel: str, text: str, module: Module) -> None:
    with faults(f"unknown instruction .*({text})"):
        module.launch(kernel, 1, 32, np.zeros(64, np.uint64))


# ---- counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "stride", "wavefronts", "ideal"),
    [
        ("store_shared", 0, 1, 1),
        ("store_shared", 1, 1, 1),
        ("store_shared", 2, 2, 1),
        ("store_shared", 8, 8, 1),
        ("store_shared", 32, 32, 1),
        ("store_shared", 33, 1, 1),
        ("store_shared_2", 1, 1, 1),  # two threads a word
        ("store_shared_2", 8, 4, 1),  # 16 bytes apart: 8 threads a row of banks
        ("store_shared_2", 16, 8, 1),
        ("store_shared_8", 1, 2, 2),  # 256 bytes
        ("store_shared_8", 2, 4, 2),
        ("store_shared_8", 16, 32, 2),
        ("store_shared_16", 1, 4, 4),
        ("store_shared_16", 2, 8, 4),
        ("store_shared_16", 8, 32, 4),
    ],
)
def test_bank_conflicts(kernel: str, stride: int, wavefronts: int, ideal: int, module: Module) -> None:
    offsets = [ctypes.c_uint32(3)] if kernel == "store_shared" else []
    counts = module.counts(kernel, 1, 32, np.zeros(8, np.uint32), ctypes.c_uint32(stride), *offsets)
    assert (counts["wavefronts"], counts["wavefronts_ideal"]) == (wavefronts, ideal)


def aligned(count: int, dtype: Any) -> np.ndarray:
    """At a multiple of 128 bytes."""
    whole = np.zeros(count * np.dtype(dtype).itemsize + 128, np.uint8)
    begin = -whole.ctypes.data % 128
    return whole[begin : begin + count * np.dtype(dtype).itemsize].view(dtype)


@pytest.mark.parametrize(
    ("kernel", "stride", "offset", "sectors"),
    [
        ("read_strided", 1, 0, 4),
        ("read_strided", 1, 1, 5),
        ("read_strided", 1, 8, 4),
        ("read_strided", 2, 0, 8),
        ("read_strided", 8, 0, 32),
        ("read_strided", 8, 5, 32),
        ("read_strided", 64, 0, 32),
        ("read_strided", 0, 0, 1),
        ("read_strided_16", 1, 0, 16),
        ("read_strided_16", 2, 0, 32),
        ("read_strided_16", 1, 4, 17),
    ],
)
def test_sectors(kernel: str, stride: int, offset: int, sectors: int, module: Module) -> None:
    x = aligned(32 * 64 * 4, np.uint32)[offset:]
    counts = module.counts(kernel, 1, 32, x, np.zeros(1, np.uint32), ctypes.c_uint32(stride))
    assert counts["requested_sectors"] == counts["sectors"] == sectors


def test_what_a_block_reads_again_is_requested_again(module: Module) -> None:
    counts = module.counts("read_twice", 2, 32, aligned(32, np.uint32), np.zeros(1, np.uint32))
    assert (counts["requested_sectors"], counts["sectors"]) == (16, 8)  # of two blocks
    counts = module.counts("straight", 1, 64, aligned(64, np.uint32), aligned(64, np.uint32))
    assert (counts["requested_sectors"], counts["sectors"]) == (16, 16)  # 8 read, 8 written


def issued(module: Module, kernel: str) -> dict[str, int]:
    """How often each instruction was issued by all launches so far."""
    text = module.machine.driver.sass_profile(kernel.encode()).decode()
    return {line.split("\t")[1]: int(line.split("\t")[0]) for line in text.splitlines()}


def test_warps_issue_the_instructions_of_straight_code_once(module: Module) -> None:
    x, out = some(192), np.zeros(192, np.uint32)
    length = len(module.code("straight"))
    counts = module.counts("straight", 3, 64, x, out)
    assert counts["instructions"] == 6 * length and counts["active_threads"] == 192 * length
    assert counts["blocks"] == 3
    counts = module.counts("straight", 1, 40, x, out)
    assert counts["instructions"] == 2 * length and counts["active_threads"] == 40 * length


def test_both_sides_are_issued_where_threads_part(module: Module) -> None:
    x, out, t = np.zeros(32, np.uint32), np.zeros(96, np.uint32), np.arange(32, dtype=np.uint32)
    odd = module.counts("two_ways", 1, 32, x + 1, out)
    even = module.counts("two_ways", 1, 32, x, out)
    parted = module.counts("two_ways", 1, 32, t, out)
    assert parted["instructions"] > max(odd["instructions"], even["instructions"])
    # What a thread issues does not depend on the others.
    assert 2 * parted["active_threads"] == odd["active_threads"] + even["active_threads"]


def test_loops_are_issued_as_often_as_the_longest_turns(module: Module) -> None:
    out = np.zeros(32, np.uint32)
    one, two, four = (module.counts("turns", 1, 32, out, ctypes.c_uint32(n)) for n in (1, 2, 4))
    turn = (two["instructions"] - one["instructions"]) / 32
    assert turn >= 2 and four["instructions"] - two["instructions"] == 64 * turn
    # Thread t turns (t + 1) n times, as do those before it while it is not done.
    assert two["active_threads"] - one["active_threads"] == turn * (32 * 33 // 2)
