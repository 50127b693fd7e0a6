"""The real networks that audits and repairs are tried on, and where each samples, read by hand from its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import peers  # noqa: F401 - before torchvision
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class Functional(nn.Module):
    """Everything samples in the forward, and nothing in a module: pool, average, slice, strides, shared ReLU."""

    def __init__(self, traceable: bool = True) -> None:
        super().__init__()
        self.traceable = traceable
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 16, 3, padding=1)
        self.last, self.head = nn.Identity(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        if not self.traceable and x.sum() > 1e9:  # a branch on data, which no tracer follows
            return x
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(x, 2)
        x = F.relu(self.norm(self.conv2(x)))
        x = F.dropout(x, 0.5, self.training)
        x = self.conv3(x).relu()[..., ::2, ::2]
        x = self.last(F.avg_pool2d(x, 2, ceil_mode=True))
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One pool and one ReLU, used over and over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 4, 3, s, 1) for i, s in ((3, 1), (4, 2), (4, 1)))
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.a(x)))
        x = self.relu(self.b(x))
        y = self.c(x) + x
        return self.pool(y)


class Run(nn.Module):
    """A function as a model."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def warm(model: nn.Module, size: int) -> nn.Module:
    """Gives batch norms the statistics of maps that random weights make, so that none is degenerate."""
    norms = {m: m.momentum for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if not norms:
        return model.eval()
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the mean of all batches
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, size, size))
    for m, momentum in norms.items():
        m.momentum = momentum
    return model.eval()


@dataclass(frozen=True)
class Entry:
    """A network: ``sites`` are (module path, kind, stride) by hand from its source, in the order of running."""

    name: str
    sites: tuple[tuple[str, str, int], ...]
    size: int = 64
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def features(self) -> str:
        """The module that puts out the last map."""
        own = {"convnextv2": "stages", "swin_tiny_": "layers", "lite0": "blocks", "regnet": "s4", "functional": "last"}
        family = next((last for part, last in own.items() if part in self.name), None)
        return family or ("layer4" if "resne" in self.name else "features")

    def build(self, size: int | None = None) -> nn.Module:
        library, name = self.name.split(":")
        torch.manual_seed(0)
        if library == "torchvision":
            return torchvision.models.get_model(name, weights=None).eval()
        if library == "timm":
            options = dict(self.options) | ({"img_size": size or self.size} if "swin" in name else {})
            return timm.create_model(name, **options).eval()
        return Functional().eval()


def _resnet(conv: str, stem: str = "conv1") -> tuple[tuple[str, str, int], ...]:
    stages = [(f"layer{i}.0.{part}", "conv", 2) for i in (2, 3, 4) for part in (conv, "downsample.0")]
    return ((stem, "conv", 2), ("maxpool", "max_pool", 2), *stages)


def _all(kind: str, stride: int, *names: str) -> tuple[tuple[str, str, int], ...]:
    return tuple((name, kind, stride) for name in names)


ZOO = (
    Entry("torchvision:alexnet", (
        ("features.0", "conv", 4), *_all("max_pool", 2, "features.2", "features.5", "features.12"))),
    Entry("torchvision:vgg16", _all("max_pool", 2, *(f"features.{i}" for i in (4, 9, 16, 23, 30)))),
    Entry("torchvision:resnet18", _resnet("conv1")),
    Entry("torchvision:resnet50", _resnet("conv2")),
    Entry("torchvision:resnext50_32x4d", _resnet("conv2")),
    Entry("torchvision:wide_resnet50_2", _resnet("conv2")),
    Entry("torchvision:densenet121", (
        ("features.conv0", "conv", 2), ("features.pool0", "max_pool", 2),
        *_all("avg_pool", 2, *(f"features.transition{i}.pool" for i in (1, 2, 3))))),
    Entry("torchvision:mobilenet_v2", _all(
        "conv", 2, "features.0.0", *(f"features.{i}.conv.1.0" for i in (2, 4, 7, 14)))),
    Entry("torchvision:convnext_tiny", (
        ("features.0.0", "conv", 4), *_all("conv", 2, *(f"features.{i}.1" for i in (2, 4, 6))))),
    Entry("torchvision:swin_t", (
        ("features.0.0", "conv", 4), *_all("space_to_depth", 2, *(f"features.{i}" for i in (2, 4, 6))))),
    Entry("torchvision:efficientnet_b0", _all(
        "conv", 2, "features.0.0", *(f"features.{i}.0.block.1.0" for i in (2, 3, 4, 6)))),
    Entry("timm:convnextv2_atto", (
        ("stem.0", "conv", 4), *_all("conv", 2, *(f"stages.{i}.downsample.1" for i in (1, 2, 3))))),
    Entry("timm:swin_tiny_patch4_window7_224", (
        ("patch_embed.proj", "conv", 4), *_all("space_to_depth", 2, *(f"layers.{i}.downsample" for i in (1, 2, 3)))),
        options=(("window_size", 2),)),
    Entry("timm:resnet50", _resnet("conv2")),
    Entry("timm:tf_efficientnet_lite0", _all(
        "conv", 2, "conv_stem", *(f"blocks.{i}.0.conv_dw" for i in (1, 2, 3, 5)))),
    Entry("timm:regnetx_002", (
        ("stem.conv", "conv", 2),
        *((f"s{i}.b1.{part}.conv", "conv", 2) for i in (1, 2, 3, 4) for part in ("conv2", "downsample")))),
    Entry("own:functional", (
        ("(model)", "max_pool", 2), ("conv2", "conv", 2), ("(model)#2", "slice", 2), ("(model)#3", "avg_pool", 2))),
)  # fmt: skip
