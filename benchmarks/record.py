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


@dataclass(frozen=True)
class Measurement:
    """One provider in one row of the tables. Empty fields: not measured, or not defined there."""

    name: str  # op/pass/layout/dtype/regime/group/shape: one row of the tables
    op: str
    direction: str  # the column "pass", a reserved word in Python
    layout: str
    dtype: str
    regime: str  # memory: input beyond the last-level cache; cache: inside it; overhead, import or network
    group: str  # of feature maps: the network that they are of, or why they are measured
    shape: str
    provider: str
    status: str = OK  # ok; WRONG; or the error that the call raised
    how: str = ""  # clock: wall time; graph: replays of a CUDA graph; events: without one
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
    peak_mib: float | None = None  # of the GPU's memory, in a step of a whole network
    others_cores: float | None = None  # cores that other processes used while the row was timed on a CPU


def reason(failure: Exception) -> str:
    """The first line of an error, short enough for a cell of the CSV."""
    first = str(failure).strip().partition("\n")[0]
    return f"{type(failure).__name__}: {first}"[:160]


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


def _output(*command: str) -> str:
    root = Path(__file__).parent.parent
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    """Short hash, with +dirty if tracked files other than the results differ from it."""
    git = ("git", "--no-optional-locks")
    try:
        head = _output(*git, "rev-parse", "--short", "HEAD")
        changed = _output(*git, "status", "--porcelain", "-uno", "--", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+dirty" if changed else head


def _driver() -> str:
    try:
        return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine(device: str = "cpu") -> dict[str, str]:
    """What a reader needs to judge a time; all rows of a run share it."""
    on_gpu = device == "cuda"
    return {
        "device": device,
        "hardware": torch.cuda.get_device_name() if on_gpu else cpu_model(),
        "driver": _driver() if on_gpu else "",
        "cuda": torch.version.cuda or "" if on_gpu else "",
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
    """The measurements of a results file, and the machine and conditions that all of them share.

    Raises:
        ValueError: it is no results file, or has no rows.
    """
    with path.open(newline="") as file:
        rows = [row | {"direction": row.pop("pass", "")} for row in csv.DictReader(file)]
    own = {f.name: f.type for f in fields(Measurement)}
    if not rows or (missing := {*own, "device", "hardware"} - set(rows[0])):
        why = f"has no column {', '.join(sorted(missing))}" if rows else "has no rows"
        raise ValueError(f"path must be a results file of python -m benchmarks, and {path} {why}")
    kinds = {"str": str, "float | None": float, "int | None": int}

    def value(name: str, text: str) -> str | float | int | None:
        return kinds[str(own[name])](text) if text or own[name] == "str" else None

    measurements: list[Any] = [Measurement(**{n: value(n, row[n]) for n in own}) for row in rows]  # pyright: ignore
    return measurements, {name: text for name, text in rows[0].items() if name not in own}


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


class Recorder:
    """Writes each measurement to the file at once, so that an interrupt loses nothing."""

    def __init__(self, path: Path, about: dict[str, str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.about = about
        self.measurements: list[Measurement] = []
        self._file = path.open("w", newline="")
        columns = ["pass" if f.name == "direction" else f.name for f in fields(Measurement)]
        self._writer = csv.DictWriter(self._file, [*columns, *about])
        self._writer.writeheader()

    def add(self, measurements: Iterable[Measurement]) -> None:
        for measurement in measurements:
            row = {key: _cell(value) for key, value in asdict(measurement).items()}
            row["pass"] = row.pop("direction")
            self._writer.writerow(row | self.about)
            self.measurements.append(measurement)
        self._file.flush()

    def close(self) -> None:
        self._file.close()
