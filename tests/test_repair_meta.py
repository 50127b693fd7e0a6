"""Promise: filters that no checkpoint holds survive the meta device, and a repair is done whole or not at all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from plain import out
from torch import nn
from zoo import ZOO, warm

import aablur
from aablur.compat import antialiased_cnns, composer, kornia, timm
from aablur.models import antialias, repairs

pytestmark = pytest.mark.filterwarnings("ignore:antialias. this model may be trained")


def emptied(module: nn.Module) -> nn.Module:
    """Through the meta device, with garbage in all that is not loaded."""
    module = module.to("meta").to_empty(device="cpu")
    return module


def poison(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for t in [*module.parameters(), *module.buffers()]:
            t.fill_(torch.nan)
    return module


@pytest.mark.parametrize(
    "options", [{"strength": 0.5}, {"strength": 1.0}, {"learnable": True, "strength": 0.3}], ids=str
)
def test_repaired_models_by_way_of_meta(options: dict[str, Any]) -> None:
    for entry in (ZOO[2], next(e for e in ZOO if "lite0" in e.name)):
        model, x = warm(entry.build(), 64), torch.randn(1, 3, 64, 64)
        antialias(model, x, **options)
        expected, state = out(model, x), copy.deepcopy(model.state_dict())
        assert all("learn" in str(options) or "taps" not in key for key in state)
        model = emptied(model)
        model.load_state_dict(state)
        assert torch.equal(out(model, x), expected)


@pytest.mark.filterwarnings("ignore:antialias. .* is left as it was")
def test_a_checkpoint_that_is_assigned() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)), torch.randn(1, 3, 16, 16)
    aablur.antialias(model, x, strength=0.5)
    expected = model(x)
    empty = copy.deepcopy(model).to("meta")
    empty.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(empty(x), expected)


def test_a_model_on_meta_is_repaired() -> None:
    x = torch.randn(1, 3, 64, 64)
    for entry in (ZOO[2], ZOO[9], next(e for e in ZOO if "lite0" in e.name)):
        plain = warm(entry.build(), 64)
        expected = antialias(copy.deepcopy(plain), x, strength=0.5)
        with torch.device("meta"):
            model = entry.build()
        before = out(model, x.to("meta")).shape
        antialias(model, x.to("meta"), strength=0.5)
        assert out(model, x.to("meta")).shape == before
        if "lite0" in entry.name:  # whether it pads by the map's size is told by values
            assert not all(r.done for r in repairs(model))
            continue
        assert all(r.done for r in repairs(model))
        model.to_empty(device="cpu").load_state_dict(plain.state_dict())
        if entry is ZOO[2]:  # swin has a buffer of its own that no checkpoint holds
            torch.testing.assert_close(out(model.eval(), x), out(expected, x))


def test_a_repair_that_fails_leaves_nothing() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if type(self.net[0]) is not nn.Conv2d:
                raise KeyboardInterrupt
            return self.net(x)

    model = Fails()
    with pytest.raises(KeyboardInterrupt):
        antialias(model, torch.randn(1, 3, 16, 16))
    assert not repairs(model) and not any("Repaired" in type(m).__name__ for m in model.modules())


DROP_INS = {
    "timm": lambda: timm.BlurPool2d(4),
    "timm, 5 taps": lambda: timm.BlurPool2d(None, 5, 2, "constant"),
    "kornia": lambda: kornia.BlurPool2D(5),
    "kornia max": lambda: kornia.MaxBlurPool2D((3, 5)),
    "antialiased_cnns": lambda: antialiased_cnns.BlurPool(4),
    "composer max": lambda: composer.BlurMaxPool2d(2),
    "composer": lambda: composer.BlurPool2d(4),
}


@pytest.mark.parametrize("edited", [False, True])
@pytest.mark.parametrize("name", DROP_INS)
def test_drop_ins_by_way_of_meta(name: str, edited: bool) -> None:
    module, x = DROP_INS[name](), torch.randn(2, 4, 12, 12)
    if edited:
        with torch.no_grad():
            getattr(module, module.filter_name).mul_(0.5)[..., 0, 0] += 0.1
    expected = module(x)
    torch.testing.assert_close(emptied(module)(x), expected)
    module = poison(emptied(module))
    module.reset_parameters()  # pyright: ignore
    assert module(x).isfinite().all()


def test_drop_ins_made_on_meta() -> None:
    x = torch.randn(2, 4, 12, 12)
    for build in DROP_INS.values():
        with torch.device("meta"):
            module = build()
        torch.testing.assert_close(module.to_empty(device="cpu")(x), build()(x))


def pools() -> list[nn.Module]:
    taps = torch.rand(4, 3)
    return [
        aablur.nn.BlurPool2d(3, learnable=True),
        aablur.nn.BlurPool2d((3, 4), learnable=True, channels=4),
        aablur.nn.BlurPool2d(taps, learnable=True),
        aablur.nn.BlurPool2d(taps),
        aablur.nn.BlurPool2d(5, learnable=True, constraints=("sum_to_one", "symmetric")),
        aablur.nn.MaxBlurPool2d(2, 4, learnable=True, channels=4),
        aablur.nn.BlurPool2d(),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pool", pools(), ids=str)
def test_learnt_taps_are_reset(pool: Any, dtype: torch.dtype) -> None:
    pool, x = pool.to(dtype), torch.randn(2, 4, 12, 12, dtype=dtype)
    expected = pool(x)
    pool = poison(emptied(pool))
    pool.reset_parameters()
    torch.testing.assert_close(pool(x), expected)
    assert all(p.requires_grad for p in pool.parameters())


def test_taps_of_fsdp2_are_reset() -> None:
    """Sharded, on one process of the gloo backend."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))

        def shard(name: str, module: Any, mesh: Any) -> None:
            for key, p in list(module._parameters.items()):
                module._parameters[key] = nn.Parameter(distribute_tensor(p, mesh, [Shard(0)]))

        pool: Any = distribute_module(aablur.nn.BlurPool2d(3, learnable=True), mesh, shard)
        pool = poison(pool)
        pool.reset_parameters()
        assert pool.taps_0.to_local().tolist() == [0.25, 0.5, 0.25]
    finally:
        dist.destroy_process_group()
