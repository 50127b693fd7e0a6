"""Which perturbations are measured together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .corruptions import corruptions
from .perturbation import Clean, Perturbation
from .sequences import sequences
from .shifts import DiagonalShifts, ShiftGrid, ShiftPairs, SubpixelShifts
from .spatial import TranslationsRotations

_SUITES: dict[str, Callable[[int, str], Sequence[Perturbation]]] = {
    "clean": lambda range, padding: [Clean()],
    "shift": lambda range, padding: [ShiftPairs(range=range, padding=padding)],
    "circular": lambda range, padding: [ShiftPairs(range=range, padding="circular")],
    "subpixel": lambda range, padding: [SubpixelShifts()],
    "diagonal": lambda range, padding: [DiagonalShifts(range=range, padding=padding)],
    "grid": lambda range, padding: [ShiftGrid(range=range, padding=padding)],
    "rotations": lambda range, padding: [TranslationsRotations(translation=range * 3 // 4)],
    "corruptions": lambda range, padding: corruptions(),
    "sequences": lambda range, padding: sequences(),
}
SUITES = tuple(_SUITES)
STANDARD = ("clean", "shift", "circular", "subpixel", "diagonal")


def suite(names: Sequence[str], range: int = 32, padding: str = "crop") -> list[Perturbation]:
    """The perturbations of these names, of `SUITES`.

    Args:
        names: "clean", "shift", "circular", "subpixel", "diagonal": some 65 views of an image in all. "grid": 1,089
            views at range 32. "rotations": 775, translations by up to 3/4 of the range. "corruptions": 75.
            "sequences": 248.
        range: of the shifts, in pixels. Default 32.
        padding: of the shifts that are not circular, as for `ShiftPairs`. Default "crop".

    Raises:
        ValueError: an unknown name.
    """
    if unknown := [name for name in names if name not in _SUITES]:
        raise ValueError(f"suite: names must be among {', '.join(SUITES)}, got {', '.join(unknown)}")
    return [p for name in dict.fromkeys(names) for p in _SUITES[name](range, padding)]


def standard(range: int = 32, padding: str = "crop") -> list[Perturbation]:
    """What is measured unless asked otherwise: the names of `STANDARD`."""
    return suite(STANDARD, range, padding)
