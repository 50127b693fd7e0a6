"""Trains and measures every net, and writes docs/paper.md with its figures.

    python -m benchmarks.paper            every data set, net, variant and seed: what is committed
    python -m benchmarks.paper --quick    one seed, few epochs, into build/paper: whether it runs

A net takes one process of one thread; what is done is kept in build/paper, and an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import aablur

from . import figures, tables
from .evidence import configurations, corrupted, evidence
from .nets import NETS
from .sets import RECIPES, load

ROOT = Path(__file__).parent.parent.parent
DONE = ROOT / "build" / "paper"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, in build/paper")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    DONE.mkdir(parents=True, exist_ok=True)
    configs = configurations(args.data, list(NETS), 1 if args.quick else args.seeds, 1 if args.quick else None)
    start = time.perf_counter()
    for data in args.data:
        load(data)
        if RECIPES[data].corrupted:
            corrupted(data, DONE)
    rows, spawn = [], multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, spawn, torch.set_num_threads, (1,)) as pool:
        waiting = [pool.submit(evidence, config, DONE) for config in configs]
        for done in track(as_completed(waiting), "nets", total=len(waiting)):
            rows.append(done.result())
    target = DONE / "page" if args.quick else ROOT / "docs"
    write(rows, args.data, target, time.perf_counter() - start)
    print(f"{target / 'paper.md'}: the tables; {len(rows)} nets in {time.perf_counter() - start:.0f} s")


def write(rows: list[dict[str, Any]], datas: list[str], target: Path, seconds: float) -> None:
    """The page, its figures, and the numbers behind it as CSV."""
    (target / "paper").mkdir(parents=True, exist_ok=True)
    keyed = tables.by_key(rows)
    for draw in (figures.accuracy_against_consistency, figures.curves, figures.learned):
        draw(keyed, datas, target / "paper" / f"{draw.__name__.replace('_', '-')}.png")
    with (target / "paper" / "nets.csv").open("w", newline="") as file:
        columns = ["data", "net", "variant", "augmented", "seed", *tables.COLUMNS, "training seconds", "seconds"]
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda r: [str(r[c]) for c in columns[:5]]))
    results = "\n\n".join(
        f"### {data}, {net}\n\n{tables.table(keyed, data, net)}" for data in datas for net in NETS
    )  # fmt: skip
    page = (Path(__file__).parent / "page.md").read_text()
    known = {
        "RESULTS": results, "CLAIMS": tables.claims(keyed, datas), "AUGMENTED": tables.claims(keyed, datas, True),
        "INSTEAD": tables.instead_of_augmentation(keyed, datas), "LEARNED": tables.learned(keyed, datas),
        "SEEDS": str(len({r["seed"] for r in rows})), "NETS": str(len(rows)),
        "TRAINING": f"{sum(r['seconds'] for r in rows) / 60:.0f}", "WALL": f"{seconds / 60:.0f}",
        "MACHINE": f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}, "
        f"aablur {aablur.__version__}",
    }  # fmt: skip
    for name, text in known.items():
        page = page.replace("{" + name + "}", text)
    (target / "paper.md").write_text(page)


if __name__ == "__main__":
    main()
