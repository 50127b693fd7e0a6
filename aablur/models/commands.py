"""The subcommands of ``python -m aablur`` that work on models."""

from __future__ import annotations

import argparse

from torch import Tensor, nn

from .audit import Report, audit
from .loading import input_size, load_model, load_picture


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
