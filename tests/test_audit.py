"""Promise: `aablur.audit` finds every sampling place of any model, and its figures are those of the definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import antialiased_cnns
import kornia
import peers
import pytest
import scipy.fft
import timm
import torch
import torch.nn.functional as F
from composer.algorithms.blurpool import BlurConv2d, BlurMaxPool2d
from plain import out
from torch import Tensor, nn
from zoo import ZOO, Entry, Functional, Run

import aablur
from aablur.models import aliasing, antialias, repairs
from aablur.models.audit import audit
from aablur.models.circular import wrap
from aablur.models.sites import Site

assert peers


def sites(function: Any, *shape: int, measure: bool = False) -> list[Site]:
    model = function if isinstance(function, nn.Module) else Run(function)
    return audit(model, torch.randn(shape or (2, 4, 16, 16)), measure=measure).sites


@pytest.mark.parametrize("entry", ZOO, ids=lambda e: e.name)
def test_places_of_real_networks(entry: Entry) -> None:
    found = audit(entry.build(), torch.randn(1, 3, entry.size, entry.size), measure=False).sites
    assert [(s.name, s.kind, s.stride) for s in found] == [(n, k, (s, s)) for n, k, s in entry.sites]
    assert {s.filter for s in found if s.kind != "avg_pool"} <= {None}


KINDS = {
    "conv": (lambda x: F.conv2d(x, torch.randn(3, 4, 3, 3), stride=(1, 2)), (1, 2), (16, 16)),
    "max_pool": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (2, 2), (16, 16)),
    "max_pool indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (2, 2), (16, 16)),
    "avg_pool": (lambda x: F.avg_pool2d(x, (2, 1)), (2,), (16,)),
    "lp_pool": (lambda x: F.lp_pool2d(x, 2, 2), (2, 2), (16, 16)),
    "adaptive_pool": (lambda x: F.adaptive_avg_pool2d(x, (4, 1)), (4.0,), (16,)),
    "adaptive_pool max": (lambda x: F.adaptive_max_pool2d(x, 4), (4.0, 4.0), (16, 16)),
    "slice": (lambda x: x[:, :, 1::2, ::3], (2, 3), (16, 16)),
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
    "map to tokens and back": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(2, 4, 16, 16),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_sampling(name: str) -> None:
    assert sites(NONE[name]) == []


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
    "depthwise": (nn.Conv2d(4, 4, 3, 2, groups=4), None),
    "antialias=True": (Run(lambda x: F.interpolate(x, (8, 8), mode="bilinear", antialias=True)), "blur"),
}


@pytest.mark.parametrize("name", FILTERS)
def test_what_is_filtered_already(name: str) -> None:
    model, expected = FILTERS[name]
    (site,) = sites(model)
    assert site.filter == expected and site.filtered == (expected is not None)


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


def _depthwise(x: Tensor, k: Tensor) -> Tensor:
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


@pytest.mark.parametrize("filters", [_depthwise, _by_views, _by_permutes], ids=lambda f: f.__name__)
def test_discriminators_that_blur_are_not_blurred_twice(filters: Any) -> None:
    for size in (32, 24):
        model, x = Discriminator(filters).eval(), torch.randn(2, 3, size, size)
        before = out(model, x)
        assert audit(model, x, measure=False).unfiltered == []
        antialias(model, x)
        assert repairs(model) == [] and torch.equal(out(model, x), before)
    assert len(audit(Discriminator(filters, blurs=False), x, measure=False).unfiltered) == 6
