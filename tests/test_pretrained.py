"""Promise: the page on a pretrained network measures what it says, on pictures that nothing was fitted to."""

from __future__ import annotations

import torch

from benchmarks import pretrained
from benchmarks.photos import PHOTOGRAPHS, crops


def test_the_pieces() -> None:
    """Strength 0 answers as the network does; the table and the windows are of the documented form."""
    model = pretrained.trained()
    pictures = crops(2, pretrained.SIZE + pretrained.RANGE)
    logits = pretrained.answers(model, pictures)
    assert logits.shape == (2, 1000) and logits.argmax(1).unique().numel() == 2
    same = pretrained.repaired(model, strength=0.0)
    torch.testing.assert_close(pretrained.answers(same, pictures), logits, rtol=1e-3, atol=1e-3)
    blurred = pretrained.repaired(model)
    assert not torch.allclose(pretrained.answers(blurred, pictures), logits, atol=0.1)
    labels = logits.argmax(1)
    result = pretrained.measure("as it is", model, pictures, labels, passes=1, shifts=2)
    cells = [cell.strip() for cell in pretrained.table([result]).splitlines()[-1].split("|")[1:-1]]
    assert cells[:2] == ["as it is", "100.0 ± 0.0"] and len(cells) == len(pretrained.HEADINGS)


def test_what_is_judged_was_not_seen() -> None:
    pictures = torch.arange(3 * len(PHOTOGRAPHS)).reshape(-1, 1)
    judged, seen = pretrained.halves(pictures)
    photographs = [{int(i) % len(PHOTOGRAPHS) for i in some} for some in (judged, seen)]
    assert not photographs[0] & photographs[1] and len(photographs[0]) == len(photographs[1]) == 7


def test_fine_tuning_nears_its_teacher() -> None:
    torch.manual_seed(0)

    class Small(torch.nn.Sequential):
        pass

    teacher = Small(torch.nn.Conv2d(3, 4, 7, 8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    student = Small(torch.nn.Conv2d(3, 4, 7, 8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    pictures = torch.rand(4, 3, pretrained.SIZE + 8, pretrained.SIZE + 8)
    tuned = pretrained.finetuned(student, teacher, pictures, 60)
    x = pretrained.normalised(pictures[..., : pretrained.SIZE, : pretrained.SIZE])
    before, after = ((m(x).softmax(1) - teacher(x).softmax(1)).abs().sum() for m in (student, tuned))
    assert after < before
