"""Max pools whose output goes to one blur pool and nowhere else: the proof, by a trace of the model's own code."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch.fx
from torch import nn
from torch.utils._pytree import tree_map_only

from ..compat import antialiased_cnns, composer, kornia, timm
from ..compat._base import Blur
from ..nn import BlurPool1d, BlurPool2d, BlurPool3d
from . import vendored
from .replace import Swaps, has_hooks, paths

_BLURS_ALONE = {
    antialiased_cnns.BlurPool, antialiased_cnns.BlurPool1D, timm.BlurPool2d, kornia.BlurPool2D, composer.BlurPool2d
}  # fmt: skip
_RANKS = {nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3}


def fuse(swaps: Swaps) -> list[tuple[nn.Module, nn.Module, nn.Module, nn.Module]]:
    """Makes one op of each max pool of stride 1 and the blur pool of ours that follows it, where this is proven.

    1. The candidates: max pools of stride 1 that return no indices, and blurs without a max of their own. None of
       them may have hooks, which would see other maps.
    2. The proof: in the trace of the model, every call of the max goes to a call of the blur and to nothing else,
       and the blur is called on nothing else. Where the model cannot be traced, each module that holds both directly
       (an ``nn.Sequential`` above all) is traced alone.
    3. The max is put before the blur, in its op, and an ``nn.Identity`` takes the place of the max pool.

    Returns:
        (max pool, identity, blur, fused) for each pair.
    """
    model = swaps.model
    maxes = {m for m in model.modules() if m is not model and _is_plain_max(m)}
    blurs = {m for m in model.modules() if m is not model and _is_plain_blur(m)}
    fused = []
    for max_pool, blur in _pairs(model, maxes, blurs) if maxes and blurs else ():
        if _RANKS[type(max_pool)] != blur.rank:
            continue
        both = copy.copy(blur)  # on the same buffers and children
        both.put_max_before(max_pool.kernel_size, max_pool.padding, max_pool.dilation)
        identity = nn.Identity().train(max_pool.training)
        swaps.replace(max_pool, identity)
        swaps.replace(blur, both, shares_state=True)
        fused.append((max_pool, identity, blur, both))
    return fused


def _is_plain_max(module: nn.Module) -> bool:
    if type(module) not in _RANKS or has_hooks(module) or "forward" in vars(module):
        return False
    strides = module.stride if isinstance(module.stride, (tuple, list)) else [module.stride]
    return all(s == 1 for s in strides) and not module.return_indices


def _is_plain_blur(module: nn.Module) -> bool:
    if has_hooks(module):
        return False
    if isinstance(module, Blur):
        return (
            not module.is_max
            and module.is_separable
            and (type(module) in _BLURS_ALONE or isinstance(module, vendored.BlurPool))
        )
    return type(module) in (BlurPool1d, BlurPool2d, BlurPool3d) and module._window is None


def _pairs(model: nn.Module, maxes: set[Any], blurs: set[Any]) -> Iterable[tuple[Any, Any]]:
    try:
        return _follows(model, maxes, blurs)
    except Exception:  # whatever the model's own code raises on a proxy: this is no proof
        found = {}
        maxes, blurs = ({m for m in some if len(paths(model, m)) == 1} for some in (maxes, blurs))
        for parent in model.modules():
            children = set(parent.children())
            if parent is not model and children & maxes and children & blurs:
                try:
                    found |= dict(_follows(parent, children & maxes, children & blurs))
                except Exception:  # as above
                    continue
        return found.items()


def _hooked(value: Any) -> Any:
    """A node where hooks may look at a value, or change it."""
    return value


class _Tracer(torch.fx.Tracer):
    """Looks into the modules that hold a candidate, and past their hooks."""

    def __init__(self, inside: set[nn.Module]) -> None:
        super().__init__()
        self._inside = inside

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self._inside

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.is_leaf_module(m, ""):
            return super().call_module(m, forward, args, kwargs)
        if not has_hooks(m):
            return m.forward(*args, **kwargs)
        args, kwargs = self._hooked((args, kwargs))
        return self._hooked(m.forward(*args, **kwargs))

    def _hooked(self, values: Any) -> Any:
        return tree_map_only(torch.fx.Proxy, lambda v: self.create_proxy("call_function", _hooked, (v,), {}), values)


def _follows(root: nn.Module, maxes: set[Any], blurs: set[Any]) -> list[tuple[Any, Any]]:
    """(max, blur) for each max all of whose calls in root go to calls of that blur alone, and to all of them."""
    if "forward" in vars(root):
        raise ValueError("the trace would follow the class's forward, not the one that is called")
    inside = {m for m in root.modules() if any(c in maxes or c in blurs for c in m.modules())} - maxes - blurs
    calls: dict[nn.Module, list[torch.fx.Node]] = defaultdict(list)
    for node in _Tracer(inside).trace(root).nodes:
        if node.op == "call_module":
            calls[root.get_submodule(str(node.target))].append(node)
    found = []
    for max_pool in (m for m in calls if m in maxes):
        users = [user for node in calls[max_pool] for user in node.users]
        if any(len(node.users) != 1 for node in calls[max_pool]) or any(u.op != "call_module" for u in users):
            continue
        modules = {root.get_submodule(str(user.target)) for user in users}
        blur = modules.pop()
        if modules or blur not in blurs or len(calls[blur]) != len(users):
            continue
        if all(len(user.args) == 1 and not user.kwargs for user in users):
            found.append((max_pool, blur))
    return found
