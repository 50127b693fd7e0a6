"""Promise: the benchmark for GPUs runs to its end, leaves its files, and counts bytes and instructions rightly."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks.gpu import model, record
from benchmarks.gpu.providers import COPY, OURS, TRITON
from benchmarks.gpu.rows import HUGE_SHAPE, Row, catalogue

ROOT = Path(__file__).parent.parent


def test_a_dry_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", "forward|NCHW"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.csv")
    found = list(record.read(path))
    bad = [m for m in found if m.status != "ok"]
    assert not bad, bad
    assert {m.provider for m in found} >= {COPY, OURS, "eager NCHW", "compile", "unfused", "no pools"}
    ours = [m for m in found if m.provider == OURS and m.group not in ("host", "network")]
    assert ours and all(m.ms and m.error is not None and m.error < 0.01 for m in ours)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".png", ".png"]


def test_the_catalogue() -> None:
    rows = list(catalogue())
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.input_bytes >= 64 << 20 for row in rows)
    assert any(row.elements > 2**31 for row in rows) and HUGE_SHAPE[0] > 1


def test_minimal_bytes() -> None:
    def row(op: str) -> Row:
        return Row("ResNet-50", op, "forward", "bfloat16", "NCHW", (1, 1, 8, 8))

    assert row("blur_pool2d").minimal_bytes == 2 * (64 + 16)
    assert row("max_blur_pool2d").minimal_bytes == 2 * (64 + 16) + 49 // 4  # 7x7 codes of 2 bits


def test_predictions() -> None:
    """What binds is the largest of what bytes, issue slots, half-rate instructions and shared memory take."""
    row = Row("ResNet-50", "blur_pool2d", "forward", "bfloat16", "channels_last", (64, 64, 112, 112))
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
    row = Row("ResNet-50", "blur_pool2d", "forward", "bfloat16", "channels_last", (64, 64, 112, 112))
    card, key = model.Card("card", 1e15, 100, 1e9), ("cuda", "blur", "nhwc", "bf16", 112)
    times = []
    for blocks in (101, 200):
        found = model.predict(row, OURS, card, {key: model.Count(1000 * blocks / 200, blocks=blocks / row.elements)})
        assert found
        times.append(found.ms)
    assert times[0] == pytest.approx(times[1], rel=1e-3)


@pytest.mark.parametrize(
    ("op", "layout", "dtype", "provider"),
    product(model.OPS, model.LAYOUTS, ("bfloat16", "float32"), (OURS, TRITON)),
)
def test_the_committed_counts_predict(op: tuple[str, str], layout: str, dtype: str, provider: str) -> None:
    row = Row("ResNet-50", *op, dtype, layout, (64, 256, 56, 56))
    assert model.predict(row, provider, model.CARDS[0], model.counted())
