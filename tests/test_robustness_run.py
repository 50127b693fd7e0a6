"""Promise: a measurement of robustness is the same however it is run, loses nothing, and says what is wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_robustness import Centred, Largest, batched, classifier, pictures
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from aablur import robustness
from aablur.robustness import Result

ROOT = Path(__file__).parent.parent
SUITE = [
    *robustness.standard(range=4), robustness.ShiftGrid(range=4), robustness.TranslationsRotations(2, 3, 10.0, 3),
    robustness.Sequence("gaussian_noise", 4), robustness.Sequence("rotate", 4),
]  # fmt: skip


def trained(seed: int = 3) -> nn.Module:
    model = classifier()
    torch.manual_seed(seed)
    with torch.no_grad():
        model(torch.rand(1, 2, 12, 12).double())
    return model


def numbers(result: Result) -> Result:
    """What does not depend on how it was run."""
    return replace(result, seconds=0.0, environment={}, settings={})


def test_batches_do_not_matter() -> None:
    images, labels = pictures(11)
    model = trained()
    first = robustness.measure(model, batched(images, labels, 11), SUITE)
    assert 0 < first.value("shift", "consistency").mean < 1
    for size, per_forward in ((1, 64), (4, 1), (3, 10)):
        again = robustness.measure(model, batched(images, labels, size), SUITE, images_per_forward=per_forward)
        assert numbers(again) == numbers(first)
    dataset = TensorDataset(images, labels)
    assert numbers(robustness.measure(model, dataset, SUITE, batch_size=4)) == numbers(first)
    loader = DataLoader(dataset, 5)
    assert numbers(robustness.measure(model, loader, SUITE)) == numbers(first)
    other = robustness.measure(model, batched(images, labels, 11), SUITE, seed=1)
    assert other.values("shift", "consistency by pass") != first.values("shift", "consistency by pass")
    assert other.measurements["shift grid"] == first.measurements["shift grid"]


def test_an_image_draws_by_its_number() -> None:
    """Other perturbations beside it, and other images before it, change nothing."""
    images, labels = pictures(6)
    model, alone = trained(), [robustness.ShiftPairs(range=4)]
    everything = robustness.measure(model, [(images, labels)], SUITE)
    assert (
        robustness.measure(model, [(images, labels)], alone).measurements["shift"] == everything.measurements["shift"]
    )
    spread = robustness.measure(model, TensorDataset(images, labels), alone, limit=3)
    parts = [robustness.measure(model, [(images, labels)], alone, limit=n) for n in (1, 2, 3, 4, 5, 6)]
    totals = [p.images * p.value("shift", "consistency").mean for p in parts]
    each = [b - a for a, b in zip([0.0, *totals], totals, strict=False)]
    assert spread.images == 3
    assert spread.value("shift", "consistency").mean == pytest.approx((each[0] + each[2] + each[4]) / 3)


def _process(rank: int, file: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    images, labels = pictures(11)
    model = trained()
    results = [
        robustness.measure(model, TensorDataset(images, labels), SUITE, batch_size=2, state=f"{out}/dataset.json"),
        robustness.measure(model, batched(images, labels, 4), SUITE),
        robustness.measure(model, batched(images[:2], labels[:2], 4), SUITE),  # one process has nothing to do
    ]
    for i, result in enumerate(results):
        result.to_json(f"{out}/{i}.{rank}.json")
    sampled = DataLoader(TensorDataset(images, labels), 4, sampler=DistributedSampler(TensorDataset(images, labels)))
    with pytest.raises(ValueError, match="DistributedSampler"):
        robustness.measure(model, sampled, SUITE)
    dist.destroy_process_group()


def test_processes_do_not_matter(tmp_path: Path) -> None:
    mp.spawn(_process, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)  # pyright: ignore
    images, labels = pictures(11)
    for i, count in enumerate((11, 11, 2)):
        single = robustness.measure(trained(), batched(images[:count], labels[:count]), SUITE)
        for rank in range(2):
            assert numbers(Result.from_json(tmp_path / f"{i}.{rank}.json")) == numbers(single)
    assert {p.name for p in tmp_path.glob("dataset*")} == {"dataset.rank0of2.json", "dataset.rank1of2.json"}


# ---- interrupted, and going on -----------------------------------------------------------------------


class Interrupting(nn.Module):
    """Raises once, at the given call."""

    def __init__(self, inner: nn.Module, error: BaseException | None = None, at: int = -1) -> None:
        super().__init__()
        self.inner = inner
        self.calls, self.error, self.at = 0, error, at

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.error is not None and self.calls == self.at:
            raise self.error
        return self.inner(x)


def calls(images: Tensor, labels: Tensor, size: int) -> int:
    model = Interrupting(trained())
    robustness.measure(model, batched(images, labels, size), SUITE)
    return model.calls


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=["ctrl-c", "error"])
def test_a_run_goes_on_where_it_was_interrupted(error: BaseException, tmp_path: Path) -> None:
    images, labels = pictures(11)
    whole = robustness.measure(Interrupting(trained()), batched(images, labels, 3), SUITE)
    per_batch = calls(images[:3], labels[:3], 3)
    state = tmp_path / "state.json"
    model = Interrupting(trained(), error, 2 * per_batch + 5)
    if isinstance(error, KeyboardInterrupt):
        with pytest.warns(UserWarning, match="interrupted after 6 images"):
            partial = robustness.measure(model, batched(images, labels, 3), SUITE, state=state)
        assert (partial.images, partial.complete) == (6, False)
        assert partial.measurements == robustness.measure(trained(), [(images[:6], labels[:6])], SUITE).measurements
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            robustness.measure(model, batched(images, labels, 3), SUITE, state=state)
    assert json.loads(state.read_text())["images"] == 6
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    model = Interrupting(trained())
    resumed = robustness.measure(model, batched(images, labels, 4), SUITE, state=state)  # 6 is inside a batch
    assert numbers(resumed) == numbers(whole)
    assert model.calls < calls(images, labels, 4)
    done = Interrupting(trained())
    assert numbers(robustness.measure(done, batched(images, labels, 11), SUITE, state=state)) == numbers(whole)
    assert done.calls == 0


def test_an_interrupt_before_the_first_batch() -> None:
    images, labels = pictures(3)
    with pytest.warns(UserWarning, match="interrupted after 0 images"):
        result = robustness.measure(Interrupting(trained(), KeyboardInterrupt(), 1), [(images, labels)], SUITE)
    assert (result.images, result.complete, result.measurements) == (0, False, {})


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    images, labels = pictures(6)
    state = tmp_path / "state.json"

    def run(model: nn.Module, x: Tensor = images, **options: Any) -> Result:
        return robustness.measure(model, batched(x, labels, 3), options.pop("suite", SUITE), state=state, **options)

    run(trained())
    with pytest.raises(ValueError, match=r"another run \(model was '\w+' and is '\w+'\)"):
        run(trained(4))
    with pytest.raises(ValueError, match=r"settings\.seed was 0 and is 1"):
        run(trained(), seed=1)
    with pytest.raises(ValueError, match=r"settings\.perturbations\.shift\.range was 4 and is 3"):
        run(trained(), suite=[robustness.ShiftPairs(range=3), *SUITE[2:]][:1])
    changed = images.clone()
    changed[4, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="the first 6 images are not those of the run"):
        run(trained(), changed)
    with pytest.raises(ValueError, match="the data have 3 images"):
        robustness.measure(trained(), [(images[:3], labels[:3])], SUITE, state=state)
    state.write_text("{")
    with pytest.raises(ValueError, match="is not the state of a run"):
        run(trained())


# ---- what it leaves alone, and options ---------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 3, 2), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 25, 5))
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = pictures(4)
    for channels_last in (False, True):
        robustness.measure(model, [(images.float(), labels)], SUITE[:2], channels_last=channels_last)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [True, True, False, True, True]
    assert model[0].weight.is_contiguous() and not images.requires_grad


def test_lazy_models_can_be_trained_afterwards(tmp_path: Path) -> None:
    images, labels = pictures(4)
    model = nn.Sequential(nn.LazyConv2d(8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ValueError, match="state needs a model whose weights are there"):
        robustness.measure(model, [(images.float(), labels)], SUITE[:2], state=tmp_path / "s.json")
    result = robustness.measure(model, [(images.float(), labels)], SUITE[:2])
    assert result.images == 4
    model(images.float()[..., :12, :12]).sum().backward()


def test_amp_and_channels_last_change_little() -> None:
    images, labels = pictures(8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, 2), Centred(), nn.Flatten(), nn.Linear(200, 5))
    seen: list[tuple[torch.dtype, bool]] = []
    model[0].register_forward_hook(
        lambda _, x, y: seen.append((y.dtype, x[0].is_contiguous(memory_format=torch.channels_last)))
    )
    plain = robustness.measure(model, [(images.float(), labels)], SUITE[:5])
    assert seen[0] == (torch.float32, False)
    fast = robustness.measure(model, [(images.float(), labels)], SUITE[:5], channels_last=True, amp=torch.bfloat16)
    assert seen[-1] == (torch.bfloat16, True)
    for name in ("shift", "diagonal shift"):
        a, b = (r.value(name, "accuracy").mean for r in (plain, fast))
        assert abs(a - b) < 0.1
    curves = zip(*(r.values("diagonal shift", "confidence by view") for r in (plain, fast)), strict=True)
    assert max(abs(a.mean - b.mean) for a, b in curves) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_models_of_any_dtype(dtype: torch.dtype) -> None:
    """Images are perturbed in float32 or more, and given to the model in its own dtype."""
    images, labels = pictures(6)
    seen = set()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5, dtype=dtype))

        def forward(self, x: Tensor) -> Tensor:
            seen.add(x.dtype)
            return x.flatten(2)[:, 0, :5] * self.scale

    found = [robustness.measure(Model(), [(x, labels)], SUITE) for x in (images, images.float(), images.bfloat16())]
    assert seen == {dtype} and all(r.images == 6 for r in found)
    if dtype in (torch.float32, torch.float64):
        assert found[0].value("shift", "consistency") == found[1].value("shift", "consistency")


def test_bytes_and_normalisation() -> None:
    """uint8 images are in [0, 1], and are normalised after they are padded: with black."""
    images = torch.randint(0, 256, (4, 2, 12, 12), dtype=torch.uint8)
    labels, model = torch.randint(0, 5, (4,)), trained()
    shifts = [robustness.ShiftGrid(range=4, padding="zeros")]
    mean, std = [0.3, 0.6], [0.2, 0.5]

    def normalised(x: Tensor) -> Tensor:
        return model((x - torch.tensor(mean).double().view(2, 1, 1)) / torch.tensor(std).double().view(2, 1, 1))

    ours = robustness.measure(model, [(images, labels)], shifts, mean=mean, std=std)
    theirs = robustness.measure(normalised, [(images.double() / 255, labels)], shifts)
    for a, b in zip(ours.rows(), theirs.rows(), strict=True):
        assert a["mean"] == pytest.approx(b["mean"], abs=1e-6)


def test_size_gives_context() -> None:
    """Images larger than the model's size are shifted within what they show, and else cut in the middle."""
    images, labels = pictures(5, size=20)
    model = trained()
    given = robustness.measure(model, [(images, labels)], SUITE[:5], size=12)
    cut = robustness.measure(model, [(images[:, :, 2:18, 2:18], labels)], SUITE[:5])
    assert given.measurements == cut.measurements


def test_without_labels_the_clean_answers_are_right() -> None:
    images, _ = pictures(7)
    model = trained()
    result = robustness.measure(model, images.split(4), SUITE[:2])
    answers = model(images[:, :, 2:14, 2:14]).argmax(1)
    labelled = robustness.measure(model, batched(images, answers), SUITE[:2])
    assert result.value("clean", "accuracy").mean == 1
    assert (result.labels, labelled.labels) == ("predicted", "given")
    assert result.measurements == labelled.measurements


# ---- bad input ---------------------------------------------------------------------------------------

IMAGES, LABELS = pictures(4)


class Broken(torch.utils.data.Dataset):
    """Every item from the second on cannot be read, or none can."""

    def __init__(self, first: int = 1) -> None:
        self.first = first

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i >= self.first:
            raise OSError(f"image file {i} is truncated")
        return IMAGES[i], 0


def test_items_that_cannot_be_read_are_counted() -> None:
    result = robustness.measure(trained(), Broken(), SUITE[:2], batch_size=3)
    assert (result.images, list(result.skipped)) == (1, [1, 2, 3])
    assert result.skipped[2] == "OSError: image file 2 is truncated"
    with pytest.raises(ValueError, match="no images: all 4 of them could not be read, as OSError: image file 0"):
        robustness.measure(trained(), Broken(0), SUITE[:2])


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ([(IMAGES, LABELS + 4)], {}, ValueError, "labels must be from 0 to 4 for a model of 5 classes, got"),
        ([(IMAGES, LABELS - 9)], {}, ValueError, "labels must be from 0 to 4"),
        ([(IMAGES, LABELS.double())], {}, ValueError, r"labels must be one whole number an image, \(4,\)"),
        ([(IMAGES, LABELS[:3])], {}, ValueError, r"got shape \(3,\) of int64"),
        ([(IMAGES[:, :, :4, :4], LABELS)], {}, ValueError, "4x4 are smaller than the shift range, 4 px"),
        ([(IMAGES, LABELS)], {"size": 14}, ValueError, "16x16 have no room for windows of 14x14"),
        ([(IMAGES, LABELS)], {"size": 17}, ValueError, "16x16 are smaller than size, 17x17"),
        ([(IMAGES, LABELS)], {"size": 0}, ValueError, "size must be a positive int"),
        ([(IMAGES, LABELS)], {"mean": 0.5}, ValueError, "mean and std must be given together"),
        ([(IMAGES, LABELS)], {"mean": 0.5, "std": 0.0}, ValueError, "std must be finite and above 0"),
        ([(IMAGES, LABELS)], {"mean": [0.5] * 3, "std": 1.0}, ValueError, "must have 1 or 2 values"),
        ([(IMAGES, LABELS)], {"limit": 0}, ValueError, "limit must be at least 1"),
        ([(IMAGES, LABELS)], {"amp": "bfloat16"}, TypeError, "amp must be torch.bfloat16, torch.float16 or None"),
        ([(IMAGES, LABELS)], {"seed": 0.5}, TypeError, "seed must be an int"),
        ([], {}, ValueError, "data gave no images: none"),
        (TensorDataset(IMAGES[:0], LABELS[:0]), {}, ValueError, "data gave no images: none"),
        ([IMAGES[0]], {}, ValueError, r"must be \(batch, channels, height, width\), got shape \(2, 16, 16\)"),
        ([(IMAGES.long(), LABELS)], {}, TypeError, "images must be floating or uint8, got int64"),
        ([{"x": IMAGES}], {}, TypeError, r"must give \(images, labels\) or images alone, got dict in batch 0"),
        (7, {}, TypeError, "must be a dataset or an iterable of batches, got int"),
        ([(IMAGES * math.nan, LABELS)], {}, ValueError, "the model gave NaN"),
    ],
)  # fmt: skip
def test_bad_data(data: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        robustness.measure(trained(), data, SUITE[:3], **options)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: (x.mean((2, 3)), x), TypeError, "must return a tensor of logits .batch, classes., got tuple; wrap"),
        (lambda x: x, ValueError, r"must return logits \(\d+, classes\) of 2 classes or more, got shape"),
        (lambda x: x.mean((1, 2, 3))[:, None], ValueError, "of 2 classes or more"),
        (lambda x: x.mean((2, 3))[:1], ValueError, "must return logits"),
        ("resnet18", TypeError, "model must be a module or a function, got str"),
    ],
)
def test_bad_models(model: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        robustness.measure(model, [(IMAGES, LABELS * 0)], SUITE[:2])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: robustness.ShiftPairs(range=0), ValueError, "range must be at least 1, got 0"),
        (lambda: robustness.ShiftPairs(range=1.5), TypeError, "range must be an int"),
        (lambda: robustness.ShiftPairs(passes=0), ValueError, "passes must be at least 1"),
        (lambda: robustness.DiagonalShifts(padding="wrap"), ValueError, "padding must be one of"),
        (lambda: robustness.ShiftGrid(range=8, step=3), ValueError, "step must divide the range"),
        (lambda: robustness.SubpixelShifts(range=0), ValueError, "range must be above 0"),
        (lambda: robustness.TranslationsRotations(rotation=200), ValueError, "rotation must be from 0 to 180"),
        (lambda: robustness.Sequence("snow"), ValueError, "kind must be one of"),
        (lambda: robustness.Sequence(frames=1), ValueError, "frames must be at least 2"),
        (lambda: robustness.suite(["shifts"]), ValueError, "names must be among clean, shift"),
    ],
)
def test_bad_perturbations(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_names_tell_perturbations_apart() -> None:
    both = [robustness.ShiftPairs(range=4), robustness.ShiftPairs(range=2, name="shift 2")]
    result = robustness.measure(trained(), [(IMAGES, LABELS)], both)
    assert list(result.measurements) == ["shift", "shift 2"]
    assert [m.settings["range"] for m in result.measurements.values()] == [4, 2]
    assert [robustness.ShiftPairs(padding=p).name for p in ("circular", "zeros")] == ["circular shift", "shift (zeros)"]


def test_bad_suites() -> None:
    for suite in ([], [robustness.Clean(), robustness.Clean()]):
        with pytest.raises(ValueError, match="perturbations must be one or more, of different names"):
            robustness.measure(Largest(), [(IMAGES, LABELS)], suite)
    with pytest.raises(TypeError, match="must hold Perturbation objects, got 'shift'"):
        robustness.measure(Largest(), [(IMAGES, LABELS)], ["shift"])  # pyright: ignore[reportArgumentType]
    padded = [robustness.ShiftPairs(range=20, padding="circular")]
    with pytest.raises(ValueError, match="16x16 are smaller than the shift range, 20 px"):
        robustness.measure(Largest(), [(IMAGES, LABELS)], padded)


def test_values_are_asked_for_by_name() -> None:
    result = robustness.measure(trained(), [(IMAGES, LABELS)], SUITE[:2])
    with pytest.raises(KeyError, match="'grid' was not measured; measured: clean, shift"):
        result.value("grid", "accuracy")
    with pytest.raises(KeyError, match="'variation' is not measured for 'shift'"):
        result.value("shift", "variation")
    with pytest.raises(ValueError, match="5 views: ask for values"):
        result.value("shift", "consistency by pass")


def test_a_stream_is_read_once() -> None:
    """Any iterable does, and no batch is held."""
    taken = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(4):
            taken.append(i)
            yield IMAGES[i : i + 1], LABELS[i : i + 1]

    assert robustness.measure(trained(), stream(), SUITE[:2], limit=2).images == 2
    assert taken == [0, 1, 2]


def test_progress_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    robustness.measure(trained(), [(IMAGES, LABELS)], SUITE[:2])
    assert capsys.readouterr() == ("", "")
    robustness.measure(trained(), TensorDataset(IMAGES, LABELS), SUITE[:2], progress=True)
    assert "4/4" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"a progress bar needs rich: pip install aablur\[robustness\]"):
        robustness.measure(trained(), [(IMAGES, LABELS)], SUITE[:2], progress=True)


def test_importing_costs_torch_alone() -> None:
    code = "import sys, torch; seen = set(sys.modules); import aablur.robustness\n"
    code += "print(*{n.split('.')[0] for n in set(sys.modules) - seen})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"aablur", "torch", *sys.stdlib_module_names}
