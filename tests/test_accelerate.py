"""Promise: aablur.accelerate swaps every blur pool of the peers, changes no number, and can be undone."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers  # noqa: F401  # isort: skip  # makes the next imports possible
import antialiased_cnns
import composer.algorithms.blurpool
import composer.functional
import kornia.filters
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import aablur
from aablur.compat._base import binomial_filter
from aablur.models.replace import Swaps


def kornia_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), kornia.filters.MaxBlurPool2D(3),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), kornia.filters.MaxBlurPool2D(5, 2, 3),
        nn.Conv2d(16, 8, 3), nn.ReLU(), kornia.filters.BlurPool2D(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def vgg16() -> nn.Module:
    """All its features, on a head of a few classes instead of 124 million weights."""
    model = antialiased_cnns.vgg16()
    model.classifier = nn.Linear(512 * 7 * 7, 5)
    return model


def composer_resnet(blur_first: bool = True) -> nn.Module:
    model = torchvision.models.resnet18(weights=None, num_classes=5)
    composer.functional.apply_blurpool(model, blur_first=blur_first)
    return model


# model, and how many of its modules are swapped: blurs, and max pools fused
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "timm-resnetblur50": (lambda: timm.create_model("resnetblur50", num_classes=5), 4, 1),
    "antialiased-resnet18": (lambda: antialiased_cnns.resnet18(num_classes=5), 7, 1),
    "antialiased-vgg16": (vgg16, 5, 5),
    "kornia-net": (kornia_net, 3, 0),
    "composer-resnet18": (composer_resnet, 7, 0),
}
MORE = {
    "antialiased-mobilenet": (antialiased_cnns.mobilenet_v2, 4, 0),
    "antialiased-densenet121": (antialiased_cnns.densenet121, 4, 1),
    "composer-resnet18-blur-after": (lambda: composer_resnet(False), 7, 0),
    "timm-ours": (lambda: timm.create_model("resnet18", aa_layer=aablur.nn.BlurPool2d), 1, 1),
    "timm-compat": (lambda: timm.create_model("resnet18", aa_layer=aablur.compat.timm.BlurPool2d), 1, 1),
}
FIVE = pytest.mark.parametrize("name", MODELS)
ALL = pytest.mark.parametrize("name", [*MODELS, *MORE])


def build(name: str) -> nn.Module:
    model = (MODELS | MORE)[name][0]()
    return model.eval()


def picture(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 64, 64, dtype=dtype)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and every gradient."""
    x = x.clone().requires_grad_()
    y = model(x)
    leaves = [x, *model.parameters()]
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), leaves)]


def assert_steps_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= tolerance * e.abs().max()


def types(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(m)) for name, m in model.named_modules()]


# ---- the models of the peers -------------------------------------------------------------------------


@ALL
def test_same_outputs_and_gradients(name: str) -> None:
    model, (_, blurs, maxes) = build(name), (MODELS | MORE)[name]
    reference = copy.deepcopy(model)
    x = picture()
    report = aablur.accelerate(model)
    assert (len(report.swapped), report.left) == (blurs + maxes, [])
    assert sum(row.was.endswith("MaxPool2d") and row.now.endswith("Identity") for row in report.swapped) == maxes
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(x), atol=1e-5, rtol=1e-4)
    # in float64, where rounding turns no ReLU and no maximum over
    assert_steps_close(step(model.double(), x.double()), step(reference.double(), x.double()), 1e-9)
    left = [cls.__module__ for _, cls in types(model)]
    assert not any(m.startswith(("timm.layers.blur", "antialiased_cnns.blurpool", "kornia", "composer")) for m in left)


@ALL
def test_names_states_and_modes_stay(name: str) -> None:
    model = build(name)
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
    before = [
        (n, id(t), t.dtype, t.device) for n, t in [*model.state_dict(keep_vars=True).items(), *model.named_buffers()]
    ]
    modes = [(n, m.training) for n, m in model.named_modules()]
    aablur.accelerate(model)
    after = [
        (n, id(t), t.dtype, t.device) for n, t in [*model.state_dict(keep_vars=True).items(), *model.named_buffers()]
    ]
    assert after == before
    assert [(n, m.training) for n, m in model.named_modules()] == modes
    assert model.load_state_dict(build(name).state_dict()) == ([], [])


@ALL
def test_restored(name: str) -> None:
    model = build(name)
    reference = copy.deepcopy(model)
    report = aablur.accelerate(model)
    assert types(model) != types(reference)
    model.load_state_dict({k: v * 0.9 for k, v in reference.state_dict().items()})
    reference.load_state_dict(model.state_dict())
    model.double().train()
    reference.double().train()
    report.restore()
    assert types(model) == types(reference)
    assert [m.training for m in model.modules()] == [m.training for m in reference.modules()]
    x = picture(torch.float64)
    assert torch.equal(model.eval()(x), reference.eval()(x))
    report.restore()  # nothing more to do
    assert types(model) == types(reference)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@FIVE
def test_halves(name: str, dtype: torch.dtype) -> None:
    model = build(name)
    expected = copy.deepcopy(model).to(dtype)(picture_of(dtype))
    report = aablur.accelerate(model.to(dtype))
    assert report.left == []
    out = model(picture_of(dtype))
    assert out.dtype == dtype
    assert (out - expected).abs().max() <= 0.1 * expected.abs().max()


def picture_of(dtype: torch.dtype) -> Tensor:
    return torch.linspace(-1, 1, 3 * 64 * 64).sin().reshape(1, 3, 64, 64).to(dtype)


@FIVE
def test_hooks_stay(name: str) -> None:
    model = build(name)
    blurs = [m for m in model.modules() if "lur" in type(m).__name__]
    calls: list[str] = []
    handles = []
    for m in blurs:
        handles += [
            m.register_forward_hook(lambda *_: calls.append("forward")),
            m.register_forward_pre_hook(lambda *_: calls.append("pre")),
            m.register_full_backward_hook(lambda *_: calls.append("backward")),
        ]
    report = aablur.accelerate(model)
    assert [row for row in report.swapped if row.note] == []  # none is fused: its hooks would see another map
    step(model, picture())
    assert sorted(calls) == sorted(["forward", "pre", "backward"] * len(blurs))
    calls.clear()
    for handle in handles[1:]:
        handle.remove()
    step(model, picture())
    assert calls == ["forward"]
    report.restore()
    step(model, picture())
    assert calls == ["forward"] * 2


def test_hooks_made_later_are_restored() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), timm.layers.BlurPool2d(4))
    report = aablur.accelerate(model)
    seen: list[Any] = []
    model[1].register_full_backward_hook(lambda *_: seen.append(1))
    model[1].register_forward_hook(lambda *_: seen.append(2))
    report.restore()
    model(picture()).sum().backward()
    assert sorted(seen) == [1, 2] and type(model[1]) is timm.layers.BlurPool2d


@FIVE
def test_copies_and_files_need_no_peer(name: str) -> None:
    model = build(name)
    aablur.accelerate(model)
    x = picture()
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    blurs = nn.ModuleList([m for m in model.modules() if type(m).__module__.startswith("aablur")])
    data = pickle.dumps(blurs)
    assert not any(
        peer in data for peer in (b"antialiased_cnns.blurpool", b"timm.layers", b"kornia.filters", b"composer.algo")
    )
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), model(x))


def test_compiled_whole() -> None:
    torch._dynamo.reset()
    model = build("antialiased-resnet18")
    expected = model(picture_of(torch.float32))
    aablur.accelerate(model)
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(picture_of(torch.float32))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_no_peer_is_imported() -> None:
    code = """
import sys, torch, aablur
class BlurPool2d(torch.nn.Module):
    pass
BlurPool2d.__module__ = "elsewhere.timm"
report = aablur.accelerate(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.MaxPool2d(2, 1), BlurPool2d()))
assert not report.swapped and not report.left
print(report, {"timm", "kornia", "composer", "antialiased_cnns"} & set(sys.modules))
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("aablur.accelerate: 0 swapped, 0 left") and done.stdout.endswith(" set()\n")


def test_the_report_is_a_table() -> None:
    pool = kornia.filters.BlurPool2D(3)
    model = nn.Sequential(nn.MaxPool2d(3, 1, 1), timm.layers.BlurPool2d(), pool, nn.Sequential(pool))
    model.append(kornia.filters.EdgeAwareBlurPool2D(3))
    report = aablur.accelerate(model)
    assert str(report).startswith("aablur.accelerate: 3 swapped, 1 left\n")
    rows = [line.split("  ") for line in str(report).splitlines()[1:]]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["module", "was", "now", "note"],
        ["0", "torch.nn.modules.pooling.MaxPool2d", "torch.nn.modules.linear.Identity", "now in 1"],
        ["1", "timm.layers.blur_pool.BlurPool2d", "aablur.compat.timm.BlurPool2d", "with the max of 0"],
        ["2, 3.0", "kornia.filters.blur_pool.BlurPool2D", "aablur.compat.kornia.BlurPool2D"],
        ["4", "kornia.filters.blur_pool.EdgeAwareBlurPool2D", "left", "it blurs away from edges, and keeps the size"],
    ]
    assert model[2] is model[3][0]
    report.restore()
    assert model[2] is pool and model[3][0] is pool


# ---- what is left alone ------------------------------------------------------------------------------


class Louder(timm.layers.BlurPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Renamed(timm.layers.BlurPool2d):
    def __init__(self) -> None:
        super().__init__(filt_size=5)


class WithHelper(timm.layers.BlurPool2d):
    def helper(self) -> int:
        return 1


def spoilt(module: nn.Module, name: str) -> nn.Module:
    getattr(module, name)[..., 0, 0] += 0.1
    return module


def changed(module: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def hooked_inside() -> nn.Module:
    module = composer.algorithms.blurpool.BlurConv2d(3, 3, 3, 2)
    module.conv.register_forward_hook(lambda *_: None)
    return module


class OlderKornia(nn.Module):
    """Pads an even filter alike on both sides, as kornia did before 0.9."""

    def __init__(self, kernel_size: int, stride: int = 2) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.register_buffer("kernel", binomial_filter([kernel_size] * 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.expand(x.shape[1], 1, *self.kernel.shape)  # pyright: ignore
        return F.conv2d(x, weight, padding=(self.kernel_size - 1) // 2, stride=self.stride, groups=x.shape[1])


OlderKornia.__module__, OlderKornia.__name__ = "kornia.filters.blur_pool", "BlurPool2D"
LEFT: list[tuple[Callable[[], nn.Module], str]] = [
    (Louder, "Louder overrides or adds forward"),
    (WithHelper, "WithHelper overrides or adds helper"),
    (lambda: changed(timm.layers.BlurPool2d(), forward=lambda x: x), "its forward is replaced on the instance"),
    (lambda: spoilt(timm.layers.BlurPool2d(3), "filt"), "its filter is not separable"),
    (lambda: spoilt(antialiased_cnns.BlurPool(3), "filt"), "its filter is not separable"),
    (lambda: spoilt(kornia.filters.MaxBlurPool2D(3), "kernel"), "its filter is not separable"),
    (lambda: spoilt(composer.algorithms.blurpool.BlurMaxPool2d(2), "filt2d"), "its filter is not separable"),
    (lambda: spoilt(composer.algorithms.blurpool.BlurConv2d(3, 3, 3, 2), "blur_filter"), "its filter is not separable"),
    (lambda: changed(timm.layers.BlurPool2d(), filt=nn.Buffer(torch.ones(1, 1, 3, 3, requires_grad=True))), "learnt"),
    (lambda: timm.layers.BlurPool2d(device="meta"), "on the meta device"),
    (lambda: changed(timm.layers.BlurPool2d(), pad_mode="symmetric"), "its attributes are not served: .* pad_mode"),
    (lambda: changed(antialiased_cnns.BlurPool(3), pad=nn.Identity()), "its attributes are not served"),
    (lambda: changed(timm.layers.BlurPool2d(), filt=torch.ones(1, 1, 5, 5)), "its attributes are not served: .* shape"),
    (lambda: changed(kornia.filters.BlurPool2D(3), stride=0), "its attributes are not served: .* stride"),
    (lambda: kornia.filters.BlurPool2D((3, 5)), "its own forward fails"),
    (hooked_inside, "hooks on its conv"),
    (lambda: OlderKornia(4), "it gives shape|ours differs"),
    (lambda: OlderKornia(2, 1), "it gives shape|ours differs"),
    (lambda: kornia.filters.EdgeAwareBlurPool2D(3), "keeps the size"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), LEFT, ids=[reason for _, reason in LEFT])
def test_what_is_left_and_why(make: Callable[[], nn.Module], reason: str) -> None:
    module = make()
    before = dict(vars(module))
    model = nn.Sequential(nn.Identity(), module)
    report = aablur.accelerate(model)
    assert report.swapped == [] and model[1] is module and vars(module) == before
    assert [row.path for row in report.left] == ["1"]
    assert re.search(reason, report.left[0].reason), report.left[0].reason
    assert report.left[0].reason in str(report)


def test_what_is_served_beside_it() -> None:
    """A subclass that only fixes arguments; taps from the buffer; an old kornia where it agrees."""
    model = nn.Sequential(Renamed(), antialiased_cnns.BlurPool(3), OlderKornia(5))
    with torch.no_grad():
        model[1].filt.copy_(torch.rand(3, 1, 4, 1) * torch.rand(3, 1, 1, 4))
    x = picture()
    expected = model(x)
    report = aablur.accelerate(model)
    assert len(report.swapped) == 3
    torch.testing.assert_close(model(x), expected)


def test_another_default_device() -> None:
    model = build("antialiased-resnet18")
    x = picture()
    expected = model(x)
    with torch.device("meta"):
        assert len(aablur.accelerate(model).swapped) == 8
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)


def test_the_model_itself() -> None:
    report = aablur.accelerate(timm.layers.BlurPool2d())
    assert report.swapped == [] and "the model itself" in report.left[0].reason


def test_bad_input() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        aablur.accelerate(3)  # pyright: ignore
    with pytest.raises(TypeError, match=r"fuse_max must be a bool, got 1"):
        aablur.accelerate(nn.Identity(), fuse_max=1)  # pyright: ignore


def test_a_place_changed_since_cannot_be_restored() -> None:
    model = nn.Sequential(timm.layers.BlurPool2d(), nn.ReLU())
    report = aablur.accelerate(model)
    model[0] = nn.Identity()
    with pytest.raises(RuntimeError, match="'0' of a Sequential has been replaced since"):
        report.restore()
    with pytest.raises(ValueError, match="old must stand inside the model"):
        Swaps(model).replace(nn.ReLU(), nn.ReLU())


def test_a_model_without_blur_pools_is_pointed_to_antialias() -> None:
    for model in (nn.Sequential(nn.Conv2d(3, 4, 3, 2)), torchvision.models.resnet18()):
        said = str(aablur.accelerate(model))
        assert said.startswith("aablur.accelerate: 0 swapped, 0 left: it has no blur pools of antialiased_cnns, timm, ")
        assert said.endswith("aablur.antialias(model) gives it some") and "\n" not in said
    assert "antialias(" not in str(aablur.accelerate(nn.Sequential(timm.layers.BlurPool2d(4))))
