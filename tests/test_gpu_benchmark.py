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
    """A row that few instructions suffice for takes what its bytes take; one that takes many is bound by them."""
    row = Row("ResNet-50", "blur_pool2d", "forward", "bfloat16", "channels_last", (64, 64, 112, 112))
    card = model.Card("card", 1e12, 1e13)
    memory = model.predict(row, OURS, card, {"blur, bfloat16, channels_last": model.Count(1, 1)})
    assert memory and memory.bound == "memory"
    assert memory.ms == pytest.approx(row.minimal_bytes / 1e9 + 2e-3)
    issue = model.predict(row, OURS, card, {"blur, bfloat16, channels_last": model.Count(100)})
    assert issue and issue.bound == "issue"
    assert issue.ms == pytest.approx(row.elements * 100 / 1e10 + 2e-3)
    alu = model.predict(row, OURS, card, {"blur, bfloat16, channels_last": model.Count(100, 80)})
    assert alu and alu.bound == "alu"
    assert alu.ms == pytest.approx(row.elements * 160 / 1e10 + 2e-3)
    assert model.predict(row, OURS, card, {}) is None


@pytest.mark.parametrize(
    ("op", "layout", "dtype"), product(model.KINDS, ("NCHW", "channels_last"), ("bfloat16", "float32"))
)
def test_triton_is_predicted(op: tuple[str, str], layout: str, dtype: str) -> None:
    """From the committed counts, but for channels whose codes share bytes, which take a kernel more."""
    counts = model.counted()
    row = Row("ResNet-50", *op, dtype, layout, (64, 64, 56, 56))
    assert model.predict(row, TRITON, model.CARDS[0], counts)
    odd = Row("odd", *op, dtype, layout, (64, 62, 57, 57))
    assert (model.predict(odd, TRITON, model.CARDS[0], counts) is None) == (
        op[0] == "max_blur_pool2d" and layout == "channels_last"
    )
