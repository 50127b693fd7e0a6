"""The table of repaired networks in docs/audit.md: python -m benchmarks.repair [NAME ...]

One network at a time: where it samples, what was repaired, what that costs, and how far its features are from moving
with the picture, before and after. Without names it goes through all of them, and ends with a training step; the name
"step" is that alone. With --zoo it is the table of models by other people (`zoo.table`).
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import aablur
from aablur.geometry import Geometry
from aablur.models.aliasing import distance
from aablur.models.circular import Torus
from aablur.models.tape import record

from .page import fill
from .photos import crops
from .pretrained import trained
from .record import commit, cpu_model
from .zoo import table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "audit.md"
SIZE, WARM_SIZE = 224, 128
TRAINED = "efficientnet-lite0, trained on ImageNet"
WHOLE = (32, 32)  # a multiple of the stride of every network in all
ONE_PIXEL = ((0, 1), (1, 0), (1, 1))
STEPS, BATCH = 5, 8


@dataclass(frozen=True)
class Result:
    name: str
    places: int
    by_hand: int
    repaired: int
    shapes_kept: bool
    gflops: float
    more_gflops: float
    error_before: float
    error_after: float
    error_at_stride: float

    def cells(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{self.places} ({self.by_hand})",
            f"{self.repaired}",
            "yes" if self.shapes_kept else "NO",
            f"{self.gflops:.2f}",
            f"{self.more_gflops:+.3f} ({100 * self.more_gflops / self.gflops:+.1f} %)",
            f"{self.error_before:.3f}",
            f"{self.error_after:.3f}",
            f"{self.error_at_stride:.0e}" if self.error_at_stride else "0",
        )


HEADINGS = (
    "network", "places (by hand)", "repaired", "shapes kept", "GFLOPs", "more", "error before", "after",
    "32 pixels",
)  # fmt: skip


def _blur_flops(op: str, x: Any, taps: Any, axes: Any, padding_mode: str, out_shape: Any = None, **rest: Any) -> int:
    """Two a tap and output, as if every tap of the square were multiplied."""
    return 2 * math.prod(a.taps for a in Geometry.of_op(op, axes, padding_mode).axes) * math.prod(out_shape)


def flops(model: nn.Module, x: Tensor) -> float:
    """GFLOPs of one picture: convolutions, matrix products, blurs."""
    ops = torch.ops.aablur
    counted = {getattr(ops, op): partial(_blur_flops, op) for op in ("blur_pool", "max_blur_pool")}
    counter = FlopCounterMode(display=False, custom_mapping=counted)
    with torch.no_grad(), counter:
        model(x[:1])
    return counter.get_total_flops() / 1e9


def features(model: nn.Module, path: str) -> Callable[[Tensor], Tensor]:
    """The map that a module of a model puts out, with circular padding everywhere before it."""

    def run(x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = model.get_submodule(path).register_forward_hook(lambda m, a, out: kept.append(out.clone()))
        try:
            record(model, x, evaluate=Torus())
        finally:
            handle.remove()
        return kept[0]

    return run


def axes_of(out: Tensor) -> tuple[int, int]:
    """The height and width of a map: those axes that have the same size, channels first or last."""
    return (-2, -1) if out.shape[-1] == out.shape[-2] else (-3, -2)


def errors(model: nn.Module, path: str, x: Tensor, shifts: Sequence[tuple[int, int]]) -> list[float]:
    """The equivariance error of the map that a module puts out, for each shift of the picture."""
    run = features(model, path)
    plain = run(x)
    axes, found = axes_of(plain), []
    for shift in shifts:
        share = [d * plain.shape[a] / SIZE for d, a in zip(shift, axes, strict=True)]
        found.append(distance(run(x.roll(shift, (-2, -1))), plain, share, axes))
    return found


def measure(name: str, model: nn.Module, path: str, by_hand: int, x: Tensor) -> Result:
    with torch.no_grad():
        shapes = model(x).shape, features(model, path)(x).shape
    places = len(aablur.audit(model, x, measure=False).sites)
    cost, before = flops(model, x), errors(model, path, x, ONE_PIXEL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "antialias: this model may be trained")
        aablur.antialias(model, x)
    with torch.no_grad():
        kept = shapes == (model(x).shape, features(model, path)(x).shape)
    *after, at_stride = errors(model, path, x, (*ONE_PIXEL, WHOLE))
    return Result(
        name, places, by_hand, sum(r.done for r in aablur.repairs(model)), kept, cost, flops(model, x) - cost,
        statistics.mean(before), statistics.mean(after), at_stride,
    )  # fmt: skip


def _zoo() -> Any:
    sys.path.insert(0, str(ROOT / "tests"))
    import zoo  # pyright: ignore[reportMissingImports]

    return zoo


def networks() -> dict[str, tuple[Callable[[], nn.Module], str, int]]:
    """By name: the network, the module whose map is compared, and the places that were found by hand."""
    zoo = _zoo()

    def fresh(entry: Any) -> Callable[[], nn.Module]:
        return lambda: zoo.warm(entry.build(SIZE), WARM_SIZE)

    found = {e.name: (fresh(e), e.features, len(e.sites)) for e in zoo.ZOO}
    return found | {TRAINED: (trained, "_blocks.15", 5)}


# ---- a training step -----------------------------------------------------------------------------------


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that one forward keeps for its backward: unique storages, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = model(x)
        total = sum(kept.values())  # while the graph holds them, no address is used twice
    del out
    return total


def step_seconds(model: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    model.zero_grad()
    model(x).square().mean().backward()
    return time.perf_counter() - start


def training_step(at: str) -> str:
    """ResNet-50 as it is, repaired, and as antialiased_cnns has it: the same network, unfused."""
    _zoo()  # imports torchvision as it can be imported here
    import antialiased_cnns
    import torchvision

    theirs = antialiased_cnns.resnet50(pretrained=False, filter_size=3)
    plain = torchvision.models.resnet50(weights=None)
    ours = aablur.load_antialiased(copy.deepcopy(plain), theirs.state_dict(), torch.randn(1, 3, SIZE, SIZE))
    models = {"ResNet-50 as it is": plain, "anti-aliased, aablur": ours, "anti-aliased, antialiased_cnns": theirs}
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        step_seconds(model.train(), x)
    for _ in range(STEPS):
        for name, model in models.items():
            times[name].append(step_seconds(model, x))
    lines = ["| training step, float32 | seconds, median of 5 (least) | MB kept for backward |", "|---|---|---|"]
    for name, model in models.items():
        least, median = min(times[name]), statistics.median(times[name])
        lines.append(f"| {name} | {median:.2f} ({least:.2f}) | {saved_bytes(model, x) / 1e6:.0f} |")
    machine = f"{cpu_model()}, {torch.get_num_threads()} threads"
    return "\n".join(lines) + f"\n\n{BATCH} pictures of {SIZE} x {SIZE}, contiguous, {machine}, {at}.\n"


def picture() -> None:
    """docs/audit.png: the audit of the trained network on a photograph."""
    build, _, _ = networks()[TRAINED]
    report = aablur.audit(build(), (crops(1, SIZE) - 0.45) / 0.25)
    report.about |= {"weights": "trained on ImageNet", "input": "a photograph"}
    report.plot(PAGE.with_suffix(".png"))


def main(*names: str) -> None:
    torch.manual_seed(0)
    at = f"torch {torch.__version__}, commit {commit()}"  # before the page is written
    if names != ("step",):
        lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
        x = (crops(1, SIZE) - 0.45) / 0.25
        for name, (build, path, by_hand) in networks().items():
            if names and not any(wanted in name for wanted in names):
                continue
            result = measure(name, build(), path, by_hand, x)
            lines.append("| " + " | ".join(result.cells()) + " |")
            print(lines[-1], flush=True)
        if names:
            return
        fill(PAGE, "repair", "\n".join(lines) + f"\n\nPictures of {SIZE} x {SIZE}, {at}.\n")
        picture()
    step = training_step(at)
    print(step)
    fill(PAGE, "step", step)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--zoo"]:
        table.main(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
