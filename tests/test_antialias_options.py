"""Promise: the options of `aablur.antialias` do what they say, and what it need not change stays as it was."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain import blur, out
from torch import nn
from zoo import ZOO, Functional, Run, Shared, warm

import aablur
from aablur.models import antialias, audit, repairs, restore
from aablur.models.aliasing import equivariance_error
from aablur.models.example import picture_noise
from aablur.models.filters import triangle

pytestmark = pytest.mark.filterwarnings("ignore:antialias. this model may be trained")


# ---- options -------------------------------------------------------------------------------------------


def test_layers() -> None:
    x = torch.randn(1, 3, 64, 64)

    def repaired(layers: Any) -> list[str]:
        return [r.name for r in repairs(antialias(ZOO[2].build(), x, layers=layers))]

    assert repaired("pool") == ["maxpool"]
    assert repaired(["layer2.*", "conv1"]) == ["conv1", "layer2.0.conv1", "layer2.0.downsample.0"]
    assert repaired(lambda site: site.map_size[0] <= 4) == ["layer4.0.conv1", "layer4.0.downsample.0"]
    assert repaired("maxpool") == ["maxpool"]
    assert repaired([]) == []


def test_taps_by_layer_and_overrides() -> None:
    x = torch.randn(1, 3, 16, 16)
    pools = nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Conv2d(3, 4, 4, 4))
    antialias(pools, x, taps={"1": 5}, overrides={"0": {"padding_mode": "circular"}})
    assert [b.taps for b in (pools[0].blur_instead, pools[1].blur_instead)] == [(3, 3), (5, 5)]
    assert pools[0].blur_instead.padding_mode == "circular"
    restore(pools)
    antialias(pools, x, taps=lambda site: 2 * site.map_size[0] // 4 - 1)
    assert [pools[i].blur_instead.taps for i in (0, 1)] == [(7, 7), (3, 3)]
    restore(pools)
    conv = pools[2]
    y = torch.randn(1, 3, 32, 32)
    antialias(nn.Sequential(conv), y, exact=True, overrides={"0": {"stride": 2}})
    torch.testing.assert_close(out(conv, y), blur(F.conv2d(y, conv.weight, conv.bias, 2)))


def test_strength_lies_between() -> None:
    x = torch.randn(2, 3, 16, 16)
    for layer in (
        nn.MaxPool2d(2),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Conv2d(3, 4, 1, 2),
        nn.Conv2d(3, 4, 2, 2),
    ):
        plain = out(layer, x)
        distances = []
        for strength in (0.0, 0.3, 0.6, 1.0):
            model = antialias(nn.Sequential(layer), x, strength=strength)
            distances.append(float((out(model, x) - plain).square().sum()))
            assert list(model.state_dict()) == list(nn.Sequential(restore(layer)).state_dict())
        assert distances[0] < 1e-8 and distances == sorted(distances) and distances[1] > 0.01


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_mode_and_exact_circular_equivariance(padding_mode: str) -> None:
    """With circular padding everywhere, shifts by the whole stride commute with the model."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular"), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1, 2)
    )
    x = torch.randn(1, 3, 32, 32)
    antialias(model, x, padding_mode=padding_mode)
    assert model[0].padding_mode == "circular"
    whole, one = (equivariance_error(lambda x: out(model, x), x, d) for d in (8, 1))
    assert (whole < 1e-10) == (padding_mode == "circular")
    assert one < equivariance_error(lambda x: out(restore(model), x), x, 1) or padding_mode != "circular"


def test_one_pixel_shifts_hurt_less() -> None:
    for name in ("torchvision:resnet18", "timm:convnextv2_atto", "timm:tf_efficientnet_lite0"):
        model = warm(next(e for e in ZOO if e.name == name).build(), 64)
        x = picture_noise((1, 3, 96, 96))
        before = audit(model, x).heatmaps([0, 1])[:, 1, 1]
        antialias(model, x)
        after = audit(model, x).heatmaps([0, 1])[:, 1, 1]
        assert after[-1] < before[-1]


# ---- what stays as it was --------------------------------------------------------------------------------


def test_hooks_flags_dtype_and_parameters_stay() -> None:
    model = warm(ZOO[2].build(), 64).double().train()
    model.bn1.eval()
    seen: list[tuple[int, ...]] = []
    model.layer2[0].conv2.register_forward_hook(lambda m, a, o: seen.append(tuple(o.shape)))  # pyright: ignore
    model.maxpool.register_forward_pre_hook(lambda m, a: seen.append(tuple(a[0].shape)))  # pyright: ignore
    parameters = {n: id(p) for n, p in model.named_parameters()}
    flags = {n: m.training for n, m in model.named_modules()}
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    antialias(model, x, learnable=True)
    assert {n: m.training for n, m in model.named_modules() if n in flags} == flags
    assert {n: id(p) for n, p in model.named_parameters() if n in parameters} == parameters
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    seen.clear()
    assert model(x).dtype == torch.float64
    assert seen == [(2, 64, 32, 32), (2, 128, 8, 8)]


def test_learnable_taps_and_an_optimizer() -> None:
    model = warm(ZOO[2].build(), 64)
    x = torch.randn(2, 3, 64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plain = {k: v.clone() for k, v in model.state_dict().items()}
    fixed = out(antialias(model, x), x)
    restore(model)
    antialias(model, x, learnable=True, per_channel=True, constraints=("sum_to_one", "symmetric"), optimizer=optimizer)
    torch.testing.assert_close(out(model, x), fixed)
    added = optimizer.param_groups[1]
    new = [k for k in model.state_dict() if k not in plain]
    assert len(added["params"]) == len(new) == 16 and added["weight_decay"] == 0
    model.train()
    model(x).square().sum().backward()
    before = [p.clone() for p in added["params"]]
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, added["params"], strict=True))
    for m in model.modules():
        if isinstance(m, (aablur.nn.BlurPool2d, aablur.nn.MaxBlurPool2d)):
            assert m.taps_0.shape == (m.channels, 3)
            torch.testing.assert_close(m.taps_0.sum(1), torch.ones(m.channels))  # pyright: ignore
            torch.testing.assert_close(m.taps_0, m.taps_0.flip(1))
    restore(model)
    assert list(model.state_dict()) == list(plain)


def test_state_dicts_load_both_ways() -> None:
    x = torch.randn(1, 3, 64, 64)
    plain, repaired = warm(ZOO[2].build(), 64), antialias(ZOO[2].build(), x)
    repaired.load_state_dict(plain.state_dict())
    again = antialias(copy.deepcopy(plain), x)
    assert torch.equal(out(again, x), out(repaired, x))
    assert torch.equal(out(restore(repaired), x), out(plain, x))
    learnt = antialias(ZOO[2].build(), x, learnable=True)
    for p in learnt.parameters():
        nn.init.normal_(p, std=0.05)
    other = antialias(ZOO[2].build(), x, learnable=True)
    other.load_state_dict(learnt.state_dict())
    assert torch.equal(out(other, x), out(learnt, x))


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_copies_and_pickles(strength: float) -> None:
    for model, x in ((ZOO[2].build(), torch.randn(1, 3, 64, 64)), (Functional().eval(), torch.randn(1, 3, 32, 32))):
        antialias(model, x, strength=strength)
        expected = out(model, x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(out(twin, x), expected)
            assert [r.name for r in repairs(twin)] == [r.name for r in repairs(model)]
            plain = restore(twin)
            assert not torch.equal(out(plain, x), expected)
        assert torch.equal(out(model, x), expected)


def test_gradients_and_training() -> None:
    model, x = warm(Functional(), 32).train(), torch.randn(4, 3, 32, 32)
    antialias(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    y = torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2 and all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("functional", [True, False])
def test_compile_and_export(functional: bool) -> None:
    model = warm(Functional() if functional else ZOO[2].build(), 64)
    x = torch.randn(2, 3, 64, 64)
    antialias(model, x)
    expected = out(model, x)
    torch._dynamo.reset()
    torch.testing.assert_close(out(torch.compile(model, backend="aot_eager", fullgraph=True), x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_half_and_double() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model, x = Shared().to(dtype), torch.randn(1, 3, 32, 32, dtype=dtype)
        assert out(antialias(model, x, strength=0.5), x).dtype == dtype


STRIDES = {
    "resize": lambda s: Run(lambda x: F.interpolate(x, scale_factor=1 / s)),
    "resize, bilinear": lambda s: Run(lambda x: F.interpolate(x, scale_factor=1 / s, mode="bilinear")),
    "slice": lambda s: Run(lambda x: x[..., ::s, ::s]),
    "max": lambda s: nn.Sequential(nn.MaxPool2d(s)),
    "average": lambda s: nn.Sequential(nn.AvgPool2d(s)),
    "average, other window": lambda s: nn.Sequential(nn.AvgPool2d(2 * s + 1, s)),
    "adaptive": lambda s: nn.Sequential(nn.AdaptiveMaxPool2d(48 // s)),
    "unshuffle": lambda s: nn.Sequential(nn.PixelUnshuffle(s)),
    "patches": lambda s: nn.Sequential(nn.Conv2d(2, 3, s, s)),
    "convolution": lambda s: nn.Sequential(nn.Conv2d(2, 3, 3, s, 1)),
    "1x1": lambda s: nn.Sequential(nn.Conv2d(2, 3, 1, s)),
}


@pytest.mark.parametrize("stride", [2, 3, 4, 8])
@pytest.mark.parametrize("name", STRIDES)
def test_the_filter_grows_with_the_stride(name: str, stride: int) -> None:
    """By its response: what a stride leaves after the repair is not more than what 3 taps leave of noise at 2."""
    x = torch.randn(2, 2, 48, 48)
    for where in ("after_activation", "before") if "conv" in name else ("after_activation",):
        model = STRIDES[name](stride)
        shape = out(model, x).shape
        before, after = audit(model, x).sites, audit(antialias(model, x, where=where), x).sites
        assert out(model, x).shape == shape
        assert [s.filter for s in after] == ["blur"] and after[0].stride == before[0].stride
        if where == "after_activation":
            assert after[0].aliasing < 0.25 and after[0].aliasing < before[0].aliasing / 2  # pyright: ignore


def test_sites_keep_their_names() -> None:
    for model, x in (
        (Functional(), torch.randn(1, 3, 32, 32)),
        (Shared(), torch.randn(1, 3, 32, 32)),
        (Run(lambda x: F.max_pool2d(x[..., ::2, ::2], 2)), torch.randn(1, 3, 32, 32)),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2, ceil_mode=True)), torch.randn(1, 3, 32, 32)),
        (nn.Sequential(nn.Identity(), nn.PixelUnshuffle(2)), torch.randn(1, 3, 32, 32)),
    ):
        for options in ({}, {"strength": 0.5}, {"learnable": True}):
            before = [s.name for s in audit(model, x, measure=False).sites]
            after = audit(antialias(model, x, **options), x, measure=False).sites
            assert [s.name for s in after] == before == [r.name for r in repairs(model)]
            restore(model)


def test_the_filter_of_a_stride() -> None:
    """max(0, 1 - |n| / s) over its sum; at the new Nyquist limit (1 / (s * sin(pi / 2s)))^4 of the power."""
    assert triangle(2) == triangle(1.4) == (0.25, 0.5, 0.25)
    assert triangle(3) == pytest.approx([1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9])
    for stride in (2, 3, 4, 7, 8, 16):
        taps = torch.tensor(triangle(stride), dtype=torch.float64)
        wave = torch.exp(1j * math.pi / stride * torch.arange(len(taps)))
        assert float((taps * wave).sum().abs() ** 2) == pytest.approx((stride * math.sin(math.pi / 2 / stride)) ** -4)
    for stride in (2.2, 2.5, 3.7, 5.3):
        taps = torch.tensor(triangle(stride), dtype=torch.float64)
        response = torch.fft.rfft(taps, 4096).abs().square()[math.ceil(2048 / stride) :]
        assert len(taps) == 2 * math.ceil(stride) - 1 and float(taps.sum()) == pytest.approx(1)
        assert float(response.max()) <= 0.25


def test_taps_that_are_given_are_kept() -> None:
    x = torch.randn(1, 2, 64, 64)
    for taps in (3, {"0": 3}, lambda site: 3):
        model = antialias(nn.Sequential(nn.MaxPool2d(4)), x, taps=taps)
        assert model[0].blur_instead.taps == (3, 3)
        torch.testing.assert_close(out(model, x), blur(F.max_pool2d(x, 4, 1), 4))
    model = antialias(nn.Sequential(nn.MaxPool2d(4), nn.MaxPool2d(4)), x, taps={"0": 5})
    assert [model[i].blur_instead.taps for i in (0, 1)] == [(5, 5), (7, 7)]


@pytest.mark.parametrize("options", [{"learnable": True}, {"learnable": True, "per_channel": True}, {"strength": 0.5}])
def test_options_of_longer_filters(options: dict[str, Any]) -> None:
    x = torch.randn(1, 2, 64, 64)
    model = antialias(nn.Sequential(nn.MaxPool2d(4)), x, **options)
    y = F.max_pool2d(x, 4, 1)
    if "strength" in options:
        k = torch.tensor([1.0, 2, 3, 20, 3, 2, 1]) / 32
        y = F.conv2d(F.pad(y, (3, 3, 3, 3), mode="reflect"), (k[:, None] * k).expand(2, 1, -1, -1), stride=4, groups=2)
    else:
        y = blur(y, 4, 7)
    torch.testing.assert_close(out(model, x), y)
    assert (len(list(model.parameters())) == 2) == ("learnable" in options)
    loaded = antialias(nn.Sequential(nn.MaxPool2d(4)), x, **options)
    loaded.load_state_dict(model.state_dict())
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(out(again, x), out(model, x))


# ---- warnings and errors ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default")
def test_trained_models_are_warned_about() -> None:
    x = torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        antialias(ZOO[2].build(), x)
        antialias(warm(ZOO[2].build(), 64), x, strength=0.25)
    with pytest.warns(UserWarning, match="without fine-tuning .* from 0.90 to 0.15"):
        antialias(warm(ZOO[2].build(), 64), x)


def test_bad_input() -> None:
    x = torch.randn(1, 3, 64, 64)
    model = ZOO[2].build()
    for error, match, arguments in (
        (ValueError, "taps must be from 1", {"taps": 0}),
        (TypeError, "taps must be an int", {"taps": 2.5}),
        (ValueError, "strength must be a number from 0 to 1", {"strength": 1.5}),
        (ValueError, "where must be one of", {"where": "after"}),
        (ValueError, "padding_mode must be one of", {"padding_mode": "mirror"}),
        (ValueError, "holds 'layer9', which fits no site; there are conv1", {"layers": ["layer9"]}),
        (TypeError, "layers must be", {"layers": 3}),
        (ValueError, "'stages', which fits no site", {"taps": {"stages": 3}}),
        (ValueError, "overrides may hold taps, .* got 'filter'", {"overrides": {"conv1": {"filter": 3}}}),
        (TypeError, "learnable must be a bool", {"learnable": 1}),
        (ValueError, "constraints must be of", {"learnable": True, "constraints": ["positive"]}),
        (ValueError, "are for learnable=True", {"constraints": ["symmetric"]}),
    ):
        with pytest.raises(error, match=match):
            antialias(model, x, **arguments)  # pyright: ignore
        assert not repairs(model)
    with pytest.raises(TypeError, match="model must be"):
        antialias("resnet18", x)  # pyright: ignore
    with pytest.raises(ValueError, match="repaired already"):
        antialias(antialias(model, x), x)
