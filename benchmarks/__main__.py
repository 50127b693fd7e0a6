"""Measure, print the tables, and leave a CSV and figures: python -m benchmarks."""

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import aablur

from . import micro
from .aliasing import draw_aliasing
from .bars import micro_outcomes, outcomes, rows_of
from .measure import Settings, measure
from .plots import draw
from .providers import OURS
from .record import OK, RESULTS, Measurement, Recorder, cpu_model, slug
from .report import CAPTION, WIDTH, line, outcome_table, quietness, workload_tables
from .timing import MIN_ROUNDS, keep_freed_memory
from .workloads import catalogue, is_default, is_quick, last_level_cache


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    device = "cuda has options of its own: --device cuda --help. By default the GPU, where torch finds one"
    parser.add_argument("--device", choices=("cuda", "cpu"), help=device)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few rows: a minute")
    size.add_argument("--all", action="store_true", help="also the slow rows left out by default")
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help="rows whose name matches")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    parser.add_argument("--rounds", type=int, default=15, help="samples a provider at most")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    keep = "have glibc keep freed memory: no page faults in padded copies, indices, gradients"
    parser.add_argument("--keep-memory", action="store_true", help=keep)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(argv)
    if options.rounds < MIN_ROUNDS or options.threads < 1:
        parser.error(f"--rounds must be {MIN_ROUNDS} or more, --threads 1 or more")
    return options


Job = Callable[[], list[Measurement]]


def chosen(options: argparse.Namespace) -> dict[str, Job]:
    """The rows asked for, in catalogue order."""
    wanted, settings = is_quick if options.quick else is_default, Settings(options.rounds, not options.no_compile)
    jobs: dict[str, Job] = {w.name: partial(measure, w, settings) for w in catalogue() if options.all or wanted(w)}
    jobs |= {"overhead": partial(micro.overhead, options.rounds), "import": micro.import_time}
    return {name: job for name, job in jobs.items() if options.only is None or options.only.search(name)}


def run(jobs: dict[str, Job], recorder: Recorder) -> None:
    """Measure every row; each is in the file before the next begins."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    text = TextColumn("{task.description}")
    console = Console(stderr=True)
    with Progress(*columns, text, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(jobs))
        for name, job in jobs.items():
            progress.update(task, description=name)
            measurements = job()
            recorder.add(measurements)
            if not console.is_terminal:
                for row in rows_of(measurements):
                    console.print(line(row), highlight=False, soft_wrap=True)
            progress.advance(task)


def report(recorder: Recorder, console: Console) -> int:
    """Print the tables, draw the figures, name the files; the number of wrong rows."""
    measurements = recorder.measurements
    for table in workload_tables(measurements):
        console.print(table)
    if any(m.regime in ("memory", "cache") for m in measurements):
        console.print(CAPTION, highlight=False)
        console.print()
    title = "Geometric means over the ResNet-50 maps, and the bars"
    if results := list(outcomes(measurements)):
        names = ("op", "pass", "layout", "dtype", "regime")
        console.print(outcome_table(results, title, names))
    title = "A call on a tiny input, the import, and the bars"
    if results := list(micro_outcomes(measurements)):
        console.print(outcome_table(results, title, ("of", "what", "pass")))
    if warning := quietness(measurements):
        console.print(f"[bold yellow]{warning}[/]", highlight=False)
    stem = recorder.path.with_suffix("")
    paths = [recorder.path, *draw(measurements, stem, recorder.machine)]
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    wrong = [row for row in rows_of(measurements) if OURS in row and row[OURS].status != OK]
    for row in wrong:
        m = row[OURS]
        console.print(f"[bold red]{m.status}[/] {m.name}", highlight=False, soft_wrap=True)
    return len(wrong)


def device_of(argv: list[str]) -> tuple[str, list[str]]:
    """What is measured, by default the GPU where torch finds one; and the arguments of its program."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--device", choices=("cuda", "cpu"))
    found, rest = first.parse_known_args(argv)
    return found.device or ("cuda" if torch.cuda.is_available() else "cpu"), rest


def main() -> int:
    device, argv = device_of(sys.argv[1:])
    if device == "cuda":
        from .gpu.__main__ import main as measure_gpu

        return measure_gpu(argv)
    options = arguments(argv)
    jobs = chosen(options)
    if options.list:
        print(*jobs, sep="\n")
        return 0
    if not jobs:
        raise SystemExit(f"no row matches --only {options.only.pattern!r}; see --list")
    torch.set_num_threads(options.threads)
    if options.keep_memory and not keep_freed_memory():
        raise SystemExit("--keep-memory needs glibc")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(str(aablur.info()), highlight=False)
    console.print(
        f"{cpu_model()}, {options.threads} threads, last-level cache {last_level_cache() >> 20} MiB, {len(jobs)} rows",
        highlight=False,
    )
    part = "-part" if options.quick or options.only else ""  # keeps a whole run's results
    part += "-kept-memory" if options.keep_memory else ""
    path = options.out / f"cpu-{slug(cpu_model())}{part}.csv"
    recorder = Recorder(path, {"freed_memory": "kept" if options.keep_memory else "system"})
    wrong, interrupted = 0, False
    try:
        run(jobs, recorder)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: the rows so far")
    finally:
        recorder.close()
        wrong = report(recorder, console)
    if interrupted:
        return 130  # as a shell reports an interrupt
    console.print(f"wrote {draw_aliasing(options.out / 'aliasing.png')}", soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
