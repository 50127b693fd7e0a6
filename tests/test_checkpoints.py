"""Promise: the command line loads checkpoints as training scripts save them, whole, or says what is wrong."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aablur.cli import main
from aablur.models.checkpoints import load_checkpoint


def net(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Conv2d(width, width, 3, 2), nn.BatchNorm2d(width))
    return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), block)


STATE = net(1).state_dict()
OTHER = net(2).state_dict()


def under(prefix: str, state: Any = STATE) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in STATE.items() if name not in key}


GOOD = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
    "model": {"model": STATE},
    "model_state_dict": {"model_state_dict": STATE, "epoch": 1},
    "nested": {"model": {"state_dict": under("module.")}},
    "module.": under("module."),
    "_orig_mod.": under("_orig_mod."),
    "model.": {"state_dict": under("model.") | {"loss.weight": torch.ones(2)}},
    "module._orig_mod.": under("module._orig_mod."),
    "_orig_mod.module.": under("_orig_mod.module."),
    "state_dict_ema": {"state_dict_ema": STATE},
    "model_ema": {"model_ema": under("module."), "epoch": 1},
    "beside its average": {"state_dict": STATE, "state_dict_ema": OTHER},
    "averaged": {"n_averaged": torch.tensor(3), **under("module.")},
    "a part of it compiled": {name.replace("2.", "2._orig_mod.", 1) if name[0] == "2" else name: value
                              for name, value in STATE.items()},
    "a wrapper of one's own": {**under("net.backbone."), "head.weight": torch.ones(3)},
    "beside another": {**under("teacher.", OTHER), **under("model.")},
    "no counters": without("num_batches_tracked"),
    "no counters, a prefix": {f"module.{k}": v for k, v in without("num_batches_tracked").items()},
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_checkpoints_as_they_are_saved(name: str, tmp_path: Path) -> None:
    torch.save(GOOD[name], tmp_path / "c.pt")
    model = net()
    load_checkpoint(model, tmp_path / "c.pt")
    for key, value in model.state_dict().items():
        assert torch.equal(value, STATE[key]), key


WRAPS = {
    "compiled": (torch.compile, ("plain", "_orig_mod.", "module._orig_mod.")),
    "a part compiled": (lambda m: nn.Sequential(m[0], m[1], torch.compile(m[2])), ("plain", "a part of it compiled")),
    "DataParallel": (nn.DataParallel, ("module.",)),
    "named model": (lambda m: nn.ModuleDict({"model": m}), ("module._orig_mod.",)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_that_are_wrapped_themselves(name: str, tmp_path: Path) -> None:
    """Names of the model's own that look like a wrapper's."""
    wrap, stored = WRAPS[name]
    expected = wrap(net(1)).state_dict()
    for file in (expected, *(GOOD[s] for s in stored)):
        if name == "named model" and file is GOOD["module._orig_mod."]:
            file = {f"module._orig_mod.{key}": value for key, value in expected.items()}
        torch.save(file, tmp_path / "c.pt")
        model = wrap(net())
        load_checkpoint(model, tmp_path / "c.pt")
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


def raw(data: bytes) -> Any:
    return lambda path: path.write_bytes(data)


def cut(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:300])


WRONG: dict[str, tuple[Any, str]] = {
    "code": ({"state_dict": Evil()}, "cannot be loaded with weights_only=True"),
    "a whole model": (net(), "cannot be loaded with weights_only=True"),
    "text": (raw(b"no weights"), "cannot be loaded with weights_only=True"),
    "nothing": (raw(b""), "cannot be loaded with weights_only=True"),
    "cut": (cut, "cannot be loaded with weights_only=True"),
    "a list": ([torch.ones(2)], "must hold a state_dict, names with tensors, got list"),
    "a tensor": (torch.ones(2), "got Tensor"),
    "no weights": ({"epoch": 3, "lr": 0.1}, "got a dict of epoch, lr"),
    "other shapes": (net(0, 5).state_dict(), "is not of this model: .*size mismatch for 0.weight"),
    "names missing": (without("2.0"), r"is not of this model: .*Missing key.*2\.0\.weight"),
    "names missing, a prefix": (
        {f"module.{k}": v for k, v in without("2.0").items()}, r'is not of this model: .*Missing key.*"2\.0\.weight"'
    ),
    "more names": ({**STATE, "3.weight": torch.ones(2)}, r"is not of this model: .*Unexpected key.*3\.weight"),
    "another model": (nn.Linear(2, 2).state_dict(), "is not of this model"),
    "twice": ({**under("student."), **under("teacher.")}, "more than once, under student., teacher."),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    stored, why = WRONG[name]
    stored(tmp_path / "c.pt") if callable(stored) and not isinstance(stored, nn.Module) else torch.save(stored, "c.pt")
    with pytest.raises(ValueError, match=rf"^checkpoint: .*c\.pt .*{why}") as caught:
        load_checkpoint(copy.deepcopy(net()), tmp_path / "c.pt")
    assert len(str(caught.value)) < 700 and "tensor(" not in str(caught.value)
    assert main(["audit", "test_checkpoints:net", "--checkpoint", "c.pt", "--size", "32"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ValueError: checkpoint: c.pt") and said.count("\n") == 1
    assert not Path("ran").exists()


def test_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("/nonexistent.pt", "/"):
        assert main(["audit", "test_checkpoints:net", "--checkpoint", path]) == 2
        assert "Error" in capsys.readouterr().err.splitlines()[-1]
