"""A training step of whole models before and after aablur.accelerate: python -m benchmarks.accelerate."""

import argparse
import copy
import csv
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import aablur

from .devices import Others, interleave
from .record import RESULTS, cpu_model, machine, slug

BEFORE, AFTER = "before", "after"


def _timm_resnetblur50() -> nn.Module:
    import timm

    return timm.create_model("resnetblur50")


def _antialiased_resnet18() -> nn.Module:
    import antialiased_cnns

    return antialiased_cnns.resnet18()


def _antialiased_vgg16() -> nn.Module:
    import antialiased_cnns

    return antialiased_cnns.vgg16()


def kornia_net(classes: int = 1000) -> nn.Module:
    """A small net of convolutions and kornia's blur pools; kornia itself has no model with them."""
    from kornia.filters import BlurPool2D, MaxBlurPool2D

    def stage(channels: int, out: int, pool: nn.Module) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True), pool]

    stages = [*stage(3, 64, MaxBlurPool2D(3)), *stage(64, 128, MaxBlurPool2D(5, 2, 3)), *stage(128, 128, BlurPool2D(4))]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def composer_resnet18(blur_first: bool = True) -> nn.Module:
    """torchvision's ResNet-18 as composer converts it."""
    import composer.functional
    import torchvision

    model = torchvision.models.resnet18(weights=None)
    composer.functional.apply_blurpool(model, blur_first=blur_first)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm resnetblur50": _timm_resnetblur50,
    "antialiased_cnns resnet18": _antialiased_resnet18,
    "antialiased_cnns vgg16": _antialiased_vgg16,
    "kornia net": kornia_net,
    "composer resnet18": composer_resnet18,
}


@dataclass(frozen=True)
class Row:
    """One model. Times are medians over interleaved rounds of a step: forward, backward, SGD."""

    model: str
    shape: str
    swapped: int
    left: int
    fused: int  # max pools that are now part of a blur's op
    max_abs_difference: float  # of the outputs in eval mode
    relative_difference: float  # that over the largest magnitude of the output
    before_ms: float
    before_ms_p20: float
    before_ms_p80: float
    after_ms: float
    after_ms_p20: float
    after_ms_p80: float
    speedup: float
    rounds: int
    others_cores: float | None  # cores that other processes used meanwhile


def step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return run


def measure(name: str, x: Tensor, rounds: int) -> Row:
    torch.manual_seed(0)
    before = MODELS[name]().eval()
    after = copy.deepcopy(before)
    report = aablur.accelerate(after)
    with torch.no_grad():
        y, ours = before(x), after(x)
    difference = float((ours - y).abs().max())
    labels = torch.arange(len(x))
    steps = {BEFORE: step(before, x, labels), AFTER: step(after, x, labels)}
    for run in steps.values():
        run()
    others = Others()
    times = interleave(steps, rounds=rounds, budget_s=float("inf"))
    mine, theirs = times[AFTER], times[BEFORE]
    return Row(
        model=name,
        shape="x".join(map(str, x.shape)),
        swapped=len(report.swapped),
        left=len(report.left),
        fused=sum(row.now.endswith("Identity") for row in report.swapped),
        max_abs_difference=difference,
        relative_difference=difference / float(y.abs().max()),
        before_ms=theirs.median,
        before_ms_p20=theirs.p20,
        before_ms_p80=theirs.p80,
        after_ms=mine.median,
        after_ms_p20=mine.p20,
        after_ms_p80=mine.p80,
        speedup=theirs.median / mine.median,
        rounds=rounds,
        others_cores=others.cores(),
    )


def table(rows: list[Row]) -> Table:
    shown = Table(title="One training step on the CPU before and after aablur.accelerate")
    heads = (
        "model",
        "input",
        "swapped",
        "left",
        "fused",
        "max difference",
        "before ms",
        "after ms",
        "speedup",
        "others",
    )
    for head in heads:
        shown.add_column(head, justify="left" if head in ("model", "input") else "right")
    for r in rows:
        times = [f"{m:.0f} [dim]{p20:.0f}-{p80:.0f}[/]" for m, p20, p80 in (
            (r.before_ms, r.before_ms_p20, r.before_ms_p80), (r.after_ms, r.after_ms_p20, r.after_ms_p80),
        )]  # fmt: skip
        counts = (str(r.swapped), str(r.left), str(r.fused))
        busy = "" if r.others_cores is None else f"{r.others_cores:.1f}"
        shown.add_row(r.model, r.shape, *counts, f"{r.max_abs_difference:.1e}", *times, f"{r.speedup:.2f}", busy)
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerate", description=__doc__)
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--size", type=int, default=112, help="their height and width")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import peers  # noqa: F401  # pyright: ignore[reportMissingImports]  # makes the imports of the models possible

    x = torch.randn(options.batch, 3, options.size, options.size)
    path = options.out / f"accelerate-cpu-{slug(cpu_model())}.csv"
    about, rows = machine(), []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*(f.name for f in fields(Row)), *about])
        writer.writeheader()
        for name in MODELS:
            rows.append(measure(name, x, options.rounds))
            cells = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(rows[-1]).items()}
            writer.writerow(cells | about)
            file.flush()
    console = Console()
    console = console if console.is_terminal else Console(width=150)
    console.print(table(rows))
    console.print(f"ms: median, and 20th to 80th percentile; others: cores that other processes used. wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
