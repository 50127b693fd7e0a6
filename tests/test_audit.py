"""Promise: `aablur.audit` finds every sampling place of any model, and its figures are those of the definitions."""

from __future__ import annotations

import json
import math
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import antialiased_cnns
import kornia
import numpy as np
import peers
import pytest
import scipy.fft
import timm
import torch
import torch.nn.functional as F
from composer.algorithms.blurpool import BlurConv2d, BlurMaxPool2d
from plain import out
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from zoo import ZOO, Entry, Functional, Run

import aablur
from aablur.models import aliasing, antialias, repairs, restore
from aablur.models.audit import audit
from aablur.models.circular import wrap
from aablur.models.show import cells
from aablur.models.sites import Site
from aablur.models.tape import record

assert peers


def sites(function: Any, *shape: int, measure: bool = False) -> list[Site]:
    model = function if isinstance(function, nn.Module) else Run(function)
    return audit(model, torch.randn(shape or (2, 4, 16, 16)), measure=measure).sites


@pytest.mark.parametrize("entry", ZOO, ids=lambda e: e.name)
def test_places_of_real_networks(entry: Entry) -> None:
    found = audit(entry.build(), torch.randn(1, 3, entry.size, entry.size), measure=False).sites
    assert [(s.name, s.kind, s.stride) for s in found] == [(n, k, (s, s)) for n, k, s in entry.sites]
    assert {s.filter for s in found if s.kind != "avg_pool"} <= {None}


def _grid(height: int, width: int) -> Tensor:
    return F.affine_grid(torch.eye(2, 3).expand(2, -1, -1), [2, 4, height, width], align_corners=False)


KINDS = {
    "conv": (lambda x: F.conv2d(x, torch.randn(3, 4, 3, 3), stride=(1, 2)), (1, 2), (16, 16)),
    "max_pool": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (2, 2), (16, 16)),
    "max_pool indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (2, 2), (16, 16)),
    "avg_pool": (lambda x: F.avg_pool2d(x, (2, 1)), (2,), (16,)),
    "lp_pool": (lambda x: F.lp_pool2d(x, 2, 2), (2, 2), (16, 16)),
    "adaptive_pool": (lambda x: F.adaptive_avg_pool2d(x, (4, 1)), (4.0,), (16,)),
    "adaptive_pool max": (lambda x: F.adaptive_max_pool2d(x, 4), (4.0, 4.0), (16, 16)),
    "slice": (lambda x: x[:, :, 1::2, ::3], (2, 3), (16, 16)),
    "slice of chosen channels": (lambda x: x[:, [0, 2], ::2, 1::2], (2, 2), (16, 16)),
    "slice last": (lambda x: x[..., ::2, :][..., 0:9], (2,), (16,)),
    "space_to_depth unshuffle": (lambda x: F.pixel_unshuffle(x, 2), (2, 2), (16, 16)),
    "space_to_depth slices": (
        lambda x: torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1), (2, 2), (16, 16)
    ),
    "space_to_depth patches": (
        lambda x: x.reshape(2, 4, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 64), (4, 4), (16, 16)
    ),
    "space_to_depth einsum order": (
        lambda x: x.view(2, 4, 8, 2, 8, 2).transpose(3, 4).permute(0, 1, 4, 5, 2, 3).reshape(2, 16, 8, 8),
        (2, 2), (16, 16),
    ),
    "unfold": (lambda x: F.unfold(x, 3, stride=2), (2, 2), (16, 16)),
    "unfold of an axis": (lambda x: x.unfold(3, 4, 4), (4,), (16,)),
    "max_pool by keywords": (lambda x: F.max_pool2d(input=x, kernel_size=2), (2, 2), (16, 16)),
    "index": (lambda x: x.index_select(2, torch.arange(1, 16, 2)), (2,), (16,)),
    "index by keywords": (lambda x: torch.index_select(input=x, dim=-1, index=torch.arange(0, 16, 4)), (4,), (16,)),
    "index tensor": (lambda x: x[:, :, torch.arange(0, 16, 2)], (2,), (16,)),
    "index tensors": (
        lambda x: x[..., torch.arange(0, 16, 2)[:, None], torch.arange(0, 16, 3)[None]], (2, 3), (16, 16)
    ),
    "index of two": (lambda x: x[:, :, :, torch.arange(0, 16, 2)][:, :, 1:], (2,), (16,)),
    "index list": (lambda x: x[:, :, list(range(0, 16, 2))], (2,), (16,)),
    "index range": (lambda x: x[..., range(0, 16, 4)], (4,), (16,)),
    "index array": (lambda x: x[:, :, np.arange(0, 16, 2)], (2,), (16,)),
    "index gather": (lambda x: x.gather(3, torch.arange(0, 16, 2).expand(2, 4, 16, 8)), (2,), (16,)),
    "index along": (
        lambda x: torch.take_along_dim(x, torch.arange(0, 16, 2)[:, None].expand(1, 1, 8, 1), 2), (2,), (16,)
    ),
    "index by a mask": (lambda x: x[..., torch.arange(16) % 4 == 1], (4,), (16,)),
    "index uneven": (lambda x: x[:, :, torch.tensor([0, 1, 4, 6, 9, 10, 15])], (2.5,), (16,)),
    "as_strided": (lambda x: torch.as_strided(x, (2, 4, 8, 4), (1024, 256, 32, 4)), (2, 4), (16, 16)),
    "grid_sample": (lambda x: F.grid_sample(x, _grid(8, 8), align_corners=False), (2.0, 2.0), (16, 16)),
    "grid_sample by its op": (lambda x: torch.grid_sampler(x, _grid(8, 8), 0, 0, False), (2.0, 2.0), (16, 16)),
    "fractional_pool": (lambda x: F.fractional_max_pool2d(x, 2, output_size=(8, 10)), (2.0, 1.6), (16, 16)),
    "fractional_pool module": (lambda x: nn.FractionalMaxPool2d(2, output_ratio=0.5)(x), (2.0, 2.0), (16, 16)),
    "reduce mean": (lambda x: x.view(2, 4, 8, 2, 4, 4).mean((3, 5)), (2, 4), (16, 16)),
    "reduce amax": (lambda x: x.reshape(2, 4, 8, 2, 8, 2).amax(dim=(-1, -3)), (2, 2), (16, 16)),
    "reduce median": (lambda x: x.view(2, 4, 8, 2, 16).median(3).values, (2,), (16,)),
    "reduce std": (lambda x: x.view(2, 4, 8, 2, 8, 2).std((3, 5)), (2, 2), (16, 16)),
    "reduce norm": (lambda x: torch.linalg.vector_norm(x.view(2, 4, 8, 2, 8, 2), dim=(3, 5)), (2, 2), (16, 16)),
    "reduce logsumexp": (lambda x: x.view(2, 4, 8, 2, 8, 2).logsumexp((-3, -1)), (2, 2), (16, 16)),
    "reduce prod": (lambda x: x.view(2, 4, 16, 4, 4).prod(-1), (4,), (16,)),
    "reduce quantile": (lambda x: x.view(2, 4, 16, 4, 4).quantile(0.5, dim=4), (4,), (16,)),
    "reduce in two views": (lambda x: x.unflatten(3, (8, 2)).unflatten(2, (4, 4)).amax((3, 5)), (4, 2), (16, 16)),
    "reduce entries": (lambda x: x.view(2, 4, 8, 2, 8, 2)[:, :, :, 0, :, 1], (2, 2), (16, 16)),
    "reduce select": (lambda x: x.view(2, 4, 8, 2, 16).select(3, 0), (2,), (16,)),
    "reduce phases": (lambda x: _phases(x.view(2, 4, 8, 2, 8, 2)), (2, 2), (16, 16)),
    "reduce an axis": (lambda x: x.unflatten(2, (8, 2)).max(3).values, (2,), (16,)),
    "reduce the last": (lambda x: torch.mean(x.view(2, 4, 16, 4, 4), dim=-1), (4,), (16,)),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=0.5), (2.0, 2.0), (16, 16)),
    "interpolate size": (lambda x: F.interpolate(x, (20, 10), mode="bilinear"), (1.6,), (16,)),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    function, stride, size = KINDS[name]
    (site,) = sites(function, measure=True)
    assert (site.kind, site.stride, site.map_size) == (name.split()[0], stride, size)
    assert site.source.rsplit(":")[0].endswith("tests/test_audit.py")
    assert site.aliasing is not None and site.equivariance is not None
    assert 0 < site.aliasing < 1 and site.equivariance > 0


def _windows(x: Tensor) -> Tensor:  # of Swin: B, H, W, C
    return x.view(2, 4, 1, 4, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 16)


def _heads(x: Tensor) -> Tensor:
    q, k, v = x.flatten(2).transpose(1, 2).reshape(2, 256, 1, 2, 2).expand(2, 256, 3, 2, 2).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 256, 4)


def _phases(x: Tensor) -> Tensor:
    return torch.cat([x[..., i, :, j] for i in (0, 1) for j in (0, 1)], 1)


def _pairs(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1], x[..., 0]], -1)


NONE = {
    "global average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "global average by a window": lambda x: F.avg_pool2d(x, 16),
    "mean": lambda x: x.mean((2, 3)),
    "stride one": lambda x: F.max_pool2d(F.conv2d(x, torch.randn(4, 4, 3, 3)), 3, 1),
    "adaptive, same size": lambda x: F.adaptive_avg_pool2d(x, 16),
    "adaptive, larger": lambda x: F.adaptive_avg_pool2d(x, 32),
    "upsampling": lambda x: F.interpolate(x, scale_factor=2.0),
    "transposed": lambda x: F.conv_transpose2d(x, torch.randn(4, 4, 2, 2), stride=2),
    "rotary pairs": lambda x: torch.stack([x[..., ::2], x[..., 1::2]], -1),
    "every other channel": lambda x: x[:, ::2],
    "every other picture": lambda x: x[::2],
    "windows of attention": _windows,
    "heads": _heads,
    "shuffled channels": lambda x: x.view(2, 2, 2, 16, 16).transpose(1, 2).reshape(2, 4, 16, 16),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "3-D windows of attention": lambda x: (
        (x.view(1, 2, 16, 16, 4) + 0).view(1, 1, 2, 4, 4, 4, 4, 4).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, 32, 4)
    ),
    "3-D windows, not merged with the batch": lambda x: (
        (x.view(1, 2, 16, 16, 4) + 0).view(1, 1, 2, 4, 4, 4, 4, 4).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(1, 16, 32, 4)
    ),
    "windows as high as the map": lambda x: (
        x.permute(0, 2, 3, 1).reshape(2, 1, 16, 4, 4, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, 64, 4)
    ),
    "a window by an index": lambda x: x[:, :, torch.arange(3, 9)],
    "a shuffle": lambda x: x[:, :, torch.arange(16).flip(0)].index_select(3, torch.tensor([3, 1, 2])),
    "a table": lambda x: x.new_ones(9, 4)[torch.arange(0, 9, 2)].sum() + x,
    "channels by an index": lambda x: x.index_select(1, torch.arange(0, 4, 2)),
    "pictures by an index": lambda x: x[torch.tensor([0, 2, 3][:1])],
    "a mask": lambda x: x[:, :, torch.arange(16) % 2 == 5],
    "as_strided windows": lambda x: torch.as_strided(x, (2, 4, 14, 14, 3, 3), (1024, 256, 16, 1, 16, 1)),
    "grid of every pixel": lambda x: F.grid_sample(x, _grid(16, 16), align_corners=False),
    "a finer grid": lambda x: F.grid_sample(x, _grid(32, 24), align_corners=False),
    "groups of channels": lambda x: x.view(2, 2, 2, 16, 16).mean((2, 3, 4)),
    "groups of channels, maximum": lambda x: x.view(2, 2, 2, 16, 16).amax(2),
    "heads of tokens": lambda x: x.view(2, 16, 64).view(2, 16, 8, 8).sum(-1),
    "gathered by the map": lambda x: x.gather(3, x.argsort(3)),
    "pairs, by entries": lambda x: _pairs(x.view(2, 4, 16, 8, 2)),
    "queries and keys": lambda x: x.flatten(2).mT.reshape(2, 256, 2, 2).permute(2, 0, 1, 3)[0],
    "a picture": lambda x: x[1],
    "a row": lambda x: x[:, :, 3],
    "whole axes": lambda x: x.view(2, 4, 16, 4, 4).mean((3, 4)),
    "map to tokens and back": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(2, 4, 16, 16),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_sampling(name: str) -> None:
    assert sites(NONE[name]) == []


BINOMIAL = torch.tensor([0.25, 0.5, 0.25])


def _plane(taps: Tensor) -> Tensor:
    return taps.outer(taps).expand(4, 1, -1, -1)


def _depthwise(x: Tensor, taps: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(x, _plane(taps), stride=stride, groups=4)


def _rows(x: Tensor) -> Tensor:
    return F.conv2d(x, BINOMIAL.expand(4, 1, 1, 3), groups=4)


def _columns(x: Tensor) -> Tensor:
    return F.conv2d(x, BINOMIAL.expand(4, 1, 1, 3).mT, groups=4)


def _sinc(stride: int, reach: int = 6) -> Tensor:
    """With negative lobes, under a Hann window."""
    taps = torch.sinc(torch.arange(-reach, reach + 1) / stride) * torch.hann_window(2 * reach + 3, periodic=False)[1:-1]
    return taps / taps.sum()


def _upfirdn(x: Tensor, taps: Tensor) -> Tensor:
    """Zeros put in (none here), padded, one filter for all planes of all pictures, a gain, every other pixel kept."""
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n * c, h, 1, w, 1, 1), (0, 0, 0, 0, 0, 0, 0, 0, 0, 0)).reshape(n * c, 1, h, w)
    x = F.conv2d(F.pad(x, (1, 1, 1, 1)), taps.outer(taps)[None, None].flip(2, 3)) * 4.0
    return x.reshape(n, c, h, w)[:, :, ::2, ::2]


FILTERS: dict[str, tuple[nn.Module, str | None]] = {
    "aablur": (aablur.nn.BlurPool2d(), "blur"),
    "aablur max": (aablur.nn.MaxBlurPool2d(3, taps=5), "blur"),
    "aablur learnable": (aablur.nn.BlurPool2d(learnable=True), "blur"),
    "aablur before a convolution": (nn.Sequential(aablur.nn.BlurPool2d(stride=1), nn.Conv2d(4, 4, 3, 2)), "blur"),
    "antialiased_cnns": (antialiased_cnns.BlurPool(4), "blur"),
    "timm": (timm.layers.BlurPool2d(4), "blur"),
    "kornia": (kornia.filters.MaxBlurPool2D(3), "blur"),
    "composer pool": (BlurMaxPool2d(2), "blur"),
    "composer convolution": (BlurConv2d(4, 4, 3, stride=2, padding=1), "blur"),
    "average": (nn.AvgPool2d(2), "average"),
    "average before a convolution": (nn.Sequential(nn.AvgPool2d(3, 1), nn.Conv2d(4, 4, 3, 2)), "average"),
    "average of one pixel": (nn.AvgPool2d(1, 2), None),
    "average, too small": (nn.AvgPool2d(2, 4), "weak"),
    "averages, one after the other": (nn.Sequential(nn.AvgPool2d(2, 1), nn.AvgPool2d(2)), "blur"),
    "average of split axes": (Run(lambda x: x.view(2, 4, 8, 2, 8, 2).mean((3, 5))), "average"),
    "maximum of split axes": (Run(lambda x: x.view(2, 4, 8, 2, 8, 2).amax((3, 5))), None),
    "3 taps, stride 3": (aablur.nn.BlurPool2d(3, stride=3), "weak"),
    "3 taps, stride 4": (aablur.nn.BlurPool2d(3, stride=4), "weak"),
    "3 taps, stride 8": (aablur.nn.BlurPool2d(3, stride=8), "weak"),
    "9 taps, stride 4": (aablur.nn.BlurPool2d(9, stride=4), "blur"),
    "2 taps, stride 8": (aablur.nn.BlurPool2d(2, stride=8), None),
    "3 taps along one axis": (aablur.nn.BlurPool2d((3, 1)), None),
    "taps of a tensor": (Run(lambda x: aablur.blur_pool2d(x, torch.tensor([0.25, 0.5, 0.25]))), "blur"),
    "taps of a high-pass filter": (Run(lambda x: aablur.blur_pool2d(x, torch.tensor([-0.5, 1.5, 0.0]))), None),
    "antialiased_cnns, stride 8": (antialiased_cnns.BlurPool(4, stride=8), "weak"),
    "3 taps before stride 8": (nn.Sequential(aablur.nn.BlurPool2d(stride=1), nn.Conv2d(4, 4, 8, 8)), "weak"),
    "two blurs before": (
        nn.Sequential(aablur.nn.BlurPool2d(stride=1), aablur.nn.BlurPool2d(stride=1), nn.Conv2d(4, 4, 4, 3)),
        "blur",
    ),
    "a strided blur before": (nn.Sequential(aablur.nn.BlurPool2d(stride=2), nn.Conv2d(4, 4, 3)), "blur"),
    "sinc": (Run(lambda x: _depthwise(x, _sinc(2), 2)), "blur"),
    "sinc, then a convolution": (
        Run(lambda x: F.conv2d(_depthwise(x, _sinc(2)), torch.ones(4, 4, 3, 3), stride=2)),
        "blur",
    ),
    "sinc of another stride": (Run(lambda x: _depthwise(x, _sinc(2), 8)), None),
    "a comb": (Run(lambda x: _depthwise(x, torch.tensor([0.5, 0.0, 0.5]), 2)), None),
    "a dilated blur": (Run(lambda x: F.conv2d(x, _plane(BINOMIAL), stride=2, dilation=2, groups=4)), None),
    "unequal channels": (
        Run(lambda x: F.conv2d(x, torch.cat([_plane(BINOMIAL)[:3], torch.randn(1, 1, 3, 3)]), stride=2, groups=4)),
        None,
    ),
    "rows, then columns": (Run(lambda x: _columns(_rows(x))[..., ::2, ::2]), "blur"),
    "rows alone": (Run(lambda x: _rows(x)[..., ::2, ::2]), None),
    "rows alone, stride of rows": (Run(lambda x: _rows(x)[..., ::2]), "blur"),
    "rows with a stride": (Run(lambda x: F.conv2d(x, BINOMIAL.expand(4, 1, 1, 3), stride=(1, 2), groups=4)), "blur"),
    "a view between": (Run(lambda x: _depthwise(x, BINOMIAL).flatten(1).view(2, 4, 14, 14)[..., ::2, ::2]), "blur"),
    "tokens between": (
        Run(
            lambda x: (
                _depthwise(x, BINOMIAL).flatten(2).transpose(1, 2).transpose(1, 2).reshape(2, 4, 14, 14)[..., ::2, ::2]
            )
        ),
        "blur",
    ),
    "a view that moves pixels": (Run(lambda x: _depthwise(x, BINOMIAL).reshape(2, 4, 7, 28)[..., ::2]), None),
    "channels last": (Run(lambda x: _depthwise(x, BINOMIAL).permute(0, 2, 3, 1)[:, ::2, ::2]), "blur"),
    "upfirdn": (Run(lambda x: _upfirdn(x, BINOMIAL)), "blur"),
    "upfirdn, separable": (
        Run(lambda x: 4 * _columns(F.pad(_rows(x), (0, 0, 1, 1)))[..., 2:, 2:][..., ::2, ::2]),
        "blur",
    ),
    "depthwise": (nn.Conv2d(4, 4, 3, 2, groups=4), None),
    "antialias=True": (Run(lambda x: F.interpolate(x, (8, 8), mode="bilinear", antialias=True)), "blur"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_what_is_filtered_already(name: str) -> None:
    model, expected = FILTERS[name]
    *_, site = sites(model)
    assert site.filter == expected and site.filtered == (expected is not None)


def _assigned(x: Tensor, starts: tuple[int, ...]) -> Tensor:
    wide = x.new_zeros(*x.shape[:3], 2 * x.shape[3])
    for start in starts:
        wide[..., start::2] = x
    return wide


def _masked(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., ::2] = 0
    return x


UPSAMPLING: dict[str, tuple[nn.Module, str | None, tuple[float, ...], str | None]] = {
    "transposed": (nn.ConvTranspose2d(4, 4, 2, 2), "conv_transpose", (2, 2), None),
    "transposed in 1-D": (
        Run(lambda x: F.conv_transpose1d(x[:, :, 0], torch.randn(4, 4, 3), stride=3)),
        "conv_transpose",
        (3,),
        None,
    ),
    "transposed, bilinear": (
        Run(lambda x: F.conv_transpose2d(x, 4 * _plane(BINOMIAL), stride=2, groups=4)),
        "conv_transpose",
        (2, 2),
        "blur",
    ),
    "transposed at stride 1": (nn.ConvTranspose2d(4, 4, 3), None, (), None),
    "transposed, then blurred": (
        nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2), aablur.nn.BlurPool2d(stride=1)),
        "conv_transpose",
        (2, 2),
        "blur",
    ),
    "nearest": (nn.Upsample(scale_factor=2), "nearest", (2, 2), "average"),
    "nearest exact, other sizes": (
        Run(lambda x: F.interpolate(x, (48, 32), mode="nearest-exact")),
        "nearest",
        (3, 2),
        "average",
    ),
    "nearest, then blurred": (
        nn.Sequential(nn.Upsample(scale_factor=2), aablur.nn.BlurPool2d(stride=1)),
        "nearest",
        (2, 2),
        "blur",
    ),
    "repeated": (Run(lambda x: x.repeat_interleave(2, -1)), "nearest", (1, 2), "average"),
    "repeated pictures": (Run(lambda x: x.repeat_interleave(2, 0)), None, (), None),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), None, (), None),
    "zeros": (Run(lambda x: _zeros_between(x)), "zeros", (2, 2), None),
    "zeros by an assignment": (Run(lambda x: _assigned(x, (0,))), "zeros", (1, 2), None),
    "zeros by an assignment, then blurred": (
        Run(lambda x: _depthwise(_assigned(x, (1,)), BINOMIAL)),
        "zeros",
        (1, 2),
        "blur",
    ),
    "two maps in turn": (Run(lambda x: _assigned(x, (0, 1))), None, (), None),
    "a constant assigned": (Run(_masked), None, (), None),
    "copies by index": (Run(lambda x: x[:, :, torch.arange(48) // 3]), "nearest", (3, 1), "average"),
    "copies by index_select": (
        Run(lambda x: x.index_select(3, torch.arange(32) // 2)),
        "nearest",
        (1, 2),
        "average",
    ),
    "zeros, then blurred": (Run(lambda x: _depthwise(_zeros_between(x), BINOMIAL)), "zeros", (2, 2), "blur"),
    "unpooled": (Run(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)), "zeros", (2, 2), None),
    "a border of zeros": (Run(lambda x: F.pad(x, (1, 1, 1, 1))), None, (), None),
    "a border of one pixel": (Run(lambda x: F.pad(x[..., :1], (0, 3)).flatten(1)), None, (), None),
    "pixel shuffle": (nn.PixelShuffle(2), None, (), None),
}


def _zeros_between(x: Tensor) -> Tensor:
    return F.pad(x.reshape(2, 4, 16, 1, 16, 1), (0, 1, 0, 0, 0, 1)).reshape(2, 4, 32, 32)


@pytest.mark.parametrize("name", UPSAMPLING)
def test_upsampling_is_named(name: str) -> None:
    model, kind, factor, expected = UPSAMPLING[name]
    report = audit(model, torch.randn(2, 4, 16, 16))
    found = [(u.kind, u.factor, u.filter) for u in report.upsampling]
    assert found == ([] if kind is None else [(kind, factor, expected)])
    assert ("Upsampling" in str(report)) == bool(found) == bool(json.loads(report.to_json())["upsampling"])
    assert all(u.source for u in report.upsampling)


# ---- the figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "shape"), [((2, 2), (12, 16)), ((3, 2), (15, 9)), ((1, 4), (8, 21))])
def test_energy_is_that_of_the_cosine_transform(stride: tuple[int, int], shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    power = scipy.fft.dctn((x - x.mean((2, 3), keepdim=True)).numpy(), axes=(2, 3), norm="ortho") ** 2
    rows, columns = (torch.arange(n)[None if i else slice(None)] for i, n in enumerate(shape))
    rows, columns = torch.arange(shape[0])[:, None], torch.arange(shape[1])[None]
    above = (rows > shape[0] / stride[0]) | (columns > shape[1] / stride[1])
    expected = (power * above.numpy()).sum() / power.sum()
    assert aliasing.energy_above(x, stride, (-2, -1)) == pytest.approx(expected, rel=1e-5)


def test_energy_of_waves() -> None:
    n = torch.arange(64)
    for k, expected in ((5, 0.0), (40, 1.0)):  # a basis function below and one above 64 / 2
        wave = torch.cos(math.pi * (n + 0.5) * k / 64).expand(1, 1, 64, 64)
        assert aliasing.energy_above(wave, (2, 2), (-2, -1)) == pytest.approx(expected, abs=1e-5)
    assert aliasing.energy_above(torch.ones(1, 2, 8, 8), (2, 2), (-2, -1)) == 0


@pytest.mark.parametrize("size", [8, 9])
def test_fourier_shift(size: int) -> None:
    x = torch.randn(2, size, size + 2, dtype=torch.float64)
    torch.testing.assert_close(aliasing.fourier_shift(x, (3, -1), (-2, -1)), x.roll((3, -1), (-2, -1)))
    n = torch.arange(size, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * n / size)[None]
    moved = torch.cos(2 * math.pi * (n - 0.3) / size)[None]
    torch.testing.assert_close(aliasing.fourier_shift(wave, (0.3,), (-1,)), moved)


def test_equivariance_error() -> None:
    x = torch.randn(2, 3, 16, 16)
    sample = lambda x: x[..., ::2, ::2]  # noqa: E731
    for shift in (0, 2, (4, 6)):
        assert aliasing.equivariance_error(sample, x, shift) == 0
    assert aliasing.equivariance_error(sample, x, 1) > 0.5
    low = torch.fft.ifft2(
        torch.fft.fft2(x) * (torch.fft.fftfreq(16).abs() < 0.24).outer(torch.fft.fftfreq(16).abs() < 0.24)
    )
    assert aliasing.equivariance_error(sample, low.real, 1) < 1e-10


LAYERS = {
    "conv": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, bias=False),
    "max": nn.MaxPool2d(3, 2, 1),
    "average": nn.AvgPool2d(2),
    "blur": aablur.nn.BlurPool2d(5),
    "max blur": aablur.nn.MaxBlurPool2d(3, window_padding=1),
    "slice": Run(lambda x: x[..., ::2, 1::2]),
    "padded": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shift", [1, 3])
def test_a_site_is_measured_as_its_layer_on_a_torus(name: str, shift: int) -> None:
    """Far from the borders of a map repeated three times, the layer is itself with circular padding."""
    layer, x = LAYERS[name], torch.randn(2, 4, 16, 16)

    def on_torus(x: Tensor) -> Tensor:
        out = layer(wrap(x, (16, 16), (16, 16), (-2, -1)))
        return out[..., 8:16, 8:16]

    (site,) = audit(layer, x, shift=shift).sites
    assert site.equivariance == pytest.approx(aliasing.equivariance_error(on_torus, x, shift), rel=1e-4)


def test_blurs_alias_less_than_what_they_replace() -> None:
    x = torch.randn(2, 4, 32, 32)
    before, after, five = (
        audit(m, x).sites[0] for m in (nn.MaxPool2d(2), aablur.nn.MaxBlurPool2d(), aablur.nn.MaxBlurPool2d(taps=5))
    )
    assert before.aliasing > after.aliasing > five.aliasing  # pyright: ignore
    assert before.equivariance > after.equivariance > five.equivariance  # pyright: ignore


# ---- the report ----------------------------------------------------------------------------------------


def test_heatmaps() -> None:
    entry = next(e for e in ZOO if e.name == "torchvision:resnet18")
    report = audit(entry.build(), torch.randn(1, 3, 64, 64))
    maps = report.heatmaps(shifts=[0, 2, 8, 3])
    assert maps.shape == (8, 4, 4)
    assert maps[:, 0, 0].max() == 0
    strides = torch.tensor([2, 4, 8, 8, 16, 16, 32, 32])
    for i, stride in enumerate(strides):
        for a, down in enumerate((0, 2, 8, 3)):
            for b, right in enumerate((0, 2, 8, 3)):
                error = float(maps[i, a, b])
                whole = down % stride == 0 and right % stride == 0
                assert error < 1e-6 if whole else error > 1e-3, (i, down, right)
    borders = report.heatmaps(shifts=[0, 8], circular=False)
    assert borders[3, 1, 1] > 1e-4  # zero padding is seen


def test_the_model_stays_as_it_was() -> None:
    model = Functional().train()
    model.conv1.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    flags, random = [m.training for m in model.modules()], torch.get_rng_state()
    audit(model, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("in_place", [True, False])
def test_compiled_models(in_place: bool) -> None:
    """They run uncompiled, so that nothing is compiled anew, and names are those of the module itself."""
    model, x = Functional().eval(), torch.randn(1, 3, 32, 32)
    expected, plain = audit(model, x), out(model, x)
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled: Any = model if in_place else torch.compile(model, backend=backend)
    if in_place:
        model.compile(backend=backend)
    torch.testing.assert_close(out(compiled, x), plain)
    many = len(graphs)
    assert audit(compiled, x).rows() == expected.rows() and len(graphs) == many > 0
    assert antialias(compiled, x) is compiled and [r.name for r in repairs(compiled)] == [
        s.name for s in expected.sites
    ]
    assert len(graphs) == many
    after = out(compiled, x)
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(after, out(compiled, x))
    assert not torch.allclose(after, plain)
    torch.testing.assert_close(out(restore(compiled), x), plain)
    assert repairs(compiled) == []


def test_untraceable_models() -> None:
    plain, branching = (audit(Functional(t), torch.randn(1, 3, 32, 32), measure=False).sites for t in (True, False))
    assert [(s.name, s.kind) for s in plain] == [(s.name, s.kind) for s in branching]


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripts_are_passed_through() -> None:
    model = nn.Sequential(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 16, 16)), nn.MaxPool2d(2))
    (site,) = audit(model, torch.randn(1, 3, 16, 16)).sites
    assert site.name == "1" and site.aliasing is not None


def test_json_table_and_picture(tmp_path: Path) -> None:
    report = audit(Functional(), torch.randn(1, 3, 32, 32))
    loaded = json.loads(report.to_json(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text()) == loaded
    assert [s["kind"] for s in loaded["sites"]] == ["max_pool", "conv", "slice", "avg_pool"]
    assert loaded["sites"][1]["aliasing"] == report.sites[1].aliasing
    text = str(report)
    assert "4 sampling places, 3 unfiltered" in text and "conv2" in text and "zoo.py:" in text
    report.plot(tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 10_000


def test_the_table_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    report = audit(Functional(), torch.randn(1, 3, 32, 32))
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    assert "conv2" in str(report) and "┃" not in str(report)


def test_one_pixel_cannot_be_measured() -> None:
    """Whatever it is shifted by, it is the same: a dash, no zero."""
    for model in (nn.MaxPool2d(2), nn.Conv2d(4, 4, 2, 2), aablur.nn.BlurPool2d(), nn.AdaptiveAvgPool2d((1, 1)),
                  Run(lambda x: x[..., ::2, ::2]), Run(lambda x: F.interpolate(x, scale_factor=0.5))):  # fmt: skip
        report = audit(model, torch.randn(1, 4, 2, 2))
        assert all(s.equivariance is None for s in report.sites)
        assert all(row[6] == "-" for row in cells(report))
    assert audit(nn.MaxPool2d(2), torch.randn(1, 4, 2, 4)).sites[0].equivariance is not None


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Markup of terminals in brackets, formulas of plots between dollars."""
    names = ("[red]", "[/x]", "$\\frac{$", "_a")
    report = audit(nn.Sequential(OrderedDict((n, nn.MaxPool2d(2)) for n in names)), torch.randn(1, 3, 64, 64))
    assert all(name in str(report) for name in names)
    report.plot(tmp_path / "r.png", heatmaps=False)


def test_other_ranks_and_inputs() -> None:
    assert sites(nn.Conv1d(4, 4, 3, 2), 2, 4, 16)[0].stride == (2,)
    assert sites(nn.MaxPool3d(2), 1, 2, 8, 8, 8)[0].map_size == (8, 8, 8)
    half = audit(nn.Sequential(nn.Conv2d(3, 4, 3, 2)).bfloat16(), torch.randn(1, 3, 16, 16).bfloat16()).sites[0]
    assert half.aliasing is not None and half.aliasing > 0
    shared = nn.MaxPool2d(2)
    assert [s.name for s in sites(nn.Sequential(shared, nn.ReLU(), shared))] == ["0", "0#2"]


def test_an_input_of_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(5, 4, 3, 2), nn.Conv2d(4, 4, 3, 2))
    report = audit(model)
    assert report.example_input[0].shape == (1, 5, 224, 224) and len(report.sites) == 2
    with pytest.raises(ValueError, match="example_input must be given"):
        audit(nn.Sequential(nn.Conv2d(5, 4, 3, 2), nn.Linear(7, 2)))


class Detector(nn.Module):
    """Takes pictures of several sizes: a list, a dict, or a list of dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2))

    def forward(self, pictures: Any, scale: float = 1.0) -> list[Tensor]:
        if isinstance(pictures, dict):
            pictures = pictures["pictures"]
        return [self.body(scale * (p["picture"] if isinstance(p, dict) else p)[None]) for p in pictures]


def test_lists_and_dicts_are_arguments() -> None:
    pictures = [torch.randn(3, 16, 24), torch.randn(3, 20, 20)]
    for example in (pictures, {"pictures": pictures}, [{"picture": p} for p in pictures], (pictures,), (pictures, 2.0)):
        report = audit(Detector(), example)
        assert [(s.kind, s.map_size) for s in report.sites] == [
            ("conv", (16, 24)), ("max_pool", (8, 12)), ("conv", (20, 20)), ("max_pool", (10, 10))
        ]  # fmt: skip
        assert all(s.aliasing is not None for s in report.sites)
        with pytest.raises(ValueError, match="heatmaps: the model's input must be") as caught:
            report.heatmaps()
        assert len(str(caught.value)) < 600 and "tensor(" not in str(caught.value)


LAZY = {
    "lazy": lambda: nn.Sequential(
        nn.LazyConv2d(4, 3, 2), nn.LazyBatchNorm2d(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(2)
    ),
    "partly": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(2)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize("given", [True, False])
def test_lazy_modules_see_the_input(name: str, given: bool) -> None:
    model = LAZY[name]().train()
    random = torch.get_rng_state()
    report = audit(model, torch.randn(2, 3, 32, 32, generator=torch.Generator()) if given else None)
    assert [s.kind for s in report.sites] == ["conv", "max_pool"] and report.sites[1].aliasing
    assert torch.equal(random, torch.get_rng_state()) and all(m.training for m in model.modules())
    model(report.example_input[0].expand(2, -1, -1, -1)).sum().backward()  # what was made can be trained


def test_a_record_keeps_no_map_alive() -> None:
    """Its peak of memory is a forward's."""
    alive: list[weakref.ref] = []

    def watch(module: nn.Module, args: Any, out: Tensor) -> None:
        alive.append(weakref.ref(out))
        assert sum(ref() is not None for ref in alive) <= 3

    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(9)))
    for layer in model:
        layer.register_forward_hook(watch)
    tape = record(model, torch.randn(1, 3, 16, 16))
    assert len(alive) == 9 and len(tape.nodes) == 10 and not any(ref() is not None for ref in alive)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made inside of it."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.size = max(self.size, *sizes, 0)
        return out


def test_figures_are_made_of_a_part_at_a_time() -> None:
    """A layer at stride 1 gives more than the model holds."""
    x = torch.randn(64, 3, 64, 64)
    for model in (nn.Conv2d(3, 16, 3, 2, 1), nn.MaxPool2d(2), Run(lambda x: x[..., 1::2, ::2])):
        with Largest() as forward, torch.no_grad():
            model(x)
        with Largest() as whole:
            report = audit(model, x)
        assert report.sites[0].aliasing and 0 < whole.size <= 2 * max(forward.size, x.numel() * 4)


def test_messages_hold_no_tensors() -> None:
    x = torch.randn(1, 3, 32, 32)
    for call in (
        lambda: audit(nn.MaxPool2d(2), x, shift=x), lambda: audit(nn.MaxPool2d(2), {"x": [1, "a"]}),
        lambda: audit(nn.MaxPool2d(2), [x.numpy()]), lambda: aablur.accelerate(nn.MaxPool2d(2), fuse_max=x),
        lambda: aablur.blur_pool2d(x, stride=x), lambda: aablur.blur_pool2d(x, padding=[x, 2]),
        lambda: aablur.nn.BlurPool2d(channels=x), lambda: aablur.blur_pool2d(x, {"taps": x}),
        lambda: aablur.robustness.measure(nn.Flatten(), [(x, [0])], [x]),
        lambda: aablur.robustness.measure(nn.Flatten(), [(x, [0])], mean=x[0, 0, 0] / 0, std=1.0),
        lambda: aablur.robustness.ShiftPairs(range=x),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        said = str(caught.value)
        assert len(said) < 400 and "\n" not in said and "tensor(" not in said, said


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="model must be a torch"):
        audit(3)  # pyright: ignore
    with pytest.raises(TypeError, match="example_input"):
        audit(nn.MaxPool2d(2), "picture")
    with pytest.raises(ValueError, match="shift must be a positive int"):
        audit(nn.MaxPool2d(2), torch.randn(1, 1, 8, 8), shift=0)
    with pytest.raises(ValueError, match="batch, channels, height, width"):
        audit(nn.Conv1d(1, 1, 3, 2), torch.randn(1, 1, 8)).heatmaps()


# ---- blurs that are there, in other words ------------------------------------------------------------------


def _by_channels(x: Tensor, k: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (2, 1, 2, 1)), k.expand(x.shape[1], 1, 4, 4), groups=x.shape[1])


def _by_views(x: Tensor, k: Tensor) -> Tensor:
    """All channels in the batch, as a convolution of one channel, and back."""
    b, c, h, w = x.shape
    y = F.conv2d(F.pad(x, (2, 1, 2, 1)).view(b * c, 1, h + 3, w + 3), k[None, None])
    return y.view(b, c, h, w)


def _by_permutes(x: Tensor, k: Tensor) -> Tensor:
    """Channels last, padded by views of six axes, cropped, and back."""
    b, c, h, w = x.shape
    y = x.reshape(-1, h, w, 1)
    y = F.pad(y.view(-1, h, 1, w, 1, 1), (0, 0, 0, 0, 0, 0)).view(-1, h, w, 1)
    y = F.pad(y, (0, 0, 2, 2, 2, 2))[:, : h + 3, : w + 3, :]
    y = F.conv2d(y.permute(0, 3, 1, 2).reshape(-1, 1, h + 3, w + 3), k[None, None])
    return y.reshape(-1, 1, h, w).permute(0, 2, 3, 1)[:, :, :, :].reshape(b, c, h, w)


class Discriminator(nn.Module):
    """Blurs before each convolution that samples, the shortcut's too."""

    def __init__(self, filters: Any, blurs: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, 2, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv2d(8, 8, 1, 2) for _ in range(3))
        self.stem, self.filters, self.blurs = nn.Conv2d(3, 8, 1), filters, blurs
        k = torch.tensor([1.0, 3, 3, 1])
        self.register_buffer("k", k[:, None] * k / k.sum() ** 2)

    k: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, skip in zip(self.convs, self.skips, strict=True):
            y = self.filters(x, self.k) if self.blurs else x.view(x.shape)
            x = F.leaky_relu(conv(y), 0.2) + skip(y)
        return x


@pytest.mark.parametrize("filters", [_by_channels, _by_views, _by_permutes], ids=lambda f: f.__name__)
def test_discriminators_that_blur_are_not_blurred_twice(filters: Any) -> None:
    for size in (32, 24):
        model, x = Discriminator(filters).eval(), torch.randn(2, 3, size, size)
        before = out(model, x)
        assert audit(model, x, measure=False).unfiltered == []
        antialias(model, x)
        assert repairs(model) == [] and torch.equal(out(model, x), before)
    assert len(audit(Discriminator(filters, blurs=False), x, measure=False).unfiltered) == 6
