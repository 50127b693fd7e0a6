"""What was measured: numbers with their standard errors, as JSON, CSV, plots and a report."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from ..files import write_text
from .corruptions import ALEXNET, mean_corruption_error
from .sequences import mean_flip_rate
from .statistics import Statistic

_FORMULA = re.compile(r"\s*[=@]|\s*[-+](?![-+\d., deg]*$)|[\t\r\n]")


@dataclass(frozen=True)
class Value:
    """A mean over images and its standard error: the standard deviation over images / sqrt(images)."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Measurement:
    """One perturbation: its settings, and the values of its statistics, one, or one a view (or a pass)."""

    perturbation: str
    settings: dict[str, Any]
    views: list[str]
    values: dict[str, list[Value]]


@dataclass(frozen=True)
class Result:
    """Everything measured on one model.

    model: its name. images: how many were measured. skipped: those that could not be read, by number, with reasons.
    complete: False if the run was interrupted; the values are then those of `images` images.
    labels: "given", or "predicted" where the data had none: the model's own answers to the clean images.
    settings: what was asked for. environment: versions and device. views: forward passes of one image.
    seconds: that they took, on one process. classes: of the model.
    layers: where equivariance is lost inside the model, as `robustness.layers` gives it; empty if not asked for.
    """

    model: str
    images: int
    complete: bool
    labels: str
    measurements: dict[str, Measurement]
    skipped: dict[int, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    views: int = 0
    seconds: float = 0.0
    classes: int = 0
    layers: dict[str, list[list[float]]] = field(default_factory=dict)

    def value(self, perturbation: str, statistic: str | Statistic) -> Value:
        """The value of a statistic that has one for each image."""
        values = self.values(perturbation, statistic)
        if len(values) != 1 or Statistic(statistic).by_view:
            raise ValueError(f"{statistic!r} has a value for each of {len(values)} views: ask for values()")
        return values[0]

    def values(self, perturbation: str, statistic: str | Statistic) -> list[Value]:
        """The values of a statistic, one a view where it has one for each."""
        if perturbation not in self.measurements:
            raise KeyError(f"{perturbation!r} was not measured; measured: {', '.join(self.measurements)}")
        values = self.measurements[perturbation].values
        name = Statistic(statistic).value
        if name not in values:
            raise KeyError(f"{name!r} is not measured for {perturbation!r}; measured: {', '.join(values)}")
        return values[name]

    def errors(self) -> dict[str, float]:
        """Mean error over severities by corruption, as `mean_corruption_error` takes them."""
        return {
            m.settings["kind"]: 1 - m.values[Statistic.ACCURACY.value][0].mean
            for m in self._of("Corruption")
        }  # fmt: skip

    def flip_rates(self) -> dict[str, float]:
        """Flip rate by kind of sequence, as `mean_flip_rate` takes them."""
        rates = (Statistic.FLIP_RATE.value, Statistic.FLIP_RATE_FROM_FIRST.value)
        return {
            m.settings["kind"]: next(m.values[r][0].mean for r in rates if r in m.values)
            for m in self._of("Sequence")
        }  # fmt: skip

    def _of(self, family: str) -> Iterator[Measurement]:
        return (m for m in self.measurements.values() if m.settings.get("family") == family)

    def mean_corruption_error(self, baseline: Result | None = None) -> float:
        """mCE relative to the baseline's errors; None is AlexNet on ImageNet-C."""
        theirs = ALEXNET if baseline is None else baseline.errors()
        return mean_corruption_error(self.errors(), theirs)

    def mean_flip_rate(self, baseline: Result) -> float:
        """mFR relative to the baseline's flip rates."""
        return mean_flip_rate(self.flip_rates(), baseline.flip_rates())

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a number: model, perturbation, statistic, view, mean, standard error, images."""
        for name, measured in self.measurements.items():
            for statistic, values in measured.values.items():
                views = measured.views if Statistic(statistic).by_view else [""]
                for view, value in zip(views, values, strict=True):
                    yield {
                        "model": self.model, "perturbation": name, "statistic": statistic, "view": view,
                        "mean": value.mean, "standard_error": value.standard_error, "images": self.images,
                    }  # fmt: skip

    def to_json(self, path: str | PathLike[str]) -> None:
        """Everything, for `from_json`."""
        write_text(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> Result:
        """What `to_json` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            stored = json.loads(Path(path).read_text())
            for name, m in stored["measurements"].items():
                m["values"] = {s: [Value(**v) for v in values] for s, values in m["values"].items()}
                stored["measurements"][name] = Measurement(**m)
            stored["skipped"] = {int(i): reason for i, reason in stored["skipped"].items()}
            return cls(**stored)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"from_json: {path} is not a result: {error!r}") from error

    def to_csv(self, path: str | PathLike[str]) -> None:
        """The rows of `rows`."""
        write_csv([self], path)

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """All figures on one sheet, a matplotlib Figure; saved if a path is given (.png, .svg, .pdf)."""
        from .plots import plot

        return plot([self], path)

    def report(self, path: str | PathLike[str]) -> None:
        """A page with every table and figure, in one HTML file that needs nothing else."""
        from .report import report

        report([self], path)


def write_csv(results: Iterable[Result], path: str | PathLike[str]) -> None:
    """The rows of all results in one file."""
    columns = ["model", "perturbation", "statistic", "view", "mean", "standard_error", "images"]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows({k: _as_cell(v) for k, v in row.items()} for result in results for row in result.rows())
    write_text(path, file.getvalue())


def _as_cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; shifts as "-16,+3" are none."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
