"""Promise: the command line audits and repairs models as the functions do, and says what was wrong with a call."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import peers
import pytest
import skimage.data
import skimage.io
import torch
import zoo

from aablur.cli import main
from aablur.models import antialias, audit
from aablur.models.loading import load_picture

assert peers and zoo


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = str(tmp_path / "cat.png")
    skimage.io.imsave(path, skimage.data.chelsea())
    return path


def test_audit(picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, plot = tmp_path / "r.json", tmp_path / "r.png"
    torch.manual_seed(0)
    assert main(["audit", "torchvision:resnet18", "--input", picture, "--size", "64", "--json", str(report),
                 "--plot", str(plot)]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "ResNet: 8 sampling places, 8 unfiltered" in said and "layer2.0.downsample.0" in said
    assert plot.stat().st_size > 10_000
    torch.manual_seed(0)
    model = zoo.torchvision.models.resnet18().eval()
    expected = audit(model, load_picture(picture, 64)).rows()
    for row, wanted in zip(json.loads(report.read_text())["sites"], expected, strict=True):
        assert row["name"] == wanted["name"] and row["aliasing"] == pytest.approx(wanted["aliasing"], rel=1e-4)


def test_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "zoo:Functional", "--size", "32", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sites"]) == 4


@pytest.mark.filterwarnings("ignore:antialias")
def test_antialias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, program = tmp_path / "r.json", tmp_path / "model.pt2"
    weights = zoo.torchvision.models.resnet18().state_dict()
    torch.save({"state_dict": weights}, tmp_path / "weights.pt")
    assert main(["antialias", "torchvision:resnet18", "--checkpoint", str(tmp_path / "weights.pt"), "--size", "64",
                 "--taps", "5", "--layers", "maxpool", "layer2.*", "--json", str(report),
                 "--output", str(program)]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "max-blur pool" in said and "maxpool.blur_instead" in said
    loaded = json.loads(report.read_text())
    assert [r["name"] for r in loaded["repairs"]] == ["maxpool", "layer2.0.conv1", "layer2.0.downsample.0"]
    assert len(loaded["before"]) == len(loaded["after"]) == 8
    assert sum(row["filter"] == "blur" for row in loaded["after"]) == 3
    model = zoo.torchvision.models.resnet18().eval()
    model.load_state_dict(weights)
    x = torch.randn(1, 3, 64, 64)
    antialias(model, x, taps=5, layers=["maxpool", "layer2.*"])
    torch.testing.assert_close(torch.export.load(program).module()(x), model(x))


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0 and "cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("resnet50", "must be torchvision:NAME"),
        ("torchvision:resnet5", "torchvision has no model"),
        ("timm:resnet5", "timm has no model"),
        ("nowhere:f", "No module named"),
    ],
)
def test_what_was_wrong(spec: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", spec]) == 2
    assert why in capsys.readouterr().err


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["audit", "timm:resnet18"]) == 2
    assert "pip install aablur[models]" in capsys.readouterr().err


def test_pictures(tmp_path: Path) -> None:
    for name, array in (("grey", skimage.data.camera()), ("colour", skimage.data.chelsea())):
        path = tmp_path / f"{name}.png"
        skimage.io.imsave(path, array)
        x = load_picture(path, (48, 64))
        assert x.shape == (1, 3, 48, 64) and x.dtype == torch.float32 and 0.3 < float(x.std()) < 2
