"""Promise: torch.export, AOTInductor and ONNX take the modules, with dynamic sizes, and compute what eager computes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from modules import modules
from torch import Tensor, nn
from torch.export import Dim

import aablur

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters' own
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def test_export_with_dynamic_sizes() -> None:
    for module in modules():
        sizes = {0: Dim("batch", min=1, max=64), 2: Dim("height", min=8, max=256)}
        program = torch.export.export(module.eval(), (torch.randn(2, 4, 12, 13),), dynamic_shapes=(sizes,))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
        for shape in ((1, 4, 12, 13), (7, 4, 31, 13)):
            x = torch.randn(shape)
            torch.testing.assert_close(loaded(x), module(x))


def test_aot_inductor_in_a_fresh_process(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), *modules()[:7]).eval()  # channels at first, then ever smaller maps
    x = torch.randn(2, 4, 300, 301)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=16)},))
    package, wanted = tmp_path / "model.pt2", tmp_path / "wanted.pt"
    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    x = torch.randn(5, 4, 300, 301)
    torch.save((x, model(x).detach()), wanted)
    code = f"""
import torch, aablur
x, y = torch.load({str(wanted)!r})
torch.testing.assert_close(torch._inductor.aoti_load_package({str(package)!r})(x), y)
print(tuple(y.shape))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tuple(model(x).shape))


# ---- ONNX --------------------------------------------------------------------------------------------


def to_onnx(module: nn.Module, x: Tensor, sizes: Any = None) -> onnx.ModelProto:
    program = torch.onnx.export(module.eval(), (x,), dynamic_shapes=(sizes,), dynamo=True, verbose=False)
    assert program is not None
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program.model_proto


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def check(model: onnx.ModelProto, module: nn.Module, *maps: Tensor) -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in maps:
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        tolerance = {"rtol": 4e-3, "atol": 2e-3} if x.dtype == torch.float16 else {}
        torch.testing.assert_close(torch.from_numpy(out), module(x).detach(), **tolerance)


@pytest.mark.parametrize(
    ("padding_mode", "taps", "dtype"),
    [
        *[(mode, taps, torch.float32) for mode in PADDING_MODES for taps in (1, 3, 4)],
        ("zeros", 4, torch.float16),
        ("reflect", 3, torch.float16),
    ],
    ids=str,
)
def test_onnx_is_one_conv(padding_mode: str, taps: int, dtype: torch.dtype) -> None:
    sizes = {0: Dim("batch"), 2: Dim("height", min=8), 3: Dim("width", min=8)}
    pad = [] if padding_mode == "zeros" or taps == 1 else ["Pad"]
    x, others = torch.randn(2, 4, 16, 18), [torch.randn(1, 4, 8, 9), torch.randn(3, 4, 33, 20)]
    for module, first in (
        (aablur.nn.BlurPool2d(taps, padding_mode=padding_mode), []),
        (aablur.nn.MaxBlurPool2d(3, taps=taps, window_padding=1, padding_mode=padding_mode), ["MaxPool"]),
    ):
        model = to_onnx(module, x.to(dtype), sizes)
        assert operators(model) == [*first, *pad, "Conv"]
        check(model, module, *[other.to(dtype) for other in others])


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (aablur.nn.BlurPool1d(4), (2, 4, 9)),
        (aablur.nn.BlurPool3d((3, 2, 4), stride=(1, 2, 3), padding_mode="zeros"), (2, 4, 6, 7, 9)),
        (aablur.nn.MaxBlurPool3d(2, 3, padding_mode="replicate"), (2, 4, 6, 7, 9)),
        (aablur.nn.BlurPool2d(3, padding=(-1, 2)), (2, 4, 8, 9)),
        (aablur.nn.BlurPool2d(3, padding=(-1, 2), padding_mode="zeros"), (2, 4, 8, 9)),
        (aablur.nn.BlurPool2d(3, padding=((0, 3), (2, 0)), padding_mode="zeros"), (2, 4, 8, 9)),
        (aablur.nn.BlurPool2d(7, padding_mode="reflect"), (2, 4, 3, 2)),  # maps smaller than the pad
        (aablur.nn.BlurPool2d(7, padding_mode="circular"), (2, 4, 2, 1)),
        (aablur.nn.BlurPool2d(3), (4, 8, 9)),  # no batch
    ],
    ids=str,
)
def test_onnx_of_the_rest(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    check(to_onnx(module, x), module, x)


def learnt() -> list[nn.Module]:
    found = [m for m in modules() if list(m.parameters())]
    for parameter in (p for m in found for p in m.parameters()):
        nn.init.uniform_(parameter)
    return found


def test_onnx_of_learnt_taps() -> None:
    for module in learnt():
        x = torch.randn(2, 4, 8, 9)
        check(to_onnx(module, x), module, x)


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), aablur.nn.BlurPool2d(3), nn.ReLU(), aablur.nn.MaxBlurPool2d(2, 4), *learnt()
    ).eval()


@pytest.mark.parametrize("strict", [True, False])
def test_exported_programs_are_decomposed(strict: bool) -> None:
    """For engines that take an ExportedProgram and do not know the ops; gradients wanted or not."""
    sizes = {0: Dim("batch"), 2: Dim("height", min=64), 3: Dim("width", min=64)}
    net, x = model(), torch.randn(2, 3, 70, 71)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            program = torch.export.export(net, (x,), dynamic_shapes=(sizes,), strict=strict)
        assert "aablur" in str(program.graph)
        plain = program.run_decompositions(aablur.decompositions())
        assert "aablur" not in str(plain.graph)
        for shape in ((1, 3, 64, 65), (4, 3, 90, 71)):
            other = torch.randn(shape)
            torch.testing.assert_close(plain.module()(other), net(other))
    program = torch.onnx.export(plain, verbose=False)
    assert program is not None
    check(program.model_proto, net, torch.randn(3, 3, 71, 66))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("padding_mode", aablur.geometry.PADDING_MODES)
def test_decompositions_beside_torchs_own(padding_mode: str, dynamic: bool) -> None:
    """One table of both: nothing of ours may write, as a circular F.pad does inside."""
    table = {**torch.export.default_decompositions(), **aablur.decompositions()}
    sizes = ({0: Dim("batch"), 2: Dim("height", min=8), 3: Dim("width", min=8)},) if dynamic else None
    for net in (
        aablur.nn.BlurPool2d(4, padding_mode=padding_mode),
        aablur.nn.MaxBlurPool2d(3, window_padding=1, padding_mode=padding_mode),
        aablur.nn.BlurPool2d(5, padding=((-1, 3), (2, -3)), padding_mode=padding_mode),
    ):
        program = torch.export.export(net, (torch.randn(2, 4, 16, 18),), dynamic_shapes=sizes)
        plain = program.run_decompositions(table)
        assert "aablur" not in str(plain.graph)
        x = torch.randn((3, 4, 19, 10) if dynamic else (2, 4, 16, 18))
        torch.testing.assert_close(plain.module()(x), net(x))


def test_the_torchscript_exporter(tmp_path: Path) -> None:
    net, x = model(), torch.randn(2, 3, 70, 71)
    axes = {"dynamic_axes": {"x": [0, 2, 3]}, "input_names": ["x"]}
    torch.onnx.export(net, (x,), str(tmp_path / "model.onnx"), dynamo=False, **axes)
    check(onnx.load(tmp_path / "model.onnx"), net, x, torch.randn(3, 3, 71, 66))
