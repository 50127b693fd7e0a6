"""Images seen by another camera: a homography of the plane of pixels, sampled bilinearly, black outside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import shown
from .perturbation import Batch, Perturbation, check_int
from .statistics import Statistic


def warp(images: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """The window of `size` about the middle, each of whose pixels p shows the image at matrix @ (x, y, 1).

    images: (batch, channels, height, width). matrix: (3, 3); x and y are pixels to the right and down of the middle.
    """
    (height, width), (full_height, full_width) = size, images.shape[-2:]
    y = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    points = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(height, width, dtype=torch.float64)], -1)
    seen = points @ matrix.double().T
    # grid_sample, align_corners=False: -1 and 1 are the outer edges of the first and the last pixel
    scale = torch.tensor([2 / full_width, 2 / full_height], dtype=torch.float64)
    grid = (seen[..., :2] / seen[..., 2:] * scale).to(images)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), mode="bilinear", align_corners=False)


def rotation(degrees: float) -> Tensor:
    """The matrix under which `warp` turns the picture counterclockwise."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


@dataclass(frozen=True)
class TranslationsRotations(Perturbation):
    """Worst case over translations and rotations (Engstrom 2019), by the full grid.

    1. Turn the image by each of `rotations` angles from -rotation to +rotation, black where nothing is seen.
    2. Move it by each of `translations` whole distances from -translation to +translation along both axes.
    3. An image counts as right only if it is right under all of these.

    Each rotation is sampled once; its translations are windows of that.

    Args:
        translation: pixels. Default 24.
        translations: values an axis, spaced evenly and rounded. Default 5.
        rotation: degrees. Default 30.
        rotations: values, spaced evenly. Default 31, which makes 31 * 5 * 5 = 775 views.
    """

    translation: int = 24
    translations: int = 5
    rotation: float = 30.0
    rotations: int = 31
    name: str = "translations x rotations"
    statistics: tuple[Statistic, ...] = (
        Statistic.WORST_CASE, Statistic.ACCURACY, Statistic.WORST_CONFIDENCE, Statistic.SPREAD,
        Statistic.ACCURACY_BY_VIEW,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for field, low in (("translation", 0), ("translations", 1), ("rotations", 1)):
            check_int("TranslationsRotations", field, getattr(self, field), low)
        if not isinstance(self.rotation, (int, float)) or not 0 <= self.rotation <= 180:
            raise ValueError(
                f"TranslationsRotations: rotation must be from 0 to 180 degrees, got {shown(self.rotation)}"
            )

    def check(self, image_size: tuple[int, int], size: tuple[int, int]) -> None:
        if min(size) <= self.translation:
            raise ValueError(f"{self.name}: images of {size[0]}x{size[1]} are smaller than {self.translation} px")

    @property
    def grid(self) -> tuple[list[float], list[int]]:
        """Angles in degrees and distances in pixels."""
        distances = [round(d) for d in _evenly(self.translation, self.translations)]
        return _evenly(self.rotation, self.rotations), distances

    @property
    def labels(self) -> list[str]:
        angles, distances = self.grid
        return [f"{angle:g} deg {y:+d},{x:+d}" for angle in angles for y in distances for x in distances]

    def views(self, batch: Batch) -> Iterator[Tensor]:
        (height, width), edge, (angles, distances) = batch.size, self.translation, self.grid
        for angle in angles:
            canvas = warp(batch.centre(), rotation(angle), (height + 2 * edge, width + 2 * edge))
            for down in distances:
                for right in distances:
                    yield canvas[..., edge - down : edge - down + height, edge - right : edge - right + width]


def _evenly(reach: float, count: int) -> list[Any]:
    """`count` values from -reach to reach; 0 if there is but one."""
    return [0.0] if count == 1 else [reach * (2 * i / (count - 1) - 1) for i in range(count)]
