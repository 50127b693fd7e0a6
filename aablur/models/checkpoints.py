"""Checkpoints as training scripts save them, loaded into a model."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

# under which a state_dict lies beside optimizers and epochs; an average over training is taken where there is no other
_HOLDERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema")
_WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # of torch, anywhere in a name
_KNOWN = re.compile(r"((module|model)\.)*")  # of DataParallel and of training frameworks


def load_checkpoint(model: nn.Module, path: str | PathLike[str]) -> None:
    """Loads every weight of a model from a file; the file runs no code (``weights_only=True``).

    1. Take what lies under "state_dict" or another of `_HOLDERS`, if anything does.
    2. Leave torch's wrappers out of the names (``_orig_mod.`` of torch.compile), in the model's names too.
    3. Find the prefix under which most of the model's names are there: none, ``module.``, ``model.``, or one's own.
       What lies elsewhere (another network, a loss) is not the model's.
    4. Load what is under it, all of it: names and shapes must be those of the model.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no checkpoint, holds the model twice, or is of another model.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of pickle, zip and torch: whatever a file that is no checkpoint meets
        said = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"checkpoint: {path} cannot be loaded with weights_only=True: {said[0]}") from error
    state = _weights(stored)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        got = f"a dict of {', '.join(map(str, state))}"[:200] if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"checkpoint: {path} must hold a state_dict, names with tensors, got {got}")
    try:
        model.load_state_dict(_named_as(state, [*model.state_dict()], path))
    except RuntimeError as error:
        said = textwrap.shorten(str(error), 400, placeholder=" ...")
        raise ValueError(f"checkpoint: {path} is not of this model: {said}") from error


def _weights(stored: Any) -> Any:
    while isinstance(stored, Mapping):
        inner = next((stored[key] for key in _HOLDERS if isinstance(stored.get(key), Mapping)), None)
        if inner is None:
            break
        stored = inner
    return stored


def _named_as(state: Mapping[Any, Any], names: list[str], path: str | PathLike[str]) -> Mapping[str, Any]:
    """The entries of one prefix, under the model's names."""
    if not names or state.keys() == set(names):
        return state  # as it is, with the versions that torch keeps beside it
    ours = {_WRAPPERS.sub("", name): name for name in names}
    theirs = {_WRAPPERS.sub("", str(name)): value for name, value in state.items()}
    first = next(iter(ours))
    prefixes = [name.removesuffix(first) for name in theirs if f".{name}".endswith(f".{first}")] or [""]
    found = {prefix: sum(prefix + name in theirs for name in ours) for prefix in prefixes}
    best = [prefix for prefix in prefixes if found[prefix] == max(found.values())]
    known = sorted((prefix for prefix in best if _KNOWN.fullmatch(prefix)), key=len)
    if len(best) > 1 and not known:
        raise ValueError(f"checkpoint: {path} holds the model more than once, under {', '.join(best)}")
    (prefix, *_) = known or best
    below = {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}
    return {ours.get(name, name): value for name, value in below.items()}
