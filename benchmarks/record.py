"""The CSV: one row a measurement, each with the machine, the versions and the commit."""

from __future__ import annotations

import csv
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import aablur

RESULTS = Path(__file__).parent / "results"

OK = "ok"
WRONG = "WRONG"
NOT_COMPILED = "not compiled"


@dataclass(frozen=True)
class Measurement:
    """One provider in one row of the table. Empty fields: not measured, or not defined there."""

    name: str  # op/pass/layout/dtype/regime/shape: one row of the table
    op: str
    direction: str  # the column "pass", a reserved word in Python
    layout: str
    dtype: str
    regime: str  # memory: input beyond the last-level cache; cache: inside it
    shape: str
    provider: str
    status: str = OK  # ok; WRONG; not compiled; or the error that the call raised
    ms: float | None = None  # median
    ms_p20: float | None = None
    ms_p80: float | None = None
    gbytes_per_s: float | None = None  # of the minimal bytes; of a read and a write for a copy
    ratio_to_copy: float | None = None
    speedup_of_ours: float | None = None  # this provider's time over aablur's
    floor_ratio: float | None = None  # time over (minimal bytes / bandwidth of the row's copy)
    max_abs_error: float | None = None  # of the output, against float64
    relative_error: float | None = None  # that over the largest magnitude of the output
    grad_max_abs_error: float | None = None
    grad_relative_error: float | None = None
    saved_bytes: int | None = None  # kept for backward: unique storages, weights not counted
    saved_of_input: float | None = None
    others_cores: float | None = None  # cores that other processes used while the row was timed


def cpu_model() -> str:
    """The name the processor gives itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        return found[1].strip()
    return platform.processor() or platform.machine()


def slug(text: str) -> str:
    """amd-epyc-7763 of "AMD EPYC 7763": lower case, words joined by hyphens."""
    text = re.sub(r"\((?:r|tm|c)\)|\bcpu\b|@.*", " ", text.lower())
    return "-".join(re.findall(r"[a-z0-9.]+", text))


def _git(*arguments: str) -> str:
    root = Path(__file__).parent.parent
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


def commit() -> str:
    """Short hash, with +dirty if tracked files other than the results differ from it."""
    try:
        head = _git("rev-parse", "--short", "HEAD").strip()
        changed = _git("status", "--porcelain", "-uno", "--", ":!benchmarks/results").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+dirty" if changed else head


def machine() -> dict[str, str]:
    """What a reader needs to judge a time; all rows of a run share it."""
    return {
        "device": cpu_model(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "aablur": aablur.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
    }


def read(path: Path) -> tuple[list[Measurement], dict[str, str]]:
    """The measurements of a results file, and the machine and conditions that all of them share."""
    with path.open() as file:
        rows = [row | {"direction": row.pop("pass")} for row in csv.DictReader(file)]
    own = {f.name: f.type for f in fields(Measurement)}
    kinds = {"str": str, "float | None": float, "int | None": int}

    def value(name: str, text: str) -> str | float | int | None:
        return kinds[str(own[name])](text) if text or own[name] == "str" else None

    measurements: list[Any] = [Measurement(**{n: value(n, row[n]) for n in own}) for row in rows]  # pyright: ignore
    return measurements, {name: text for name, text in rows[0].items() if name not in own}


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


class Recorder:
    """Writes each measurement to the file at once, so that an interrupt loses nothing."""

    def __init__(self, path: Path, conditions: dict[str, str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.machine = machine() | conditions
        self.measurements: list[Measurement] = []
        self._file = path.open("w", newline="")
        columns = ["pass" if f.name == "direction" else f.name for f in fields(Measurement)]
        self._writer = csv.DictWriter(self._file, [*columns, *self.machine])
        self._writer.writeheader()

    def add(self, measurements: Iterable[Measurement]) -> None:
        for measurement in measurements:
            row = {key: _cell(value) for key, value in asdict(measurement).items()}
            row["pass"] = row.pop("direction")
            self._writer.writerow(row | self.machine)
            self.measurements.append(measurement)
        self._file.flush()

    def close(self) -> None:
        self._file.close()
