"""Images a second of `aablur.robustness` on the shift grid, against the straightforward loop.

    python -m benchmarks.robustness            a table, and benchmarks/results/robustness.csv

The loop is what one writes first: for each shift crop the batch, send it to the device, run the model, take the
softmax, and add up what is needed as Python numbers. All ways are run in turn, several times; a ratio is the median
over turns of the loop's time over the other's in the same turn.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from aablur import robustness

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
RESULTS = Path(__file__).parent / "results" / "robustness.csv"
WAYS = {
    "loop": {},
    "measure": {},
    "measure, channels_last": {"channels_last": True},
    "measure, channels_last, bfloat16": {"channels_last": True, "amp": torch.bfloat16},
}


def small() -> nn.Module:
    """The kind of net that MNIST gets."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def library(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import peers  # noqa: F401  # pyright: ignore[reportMissingImports]
        import torchvision

        return getattr(torchvision.models, name)(weights=None)

    return make


# name -> the model, (images in all, images a batch, channels, size), shift range, step
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int, int], int, int]] = {
    "small, 28 px": (small, (32, 32, 1, 28), 6, 1),
    "resnet18, 224 px": (library("resnet18"), (16, 16, 3, 224), 32, 32),
    "mobilenet_v2, 224 px": (library("mobilenet_v2"), (16, 16, 3, 224), 32, 32),
}


@torch.no_grad()
def loop(model: nn.Module, data: list[tuple[Tensor, Tensor]], size: int, range_: int, step: int, device: str) -> float:
    """Mean probability of the label over all shifts."""
    model.eval()
    total, seen = 0.0, 0
    for images, labels in data:
        for y, x in itertools.product(range(0, range_ + 1, step), repeat=2):
            crops = torch.stack([image[:, y : y + size, x : x + size] for image in images]).to(device)
            probability = model(crops).softmax(1).cpu()
            total += probability.gather(1, labels[:, None]).sum().item()
            seen += len(labels)
    return total / seen


def run(name: str, turns: int, device: str) -> list[dict[str, object]]:
    """One row a way."""
    make, (count, batch, channels, size), range_, step = NETS[name]
    torch.manual_seed(0)
    model = make().to(device).eval()
    images = torch.rand(count, channels, size + range_, size + range_)
    with torch.no_grad():
        labels = torch.cat([model(x[..., :size, :size].to(device)).argmax(1).cpu() for x in images.split(batch)])
    data = list(zip(images.split(batch), labels.split(batch), strict=True))
    grid = robustness.ShiftGrid(range=range_, step=step)
    views = count * len(grid.labels)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    confidence: dict[str, float] = {}
    for turn in range(turns + 1):
        for way, options in WAYS.items():
            start = time.perf_counter()
            if way == "loop":
                confidence[way] = loop(model, data, size, range_, step, device)
            else:
                result = robustness.measure(model, data, [grid], progress=False, **options)
                confidence[way] = result.value("shift grid", "confidence").mean
            if turn:  # the first is to warm up
                seconds[way].append(time.perf_counter() - start)
    assert abs(confidence["measure"] - confidence["loop"]) < 1e-5, confidence
    return [
        {
            "model": name, "way": way, "views": views, "views_per_second": round(views / median(seconds[way]), 1),
            "ratio": round(median(a / b for a, b in zip(seconds["loop"], seconds[way], strict=True)), 2),
            "confidence": round(confidence[way], 5), "turns": turns, "device": device,
            "threads": torch.get_num_threads(), "torch": torch.__version__,
        }
        for way in WAYS
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=list(NETS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    for name in args.nets:
        rows += (found := run(name, args.turns, args.device))
        for row in found:
            print(f"{row['model']:28} {row['way']:34} {row['views_per_second']:>9} views/s {row['ratio']:>6} x")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
