"""The one reader of image files: 8-bit RGB of a given size, or an error that names the file."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ..extras import require

_TIFF_BITS, _TIFF_PHOTOMETRIC, _MIN_IS_WHITE = 258, 262, 0


def read_picture(path: str | PathLike[str], size: tuple[int, int], extra: str = "models") -> Tensor:
    """The picture in a file, uint8 (3, height, width).

    1. Open it with Pillow; of an animation or a file of several pages, the first.
    2. Make it 8-bit RGB. 1-bit and 16-bit pixels are scaled to 0 .. 255, floating ones must be from 0 to 1; an alpha
       channel is left out.
    3. Scale it (bilinear, anti-aliased) until it just covers ``size``, and cut the middle out.

    Args:
        path: of the file.
        size: (height, width).
        extra: that brings Pillow, for the message where it is missing.

    Raises:
        OSError: the file is missing, damaged, of a kind that Pillow does not know, or has pixels of unknown range.
            The message names it.
    """
    image = require("PIL.Image", "reading a picture", extra)
    try:
        with image.open(path) as opened:
            return middle(opened, size)
    except Exception as error:  # of any kind: Pillow raises what its decoders meet in a damaged file
        raise OSError(f"{path} cannot be read as a picture: {type(error).__name__}: {error}") from error


def middle(image: Any, size: tuple[int, int]) -> Tensor:
    """Steps 2 and 3 of `read_picture`, of an image of Pillow's."""
    image = _as_rgb(image)
    (height, width), (across, down) = size, image.size
    scale = max(width / across, height / down)
    wide, high = max(width, round(across * scale)), max(height, round(down * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    # only what is kept is scaled: a line of 1 x 60000 pixels would else become 224 x 13440000
    box = (left * across / wide, top * down / high, (left + width) * across / wide, (top + height) * down / high)
    bilinear = require("PIL.Image", "reading a picture", "models").Resampling.BILINEAR
    data = bytearray(image.resize((width, height), bilinear, box=box).tobytes())
    return torch.frombuffer(data, dtype=torch.uint8).view(height, width, 3).permute(2, 0, 1).contiguous()


def _as_rgb(image: Any) -> Any:
    """An image in mode RGB; Pillow itself cuts wide integers and floats off at 255."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith(("I", "F")) and tags.get(_TIFF_PHOTOMETRIC) == _MIN_IS_WHITE:
        raise ValueError(f"pixels of mode {image.mode} where 0 is white are not read")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # these are 16-bit
        (bits, *_) = tags.get(_TIFF_BITS, (16,))
        return _in_bytes(image.convert("I"), 255 / (2**bits - 1))
    if image.mode == "I":
        raise ValueError("32-bit whole numbers have no range of their own: save the picture with 8 or 16 bits")
    if image.mode == "F":
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32)
        low, high = (float(v) for v in values.aminmax())
        if not 0 <= low <= high <= 1:
            raise ValueError(f"floating pixels must be from 0 to 1, got from {low:g} to {high:g}")
        return _in_bytes(image, 255)
    return image.convert("RGB")


def _in_bytes(image: Any, factor: float) -> Any:
    """Of mode I or F; rounded, as Pillow cuts fractions off."""
    return image.convert("F").point(lambda value: value * factor + 0.5).convert("L").convert("RGB")
