"""Random cases until time is up, each by its seed, in a process that may crash or hang: `make fuzz HOURS=1`.

Workers examine them (examine.py), on each of the processor's instruction sets in turn. A seed that fails, crashes or
takes more than a minute is kept in a file, and replayed first the next time.

    python tests/fuzz.py --hours 1
    python tests/fuzz.py --seed 1234 --cases 1
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import SystemRandom
from typing import IO, Any

from isas import available

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
ON_MACHINE_CODE = os.environ.get("AABLUR_MACHINE_CODE") == "1"
WORKER = (str(TESTS / "examine.py"),)
TURN = 500  # cases on an instruction set before the next has its turn
MOST_FAILING = 100  # then something is wrong that is no case's own
LIMIT = 600.0 if ON_MACHINE_CODE else 60.0  # seconds of a case


class Worker:
    """A process that examines seeds."""

    def __init__(self, command: Sequence[str], isa: str, errors: IO[bytes]) -> None:
        env = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
        env |= {"AABLUR_CPU_ISA": isa} if isa else {}
        self.errors = errors
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        self.process = subprocess.Popen([sys.executable, *command], env=env, cwd=ROOT, bufsize=0, **pipes)
        self.ready = selectors.DefaultSelector()
        self.ready.register(self._pipe("stdout"), selectors.EVENT_READ)
        self.wrong = self._answer(LIMIT)  # with all of it, from the first

    def _pipe(self, name: str) -> Any:
        return getattr(self.process, name)

    def ask(self, seed: int, limit: float) -> str | None:
        """What is wrong with a seed's case, or None. After a crash or a hang the worker is gone."""
        if self.wrong is not None:
            return self.wrong
        self._pipe("stdin").write(f"{seed}\n".encode())
        return self._answer(limit)

    def _answer(self, limit: float) -> str | None:
        end, answer = time.monotonic() + limit, b""
        while not answer.endswith(b"\n"):
            if not self.ready.select(max(0.0, end - time.monotonic())):
                self.stop()
                return f"no answer in {limit:g} s"
            part = os.read(self._pipe("stdout").fileno(), 1 << 16)
            if not part:
                return self._crashed()
            answer += part
        return json.loads(answer)

    def _crashed(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        return f"the worker ended with {code}: {self.errors.read()[-4000:].decode(errors='replace')}"

    def is_there(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Failing:
    """The seeds that failed, with the instruction set of each: a file, a line each, written as they come and go."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().split("\n") if path.exists() else []
        self.seeds = dict.fromkeys((int(s), isa) for s, isa, *_ in (line.split(" ") for line in lines if line))

    def note(self, seed: int, isa: str, fails: bool) -> None:
        if fails:
            self.seeds[seed, isa] = None
        elif (seed, isa) not in self.seeds:
            return
        else:
            del self.seeds[seed, isa]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(f"{s} {name}\n" for s, name in self.seeds))


def fuzz(
    seeds: Iterator[int], isas: Sequence[str], failing: Failing, seconds: float = float("inf"),
    command: Sequence[str] = WORKER, limit: float = LIMIT,
) -> tuple[int, list[str]]:  # fmt: skip
    """How many cases were examined, and what was found."""
    turns = ((seed, isas[i // TURN % len(isas)]) for i, seed in enumerate(seeds))
    start = said = time.monotonic()
    workers: dict[str, Worker] = {}
    count, found = 0, []

    def speed() -> str:
        took = time.monotonic() - start
        return f"{count:,} cases in {took:,.0f} s, {count / max(took, 1e-9):.0f} a second, {len(found)} failing"

    with tempfile.TemporaryFile() as errors:
        for seed, isa in itertools.chain(list(failing.seeds), turns):
            if time.monotonic() - start > seconds or len(found) == MOST_FAILING:
                break
            if isa not in workers or not workers[isa].is_there():
                workers[isa] = Worker(command, isa, errors)
            wrong = workers[isa].ask(seed, limit)
            count += 1
            failing.note(seed, isa, wrong is not None)
            if wrong is not None:
                found.append(f"seed {seed} {isa}: {wrong}")
                print(found[-1], flush=True)
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(speed(), flush=True)
        for worker in workers.values():
            worker.stop()
    print(speed(), flush=True)
    return count, found


def main(arguments: Sequence[str] | None = None) -> int:
    library = os.environ.get("AABLUR_LIBRARY")
    name = "library" if library is None else Path(library).parent.name
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=float("inf"))
    parser.add_argument("--cases", type=int, help="no more than so many")
    parser.add_argument("--seed", type=int, help="the first; by default any")
    parser.add_argument("--failing", type=Path, default=ROOT / f"build/fuzz/{name}.txt", help="seeds to replay first")
    given = parser.parse_args(arguments)
    forced = os.environ.get("AABLUR_CPU_ISA", "")
    isas = [forced] if forced or ON_MACHINE_CODE else available()
    first = SystemRandom().randrange(2**40) if given.seed is None else given.seed
    last = None if given.cases is None else first + given.cases
    seeds = itertools.takewhile(lambda s: last is None or s < last, itertools.count(first))
    print(f"seeds from {first} on {name}, instruction sets {', '.join(isas)}; failing ones in {given.failing}")
    return 1 if fuzz(seeds, isas, Failing(given.failing), given.hours * 3600)[1] else 0


if __name__ == "__main__":
    sys.exit(main())
