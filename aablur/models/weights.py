"""Checkpoints of other libraries' anti-aliased models, in repaired models of torchvision and timm."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import shown
from .antialias import antialias
from .example import example_for
from .repaired import is_repaired
from .sites import Site, find_sites
from .tape import record

# Buffers of filters, by the ends of their names: antialiased_cnns, composer, kornia, timm.
FILTERS = (".filt", ".blur_filter", ".filt2d", ".kernel")
TAPS_OF_TIMM = 3


def without_filters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict without what `nn.DataParallel` and blur pools with a buffer have added to it."""
    parallel = all(key.startswith("module.") for key in state_dict)
    cut = len("module.") if parallel else 0
    return {key[cut:]: value for key, value in state_dict.items() if not f".{key}".endswith(FILTERS)}


def _zhang(model: nn.Module, state: Mapping[str, Tensor], sites: list[Site]) -> dict[str, Any]:
    """How antialiased_cnns blurs a network, read off the names and sizes of the filters in its checkpoint."""
    filters = {key.removesuffix(".filt"): value for key, value in state.items() if key.endswith(".filt")}
    taps = next(iter(filters.values())).shape[-1]
    first = sites[0].name
    inside = len(filters) == len(sites)  # its pool_only=False: the stem is blurred as well
    options: dict[str, Any] = {"taps": taps, "layers": [s.name for s in sites if inside or s.name != first]}
    if type(model).__name__ == "ResNet":
        options["overrides"] = {"maxpool": {"window": 2}}
    elif type(model).__name__ == "AlexNet":  # its first convolution keeps half of its stride
        options["overrides"] = {first: {"stride": 2}}
    elif sites[0].kind == "max_pool":  # VGG has no strided stem
        options["layers"] = [s.name for s in sites]
    return options


def _timm(model: nn.Module, state: Mapping[str, Tensor], sites: list[Site]) -> dict[str, Any]:
    """How timm's aa_layer blurs: max pools, and the convolutions inside of blocks, but no stem and no shortcut."""
    first = next((s for s in sites if s.kind == "conv"), None)

    def blurred(s: Site) -> bool:
        return s.kind == "max_pool" or (s.kind == "conv" and s is not first and any(k > 1 for k in s.kernel))

    return {"taps": TAPS_OF_TIMM, "layers": [s.name for s in sites if blurred(s)]}


_SOURCES = {"antialiased_cnns": _zhang, "timm": _timm}


def load_antialiased(
    model: nn.Module, state_dict: Mapping[str, Any], example_input: Any = None, *, source: str | None = None,
    padding_mode: str = "reflect",
) -> nn.Module:  # fmt: skip
    """Repairs a model as another library blurs it, and loads that library's checkpoint.

    1. Repair the model (`aablur.antialias`) at the sites, with the taps and windows, that the library has: for
       antialiased_cnns read off the filters in the checkpoint (filter_size, pool_only), for timm the places of its
       ``aa_layer``, 3 taps.
    2. Drop filters from the checkpoint, and rename its entries: both models have the same layers in the same order,
       whatever they are called.
    3. Load it, strictly.

    The model then computes what the other library's computes (for even map sizes also at average pools).

    Args:
        model: the torchvision or timm model of the same architecture, as it was made.
        state_dict: of antialiased_cnns, or of a timm model made with ``aa_layer`` (resnetblur50 and so on).
        example_input: as for `aablur.antialias`.
        source: "antialiased_cnns" or "timm". Default: the former if the checkpoint holds its filters.

        padding_mode: of the blurs, which no checkpoint tells. Default "reflect", as both have it; timm's "blurpc"
            (efficientnet_blur_b0, mobilenetv4_conv_blur_medium) is "zeros".

    Returns:
        ``model``.

    Raises:
        ValueError: the checkpoint does not fit the model, or the model is repaired already.
    """
    if source is not None and source not in _SOURCES:
        raise ValueError(f"load_antialiased: source must be one of {', '.join(_SOURCES)}, got {shown(source)}")
    if any(is_repaired(m) for m in model.modules()):
        raise ValueError("load_antialiased: model is repaired already: aablur.restore(model) undoes it")
    renamed = rename(without_filters(state_dict), model)
    args = example_for(model, example_input, "load_antialiased")
    has_filters = any(key.endswith(".filt") for key in state_dict)
    source = source or ("antialiased_cnns" if has_filters else "timm")
    if source == "antialiased_cnns" and not has_filters:
        raise ValueError("load_antialiased: state_dict holds no filters of antialiased_cnns (names that end in .filt)")
    options = _SOURCES[source](model, state_dict, find_sites(record(model, args)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "antialias: this model may be trained")  # the weights were trained blurred
        antialias(model, args, verify=False, padding_mode=padding_mode, **options)
    model.load_state_dict(renamed)
    return model


def rename(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint under the names of a model with the same layers in the same order.

    Raises:
        ValueError: an entry has no partner of its kind and shape.
    """
    own = model.state_dict()
    counted = ".num_batches_tracked"  # older checkpoints have none
    theirs = [key for key in state if not key.endswith(counted)]
    ours = [key for key in own if not key.endswith(counted)]
    if len(theirs) != len(ours):
        raise ValueError(f"load_antialiased: state_dict has {len(theirs)} weights, the model {len(ours)}")
    renamed = {key: torch.zeros_like(own[key]) for key in own if key.endswith(counted)}
    for a, b in zip(theirs, ours, strict=True):
        if a.rpartition(".")[2] != b.rpartition(".")[2] or state[a].shape != own[b].shape:
            raise ValueError(
                f"load_antialiased: state_dict's {a} {tuple(state[a].shape)} does not fit {b} {tuple(own[b].shape)}"
            )
        renamed[b] = state[a]
    return renamed
