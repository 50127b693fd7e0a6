"""What is done to an image: a family of views of it, and the statistics that are reduced over them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import shown
from .statistics import Statistic


@dataclass(frozen=True)
class Batch:
    """Images on their device, before any perturbation.

    images: (batch, channels, height, width), floating, before normalisation.
    index: the number of each image in the data, from which its random numbers come.
    size: (height, width) that the model is given; what of the image is beyond it is context for shifts.
    seed: of the whole measurement.
    """

    images: Tensor
    index: Sequence[int]
    size: tuple[int, int]
    seed: int

    def centre(self, margin: int = 0) -> Tensor:
        """The window of `size`, grown by `margin` in all along both axes, in the middle of each image."""
        starts = [(have - want - margin) // 2 for have, want in zip(self.images.shape[-2:], self.size, strict=True)]
        (top, left), (height, width) = starts, self.size
        return self.images[..., top : top + height + margin, left : left + width + margin]

    def generators(self, name: str) -> list[torch.Generator]:
        """One generator an image: what it draws depends on the seed, the name and the image's number alone."""
        return [_generator(f"{self.seed}/{name}/{i}") for i in self.index]


def _generator(key: str) -> torch.Generator:
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
    return torch.Generator().manual_seed(seed)


class Perturbation:
    """A family of views. Subclasses are frozen dataclasses: their fields are the settings that a result records."""

    name: str
    statistics: tuple[Statistic, ...]

    def check(self, image_size: tuple[int, int], size: tuple[int, int]) -> None:
        """Raises ValueError if images of `image_size` have no room for these views of `size`."""

    def views(self, batch: Batch) -> Iterator[Tensor]:
        """One tensor a view, (batch, channels, *size), always in the same order."""
        raise NotImplementedError

    @property
    def labels(self) -> list[str]:
        """What tells the views apart, one a view."""
        raise NotImplementedError


@dataclass(frozen=True)
class Clean(Perturbation):
    """The image itself: the window of the model's size in its middle."""

    name: str = "clean"
    statistics: tuple[Statistic, ...] = (Statistic.ACCURACY, Statistic.CONFIDENCE)

    def views(self, batch: Batch) -> Iterator[Tensor]:
        yield batch.centre()

    @property
    def labels(self) -> list[str]:
        return ["clean"]


def check_int(owner: str, name: str, value: object, low: int) -> None:
    """Raises unless value is an int of at least low."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be an int, got {shown(value)}")
    if value < low:
        raise ValueError(f"{owner}: {name} must be at least {low}, got {value}")
