"""How a classifier's answers change when its images do: the measurements of the literature, on any model.

result = aablur.robustness.measure(model, data)
result.value("shift", "consistency").mean
result.report("report.html")
"""

from .corruptions import ALEXNET, CORRUPTIONS, Corruption, corruptions, mean_corruption_error
from .layers import layers
from .perturbation import Batch, Clean, Perturbation
from .plots import plot
from .report import report
from .result import Measurement, Result, Value
from .run import measure
from .sequences import Sequence, mean_flip_rate, sequences
from .shifts import DiagonalShifts, ShiftGrid, ShiftPairs, SubpixelShifts
from .spatial import TranslationsRotations
from .statistics import Statistic
from .suites import STANDARD, SUITES, standard, suite

__all__ = [
    "ALEXNET",
    "CORRUPTIONS",
    "STANDARD",
    "SUITES",
    "Batch",
    "Clean",
    "Corruption",
    "DiagonalShifts",
    "Measurement",
    "Perturbation",
    "Result",
    "Sequence",
    "ShiftGrid",
    "ShiftPairs",
    "Statistic",
    "SubpixelShifts",
    "TranslationsRotations",
    "Value",
    "corruptions",
    "layers",
    "mean_corruption_error",
    "mean_flip_rate",
    "measure",
    "plot",
    "report",
    "sequences",
    "standard",
    "suite",
]
