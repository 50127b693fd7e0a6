"""Promise: the benchmark runs to its end for either device, leaves its files, and counts bytes and instructions."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks import micro, model
from benchmarks.check import judge
from benchmarks.devices import device_of
from benchmarks.providers import COMPILE, COPY, MAX_POOL, OURS, PROVIDERS, TRITON, takes_part
from benchmarks.record import RESULTS, read
from benchmarks.report import report, rows_of
from benchmarks.workloads import (
    BACKWARD,
    BOTH,
    FORWARD,
    HUGE_SHAPE,
    MAPS,
    OPS,
    PASSES,
    RESNET_POOL,
    TRAINING,
    Workload,
    catalogue,
)

ROOT = Path(__file__).parent.parent
# What an environment with torch and pytest lacks.
WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("rich", "matplotlib", "skimage", "timm", "kornia"))
from benchmarks.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def run(code: tuple[str, ...], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *code, "--dry-run", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def workload(op: str = "blur_pool2d", direction: str = FORWARD, layout: str = "NCHW", **changes: object) -> Workload:
    tiny = Workload("memory", "ResNet-50", op, direction, "bfloat16", layout, (1, 1, 8, 8))
    return replace(tiny, **changes)  # pyright: ignore[reportArgumentType]


def test_a_dry_run_of_a_gpu_needs_torch_alone(tmp_path: Path) -> None:
    only = "overhead|/forward.*NCHW/bfloat16|network/(training/unfused|inference/aablur)"
    done = run(("-c", WITHOUT), "--device", "cuda", "--out", str(tmp_path), "--only", only)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no matplotlib" in done.stdout
    (path,) = tmp_path.iterdir()
    found, about = read(path)
    assert about["device"] == "dry run"
    bad = [m for m in found if m.status != "ok"]
    assert not bad, bad
    assert {m.provider for m in found} >= {COPY, OURS, "eager NCHW", "compile", "conv with zero padding", "unfused"}
    ours = [m for m in found if m.provider == OURS and m.regime == "memory"]
    assert ours and all(m.ms and m.relative_error is not None and m.relative_error < 0.01 for m in ours)
    assert {m.saved_of_input is None for m in ours if m.direction == TRAINING} == {False}


def test_a_dry_run_of_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    only = "max_blur_pool2d/forward.backward/.*/float32|overhead"
    without = ("--providers", "eager|compile", "--no-compile")
    done = run(("-m", "benchmarks"), "--device", "cpu", *without, "--out", str(tmp_path), "--only", only)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".png", ".png"]
    found, _ = read(next(tmp_path.glob("*.csv")))
    rows = [row for row in rows_of(found) if row[OURS].regime == "memory"]
    assert len(rows) == 4 and all({*row} == {COPY, OURS, "eager NCHW", "eager channels_last"} for row in rows)
    assert all(row[OURS].saved_bytes is not None and row[OURS].grad_relative_error is not None for row in rows)


def test_host_time_of_graphs_and_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled calls stand beside eager ones, one by one and many in a graph, and the price of a node in Python."""
    monkeypatch.setattr(torch, "compile", lambda call, **options: call)
    found = micro.overhead(device_of("cpu", rounds=3, dry=True), compiled=True)
    rows = {row[OURS].name: set(row) for row in rows_of(found)}
    ours = {OURS, MAX_POOL, COMPILE, micro.COMPILE_MAX_POOL}
    for op, direction in product(("blur_pool2d", "max_blur_pool2d"), (micro.INFERENCE, FORWARD, BOTH)):
        nodes = set() if direction == micro.INFERENCE else {micro.NODE, micro.CPP_NODE}
        assert rows.pop(f"overhead/{op}/{direction}") == ours | nodes
        assert rows.pop(f"overhead/{op}/{direction}/{micro.MANY} calls") == ours
    assert not rows and all(m.ms and m.ms > 0 for m in found)
    (table,) = (text for text in report(found, "cpu") if text.startswith("Host time"))
    assert len(table.splitlines()) == 14 and micro.CPP_NODE in table


@pytest.mark.parametrize("path", sorted(RESULTS.glob("[cg]pu-*.csv")), ids=lambda p: p.stem)
def test_committed_results_are_read(path: Path) -> None:
    found, about = read(path)
    device, how = {"cpu": ("cpu", {"clock"}), "gpu": ("cuda", {"clock", "graph"})}[path.name[:3]]
    assert about["device"] == device and {m.how for m in found} == how
    said = "\n".join(report(found, device))
    assert "Geometric means" in said
    assert (" met" in said) == ("import aablur, after torch" in said) == (device == "cpu")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must be a results file.*no column.*floor_ratio"):
        read(RESULTS / "robustness.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match="has no rows"):
        read(tmp_path / "empty.csv")


def test_devices() -> None:
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'tpu'"):
        device_of("tpu")
    assert device_of("cuda", dry=True).where == "cpu"
    assert len({who.name for who in PROVIDERS}) == len(PROVIDERS)
    cpu = [who.name for who in PROVIDERS if takes_part(who, workload(), device_of("cpu"))]
    assert cpu == [COPY, OURS, "eager NCHW", "eager channels_last", "compile"]


@pytest.mark.parametrize("direction", [FORWARD, TRAINING, BACKWARD, BOTH])
def test_the_gate(direction: str) -> None:
    """What is right passes, and what is a little off, or of a wrong dtype, does not."""
    device, row = device_of("cpu", dry=True), workload("max_blur_pool2d", direction, dtype_name="float32")
    maps, who = device.maps(row, 0), next(who for who in PROVIDERS if who.name == OURS)
    call = who.build(row, "cpu")
    assert judge(who, call, row, maps, device).ok
    assert not judge(who, lambda x: call(x) * 1.0001, row, maps, device).ok
    assert direction in (BACKWARD, BOTH) or not judge(who, lambda x: call(x).double(), row, maps, device).ok
    assert torch.equal(maps.x, device.maps(row, 0).x), "the judge and the reference see the same maps"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_catalogue(device: str) -> None:
    rows = list(catalogue(device, 32 << 20))
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.input_bytes >= 64 << 20 for row in rows if row.regime == "memory")
    assert any(row.elements > 2**31 for row in rows) == (device == "cuda") and HUGE_SHAPE[0] > 1
    assert {(row.op, row.direction) for row in rows} == {(op, p) for op in OPS for p in PASSES[device][op]}
    maps = [m for group in MAPS.values() for m in group]
    assert len(set(maps)) == len(maps)


def test_minimal_bytes() -> None:
    maps, codes = 2 * (64 + 16), 49 // 4  # 7x7 codes of 2 bits
    assert workload().minimal_bytes == workload("max_blur_pool2d").minimal_bytes == maps
    assert workload("max_blur_pool2d", TRAINING).minimal_bytes == maps + codes
    assert workload("max_blur_pool2d", BACKWARD).minimal_bytes == maps + codes
    assert workload("max_blur_pool2d", BOTH).minimal_bytes == 2 * (maps + codes)


def test_predictions() -> None:
    """What binds is the largest of what bytes, issue slots, half-rate instructions and shared memory take."""
    row = workload(layout="channels_last", shape=(64, 64, 112, 112))
    card, key = model.Card("card", 1e12, 100, 1e9), ("cuda", "blur", "nhwc", "bf16", 112)
    efficiency, blocks = model.EFFICIENCY, 100 / row.elements  # one block an SM

    def predicted(**count: float) -> model.Prediction:
        found = model.predict(row, OURS, card, {key: model.Count(blocks=blocks, **count)})
        assert found
        return found

    assert predicted(slots=1).bound == "memory"
    assert predicted(slots=1).ms == pytest.approx(row.minimal_bytes / 1e9 + 2e-3)
    assert predicted(slots=1000).bound == "issue"
    assert predicted(slots=1000).ms == pytest.approx(row.elements * 1e6 / (12.8e12 * efficiency) + 2e-3)
    assert predicted(slots=1000, half_rate=800).bound == "half rate"
    assert predicted(slots=1000, half_rate=800).ms == pytest.approx(row.elements * 8e5 / (6.4e12 * efficiency) + 2e-3)
    assert predicted(slots=1, wavefronts=10).bound == "shared memory"
    assert predicted(slots=1, wavefronts=10).ms == pytest.approx(row.elements * 10 / 1e8 + 2e-3)
    assert model.predict(row, OURS, card, {}) is None


def test_idle_multiprocessors_are_predicted() -> None:
    """A block more than there are SMs takes as long as twice as many."""
    row = workload(layout="channels_last", shape=(64, 64, 112, 112))
    card, key = model.Card("card", 1e15, 100, 1e9), ("cuda", "blur", "nhwc", "bf16", 112)
    times = []
    for blocks in (101, 200):
        found = model.predict(row, OURS, card, {key: model.Count(1000 * blocks / 200, blocks=blocks / row.elements)})
        assert found
        times.append(found.ms)
    assert times[0] == pytest.approx(times[1], rel=1e-3)


@pytest.mark.parametrize(
    ("op", "layout", "dtype", "provider"),
    list(product(model.OPS, model.LAYOUTS, ("bfloat16", "float32"), (OURS, TRITON))),
)
def test_the_committed_counts_predict(op: tuple[str, str], layout: str, dtype: str, provider: str) -> None:
    """All but Triton's of ResNet's pool, which have no budget."""
    row = workload(*op, layout, dtype_name=dtype, shape=(64, 256, 56, 56))
    predicted = model.predict(row, provider, model.CARDS[0], model.counted())
    assert (predicted is None) == (provider == TRITON and op[0] == RESNET_POOL)
