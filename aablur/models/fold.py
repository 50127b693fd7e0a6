"""Blurs before convolutions folded into their weights, for inference."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..geometry import Geometry, binomial, shown
from ..nn import _BlurPool
from .example import example_for
from .repaired import is_repaired
from .sites import per_axis, rank_of
from .surgery import transplant
from .tape import Call, Node, Ref, Tape, record, undisturbed

_CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class _Pair:
    """A blur and the convolution that takes its map, and nobody else does."""

    blur: Call
    conv: Call
    blur_node: Node
    node: Node


def fold(
    model: nn.Module, example_input: Any = None, *, border: str = "exact", layers: str | Sequence[str] = "all"
) -> nn.Module:
    """A copy of a model in which blurs that run right before strided convolutions have become part of their weights.

    A blur with k taps and stride s, then a convolution with kernel K, dilation d and stride c, is one convolution with
    kernel s * d * (K - 1) + k and stride s * c, for the blur's padding. So nothing but torch's own layers runs there,
    in one pass over the map; a dense convolution has more to multiply than before, a depthwise one hardly.

    1. Run the model, and find every convolution of a module of its own that samples, or did before
       `aablur.antialias`, and whose map comes from an aablur blur pool which nobody else reads.
    2. Convolve its weights with the taps, in float64, and replace it by torch's convolution; the blur is gone.

    That is exact everywhere where the convolution itself pads nothing (patchify stems, 1x1 shortcuts), whatever the
    blur's padding mode is, and where both pad circularly maps that the stride divides. A convolution that pads reads
    zeros beside the blurred map, where the folded one reads on: equal inside, not at the border.

    Args:
        model: a repaired model, or one with aablur's blur pools. It is not changed.
        example_input: as for `aablur.antialias`.
        border: "exact" leaves a convolution that pads as it is, with a warning; "approximate" folds it too, and warns
            with the difference that this makes to the model's output on the input. Default "exact".
        layers: "all", or paths of convolutions.

    Returns:
        The folded copy, in eval mode; taps and weights are constants in it.

    Raises:
        TypeError, ValueError: an argument is not of the form above, or a path is that of no such convolution.
    """
    if border not in ("exact", "approximate"):
        raise ValueError(f"fold: border must be exact or approximate, got {shown(border)}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold: model must be a torch.nn.Module, got {type(model).__name__}")
    args = example_for(model, example_input, "fold")
    folded = copy.deepcopy(model).eval()
    tape = record(folded, args)
    pairs = _pairs(tape)
    if layers != "all":
        wanted = [layers] if isinstance(layers, str) else list(layers)
        if unknown := [name for name in wanted if name not in {p.conv.path for p in pairs}]:
            there = ", ".join(p.conv.path for p in pairs) or "none"
            raise ValueError(f"fold: layers holds {unknown[0]!r}, where no blur can be folded; there are {there}")
        pairs = [p for p in pairs if p.conv.path in wanted]
    before, approximated = _run(model, args), []
    for pair in pairs:
        crops, reason = any(min(a.before, a.after) < 0 for a in _geometry(pair.blur.module).axes), _inexact(pair)
        if crops:
            reason = "its blur crops the map"
        if crops or (reason and border == "exact"):
            warnings.warn(f"fold: {pair.conv.path} is left as it was: {reason}", stacklevel=2)
            continue
        if reason:
            approximated.append(pair.conv.path)
        _replace(folded, pair)
    if approximated:
        worst = max(
            float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
            for a, b in zip(_run(folded, args), before, strict=True)
        )
        warnings.warn(
            f"fold: {', '.join(approximated)} differ at the border: the output differs by {worst:.1e} of its size on "
            "the example input",
            stacklevel=2,
        )
    return folded


def _run(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    with undisturbed(model):
        return [t.clone() for t in tree_leaves(model(*args)) if isinstance(t, Tensor) and t.is_floating_point()]


def _pairs(tape: Tape) -> list[_Pair]:
    found = []
    for node in tape.nodes:
        if not node.op.startswith("conv") or node.op.startswith("conv_t") or not isinstance(node.args[0], Ref):
            continue
        source, conv = node.args[0].node, node.call
        if source is None or len(tape.calls_of(conv.module)) != 1 or not _samples(conv.module):
            continue
        if tape.nodes[source].op == "pad" and tape.nodes[source].call is conv:  # of a padding_mode
            source = tape.nodes[source].inputs[0]
        blur = tape.nodes[source]
        is_blur = blur.op.startswith("blur_pool") and isinstance(blur.call.module, _BlurPool)
        if (
            is_blur
            and not isinstance(conv.module.padding, str)
            and len(blur.users) == 1
            and len(tape.calls_of(blur.call.module)) == 1
        ):
            found.append(_Pair(blur.call, conv, blur, node))
    return found


def _samples(module: nn.Module) -> bool:
    """Whether a module is a convolution that samples, or did before it was repaired."""
    stride = getattr(module, "stride", 1)
    is_conv = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return is_conv and any(s > 1 for s in (stride if isinstance(stride, (tuple, list)) else (stride,)))


def _inexact(pair: _Pair) -> str:
    """Why a fold is not exact at the border; "" where it is."""
    conv: Any = pair.conv.module
    geometry = _geometry(pair.blur.module)
    strides, mode = [a.stride for a in geometry.axes], geometry.padding_mode
    sizes = pair.blur_node.args[0].shape[-len(strides) :]
    if not any(conv.padding):
        return ""
    if conv.padding_mode == mode == "circular" and all(n % s == 0 for n, s in zip(sizes, strides, strict=True)):
        return ""
    return f"it pads the blurred map by {conv.padding}, so folding changes its border"


def _replace(model: nn.Module, pair: _Pair) -> None:
    """Puts the folded convolution in the place of the convolution, and nothing in that of the blur."""
    node, conv, blur = pair.node, pair.conv.module, pair.blur.module
    rank = rank_of(node.op)
    assert isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and isinstance(blur, _BlurPool)
    geometry = _geometry(blur)
    strides = [a.stride for a in geometry.axes]
    weight = node.facts["weight"].double()
    dilation, own = per_axis(conv.dilation, rank), per_axis(conv.padding, rank)
    weight = folded_weight(weight, conv.groups, _taps(blur), strides, dilation)
    padding = []
    for i, (a, p) in enumerate(zip(geometry.axes, own, strict=True)):
        before, after = a.before + a.stride * p, a.after + a.stride * p
        lead, trail = max(after - before, 0), max(before - after, 0)  # taps of zero make both sides equal
        weight = nn.functional.pad(weight, [0, 0] * (rank - 1 - i) + [lead, trail])
        padding.append(max(before, after))
    runs_at = per_axis(node.argument(3, "stride", 1), rank)  # a repaired one: at less than its attribute says
    stride = [s * c for s, c in zip(strides, runs_at, strict=True)]
    made = _CONVS[rank](
        conv.in_channels, conv.out_channels, tuple(weight.shape[2:]), tuple(stride), tuple(padding), 1, conv.groups,
        conv.bias is not None, conv.padding_mode if any(own) else geometry.padding_mode, conv.weight.device,
        conv.weight.dtype,
    )  # fmt: skip
    made.weight = nn.Parameter(weight.to(conv.weight), requires_grad=False)
    if conv.bias is not None:
        made.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    made.eval()
    if is_repaired(conv):
        transplant(model, conv, made)
    if not (is_repaired(conv) and conv._modules.get("blur_before") is blur):
        _swap(model, blur, nn.Identity())
    _swap(model, conv, made)


def _swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def _geometry(blur: Any) -> Geometry:
    return blur._geometry


def _taps(blur: _BlurPool) -> list[Tensor]:
    """The filter of each axis: (1 or channels, k), float64."""
    filters = (
        torch.tensor(binomial(t), dtype=torch.float64) if isinstance(t, int) else t.detach() for t in blur.filters()
    )
    return [t.double().reshape(-1, t.shape[-1]) for t in filters]


def folded_weight(
    weight: Tensor, groups: int, taps: Sequence[Tensor], blur_stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """The weights of the one convolution that a blur pool and a convolution are.

    With B[m] = sum_t taps[t] x[s * m + t] and y[o] = sum_j w[j] B[c * o + d * j], along each axis,
    y[o] = sum_u w'[u] x[s * c * o + u], where w'[s * d * j + t] adds up w[j] * taps[t].

    Args:
        weight: (out channels, in channels / groups, K...).
        taps: an axis (1 or in channels, k).
        blur_stride, dilation: s and d of each axis.

    Returns:
        (out channels, in channels / groups, s * d * (K - 1) + k, ...).
    """
    outs, ins = weight.shape[:2]
    for axis, (t, s, d) in enumerate(zip(taps, blur_stride, dilation, strict=True)):
        step, k = s * d, t.shape[-1]
        rows = t.to(weight).expand(ins * groups, k).reshape(groups, 1, ins, k).expand(groups, outs // groups, ins, k)
        moved = weight.movedim(2 + axis, -1)
        size = step * (moved.shape[-1] - 1) + k
        out = moved.new_zeros(*moved.shape[:-1], size)
        shaped = rows.reshape(outs, ins, *[1] * (moved.ndim - 3), k)
        for j in range(moved.shape[-1]):
            out[..., step * j : step * j + k] += moved[..., j : j + 1] * shaped
        weight = out.movedim(-1, 2 + axis)
    return weight
