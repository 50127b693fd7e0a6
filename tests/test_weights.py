"""Promise: repaired torchvision and timm models compute what the peers' models compute from the same weights."""

from __future__ import annotations

from typing import Any

import antialiased_cnns
import peers
import pytest
import timm
import torch
import torchvision
from plain import out
from torch import nn
from zoo import warm

from aablur.models import load_antialiased, restore
from aablur.models.loading import load_model

assert peers


def theirs(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    model = getattr(antialiased_cnns, name)(pretrained=False, **options)
    return warm(model, 96)


ZHANG = [
    ("alexnet", {}), ("vgg16", {}), ("vgg11_bn", {"filter_size": 3}), ("resnet18", {}),
    ("resnet18", {"filter_size": 5, "pool_only": False}), ("resnet50", {"filter_size": 3}),
    ("resnext50_32x4d", {}), ("wide_resnet50_2", {}), ("densenet121", {}),
    ("densenet121", {"filter_size": 2, "pool_only": False}), ("mobilenet_v2", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), ZHANG, ids=lambda v: v if isinstance(v, str) else str(list(v.values())))
def test_antialiased_cnns(name: str, options: dict[str, Any]) -> None:
    model = theirs(name, **options)
    ours = torchvision.models.get_model(name, weights=None).eval()
    assert load_antialiased(ours, model.state_dict(), torch.randn(1, 3, 64, 64)) is ours
    for size in (96, 128):
        x = torch.randn(2, 3, size, size)
        expected = out(model, x)
        torch.testing.assert_close(out(ours, x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        plain = torchvision.models.get_model(name, weights=None).eval()
        plain.load_state_dict(ours.state_dict())
        assert float((out(plain, x) - expected).abs().max()) > 1e-2 * float(expected.abs().max())


TIMM = [
    ("resnetblur18", "timm:resnet18", "reflect"),
    ("resnetblur50", "timm:resnet50", "reflect"),
    ("resnetblur50", "torchvision:resnet50", "reflect"),
    ("resnetblur50d", "timm:resnet50d", "reflect"),
    ("efficientnet_blur_b0", "timm:efficientnet_b0", "zeros"),
    ("mobilenetv4_conv_blur_medium", "timm:mobilenetv4_conv_medium", "zeros"),
]


@pytest.mark.parametrize(("blurred", "plain", "padding_mode"), TIMM)
def test_timm(blurred: str, plain: str, padding_mode: str) -> None:
    torch.manual_seed(1)
    model = warm(timm.create_model(blurred), 64)
    ours = load_model(plain)
    load_antialiased(ours, model.state_dict(), torch.randn(1, 3, 64, 64), padding_mode=padding_mode)
    x = torch.randn(2, 3, 96, 96)
    expected = out(model, x)
    torch.testing.assert_close(out(ours, x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert float((out(restore(ours), x) - expected).abs().max()) > 1e-2 * float(expected.abs().max())


def test_wrapped_and_old_checkpoints() -> None:
    model = theirs("resnet18")
    state = {f"module.{k}": v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    ours = load_antialiased(torchvision.models.resnet18().eval(), state, torch.randn(1, 3, 64, 64))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(out(ours, x), out(model, x), rtol=1e-3, atol=1e-4)


def test_what_does_not_fit() -> None:
    state, x = theirs("resnet18").state_dict(), torch.randn(1, 3, 64, 64)
    plain = {k: v for k, v in state.items() if not k.endswith("filt")}
    with pytest.raises(ValueError, match="state_dict has 102 weights, the model 267"):
        load_antialiased(torchvision.models.resnet50(), state, x)
    with pytest.raises(ValueError, match=r"does not fit conv1\.weight"):
        load_antialiased(torchvision.models.resnet18(), plain | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, x)
    with pytest.raises(ValueError, match="holds no filters"):
        load_antialiased(torchvision.models.resnet18(), plain, x, source="antialiased_cnns")
    with pytest.raises(ValueError, match="source must be one of"):
        load_antialiased(torchvision.models.resnet18(), plain, x, source="kornia")
    done = load_antialiased(torchvision.models.resnet18(), state, x)
    with pytest.raises(ValueError, match="repaired already"):
        load_antialiased(done, state, x)
