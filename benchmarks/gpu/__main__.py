"""Times aablur and its baselines on an NVIDIA GPU, and leaves a CSV and pictures: python -m benchmarks.gpu."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import aablur

from ..record import RESULTS
from . import record
from .judge import CHECKED, error_of, is_right
from .network import NETWORK, run_network
from .providers import COPY, MAX_POOL, OURS, PROVIDERS, Maps, setting, step_of, takes_part
from .record import Measurement, Recorder
from .report import aligned, draw, losses, summary
from .rows import Row, catalogue, dry_catalogue
from .timing import Times, host_microseconds, rotations, time_steps


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ResNet-50's maps alone")
    parser.add_argument("--dry-run", action="store_true", help="tiny maps on the CPU: it proves the program")
    parser.add_argument("--only", type=re.compile, metavar="REGEX", help="rows whose name matches")
    parser.add_argument("--no-network", action="store_true", help="leave the whole network out")
    seconds = "what would begin later is left out, and named; 1500 suffice for all"
    parser.add_argument("--seconds", type=float, default=270, help=seconds)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(argv)


def make_maps(row: Row, device: str) -> Maps:
    x, dy = (torch.randn(s, device=device, dtype=row.dtype) for s in (row.shape, row.out_shape))
    return Maps(x.contiguous(memory_format=row.memory_format), dy.contiguous(memory_format=row.memory_format))


def measure(row: Row, device: str) -> list[Measurement]:
    """All providers of a row: judged, then timed if they are right."""
    count = rotations(row.minimal_bytes, device)
    sets = [make_maps(row, device) for _ in range(count)]
    times: dict[str, Times] = {}
    status: dict[str, str] = {}
    errors: dict[str, float] = {}
    for name in PROVIDERS:
        if not takes_part(name, row, device):
            continue
        try:
            with setting(name):
                if name in CHECKED and row.group != "huge":
                    errors[name] = error_of(row, sets[0], step_of(name, row, sets[0], device))
                    if not is_right(name, row, errors[name]):
                        status[name] = "WRONG"
                        continue
                make: Callable = lambda name=name: [step_of(name, row, maps, device) for maps in sets]  # noqa: E731
                times[name] = time_steps(make, device)
                status[name] = "ok"
        except Exception as failure:  # no memory, no compiler: the others go on
            status[name] = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0]}"[:160]
    copy = times.get(COPY)
    return [measurement(row, n, status[n], times.get(n), copy, errors.get(n)) for n in PROVIDERS if n in status]


def measurement(
    row: Row, name: str, status: str, times: Times | None, copy: Times | None, error: float | None
) -> Measurement:
    size = "x".join(map(str, row.shape))
    about = (row.name, row.group, row.op, row.direction, row.layout, row.dtype_name, size, name, status)
    if times is None:
        return Measurement(*about, error=error)
    moved = 2 * row.input_bytes if name == COPY else row.minimal_bytes
    rate = moved / times.median / 1e6
    of_copy = rate / (2 * row.input_bytes / copy.median / 1e6) if copy else None
    return Measurement(*about, times.median, times.p20, times.p80, times.how, rate, of_copy, error)


def host_times(recorder: Recorder, device: str) -> None:
    """One eager call on a tiny map that needs a gradient, and one that needs none."""
    for needs_gradient in (False, True):
        x = torch.rand(1, 4, 8, 8, device=device).requires_grad_(needs_gradient)
        calls = {
            "max_pool2d alone": lambda x=x: F.max_pool2d(x, 2),
            "blur_pool2d": lambda x=x: aablur.blur_pool2d(x),
            "max_blur_pool2d": lambda x=x: aablur.max_blur_pool2d(x),
        }
        for op, call in calls.items():
            ms = host_microseconds(call, device) / 1e3
            direction = "training" if needs_gradient else "inference"
            provider = MAX_POOL if op == MAX_POOL else OURS
            name = f"host/{op}/{direction}"
            about = (name, "host", op, direction, "NCHW", "float32", "1x4x8x8", provider, "ok")
            recorder.add(Measurement(*about, ms=ms, how="clock"))
            print(f"{name}: {1e3 * ms:.1f} us a call", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    device = "cpu" if options.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; --dry-run runs tiny maps on the CPU")
    torch.backends.cudnn.allow_tf32 = False  # float32 baselines compute what we compute; matmuls do by default
    print(aablur.info(), flush=True)
    rows = list(dry_catalogue() if options.dry_run else catalogue())
    rows = [row for row in rows if options.only is None or options.only.search(row.name)]
    rows = [row for row in rows if row.group == "ResNet-50" or not options.quick]
    is_part = options.only or options.dry_run or options.quick
    stem = options.out / (record.stem_of(device) + "-part" * bool(is_part))
    recorder = Recorder(stem.with_suffix(".csv"), device)
    jobs = [(row.name, partial(measure, row, device)) for row in rows]
    if not options.no_network and not options.quick:
        jobs += [(f"network {step} {way}", partial(run_network, step, way, device)) for step, way in NETWORK]
    end, left_out = time.monotonic() + options.seconds, []
    try:
        host_times(recorder, device)
        for n, (name, job) in enumerate(jobs):
            if time.monotonic() > end:
                left_out.append(name)
                continue
            for found in job():
                recorder.add(found)
                if found.provider == OURS or found.group == "network":
                    of_copy = f", {found.of_copy:.2f} of copy" if found.of_copy else ""
                    speed = f"{found.ms:.4f} ms{of_copy} {found.how}" if found.ms else found.status
                    print(f"[{n + 1}/{len(jobs)}] {name}: {speed}", flush=True)
    except KeyboardInterrupt:
        print("interrupted: the rows so far", flush=True)
    finally:
        recorder.close()
    timed = [m for m in recorder.measurements if m.group not in ("host", "network")]
    print(aligned(summary(timed)))
    for loss in losses(timed):
        print(loss)
    for name in left_out:
        print(f"no time left for {name}")
    print(f"wrote {recorder.path}")
    about = f"{recorder.machine['gpu']}, torch {recorder.machine['torch']}, aablur {recorder.machine['commit']}"
    try:
        for path in draw(timed, stem, f"{about}, {recorder.machine['date']}"):
            print(f"wrote {path}")
    except ImportError:
        print("no matplotlib: no pictures (python -m benchmarks.gpu.draw FILE.csv makes them later)")
    return 1 if any(m.status == "WRONG" and m.provider.startswith("aablur") for m in timed) else 0


if __name__ == "__main__":
    sys.exit(main())
