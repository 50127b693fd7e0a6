"""The subcommands of ``python -m aablur`` that work on models."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..files import write_text
from ..geometry import PADDING_MODES
from .antialias import WHERE, antialias, repairs
from .audit import Report, audit
from .example import NOISE, input_shape, picture_noise
from .loading import load_model, load_picture, warn_if_random, weights_named
from .show import text_table


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: a whole number from ``least`` on."""

    def number(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return number


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="torchvision:NAME, timm:NAME, or package.module:NAME of one's own")
    parser.add_argument("--checkpoint", help="a file with the model's state_dict")
    parser.add_argument("--pretrained", action="store_true", help="the library's weights, which it may download")
    parser.add_argument("--input", metavar="PICTURE", help="default: noise with the spectrum of a photograph")
    parser.add_argument(
        "--size", type=at_least(1), metavar="N", help="side of the picture in pixels; default: what the model asks for"
    )


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="JSON in place of the table, or to a file")
    parser.add_argument("--plot", metavar="FILE", help="a picture: bars a place, heat maps by shift")
    parser.add_argument("--no-heatmaps", action="store_true", help="leave them out: they take 82 runs of the model")


def model_and_input(args: argparse.Namespace) -> tuple[nn.Module, Tensor, dict[str, str]]:
    """The model, its input, and where its weights and that come from."""
    model = load_model(args.model, args.checkpoint, args.pretrained)
    weights = weights_named(args.model, args.checkpoint, args.pretrained)
    warn_if_random(args.model, weights)
    channels, height, width = input_shape(model)
    size = (args.size or height, args.size or width)
    about = {"weights": weights, "input": args.input or NOISE}
    if args.input is not None:
        return model, load_picture(args.input, size, channels), about
    parameter = next(model.parameters(), torch.empty(0))
    return model, picture_noise((1, channels, *size), parameter.device, parameter.dtype), about


def show_report(report: Report, args: argparse.Namespace) -> None:
    if args.json == "-":
        print(report.to_json())
    else:
        print(report)
        if args.json is not None:
            report.to_json(args.json)
    if args.plot is not None:
        report.plot(args.plot, heatmaps=not args.no_heatmaps)


class Audit:
    """Where does a model alias, and how much?"""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_model_arguments(parser)
        add_report_arguments(parser)
        parser.add_argument(
            "--shift", type=at_least(1), default=1, metavar="N", help="pixels, for the equivariance error (default 1)"
        )

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        model, x, about = model_and_input(args)
        show_report(replace(audit(model, x, shift=args.shift), about=about), args)
        return 0


def _exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    """For batches of any size; of the example's, with a warning, where the model's forward fixes it."""
    sizes = {0: torch.export.Dim("batch")}
    try:  # a batch of one would be taken for a constant
        return torch.export.export(model, (x.repeat(2, 1, 1, 1),), dynamic_shapes=(sizes,))
    except Exception as error:  # whatever the export meets in a model that wants one size
        reason = str(error).strip().splitlines()[0]
        warnings.warn(f"antialias: the program takes batches of {len(x)} alone: {reason}", stacklevel=2)
        return torch.export.export(model, (x,))


class Antialias:
    """Repair a model, and audit it before and after."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_model_arguments(parser)
        add_report_arguments(parser)
        parser.add_argument(
            "--taps", type=int, help="size of the filters (default: by the stride, 3 for a stride of 2)"
        )
        parser.add_argument("--layers", nargs="+", default=["all"], help="all, pool, or names and patterns of sites")
        parser.add_argument("--strength", type=float, default=1.0, help="from 0 (as it was) to 1 (default)")
        parser.add_argument("--where", choices=WHERE, default=WHERE[0])
        parser.add_argument("--exact", action="store_true", help="patches by the layer at every pixel, then blur pool")
        parser.add_argument("--padding-mode", choices=PADDING_MODES, default="reflect")
        parser.add_argument("--output", metavar="FILE", help="the repaired model as a torch.export program (.pt2)")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        model, x, about = model_and_input(args)
        before = replace(audit(model, x), about=about)
        layers = args.layers[0] if args.layers in (["all"], ["pool"]) else args.layers
        antialias(
            model, before.example_input, taps=args.taps, layers=layers, strength=args.strength, where=args.where,
            exact=args.exact, padding_mode=args.padding_mode,
        )  # fmt: skip
        after = replace(audit(model, before.example_input), about=about)
        done = [{"name": r.name, "kind": r.kind, "done": r.done, "how": r.how} for r in repairs(model)]
        text = json.dumps({**about, "before": before.rows(), "repairs": done, "after": after.rows()}, indent=1)
        if args.json == "-":
            print(text)
        else:
            rows = [[r["name"], r["kind"], "yes" if r["done"] else "no", r["how"]] for r in done]
            print(before, text_table(("where", "what", "repaired", "how"), rows, "Repairs"), after, sep="\n")
        if args.json not in (None, "-"):
            write_text(args.json, text + "\n")
        if args.plot is not None:
            after.plot(args.plot, heatmaps=not args.no_heatmaps)
        if args.output is not None:
            torch.export.save(_exported(model, x), args.output)
        return 0
