"""The command line: ``python -m aablur COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# name -> (where its class or module is, with `add_arguments(parser)` and `run(args) -> int`; what it does)
COMMANDS = {
    "audit": ("models.commands:Audit", "find every place where a model aliases, and measure how much"),
    "antialias": ("models.commands:Antialias", "repair a model, and show it before and after"),
    "robustness": ("robustness.command", "measure how a classifier's answers change when its images do"),
}


def _info(args: argparse.Namespace) -> int:
    from . import backends

    print(backends.info())
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser, with every command."""
    top = argparse.ArgumentParser("python -m aablur", description="Anti-aliased downsampling for PyTorch.")
    sub = top.add_subparsers(metavar="COMMAND", required=True)
    sub.add_parser("info", help="which backend serves which device here").set_defaults(run=_info)
    for name, (place, purpose) in COMMANDS.items():
        made = sub.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        module, _, attribute = place.partition(":")
        command = importlib.import_module(f"{__package__}.{module}")
        command = getattr(command, attribute) if attribute else command
        command.add_arguments(made)
        made.set_defaults(run=command.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
