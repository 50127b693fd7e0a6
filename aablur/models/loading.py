"""Models and pictures named in a shell."""

from __future__ import annotations

import importlib
import sys
from os import PathLike

import torch
from torch import Tensor, nn

from ..extras import require
from .checkpoints import load_checkpoint
from .pictures import read_picture

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
RANDOM = "random"


def load_model(spec: str, checkpoint: str | None = None, pretrained: bool = False) -> nn.Module:
    """The model that ``spec`` names.

    Args:
        spec: "torchvision:resnet50", "timm:convnext_tiny", or "package.module:function" for a function without
            arguments, or a module, of one's own.
        checkpoint: a file with weights; see `load_checkpoint`.
        pretrained: the library's own weights, which it may download.

    Raises:
        ValueError: no such form or name, or the checkpoint is not the model's.
        TypeError: what the name stands for is no module and gives none.
        ImportError: the library is not installed.
    """
    library, _, name = spec.partition(":")
    if not name:
        raise ValueError(f"model must be torchvision:NAME, timm:NAME or package.module:NAME, got {spec!r}")
    if library == "torchvision":
        models = require("torchvision.models", "a model of torchvision", "models", "torchvision")
        if name not in models.list_models():
            raise ValueError(f"torchvision has no model {name!r}; see torchvision.models.list_models()")
        model = models.get_model(name, weights="DEFAULT" if pretrained else None)
    elif library == "timm":
        timm = require("timm", "a model of timm", "models", "torchvision timm")
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}; see timm.list_models()")
        model = timm.create_model(name, pretrained=pretrained)
    else:
        model = getattr(importlib.import_module(library), name, None)
        if model is None:
            raise ValueError(f"model: the module {library} has no {name!r}")
        if not isinstance(model, nn.Module) and callable(model):
            model = model()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: {spec} must be or give a torch.nn.Module, got {type(model).__name__}")
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model.eval()


def weights_named(spec: str, checkpoint: str | None, pretrained: bool) -> str:
    """Where the weights of `load_model` come from, in words; `RANDOM` where they are of no training."""
    library = spec.partition(":")[0]
    if checkpoint is not None:
        return f"checkpoint {checkpoint}"
    if library not in ("torchvision", "timm"):
        return f"as {spec} makes them"
    return f"pretrained, of {library}" if pretrained else RANDOM


def warn_if_random(name: str, weights: str) -> None:
    """A line on standard error: nothing that is measured on random weights says anything of a trained model."""
    if weights == RANDOM:
        print(f"warning: the weights of {name} are random: give --pretrained, or a checkpoint", file=sys.stderr)


def load_picture(path: str | PathLike[str], size: int | tuple[int, int] = 224, channels: int = 3) -> Tensor:
    """A picture as a model takes it: (1, channels, height, width) float32, normalised by ImageNet's mean and deviation.

    Args:
        path: of the file; see `read_picture`.
        size: height and width; the picture is scaled to cover it, and the middle is cut out.
        channels: 3, or 1 for the mean of the three.

    Raises:
        OSError: the file cannot be read.
        ValueError: other channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, the model takes {channels}")
    x = read_picture(path, (size, size) if isinstance(size, int) else size).float() / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return (x if channels == 3 else x.mean(0, keepdim=True))[None]
