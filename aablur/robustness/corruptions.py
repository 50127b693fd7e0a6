"""The common corruptions of ImageNet-C, made by the package imagecorruptions."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..geometry import shown
from .extras import require
from .perturbation import Batch, Perturbation
from .sequences import mean_ratio
from .statistics import Statistic

# Errors of AlexNet on ImageNet-C, means over the five severities: Hendrycks and Dietterich 2019, the baseline of mCE.
ALEXNET = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
CORRUPTIONS = tuple(ALEXNET)
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption(Perturbation):
    """One corruption of ImageNet-C at each of its severities (Hendrycks and Dietterich 2019).

    1. Take the image's middle, in [0, 1], to bytes.
    2. Corrupt it by `imagecorruptions`, which draws from the seed, the image's number, the kind and the severity.
    3. Count whether the top-1 is the label.

    Args:
        kind: one of `CORRUPTIONS`, or one of the package's four for validation.
        severities: from 1 to 5. Default all.

    The images must be in [0, 1], have 1 or 3 channels, and be 32 px or more (the package's limit).
    """

    kind: str
    severities: tuple[int, ...] = SEVERITIES
    statistics: tuple[Statistic, ...] = (Statistic.ACCURACY, Statistic.ACCURACY_BY_VIEW)

    def __post_init__(self) -> None:
        _function(self.kind)
        if not self.severities or not set(self.severities) <= set(SEVERITIES):
            raise ValueError(f"Corruption: severities must be among {SEVERITIES}, got {shown(self.severities)}")

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"corruption {self.kind}"

    @property
    def labels(self) -> list[str]:
        return [f"severity {s}" for s in self.severities]

    def check(self, image_size: tuple[int, int], size: tuple[int, int]) -> None:
        if min(size) < 32:
            raise ValueError(f"{self.name}: images must be 32 px or more, got {size[0]}x{size[1]}")

    def views(self, batch: Batch) -> Iterator[Tensor]:
        images = batch.centre().cpu()
        if images.shape[1] not in (1, 3):
            raise ValueError(f"{self.name}: images must have 1 or 3 channels, got {images.shape[1]}")
        if images.numel() and not (images.amin() >= 0 and images.amax() <= 1):
            raise ValueError(
                f"{self.name}: images must be in [0, 1], got {images.amin():g} to {images.amax():g}; give them before "
                "normalisation, and the normalisation as mean and std"
            )
        pixels = (images.float() * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for severity in self.severities:
            corrupted = [
                corrupt(image, self.kind, severity, f"{batch.seed}/{self.name}/{severity}/{i}")
                for image, i in zip(pixels, batch.index, strict=True)
            ]
            yield (torch.stack(corrupted).to(images.dtype) / 255).permute(0, 3, 1, 2)


def corrupt(image: Any, kind: str, severity: int, key: str) -> Tensor:
    """A corrupted copy of image, a uint8 array (height, width, channels): the same bytes for the same key.

    The package draws from NumPy's global generator, which is put back, but for two functions that take a seed.
    """
    np, image_module = require("numpy", "a corruption"), require("PIL.Image", "a corruption")
    function, takes_seed = _function(kind)
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")
    colour = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    kept = np.random.get_state()
    np.random.seed(seed)
    try:
        made = function(image_module.fromarray(colour), severity, **({"seed": seed} if takes_seed else {}))
    finally:
        np.random.set_state(kept)
    return torch.from_numpy(np.asarray(made).astype(np.uint8)[..., : image.shape[2]].copy())


def _function(kind: str) -> tuple[Callable[..., Any], bool]:
    """A corruption's function, and whether it takes a seed."""
    imagecorruptions = require("imagecorruptions", "a corruption")
    known = imagecorruptions.get_corruption_names("all")
    if kind not in known:
        raise ValueError(f"Corruption: kind must be one of {', '.join(known)}, got {shown(kind)}")
    function = imagecorruptions.corruption_dict[kind]
    return function, "seed" in inspect.signature(function).parameters


def corruptions(severities: tuple[int, ...] = SEVERITIES) -> tuple[Corruption, ...]:
    """The fifteen of ImageNet-C."""
    return tuple(Corruption(kind, severities) for kind in CORRUPTIONS)


def mean_corruption_error(errors: Mapping[str, float], baseline: Mapping[str, float] = ALEXNET) -> float:
    """mCE: the mean over corruptions of the error, summed over severities, over the baseline's.

    Args:
        errors, baseline: mean error over severities by corruption, in [0, 1]. The default baseline is AlexNet's on
            ImageNet-C, which says nothing of other data.

    Raises:
        ValueError: the baseline lacks a corruption, or makes no error in one.
    """
    return mean_ratio("mean_corruption_error", errors, baseline)
