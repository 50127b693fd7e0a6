"""Executes launches of the GPU kernels as machine code, with no GPU, and prints what they issue.

`python -m benchmarks.codegen` does all that have a budget, prints them beside it and writes results/codegen-sm90.csv.
`--case OP DTYPE LAYOUT N C [D] H W` does one, and prints it as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from . import interpreter
from .launches import BACKENDS, DTYPES, LAYOUTS, OPS, Launch, count


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codegen", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--case", nargs="+", metavar="OP DTYPE LAYOUT N C [D] H W", help="one launch")
    parser.add_argument("--taps", type=int, default=3, metavar="K")
    parser.add_argument("--per-channel", action="store_true", help="a given filter for each channel")
    parser.add_argument("--stride", type=int, default=2, metavar="S")
    parser.add_argument("--window", type=int, default=2, metavar="W", help="of the max")
    parser.add_argument("--window-padding", type=int, default=0, metavar="P")
    parser.add_argument("--padding-mode", default="reflect", metavar="M")
    parser.add_argument("--backend", default="cuda", choices=BACKENDS)
    parser.add_argument(
        "--profile", action="store_true", help="how often each instruction was issued, to standard error"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="launches whose name contains it")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the counts there")
    parser.add_argument("--update", action="store_true", help="set the budgets to what was counted")
    options = parser.parse_args()
    if options.case:
        if not 6 <= len(options.case) <= 8:
            parser.error("--case: must be OP DTYPE LAYOUT and the sizes of a map, N C [[D] H] W")
        for value, known in zip(options.case, (OPS, DTYPES, LAYOUTS), strict=False):
            if value not in known:
                parser.error(f"--case: {value!r} is none of {', '.join(known)}")
    return options


def main() -> int:
    options = _options()
    environment = interpreter.environment()
    if any(os.environ.get(key) != value for key, value in environment.items()):
        # The package's library and Triton's driver are chosen when they are first imported.
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.codegen", *sys.argv[1:]], environment)
    if not options.case:
        from . import table

        return table.main(options.update, options.csv, options.only)
    op, dtype, layout, *shape = options.case
    launch = Launch(
        op, dtype, layout, tuple(map(int, shape)), options.taps, options.per_channel, options.stride,
        options.window, options.window_padding, options.padding_mode, options.backend,
    )  # fmt: skip
    counted, profile = count(launch, options.profile)
    print(json.dumps(asdict(counted)))
    if options.profile:
        print(profile, file=sys.stderr)
    return 0 if counted.correct is not False else 1


if __name__ == "__main__":
    sys.exit(main())
