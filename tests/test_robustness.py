"""Promise: each measurement of robustness is the one that it is called, by hand and by a literal implementation."""

from __future__ import annotations

import itertools
import math
import statistics as stdlib

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn

from aablur import robustness
from aablur.robustness import Batch, Result, Statistic
from aablur.robustness.shifts import shift_by_phase
from aablur.robustness.spatial import rotation, warp
from aablur.robustness.statistics import Outcomes
from aablur.robustness.sums import Sum, merge

RANGE = 4
PART = 2**-24  # probabilities are counted in these


def classifier(classes: int = 5, channels: int = 2) -> nn.Module:
    """Small, aliased and far from shift-invariant, in float64."""
    torch.manual_seed(3)
    features = nn.Conv2d(channels, 6, 3, 2, 1, bias=False), Centred(), nn.MaxPool2d(2), Centred(), nn.Flatten()
    return nn.Sequential(*features, nn.LazyLinear(classes, bias=False)).double()


class Centred(nn.Module):
    """So that what is alike in all images does not decide."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)


def pictures(count: int = 9, size: int = 16, channels: int = 2) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(7)
    return torch.rand(count, channels, size, size, generator=g).double(), torch.randint(5, (count,), generator=g)


def batched(images: Tensor, labels: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))


def offsets(name: str, i: int, passes: int, range_: int, seed: int = 0) -> list[list[int]]:
    """What image i draws, a pair of offsets a pass."""
    (g,) = Batch(torch.empty(1, 1, 1, 1), [i], (1, 1), seed).generators(name)
    return torch.randint(range_, (2 * passes, 2), generator=g).tolist()


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return stdlib.fmean(values), stdlib.stdev(values) / math.sqrt(len(values))


def assert_value(result: Result, perturbation: str, statistic: Statistic, values: list[float], atol: float) -> None:
    found = result.value(perturbation, statistic)
    mean, error = mean_and_error(values)
    assert found.mean == pytest.approx(mean, abs=atol + 1e-15)
    assert found.standard_error == pytest.approx(error, abs=atol + 1e-12)


# ---- by hand -----------------------------------------------------------------------------------------


class Largest(nn.Module):
    """Looks for the largest pixel of each channel wherever it is: exactly invariant to shifts that keep it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3)) * 3


class OnePixel(nn.Module):
    """Two classes by the pixel at the top left: the probability of class 1 is sigmoid(2) at 1, sigmoid(-2) at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x), dtype=x.dtype), 4 * x[:, 0, 0, 0] - 2], 1)


def test_a_shift_invariant_model_is_perfect() -> None:
    """The content is in every window, so nothing but its place changes."""
    images = torch.zeros(6, 3, 20, 20)
    images[:, :, 8:12, 8:12] = torch.rand(6, 3, 4, 4)
    perturbations = [*robustness.standard(RANGE), robustness.ShiftGrid(range=RANGE)]
    perturbations = [p for p in perturbations if p.name != "sub-pixel shift"]
    labels = images.amax((2, 3)).argmax(1)
    result = robustness.measure(Largest(), [(images, labels)], perturbations)
    for perturbation, statistic in (
        ("shift", "consistency"), ("circular shift", "consistency"), ("shift grid", "consistency of all pairs"),
        ("shift grid", "worst case accuracy"), ("clean", "accuracy"),
    ):  # fmt: skip
        assert result.value(perturbation, statistic) == robustness.Value(1.0, 0.0)
    assert result.values("shift", "consistency by pass") == [robustness.Value(1.0, 0.0)] * 5
    for perturbation, statistic in (
        ("diagonal shift", "variation"), ("diagonal shift", "spread"), ("shift grid", "spread"),
    ):  # fmt: skip
        assert result.value(perturbation, statistic) == robustness.Value(0.0, 0.0)
    curve = result.values("diagonal shift", "confidence by view")
    assert len(curve) == RANGE + 1 and len(set(curve)) == 1


def test_one_pixel_of_a_row_of_stripes() -> None:
    """Stripes of period 2 from left to right: the pixel is 1 at odd shifts to the left and 0 at even ones."""
    images = (torch.arange(12) % 2).double().expand(2, 1, 12, 12).clone()
    result = robustness.measure(
        OnePixel(), [(images, torch.tensor([1, 0]))],
        [robustness.ShiftGrid(range=3), robustness.DiagonalShifts(range=3)],
    )  # fmt: skip
    high, low = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))
    assert result.value("shift grid", "consistency of all pairs").mean == 0.5
    assert result.value("shift grid", "accuracy") == robustness.Value(0.5, 0.0)
    assert result.value("shift grid", "worst case accuracy").mean == 0
    assert result.value("shift grid", "worst case confidence").mean == pytest.approx(low, abs=PART)
    by_view = [v.mean for v in result.values("shift grid", "accuracy by view")]
    assert by_view == [0.5] * 16
    # image 0 has label 1: low at 0, high at 1, low at 2, high at 3; image 1 has label 0, and the same turned round
    assert result.value("diagonal shift", "variation").mean == pytest.approx(high - low, abs=PART)
    assert result.value("diagonal shift", "spread").mean == pytest.approx((high - low) / 2, abs=PART)
    assert result.value("diagonal shift", "confidence").mean == pytest.approx(0.5, abs=PART)


def test_one_pixel_alone_is_right_where_it_is_seen() -> None:
    """A single white pixel at (2, 1) of what is shifted: the answer is 1 at the offset (2, 1) and at no other."""
    image = torch.zeros(1, 1, 10, 10)
    image[..., 2, 1] = 1
    result = robustness.measure(OnePixel(), [(image, torch.tensor([1]))], [robustness.ShiftGrid(range=RANGE)])
    views = result.measurements["shift grid"].views
    right = [view for view, v in zip(views, result.values("shift grid", "accuracy by view"), strict=True) if v.mean]
    assert right == ["2,1"]
    assert result.value("shift grid", "consistency of all pairs").mean == (1 + 24 * 24) / 25**2
    assert math.isnan(result.value("shift grid", "accuracy").standard_error)


def test_flips_by_hand() -> None:
    top1 = torch.tensor([[0, 0, 1, 1, 0], [2, 2, 2, 2, 2]])
    o = Outcomes(top1, torch.full((2, 5), 0.5).double(), torch.zeros(2, 5).double(), torch.tensor([0, 1]), 3)
    assert [t.tolist() for t in Statistic.FLIP_RATE(o)[:1]] == [[2, 0]] and Statistic.FLIP_RATE(o)[1] == 4
    assert Statistic.FLIP_RATE_FROM_FIRST(o)[0].tolist() == [2, 0]
    assert Statistic.CONSISTENCY_ALL_PAIRS(o)[0].tolist() == [9 + 4, 25]
    assert Statistic.WORST_CASE(o)[0].tolist() == [0, 0]


def test_means_relative_to_a_baseline() -> None:
    assert robustness.mean_flip_rate({"a": 0.1, "b": 0.3}, {"a": 0.2, "b": 0.2, "c": 0.0}) == pytest.approx(1.0)
    assert robustness.mean_corruption_error(robustness.ALEXNET) == 1.0
    halves = {kind: error / 2 for kind, error in robustness.ALEXNET.items()}
    assert robustness.mean_corruption_error(halves) == pytest.approx(0.5)
    assert sum(robustness.ALEXNET.values()) / 15 == pytest.approx(0.787, abs=2e-3)  # AlexNet's mean, as published
    with pytest.raises(ValueError, match="the baseline lacks b"):
        robustness.mean_flip_rate({"a": 0.1, "b": 0.3}, {"a": 0.2})
    with pytest.raises(ValueError, match="the baseline is 0 for a"):
        robustness.mean_flip_rate({"a": 0.1}, {"a": 0.0})


def test_sums_are_exact_in_any_order() -> None:
    values = torch.randint(0, 2**24, (50,))
    whole, parts = Sum(2**24), [Sum(2**24), Sum(2**24)]
    whole.add((values, 2**24))
    for i, part in enumerate(values.flip(0).split(13)):
        parts[i % 2].add((part, 2**24))
    assert merge([{"a": {"b": p}} for p in parts])["a"]["b"] == whole
    ((mean, error),) = whole.values()
    assert (mean, error) == pytest.approx(mean_and_error((values / 2**24).tolist()), rel=1e-12)
    with pytest.raises(ValueError, match="do not add"):
        whole.add((values, 3))


# ---- by a literal implementation ---------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["crop", "zeros", "reflect", "replicate", "circular"])
def test_shift_pairs_and_grids_are_the_literal_ones(padding: str) -> None:
    images, labels = pictures()
    crop = 12 if padding == "crop" else 16
    model = classifier()
    with torch.no_grad():
        model(images[:, :, :crop, :crop])
    model.eval()
    pairs, grid = robustness.ShiftPairs(RANGE, padding, passes=3), robustness.ShiftGrid(RANGE, padding)
    result = robustness.measure(model, batched(images, labels), [pairs, grid])

    def view(image: Tensor, y: int, x: int) -> Tensor:
        if padding == "circular":
            return torch.roll(image, (y, x), (1, 2))
        if padding != "crop":
            modes = {"zeros": "constant", "replicate": "edge", "reflect": "reflect"}
            wide = [(0, 0)] + [(RANGE // 2, RANGE // 2)] * 2
            image = torch.from_numpy(np.pad(image.numpy(), wide, mode=modes[padding]))
        return image[:, y : y + crop, x : x + crop]

    @torch.no_grad()
    def ask(image: Tensor, y: int, x: int) -> Tensor:
        return model(view(image, y, x)[None])[0].softmax(0)

    consistency, by_pass, worst, all_pairs, spread = [], [], [], [], []
    at: dict[tuple[int, int], list[int]] = {}
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        drawn = offsets(pairs.name, i, 3, RANGE)
        agree = [
            int(ask(image, *first).argmax() == ask(image, *second).argmax())
            for first, second in zip(drawn[::2], drawn[1::2], strict=True)
        ]
        consistency.append(sum(agree) / 3)
        by_pass.append(agree)
        places = list(itertools.product(range(RANGE + 1), repeat=2))
        seen = [ask(image, y, x) for y, x in places]
        answers = [int(p.argmax()) for p in seen]
        for place, answer in zip(places, answers, strict=True):
            at.setdefault(place, []).append(int(answer == label))
        worst.append(float(all(answer == label for answer in answers)))
        all_pairs.append(sum(a == b for a in answers for b in answers) / len(places) ** 2)
        true = [float(p[label]) for p in seen]
        spread.append(stdlib.pstdev(true))
    assert 0 < stdlib.fmean(consistency) < 1
    assert_value(result, pairs.name, Statistic.CONSISTENCY, consistency, 0)
    for i, found in enumerate(result.values(pairs.name, Statistic.CONSISTENCY_BY_PASS)):
        assert found.mean == pytest.approx(stdlib.fmean(agree[i] for agree in by_pass), abs=1e-15)
    assert_value(result, "shift grid", Statistic.WORST_CASE, worst, 0)
    assert_value(result, "shift grid", Statistic.CONSISTENCY_ALL_PAIRS, all_pairs, 0)
    assert_value(result, "shift grid", Statistic.SPREAD, spread, PART)
    assert [v.mean for v in result.values("shift grid", Statistic.ACCURACY_BY_VIEW)] == [
        pytest.approx(stdlib.fmean(at[place]), abs=1e-15) for place in places
    ]


def test_the_grid_is_what_the_pairs_estimate() -> None:
    """With a shift range of all offsets, many passes come near to the mean over all pairs."""
    images, labels = pictures(6)
    model = classifier()
    with torch.no_grad():
        model(images[:, :, :12, :12])
    pairs = robustness.ShiftPairs(RANGE + 1, "circular", passes=400)
    grid = robustness.ShiftGrid(RANGE, "circular")
    images = images[:, :, :12, :12]
    result = robustness.measure(model, [(images, labels)], [pairs, grid])
    estimate, exact = (
        result.value(pairs.name, "consistency").mean,
        result.value(grid.name, "consistency of all pairs").mean,
    )
    assert abs(estimate - exact) < 4 * 0.5 / math.sqrt(6 * 400) and 0.2 < exact < 0.95


def test_the_diagonal_is_the_literal_one() -> None:
    images, labels = pictures()
    model = classifier()
    with torch.no_grad():
        model(images[:, :, :12, :12])
        result = robustness.measure(model, batched(images, labels, 5), [robustness.DiagonalShifts(RANGE)])
        seen = [model(images[:, :, i : i + 12, i : i + 12]).softmax(1) for i in range(RANGE + 1)]
    true = torch.stack([p[torch.arange(len(p)), labels] for p in seen], 1)
    wrong = torch.stack([p.scatter(1, labels[:, None], -1).amax(1) for p in seen], 1)
    variation = [(row[1:] - row[:-1]).abs().mean().item() for row in true]
    assert_value(result, "diagonal shift", Statistic.VARIATION, variation, PART)
    for statistic, values in ((Statistic.CONFIDENCE_BY_VIEW, true), (Statistic.WRONG_BY_VIEW, wrong)):
        for found, column in zip(result.values("diagonal shift", statistic), values.T, strict=True):
            assert (found.mean, found.standard_error) == pytest.approx(mean_and_error(column.tolist()), abs=PART)
    assert result.measurements["diagonal shift"].views == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (9, 5)])
def test_shifts_by_phase(size: tuple[int, int]) -> None:
    images = torch.rand(3, 2, *size, dtype=torch.float64)
    spectrum = torch.fft.rfft2(images)
    whole = shift_by_phase(spectrum, torch.tensor([[2.0, -3.0]] * 3, dtype=torch.float64), size)
    torch.testing.assert_close(whole, images.roll((2, -3), (2, 3)))
    shifts = torch.tensor([[0.3, 0.9], [1.5, 0.0], [0.0, 0.25]], dtype=torch.float64)
    found = shift_by_phase(spectrum, shifts, size)
    for image, made, (y, x) in zip(images.numpy(), found.numpy(), shifts.tolist(), strict=True):
        for channel, shifted in zip(image, made, strict=True):
            there = _fourier(size[0], y) @ channel @ _fourier(size[1], x).T
            np.testing.assert_allclose(shifted, there, atol=1e-12)


def _fourier(size: int, shift: float) -> np.ndarray:
    """The matrix of a shift of a periodic band-limited signal: a sum of cosines, the Nyquist one of half weight."""
    distance = np.arange(size)[:, None] - np.arange(size)[None, :] - shift
    matrix = np.ones((size, size))
    for k in range(1, (size + 1) // 2):
        matrix += 2 * np.cos(2 * np.pi * k * distance / size)
    if size % 2 == 0:  # cos(pi (n - m)) moved: cos(pi n) cos(pi m) cos(pi shift)
        signs = np.cos(np.pi * np.arange(size))
        matrix += np.outer(signs, signs) * np.cos(np.pi * shift)
    return matrix / size


def test_subpixel_pairs_are_the_literal_ones() -> None:
    images, labels = pictures()
    model = classifier()
    with torch.no_grad():
        model(images)
    result = robustness.measure(model, batched(images, labels), [robustness.SubpixelShifts(passes=2)])
    consistency = []
    for i, image in enumerate(images):
        (g,) = Batch(images, [i], (16, 16), 0).generators("sub-pixel shift")
        answers = []
        for y, x in torch.rand(4, 2, generator=g, dtype=torch.float64).tolist():
            moved = np.einsum("ai,cij,bj->cab", _fourier(16, y), image.numpy(), _fourier(16, x))
            with torch.no_grad():
                answers.append(int(model(torch.from_numpy(moved)[None]).argmax()))
        consistency.append(sum(a == b for a, b in zip(answers[::2], answers[1::2], strict=True)) / 2)
    assert_value(result, "sub-pixel shift", Statistic.CONSISTENCY, consistency, 0)


def test_rotations_and_windows() -> None:
    images = torch.rand(2, 3, 10, 10, dtype=torch.float64)
    torch.testing.assert_close(warp(images, rotation(90), (10, 10)), images.rot90(1, (2, 3)), atol=1e-12, rtol=0)
    torch.testing.assert_close(warp(images, torch.eye(3), (6, 4)), images[:, :, 2:8, 3:7], atol=1e-12, rtol=0)
    found = warp(images, rotation(17), (12, 10))
    for image, made in zip(images.numpy().reshape(6, 10, 10), found.numpy().reshape(6, 12, 10), strict=True):
        c, s = math.cos(math.radians(17)), math.sin(math.radians(17))
        matrix = np.array([[c, s], [-s, c]])  # (row, column) of what is seen
        offset = np.array([4.5, 4.5]) - matrix @ np.array([5.5, 4.5])
        there = scipy.ndimage.affine_transform(
            image, matrix, offset, output_shape=(12, 10), order=1, mode="grid-constant", cval=0
        )
        np.testing.assert_allclose(made, there, atol=1e-9)


def test_translations_and_rotations_are_the_literal_ones() -> None:
    images, labels = pictures(5)
    model = classifier()
    with torch.no_grad():
        labels[:4] = model(images).argmax(1)[:4]
    perturbation = robustness.TranslationsRotations(2, 3, 10.0, 3)
    result = robustness.measure(model, batched(images, labels), [perturbation])
    worst, accuracy = [], []
    for image, label in zip(images, labels.tolist(), strict=True):
        right = []
        for angle in (-10.0, 0.0, 10.0):
            turned = scipy.ndimage.rotate(
                np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4))), angle, axes=(2, 1), reshape=False, order=1
            )
            for y in (-2, 0, 2):
                for x in (-2, 0, 2):
                    moved = torch.from_numpy(turned[:, 4 - y : 20 - y, 4 - x : 20 - x].copy())
                    with torch.no_grad():
                        right.append(int(model(moved[None]).argmax()) == label)
        worst.append(float(all(right)))
        accuracy.append(sum(right) / 27)
    assert 0 < stdlib.fmean(accuracy) < 1
    assert_value(result, perturbation.name, Statistic.WORST_CASE, worst, 0)
    assert_value(result, perturbation.name, Statistic.ACCURACY, accuracy, 0)
    assert len(result.measurements[perturbation.name].views) == 27


def test_engstroms_grid() -> None:
    angles, distances = robustness.TranslationsRotations().grid
    assert distances == [-24, -12, 0, 12, 24] and len(angles) == 31
    assert (angles[0], angles[15], angles[30]) == (-30, 0, 30)
    assert len(robustness.TranslationsRotations().labels) == 775


# ---- sequences ---------------------------------------------------------------------------------------


def frames(kind: str, image: Tensor, count: int = 5) -> list[Tensor]:
    batch = Batch(image[None], [0], (image.shape[1], image.shape[2]), 0)
    return [view[0] for view in robustness.Sequence(kind, count).views(batch)]


def test_frames_of_sequences() -> None:
    image = torch.rand(1, 9, 9, dtype=torch.float64)
    moved = frames("translate", image)
    torch.testing.assert_close(moved[2], image)
    torch.testing.assert_close(moved[3][:, :, 1:], image[:, :, :-1])  # a pixel to the right
    torch.testing.assert_close(frames("rotate", image)[2], image)
    torch.testing.assert_close(frames("rotate", image)[3], warp(image[None], rotation(1), (9, 9))[0])
    scaled = frames("scale", image)
    torch.testing.assert_close(scaled[0], image)
    assert scaled[4][0, 4, 4] == pytest.approx(float(image[0, 4, 4]))  # the middle stays
    torch.testing.assert_close(frames("zoom_blur", image)[2], sum(scaled[:3]) / 3)
    torch.testing.assert_close(frames("brightness", image)[3], (image + 0.03).clamp(0, 1))
    torch.testing.assert_close(frames("tilt", image)[2], image)
    assert not torch.allclose(frames("tilt", image)[3], image)
    for kind, deviation in (("gaussian_noise", 0.04), ("shot_noise", math.sqrt(0.5 / 250))):
        noisy = frames(kind, torch.full((1, 100, 100), 0.5).double())
        assert torch.equal(noisy[0], torch.full((1, 100, 100), 0.5).double())
        assert not torch.equal(noisy[1], noisy[2])
        assert noisy[1].std().item() == pytest.approx(deviation, rel=0.05)


def test_flip_rates_are_the_literal_ones() -> None:
    images, labels = pictures(5)
    model = classifier()
    with torch.no_grad():
        model(images)
    chosen = [robustness.Sequence(kind, 7) for kind in ("rotate", "gaussian_noise")]
    result = robustness.measure(model, batched(images, labels), chosen)
    for kind, against in (
        ("rotate", lambda answers, t: answers[t - 1]),
        ("gaussian_noise", lambda answers, t: answers[0]),
    ):
        rates = []
        for i, image in enumerate(images):
            batch = Batch(image[None], [i], (16, 16), 0)
            with torch.no_grad():
                answers = [int(model(v).argmax()) for v in robustness.Sequence(kind, 7).views(batch)]
            rates.append(sum(answers[t] != against(answers, t) for t in range(1, 7)) / 6)
        assert result.flip_rates()[kind] == pytest.approx(stdlib.fmean(rates), abs=1e-15)
    assert result.flip_rates()["rotate"] > 0
    assert result.mean_flip_rate(result) == pytest.approx(1.0)
