"""Models and pictures named in a shell."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import require

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def load_model(spec: str, checkpoint: str | None = None, pretrained: bool = False) -> nn.Module:
    """The model that ``spec`` names.

    Args:
        spec: "torchvision:resnet50", "timm:convnext_tiny", or "package.module:function" for a function without
            arguments, or a module, of one's own.
        checkpoint: a file with a state_dict, or with one under "state_dict" or "model".
        pretrained: the library's own weights, which it may download.

    Raises:
        ValueError: no such form or name.
        ImportError: the library is not installed.
    """
    library, _, name = spec.partition(":")
    if not name:
        raise ValueError(f"model must be torchvision:NAME, timm:NAME or package.module:NAME, got {spec!r}")
    if library == "torchvision":
        models = require("torchvision.models", "a model of torchvision", "models")
        if name not in models.list_models():
            raise ValueError(f"torchvision has no model {name!r}; see torchvision.models.list_models()")
        model = models.get_model(name, weights="DEFAULT" if pretrained else None)
    elif library == "timm":
        timm = require("timm", "a model of timm", "models")
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}; see timm.list_models()")
        model = timm.create_model(name, pretrained=pretrained)
    else:
        made = getattr(importlib.import_module(library), name)
        model = made if isinstance(made, nn.Module) else made()
    if checkpoint is not None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state.get(key, state)
        model.load_state_dict(state)
    return model.eval()


def input_size(model: nn.Module) -> int:
    """The side of the pictures that a model asks for; 224 where it does not say."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    return int(cfg.get("input_size", (3, 224, 224))[-1])


def load_picture(path: str | Path, size: int | tuple[int, int] = 224) -> Tensor:
    """A picture as a model takes it: (1, 3, height, width) float32, normalised by ImageNet's mean and deviation.

    Its shorter side is scaled to ``size`` (anti-aliased), and the middle is cut out.
    """
    pixels = require("skimage.io", "reading a picture", "models").imread(str(path))
    x = torch.as_tensor(pixels.copy()).float() / 255
    x = x.expand(3, -1, -1) if x.ndim == 2 else x.permute(2, 0, 1)[:3]
    height, width = (size, size) if isinstance(size, int) else size
    scale = max(height / x.shape[1], width / x.shape[2])
    scaled = (max(height, round(x.shape[1] * scale)), max(width, round(x.shape[2] * scale)))
    x = nn.functional.interpolate(x[None], scaled, mode="bilinear", antialias=True)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    x = x[..., top : top + height, left : left + width]
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
