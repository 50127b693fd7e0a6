"""``python -m aablur robustness MODEL DATA``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..files import remove
from ..models.commands import at_least
from ..models.example import input_shape, picture_noise
from ..models.loading import MEAN, STD, load_model, warn_if_random, weights_named
from ..models.tape import initialise
from .batches import Source
from .data import BUNDLED, ImageFolder, WithChannels
from .extras import require
from .layers import layers
from .report import report
from .result import Result, write_csv
from .run import measure
from .shifts import PADDINGS
from .state import state_path
from .statistics import Statistic
from .suites import STANDARD, SUITES, suite

AMP = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help="torchvision:NAME, timm:NAME, or package.module:NAME of one's own; @FILE adds a checkpoint")
    add("data", help=f"a folder with a subfolder a class, or one of {', '.join(BUNDLED)}")
    add("--compare", nargs="+", default=[], metavar="MODEL", help="more models, side by side with the first")
    add("--pretrained", action="store_true", help="the libraries' own weights, which they may download")
    add("--measure", nargs="+", choices=(*SUITES, "all"), default=list(STANDARD), help="default: %(default)s")
    add("--layers", action="store_true", help="also maps of where equivariance is lost inside the models")
    add(
        "--size",
        type=at_least(1),
        metavar="N",
        help="side of what the model is given; default: what the model or the data ask for",
    )
    add("--range", type=at_least(0), metavar="N", help="of the shifts, in pixels (default 32; digits 2, mnist5k 6)")
    add("--padding", choices=PADDINGS, help="where shifted pixels come from (default crop; digits, mnist5k zeros)")
    add("--mean", type=float, nargs="+", help="of normalisation; default: the model's, or ImageNet's for torchvision")
    add("--std", type=float, nargs="+")
    add("--channels", type=int, choices=(1, 3), help="3 repeats a grey image; default: what the model takes")
    add("--limit", type=at_least(1), metavar="N", help="measure N images at most, spread evenly over the data")
    add("--seed", type=at_least(0), metavar="N", default=0)
    add("--device", help="cpu, cuda, ... (default: cuda where there is one; one a process under torchrun)")
    add("--amp", choices=tuple(AMP), default="none", help="autocast (default %(default)s)")
    add("--channels-last", action="store_true", help="run in channels_last memory format")
    add("--batch-size", type=at_least(1), metavar="N", default=32)
    add("--images-per-forward", type=at_least(1), metavar="N", help="default: what suits the device")
    add("--workers", type=at_least(0), metavar="N", default=0, help="processes that read images")
    add("--out", type=Path, default=Path("robustness"), help="folder of report.html, results.csv, a JSON a model")
    add("--fresh", action="store_true", help="begin anew, where an interrupted run left its state in --out")


def run(args: argparse.Namespace) -> int:
    with _processes(args) as rank:
        specs = [args.model, *args.compare]
        names = _names(specs)
        args.out.mkdir(parents=True, exist_ok=True)
        world = dist.get_world_size() if dist.is_initialized() else 1
        states = [state_path(args.out / f"{name}.state.json", rank, world) for name in names]
        for state in states if args.fresh else ():
            remove(state)
        results = []
        for spec, name in zip(specs, names, strict=True):
            results.append(_one(args, spec, name, rank))
            if rank == 0:
                _write(args.out, results)
            if not results[-1].complete:
                break
        else:  # until all are written, each can be taken up again
            for state in states:
                remove(state)
        if rank == 0:
            _show(results)
            print(f"{args.out / 'report.html'}: tables and figures; results.csv and *.json beside it: the numbers")
        return 0 if all(r.complete for r in results) else 130


def _one(args: argparse.Namespace, spec: str, name: str, rank: int) -> Result:
    """Measures one model, or goes on from the state beside the results."""
    named, _, checkpoint = spec.partition("@")
    model = load_model(named, checkpoint or None, args.pretrained)
    weights = weights_named(named, checkpoint or None, args.pretrained)
    if rank == 0:
        warn_if_random(spec, weights)
    data, size, range_, padding = _data(args, model)
    mean, std = _normalisation(args, named, model)
    initialise(model, picture_noise((1, args.channels or input_shape(model)[0], size, size)))
    result = measure(
        model, data, suite(SUITES if "all" in args.measure else args.measure, range_, padding), name=name, size=size,
        mean=mean, std=std, device=args.device, channels_last=args.channels_last, amp=AMP[args.amp],
        batch_size=args.batch_size, images_per_forward=args.images_per_forward, workers=args.workers,
        limit=args.limit, seed=args.seed, state=args.out / f"{name}.state.json",
    )  # fmt: skip
    if args.layers and result.images and rank == 0:
        result = replace(result, layers=_layers(args.device, model, data, size, mean, std))
    return replace(result, settings={"weights": weights, "data": args.data, **result.settings})


def _layers(device: Any, model: nn.Module, data: Any, size: int, mean: Any, std: Any) -> dict[str, Any]:
    """Maps of the first images that can be read."""
    images = next(iter(Source(data, 4, 0, None, 0, 1))).images[..., :size, :size].to(device).float() / 255
    if mean is not None:
        centre, spread = (torch.tensor(values).to(images).view(-1, 1, 1) for values in (mean, std))
        images = (images - centre) / spread
    return layers(model.to(device), images)


def _data(args: argparse.Namespace, model: nn.Module) -> tuple[Any, int, int, str]:
    """The data set, the model's input size, and the range and padding of the shifts."""
    bundled = BUNDLED.get(args.data)
    range_ = args.range if args.range is not None else bundled.range if bundled else 32
    padding = args.padding or (bundled.padding if bundled else "crop")
    context = range_ if padding == "crop" else 0
    size = args.size or (bundled.size if bundled and bundled.size else input_shape(model)[-1])
    if bundled is None:
        data: Any = ImageFolder(args.data, size + context)
    elif bundled.size is None:
        data = bundled.load(size + context)
    else:
        data = bundled.load()
        size = min(size, bundled.size - context)
    channels = args.channels or input_shape(model)[0]
    return (WithChannels(data, channels) if channels in (1, 3) else data), size, range_, padding


def _normalisation(args: argparse.Namespace, spec: str, model: nn.Module) -> tuple[Any, Any]:
    if args.mean is not None or args.std is not None:
        return args.mean, args.std
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    if spec.startswith("timm:") and "mean" in cfg:
        return list(cfg["mean"]), list(cfg["std"])
    return (MEAN, STD) if spec.startswith("torchvision:") else (None, None)


def _names(specs: list[str]) -> list[str]:
    """Names for columns and files, told apart by number where they are alike."""
    parts = [spec.removeprefix("torchvision:").removeprefix("timm:").partition("@") for spec in specs]
    plain = [re.sub(r"[^\w.-]+", "_", model + at + Path(file).stem) for model, at, file in parts]
    return [n if plain.count(n) == 1 else f"{n}-{plain[: i + 1].count(n)}" for i, n in enumerate(plain)]


def _write(out: Path, results: list[Result]) -> None:
    for result in results:
        result.to_json(out / f"{result.model}.json")
    write_csv(results, out / "results.csv")
    report(results, out / "report.html", "Robustness: " + ", ".join(r.model for r in results))


def _show(results: list[Result]) -> None:
    """The table of single values in the terminal."""
    table = require("rich.table", "the table").Table(
        title="Means over images +- standard errors, %", title_justify="left"
    )
    for heading in ("perturbation", "statistic", *(r.model for r in results)):
        table.add_column(heading, justify="left" if heading in ("perturbation", "statistic") else "right")
    keys = dict.fromkeys(
        (row["perturbation"], row["statistic"]) for r in results for row in r.rows() if not row["view"]
    )
    for perturbation, statistic in keys:
        found = [r.measurements.get(perturbation) for r in results]
        cells = [m.values[Statistic(statistic).value][0] if m else None for m in found]
        shown = [f"{100 * c.mean:.2f} +- {100 * c.standard_error:.2f}" if c else "" for c in cells]
        table.add_row(perturbation, statistic, *shown)
    require("rich.console", "the table").Console(width=None if sys.stdout.isatty() else 160).print(table)
    for r in results:
        print(f"{r.model}: weights: {r.settings['weights']}; data: {r.settings['data']}, {r.images} images")
        for i, reason in list(r.skipped.items())[:5]:
            print(f"{r.model}: image {i} could not be read: {reason}", file=sys.stderr)


@contextmanager
def _processes(args: argparse.Namespace) -> Iterator[int]:
    """Joins the group that torchrun made, if one did; gives the rank."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if args.device is None:
        args.device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or dist.is_initialized():
        yield dist.get_rank() if dist.is_initialized() else 0
        return
    cuda = torch.device(args.device).type == "cuda"
    if cuda:
        torch.cuda.set_device(torch.device(args.device))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()
