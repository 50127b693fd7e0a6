"""Sums of whole numbers over images: exact, so the same in any order, batching and number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from math import sqrt

from .statistics import Counted


@dataclass
class Sum:
    """Of one statistic: one entry, or one a view. A value is a whole number over `scale`."""

    scale: int
    count: int = 0
    total: list[int] = field(default_factory=list)
    square: list[int] = field(default_factory=list)

    def add(self, counted: Counted) -> None:
        values, scale = counted
        if scale != self.scale:
            raise ValueError(f"sums of parts of {self.scale} and of {scale} do not add")
        values = values if values.ndim == 2 else values[:, None]
        self._add(len(values), values.sum(0).tolist(), values.square().sum(0).tolist())

    def merge(self, other: Sum) -> None:
        if other.scale != self.scale:
            raise ValueError(f"sums of parts of {self.scale} and of {other.scale} do not add")
        if other.count:
            self._add(other.count, other.total, other.square)

    def _add(self, count: int, total: list[int], square: list[int]) -> None:
        self.count += count
        self.total = [a + b for a, b in zip(self.total or [0] * len(total), total, strict=True)]
        self.square = [a + b for a, b in zip(self.square or [0] * len(square), square, strict=True)]

    def values(self) -> list[tuple[float, float]]:
        """Mean over images and its standard error, the sample's standard deviation over the root of the count."""
        return [self._value(t, s) for t, s in zip(self.total, self.square, strict=True)]

    def _value(self, total: int, square: int) -> tuple[float, float]:
        n, scale = self.count, self.scale
        mean = float(Fraction(total, n * scale))
        if n < 2:
            return mean, float("nan")
        variance = Fraction(n * square - total * total, n * (n - 1) * scale * scale)
        return mean, sqrt(variance / n)


Sums = dict[str, dict[str, Sum]]  # perturbation -> statistic -> sum


def merge(parts: Iterable[Sums]) -> Sums:
    """The sums over the images of all parts."""
    whole: Sums = {}
    for part in parts:
        for perturbation, statistics in part.items():
            for statistic, found in statistics.items():
                into = whole.setdefault(perturbation, {}).setdefault(statistic, Sum(found.scale))
                into.merge(found)
    return whole
