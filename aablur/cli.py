"""The command line: ``aablur COMMAND``, or ``python -m aablur COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence

from .version import __version__

# name -> (where its class or module is, with `add_arguments(parser)` and `run(args) -> int`; what it does)
COMMANDS = {
    "check": ("selfcheck.run", "whether aablur is right on this machine, and how fast: to run first"),
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
    top = argparse.ArgumentParser("aablur", description="Anti-aliased downsampling for PyTorch.")
    top.add_argument("--version", action="version", version=f"aablur {__version__}")
    top.add_argument("--traceback", action="store_true", help="of an error, show where it was raised")
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


_MODEL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _told_apart(argv: Sequence[str]) -> list[str]:
    """The arguments, with --json=- for a --json that a model follows: argparse would take the model for its file."""
    following = [*argv[1:], ""]
    return ["--json=-" if a == "--json" and _MODEL.match(b) else a for a, b in zip(argv, following, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. What goes wrong is one line on standard error, and 2; an interrupt 130."""
    args = None
    if os.getcwd() not in sys.path:  # for models of one's own; python -m adds it, a script does not
        sys.path.append(os.getcwd())
    try:
        args = parser().parse_args(_told_apart(sys.argv[1:] if argv is None else argv))
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # of any kind, as models are anyone's
        if args is not None and args.traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
