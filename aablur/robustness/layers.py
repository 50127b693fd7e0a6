"""Where in a network the equivariance is lost: maps of it at every place that samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import models
from .perturbation import check_int


def layers(model: nn.Module, images: Tensor, reach: int = 8) -> dict[str, list[list[float]]]:
    """Internal shift-equivariance (Zhang 2019, Fig. 5), as `aablur.models` measures it for audits.

    1. Run the model, with circular padding everywhere, on the images and on the images rolled by 0 ... reach pixels
       down and right.
    2. At each place where it samples compare its map for the rolled images with its map for the images, shifted as far.

    Args:
        model: on the device of the images; it is not changed.
        images: (batch, channels, height, width), as the model takes them, that is normalised.
        reach: pixels. Default 8, for 81 forward passes.

    Returns:
        For each place, by its number, name and kind, [down][right]: |difference|^2 / |map about its mean|^2, 0 where
        the network up to there is equivariant to that shift, about 2 where the maps have nothing in common. It goes
        into a result by ``dataclasses.replace(result, layers=robustness.layers(model, images))``.
    """
    check_int("layers", "reach", reach, 1)
    found = models.audit(model, images, measure=False)
    maps = found.heatmaps(range(reach + 1))
    return {
        f"{i + 1}. {site.name} ({site.kind})": at.tolist()
        for i, (site, at) in enumerate(zip(found.sites, maps, strict=True))
        if not torch.isnan(at).any()
    }
