"""One net, trained and measured: a row of numbers, kept in a file so that an interrupted run goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aablur import robustness
from aablur.robustness import Batch, Perturbation, Statistic

from .nets import VARIANTS, blur_of, build
from .sets import RECIPES, load
from .train import train


@dataclass(frozen=True)
class Config:
    """data: of `RECIPES`. net, variant: of `nets`. augmented: trained under shifts. epochs: None is the recipe's."""

    data: str
    net: str
    variant: str
    augmented: bool
    seed: int
    epochs: int | None = None

    @property
    def file(self) -> str:
        return "-".join(str(v) for v in asdict(self).values() if v is not None) + ".json"


@dataclass(frozen=True)
class Kept(Perturbation):
    """Views that were made before: the corrupted images, which are the same for every net."""

    kind: str
    made: Any
    statistics: tuple[Statistic, ...] = (Statistic.ACCURACY,)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"corruption {self.kind}"

    @property
    def labels(self) -> list[str]:
        return [f"severity {s}" for s in robustness.corruptions()[0].severities]

    def views(self, batch: Batch) -> Iterator[Tensor]:
        yield from self.made[:, list(batch.index)]


@cache
def corrupted(data: str, folder: Path) -> dict[str, Tensor]:
    """(severities, images, 1, size, size) for each corruption, of the first test images."""
    path = folder / f"{data}-corrupted.pt"
    if not path.exists():
        images = load(data)[2][: RECIPES[data].corrupted]
        batch = Batch(images, range(len(images)), (images.shape[-2], images.shape[-1]), 0)
        made = {c.kind: torch.stack([(v * 255).byte() for v in c.views(batch)]) for c in robustness.corruptions()}
        beside = path.with_suffix(f".{os.getpid()}")
        torch.save(made, beside)
        os.replace(beside, path)
    return {kind: views.float() / 255 for kind, views in torch.load(path, weights_only=True).items()}


def evidence(config: Config, folder: Path) -> dict[str, Any]:
    """The row of a configuration: from its file, or trained and measured now."""
    path = folder / config.file
    if path.exists():
        return json.loads(path.read_text())
    start, recipe = time.perf_counter(), RECIPES[config.data]
    images, labels, test_images, test_labels = load(config.data)
    torch.manual_seed(1000 + config.seed)
    model = build(config.net, config.variant, recipe.stages)
    gains: list[list[float]] = []
    shift = recipe.range // 2 if config.augmented else 0
    watch = (lambda m: gains.append(blur_of(m))) if config.variant == "learned" else (lambda m: None)
    train(model, images, labels, config.epochs or recipe.epochs, shift, config.seed, watch)
    trained = time.perf_counter() - start
    fast: dict[str, Any] = {"channels_last": True, "progress": False, "batch_size": 100}
    whole = robustness.measure(model, list(zip(test_images.split(100), test_labels.split(100), strict=True)),
                               [robustness.Clean()], **fast)  # fmt: skip
    some = test_images[: recipe.measured], test_labels[: recipe.measured]
    shifts = robustness.suite(["shift", "diagonal", "grid", "subpixel"], recipe.range, "zeros")
    result = robustness.measure(model, list(zip(*(t.split(100) for t in some), strict=True)), shifts, **fast)
    row = asdict(config) | {
        "accuracy": whole.value("clean", "accuracy").mean,
        "consistency": result.value("shift grid", "consistency of all pairs").mean,
        "worst case accuracy": result.value("shift grid", "worst case accuracy").mean,
        "sub-pixel consistency": result.value("sub-pixel shift", "consistency").mean,
        "variation": result.value("diagonal shift", "variation").mean,
        "curve": [v.mean for v in result.values("diagonal shift", "confidence by view")],
        "gains": gains,
    }
    if recipe.corrupted:
        kept = [Kept(kind, made) for kind, made in corrupted(config.data, folder).items()]
        batch = test_images[: recipe.corrupted], test_labels[: recipe.corrupted]
        hard = robustness.measure(model, [batch], kept, **fast)
        row["errors"] = {p.kind: 1 - hard.value(p.name, "accuracy").mean for p in kept}
    row |= {"training seconds": trained, "seconds": time.perf_counter() - start}
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(row))
    os.replace(beside, path)
    return row


def configurations(datas: list[str], nets: list[str], seeds: int, epochs: int | None) -> list[Config]:
    return [
        Config(data, net, variant, augmented, seed, epochs)
        for seed in range(seeds)
        for data in datas
        for net in nets
        for augmented in (False, True)
        for variant in VARIANTS
    ]
