"""Promise: `aablur.sensitivity` measures one blurred layer at a time, resumes, and its result chooses layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aablur.models import antialias, repairs, sensitivity
from aablur.models.sensitivity import Row, Sensitivity, top1

SITES = ["0", "3", "6"]


def net() -> nn.Module:
    """Three places to blur, of which the second does nothing that is seen."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5),
    ).eval()  # fmt: skip


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 1, 32, 32, generator=made), torch.randint(5, (16,), generator=made)) for _ in range(count)]


def by_hand(model: nn.Module, loader: Any, layers: list[str], **options: Any) -> tuple[float, float]:
    import random
    import warnings

    offsets, right, same, n = random.Random(7), 0, 0, 0
    if layers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            antialias(model, loader[0][0], layers=layers, **options)
    for x, y in loader:
        shift = tuple(offsets.choice([-1, 1]) * offsets.randint(1, 5) for _ in range(2))
        with torch.no_grad():
            a, b = model(x).argmax(1), model(torch.roll(x, shift, (2, 3))).argmax(1)
        right, same, n = right + int((a == y).sum()), same + int((a == b).sum()), n + len(x)
    return right / n, same / n


def test_each_row_is_the_model_with_one_blur() -> None:
    model, loader = net().train(), batches()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = sensitivity(model, loader, taps=5, strength=0.7, max_shift=5, seed=7, progress=False)
    assert [r.name for r in found.rows] == SITES and [r.kind for r in found.rows] == ["conv", "max_pool", "max_pool"]
    for row in (found.baseline, *found.rows):
        layers = [row.name] if row.name else []
        expected = by_hand(net(), loader, layers, taps=5, strength=0.7)
        assert (row.score, row.consistency) == pytest.approx(expected)
    assert model.training and not repairs(model)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert len({(r.score, r.consistency) for r in found.rows}) > 1


def test_other_metrics_and_sites() -> None:
    metric = lambda output, target: -float(nn.functional.cross_entropy(output, target))  # noqa: E731
    found = sensitivity(net(), batches(), metric, sites=["3"], progress=False)
    assert [r.name for r in found.rows] == ["3"] and found.baseline.score < 0
    assert top1(torch.eye(4), torch.tensor([0, 1, 0, 3])) == 0.75


def test_resuming(tmp_path: Path) -> None:
    path, calls = tmp_path / "scan.json", []

    def metric(output: Tensor, target: Tensor) -> float:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return top1(output, target)

    model = net()
    with pytest.raises(KeyboardInterrupt):
        sensitivity(model, batches(), metric, resume=path, progress=False)
    assert not repairs(model)
    assert [r["name"] for r in json.loads(path.read_text())["rows"]] == ["", "0"]
    found = sensitivity(model, batches(), metric, resume=path, progress=False)
    assert len(calls) == 8 + 2 * 3, "what was there is not measured again"
    assert found == sensitivity(net(), batches(), progress=False)
    with pytest.raises(ValueError, match="resume is a scan with"):
        sensitivity(model, batches(), resume=path, taps=5, progress=False)


def test_choosing_within_a_budget() -> None:
    rows = (
        Row("a", "conv", 0.80, 0.95), Row("b", "conv", 0.89, 0.93), Row("c", "max_pool", 0.91, 0.92),
        Row("d", "conv", 0.88, 0.94), Row("e", "conv", 0.95, 0.85),
    )  # fmt: skip
    scan = Sensitivity(Row("", "", 0.90, 0.90), rows)
    assert scan.within(0) == ["c"]
    assert scan.within(0.0101) == ["c", "b"]
    assert scan.within(0.0301) == ["c", "b", "d"]
    assert scan.within(1) == ["c", "b", "d", "a"]
    assert "+0.0500" in str(scan) and "-0.1000" in str(scan)
    assert json.loads(scan.to_json())["rows"][0]["name"] == "a"
    with pytest.raises(ValueError, match="budget must be"):
        scan.within(-1)


@pytest.mark.filterwarnings("ignore:antialias")
def test_antialias_by_budget() -> None:
    model, loader = net(), batches()
    scan = sensitivity(model, loader, progress=False)
    for budget in (0.0, 1.0):
        antialias(model, loader[0][0], sensitivity=scan, budget=budget)
        assert sorted(r.name for r in repairs(model)) == sorted(scan.within(budget))
        model = net()
    with pytest.raises(ValueError, match="must be given together"):
        antialias(model, loader[0][0], budget=0.1)


def test_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    sensitivity(net(), batches(1), sites=["0"])
    assert "2/2" in capsys.readouterr().err


def test_bad_input() -> None:
    model = net()
    with pytest.raises(TypeError, match="got an iterator"):
        sensitivity(model, iter(batches()))
    with pytest.raises(ValueError, match="loader must hold a batch"):
        sensitivity(model, [])
    with pytest.raises(ValueError, match="sites holds '9', there are 0, 3, 6"):
        sensitivity(model, batches(), sites=["9"])
    with pytest.raises(ValueError, match="max_shift"):
        sensitivity(model, batches(), max_shift=0)
    with pytest.raises(TypeError, match="model must be"):
        sensitivity("net", batches())  # pyright: ignore
