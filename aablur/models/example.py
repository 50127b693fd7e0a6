"""An input for models that come without one: noise with the spectrum of pictures, of the size the model asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..geometry import shown
from .tape import as_args, undisturbed

DEFAULT_SIZE = 224
NOISE = "noise with a photograph's spectrum"


def picture_noise(
    shape: tuple[int, ...], device: Any = None, dtype: torch.dtype | None = None, seed: int = 0
) -> Tensor:
    """Normal noise whose amplitude falls as one over the frequency, as that of photographs does; unit variance."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    f = [torch.fft.fftfreq(n) * n for n in shape[-2:]]
    radius = (f[0][:, None].square() + f[1][None].square()).sqrt().clamp(min=1)
    x = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real
    return (x / x.std()).to(device=device, dtype=dtype)


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) that a model asks for: by timm's configuration, or by its first convolution."""
    cfg: Any = getattr(model, "pretrained_cfg", None)
    if isinstance(cfg, dict) and cfg.get("input_size"):
        channels, height, width = cfg["input_size"]
        return channels, height, width
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = conv.in_channels if conv is not None else 0
    return channels or 3, DEFAULT_SIZE, DEFAULT_SIZE  # lazy convolutions have none yet


def example_for(model: nn.Module, example_input: Any, op: str) -> tuple[Any, ...]:
    """The arguments to run a model on: those given, or `picture_noise`; checked by a run.

    Raises:
        TypeError: the input holds no tensor.
        ValueError: there is none, and the model does not run on a guess.
    """
    if example_input is not None:
        args = as_args(example_input)
        if not any(isinstance(a, Tensor) for a in tree_leaves(args)):
            raise TypeError(
                f"{op}: example_input must be a tensor, or a list or dict with tensors, or a tuple of such arguments, "
                f"got {shown(example_input)}"
            )
        return args
    parameter = next(model.parameters(), torch.empty(0))
    shape = (1, *input_shape(model))
    x = picture_noise(shape, parameter.device, parameter.dtype)
    try:
        with undisturbed(model):
            model(x)
    except Exception as error:
        raise ValueError(
            f"{op}: example_input must be given: the model does not run on a guess of shape {shape} ({error})"
        ) from error
    return (x,)
