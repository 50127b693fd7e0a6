"""Promise: the table of models by other people says what was measured, and an exception is a row's finding."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.zoo import catalogue, examine, table
from benchmarks.zoo.catalogue import FAMILIES, Family
from benchmarks.zoo.examine import Row


class Raises(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore
        if x.shape[-1] != 96:
            raise RuntimeError("96 wide, please\nmore")
        return super().forward(x)


MODELS: dict[str, Any] = {
    "plain": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)),
    "one size": lambda: Raises(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()),
    "dead": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Threshold(1e9, 1.0)),
    "never": lambda: nn.Conv2d(4, 4, 3),
}  # fmt: skip
FAMILY = Family("small", "torch", {name: {} for name in MODELS}, lambda name: MODELS[name]())


def test_rows() -> None:
    row = examine.examine(FAMILY, "plain")
    assert (row.status, row.places, row.repaired, row.sizes, row.shapes_kept, row.equal) == ("ok", 2, 2, 5, 5, 5)
    assert row.export == "same" and row.error < 1e-5 and not row.left
    row = examine.examine(FAMILY, "one size")
    assert (row.status, row.sizes, row.equal) == ("ok", 2, 2)
    assert row.refused.startswith("97x97: RuntimeError: 96 wide, please; 75x111: ")
    assert examine.examine(FAMILY, "dead").status == "plain model: ValueError: its outputs hardly depend on its input"
    assert examine.examine(FAMILY, "never").status.startswith("plain model: RuntimeError: Given groups=1")


def test_a_model_that_takes_too_long_is_a_row() -> None:
    family = replace(FAMILY, seconds=0.001)
    assert "OutOfTime: more than 0.001 seconds" in examine.examine(family, "plain").status


def test_differences() -> None:
    x = torch.tensor([1.0, 2.0])
    assert examine.difference([x], [x]) == 0 and examine.difference([x + 0.2], [x]) == pytest.approx(0.1)
    assert examine.difference([x * torch.nan], [x]) == float("inf")


def test_boxes_that_overlap_are_dropped() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30.0]])
    assert catalogue._nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5).tolist() == [1, 2]
    assert catalogue._nms(boxes[:0], torch.empty(0), 0.5).tolist() == []


def test_cells() -> None:
    name = FAMILIES[0].name
    rows = [
        Row(name, "a", "ok", 5, 3, 5, 5, 4, 0.25, "same", "index, for which there is no repair: x.y, z; no: w"),
        Row(name, "b", "antialias: ValueError: a|b"),
        Row(name, "c", "ok", 1, 1, 2, 2, 2, 0.0, "nor does the plain model: X: y"),
    ]
    assert table.cells(FAMILIES[0], rows) == (
        name, "3", "6", "4", "7 of 7", "6 of 7 (2e-01)", "1 of 1",
        "2 index, for which there is no repair; 1 no; `b`: antialias: ValueError: a\\|b",
    )  # fmt: skip


def test_the_page_is_made_of_the_file(tmp_path: Path) -> None:
    row, path = Row(FAMILIES[0].name, next(iter(FAMILIES[0].models)), places=3, error=1e-7), tmp_path / "zoo.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*asdict(row), "torch", "commit"])
        writer.writeheader()
        writer.writerow(asdict(row) | {"torch": "2.13.0", "commit": "abc"})
    assert table.read(path) == [row]
    assert f"| {FAMILIES[0].name} | 1 | 3 |" in table.page(path)
    if table.PATH.exists():
        assert table.page(table.PATH) in table.PAGE.read_text()


def test_a_run_goes_on_in_a_file_of_its_own_columns_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zoo.csv"
    row = asdict(Row(FAMILIES[0].name, next(iter(FAMILIES[0].models))))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*row, "processor"])
        writer.writeheader()
        writer.writerow(row | {"processor": "any"})
    before = path.read_text()
    monkeypatch.setattr(table, "PATH", path)
    monkeypatch.setattr(table, "missing", list)
    monkeypatch.setattr(table, "measure", lambda jobs: pytest.fail("nothing is measured for it"))
    with pytest.raises(SystemExit, match=r"zoo\.csv has the columns family, .*, processor, not family"):
        table.main("--resume")
    assert path.read_text() == before


def test_small_clips() -> None:
    pytest.importorskip("torchvision")
    catalogue.prepare()
    model = catalogue.family("torchvision: video").build("mvit_v2_s", **catalogue._VIDEO)
    assert model.pos_encoding.temporal_size == 4 and model.pos_encoding.spatial_size == (16, 16)  # pyright: ignore


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "monai" else name)
    with pytest.raises(SystemExit, match="no family or model is named MONAI"):
        table.main("MONAI")
    assert capsys.readouterr().out == (
        "Left out: the families of monai, not installed here: pip install --no-deps -r requirements-zoo.txt\n"
    )
    with pytest.raises(SystemExit, match="--zoo takes --resume and names of families or models, got --fast"):
        table.main("--fast")
