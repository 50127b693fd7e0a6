"""Measure aablur and its baselines on a CPU or an NVIDIA GPU, print the tables, and leave a CSV and plots:
python -m benchmarks. It needs torch alone; photographs as feature maps on a CPU need scikit-image, plots matplotlib."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import aablur

from . import micro
from .devices import MIN_ROUNDS, Device, device_of, keep_freed_memory
from .measure import measure
from .network import NETWORK, run_network
from .providers import COMPILED, COPY, OURS, PROVIDERS, Provider
from .record import RESULTS, WRONG, Measurement, Recorder, machine, read, slug
from .report import line, report, rows_of
from .workloads import catalogue, dry_catalogue, is_default, is_quick, last_level_cache

Job = Callable[[], list[Measurement]]
GPU_SECONDS = 270


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default the GPU, where torch finds one")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few rows: a minute on a CPU, ResNet-50's maps on a GPU")
    size.add_argument("--all", action="store_true", help="also the slow rows left out by default (of a CPU)")
    parser.add_argument("--dry-run", action="store_true", help="tiny maps, on the CPU: it proves the program")
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help="rows whose name matches")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and stop")
    seconds = (
        f"what would begin later is left out, and named; on a GPU {GPU_SECONDS} by default, and 1500 suffice for all"
    )
    parser.add_argument("--seconds", type=float, help=seconds)
    parser.add_argument("--rounds", type=int, default=15, help="samples a provider at most")
    parser.add_argument("--threads", type=int, help="threads of torch: on a CPU 2 by default")
    who = "providers whose name matches, beside aablur and the copy that always take part"
    parser.add_argument("--providers", type=re.compile, metavar="REGEX", help=who)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-network", action="store_true", help="leave the whole network out (of a GPU)")
    keep = "have glibc keep freed memory: no page faults in padded copies, indices, gradients (of a CPU)"
    parser.add_argument("--keep-memory", action="store_true", help=keep)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    again = "measure nothing: print the tables and draw the plots of a results file"
    parser.add_argument("--report", type=Path, metavar="CSV", help=again)
    options = parser.parse_args(argv)
    if options.rounds < MIN_ROUNDS or (options.threads is not None and options.threads < 1):
        parser.error(f"--rounds must be {MIN_ROUNDS} or more, --threads 1 or more")
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cpu":
        options.threads = options.threads or 2
    return options


def chosen_providers(options: argparse.Namespace) -> list[Provider]:
    """The copy, aablur, and of the others those that are asked for."""

    def wanted(name: str) -> bool:
        if name in COMPILED and options.no_compile:
            return False
        return options.providers is None or bool(options.providers.search(name))

    return [p for p in PROVIDERS if p.name in (COPY, OURS) or wanted(p.name)]


def jobs_of(options: argparse.Namespace, device: Device) -> dict[str, Job]:
    """What is asked for, in the order of the run."""
    wanted = (lambda *_: True) if options.all or device.dry else is_quick if options.quick else is_default
    workloads = [w for w in (dry_catalogue if device.dry else catalogue)(device.kind) if wanted(w, device.kind)]
    providers = chosen_providers(options)
    rows: dict[str, Job] = {w.name: partial(measure, w, device, providers) for w in workloads}
    compiled = device.kind == "cpu" and not options.quick and not options.no_compile
    overhead: dict[str, Job] = {"overhead": partial(micro.overhead, device, compiled)}
    if device.kind == "cpu":
        jobs = rows | overhead | {"import": micro.import_time}
    else:
        jobs = overhead | rows
        if not options.no_network and not options.quick:
            jobs |= {f"network/{step}/{way}": partial(run_network, step, way, device) for step, way in NETWORK}
    return {name: job for name, job in jobs.items() if options.only is None or options.only.search(name)}


def run(jobs: dict[str, Job], recorder: Recorder, seconds: float) -> list[str]:
    """Measure row by row: each is in the file before the next begins. Returns those that there was no time for."""
    end, left_out = time.monotonic() + seconds, []
    for number, (name, job) in enumerate(jobs.items(), 1):
        if time.monotonic() > end:
            left_out.append(name)
            continue
        measurements = job()
        recorder.add(measurements)
        for row in rows_of(measurements):
            print(f"[{number}/{len(jobs)}] {line(row)}", flush=True)
    return left_out


def show(measurements: list[Measurement], about: dict[str, str], stem: Path) -> None:
    """Print the tables, and draw the plots beside the CSV."""
    print(*report(measurements, about["device"]), sep="\n", flush=True)
    try:
        from .plots import draw

        for path in draw(measurements, stem, about):
            print(f"wrote {path}")
    except ImportError:
        print("no matplotlib, so no plots: python -m benchmarks --report FILE.csv makes them later")


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    try:
        if options.report:
            show(*read(options.report), options.report.with_suffix(""))
            return 0
        device = device_of(options.device, MIN_ROUNDS if options.dry_run else options.rounds, options.dry_run)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    jobs = jobs_of(options, device)
    if options.list:
        print(*jobs, sep="\n")
        return 0
    if not jobs:
        raise SystemExit(f"no row matches --only {options.only.pattern!r}; see --list")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.keep_memory and not keep_freed_memory():
        raise SystemExit("--keep-memory needs glibc")
    torch.backends.cudnn.allow_tf32 = False  # float32 baselines compute what we compute; matmuls do by default
    about = machine(device.where) | {"freed_memory": "kept" if options.keep_memory else "system"}
    about |= {"device": "dry run"} if device.dry else {}
    print(aablur.info(), flush=True)
    cache = f", {about['threads']} threads, last-level cache {last_level_cache() >> 20} MiB" * (device.kind == "cpu")
    print(f"{about['hardware']}{cache}, {len(jobs)} rows", flush=True)
    is_part = options.quick or options.only or options.providers or options.no_compile or device.dry
    part = "-part" if is_part else ""  # keeps a whole run's results
    part += "-kept-memory" if options.keep_memory else ""
    hardware = "dry-run" if device.dry else slug(about["hardware"])
    stem = options.out / f"{'gpu' if device.kind == 'cuda' else 'cpu'}-{hardware}{part}"
    recorder = Recorder(stem.with_name(f"{stem.name}.csv"), about)
    seconds = options.seconds or (GPU_SECONDS if device.where == "cuda" else float("inf"))
    interrupted, left_out = False, []
    try:
        left_out = run(jobs, recorder, seconds)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: the rows so far", flush=True)
    finally:
        recorder.close()
        show(recorder.measurements, about, stem)
        print(*(f"no time left for {name}" for name in left_out), f"wrote {recorder.path}", sep="\n", flush=True)
    if interrupted:
        return 130  # as a shell reports an interrupt
    if device.kind == "cpu" and not device.dry:
        from .aliasing import draw_aliasing

        print(f"wrote {draw_aliasing(options.out / 'aliasing.png')}")
    wrong = [m for m in recorder.measurements if m.status == WRONG and m.provider.startswith(OURS)]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
