"""Promise: the command line measures models from anywhere, and its files hold and show what was measured."""

from __future__ import annotations

import base64
import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import peers  # noqa: F401
import pytest
import torch
from robustness_nets import small
from test_robustness import batched, pictures
from test_robustness_run import SUITE, trained
from torch import nn

from aablur import cli, robustness
from aablur.robustness import Result, plot, report
from aablur.robustness.data import BUNDLED, ImageFolder, WithChannels, digits, mnist5k, photographs
from aablur.robustness.plots import panels

ROOT, TESTS = Path(__file__).parent.parent, Path(__file__).parent
BROWSER = shutil.which("chromium") or shutil.which("chromium-headless-shell") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def results() -> list[Result]:
    images, labels = pictures(7)
    suite = [*SUITE, *robustness.sequences(4)[2:4]]
    return [
        robustness.measure(trained(3), batched(images, labels), suite, name="first"),
        robustness.measure(trained(4), batched(images, labels), suite, name="<second> & more"),
    ]


# ---- files -------------------------------------------------------------------------------------------


def test_json_and_csv_hold_everything(results: list[Result], tmp_path: Path) -> None:
    first, _ = results
    first.to_json(tmp_path / "r.json")
    assert Result.from_json(tmp_path / "r.json") == first
    first.to_csv(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(v) for m in first.measurements.values() for v in m.values.values())
    for row in rows:
        measured = first.measurements[row["perturbation"]]
        i = measured.views.index(row["view"]) if row["view"] else 0
        value = measured.values[row["statistic"]][i]
        assert (float(row["mean"]), float(row["standard_error"])) == (value.mean, value.standard_error)
        assert (row["model"], row["images"]) == ("first", "7")


def test_an_unmeasured_error_survives_json(tmp_path: Path) -> None:
    """One image has no standard error."""
    images, labels = pictures(1)
    result = robustness.measure(trained(), [(images, labels)], SUITE[:1], size=12)
    result.to_json(tmp_path / "r.json")
    again = Result.from_json(tmp_path / "r.json")
    assert math.isnan(again.value("clean", "accuracy").standard_error)
    result.report(tmp_path / "r.html")
    assert "nan" not in (tmp_path / "r.html").read_text()


def test_figures(results: list[Result], tmp_path: Path) -> None:
    titles = [title for title, *_ in panels(results)]
    assert titles == [
        "Consistency under shifts", "Accuracy, and in the worst case", "Confidence along the diagonal",
        "Accuracy by shift: first", "Accuracy by rotation: first", "Accuracy by shift: <second> & more",
        "Accuracy by rotation: <second> & more", "Flip rate along sequences",
    ]  # fmt: skip
    figure = plot(results, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == titles
    curve = next(ax for ax in figure.axes if ax.get_title() == "Confidence along the diagonal")
    drawn = [v.mean for v in results[0].values("diagonal shift", "confidence by view")]
    assert list(curve.lines[0].get_ydata()) == drawn
    grid = next(ax for ax in figure.axes if ax.get_title() == "Accuracy by shift: first")
    shown = grid.images[0].get_array().flatten().tolist()
    assert shown == [v.mean for v in results[0].values("shift grid", "accuracy by view")]
    bars = next(ax for ax in figure.axes if ax.get_title() == "Consistency under shifts")
    assert bars.patches[0].get_height() == results[0].value("shift", "consistency").mean
    with pytest.raises(ValueError, match="nothing that was measured has a figure"):
        robustness.measure(trained(), batched(*pictures(2)), [robustness.Clean()], size=12).plot()


def test_layers_show_where_equivariance_is_lost(results: list[Result], tmp_path: Path) -> None:
    """A stride of 2 is equivariant to even shifts, two of them to every fourth, and so on."""
    model, images = small(3), photographs(32).images[:2] / 255
    maps = robustness.layers(model, images, reach=4)
    assert [len(rows) for rows in maps.values()] == [5, 5, 5]
    for (name, errors), stride in zip(maps.items(), (2, 4, 8), strict=True):
        assert name.endswith(("(conv)", "(max_pool)"))
        for a, row in enumerate(errors):
            for b, error in enumerate(row):
                whole = a % stride == 0 and b % stride == 0
                assert error < 1e-6 if whole else error > 1e-4, (name, a, b)
    result = replace(results[0], layers=maps)
    result.to_json(tmp_path / "r.json")
    assert Result.from_json(tmp_path / "r.json") == result
    assert "Loss of equivariance by layer: first" in [title for title, *_ in panels([result])]
    result.plot(tmp_path / "r.png")
    with pytest.raises(ValueError, match="reach must be at least 1"):
        robustness.layers(model, images, reach=0)


class Page(HTMLParser):
    """Every tag must be closed in its order; keeps cells and the sources of images."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                (self.images if tag == "img" else self.links).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole(results: list[Result], tmp_path: Path) -> None:
    report(results, tmp_path / "r.html", "Two models")
    source = (tmp_path / "r.html").read_text()
    page = Page()
    page.feed(source)
    page.close()
    assert page.open == [] and page.tags.count("table") == 4
    assert page.links == [] and "<second> & more" in page.text and "url(" not in source  # nothing from elsewhere
    assert len(page.images) == len(panels(results)) == page.tags.count("img")
    for image in page.images:
        kind, _, data = image.partition(";base64,")
        assert kind == "data:image/svg+xml" and base64.b64decode(data, validate=True).rstrip().endswith(b"</svg>")
    for result in results:
        value = result.value("shift", "consistency")
        assert f"{100 * value.mean:.2f} ± {100 * value.standard_error:.2f} %" in page.text
    assert "mFR" in page.text
    with pytest.raises(ValueError, match="at least one result"):
        report([], tmp_path / "none.html")


def test_models_of_which_other_things_were_measured(results: list[Result], tmp_path: Path) -> None:
    """Are shown side by side, without means relative to each other."""
    some = dict(list(results[1].measurements.items())[:-1])
    report([results[0], replace(results[1], measurements=some)], tmp_path / "r.html")
    assert "mFR" not in (tmp_path / "r.html").read_text()


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    images, _ = pictures(3)
    result = robustness.measure(trained(), [images], SUITE[:2], name="m")
    told = type(result)(**{**vars(result), "complete": False, "skipped": {4: "OSError: <cut>"}})
    told.report(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "interrupted; the values are those of 3 images" in text
    assert "1 images could not be read" in text and "number 4 (OSError: &lt;cut&gt;)" in text
    assert "The data have no labels" in text


NAMES = (
    "<b>bold</b> & co",
    "$\\frac{$",
    "$a$ and $b$",
    "_hidden",
    "_",
    '=HYPERLINK("x")',
    "100 $",
    "a\\$b",
    "[red]x[/red]",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str, results: list[Result], tmp_path: Path) -> None:
    """Of models, perturbations, kinds, settings and whatever a JSON file holds: no HTML, no formulas, nothing lost."""
    both = []
    for result, model in zip(results, (name, name + "2"), strict=True):
        result.to_json(tmp_path / "r.json")
        stored = json.loads((tmp_path / "r.json").read_text())
        stored |= {"model": model, "labels": name, "skipped": {"3": name}, "layers": {name: [[0.0, 1.0], [1.0, 0.0]]}}
        for kind in ("settings", "environment"):
            stored[kind][name] = name
        for m in stored["measurements"].values():
            m["settings"]["kind"] = f"{name}{m['settings'].get('kind', '')}"
        stored["measurements"] = {k + name * (k not in KEPT): m for k, m in stored["measurements"].items()}
        (tmp_path / "r.json").write_text(json.dumps(stored))
        both.append(Result.from_json(tmp_path / "r.json"))
    report(both, tmp_path / "r.html", name)
    source = (tmp_path / "r.html").read_text()
    page = Page()
    page.feed(source)
    page.close()
    assert page.open == [] and not {"b", "script"} & set(page.tags)
    assert page.text.count(name) > 10 and f"shift{name}" in page.text
    figure = plot(both, tmp_path / "r.png")
    legends = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in figure.axes if ax.get_legend()]
    assert [name.replace("$", r"\$"), name.replace("$", r"\$") + "2"] in legends


KEPT = ("clean", "shift grid", "diagonal shift", "translations x rotations")


def test_cells_are_no_formulas(results: list[Result], tmp_path: Path) -> None:
    found = replace(results[0], measurements=dict(results[0].measurements))
    for name in ("=1+1", "+1+cmd|' /C calc'!A0", "-2+3+cmd|x", "@SUM(1)", "\t=1", " =1", "\r=1", "-a"):
        replace(found, model=name, measurements={name: found.measurements["shift"]}).to_csv(tmp_path / "r.csv")
        with (tmp_path / "r.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                assert row["model"] == row["perturbation"] == "'" + name
    for name in ("resnet50", "a=b", "-16,+3", "-10 deg -2,+0", "'quoted"):
        replace(found, model=name).to_csv(tmp_path / "r.csv")
        with (tmp_path / "r.csv").open(newline="") as file:
            assert {row["model"] for row in csv.DictReader(file)} == {name}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_shows_the_page_offline(results: list[Result], tmp_path: Path) -> None:
    report(results, tmp_path / "r.html")
    script = "<script>onload = () => document.title = [...document.images].map(i => i.naturalWidth).join()</script>"
    (tmp_path / "probe.html").write_text((tmp_path / "r.html").read_text().replace("</body>", script + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000"]
    command = [str(BROWSER), *flags, "--dump-dom", f"file://{tmp_path}/probe.html"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    title = re.search(r"<title>([\d,]+)</title>", dom)
    assert title, dom[:500]
    widths = [int(w) for w in title[1].split(",")]
    assert len(widths) == len(panels(results)) and min(widths) > 200


# ---- data --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three pictures, and a file that is no picture."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path / "photos"
    for i, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for j in range(3):
            image.new("RGB", (40 + 8 * j, 32), (80 * j, 100 * i, 50)).save(root / name / f"{j}.png")
    (root / "dog" / "1.png").write_bytes(b"no picture")
    cut = (root / "cat" / "2.png").read_bytes()
    (root / "cat" / "2.png").write_bytes(cut[: len(cut) // 2])
    return root


def test_an_image_folder(folder: Path) -> None:
    data = ImageFolder(folder, 24)
    image, label = data[4 - 1]
    assert (len(data), label, data.classes) == (6, 1, {"cat": 0, "dog": 1})
    assert image.shape == (3, 24, 24) and image.dtype == torch.uint8
    assert image[:, 0, 0].tolist() == [0, 100, 50] and (image == image[:, :1, :1]).all()
    result = robustness.measure(small(3), data, robustness.standard(range=4), batch_size=4)
    assert result.images == 4 and list(result.skipped) == [2, 4]
    (folder / "cat").rename(folder / "281")
    (folder / "dog").rename(folder / "7")
    assert ImageFolder(folder, 24).classes == {"281": 281, "7": 7}
    flat = ImageFolder(folder / "7", 24)
    assert (len(flat), flat[0][1]) == (3, None)
    for wrong in (folder / "none", folder / "281" / "0.png"):
        with pytest.raises(ValueError, match="root must be a folder"):
            ImageFolder(wrong, 24)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        ImageFolder(folder / "empty", 24)


def test_a_picture_is_scaled_and_its_middle_cut(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    bars = torch.zeros(60, 120, dtype=torch.uint8)
    bars[:, 40:80] = 255
    image.fromarray(bars.numpy()).save(tmp_path / "bars.png")
    made, _ = ImageFolder(tmp_path, 30)[0]
    assert made.shape == (3, 30, 30)
    assert made[0, 15, 6:24].min() == 255 and made[0, 15, :4].max() == 0 and made[0, 15, 26:].max() == 0


def test_bundled_sets() -> None:
    eights = digits()
    assert eights.images.shape == (1797, 1, 8, 8) and eights.images.amax() == 255
    assert sorted(set(eights.labels.tolist())) == list(range(10))  # pyright: ignore
    mnist = mnist5k()
    assert mnist.images.shape == (5000, 1, 28, 28) and mnist.labels.bincount().tolist() == [500] * 10  # pyright: ignore
    photos = photographs(64)
    assert photos.images.shape == (14, 3, 64, 64) and photos[0][1] is None
    assert all(image.float().std() > 5 for image in photos.images)
    grey, colour = WithChannels(photos, 1), WithChannels(eights, 3)
    assert grey[3][0].shape == (1, 64, 64) and colour[3][0].shape == (3, 8, 8) and len(grey) == 14
    torch.testing.assert_close(grey[4][0].float(), photos.images[4].float().mean(0, keepdim=True), atol=0.5, rtol=0)
    assert set(BUNDLED) == {"digits", "mnist5k", "photographs"}


# ---- the command -------------------------------------------------------------------------------------


def test_the_command_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small()
    with torch.no_grad():
        model[0].weight.mul_(-1)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "other.pt")
    out = tmp_path / "out"
    arguments = ["robustness", "robustness_nets:small", "digits", "--compare", "robustness_nets:small"]
    arguments[-1] += f"@{tmp_path / 'other.pt'}"
    assert cli.main([*arguments, "--limit", "30", "--measure", "clean", "shift", "grid", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "worst case accuracy" in said and "report.html" in said
    files = sorted(p.name for p in out.iterdir())
    assert len(files) == 4 and {"report.html", "results.csv"} < set(files)
    stored = [Result.from_json(p) for p in sorted(out.glob("*.json"))]
    for result in stored:
        built = model if "other" in result.model else small()
        ours = robustness.measure(
            built, digits(), robustness.suite(["clean", "shift", "grid"], 2, "zeros"), size=8, limit=30
        )
        assert ours.measurements == result.measurements and result.images == 30
    assert stored[0].measurements != stored[1].measurements
    with (out / "results.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == {r.model for r in stored}


def test_the_command_on_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["robustness", "robustness_nets:colour", str(folder), "--size", "24", "--range", "8"]
    assert cli.main([*arguments, "--measure", "clean", "shift", "--layers", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "image 2 could not be read" in captured.err
    result = Result.from_json(out / "robustness_nets_colour.json")
    assert result.images == 4 and result.settings["size"] == [24, 24] and len(result.layers) == 3
    assert "2 images could not be read" in (out / "report.html").read_text()


@pytest.mark.parametrize("spec", ["torchvision:squeezenet1_1", "timm:resnet10t"])
def test_the_command_takes_library_models(spec: str, tmp_path: Path) -> None:
    arguments = ["robustness", spec, "photographs", "--size", "48", "--range", "4", "--limit", "2"]
    arguments += ["--measure", "clean", "diagonal", "--out", str(tmp_path), "--amp", "bfloat16", "--channels-last"]
    assert cli.main(arguments) == 0
    result = Result.from_json(tmp_path / f"{spec.partition(':')[2]}.json")
    assert (result.images, result.labels, result.settings["amp"]) == (2, "predicted", "bfloat16")
    assert result.value("clean", "accuracy").mean == 1
    assert result.settings["mean"] == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["robustness_nets:pair", "digits"], "TypeError: measure: the model must return a tensor of logits"),
        (["robustness_nets:small", "/nonexistent"], "ValueError: ImageFolder: root must be a folder"),
        (["resnet18", "digits"], "ValueError: model must be torchvision:NAME"),
        (["robustness_nets:small", "digits", "--range", "9"], "8x8 are smaller than the shift range, 9 px"),
        (["robustness_nets:small@/nonexistent.pt", "digits"], "FileNotFoundError"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["robustness", *arguments, "--limit", "4", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    arguments = ["robustness", f"robustness_nets:small@{tmp_path / 'evil.pt'}", "digits", "--out", str(tmp_path)]
    assert cli.main(arguments) == 2 and "weights_only=True" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_the_command_goes_on_after_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["robustness", "robustness_nets:small", "digits", "--limit", "12", "--batch-size", "4"]
    arguments += ["--measure", "clean", "grid", "--images-per-forward", "64"]
    forward, calls = nn.AdaptiveAvgPool2d.forward, []

    def interrupting(self: nn.AdaptiveAvgPool2d, x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:  # two forward passes a batch
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(nn.AdaptiveAvgPool2d, "forward", interrupting)
    with pytest.warns(UserWarning, match="interrupted after 4 images"):
        assert cli.main([*arguments, "--out", str(tmp_path / "a")]) == 130
    assert not Result.from_json(tmp_path / "a" / "robustness_nets_small.json").complete
    assert cli.main([*arguments, "--out", str(tmp_path / "a")]) == 0
    monkeypatch.undo()
    assert cli.main([*arguments, "--out", str(tmp_path / "b")]) == 0
    a, b = (Result.from_json(tmp_path / x / "robustness_nets_small.json") for x in "ab")
    assert a.measurements == b.measurements and a.complete
    assert not list(tmp_path.rglob("*.state.json"))


@pytest.mark.parametrize("end", ["ctrl-c", "a wrong checkpoint"])
@pytest.mark.filterwarnings("ignore:measure.*interrupted")
def test_a_comparison_goes_on_at_the_model_where_it_ended(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured of the models before is neither lost nor measured again."""
    other = small()
    with torch.no_grad():
        other[0].weight.mul_(-1)
    arguments = ["robustness", "robustness_nets:small", "digits", "--limit", "12", "--batch-size", "4"]
    arguments += ["--measure", "clean", "--compare", f"robustness_nets:small@{tmp_path / 'other.pt'}"]
    conv, first, calls = nn.Conv2d.forward, small().state_dict()["0.weight"], {"first": 0, "second": 0}

    def counting(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] == 1:
            calls["first" if torch.equal(self.weight, first) else "second"] += 1
            if end == "ctrl-c" and calls["second"] == 2:
                raise KeyboardInterrupt
        return conv(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counting)
    if end == "ctrl-c":
        torch.save(other.state_dict(), tmp_path / "other.pt")
    else:
        torch.save([1], tmp_path / "other.pt")
    out = tmp_path / "out"
    assert cli.main([*arguments, "--out", str(out)]) == (130 if end == "ctrl-c" else 2)
    done = Result.from_json(out / "robustness_nets_small.json")
    assert done.complete and (done.images, calls["first"]) == (12, 3)
    for state in out.glob("*.state.json"):
        state.with_name(f".{state.name}.part").write_text("{")  # of a process that was killed while it wrote
    torch.save(other.state_dict(), tmp_path / "other.pt")
    assert cli.main([*arguments, "--out", str(out)]) == 0
    assert calls == {"first": 3, "second": 4 if end == "ctrl-c" else 3}  # a batch that ended early is run again
    assert len(list(out.iterdir())) == 4
    assert Result.from_json(out / "robustness_nets_small.json").measurements == done.measurements
    assert cli.main([*arguments, "--out", str(out)]) == 0 and calls["first"] == 6  # a new run


@pytest.mark.parametrize("write", [lambda r, p: r.to_json(p), lambda r, p: r.to_csv(p), lambda r, p: r.report(p)])
def test_a_file_is_whole_at_every_moment(
    write: Any, results: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt while it is written leaves what was there."""
    path = tmp_path / "file"
    path.write_text("before")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(results[0], path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    write(results[0], path)
    assert len(path.read_text()) > 100 and list(tmp_path.iterdir()) == [path]


def test_the_command_under_torchrun(tmp_path: Path) -> None:
    arguments = ["robustness", "robustness_nets:small", "digits", "--limit", "9", "--batch-size", "2"]
    arguments += ["--measure", "clean", "shift"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "aablur", *arguments, "--out", str(tmp_path / "two")]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{TESTS}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report.html") == 1
    assert cli.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / n / "robustness_nets_small.json").read_text()) for n in ("one", "two"))
    assert one["measurements"] == two["measurements"] and two["images"] == 9 and two["settings"]["world"] == 2
