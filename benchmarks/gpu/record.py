"""The CSV of a GPU run: one row a measurement, with GPU, versions, commit and date."""

from __future__ import annotations

import csv
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import aablur

from ..record import commit, slug


@dataclass(frozen=True)
class Measurement:
    """One provider in one row of rows.py. Empty fields: not measured."""

    name: str
    group: str
    op: str
    direction: str
    layout: str
    dtype: str
    shape: str
    provider: str
    status: str  # ok; WRONG; or the error of the call
    ms: float | None = None  # median
    ms_p20: float | None = None
    ms_p80: float | None = None
    how: str = ""  # graph, events or clock
    gbytes_per_s: float | None = None  # of the minimal bytes; of a read and a write for a copy
    of_copy: float | None = None  # that over the copy's
    error: float | None = None  # the largest, over the largest magnitude of the float64 result


def driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return ""


def machine(device: str) -> dict[str, str]:
    return {
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "none (dry run)",
        "driver": driver() if device == "cuda" else "",
        "cuda": torch.version.cuda or "",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "aablur": aablur.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
    }


def stem_of(device: str) -> str:
    """gpu-nvidia-h200, say."""
    return f"gpu-{slug(machine(device)['gpu'])}"


class Recorder:
    """Writes each measurement to the file at once, so that an interrupt loses nothing."""

    def __init__(self, path: Path, device: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.machine = path, machine(device)
        self.measurements: list[Measurement] = []
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, [*(f.name for f in fields(Measurement)), *self.machine])
        self._writer.writeheader()

    def add(self, measurement: Measurement) -> None:
        row = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(measurement).items()}
        self._writer.writerow(row | self.machine)
        self._file.flush()
        self.measurements.append(measurement)

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Iterator[Measurement]:
    """The measurements of a file."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            values: dict[str, Any] = {f.name: row[f.name] for f in fields(Measurement)}
            numbers = ("ms", "ms_p20", "ms_p80", "gbytes_per_s", "of_copy", "error")
            values |= {n: float(values[n]) if values[n] else None for n in numbers}
            yield Measurement(**values)
