"""Feature maps of real pictures: scikit-image's photographs through one fixed convolution."""

import random
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from skimage import data

# Those inside the scikit-image wheel; its other pictures would be downloaded.
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
    "stereo_motorcycle",
)
FILTER = 7
SMALLEST_CROP = 96


@cache
def photograph(name: str) -> torch.Tensor:
    """(3, H, W) float32 in [0, 1]; a grey picture is repeated over the three channels."""
    picture = getattr(data, name)()
    picture = picture[0] if isinstance(picture, tuple) else picture
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).float() / 255
    return pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def crops(count: int, size: int) -> torch.Tensor:
    """(count, 3, size, size): squares at fixed pseudo-random places, shrunk to size."""
    rng = random.Random(size)
    pictures = []
    for index in range(count):
        photo = photograph(PHOTOGRAPHS[index % len(PHOTOGRAPHS)])
        height, width = photo.shape[1:]
        side = rng.randint(max(SMALLEST_CROP, size), min(height, width))
        top, left = rng.randint(0, height - side), rng.randint(0, width - side)
        square = photo[None, :, top : top + side, left : left + side]
        pictures.append(F.interpolate(square, (size, size), mode="bilinear", antialias=True))
    return torch.cat(pictures)


@lru_cache(maxsize=1)  # the rows that share a map are neighbours in the catalogue
def feature_map(shape: tuple[int, int, int, int]) -> torch.Tensor:
    """float32, contiguous: ReLU of a seeded 7x7 convolution, 3 -> C, of normalised pictures."""
    batch, channels, size, _ = shape
    seeded = torch.Generator().manual_seed(channels)
    weight = torch.randn(channels, 3, FILTER, FILTER, generator=seeded) / (3 * FILTER**2) ** 0.5
    normalised = (crops(batch, size) - 0.45) / 0.25
    with torch.no_grad():
        return F.conv2d(normalised, weight, padding=FILTER // 2).relu_()
