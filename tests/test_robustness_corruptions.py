"""Promise: corruptions are ImageNet-C's, the same for an image however it is run, and mCE is the published ratio."""

from __future__ import annotations

import hashlib
import statistics as stdlib
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aablur import robustness
from aablur.robustness import CORRUPTIONS, Batch, Corruption
from aablur.robustness.corruptions import corrupt
from aablur.robustness.data import photographs


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return photographs(32).images[:6]


def views(kind: str, images: Tensor, index: list[int], seed: int = 0) -> Tensor:
    batch = Batch(images.float() / 255, index, (32, 32), seed)
    return torch.stack(list(Corruption(kind).views(batch)))


def test_they_are_the_fifteen() -> None:
    import imagecorruptions

    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("common")
    assert [c.kind for c in robustness.corruptions()] == list(CORRUPTIONS)
    assert len(robustness.suite(["corruptions"])) == 15


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_depends_on_the_image_and_the_seed_alone(kind: str, photos: Tensor) -> None:
    state = str(np.random.get_state())
    together = views(kind, photos, list(range(6)))
    assert str(np.random.get_state()) == state
    alone = torch.cat([views(kind, photos[i : i + 1], [i]) for i in (5, 2)], 1)
    assert torch.equal(together[:, [5, 2]], alone)
    assert together.shape == (5, 6, 3, 32, 32) and together.amin() >= 0 and together.amax() <= 1
    drawn = kind not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    for index, seed in (([9], 0), ([5], 1)):
        assert torch.equal(views(kind, photos[5:], index, seed), alone[:, :1]) != drawn
    far = (together - photos / 255).abs().mean((1, 2, 3, 4))
    assert far.amin() > 0.01
    if kind != "frost":  # each severity draws its own picture of frost
        assert far[4] > far[0]  # severity 5 is further from the image than 1


@pytest.mark.parametrize("kind", ["gaussian_noise", "elastic_transform", "pixelate"])
def test_a_corruption_is_the_packages(kind: str, photos: Tensor) -> None:
    import imagecorruptions

    for severity in (1, 4):
        key = f"0/corruption {kind}/{severity}/3"
        np.random.seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big"))
        image = photos[3].permute(1, 2, 0).numpy()
        theirs = imagecorruptions.corrupt(image, severity, kind)
        assert np.array_equal(corrupt(image, kind, severity, key).numpy(), theirs)


def pixels() -> nn.Module:
    """Ten classes by a random plane through the pixels: what changes many of them changes the answer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.LayerNorm(3072), nn.Linear(3072, 10)).eval()


def test_errors_are_the_literal_ones(photos: Tensor) -> None:
    kinds = ("impulse_noise", "fog", "jpeg_compression")
    model = pixels()
    with torch.no_grad():
        labels = model(photos / 255).argmax(1)
    chosen = [Corruption(kind) for kind in kinds]
    data = [(photos[:4], labels[:4]), (photos[4:], labels[4:])]
    result = robustness.measure(model, data, chosen)
    errors = {}
    for kind in kinds:
        wrong = []
        for i, (image, label) in enumerate(zip(photos, labels.tolist(), strict=True)):
            for severity in range(1, 6):
                made = corrupt(image.permute(1, 2, 0).numpy(), kind, severity, f"0/corruption {kind}/{severity}/{i}")
                with torch.no_grad():
                    answer = model(made.permute(2, 0, 1)[None] / 255).argmax()
                wrong.append(int(answer != label))
        errors[kind] = stdlib.fmean(wrong)
        by_severity = [1 - v.mean for v in result.values(f"corruption {kind}", "accuracy by view")]
        assert by_severity == pytest.approx([stdlib.fmean(wrong[s::5]) for s in range(5)], abs=1e-12)
    assert result.errors() == pytest.approx(errors, abs=1e-12)
    assert 0 < sum(errors.values()) < 3
    ratio = stdlib.fmean(errors[kind] / robustness.ALEXNET[kind] for kind in kinds)
    assert result.mean_corruption_error() == pytest.approx(ratio)
    other = robustness.measure(model, [(photos, labels.roll(1))], chosen)
    ratio = stdlib.fmean(errors[kind] / other.errors()[kind] for kind in kinds)
    assert result.mean_corruption_error(other) == pytest.approx(ratio)


def test_grey_images() -> None:
    image = photographs(32).images[4].float().mean(0, keepdim=True).byte()
    grey = views("brightness", image[None], [0])
    assert grey.shape == (5, 1, 1, 32, 32) and (grey[4] - image / 255).mean() > 0.1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 3, 31, 40), "images must be 32 px or more, got 31x40"),
        (torch.rand(1, 2, 32, 32), "images must have 1 or 3 channels, got 2"),
        (torch.rand(1, 3, 32, 32) * 2 - 1, r"images must be in \[0, 1\], got -.*; give them before normalisation"),
    ],
)
def test_bad_images(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        robustness.measure(lambda x: x.mean((2, 3)), [(images, torch.tensor([0]))], [Corruption("fog")])


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"kind must be one of gaussian_noise, .*, got 'mist'"):
        Corruption("mist")
    with pytest.raises(ValueError, match="severities must be among"):
        Corruption("fog", (0,))
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ImportError, match=r"needs imagecorruptions: pip install aablur\[robustness\]"):
        Corruption("fog")
