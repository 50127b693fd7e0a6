"""Promise: the functions, factories and conversions of aablur.compat are their peers', and timm takes our classes."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import peers  # noqa: F401  # isort: skip  # makes the next imports possible
import composer.algorithms.blurpool
import composer.functional
import kornia.filters
import pytest
import timm
import timm.layers
import torch
import torchvision
from drop_ins import assert_same, described
from torch import nn

import aablur


def test_kornia_functions() -> None:
    theirs, ours = kornia.filters, aablur.compat.kornia
    for size in ((9, 14), (6, 6)):
        x = torch.randn(2, 3, *size)
        for k in range(1, 8):
            for stride in (1, 2, 3, 4):
                options: dict[str, Any] = {"kernel_size": k, "stride": stride}
                assert_same(partial(ours.blur_pool2d, **options), partial(theirs.blur_pool2d, **options), x)
                options["max_pool_size"] = 3
                assert_same(partial(ours.max_blur_pool2d, **options), partial(theirs.max_blur_pool2d, **options), x)
    with pytest.warns(DeprecationWarning, match="ceil_mode"):
        out = ours.max_blur_pool2d(x, 3, ceil_mode=True)
    assert torch.equal(out, ours.max_blur_pool2d(x, 3))
    with pytest.warns(DeprecationWarning, match="ceil_mode"):
        assert ours.MaxBlurPool2D(3, ceil_mode=True).ceil_mode
    wide = ours.blur_pool2d(x, (3, 5))  # the peer wants squares
    torch.testing.assert_close(wide, aablur.blur_pool2d(x, (3, 5), padding_mode="zeros"))


def test_composer_functions() -> None:
    theirs, ours = composer.algorithms.blurpool, aablur.compat.composer
    x = torch.randn(2, 3, 9, 12)
    filters = [
        None, torch.rand(3, 1, 5, 3), torch.rand(3, 1, 5, 1) * torch.rand(3, 1, 1, 3), torch.rand(1, 1, 3, 3),
        torch.ones(1, 1, 1, 7),
    ]  # fmt: skip
    for filt in filters:
        for stride in (1, 2, 3, (1, 2)):
            options = {"stride": stride, "filter": filt}
            assert_same(partial(ours.blur_2d, **options), partial(theirs.blur_2d, **options), x)
            for window in (None, 3, (2, 3)):
                options |= {"kernel_size": window, "padding": 1, "dilation": 1}
                assert_same(partial(ours.blurmax_pool2d, **options), partial(theirs.blurmax_pool2d, **options), x)
    learnt = torch.rand(3, 1, 3, 3, requires_grad=True)
    gradients = [
        torch.autograd.grad(f(x, filter=learnt).square().sum(), learnt)[0] for f in (ours.blur_2d, theirs.blur_2d)
    ]
    torch.testing.assert_close(*gradients)
    compiled = torch.compile(lambda t, f: ours.blur_2d(t, filter=f), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, learnt), theirs.blur_2d(x, filter=learnt))


def test_create_aa() -> None:
    for layer in (None, "avg", "avg_pool", "blur", "BlurPool", "blur-pc", nn.AvgPool2d, partial(nn.AvgPool2d, 3)):
        for enable in (True, False):
            ours = aablur.compat.timm.create_aa(layer, channels=6, stride=2, enable=enable)
            theirs = timm.layers.create_aa(layer, channels=6, stride=2, enable=enable)
            assert type(ours).__name__ == type(theirs).__name__
            x = torch.randn(1, 6, 8, 8)
            torch.testing.assert_close(ours(x), theirs(x))
    assert aablur.compat.timm.create_aa(None, noop=None) is None
    made = aablur.compat.timm.create_aa("blur", 4, device="meta", dtype=torch.float64)
    assert (made.filt.device.type, made.filt.dtype) == ("meta", torch.float64)  # pyright: ignore


AA_MODELS = (
    "resnet18",
    "resnet51q",
    "skresnet18",
    "cspresnet50",
    "efficientnet_b0",
    "mobilenetv2_100",
    "mobilenetv4_conv_small",
    "mnasnet_100",
    "repvgg_a0",
)


@pytest.mark.parametrize("layer", [aablur.nn.BlurPool2d, aablur.compat.timm.BlurPool2d], ids=["nn", "compat"])
@pytest.mark.parametrize("name", [*AA_MODELS, "densenet121"])
def test_timm_families_take_the_class(name: str, layer: Any) -> None:
    theirs = timm.create_model(name, aa_layer=timm.layers.BlurPool2d, num_classes=5).eval()
    ours = timm.create_model(name, aa_layer=layer, num_classes=5).eval()
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])

    def places(model: nn.Module, cls: type) -> list[str]:
        return [path for path, m in model.named_modules() if isinstance(m, cls)]

    assert places(ours, layer) == places(theirs, timm.layers.BlurPool2d) != []
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_a_layer_without_channels_serves_where_timm_counts_them_wrong() -> None:
    x = torch.randn(1, 3, 64, 64)
    for layer, error in ((timm.layers.BlurPool2d, RuntimeError), (aablur.compat.timm.BlurPool2d, ValueError)):
        with pytest.raises(error, match="8 channels"):
            timm.create_model("mobilenetv3_small_050", aa_layer=layer).eval()(x)
    model = timm.create_model("mobilenetv3_small_050", aa_layer=aablur.nn.BlurPool2d, num_classes=5).eval()
    assert model(x).shape == (1, 5)


def test_tresnet_is_accelerated() -> None:
    model = timm.create_model("tresnet_m", num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    report = aablur.accelerate(model)
    assert len(report.swapped) == 3 and report.left == []
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)


def test_timm_passes_channels_first_in_densenet() -> None:
    """Where aa_stem_only is False, which nn.BlurPool2d would take for taps, and refuses."""
    options = {"block_config": (2, 2, 2, 2), "num_classes": 5, "aa_stem_only": False}
    theirs = timm.models.DenseNet(aa_layer=timm.layers.BlurPool2d, **options).eval()
    ours = timm.models.DenseNet(aa_layer=aablur.compat.timm.BlurPool2d, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"at most 32, got 64\. Channels .* aablur.compat.timm.BlurPool2d"):
        timm.models.DenseNet(aa_layer=aablur.nn.BlurPool2d, **options)


@pytest.mark.parametrize("blur_first", [True, False])
def test_apply_blurpool(blur_first: bool) -> None:
    theirs = torchvision.models.resnet18(weights=None, num_classes=5)
    ours = copy.deepcopy(theirs)
    parameters = set(ours.parameters())
    composer.functional.apply_blurpool(theirs, blur_first=blur_first)
    aablur.compat.composer.apply_blurpool(ours, blur_first=blur_first)
    assert described(ours.state_dict().items()) == described(theirs.state_dict().items())
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in theirs.named_modules()]
    assert set(ours.parameters()) == parameters
    x = torch.randn(2, 3, 64, 64)
    assert_same(ours.eval(), theirs.eval(), x, atol=1e-4, rtol=1e-4)
    for m in theirs.parameters():
        nn.init.normal_(m, std=0.01)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)
    before = list(ours.modules())
    aablur.compat.composer.apply_blurpool(ours, blur_first=blur_first)  # a second time changes nothing
    composer.functional.apply_blurpool(ours, blur_first=blur_first)  # nor does the peer's: it knows our mark
    assert all(type(m) is type(b) for m, b in zip(ours.modules(), before, strict=True))


def test_apply_blurpool_keeps_what_the_peer_drops() -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 16, 3, 2, padding=1, padding_mode="circular"),
        nn.MaxPool2d(3, 1, 1),
        nn.Conv2d(16, 8, 3),
        nn.MaxPool2d(2),
    ).bfloat16()
    model[3].eval()
    conv, pool = model[0], model[1]
    aablur.compat.composer.apply_blurpool(model, min_channels=1)
    assert model[0].conv is conv and model[0].conv.padding_mode == "circular"
    assert model[1] is pool  # which does not sample
    assert isinstance(model[3], aablur.compat.composer.BlurMaxPool2d) and not model[3].training
    assert model(torch.randn(1, 16, 16, 16).bfloat16()).dtype == torch.bfloat16
    shared = nn.MaxPool2d(2)
    twice = nn.ModuleList([nn.Sequential(shared), nn.Sequential(shared, nn.Conv2d(16, 3, 3, 2))])
    aablur.compat.composer.apply_blurpool(twice, replace_convs=False)
    assert twice[0][0] is twice[1][0] and isinstance(twice[1][1], nn.Conv2d)  # pyright: ignore
    with pytest.warns(UserWarning, match="no strided"):
        aablur.compat.composer.apply_blurpool(nn.Sequential(nn.Linear(2, 2)))
