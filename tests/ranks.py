"""Runs checks in several processes that talk over gloo, and brings home what went wrong in which of them.

A checks module holds functions `check_*` of no argument; `start` runs all those of some modules, one after the other,
in one set of processes. What follows a failure is not run: the processes may be out of step.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

TESTS = Path(__file__).parent


def names(*modules: str) -> list[str]:
    """The checks of modules, module.check, in the order they stand there. To import them would change this process."""
    sources = {module: (TESTS / f"{module}.py").read_text() for module in modules}
    return [f"{m}.{name}" for m, source in sources.items() for name in re.findall(r"^def (check_\w+)", source, re.M)]


def start(modules: tuple[str, ...], world: int, limit: float) -> dict[str, str]:
    """What each check said in `world` processes: nothing if all is well, else the tracebacks of the ranks.

    Args:
        limit: seconds for all of it.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
        command = [sys.executable, __file__, str(world), folder]
        logs = [open(Path(folder) / f"{rank}.log", "w+") for rank in range(world)]  # noqa: SIM115
        processes = [
            subprocess.Popen([*command, str(rank), *modules], env=environment, stdout=log, stderr=log)
            for rank, log in enumerate(logs)
        ]
        late = _wait(processes, limit)
        said = dict.fromkeys(names(*modules), "")
        done = [_read(Path(folder) / f"{rank}.jsonl") for rank in range(world)]
        for name in said:
            errors = [f"rank {r}:\n{d[name]}" for r, d in enumerate(done) if d.get(name)]
            missing = [r for r, d in enumerate(done) if name not in d]
            if missing and not errors:
                tails = [f"rank {r} ended with {processes[r].returncode}:\n{_tail(logs[r])}" for r in missing]
                errors = [f"not finished{' in time' * late} by ranks {missing}", *tails]
            said[name] = "\n".join(errors)
        for log in logs:
            log.close()
        return said


def _wait(processes: list[subprocess.Popen[bytes]], limit: float) -> bool:
    """Waits for all, but not for long once one has failed; returns whether the time ran out."""
    end = time.monotonic() + limit
    failed = False
    while any(p.poll() is None for p in processes) and time.monotonic() < end:
        if not failed and any(p.poll() not in (None, 0) for p in processes):
            failed, end = True, min(end, time.monotonic() + 10)
        time.sleep(0.05)
    late = any(p.poll() is None for p in processes)
    for p in processes:
        p.kill()
        p.wait()
    return late and not failed


def _read(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(json.loads(line) for line in lines)


def _tail(log: object) -> str:
    log.seek(0)  # pyright: ignore
    return log.read()[-3000:]  # pyright: ignore


def main(world: int, folder: str, rank: int, modules: list[str]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", store, timedelta(seconds=30), world, rank)
    found = {module: importlib.import_module(module) for module in modules}
    with open(Path(folder) / f"{rank}.jsonl", "w") as results:
        for name in names(*modules):
            error = ""
            torch.manual_seed(0)
            try:
                module, check = name.split(".")
                getattr(found[module], check)()
            except Exception:
                error = traceback.format_exc()
            results.write(json.dumps([name, error]) + "\n")
            results.flush()
            if error:
                os._exit(1)  # without waiting for the others, who may wait for this one
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
