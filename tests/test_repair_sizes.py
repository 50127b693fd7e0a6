"""Promise: a repaired model gives the plain model's sizes for every size of its input, however that is known."""

from __future__ import annotations

import copy
import itertools
import random
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain import out
from torch import Tensor, nn
from zoo import ZOO, Run, warm

from aablur import blur_pool2d
from aablur.models import antialias, repairs, restore

pytestmark = [
    pytest.mark.filterwarnings("ignore:antialias. this model may be trained"),
    pytest.mark.filterwarnings("ignore:antialias. with its blurs taken out"),
]


def pools(seed: int) -> list[nn.Module]:
    draw = random.Random(seed)
    found: list[nn.Module] = []
    while len(found) < 24:
        kernel, stride = draw.randint(1, 6), draw.randint(1, 5)
        options: dict[str, Any] = {"padding": draw.randint(0, kernel // 2), "ceil_mode": draw.random() < 0.7}
        if draw.random() < 0.5:
            found.append(nn.MaxPool2d(kernel, (stride, draw.randint(2, 4)), dilation=draw.randint(1, 2), **options))
        else:
            options["count_include_pad"] = draw.random() < 0.5
            found.append(nn.AvgPool2d((kernel, draw.randint(kernel, 6)), stride, **options))
    return found


@pytest.mark.parametrize("taps", [2, 3, 5])
@pytest.mark.parametrize("pool", pools(0), ids=str)
def test_pools_at_every_size(pool: nn.Module, taps: int) -> None:
    """Other windows, strides, paddings; ceil_mode, whose outputs have another formula, and whose windows may lie
    beyond the map.
    """
    gentle, model = (
        antialias(nn.Sequential(copy.deepcopy(pool)), torch.randn(1, 2, 12, 12), taps=taps, strength=s) for s in (0, 1)
    )
    for size in itertools.product((11, 12, 13, 14, 15, 16, 21), (12, 17, 19)):
        x = torch.randn(1, 2, *size)
        assert out(model, x).shape == out(pool, x).shape, size
        torch.testing.assert_close(out(gentle, x), out(pool, x))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_windows_that_reach_beyond_small_maps(rank: int) -> None:
    kind: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
    for options in ({"padding": 1, "kernel_size": 3, "stride": 2}, {"kernel_size": 2, "stride": 3}):
        pool = kind(ceil_mode=True, **options)
        gentle, whole = (antialias(nn.Sequential(copy.deepcopy(pool)), torch.randn(1, 2, *[8] * rank), strength=s)
                         for s in (0, 1))  # fmt: skip
        for size in range(1, 9):
            x = torch.randn(1, 2, *[size] * rank)
            assert torch.equal(out(gentle, x), out(pool, x))
            assert out(whole, x).isfinite().all() and out(whole, x).shape == out(pool, x).shape


def test_the_average_that_was_reported() -> None:
    model = antialias(nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True)), torch.randn(1, 3, 8, 8))
    assert out(model, torch.randn(1, 3, 9, 9)).shape == (1, 3, 5, 5)


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("divisor", [1, 3, 9])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_divisor_override(kernel: int, divisor: int, strength: float) -> None:
    pool, x = nn.AvgPool2d(kernel, 2, divisor_override=divisor), torch.ones(1, 3, 10, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "antialias: this model may be trained")
        model = antialias(nn.Sequential(pool), x, strength=strength)
    torch.testing.assert_close(out(model, x), out(pool, x))
    functional = antialias(Run(lambda y: F.avg_pool2d(y, kernel, 2, divisor_override=divisor)), x, strength=strength)
    torch.testing.assert_close(out(functional, x), out(pool, x))


def test_a_sum_that_must_not_be_one() -> None:
    model, x = nn.Sequential(nn.AvgPool2d(2, divisor_override=1)), torch.ones(1, 3, 8, 8)
    with pytest.warns(UserWarning, match="its taps sum to 4, against the constraint sum_to_one"):
        antialias(model, x, learnable=True, constraints=("sum_to_one",))
    assert not repairs(model)[0].done


AVERAGES = [m for m in pools(1) if isinstance(m, nn.AvgPool2d)] + [nn.AvgPool2d(2, 2, ceil_mode=True)]


@pytest.mark.parametrize("pool", AVERAGES, ids=str)
def test_averages_at_the_borders(pool: nn.Module) -> None:
    """At strength 0 they are what they were where windows reach beyond the map, too, and between they are mixed."""
    soft, half, whole = (
        antialias(nn.Sequential(copy.deepcopy(pool)), torch.randn(1, 2, 12, 12), strength=s) for s in (0.0, 0.5, 1.0)
    )
    for size in ((12, 12), (13, 15), (16, 11)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(out(soft, x), out(pool, x))
        if pool.padding or pool.ceil_mode:  # else taps are mixed along each axis
            torch.testing.assert_close(out(half, x), (out(pool, x) + out(whole, x)) / 2)


@pytest.mark.parametrize("rank", [1, 3])
def test_averages_of_other_ranks(rank: int) -> None:
    pool = (nn.AvgPool1d, nn.AvgPool3d)[rank // 2](3, 2, 1, ceil_mode=True, count_include_pad=False)
    x = torch.randn(1, 2, *(9, 8, 7)[:rank])
    model = antialias(nn.Sequential(pool), torch.randn(1, 2, *(8, 8, 8)[:rank]), strength=0.0)
    torch.testing.assert_close(out(model, x), pool(x))
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), pool(x))


NORMS = {
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "batch": lambda: nn.BatchNorm2d(4, track_running_stats=False),
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_over_the_map(kind: str) -> None:
    """They take their statistics of what was sampled: the blur stands before them."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), NORMS[kind](), nn.ReLU()).eval(), torch.randn(1, 3, 17, 20)
    before = out(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        antialias(model, x, strength=0.0)
    torch.testing.assert_close(out(model, x), before)
    model = antialias(restore(model), x)
    conv: Any = model[0]
    full = F.conv2d(x, conv.weight, conv.bias, 1, 1)
    torch.testing.assert_close(out(model, x), out(model[1:], blur_pool2d(full, 3, stride=2, padding=1)))


@pytest.mark.filterwarnings("ignore:antialias. .* is left as it was")
def test_windows_that_follow_the_map() -> None:
    """They are of one size on the example alone."""
    for function in (
        lambda x: F.avg_pool2d(x, x.shape[-1] // 4),
        lambda x: F.max_pool2d(x, 2, x.shape[-1] // 4),
        lambda x: x[..., :: x.shape[-1] // 4],
    ):
        model = antialias(Run(function), torch.randn(1, 3, 16, 16))
        x = torch.randn(1, 3, 33, 33)
        assert out(model, x).shape == function(x).shape


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "timm:resnet18d", "timm:resnest14d"])
def test_networks_at_other_sizes(name: str) -> None:
    entry = next((e for e in ZOO if e.name == name), None)
    if entry is None:
        import timm

        model = warm(timm.create_model(name.split(":")[1]), 64)
    else:
        model = warm(entry.build(), 64)
    sizes = [(64, 64), (65, 70), (71, 67), (75, 99)]
    before = [out(model, torch.full((1, 3, *size), 0.5)) for size in sizes]
    antialias(model, torch.randn(1, 3, 64, 64), strength=0.0)
    for size, y in zip(sizes, before, strict=True):
        z = out(model, torch.full((1, 3, *size), 0.5))
        assert z.shape == y.shape and (
            name != "timm:tf_efficientnet_lite0" or torch.allclose(z, y, rtol=1e-3, atol=1e-4)
        )


# ---- sizes that a graph has as unknowns ------------------------------------------------------------------


class SameConv(nn.Conv2d):
    """TensorFlow's padding."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore
        pads = []
        for i in (1, 0):
            n, s = x.shape[-2 + i], self.stride[i]
            total = torch.sym_max((-(-n // s) - 1) * s + self.kernel_size[i] - n, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride)  # pyright: ignore


BY_SIZE = {
    "same": lambda: SameConv(3, 4, 3, 2),
    "same 5": lambda: SameConv(3, 4, 5, 3),
    "ceil max": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "ceil small max": lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
    "ceil average": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
}


@pytest.mark.parametrize("mode", ["reflect", "circular"])
@pytest.mark.parametrize("name", BY_SIZE)
def test_exports_with_dynamic_sizes(name: str, mode: str) -> None:
    model = nn.Sequential(BY_SIZE[name](), nn.ReLU()).eval()
    x = torch.randn(1, 3, 16, 18)
    antialias(model, x, padding_mode=mode)
    height, width = torch.export.Dim("height", min=8, max=64), torch.export.Dim("width", min=8, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({2: height, 3: width},)).module()
    for size in ((16, 18), (17, 23), (9, 30), (31, 8)):
        y = torch.randn(1, 3, *size)
        torch.testing.assert_close(exported(y), out(model, y))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("name", ["ceil max", "ceil small max", "ceil average"])
def test_traces_with_other_sizes(name: str) -> None:
    model = nn.Sequential(BY_SIZE[name](), nn.ReLU()).eval()
    x = torch.randn(1, 3, 16, 18)
    antialias(model, x)
    with torch.no_grad():
        traced: Any = torch.jit.trace(model, x)
    for size in ((16, 18), (17, 23), (9, 30)):
        y = torch.randn(1, 3, *size)
        torch.testing.assert_close(traced(y), out(model, y))


def test_compiled_with_dynamic_sizes() -> None:
    for build in (BY_SIZE["same"], BY_SIZE["ceil max"]):
        model = antialias(nn.Sequential(build(), nn.ReLU()).eval(), torch.randn(1, 3, 16, 18))
        torch._dynamo.reset()
        compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
        for size in ((16, 18), (17, 23), (9, 30)):
            y = torch.randn(1, 3, *size)
            torch.testing.assert_close(out(compiled, y), out(model, y))
