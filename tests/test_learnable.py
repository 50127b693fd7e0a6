"""Promise: learnt taps start binomial, keep to their constraints, and stay fused forward and backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import aablur

MODULES = [aablur.nn.BlurPool1d, aablur.nn.BlurPool2d, aablur.nn.BlurPool3d, aablur.nn.MaxBlurPool2d]
RULES = [(), ("sum_to_one",), ("symmetric",), ("symmetric", "sum_to_one")]


def taps_of(module: Any) -> list[Tensor]:
    return [getattr(module, f"taps_{i}") for i in range(module.rank)]


@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("kind", MODULES, ids=lambda m: m.__name__)
def test_they_start_binomial_and_keep_their_constraints(
    kind: Any, rules: tuple[str, ...], channels: int | None
) -> None:
    module = kind(taps=5, learnable=True, channels=channels, constraints=rules).double()
    x = torch.randn(2, 4, *[9] * module.rank, dtype=torch.float64)
    torch.testing.assert_close(module(x), kind(taps=5)(x))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    start = [t.detach().clone() for t in taps_of(module)]
    weight = torch.randn_like(module(x))
    for _ in range(4):
        optimizer.zero_grad()
        (module(x) * weight).mean().backward()
        optimizer.step()
    for t, s in zip(taps_of(module), start, strict=True):
        assert t.shape == ((channels, 5) if channels else (5,)) and not torch.allclose(t, s)
        assert torch.allclose(t, t.flip(-1)) == ("symmetric" in rules)
        assert torch.allclose(t.sum(-1), torch.ones_like(t[..., 0])) == ("sum_to_one" in rules)


def test_constraints_are_the_nearest_filters() -> None:
    """Projections: they leave what keeps to them, and what they change is orthogonal to all that does."""
    module = aablur.nn.BlurPool1d(5, learnable=True, constraints=("sum_to_one", "symmetric")).double()
    free = torch.randn(5, dtype=torch.float64)
    with torch.no_grad():
        module.parametrizations.taps_0.original.copy_(free)  # pyright: ignore
    held: Tensor = module.taps_0.detach()  # pyright: ignore
    for direction in ([1.0, 0, -2, 0, 1], [0.0, 1, -2, 1, 0]):  # symmetric, summing to zero
        assert abs(float((free - held) @ torch.tensor(direction, dtype=torch.float64))) < 1e-12
    with torch.no_grad():
        module.parametrizations.taps_0.original.copy_(held)  # pyright: ignore
    torch.testing.assert_close(module.taps_0, held)


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_gradients(rules: tuple[str, ...]) -> None:
    module = aablur.nn.BlurPool2d(3, learnable=True, channels=2, constraints=rules).double()
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*module.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *[v.detach().requires_grad_() for v in values]))


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_they_are_fused() -> None:
    """No pad, no convolution, no pool: one op of ours a direction, and the gradient of the taps."""
    module = aablur.nn.MaxBlurPool2d(3, learnable=True, channels=4, constraints=("sum_to_one",))
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with Seen() as seen:
        module(x).sum().backward()
    ours = [n for n in seen.names if n.startswith("aablur.")]
    assert ours[0] == "aablur.max_blur_pool_codes.default"
    assert {"aablur.max_blur_pool_backward.default", "aablur.blur_pool_backward_taps.default"} <= set(ours)
    assert not [n for n in seen.names if any(word in n for word in ("conv", "aten.pad", "aten.max_pool"))]


def test_states() -> None:
    module = aablur.nn.BlurPool2d(3, learnable=True, constraints=("symmetric",))
    assert list(module.state_dict()) == [f"parametrizations.taps_{i}.original" for i in (0, 1)]
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
    x = torch.randn(1, 3, 8, 8)
    other = aablur.nn.BlurPool2d(3, learnable=True, constraints=("symmetric",))
    other.load_state_dict(module.state_dict())
    for twin in (other, copy.deepcopy(module)):
        torch.testing.assert_close(twin(x), module(x))
    assert module.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


def test_a_network_learns_its_taps() -> None:
    """From binomial taps to those that made the targets."""
    wanted = torch.tensor([0.05, 0.2, 0.5, 0.2, 0.05])
    module = aablur.nn.BlurPool2d(5, learnable=True, constraints=("sum_to_one", "symmetric"))
    x = torch.randn(8, 2, 16, 16)
    target = aablur.blur_pool2d(x, wanted)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(module(x), target).backward()
        optimizer.step()
    torch.testing.assert_close(module.taps_0, wanted, rtol=0.05, atol=0.01)


def test_bad_input() -> None:
    for constraints in ("symmetric", ["positive"], 3):
        with pytest.raises(ValueError, match="constraints must be a sequence of sum_to_one, symmetric"):
            aablur.nn.BlurPool2d(learnable=True, constraints=constraints)  # pyright: ignore
    with pytest.raises(ValueError, match="are for learnable taps"):
        aablur.nn.MaxBlurPool2d(constraints=["symmetric"])
    assert isinstance(aablur.nn.BlurPool2d(constraints=[]), nn.Module)
