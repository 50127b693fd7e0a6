"""Promise: no path through a repaired model bypasses the repair: it is right on each, or raises."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import threading
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain import blur, out
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrizations, parametrize
from zoo import ZOO, warm

from aablur.models import antialias, repairs, restore

pytestmark = [
    pytest.mark.filterwarnings("ignore:antialias. this model may be trained"),
    pytest.mark.filterwarnings("ignore:aablur. .* it blurs right after itself"),
]


def full(conv: Any, x: Tensor) -> Tensor:
    """A convolution at stride 1."""
    return F.conv2d(x, conv.weight, conv.bias, 1, conv.padding)


# ---- entries other than forward ------------------------------------------------------------------------


class Features(nn.Module):
    """`forward` by way of another method, functional activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Linear(4, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.act, self.conv = nn.SiLU(), nn.Conv2d(4, 4, 4, 2, 1)
        self.up = nn.ConvTranspose2d(4, 3, 4, 4)

    def encode(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.down(x)))

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@pytest.mark.parametrize("size", [32, 37])
@pytest.mark.parametrize(("build", "entry"), [(Features, "forward_features"), (Coder, "encode")])
def test_other_entries(build: Any, entry: str, size: int) -> None:
    plain = warm(build(), 32)
    x = torch.randn(2, 3, size, size)
    before = getattr(plain, entry)(x)
    model = antialias(copy.deepcopy(plain), torch.randn(2, 3, 32, 32), strength=0.0)
    torch.testing.assert_close(getattr(model, entry)(x), before)
    restore(model)
    antialias(model, torch.randn(2, 3, 32, 32))
    after = getattr(model, entry)(x)
    assert after.shape == before.shape and not torch.allclose(after, before)


def test_a_layer_called_alone_blurs_by_itself_and_says_so_once() -> None:
    model = Features()
    x = torch.randn(1, 3, 32, 32)
    expected = F.relu(blur(full(model.b, F.relu(blur(full(model.a, x))))))
    inside = out(model.head, blur(F.relu(full(model.b, blur(F.relu(full(model.a, x)))))).mean((2, 3)))
    antialias(model, x)
    with pytest.warns(UserWarning, match="a: it is called outside of the forward that blurs for it") as said:
        torch.testing.assert_close(model.forward_features(x), expected)
        model.forward_features(x)
    assert len(said) == 2  # one a layer
    torch.testing.assert_close(out(model, x), inside)


def test_functions_in_another_entry_warn() -> None:
    """What a rewritten forward blurs between functions is in no module that could blur by itself."""

    class Pools(Features):
        def forward_features(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.relu(self.a(x)), 2)

    model, x = Pools(), torch.randn(1, 3, 32, 32)
    before = model.forward_features(x)
    antialias(model, x, strength=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
    with pytest.warns(UserWarning, match="its forward_features is called from outside"):
        torch.testing.assert_close(model.forward_features(x), before)


def test_parts_of_a_sequential() -> None:
    model: Any = warm(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)), 16)
    x = torch.randn(1, 3, 17, 17)
    shapes = [out(model[:i], x).shape for i in range(1, 5)]
    antialias(model, torch.randn(1, 3, 16, 16))
    assert len(model) == 4 and [type(m).__name__.removeprefix("Repaired") for m in model][1:3] == [
        "BatchNorm2d",
        "ReLU",
    ]
    assert [out(model[:i], x).shape for i in range(1, 5)] == shapes
    y = x
    for layer in model:
        y = layer(y)
    assert y.shape == shapes[-1]


def test_threads_do_not_meet() -> None:
    """One thread inside of the forward, another in a layer alone: nothing they share says which."""
    model, x = Features(), torch.randn(1, 3, 64, 64)
    antialias(model, x)
    whole, alone = out(model, x), model.forward_features(x)
    wrong: list[int] = []

    def run(entry: Any, expected: Tensor) -> None:
        with torch.no_grad():
            wrong.extend(i for i in range(50) if not torch.equal(entry(x), expected))

    threads = [threading.Thread(target=run, args=a) for a in ((model, whole), (model.forward_features, alone)) * 2]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


class Nested(nn.Module):
    """The convolution and its norm in one module, the activation in another."""

    def __init__(self) -> None:
        super().__init__()
        self.cn = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4))
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.cn(x))


def test_blurs_move_out_of_nested_modules() -> None:
    model, x = warm(nn.Sequential(Nested(), nn.Conv2d(4, 2, 1)), 16), torch.randn(1, 3, 16, 16)
    block: Any = model[0]  # pyright: ignore
    normed = out(block.cn[1], full(block.cn[0], x))
    expected, alone = out(model[1], blur(F.hardswish(normed))), blur(normed)  # pyright: ignore
    antialias(model, x)
    assert "after the activation" in repairs(model)[0].how and "(" not in repairs(model)[0].how
    torch.testing.assert_close(out(model, x), expected)
    torch.testing.assert_close(out(block.cn, x), alone)


# ---- forwards on instances -----------------------------------------------------------------------------


def _wrap(module: nn.Module) -> None:
    """As libraries of inference hook themselves in."""
    old: Any = module.forward
    module._old_forward = old  # type: ignore
    module.forward = functools.wraps(old)(lambda *args, **kwargs: old(*args, **kwargs))


@pytest.mark.parametrize("which", [("",), ("0",), ("1",), ("2",), ("0", "1", "2", "3", "")])
def test_forwards_on_instances_before_the_repair(which: tuple[str, ...]) -> None:
    """What the repair says it did has an effect, whoever's forward is replaced."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1, 2)).eval()
    for path in which:
        _wrap(model.get_submodule(path) if path else model)
    x = torch.randn(1, 3, 33, 33)
    before = out(model, x)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        antialias(model, x)
    after = out(model, x)
    assert after.shape == before.shape
    done = {r.name: r.done for r in repairs(model)}
    for name, d in done.items():
        assert d or any(f"antialias: {name} is left as it was" in str(w.message) for w in said)
    assert torch.equal(after, before) != any(done.values())
    assert torch.equal(out(restore(model), x), before)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_forwards_on_instances_after_the_repair(strength: float) -> None:
    model = warm(ZOO[2].build(), 64)
    x = torch.randn(1, 3, 61, 61)
    before = out(model, x)
    antialias(model, torch.randn(1, 3, 64, 64), strength=strength)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for m in list(model.modules()):
            _wrap(m)
        after = out(model, x)
        twin = out(copy.deepcopy(model), x)
    assert after.shape == before.shape and torch.equal(twin, after)
    assert torch.allclose(after, before, rtol=1e-3, atol=1e-4) == (strength == 0)
    restore(model)
    torch.testing.assert_close(out(model, x), before)


def test_a_forward_set_where_a_blur_is_warns() -> None:
    model = nn.Sequential(nn.MaxPool2d(2))
    antialias(model, torch.randn(1, 3, 8, 8))
    with pytest.warns(UserWarning, match="0: its forward was set on the instance"):
        model[0].forward = lambda x: x[..., ::2, ::2]  # pyright: ignore


def test_a_class_whose_forward_is_replaced() -> None:
    class Own(Features):
        pass

    model, x = Own(), torch.randn(1, 3, 32, 32)
    antialias(model, x, strength=0.0)
    Own.forward = lambda self, x: self.forward_features(x) * 2  # type: ignore
    torch.testing.assert_close(model(x), model.forward_features(x) * 2)


# ---- layers fused, converted, stripped -------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), act or nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def forward_fuse(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def fuse(self, anew: bool) -> None:
        fused: Any = fusion.fuse_conv_bn_eval(self.conv, self.bn)
        if anew:
            conv = nn.Conv2d(3, 4, 3, self.conv.stride, self.conv.padding)  # pyright: ignore
            conv.load_state_dict(fused.state_dict(), strict=False)
            fused = conv.eval()
        self.conv = fused
        del self.bn
        self.forward = self.forward_fuse


@pytest.mark.parametrize("anew", [False, True])
def test_fused_blocks(anew: bool) -> None:
    model, x = warm(nn.Sequential(Block(), nn.Conv2d(4, 2, 1)), 32), torch.randn(1, 3, 32, 32)
    before = out(model, x)
    antialias(model, x, strength=0.0)
    model[0].fuse(anew)  # pyright: ignore
    if anew:  # nothing can blur any more
        with pytest.raises(RuntimeError, match=r"0\.conv was repaired, and a Conv2d is in its place"):
            out(model, x)
        assert out(model[0], x).shape[-1] == 16  # pyright: ignore
        restore(model)
    torch.testing.assert_close(out(model, x), before, rtol=1e-4, atol=1e-5)


def _frozen(model: nn.Module) -> nn.Module:
    from torchvision.ops import FrozenBatchNorm2d

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                made = FrozenBatchNorm2d(child.num_features, child.eps)
                made.load_state_dict(child.state_dict(), strict=False)
                setattr(parent, name, made)
    return model


def _stripped(model: nn.Module) -> nn.Module:
    model.act = nn.Identity()
    return model


@pytest.mark.parametrize(
    "convert",
    [nn.SyncBatchNorm.convert_sync_batchnorm, _frozen, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
)
def test_converted_norms(convert: Any) -> None:
    """Without an activation the norm is the last before the blur."""
    model, x = warm(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)), 32), torch.randn(1, 3, 64, 64)
    expected = blur(out(model[1], full(model[0], x)))  # pyright: ignore
    antialias(model, x)
    model = convert(model).eval()
    torch.testing.assert_close(out(model, x), expected)


def test_stripped_activations() -> None:
    model, x = warm(Block(), 32), torch.randn(1, 3, 32, 32)
    expected = blur(out(model.bn, full(model.conv, x)))  # pyright: ignore
    antialias(model, x)
    torch.testing.assert_close(out(_stripped(model), x), expected)


class Branches(nn.Module):
    """A block that is re-parametrised for inference: two convolutions become one."""

    def __init__(self) -> None:
        super().__init__()
        self.big, self.small, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 1, 2), nn.ReLU()
        self.one: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.one is not None:
            return self.act(self.one(x))
        return self.act(self.big(x) + self.small(x))

    def merge(self) -> None:
        self.one = nn.Conv2d(3, 4, 3, self.big.stride, 1)  # pyright: ignore
        self.one.weight = nn.Parameter(self.big.weight + F.pad(self.small.weight, (1, 1, 1, 1)))
        self.one.bias = nn.Parameter(self.big.bias + self.small.bias)  # pyright: ignore
        del self.big, self.small


def test_merged_branches_raise() -> None:
    model, x = Branches(), torch.randn(1, 3, 32, 32)
    before = out(model, x)
    antialias(model, x, strength=0.0)
    model.merge()
    with pytest.raises(RuntimeError, match="big was repaired, and nothing is in its place"):
        out(model, x)
    torch.testing.assert_close(out(restore(model), x), before)


def test_a_layer_replaced_in_a_part_of_a_model_raises() -> None:
    model, x = nn.Sequential(Features()), torch.randn(1, 3, 32, 32)
    antialias(model, x)
    model[0].b = nn.Conv2d(4, 4, 3, 2, 1)
    for part in (model, model[0]):
        with pytest.raises(RuntimeError, match=r"0\.b was repaired, and a Conv2d is in its place since"):
            part(x)


def test_children_that_were_added_run() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
    x = torch.randn(1, 3, 16, 16)
    antialias(model, x, strength=0.0)
    before = out(model, x)
    model.append(nn.Conv2d(4, 2, 1))
    torch.testing.assert_close(out(model, x), out(model[2], before))


def test_wrapped_layers_blur_for_themselves() -> None:
    class Wrapper(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 0

    model, x = warm(Block(), 32), torch.randn(1, 3, 32, 32)
    before = out(model, x)
    antialias(model, x, strength=0.0)
    model.conv = Wrapper(model.conv)  # pyright: ignore
    torch.testing.assert_close(out(model, x), before)


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
def test_eager_quantisation_says_what_to_do() -> None:
    for layer in (nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3)):
        model, x = nn.Sequential(layer), torch.randn(1, 3, 8, 8)
        antialias(model, x)
        with pytest.raises(TypeError, match=r"quantise the model before aablur\.antialias"):
            model(torch.quantize_per_tensor(x, 0.1, 0, torch.quint8))


# ---- arguments, flags, modes -----------------------------------------------------------------------------


class Optional(nn.Module):
    """Branches on what it is given, and on flags."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Linear(4, 3)
        self.doubles = False

    def forward(
        self, x: Tensor, labels: Tensor | None = None, *, scale: Any = None, sizes: tuple[int, ...] = ()
    ) -> Any:
        y = self.conv(x)
        if scale is not None:
            y = y * scale
        y = self.act(y)
        if self.doubles:
            y = torch.cat([y, y], -1)
        y = F.max_pool2d(y, 2)
        logits = self.head(y.mean((2, 3)))
        if labels is not None:
            return logits, F.cross_entropy(logits, labels)
        if self.training and sizes:
            return logits, y
        return logits


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}), ((torch.tensor([1, 2]),), {}), ((), {"labels": torch.tensor([1, 2])}), ((), {"scale": 2.0}),
    ((), {"scale": torch.tensor(3.0)}), ((), {"sizes": (1, 2)}), ((None,), {"scale": None}),
]  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("seen", range(len(CALLS)))
@pytest.mark.filterwarnings("ignore:aablur. .* runs as it was written")
def test_optional_arguments_and_flags(seen: int, training: bool) -> None:
    plain = Optional().train(training)
    x = torch.randn(2, 3, 18, 18)
    args, kwargs = CALLS[seen]
    if kwargs:  # examples are positional
        args = tuple({"labels": None, **kwargs}[n] for n in ("labels",) if n in kwargs)
    model = antialias(copy.deepcopy(plain), (x, *args), strength=0.0)
    assert all(r.done for r in repairs(model))
    for doubles in (False, True):
        model.doubles = plain.doubles = doubles  # pyright: ignore
        for args, kwargs in CALLS:
            torch.testing.assert_close(model(x, *args, **kwargs), plain(x, *args, **kwargs))
            torch.testing.assert_close(model(x=x, **kwargs), plain(x=x, **kwargs))


def test_a_rewritten_forward_that_cannot_run_says_so() -> None:
    model, x = Optional().eval(), torch.randn(2, 3, 16, 16)
    antialias(model, x)
    with pytest.warns(UserWarning, match="runs as it was written, without the blurs inside of it: its arguments"):
        model(x, scale=2.0)


FLAG = False


class Settings:
    def __init__(self) -> None:
        self.double, self.names = False, ["a"]


class Reads(nn.Module):
    """Branches on what lies elsewhere than in a plain attribute of its own."""

    flag = False

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.settings, self.names, self.table, self.function = Settings(), ["a"], {"on": False}, F.relu
        self.extra: nn.Module | None = None

    def change(self, y: Tensor) -> Tensor:
        return y * 2

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.act(self.conv(x)), 2)
        for i, asked in enumerate((
            self.flag, self.settings.double, "b" in self.settings.names, "b" in self.names, self.table["on"],
            self.norm.training, self.conv.bias is None, hasattr(self, "late"), self.extra is not None, FLAG,
            torch.is_grad_enabled(),
        )):  # fmt: skip
            if asked:
                y = y + i + 1
        return self.function(self.change(y))


def _set(path: str, value: Any) -> Any:
    def change(model: Any) -> None:
        *parents, name = path.split(".")
        setattr(functools.reduce(getattr, parents, model), name, value)

    return change


CHANGES: dict[str, Any] = {
    "an attribute of the class": _set("flag", True),
    "an object's": _set("settings.double", True),
    "a list of an object": lambda model: model.settings.names.append("b"),
    "a list": lambda model: model.names.append("b"),
    "another list": _set("names", ["b"]),
    "a dict": _set("table", {"on": True}),
    "the mode of a child": lambda model: model.norm.train(),
    "a child's bias": _set("conv.bias", None),
    "an attribute that was not there": _set("late", 1),
    "a child that was None": _set("extra", nn.ReLU()),
    "a function": _set("function", torch.tanh),
    "a method": _set("change", lambda y: y * 3),
    "the forward of a child": _set("act.forward", torch.tanh),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore:aablur. .* runs as it was written")
def test_what_a_forward_reads_may_change(name: str) -> None:
    plain, x = Reads().eval(), torch.randn(2, 3, 18, 18)
    model = antialias(copy.deepcopy(plain), x, strength=0.0)
    assert all(r.done for r in repairs(model))
    before = out(plain, x)
    torch.testing.assert_close(out(model, x), before)
    for m in (plain, model):
        CHANGES[name](m)
    after = out(plain, x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(out(model, x), after)
    torch.testing.assert_close(out(copy.deepcopy(model), x), after)


@pytest.mark.filterwarnings("ignore:aablur. .* runs as it was written")
def test_names_of_a_file_classes_and_modes_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = Reads().eval(), torch.randn(2, 3, 18, 18)
    model = antialias(copy.deepcopy(plain), x, strength=0.0)
    torch.testing.assert_close(out(model, x), out(plain, x))
    torch.testing.assert_close(model(x), plain(x))  # with gradients
    monkeypatch.setitem(globals(), "FLAG", True)
    torch.testing.assert_close(out(model, x), out(plain, x))
    monkeypatch.undo()
    monkeypatch.setattr(Reads, "change", lambda self, y: y - 1)
    torch.testing.assert_close(out(model, x), out(plain, x))
    torch.testing.assert_close(model.change(x), plain.change(x))  # pyright: ignore


def test_private_entries_warn() -> None:
    class Private(Features):
        def _features(self, x: Tensor) -> Tensor:
            return F.max_pool2d(F.relu(self.a(x)), 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self._features(x).mean((2, 3)))

    model, x = Private(), torch.randn(1, 3, 32, 32)
    before = model._features(x)
    antialias(model, x, strength=0.0)
    with pytest.warns(UserWarning, match="its _features is called from outside"):
        torch.testing.assert_close(model._features(x), before)


LAYERS: dict[str, tuple[Any, str, Any]] = {
    "a stride": (lambda: nn.Conv2d(3, 4, 3, 2, 1), "stride", (1, 1)),
    "a pool's stride": (lambda: nn.MaxPool2d(2), "stride", 1),
    "a pool's window": (lambda: nn.AvgPool2d(2), "kernel_size", 3),
    "ceil_mode": (lambda: nn.MaxPool2d(2), "ceil_mode", True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_sample_otherwise_since_raise(name: str) -> None:
    """As those do that give a backbone a dilation in the place of a stride."""
    build, attribute, value = LAYERS[name]
    layer, x = build(), torch.randn(1, 3, 16, 16)
    model = antialias(nn.Sequential(layer, nn.ReLU()), x)
    before, was = out(model, x), getattr(layer, attribute)
    setattr(layer, attribute, value)
    for m in (model, copy.deepcopy(model), layer):
        with pytest.raises(RuntimeError, match=rf"0 was repaired with {attribute} = .*, which is .* now"):
            m(x)
    setattr(layer, attribute, was)
    assert torch.equal(out(model, x), before)


def test_signatures_stay() -> None:
    model, x = Optional(), torch.randn(2, 3, 16, 16)
    before = {name: inspect.signature(m.forward) for name, m in model.named_modules()}
    specs = {name: inspect.getfullargspec(m.forward) for name, m in model.named_modules()}
    antialias(model, x)
    assert {name: inspect.signature(m.forward) for name, m in model.named_modules() if name in before} == before
    assert {name: inspect.getfullargspec(m.forward) for name, m in model.named_modules() if name in specs} == specs
    with pytest.raises(TypeError, match="label"):
        model(x, label=None)


def test_feature_extractors() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = warm(ZOO[2].build(), 64)
    x = torch.randn(1, 3, 64, 64)
    antialias(model, x)
    expected: list[Tensor] = []
    handle = model.layer3.register_forward_hook(lambda m, a, y: expected.append(y))  # pyright: ignore
    out(model, x)
    handle.remove()
    features = create_feature_extractor(model, ["layer3"])
    torch.testing.assert_close(features(x)["layer3"], expected[0])


class Awkward(nn.Module):
    """Forwards that a graph does not hold: each way must be told, and none may crash."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.act, self.seen = kind, nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), 0
        self.kept: list[Tensor] = []
        self.named: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Any:
        if self.kind == "sets an attribute":
            self.seen += 1
        if self.kind == "keeps maps":
            self.kept.append(x)
            self.named["x"] = x
        if self.kind == "sets a child's":
            self.act.last = x  # pyright: ignore
        if self.kind == "no gradient":
            with torch.no_grad():
                return self.act(self.conv(x))
        if self.kind == "draws":
            x = x * (1 + 0 * torch.rand(1))
        if self.kind == "pops":
            sizes = [2, 3]
            sizes.insert(0, len(x.shape))
            sizes.pop(0)
            return self.act(self.conv(x)).reshape(len(x), *sizes[:0], 4, -1)
        if self.kind == "trains otherwise" and self.training:
            y = self.conv(x)
            return self.act(y), y.mean((2, 3))
        return self.act(self.conv(x))


KINDS = ["sets an attribute", "sets a child's", "keeps maps", "no gradient", "draws", "pops", "trains otherwise"]


@pytest.mark.parametrize("kind", KINDS)
def test_awkward_forwards(kind: str) -> None:
    plain, x = Awkward(kind), torch.randn(2, 3, 16, 16)
    model = antialias(copy.deepcopy(plain).eval(), x, strength=0.0)
    assert [r.done for r in repairs(model)] == [True]
    for training in (False, True):
        a, b = model.train(training)(x), plain.train(training)(x)
        torch.testing.assert_close(a, b)
        first = a[0] if isinstance(a, tuple) else a
        assert first.requires_grad == (kind != "no gradient")
    assert kind != "sets an attribute" or model.seen > plain.seen  # pyright: ignore
    assert kind != "sets a child's" or model.act.last is x  # pyright: ignore
    assert kind != "keeps maps" or (model.kept[-1] is x and model.named["x"] is x)  # pyright: ignore
    assert all(type(y) is Tensor for y in model.kept)  # pyright: ignore


def test_layers_that_stop_giving_a_map_raise() -> None:
    class Pair(nn.Conv2d):
        both = False

        def forward(self, x: Tensor) -> Any:  # pyright: ignore
            y = super().forward(x)
            return (y, x) if self.both else y

    model, x = nn.Sequential(Pair(3, 4, 3, 2, 1)), torch.randn(1, 3, 16, 16)
    antialias(model, x)
    model[0].both = True  # pyright: ignore
    with pytest.raises(TypeError, match="must give one map, as when it was repaired, got tuple"):
        model(x)


class Own(nn.Conv2d):
    """Reads its stride in a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore
        pad = self.padding[0]
        return F.conv2d(F.pad(x, (pad,) * 4), self.weight * 2, self.bias, self.stride)  # pyright: ignore


def test_convolutions_with_forwards_of_their_own() -> None:
    model, x = nn.Sequential(Own(3, 4, 3, 2, 1), nn.ReLU()), torch.randn(1, 3, 16, 16)
    conv: Any = model[0]
    expected = blur(F.relu(F.conv2d(x, conv.weight * 2, conv.bias, 1, 1)))
    antialias(model, x)
    assert conv.stride == (2, 2)
    torch.testing.assert_close(model(x), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


class Counts(nn.Conv2d):
    seen = 0

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore
        self.seen, self.last = self.seen + 1, x
        return super().forward(x)


class Called(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x)


class Fixed(nn.Conv2d):
    """Does not heed its attribute."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore
        return F.conv2d(x, self.weight, self.bias, 2, self.padding)  # pyright: ignore


class ByCall(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)  # pyright: ignore


@pytest.mark.parametrize("kind", [Counts, Called, Fixed, ByCall])
def test_unusual_convolutions(kind: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = kind(3, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x))

    plain = Net()
    for size in (16, 17):
        x = torch.randn(1, 3, size, size)
        soft, hard = (antialias(copy.deepcopy(plain), torch.randn(1, 3, 16, 16), strength=s) for s in (0.0, 1.0))
        torch.testing.assert_close(soft(x), plain(x))
        assert hard(x).shape == plain(x).shape and not torch.allclose(hard(x), plain(x))
        if kind is Counts:
            seen = hard.conv.seen  # pyright: ignore
            hard(x)
            assert hard.conv.seen == seen + 1 and hard.conv.last is x  # pyright: ignore


# ---- classes that change ---------------------------------------------------------------------------------


def test_parametrizations_before_and_after() -> None:
    for early in (True, False):
        conv = nn.Conv2d(3, 4, 3, 2, 1)
        plain = copy.deepcopy(conv)
        model, x = nn.Sequential(conv, nn.ReLU()), torch.randn(1, 3, 16, 16)
        if early:
            parametrizations.weight_norm(conv)
        antialias(model, x)
        if not early:
            parametrizations.weight_norm(conv)
        expected = blur(F.relu(full(plain, x)))
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(copy.deepcopy(model)(x), expected)
        parametrize.remove_parametrizations(conv, "weight")
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(restore(model)(x), F.relu(plain(x)))
        assert type(conv) is nn.Conv2d

        parametrizations.weight_norm(conv)
        antialias(model, x)
        restore(model)
        torch.testing.assert_close(model(x), F.relu(plain(x)))
        parametrize.remove_parametrizations(conv, "weight")
        assert type(conv) is nn.Conv2d


def test_a_forward_that_a_hook_has_kept() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2)), torch.randn(1, 3, 16, 16)
    before = out(model, x)
    antialias(model, x)
    kept = [m.forward for m in model]
    restore(model)
    torch.testing.assert_close(kept[1](kept[0](x)), before)
