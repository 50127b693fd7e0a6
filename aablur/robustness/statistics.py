"""What is reduced over the views of an image, as whole numbers: sums of them are exact, in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

PROBABILITY = 2**24  # probabilities are counted in these parts of one, the resolution of float32


@dataclass(frozen=True)
class Outcomes:
    """What a classifier said of B images under V views.

    top1: (B, V), the class of the largest logit.
    true, wrong: (B, V) float64, the probability of the label and the largest of all others.
    label: (B,).
    classes: the number of logits.
    """

    top1: Tensor
    true: Tensor
    wrong: Tensor
    label: Tensor
    classes: int

    @property
    def right(self) -> Tensor:
        return self.top1 == self.label[:, None]

    @property
    def agree(self) -> Tensor:
        """(B, V / 2): whether views 0 and 1 have the same top-1, views 2 and 3, and so on."""
        return self.top1[:, ::2] == self.top1[:, 1::2]


Counted = tuple[Tensor, int]  # (B,) or (B, V) whole numbers, and how many of them are 1


def _share(hits: Tensor) -> Counted:
    return hits.sum(1), hits.shape[1]


def _each(hits: Tensor) -> Counted:
    return hits.long(), 1


def _probability(values: Tensor) -> Counted:
    return (values.double() * PROBABILITY).round().long(), PROBABILITY


def _all_pairs(o: Outcomes) -> Counted:
    """Ordered pairs of views with the same top-1, of all V * V: n views of a class make n * n pairs."""
    images, views = o.top1.shape
    codes = o.top1 + o.classes * torch.arange(images)[:, None]
    counts = torch.bincount(codes.flatten(), minlength=images * o.classes).view(images, o.classes)
    return counts.square().sum(1), views * views


class Statistic(Enum):
    """A name, and the function from outcomes to whole numbers: (B,) is one value an image, (B, V) one a view too."""

    ACCURACY = "accuracy"
    ACCURACY_BY_VIEW = "accuracy by view"
    CONFIDENCE = "confidence"
    CONFIDENCE_BY_VIEW = "confidence by view"
    WRONG_BY_VIEW = "largest wrong class by view"
    CONSISTENCY = "consistency"
    CONSISTENCY_BY_PASS = "consistency by pass"
    CONSISTENCY_ALL_PAIRS = "consistency of all pairs"
    VARIATION = "variation"
    SPREAD = "spread"
    WORST_CASE = "worst case accuracy"
    WORST_CONFIDENCE = "worst case confidence"
    FLIP_RATE = "flip rate"
    FLIP_RATE_FROM_FIRST = "flip rate from the first"

    def __call__(self, outcomes: Outcomes) -> Counted:
        return _FUNCTIONS[self](outcomes)

    @property
    def by_view(self) -> bool:
        return self.value.endswith((" by view", " by pass"))

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_FUNCTIONS: dict[Statistic, Callable[[Outcomes], Counted]] = {
    Statistic.ACCURACY: lambda o: _share(o.right),
    Statistic.ACCURACY_BY_VIEW: lambda o: _each(o.right),
    Statistic.CONFIDENCE: lambda o: _probability(o.true.mean(1)),
    Statistic.CONFIDENCE_BY_VIEW: lambda o: _probability(o.true),
    Statistic.WRONG_BY_VIEW: lambda o: _probability(o.wrong),
    Statistic.CONSISTENCY: lambda o: _share(o.agree),
    Statistic.CONSISTENCY_BY_PASS: lambda o: _each(o.agree),
    Statistic.CONSISTENCY_ALL_PAIRS: _all_pairs,
    Statistic.VARIATION: lambda o: _probability(o.true.diff(dim=1).abs().mean(1)),
    Statistic.SPREAD: lambda o: _probability((o.true - o.true.mean(1, keepdim=True)).square().mean(1).sqrt()),
    Statistic.WORST_CASE: lambda o: _each(o.right.all(1)),
    Statistic.WORST_CONFIDENCE: lambda o: _probability(o.true.amin(1)),
    Statistic.FLIP_RATE: lambda o: _share(o.top1[:, 1:] != o.top1[:, :-1]),
    Statistic.FLIP_RATE_FROM_FIRST: lambda o: _share(o.top1[:, 1:] != o.top1[:, :1]),
}
_MEANINGS = {
    Statistic.ACCURACY: "share of views whose top-1 is the label",
    Statistic.ACCURACY_BY_VIEW: "share of images whose top-1 is the label, under each view",
    Statistic.CONFIDENCE: "probability of the label, mean over views",
    Statistic.CONFIDENCE_BY_VIEW: "probability of the label under each view",
    Statistic.WRONG_BY_VIEW: "largest probability of a class that is not the label, under each view",
    Statistic.CONSISTENCY: "share of random pairs of views with the same top-1",
    Statistic.CONSISTENCY_BY_PASS: "the same, for each pass over the data",
    Statistic.CONSISTENCY_ALL_PAIRS: "share of all ordered pairs of views with the same top-1",
    Statistic.VARIATION: "mean change of the label's probability from one view to the next",
    Statistic.SPREAD: "standard deviation of the label's probability over views",
    Statistic.WORST_CASE: "share of images that are right under every view",
    Statistic.WORST_CONFIDENCE: "smallest probability of the label under any view",
    Statistic.FLIP_RATE: "share of frames whose top-1 differs from the frame before",
    Statistic.FLIP_RATE_FROM_FIRST: "share of frames whose top-1 differs from the first frame",
}
