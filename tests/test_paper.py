"""Promise: `make paper` trains what it says, keeps what is done, and its verdicts follow from its numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aablur
from aablur import robustness
from benchmarks.paper import tables
from benchmarks.paper.__main__ import write
from benchmarks.paper.evidence import Config, Kept, configurations, evidence
from benchmarks.paper.nets import NETS, VARIANTS, blur_of, build
from benchmarks.paper.sets import RECIPES, load
from benchmarks.paper.train import shifted, train

BLURS = (aablur.nn.BlurPool2d, aablur.nn.MaxBlurPool2d)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_nets(net: str, variant: str) -> None:
    """The same maps and weights whichever the blur, and no subsampling without it."""
    model, base = build(net, variant, 3), build(net, "baseline", 3)
    x = torch.rand(2, 1, 32, 32)
    assert model(x).shape == (2, 10)
    assert model[:-3](x).shape == base[:-3](x).shape == (2, 64, 4, 4)
    blurs = [m for m in model.modules() if isinstance(m, BLURS)]
    strided = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.MaxPool2d)) and m.stride in (2, (2, 2))]
    if variant == "baseline":
        assert not blurs and len(strided) == (3 if net == "VGG" else 5)
        return
    assert not strided and len(blurs) == (3 if net == "VGG" else 5)
    assert {m.learnable for m in blurs} == {variant == "learned"}
    taps = sum(p.numel() for m in blurs for p in m.parameters())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in base.parameters()) + taps


def test_gains_of_filters() -> None:
    model = build("VGG", "learned", 2)
    assert blur_of(model) == [0, 0] and blur_of(build("VGG", "Bin-5", 2)) == []
    pool = next(m for m in model.modules() if isinstance(m, BLURS))
    with torch.no_grad():
        pool.taps_0.copy_(torch.tensor([0.0, 0, 1, 0, 0]))  # pyright: ignore
        pool.taps_1.copy_(torch.tensor([0.0, 0.25, 1, 0.25, 0]))  # pyright: ignore
    assert blur_of(model)[0] == pytest.approx((1 + 0.5 / 1.5) / 2)


def test_sets_and_shifts() -> None:
    for name, size in (("mnist5k", 32), ("digits", 8)):
        images, labels, test_images, test_labels = load(name)
        assert images.shape[1:] == test_images.shape[1:] == (1, size, size) and images.amax() == 1
        assert len(test_images) == len(test_labels) == RECIPES[name].test and len(images) == len(labels)
        both = torch.cat([images, test_images]).flatten(1)
        whole = {"mnist5k": 5000, "digits": 1797}[name]
        assert len(both) == whole and test_labels.bincount(minlength=10).amin() > 30
    image = torch.zeros(200, 1, 7, 7)
    image[:, :, 3, 3] = 1
    moved = shifted(image, 2, torch.Generator().manual_seed(0))
    places = moved.flatten(1).argmax(1)
    assert {(int(p) // 7, int(p) % 7) for p in places} == {(y, x) for y in range(1, 6) for x in range(1, 6)}


def test_training_learns_and_is_the_same_again() -> None:
    images, labels, test_images, test_labels = load("digits")
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model, epochs = build("VGG", "Tri-3", 2), []
        train(model, images, labels, 3, 0, 0, epochs.append)
        with torch.no_grad():
            found.append(model(test_images))
        assert len(epochs) == 4 and not model.training
    assert torch.equal(*found)
    assert (found[0].argmax(1) == test_labels).float().mean() > 0.8


def test_evidence_is_kept(tmp_path: Path) -> None:
    config = Config("digits", "ResNet", "learned", True, 0, 1)
    row = evidence(config, tmp_path)
    (file,) = tmp_path.iterdir()
    assert row["accuracy"] >= row["worst case accuracy"] and len(row["gains"]) == 2 and len(row["curve"]) == 3
    again = evidence(config, tmp_path)
    assert again == row  # with the seconds it took: read, not measured again
    assert file.name == config.file and replace(config, seed=1).file != config.file


def test_kept_views_are_those_of_their_images() -> None:
    made = torch.rand(5, 8, 1, 4, 4)
    batch = robustness.Batch(torch.zeros(3, 1, 4, 4), [2, 3, 7], (4, 4), 0)
    views = list(Kept("fog", made).views(batch))
    assert len(views) == 5 and torch.equal(views[1], made[1, [2, 3, 7]])


def rows(seeds: int = 3) -> list[dict[str, Any]]:
    """Numbers in which blur helps consistency, costs accuracy, and does nothing else."""
    found = []
    for config in configurations(["mnist5k", "digits"], list(NETS), seeds, None):
        blurred = config.variant != "baseline"
        noise = 0.002 * (config.seed - 1)
        found.append({
            "data": config.data, "net": config.net, "variant": config.variant, "augmented": config.augmented,
            "seed": config.seed, "accuracy": 0.9 - 0.05 * blurred + noise, "sub-pixel consistency": 0.9,
            "consistency": 0.7 + (0.1 + noise) * blurred, "worst case accuracy": 0.5 + noise * (-1) ** blurred,
            "variation": 0.1 + 5 * noise * blurred,
            "curve": [0.5, 0.6, 0.5], "errors": {"fog": 0.2 - 0.05 * blurred + noise, "snow": 0.4}, "seconds": 1.0,
            "training seconds": 0.5, "gains": [[0.0, 0.0], [0.2 + noise, 0.1]] if config.variant == "learned" else [],
        })  # fmt: skip
    return found


def test_verdicts() -> None:
    assert tables.verdict(*tables.paired([0.8, 0.82, 0.81], [0.7, 0.71, 0.7])) == "seen"
    assert tables.verdict(*tables.paired([0.7, 0.71, 0.7], [0.8, 0.82, 0.81])) == "the opposite is seen"
    assert tables.verdict(*tables.paired([0.7, 0.9, 0.7], [0.8, 0.7, 0.8])) == "not told apart"
    assert tables.verdict(*tables.paired([0.7], [0.1])) == "not told apart"
    difference, error = tables.paired([0.5, 0.7], [0.4, 0.4])
    assert (difference, error) == pytest.approx((0.2, math.sqrt(0.02) / math.sqrt(2)))
    keyed = tables.by_key(rows())
    said = {line.split(" | ")[0][2:]: line for line in tables.claims(keyed, ["mnist5k"]).splitlines()[2:]}
    assert "+10.0 ± 0.1: seen" in said["Blur raises consistency"]
    assert "-5.0 ± 0.0: the opposite is seen" in said["Blur raises accuracy"]
    assert said["Blur raises accuracy in the worst case of shifts"].count("not told apart") == 4
    assert "+12.5 ± 0.0: seen" in said["Blur lowers errors under corruptions (mCE)"]
    assert "| 0.150 ± 0.001 | seen |" in tables.learned(keyed, ["digits"])


def test_the_page_is_written(tmp_path: Path) -> None:
    write(rows(), ["mnist5k", "digits"], tmp_path, 60.0)
    page = (tmp_path / "paper.md").read_text()
    assert "{" not in page and "### digits, ResNet" in page and "120 nets" in page
    assert "| plain | baseline | **90.0 ± 0.2** | 70.0 ± 0.0 |" in page
    assert "| plain | Tri-3 | 85.0 ± 0.2 | **80.0 ± 0.2** |" in page
    for image in ("accuracy-against-consistency", "curves", "learned"):
        assert f"paper/{image}.png" in page
        assert (tmp_path / "paper" / f"{image}.png").read_bytes()[:4] == b"\x89PNG"
    assert len((tmp_path / "paper" / "nets.csv").read_text().splitlines()) == 121
