"""Promise: compile_passes fuses the blur pools of models that nobody edited, and leaves alone all that differs."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import peers  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config
from torch._inductor.utils import run_and_get_code

import aablur
from aablur.inductor import rewrite

antialiased_cnns = pytest.importorskip("antialiased_cnns")
kornia = pytest.importorskip("kornia")
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def binomial(taps: int, channels: int, rank: int = 2) -> Tensor:
    one = torch.tensor(aablur.geometry.binomial(taps))
    product = one
    for _ in range(rank - 1):
        product = product.unsqueeze(-1) * one
    return product.expand(channels, 1, *product.shape).clone()


class Written(nn.Module):
    """A blur as people write it: pad, then a depthwise convolution with a buffer."""

    def __init__(self, weight: Tensor, pads: list[int], mode: str = "reflect", stride: Any = 2, **options: Any) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.pads, self.mode, self.stride, self.options = pads, mode, stride, options

    def forward(self, x: Tensor) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.weight.shape) - 3]
        x = F.pad(x, self.pads, mode=self.mode)
        return conv(x, self.weight, stride=self.stride, groups=len(self.weight), **self.options)


def written(taps: int = 3, mode: str = "reflect", rank: int = 2, **options: Any) -> Written:
    return Written(binomial(taps, 4, rank), [(taps - 1) // 2, taps // 2] * rank, mode, **options)


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return kornia.filters.max_blur_pool2d(kornia.filters.blur_pool2d(x, 5, 1), 3)


def fused(model: nn.Module, x: Tensor, dynamic: bool | None = None) -> list[str]:
    """Rewrites as the pass does, runs the rewritten graph as it is, and holds it to the model."""
    lines: list[str] = []

    def backend(gm: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        lines.extend(rewrite(gm.graph))
        gm.recompile()
        return gm

    compiled = torch.compile(model, backend=backend, dynamic=dynamic)
    agree(compiled, model, x)
    return lines


def agree(actual: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], x: Tensor) -> None:
    results = []
    for run in (actual, expected):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = run(leaf)
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaf)))
    eps = max(1e-5, 4 * torch.finfo(x.dtype).eps)
    if x.ndim < 5:  # torch's own fakes do not foresee the strides of a channels_last conv3d
        assert results[0][0].stride() == results[1][0].stride()
    for a, e in zip(*results, strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=eps, atol=eps)


class Spelled(nn.Module):
    """A filter made in the forward."""

    def __init__(self, make: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.register_buffer("row", torch.tensor([1.0, 2, 1]) / 4)
        self.register_buffer("filt", self.row.outer(self.row))
        self.make = make

    row: Tensor
    filt: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.make(self.filt, self.row, x), stride=2, groups=x.shape[1])


SPELLINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "to a tensor": lambda filt, row, x: filt[None, None].to(x).expand(x.shape[1], -1, -1, -1),
    "type_as": lambda filt, row, x: filt.type_as(x).expand(x.shape[1], 1, 3, 3),
    "unsqueeze": lambda filt, row, x: filt.unsqueeze(0).unsqueeze(0).repeat(x.size(1), 1, 1, 1),
    "reshape": lambda filt, row, x: filt.reshape(1, 1, 3, 3).tile(x.shape[1], 1, 1, 1).contiguous(),
    "broadcast": lambda filt, row, x: torch.broadcast_to(filt, (x.shape[1], 1, 3, 3)),
    "outer": lambda filt, row, x: torch.outer(row, row)[None, None].expand(x.shape[1], 1, -1, -1),
    "a product": lambda filt, row, x: (row.view(3, 1) * row.view(1, 3)).view(1, 1, 3, 3).expand(x.shape[1], -1, -1, -1),
    "einsum": lambda filt, row, x: torch.einsum("i,j->ij", row, row).expand(x.shape[1], 1, 3, 3),
    "normalised": lambda filt, row, x: (8 * filt / (8 * filt).sum()).expand(x.shape[1], 1, 3, 3),
}

REFLECT, ZEROS = "padding_mode='reflect'", "padding_mode='zeros'"
FUSED: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, ...]]]] = {
    "timm": (lambda: timm.layers.BlurPool2d(4), [("blur_pool2d", "taps=[3, 3]", "[(1, 1), (1, 1)]", REFLECT)]),
    "timm-even": (lambda: timm.layers.BlurPool2d(4, 4, 3), [("blur_pool2d", "taps=[4, 4]", "stride=[3, 3]")]),
    "antialiased": (
        lambda: antialiased_cnns.BlurPool(4, pad_type="zero"),
        [("blur_pool2d", "taps=[4, 4]", "padding=[(1, 2), (1, 2)]", ZEROS)],
    ),
    "antialiased-max": (
        lambda: nn.Sequential(nn.MaxPool2d(3, 1, 1), antialiased_cnns.BlurPool(4)),
        [("max_blur_pool2d", "taps=[4, 4]", REFLECT, "window=[3, 3]", "window_padding=[1, 1]")],
    ),
    "kornia": (lambda: kornia.filters.MaxBlurPool2D(3), [("max_blur_pool2d", "taps=[3, 3]", ZEROS, "window=[2, 2]")]),
    "kornia-functions": (
        Functional,
        [("blur_pool2d", "taps=[5, 5]", "stride=[1, 1]"), ("max_blur_pool2d", "taps=[3, 3]")],
    ),
    **{
        f"written-{mode}": (lambda mode=mode: written(4, mode), [("blur_pool2d", "padding=[(1, 2), (1, 2)]", name)])
        for mode, name in (
            ("constant", ZEROS),
            ("reflect", REFLECT),
            ("replicate", "padding_mode='replicate'"),
            ("circular", "padding_mode='circular'"),
        )
    },
    "zeros-twice": (lambda: written(3, "constant", padding=1), [("blur_pool2d", "padding=[(2, 2), (2, 2)]", ZEROS)]),
    "uneven": (
        lambda: Written(binomial(3, 4), [0, 1, 2, 0], stride=(2, 1)),
        [("blur_pool2d", "stride=[2, 1]", "padding=[(2, 0), (0, 1)]")],
    ),
    "1d": (lambda: nn.Sequential(nn.Flatten(2), written(5, rank=1)), [("blur_pool1d", "taps=[5]")]),
    "3d": (lambda: written(3, "replicate", 3), [("blur_pool3d", "[3, 3, 3]")]),
    **{
        f"spelled: {name}": (lambda make=make: Spelled(make), [("blur_pool2d", "taps=[3, 3]", "[(0, 0), (0, 0)]")])
        for name, make in SPELLINGS.items()
    },
    "two": (lambda: nn.Sequential(written(), nn.ReLU(), written()), [("blur_pool2d",), ("blur_pool2d",)]),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", FUSED)
def test_what_is_fused(name: str, dynamic: bool | None, layout: torch.memory_format) -> None:
    make, expected = FUSED[name]
    if name == "3d":
        last = layout == torch.channels_last
        x = torch.randn(2, 4, 6, 8, 9).contiguous(memory_format=torch.channels_last_3d if last else layout)
    else:
        x = torch.randn(2, 4, 16, 17).contiguous(memory_format=layout)
    lines = fused(make(), x, dynamic)
    assert len(lines) == len(expected)
    if dynamic and name == "antialiased":  # what its nn.ZeroPad2d pads with is an unknown then: the pad stays
        expected = [("blur_pool2d", "taps=[4, 4]", "padding=[(0, 0), (0, 0)]")]
    for line, parts in zip(lines, expected, strict=True):
        assert line.startswith(parts[0] + "(") and all(part in line for part in parts[1:]), line


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    assert len(fused(written(5).to(dtype), torch.randn(2, 4, 16, 17, dtype=dtype))) == 1


class TwoReaders(nn.Module):
    """The max, and the pad, are wanted elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = Written(binomial(3, 4), [0, 0, 0, 0])

    def forward(self, x: Tensor) -> Tensor:
        most = F.max_pool2d(x, 2, 1)
        padded = F.pad(most, [1, 1, 1, 1], mode="reflect")
        blurred = F.conv2d(padded, self.blur.weight, stride=2, groups=4)
        return blurred + padded[..., ::2, ::2][..., :8, :8] + most[..., ::2, ::2]


def test_what_others_read_stays() -> None:
    (line,) = fused(TwoReaders(), torch.randn(2, 4, 17, 17))
    assert line.startswith("blur_pool2d(") and "padding=[(0, 0), (0, 0)]" in line


class Learnt(Written):
    def __init__(self) -> None:
        super().__init__(binomial(3, 4), [1, 1, 1, 1])
        del self.weight
        self.weight = nn.Parameter(binomial(3, 4))


class Cast(Written):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class Argument(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.blurred(x, binomial(3, 4))

    @torch._dynamo.disable(recursive=False)
    def blurred(self, x: Tensor, weight: Tensor) -> Tensor:
        return _convolved(x, weight)


def _convolved(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, groups=4)


def changed(weight: Tensor) -> Tensor:
    weight[2, 0, 1, 1] += 1e-3
    return weight


ALONE: dict[str, Callable[[], nn.Module]] = {
    "one channel differs": lambda: Written(changed(binomial(3, 4)), [1, 1, 1, 1]),
    "a box of three": lambda: Written(torch.full((4, 1, 3, 3), 1 / 9), [1, 1, 1, 1]),
    "not normalised": lambda: Written(2 * binomial(3, 4), [1, 1, 1, 1]),
    "learnt": Learnt,
    "a filter given as an argument": Argument,
    "biased": lambda: written(bias=torch.ones(4)),
    "dilated": lambda: written(dilation=2),
    "cast by autocast": lambda: Cast(binomial(3, 4), [1, 1, 1, 1]),
    "a dense convolution": lambda: nn.Conv2d(4, 4, 3, 2),
    "two filters a channel": lambda: nn.Conv2d(4, 8, 3, 2, groups=4),
    "a subsampling": lambda: Written(torch.ones(4, 1, 1, 1), [0, 0, 0, 0]),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_is_left_alone(name: str) -> None:
    assert fused(ALONE[name](), torch.randn(2, 4, 16, 17)) == []


def test_pads_that_do_not_combine() -> None:
    """A reflection, and zeros around it: the convolution's own zeros are fused, the pad before it stays."""
    (line,) = fused(written(3, padding=1), torch.randn(2, 4, 16, 17))
    assert ZEROS in line and "padding=[(1, 1), (1, 1)]" in line


def test_a_max_pool_with_a_stride_stays() -> None:
    (line,) = fused(nn.Sequential(nn.MaxPool2d(2), written()), torch.randn(2, 4, 16, 17))
    assert line.startswith("blur_pool2d(")


def test_whole_models() -> None:
    """timm's ResNet-18 blurs after the stem's max pool and in three stages; antialiased_cnns' on the shortcuts too."""
    x = torch.randn(2, 3, 64, 66)
    lines = fused(timm.create_model("resnet18", aa_layer=timm.layers.BlurPool2d, num_classes=5).eval(), x)
    assert [line.split("(")[0] for line in lines] == ["max_blur_pool2d", *["blur_pool2d"] * 3]
    net = antialiased_cnns.resnet18(num_classes=5, pretrained=False).eval()
    blurs = sum(isinstance(m, antialiased_cnns.BlurPool) for m in net.modules())
    lines = fused(net, x)
    assert [line.split("(")[0] for line in lines] == ["max_blur_pool2d", *["blur_pool2d"] * (blurs - 1)]


# ---- within Inductor ---------------------------------------------------------------------------------


def test_inductor_fuses_both_directions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2, 1), written()).eval()
    x = torch.randn(2, 3, 18, 19)
    with aablur.compile_passes() as passes:
        compiled = torch.compile(net, fullgraph=True)
        _, codes = run_and_get_code(lambda: compiled(x).sum().backward())
    assert len(passes.rewritten) == 1
    for code, op in zip(codes, ("max_blur_pool_codes", "max_blur_pool_backward"), strict=True):
        called = re.findall(r"torch\.ops\.(\w+\.\w+)\.default\(", code)
        assert f"aablur.{op}" in called and not any("max_pool" in name or "reflection" in name for name in called)
    agree(compiled, net, x)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), net(x))


STAGES: dict[str, Callable[[int], nn.Module]] = {
    "held": lambda channels: Written(binomial(3, channels), [1, 1, 1, 1]),
    "antialiased": lambda channels: antialiased_cnns.BlurPool(channels),
    "timm": lambda channels: timm.layers.BlurPool2d(channels),
    "made": lambda channels: Spelled(SPELLINGS["to a tensor"]),
}


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_fused(name: str) -> None:
    """Compiled one by one they share their code, so that dynamo makes the channels a variable at the second."""
    with aablur.compile_passes() as passes:
        stages = [STAGES[name](channels) for channels in (8, 16, 32)]
        for many, (stage, channels) in enumerate(zip(stages, (8, 16, 32), strict=True), 1):
            x = torch.randn(2, channels, 16, 16)
            expected = stage(x)
            stage.compile()
            torch.testing.assert_close(stage(x), expected)
            assert len(passes.rewritten) == many
        for stage, channels in zip(stages, (8, 16, 32), strict=True):
            assert stage(torch.randn(1, channels, 12, 12)).shape[1] == channels


def test_sizes_that_are_marked_as_dynamic_stay_so() -> None:
    x = torch.randn(2, 4, 16, 16)
    torch._dynamo.mark_dynamic(x, 1)
    blur = antialiased_cnns.BlurPool(4)
    assert fused(blur, x.clone()) != []
    torch._dynamo.reset()
    lines: list[str] = []

    def backend(gm: torch.fx.GraphModule, _: Any) -> Any:
        lines.extend(rewrite(gm.graph))
        return gm

    torch.testing.assert_close(torch.compile(blur, backend=backend)(x), blur(x))  # else dynamo would raise
    assert lines == []


def test_the_pass_can_be_pickled() -> None:
    """As torch 2.10 does with all settings of Inductor's; the copy runs, too, and a deep copy is the pass itself."""
    with aablur.compile_passes():
        own: Any = config.pre_grad_custom_pass
        copied = pickle.loads(pickle.dumps(own))
    assert copy.deepcopy(own) is own and copied.uuid() == own.uuid()
    copied(torch.fx.symbolic_trace(written()).graph)


def test_a_changed_filter_is_seen() -> None:
    """Written to, loaded or replaced: the graph is compiled anew, with the other filter or unfused."""
    net, x = written(), torch.randn(2, 4, 16, 17)
    with aablur.compile_passes() as passes:
        compiled = torch.compile(net, fullgraph=True)
        torch.testing.assert_close(compiled(x), net(x))
        compiled(x)
        assert len(passes.rewritten) == 1
        net.weight.mul_(2)
        torch.testing.assert_close(compiled(x), net(x))
        net.load_state_dict({"weight": binomial(3, 4)})
        torch.testing.assert_close(compiled(x), net(x))
        net.weight = torch.rand(4, 1, 3, 3)
        torch.testing.assert_close(compiled(x), net(x))


def test_a_cache_does_not_mix_filters_up() -> None:
    """Two models alike but for the values of a buffer, the caches on."""
    x = torch.randn(2, 4, 16, 17)
    with aablur.compile_passes():
        for weight in (binomial(3, 4), torch.rand(4, 1, 3, 3), binomial(3, 4)):
            torch._dynamo.reset()
            net = Written(weight, [1, 1, 1, 1])
            torch.testing.assert_close(torch.compile(net)(x), net(x))


def test_other_passes_run_too_and_come_back() -> None:
    seen = []
    before, timing = config.pre_grad_custom_pass, config.pre_grad_pass_timing

    def theirs(graph: torch.fx.Graph) -> None:
        seen.append(graph)

    try:
        config.pre_grad_custom_pass = theirs
        with aablur.compile_passes() as passes:
            net = written()
            torch.compile(net)(torch.randn(2, 4, 16, 17))
            assert len(seen) == len(passes.rewritten) == 1
        assert config.pre_grad_custom_pass is theirs and config.pre_grad_pass_timing == timing
        passes.rewritten.clear()
        torch._dynamo.reset()
        torch.compile(net)(torch.randn(2, 4, 16, 17))
        assert passes.rewritten == []
    finally:
        config.pre_grad_custom_pass = before
