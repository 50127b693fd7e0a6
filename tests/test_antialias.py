"""Promise: `aablur.antialias` repairs any model where the paper does, changes nothing else, and can be undone."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from plain import blur, out
from torch import Tensor, nn
from zoo import ZOO, Entry, Functional, Run, Shared, warm

from aablur.models import antialias, audit, repairs, restore

pytestmark = pytest.mark.filterwarnings("ignore:antialias. this model may be trained")


# ---- real networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ZOO, ids=lambda e: e.name)
def test_real_networks(entry: Entry) -> None:
    """Every site is repaired; strength 0 is the model as it was; shapes and state_dicts stay; restore undoes it."""
    model = warm(entry.build(), entry.size)
    x = torch.randn(2, 3, entry.size, entry.size)
    before, state = out(model, x), {k: v.clone() for k, v in model.state_dict().items()}
    objects = {name: id(m) for name, m in model.named_modules()}

    assert antialias(model, x, strength=0.0) is model
    assert [(r.name, r.kind, r.done) for r in repairs(model)] == [(n, k, True) for n, k, _ in entry.sites]
    torch.testing.assert_close(out(model, x), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    restore(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "antialias: this model may be trained")
        antialias(model, x)
    found = audit(model, x, measure=False)
    assert found.unfiltered == [] and [s.name for s in found.sites] == [n for n, _, _ in entry.sites]
    after = out(model, x)
    assert after.shape == before.shape and after.isfinite().all()
    assert float((after - before).abs().max()) > 1e-3 * float(before.abs().max())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and len(model.state_dict()) == len(
        state
    )
    assert {
        name: objects[name] for name, m in model.named_modules() if name in objects and id(m) == objects[name]
    } == objects

    assert restore(model) is model
    assert torch.equal(out(model, x), before)
    assert repairs(model) == [] and not any("Repaired" in type(m).__name__ for m in model.modules())


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "torchvision:resnet18"])
@pytest.mark.parametrize("seen", [64, 75])
def test_phases_hold_for_sizes_that_were_not_seen(name: str, seen: int) -> None:
    """TensorFlow's padding depends on the size: repaired at one, compared at others."""
    model = warm(next(e for e in ZOO if e.name == name).build(), 64)
    others = [torch.randn(1, 3, size, size + 3) for size in (64, 75, 97)]
    before = [out(model, x) for x in others]
    antialias(model, torch.randn(1, 3, seen, seen), strength=0.0)
    for x, y in zip(others, before, strict=True):
        torch.testing.assert_close(out(model, x), y, rtol=1e-3, atol=1e-4 * float(y.abs().max()))


def test_the_static_padding_of_another_library() -> None:
    """Its padding is fixed when it is built, for one size of pictures; its swish hides in a Function of its own."""
    model = warm(EfficientNet.from_name("efficientnet-lite0", image_size=64), 64)
    x = torch.randn(2, 3, 64, 64)
    before = out(model, x)
    antialias(model, x, strength=0.0)
    assert [(r.kind, r.done) for r in repairs(model)] == [("conv", True)] * 5
    assert all("after the activation" in r.how for r in repairs(model))
    torch.testing.assert_close(out(model, x), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))


# ---- what goes where -----------------------------------------------------------------------------------


def test_convolution_norm_activation_blur() -> None:
    for act in (nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.PReLU(), nn.Hardtanh()):
        conv, norm, last = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        model = warm(nn.Sequential(conv, norm, act, last), 16)
        x = torch.randn(2, 3, 16, 16)
        expected = out(last, blur(out(act, out(norm, F.conv2d(x, conv.weight, conv.bias, 1, 1)))))
        antialias(model, x)
        torch.testing.assert_close(out(model, x), expected)


def test_no_activation_means_after_the_norm() -> None:
    conv, norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
    model = warm(nn.Sequential(conv, norm, nn.Flatten(), nn.Linear(512, 2)), 16)
    x = torch.randn(2, 3, 16, 16)
    expected = out(model[2:], blur(out(norm, F.conv2d(x, conv.weight, conv.bias, 1, 1))))
    antialias(model, x)
    torch.testing.assert_close(out(model, x), expected)


def test_the_shortcut_of_a_residual_block() -> None:
    """Zhang's BasicBlock: conv(1), norm, relu, blur pool, conv; and blur pool, 1x1 for the shortcut."""
    model = warm(ZOO[2].build(), 64)
    block, x = model.layer2[0], torch.randn(2, 64, 16, 16)  # pyright: ignore
    inner = F.relu(out(block.bn1, F.conv2d(x, block.conv1.weight, None, 1, 1)))
    inner = out(block.bn2, out(block.conv2, blur(inner)))
    short = out(block.downsample[1], F.conv2d(blur(x), block.downsample[0].weight))
    antialias(model, torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(out(block, x), F.relu(inner + short))


POOLS = [
    (nn.MaxPool2d(2), lambda x, t: blur(F.max_pool2d(x, 2, 1), taps=t)),
    (nn.MaxPool2d(3, 2, 1), lambda x, t: blur(F.max_pool2d(x, 3, 1, 1), taps=t)),
    (nn.MaxPool2d(3, (2, 1), 1, 1), None),
    (nn.MaxPool2d(3, 2, ceil_mode=True), None),
    (nn.AvgPool2d(2), lambda x, t: blur(x, taps=t)),
    (nn.AvgPool2d(3, 2, 1), lambda x, t: blur(x, taps=t)),
    (nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), None),
    (nn.AvgPool2d((3, 2)), None),
    (nn.AdaptiveAvgPool2d(4), None),
]


@pytest.mark.filterwarnings("ignore:antialias. with its blurs taken out")  # borders: padding, ceil_mode
@pytest.mark.parametrize("taps", [3, 4, 5])
@pytest.mark.parametrize("pool", range(len(POOLS)))
def test_pools(pool: int, taps: int) -> None:
    layer, expected = POOLS[pool]
    x = torch.randn(2, 3, 16, 16)
    for odd in (x, torch.randn(2, 3, 15, 18), torch.randn(2, 3, 17, 16)):
        model = nn.Sequential(copy.deepcopy(layer))
        shape = out(layer, odd).shape
        antialias(model, odd, taps=taps)
        assert out(model, odd).shape == shape
    if expected is not None:
        model = nn.Sequential(copy.deepcopy(layer))
        antialias(model, x, taps=taps)
        torch.testing.assert_close(out(model, x), expected(x, taps))


def test_patches_are_blurred_first() -> None:
    conv = nn.Conv2d(3, 8, 4, 4)
    x = torch.randn(2, 3, 32, 32)
    model = antialias(nn.Sequential(conv), x)
    torch.testing.assert_close(out(model, x), F.conv2d(blur(x, 1, 7), conv.weight, conv.bias, 4))


def test_patches_exactly() -> None:
    conv = nn.Conv2d(3, 8, 2, 2)
    x = torch.randn(2, 3, 16, 16)
    model = antialias(nn.Sequential(conv), x, exact=True)
    torch.testing.assert_close(out(model, x), blur(F.conv2d(x, conv.weight, conv.bias, 1)))


class Merging(nn.Module):
    """Swin's: maps of channels last."""

    def __init__(self, by_slices: bool) -> None:
        super().__init__()
        self.by_slices = by_slices
        self.norm, self.reduction = nn.LayerNorm(12), nn.Linear(12, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        if self.by_slices:
            x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        else:
            x = x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


@pytest.mark.parametrize("by_slices", [True, False], ids=["slices", "reshape"])
def test_patch_merging(by_slices: bool) -> None:
    layer, x = Merging(by_slices), torch.randn(2, 16, 14, 3)
    first = blur(x.movedim(-1, 1), 1).movedim(1, -1)
    expected = out(layer, first)
    full = torch.zeros(2, 16, 14, 5)
    wide = F.pad(x.movedim(-1, 1), (0, 1, 0, 1), mode="reflect").movedim(1, -1)
    for i in (0, 1):
        for j in (0, 1):
            full[:, i::2, j::2] = out(layer, wide[:, i : i + 16, j : j + 14])
    model = nn.Sequential(nn.Identity(), layer)
    antialias(model, x)
    torch.testing.assert_close(out(model, x), expected)
    restore(model)
    antialias(model, x, exact=True)
    torch.testing.assert_close(out(model, x), blur(full.movedim(-1, 1)).movedim(1, -1))
    for size in ((15, 14), (7, 9)):
        assert out(model, torch.randn(1, *size, 3)).shape == (1, (size[0] + 1) // 2, (size[1] + 1) // 2, 5)


def test_before_the_convolution() -> None:
    model = warm(ZOO[2].build(), 64)
    x, block = torch.randn(1, 3, 64, 64), model.layer2[0]  # pyright: ignore
    antialias(model, x, where="before")
    y = torch.randn(1, 64, 16, 16)
    torch.testing.assert_close(out(block.conv1, y), F.conv2d(blur(y, 1), block.conv1.weight, None, 2, 1))


def test_functional_forwards_are_rewritten() -> None:
    model = warm(Functional(), 32)
    x = torch.randn(2, 3, 32, 32)
    y = blur(F.max_pool2d(F.relu(out(model.conv1, x)), 2, 1))
    y = blur(F.relu(out(model.norm, F.conv2d(y, model.conv2.weight, model.conv2.bias, 1, 1))))
    y = blur(out(model.conv3, y).relu())
    expected = out(model.head, blur(y).mean((2, 3)))
    antialias(model, x)
    torch.testing.assert_close(out(model, x), expected)
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x)), "dropout drops in training"
    model.eval()
    assert torch.equal(model(x), model(x))


FUNCTIONS = {
    "max": (lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: blur(F.max_pool2d(x, 3, 1, 1))),
    "average": (lambda x: F.avg_pool2d(x, kernel_size=2), blur),
    "by keywords": (lambda x: F.avg_pool2d(input=x, kernel_size=2), blur),
    "adaptive by keywords": (
        lambda x: F.adaptive_avg_pool2d(input=x, output_size=4), lambda x: F.adaptive_avg_pool2d(blur(x, 1, 7), 4)
    ),
    "convolution by keywords": (
        lambda x: F.relu(F.conv2d(input=x, weight=KERNEL, stride=2, padding=1)),
        lambda x: blur(F.relu(F.conv2d(x, KERNEL, stride=1, padding=1))),
    ),
    "unfold of two axes": (
        lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2), lambda x: blur(x, 1).unfold(2, 2, 2).unfold(3, 2, 2)
    ),
    "slice": (lambda x: x[:, :, ::2, ::2], blur),
    "slice of one axis": (lambda x: x[..., ::2], lambda x: blur_axis(x)),
    "slice with a start": (lambda x: x[..., 1::2, 1::2], lambda x: blur(x, 1)[..., 1::2, 1::2]),
    "slice with an end": (lambda x: x[..., 2:10:2, ::2], lambda x: blur(x, 1)[..., 2:10:2, ::2]),
    "unshuffle": (lambda x: F.pixel_unshuffle(x, 2), lambda x: F.pixel_unshuffle(blur(x, 1), 2)),
    "interpolate": (
        lambda x: F.interpolate(x, scale_factor=0.5), lambda x: F.interpolate(blur(x, 1), scale_factor=0.5)
    ),
    "adaptive": (lambda x: F.adaptive_max_pool2d(x, 4), lambda x: F.adaptive_max_pool2d(blur(x, 1, 7), 4)),
    "unfold": (lambda x: F.unfold(x, 2, stride=2), lambda x: F.unfold(blur(x, 1), 2, stride=2)),
    "swish written out": (
        lambda x: (y := F.conv2d(x, KERNEL, stride=2, padding=1)) * torch.sigmoid(y),
        lambda x: blur(F.silu(F.conv2d(x, KERNEL, stride=1, padding=1))),
    ),
}  # fmt: skip
KERNEL = torch.randn(3, 3, 3, 3)


def blur_axis(x: Tensor) -> Tensor:
    x = F.pad(x, (1, 1, 0, 0), mode="reflect")
    return ((x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]) / 4)[..., ::2]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, expected = FUNCTIONS[name]
    x = torch.randn(2, 3, 16, 16)
    model = antialias(Run(function), x)
    torch.testing.assert_close(out(model, x), expected(x))
    torch.testing.assert_close(out(restore(model), x), function(x))


def test_shared_modules() -> None:
    model, x = Shared(), torch.randn(2, 3, 32, 32)
    most = lambda x: blur(F.max_pool2d(x, 2, 1))  # noqa: E731
    y = blur(F.relu(F.conv2d(most(F.relu(out(model.a, x))), model.b.weight, model.b.bias, 1, 1)))
    expected = most(out(model.c, y) + y)
    antialias(model, x)
    torch.testing.assert_close(out(model, x), expected)
    assert [r.name for r in repairs(model)] == ["pool", "b", "pool#2"]


class Positions(nn.Module):
    """A table of positions is added to the patches, as vision transformers do it: no blur may come after it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.head = (
            nn.Conv2d(3, 4, 4, 2, 1),
            nn.Parameter(torch.randn(1, 4, 8, 8)),
            nn.Conv2d(4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x) + self.table)


def test_tables_of_positions() -> None:
    model, x = Positions(), torch.randn(1, 3, 16, 16)
    expected = out(model.head, blur(F.conv2d(x, model.conv.weight, model.conv.bias, 1, 1)) + model.table)
    torch.testing.assert_close(out(antialias(model, x), x), expected)


@pytest.mark.parametrize("size", [15, 16, 17, 18])
def test_pools_of_ceil_mode_at_strength_zero(size: int) -> None:
    x = torch.randn(2, 3, size, size + 1)
    for pool in (nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(5, (2, 3), (1, 0), ceil_mode=True)):
        model = antialias(nn.Sequential(copy.deepcopy(pool)), torch.randn(1, 3, 16, 16), strength=0.0)
        assert torch.equal(out(model, x), out(pool, x))


class Adds(nn.Module):
    """In place, and with one ReLU for all: fx writes another sum than the forward has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.a(x))
        z = self.b(y) * 2 + y.mean()
        z += y
        return self.relu(z)


def test_sums_in_place() -> None:
    model, x = Adds(), torch.randn(1, 3, 16, 16)
    y = blur(F.relu(F.conv2d(x, model.a.weight, model.a.bias, 1, 1)))
    expected = F.relu(out(model.b, y) * 2 + y.mean() + y)
    antialias(model, x)
    assert "after the activation" in repairs(model)[0].how and "(" not in repairs(model)[0].how
    torch.testing.assert_close(out(model, x), expected.detach())


class Siamese(nn.Module):
    """One backbone for two pictures: every module runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.other, self.blur_0 = ZOO[2].build(), Functional(), nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.backbone(x), self.backbone(y)
        return self.blur_0(x - y)


def test_siamese_networks() -> None:
    model = Siamese().eval()
    x, y = torch.randn(2, 1, 3, 64, 64)
    alone = antialias(copy.deepcopy(model.backbone), x)
    antialias(model, (x, y))
    assert all(r.done for r in repairs(model)) and len(repairs(model)) == 16
    with torch.no_grad():
        torch.testing.assert_close(model(x, y), alone(x) - alone(y))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Functional()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.net(x.flip(-1))


def test_rewritten_forwards_that_run_twice() -> None:
    model, x = Twice().eval(), torch.randn(1, 3, 32, 32)
    alone = antialias(copy.deepcopy(model.net), x)
    antialias(model, x)
    assert all(r.done for r in repairs(model)) and len(repairs(model)) == 8
    torch.testing.assert_close(out(model, x), out(alone, x) + out(alone, x.flip(-1)))


class Different(Functional):
    """A pool that is there in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = F.relu(x)
        return F.max_pool2d(F.relu(x), 2) if not self.training else x[..., ::2, ::2]


@pytest.mark.filterwarnings("ignore:antialias. .* is left as it was")
def test_forwards_that_differ_in_training_are_left() -> None:
    model, x = Different().eval(), torch.randn(1, 3, 32, 32)
    before = out(model, x)
    antialias(model, x)
    assert [(r.done, "in training" in r.how) for r in repairs(model)] == [(False, True)]
    assert torch.equal(out(model, x), before)


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3, 2, 1), torch.jit.script(nn.ReLU()), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x)))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripted_activations() -> None:
    """No class of theirs can change, and nothing sees into them: the blur goes right before."""
    model, x = Scripted(), torch.randn(1, 3, 16, 16)
    full = F.conv2d(x, model.conv.weight, model.conv.bias, 1, 1)
    expected = out(model.head, F.relu(blur(full)))
    antialias(model, x)
    torch.testing.assert_close(out(model, x), expected)


# ---- untraceable forwards ------------------------------------------------------------------------------


class Branching(Shared):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 1e6:
            return x
        return super().forward(x)


def test_untraceable_forwards_are_repaired_by_their_modules() -> None:
    model, x = Branching(), torch.randn(2, 3, 32, 32)
    most = lambda x: blur(F.max_pool2d(x, 2, 1))  # noqa: E731
    y = F.relu(blur(F.conv2d(most(F.relu(out(model.a, x))), model.b.weight, model.b.bias, 1, 1)))
    expected = most(out(model.c, y) + y)
    antialias(model, x)
    done = {r.name: r for r in repairs(model)}
    assert all(r.done for r in done.values()) and "after conv2d" in done["b"].how and "traced" in done["b"].how
    torch.testing.assert_close(out(model, x), expected)


@pytest.mark.filterwarnings("ignore:antialias. .* is left as it was")
def test_what_cannot_be_reached_is_said() -> None:
    model, x = Functional(traceable=False).eval(), torch.randn(2, 3, 32, 32)
    shape = out(model, x).shape
    with pytest.warns(UserWarning, match=r"\(model\) is left as it was: Functional.forward cannot be traced"):
        antialias(model, x)
    done = {r.name: r.done for r in repairs(model)}
    assert done["conv2"] and not done["(model)"] and not done["(model)#2"]
    assert out(model, x).shape == shape
