"""The run over all families: a CSV that grows by one row a model, and the table of docs/audit.md made from it.

python -m benchmarks.repair --zoo [--resume] [NAME ...]
"""

from __future__ import annotations

import csv
import multiprocessing
import queue
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from ..page import fill
from ..record import RESULTS, machine
from .catalogue import FAMILIES, PACKAGES, Family, family, missing, prepare
from .examine import TOLERANCE, Row, examine

PATH = RESULTS / "zoo.csv"
PAGE = Path(__file__).parent.parent.parent / "docs" / "audit.md"
HEADINGS = ("family", "models", "places", "repaired", "shapes kept", "strength 0", "export", "left alone, and why")
PROCESSES = 2


# ---- the run -------------------------------------------------------------------------------------------


def _start() -> None:
    torch.set_num_threads(1)
    prepare()


def _examine(family_name: str, model: str) -> Row:
    return examine(family(family_name), model)


def measure(jobs: Sequence[tuple[str, str]]) -> Iterable[Row]:
    """The row of each (family, model), as they come. Models run in processes of their own: one may end its process."""
    todo: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    done: queue.SimpleQueue[Row | BaseException] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)

    def work() -> None:
        pool = None
        try:
            while not todo.empty():
                job = todo.get()
                pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start)
                try:
                    done.put(pool.submit(_examine, *job).result())
                except BrokenProcessPool:
                    done.put(Row(*job, status="the process ended"))
                    pool = None
        except BaseException as error:
            done.put(error)
        finally:
            if pool is not None:
                pool.shutdown()

    for _ in range(PROCESSES):
        threading.Thread(target=work, daemon=True).start()
    for _ in jobs:
        row = done.get()
        if isinstance(row, BaseException):
            raise row
        yield row


def main(*arguments: str) -> None:
    names = [a for a in arguments if a != "--resume"]
    if unknown := [n for n in names if n.startswith("-")]:
        raise SystemExit(f"--zoo takes --resume and names of families or models, got {unknown[0]}")
    lacking = missing()
    if lacking:
        print(
            f"Left out: the families of {' and '.join(lacking)}, not installed here: "
            "pip install --no-deps -r requirements-zoo.txt"
        )
    families = [f for f in FAMILIES if PACKAGES[f.library] not in lacking]
    jobs = [(f.name, m) for f in families for m in f.models if not names or any(n in f"{f.name} {m}" for n in names)]
    if not jobs:
        raise SystemExit(f"--zoo: no family or model is named {', '.join(names)}")
    if names:
        for row in measure(jobs):
            print(row, flush=True)
        return
    kept = read(PATH) if "--resume" in arguments and PATH.exists() else []
    known = {(r.family, r.model) for r in kept}
    jobs = [job for job in jobs if job not in known]
    about = machine()
    about["threads"] = "1"  # of each process
    columns = [f.name for f in fields(Row)] + list(about)
    if kept and (have := _columns(PATH)) != columns:
        raise SystemExit(f"--zoo --resume: {PATH.name} has the columns {', '.join(have)}, not {', '.join(columns)}")
    with PATH.open("a" if kept else "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if not kept:
            writer.writeheader()
        for count, row in enumerate(measure(jobs), 1):
            writer.writerow(asdict(row) | about)
            file.flush()
            print(f"{count}/{len(jobs)} {row.family}: {row.model}: {row.status}, {row.seconds:.0f} s", flush=True)
    fill(PAGE, "zoo", page(PATH))


# ---- the table -----------------------------------------------------------------------------------------


def read(path: Path) -> list[Row]:
    kinds: dict[str, Any] = {"str": str, "int": int, "float": float}
    with path.open(newline="") as file:
        return [Row(**{f.name: kinds[str(f.type)](r[f.name]) for f in fields(Row)}) for r in csv.DictReader(file)]


def _columns(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return next(csv.reader(file))


def reasons(row: Row) -> Counter[str]:
    """How many places are left alone, by the reason."""
    parts = [part.rpartition(": ") for part in row.left.split("; ") if part]
    return Counter({reason: len(names.split(", ")) for reason, _, names in parts})


def cells(group: Family, rows: Sequence[Row]) -> tuple[str, ...]:
    ran = [r for r in rows if r.status == "ok"]
    sizes, exports = sum(r.sizes for r in ran), [r for r in ran if not r.export.startswith("nor does")]
    left = sum((reasons(r) for r in ran), Counter())
    notes = [f"{count} {reason}" for reason, count in left.most_common()]
    notes += [f"`{r.model}`: {r.status}" for r in rows if r.status != "ok"]
    notes += [f"`{r.model}`: export: {r.export}" for r in exports if r.export != "same"]
    equal = sum(r.equal for r in ran)
    return (
        group.name,
        f"{len(rows)}",
        f"{sum(r.places for r in ran)}",
        f"{sum(r.repaired for r in ran)}",
        f"{sum(r.shapes_kept for r in ran)} of {sizes}",
        f"{equal} of {sizes} ({max((r.error for r in ran), default=0):.0e})",
        f"{sum(r.export == 'same' for r in exports)} of {len(exports)}",
        "; ".join(notes).replace("|", "\\|"),
    )


def page(path: Path) -> str:
    """The table, and what it was measured with."""
    rows = read(path)
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for group in FAMILIES:
        mine = {r.model: r for r in rows if r.family == group.name}
        if mine:
            lines.append("| " + " | ".join(cells(group, [mine[m] for m in group.models if m in mine])) + " |")
    with path.open(newline="") as file:
        first = next(csv.DictReader(file))
    total = sum(len(group.models) for group in FAMILIES)
    about = f"{len(rows)} of {total} models measured, {sum(r.status == 'ok' for r in rows)} of which ran"
    versions = f"equal within {TOLERANCE:.0e}; torch {first['torch']}, commit {first['commit']}"
    return "\n".join(lines) + f"\n\n{about}; {versions}.\n"
