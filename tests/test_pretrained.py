"""Promise: the page on a pretrained network measures what it says."""

from __future__ import annotations

import torch

from benchmarks import pretrained


def test_the_pieces() -> None:
    """Strength 0 answers as the network does, which is right about a cat; the table is of the documented form."""
    model = pretrained.trained()
    pictures = pretrained.squares(["chelsea"], 2, pretrained.SIZE + pretrained.RANGE)
    logits = pretrained.answers(model, pictures)
    assert logits.shape == (2, 1000) and set(logits.argmax(1).tolist()) <= set(pretrained.CLASSES["chelsea"])
    same = pretrained.repaired(model, strength=0.0)
    torch.testing.assert_close(pretrained.answers(same, pictures), logits, rtol=1e-3, atol=1e-3)
    blurred = pretrained.repaired(model)
    assert not torch.allclose(pretrained.answers(blurred, pictures), logits, atol=0.1)
    labels = torch.full((2,), list(pretrained.CLASSES).index("chelsea"))
    result = pretrained.measure("as it is", model, pictures, labels, passes=1, shifts=2)
    cells = [cell.strip() for cell in pretrained.table([result]).splitlines()[-1].split("|")[1:-1]]
    assert cells[:2] == ["as it is", "100.0 ± 0.0"] and len(cells) == len(pretrained.HEADINGS)


def test_merged_classes() -> None:
    """Probabilities of the classes of a photograph add up; all others keep theirs."""
    logits = torch.randn(3, 1000)
    merged = pretrained.Merged(torch.nn.Identity())(logits).softmax(1)
    plain = logits.softmax(1)
    for i, classes in enumerate(pretrained.CLASSES.values()):
        torch.testing.assert_close(merged[:, i], plain[:, list(classes)].sum(1))
    taken = [c for classes in pretrained.CLASSES.values() for c in classes]
    others = [c for c in range(1000) if c not in taken]
    torch.testing.assert_close(merged[:, len(pretrained.CLASSES) :], plain[:, others])


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
