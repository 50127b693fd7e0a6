"""Digests of tensors, by which an interrupted run knows its model and its data again."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable

from torch import Tensor

from .batches import Labelled


class Digest:
    """Of a stream of images and labels, whatever its batches."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def update(self, batch: Labelled) -> None:
        labels = [None] * len(batch.images) if batch.labels is None else batch.labels.tolist()
        for image, label, i in zip(batch.images, labels, batch.index, strict=True):
            self._hash.update(f"{i}/{label}/".encode())
            _add(self._hash, image)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def digest_of(text: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of a text and of named tensors."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in tensors:
        digest.update(name.encode())
        _add(digest, tensor)
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, tensor: Tensor) -> None:
    """The dtype, the shape and the bytes of a tensor."""
    plain = tensor.detach().cpu().contiguous()
    digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
    digest.update((ctypes.c_char * (plain.numel() * plain.element_size())).from_address(plain.data_ptr()))
