"""The subcommands of ``python -m aablur`` that work on models."""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor, nn

from ..files import write_text
from ..geometry import PADDING_MODES
from .antialias import WHERE, antialias, repairs
from .audit import Report, audit
from .loading import input_size, load_model, load_picture
from .show import text_table


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="torchvision:NAME, timm:NAME, or package.module:NAME of one's own")
    parser.add_argument("--checkpoint", help="a file with the model's state_dict")
    parser.add_argument("--pretrained", action="store_true", help="the library's weights, which it may download")
    parser.add_argument("--input", metavar="PICTURE", help="default: noise with the spectrum of a photograph")
    parser.add_argument("--size", type=int, help="side of the picture in pixels; default: what the model asks for")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", nargs="?", const="-", help="JSON in place of the table, or to a file")
    parser.add_argument("--plot", metavar="FILE", help="a picture: bars a place, heat maps by shift")


def model_and_input(args: argparse.Namespace) -> tuple[nn.Module, Tensor | None]:
    model = load_model(args.model, args.checkpoint, args.pretrained)
    if args.input is not None:
        return model, load_picture(args.input, args.size or input_size(model))
    if args.size is not None:
        from .example import picture_noise

        return model, picture_noise((1, 3, args.size, args.size))
    return model, None


def show_report(report: Report, args: argparse.Namespace) -> None:
    if args.json == "-":
        print(report.to_json())
    else:
        print(report)
        if args.json is not None:
            report.to_json(args.json)
    if args.plot is not None:
        report.plot(args.plot)


class Audit:
    """Where does a model alias, and how much?"""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_model_arguments(parser)
        add_report_arguments(parser)
        parser.add_argument("--shift", type=int, default=1, help="pixels, for the equivariance error (default 1)")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        model, x = model_and_input(args)
        show_report(audit(model, x, shift=args.shift), args)
        return 0


class Antialias:
    """Repair a model, and audit it before and after."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_model_arguments(parser)
        add_report_arguments(parser)
        parser.add_argument("--taps", type=int, default=3, help="size of the filters (default 3)")
        parser.add_argument("--layers", nargs="+", default=["all"], help="all, pool, or names and patterns of sites")
        parser.add_argument("--strength", type=float, default=1.0, help="from 0 (as it was) to 1 (default)")
        parser.add_argument("--where", choices=WHERE, default=WHERE[0])
        parser.add_argument("--exact", action="store_true", help="patches by the layer at every pixel, then blur pool")
        parser.add_argument("--padding-mode", choices=PADDING_MODES, default="reflect")
        parser.add_argument("--output", metavar="FILE", help="the repaired model as a torch.export program (.pt2)")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        model, x = model_and_input(args)
        before = audit(model, x)
        layers = args.layers[0] if args.layers in (["all"], ["pool"]) else args.layers
        antialias(
            model, before.example_input, taps=args.taps, layers=layers, strength=args.strength, where=args.where,
            exact=args.exact, padding_mode=args.padding_mode,
        )  # fmt: skip
        after = audit(model, before.example_input)
        done = [{"name": r.name, "kind": r.kind, "done": r.done, "how": r.how} for r in repairs(model)]
        text = json.dumps({"before": before.rows(), "repairs": done, "after": after.rows()}, indent=1)
        if args.json == "-":
            print(text)
        else:
            rows = [[r["name"], r["kind"], "yes" if r["done"] else "no", r["how"]] for r in done]
            print(before, text_table(("where", "what", "repaired", "how"), rows, "Repairs"), after, sep="\n")
        if args.json not in (None, "-"):
            write_text(args.json, text + "\n")
        if args.plot is not None:
            after.plot(args.plot)
        if args.output is not None:
            torch.export.save(torch.export.export(model, before.example_input), args.output)
        return 0
