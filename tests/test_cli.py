"""Promise: the command line audits and repairs models as the functions do, and says what was wrong with a call."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import peers
import pytest
import skimage.data
import skimage.io
import torch
import zoo
from torch import nn

import aablur
from aablur.cli import main
from aablur.models import antialias, audit, sensitivity
from aablur.models.loading import load_picture
from aablur.robustness import Result, plot

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
    assert "max-blur pool" in said and "maxpool.blur_instead" not in said
    loaded = json.loads(report.read_text())
    assert [r["name"] for r in loaded["repairs"]] == ["maxpool", "layer2.0.conv1", "layer2.0.downsample.0"]
    assert len(loaded["before"]) == 8 and [s["name"] for s in loaded["after"]] == [s["name"] for s in loaded["before"]]
    assert sum(row["filter"] == "blur" for row in loaded["after"]) == 3
    model = zoo.torchvision.models.resnet18().eval()
    model.load_state_dict(weights)
    antialias(model, torch.randn(1, 3, 64, 64), taps=5, layers=["maxpool", "layer2.*"])
    loaded = torch.export.load(program).module()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 64, 64)
        torch.testing.assert_close(loaded(x), model(x))


class OfOne(nn.Module):
    """A forward that knows one size of a batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(x, 2).reshape(1, 3, 16, 16)


@pytest.mark.filterwarnings("ignore:antialias. this model may be trained")
def test_a_program_of_one_size_says_so(tmp_path: Path) -> None:
    program = tmp_path / "model.pt2"
    with pytest.warns(UserWarning, match="the program takes batches of 1 alone"):
        assert main(["antialias", "test_cli:OfOne", "--size", "32", "--output", str(program)]) == 0
    assert torch.export.load(program).module()(torch.randn(1, 3, 32, 32)).shape == (1, 3, 16, 16)


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0 and "cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("resnet50", "must be torchvision:NAME"),
        ("torchvision:resnet5", "torchvision has no model"),
        ("timm:resnet5", "timm has no model"),
        ("nowhere:f", "No module named"),
        ("zoo:nothing", "the module zoo has no 'nothing'"),
        ("zoo:ZOO", "must be or give a torch.nn.Module, got tuple"),
        ("zoo:dataclass", "must be or give a torch.nn.Module, got function"),
        ("test_cli:broken", "AssertionError: only 7 pixels"),
    ],
)
def test_what_was_wrong(spec: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", spec]) == 2
    assert why in capsys.readouterr().err


def grey() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(10))


def broken() -> nn.Module:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("only 7 pixels")

    return Broken()


@pytest.mark.parametrize("spec", ["test_cli:grey", "test_cli:lazy"])
def test_models_of_any_channels_and_lazy_ones(
    spec: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--size", "40"], ["--input", picture, "--size", "32"]):
        assert main(["audit", spec, *arguments]) == 0
        assert "2 sampling places, 2 unfiltered" in capsys.readouterr().out
    for data in ("digits", "photographs"):
        out = ["--out", str(tmp_path / data), "--limit", "2", "--measure", "clean", "--size", "8", "--range", "1"]
        assert main(["robustness", spec, data, *out]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["audit", "zoo:Functional", "--size", "0"],
        ["audit", "zoo:Functional", "--size", "-3"],
        ["audit", "zoo:Functional", "--size", "a"],
        ["audit", "zoo:Functional", "--size", "32.5"],
        ["audit", "zoo:Functional", "--size", ""],
        ["audit", "zoo:Functional", "--shift", "0"],
        ["robustness", "test_cli:grey", "digits", "--size", "0"],
        ["robustness", "test_cli:grey", "digits", "--limit", "0"],
        ["robustness", "test_cli:grey", "digits", "--range", "-1"],
        ["robustness", "test_cli:grey", "digits", "--workers", "-1"],
        ["robustness", "test_cli:grey", "digits", "--batch-size", "0"],
    ],
)
def test_numbers(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    said = capsys.readouterr().err
    assert f"argument {arguments[-2]}: must be a whole number of at least " in said


def test_an_error_is_a_line_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "test_cli:broken"]) == 2
    assert capsys.readouterr().err == "AssertionError: only 7 pixels\n"
    with pytest.raises(AssertionError, match="only 7"):
        main(["--traceback", "audit", "test_cli:broken"])


@pytest.mark.parametrize("place", ["aablur.models.commands", "aablur.robustness.command"])
def test_an_interrupt_while_commands_are_imported(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str) -> Any:
        if name == place:
            raise KeyboardInterrupt
        return imported(name)

    imported = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", interrupt)
    assert main(["audit", "zoo:Functional"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"version": 1}', '{"version": 2}', '{"version": 1, "fingerprint": []}',
     '{"version": 1, "fingerprint": {}, "sums": [1], "skipped": {}}',
     '{"version": 1, "fingerprint": {}, "sums": {"a": 3}, "skipped": {}}',
     '{"version": 1, "fingerprint": {}, "sums": {}, "skipped": {"a": ""}}',
     '{"version": 1, "fingerprint": {}, "sums": {}, "skipped": {}, "more": 1}'],
)  # fmt: skip
def test_states_and_results_that_are_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "test_cli_grey.state.json"
    state.write_text(text)
    assert main(["robustness", "test_cli:grey", "digits", "--limit", "2", "--out", str(tmp_path)]) == 2
    assert f"ValueError: measure: {state} is not the state of a run" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"from_json: .*json is not a result"):
        Result.from_json(state)
    with pytest.raises(ValueError, match=r"sensitivity: resume: .*json is not a scan"):
        sensitivity(grey(), [(torch.rand(1, 1, 16, 16), torch.zeros(1).long())], max_shift=2, resume=state)


def test_json_before_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bare --json does not take the model for its file."""
    said = []
    for arguments in (["--json", "zoo:Functional"], ["zoo:Functional", "--json"], ["--json=-", "zoo:Functional"],
                      ["--size", "32", "--json", "zoo:Functional"]):  # fmt: skip
        assert main(["audit", *arguments, *([] if "--size" in arguments else ["--size", "32"])]) == 0
        said.append(len(json.loads(capsys.readouterr().out)["sites"]))
    assert said == [4] * 4
    file = tmp_path / "a.json"
    assert main(["audit", "--size", "32", "--json", str(file), "zoo:Functional"]) == 0
    assert len(json.loads(file.read_text())["sites"]) == 4


def test_version_and_script(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"aablur {aablur.__version__}\n"
    assert 'aablur = "aablur.cli:main"' in (Path(__file__).parent.parent / "pyproject.toml").read_text()


# ---- what was measured on what ---------------------------------------------------------------------------


def weights_file(tmp_path: Path) -> str:
    torch.save(zoo.torchvision.models.squeezenet1_1().state_dict(), tmp_path / "w.pt")
    return str(tmp_path / "w.pt")


@pytest.mark.parametrize("command", ["audit", "antialias"])
@pytest.mark.filterwarnings("ignore:antialias")
def test_reports_name_weights_and_input(
    command: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, file = "torchvision:squeezenet1_1", str(tmp_path / "r.json")

    def run(*arguments: str) -> tuple[str, str, dict[str, Any]]:
        assert main([command, *arguments, "--size", "64", "--json", file]) == 0
        captured = capsys.readouterr()
        return captured.out.replace("\n", " "), captured.err, json.loads(Path(file).read_text())

    out, err, stored = run(spec)
    assert err == f"warning: the weights of {spec} are random: give --pretrained, or a checkpoint\n"
    assert "weights: random" in out and "input: noise" in out
    assert (stored["weights"], stored["input"]) == ("random", "noise with a photograph's spectrum")
    weights = weights_file(tmp_path)
    out, err, stored = run(spec, "--checkpoint", weights, "--input", picture)
    assert err == "" and stored["weights"] == f"checkpoint {weights}" and stored["input"] == picture
    _, err, stored = run("zoo:Functional")
    assert err == "" and stored["weights"] == "as zoo:Functional makes them"


def test_robustness_names_weights_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = "torchvision:squeezenet1_1"
    arguments = [
        "robustness",
        spec,
        "photographs",
        "--limit",
        "1",
        "--size",
        "48",
        "--range",
        "4",
        "--measure",
        "shift",
    ]
    arguments += ["--out", str(tmp_path), "--compare", f"{spec}@{weights_file(tmp_path)}"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == f"warning: the weights of {spec} are random: give --pretrained, or a checkpoint\n"
    assert "squeezenet1_1: weights: random; data: photographs, 1 images" in captured.out
    first, second = (Result.from_json(tmp_path / f"squeezenet1_1{name}.json") for name in ("", "_w"))
    assert (first.settings["weights"], first.settings["data"]) == ("random", "photographs")
    assert second.settings["weights"] == f"checkpoint {tmp_path / 'w.pt'}"
    page = (tmp_path / "report.html").read_text()
    assert "squeezenet1_1: the weights are random." in page and f"<td>checkpoint {tmp_path / 'w.pt'}</td>" in page
    assert "squeezenet1_1_w: the weights" not in page
    title = plot([first, second]).get_suptitle()
    assert title.splitlines()[0] == "squeezenet1_1 (weights: random; data: photographs)"


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main(["audit", "timm:resnet18"]) == 2
    assert "pip install aablur[models], and of your torch's release: pip install --no-deps torchvision timm" in (
        capsys.readouterr().err
    )


def test_pictures(tmp_path: Path) -> None:
    for name, array in (("grey", skimage.data.camera()), ("colour", skimage.data.chelsea())):
        path = tmp_path / f"{name}.png"
        skimage.io.imsave(path, array)
        x = load_picture(path, (48, 64))
        assert x.shape == (1, 3, 48, 64) and x.dtype == torch.float32 and 0.3 < float(x.std()) < 2
