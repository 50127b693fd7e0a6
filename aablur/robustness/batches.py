"""Any iterable of images and labels, or a dataset, as numbered batches; each process gets its own share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset


@dataclass(frozen=True)
class Labelled:
    """Images (batch, channels, height, width), uint8 or floating, and their labels (batch,), or None."""

    images: Tensor
    labels: Tensor | None
    index: list[int]


@dataclass
class Source:
    """The batches of one process, in order.

    data: a dataset, whose every world-th item is loaded, from the rank-th, in batches of `batch_size`; or an iterable
        of batches, whose every world-th is used.
    limit: images of the whole data to use at most: spread evenly over a dataset, the first of an iterable.
    skipped: items of a dataset that could not be read, each with the reason.
    """

    data: Any
    batch_size: int
    workers: int
    limit: int | None
    rank: int
    world: int
    skipped: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(getattr(self.data, "sampler", None), DistributedSampler):
            raise ValueError(
                "measure: data has a DistributedSampler, which gives some images twice: give a plain loader or the "
                "dataset itself, which is shared out among the processes here"
            )
        if not self._is_dataset and not isinstance(self.data, Iterable):
            raise TypeError(
                f"measure: data must be a dataset or an iterable of batches, got {type(self.data).__name__}"
            )

    @property
    def _is_dataset(self) -> bool:
        return isinstance(self.data, Dataset) and not isinstance(self.data, IterableDataset)

    @property
    def images(self) -> int | None:
        """How many images this process will be given at most, where that is known."""
        if self._is_dataset:
            return len(self._share())
        total = getattr(getattr(self.data, "dataset", None), "__len__", lambda: None)()
        bounds = [n for n in (total, self.limit) if n is not None]
        return -(-min(bounds) // self.world) if bounds else None

    def _share(self) -> list[int]:
        size = len(self.data)
        used = size if self.limit is None else min(size, self.limit)
        return [i * size // used for i in range(used)][self.rank :: self.world]

    def __iter__(self) -> Iterator[Labelled]:
        yield from self._from_dataset() if self._is_dataset else self._from_iterable()

    def _from_dataset(self) -> Iterator[Labelled]:
        items = _Items(self.data, self._share())
        loader = DataLoader(items, self.batch_size, num_workers=self.workers, collate_fn=list)
        for batch in loader:
            self.skipped |= {i: reason for i, _, reason in batch if reason is not None}
            if kept := [(i, item) for i, item, reason in batch if reason is None]:
                yield self._collate(kept)

    def _collate(self, items: list[tuple[int, Any]]) -> Labelled:
        pairs = [item if isinstance(item, (tuple, list)) else (item, None) for _, item in items]
        shapes = {tuple(torch.as_tensor(pair[0]).shape) for pair in pairs}
        if len(shapes) > 1:
            raise ValueError(f"measure: the images of a batch must have one shape, got {sorted(shapes)}")
        images = torch.stack([torch.as_tensor(pair[0]) for pair in pairs])
        labels = [int(pair[1]) for pair in pairs if pair[1] is not None]
        return _checked(images, labels if len(labels) == len(pairs) else None, [i for i, _ in items])

    def _from_iterable(self) -> Iterator[Labelled]:
        start = 0
        for number, batch in enumerate(self.data):
            if isinstance(batch, Tensor):
                images, labels = batch, None
            elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
                images, labels = batch[0], batch[1]
            else:
                raise TypeError(
                    f"measure: data must give (images, labels) or images alone, got {type(batch).__name__} "
                    f"in batch {number}"
                )
            left = len(images) if self.limit is None else min(len(images), self.limit - start)
            if left <= 0:
                return
            if number % self.world == self.rank:
                index = list(range(start, start + left))
                yield _checked(images[:left], None if labels is None else labels[:left], index)
            start += len(images)


def _checked(images: Any, labels: Any, index: list[int]) -> Labelled:
    if not isinstance(images, Tensor):
        raise TypeError(f"measure: images must be a tensor, got {type(images).__name__}")
    if images.ndim != 4:
        raise ValueError(
            f"measure: images must be (batch, channels, height, width), got shape {tuple(images.shape)} "
            f"from image {index[0] if index else 0}"
        )
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise TypeError(f"measure: images must be floating or uint8, got {str(images.dtype).removeprefix('torch.')}")
    if labels is not None:
        labels = torch.as_tensor(labels)
        if labels.shape != (len(images),) or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                f"measure: labels must be one whole number an image, ({len(images)},), got shape "
                f"{tuple(labels.shape)} of {str(labels.dtype).removeprefix('torch.')}"
            )
        labels = labels.long().cpu()
    return Labelled(images, labels, index)


class _Items(Dataset):
    """Items of a dataset with their numbers; one that cannot be read comes as the reason."""

    def __init__(self, data: Any, share: list[int]) -> None:
        self.data, self.share = data, share

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, position: int) -> tuple[int, Any, str | None]:
        i = self.share[position]
        try:
            return i, self.data[i], None
        except Exception as error:  # of any kind: decoders of images raise what they meet in a damaged file
            return i, None, f"{type(error).__name__}: {error}"


def after(batch: Labelled, done: int) -> tuple[Labelled, Labelled]:
    """A batch in two, the first with `done` images."""

    def part(which: slice) -> Labelled:
        return Labelled(batch.images[which], None if batch.labels is None else batch.labels[which], batch.index[which])

    return part(slice(None, done)), part(slice(done, None))
