"""Promise: `aablur.fold` changes what runs and not what comes out, or says so, and touches no original."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import out
from torch import Tensor, nn
from zoo import ZOO, warm

import aablur
from aablur.models import antialias, fold

pytestmark = pytest.mark.filterwarnings("ignore:antialias. this model may be trained")


def blurs(model: nn.Module) -> int:
    return sum(
        isinstance(m, (aablur.nn.BlurPool1d, aablur.nn.BlurPool2d, aablur.nn.BlurPool3d)) for m in model.modules()
    )


CONVS: list[dict[str, Any]] = [
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 4, "stride": 4, "bias": False},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": (3, 2), "stride": (1, 3), "dilation": (2, 1)},
    {"kernel_size": 3, "stride": 2, "groups": 2},
    {"kernel_size": 3, "stride": 2, "groups": 4},
]


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("conv", CONVS, ids=str)
@pytest.mark.parametrize("stride", [1, 2, (1, 2)])
def test_a_blur_before_a_convolution(conv: dict[str, Any], mode: str, stride: Any) -> None:
    for taps, learnable in ((2, False), (3, False), ((4, 5), False), (3, True), (torch.rand(4, 3), False)):
        blur = aablur.nn.BlurPool2d(
            taps, stride=stride, padding_mode=mode, learnable=learnable, channels=4 if learnable else None
        )
        for p in blur.parameters():
            nn.init.uniform_(p)
        model = nn.Sequential(blur, nn.Conv2d(4, 8, **conv)).double()
        for size in ((20, 23), (32, 17)):
            x = torch.randn(2, 4, *size, dtype=torch.float64)
            folded = fold(model, x)
            assert blurs(folded) == 0 and blurs(model) == 1 and type(folded[1]) is nn.Conv2d  # pyright: ignore
            torch.testing.assert_close(out(folded, x), out(model, x))


@pytest.mark.parametrize("padding", [0, 2, ((0, 3), (2, 0)), ((1, 1), (0, 1))])
def test_paddings_of_the_blur(padding: Any) -> None:
    model = nn.Sequential(
        aablur.nn.BlurPool2d(4, stride=1, padding=padding, padding_mode="zeros"), nn.Conv2d(3, 4, 3, 2)
    ).double()
    x = torch.randn(1, 3, 15, 18, dtype=torch.float64)
    torch.testing.assert_close(out(fold(model, x), x), out(model, x))


def test_a_blur_that_crops_is_left() -> None:
    model = nn.Sequential(aablur.nn.BlurPool2d(3, stride=1, padding=((-1, 1), (0, 0))), nn.Conv2d(3, 4, 3, 2))
    with pytest.warns(UserWarning, match="crops"):
        assert blurs(fold(model, torch.randn(1, 3, 15, 18))) == 1


def test_other_ranks() -> None:
    x1, x3 = torch.randn(2, 3, 17).double(), torch.randn(2, 3, 9, 8, 7).double()
    for blur, conv, x in (
        (aablur.nn.BlurPool1d(5), nn.Conv1d(3, 4, 3, 2), x1),
        (aablur.nn.BlurPool3d((1, 3, 2), stride=1), nn.Conv3d(3, 4, 2, 2), x3),
    ):
        model = nn.Sequential(blur, conv).double()
        torch.testing.assert_close(out(fold(model, x), x), out(model, x))


def test_circular_padding_on_both_sides() -> None:
    conv = nn.Conv2d(3, 4, 3, 2, 1, padding_mode="circular")
    model = nn.Sequential(aablur.nn.BlurPool2d(5, padding_mode="circular"), conv).double()
    x = torch.randn(1, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(out(fold(model, x), x), out(model, x))
    with pytest.warns(UserWarning, match="left as it was"):
        assert blurs(fold(model, torch.randn(1, 3, 15, 24, dtype=torch.float64))) == 1


@pytest.mark.parametrize("name", ["torchvision:convnext_tiny", "torchvision:swin_t", "timm:convnextv2_atto"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_patchify_stems(name: str, strength: float) -> None:
    entry = next(e for e in ZOO if e.name == name)
    model, x = entry.build(), torch.randn(1, 3, entry.size, entry.size)
    antialias(model, x, strength=strength)
    folded = fold(model, x)
    convs = sum(kind == "conv" for _, kind, _ in entry.sites)
    assert blurs(folded) == blurs(model) - convs == len(entry.sites) - convs
    torch.testing.assert_close(out(folded, x), out(model, x), rtol=1e-3, atol=1e-5)


def test_a_repaired_resnet() -> None:
    """Shortcuts fold exactly; convolutions that pad are left, or approximated, and it is said."""
    model = warm(ZOO[2].build(), 64)
    x = torch.randn(1, 3, 64, 64)
    antialias(model, x, where="before", learnable=True)
    with pytest.warns(UserWarning) as said:
        folded = fold(model, x)
    assert sorted(str(w.message).split()[1] for w in said) == ["conv1", *(f"layer{i}.0.conv1" for i in (2, 3, 4))]
    assert blurs(folded) == blurs(model) - 3
    torch.testing.assert_close(out(folded, x), out(model, x), rtol=1e-3, atol=1e-4)
    with pytest.warns(UserWarning, match=r"conv1, .* differ at the border: the output differs by \d") as said:
        rough = fold(model, x, border="approximate")
    assert blurs(rough) == 0 and len(said) == 1
    difference = float((out(rough, x) - out(model, x)).abs().max() / out(model, x).abs().max())
    assert f"{difference:.1e}" in str(said[0].message) and 1e-4 < difference < 2


def test_approximate_folds_are_exact_inside() -> None:
    model = nn.Sequential(aablur.nn.BlurPool2d(3, stride=1, padding_mode="zeros"), nn.Conv2d(3, 4, 3, 2, 1)).double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with pytest.warns(UserWarning, match="differ at the border"):
        folded = fold(model, x, border="approximate")
    a, b = out(folded, x), out(model, x)
    torch.testing.assert_close(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1])
    assert not torch.allclose(a, b)


def test_what_is_not_folded() -> None:
    """A blur that others read too, a convolution that never sampled, a pool in between."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blur, self.a, self.b = aablur.nn.BlurPool2d(), nn.Conv2d(3, 4, 3, 2), nn.Conv2d(3, 4, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.blur(x)
            return self.a(x).sum() + self.b(x)

    x = torch.randn(1, 3, 32, 32)
    for model in (
        Both(),
        nn.Sequential(aablur.nn.BlurPool2d(), nn.Conv2d(3, 4, 3)),
        nn.Sequential(aablur.nn.BlurPool2d(), nn.ReLU(), nn.Conv2d(3, 4, 3, 2)),
        nn.Sequential(aablur.nn.MaxBlurPool2d(), nn.Conv2d(3, 4, 3, 2)),
    ):
        folded = fold(model, x)
        assert torch.equal(out(folded, x), out(model, x)) and blurs(folded) == blurs(model)


def test_layers_and_bad_input() -> None:
    model = antialias(ZOO[8].build(), torch.randn(1, 3, 64, 64))
    x = torch.randn(1, 3, 64, 64)
    assert blurs(fold(model, x, layers=["features.0.0", "features.4.1"])) == 2
    with pytest.raises(ValueError, match=r"layers holds 'stem', .* there are features\.0\.0"):
        fold(model, x, layers="stem")
    with pytest.raises(ValueError, match="border must be exact or approximate"):
        fold(model, x, border="fast")
    with pytest.raises(TypeError, match="model must be"):
        fold(None, x)  # pyright: ignore
