"""Promise: of some thousands of random cases, the same every time, none is wrong; one that is, is found and kept."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import examine
import fuzz
import pytest
import torch
from random_case import random_case, random_raw_call

from aablur.geometry import Geometry

CASES = 2000
WRONG = """
import os, sys, time
sys.path.insert(0, {tests!r})
import examine

def faulty(seed):
    if seed == 3:
        raise ValueError("three is wrong")
    if seed == 5:
        os.abort()
    if seed == 7:
        time.sleep(60)

examine.examine = faulty
examine.work()
"""


def test_seeded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seed", "0", "--cases", str(CASES), "--failing", str(tmp_path / "failing")]
    assert fuzz.main(arguments) == 0, capfd.readouterr().out[-4000:]
    assert f"{CASES:,} cases in " in capfd.readouterr().out


def test_what_is_wrong_is_found_kept_and_replayed(tmp_path: Path) -> None:
    path = tmp_path / "some" / "failing.txt"
    code = WRONG.format(tests=str(fuzz.TESTS))
    wrong, right = ("-c", code), ("-c", code.replace("= faulty", "= abs"))
    count, found = fuzz.fuzz(iter(range(9)), [""], fuzz.Failing(path), command=wrong, limit=5)
    assert count == 9 and [line.split()[1] for line in found] == ["3", "5", "7"]
    assert "ValueError: three is wrong" in found[0] and "ended with -6" in found[1] and "no answer" in found[2]
    again = fuzz.fuzz(iter(range(20, 22)), [""], fuzz.Failing(path), command=wrong, limit=5)
    assert again[0] == 5 and [line.split()[1] for line in again[1]] == ["3", "5", "7"]
    assert fuzz.fuzz(iter(range(0)), [""], fuzz.Failing(path), command=right) == (3, [])
    assert path.read_text() == "" and fuzz.fuzz(iter(range(0)), [""], fuzz.Failing(path), command=right) == (0, [])


def test_time_is_kept_and_instruction_sets_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "TURN", 2)
    says = (
        "import os, sys, json\nprint('null', flush=True)\n"
        "for line in sys.stdin: print(json.dumps(os.environ['AABLUR_CPU_ISA']), flush=True)"
    )
    found = fuzz.fuzz(iter(range(6)), ["a", "b"], fuzz.Failing(tmp_path / "f"), command=("-c", says))[1]
    assert [line.split()[2:] for line in found] == [[f"{isa}:", isa] for isa in "aabbaa"]
    assert fuzz.fuzz(iter(range(10**9)), ["a"], fuzz.Failing(tmp_path / "g"), 0.5, ("-c", says))[0] < 10**6


def test_seeds_give_cases_of_every_kind() -> None:
    assert random_case(Random(1)) == random_case(Random(1)) != random_case(Random(2))
    assert str(random_raw_call(Random(1))) == str(random_raw_call(Random(1)))
    found = [random_case(Random(seed)) for seed in range(300)]
    for name, values in {"rank": 3, "padding_mode": 4, "dtype": 4, "layout": 7, "values": 3}.items():
        assert len({getattr(case, name) for case in found}) == values
    assert 100 < sum(case.window is not None for case in found) < 200
    assert len({random_raw_call(Random(seed)).op for seed in range(100)}) == 6


def test_codes_that_name_no_element_are_known() -> None:
    """Of a padded 3x3 window at four positions: right of the map, below it, and past the window's last."""
    arguments: dict[str, Any] = {"grad": torch.ones(1, 1, 2, 2), "size": [2, 2], "channels_last": False}
    geometry = Geometry("", [1, 1], 1, 0, "zeros", 3, 1)
    for named, codes in ((True, (8, 6, 2, 0)), (False, (4, 5, 4, 4)), (False, (4, 4, 8, 4)), (False, (4, 9, 4, 4))):
        packed = [[[codes[0] | codes[1] << 4, codes[2] | codes[3] << 4]]]
        arguments["codes"] = torch.tensor(packed, dtype=torch.uint8)
        assert examine._name_elements(geometry, arguments) == named, codes
    assert examine._name_elements(geometry, arguments | {"codes": None})


ONE_VALUE_OFF = """
right = examine.call
def call(*args, **options):
    y = right(*args, **options)
    return y * (1 + 0.02 * (y.detach() == y.detach().max()))
examine.call = call
"""
OTHER_BITS = """
import torch
grad = torch.autograd.grad
torch.autograd.grad = lambda *a: [g * (1 + 1e-15 * torch.get_num_threads()) for g in grad(*a)]
"""
UNCHECKED = "from aablur import arguments\narguments.check = lambda *a: None"


@pytest.mark.parametrize(
    ("fault", "raw", "said"),
    [
        (ONE_VALUE_OFF, False, "differ, first at"),
        (OTHER_BITS, False, "other bits with other threads"),
        (UNCHECKED, True, "of the reference"),
    ],
    ids=["value", "bits", "raw"],
)
def test_faults_are_seen(fault: str, raw: bool, said: str, tmp_path: Path) -> None:
    code = f"import sys\nsys.path.insert(0, {str(fuzz.TESTS)!r})\nimport examine\n{fault}\nexamine.work()"
    seeds = [seed for seed in range(200) if (Random(seed).random() < 0.25) == raw][:40]
    found = fuzz.fuzz(iter(seeds), [""], fuzz.Failing(tmp_path / "f"), command=("-c", code))[1]
    assert sum(said in line for line in found) > 3, found
