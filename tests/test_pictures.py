"""Promise: every picture that is read has the values that it shows, and one that cannot be read is named."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import peers  # noqa: F401
import pytest
import torch
from PIL import Image

from aablur import robustness
from aablur.models.loading import MEAN, STD, load_picture
from aablur.models.pictures import middle, read_picture
from aablur.robustness.data import ImageFolder

SIZE = (6, 8)
RAMP = np.linspace(0, 1, 48).reshape(SIZE)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], -1)
BYTES, GREY = np.round(COLOURS * 255).astype(np.uint8), np.round(RAMP * 255).astype(np.uint8)


def sixteen(format: str) -> bytes:
    """A file of 16-bit greys."""
    values = np.round(RAMP * 65535).astype(np.uint16)
    if format == "PGM":
        return b"P5 8 6 65535\n" + values.astype(">u2").tobytes()
    if format == "PGM of 12 bits":
        return b"P5 8 6 4095\n" + np.round(RAMP * 4095).astype(">u2").tobytes()
    return saved(Image.fromarray(values), format)


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png16(colour_type: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write: the ramp in each channel, alpha too."""
    values = np.repeat(np.round(RAMP * 65535)[..., None], channels, 2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, 6, 16, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def grey(mode: str) -> Image.Image:
    return Image.fromarray(GREY).convert(mode)


EXACT = {  # file name -> what it holds, and the values that it shows
    "rgb.png": (saved(Image.fromarray(BYTES), "PNG"), BYTES),
    "grey.png": (saved(grey("L"), "PNG"), GREY),
    "16.png": (sixteen("PNG"), GREY),
    "16.tif": (sixteen("TIFF"), GREY),
    "16.pgm": (sixteen("PGM"), GREY),
    "12.pgm": (sixteen("PGM of 12 bits"), GREY),
    "16rgb.png": (png16(2, 3), GREY),
    "16la.png": (png16(4, 2), GREY),
    "16rgba.png": (png16(6, 4), GREY),
    "1.png": (saved(Image.fromarray(RAMP > 0.5), "PNG"), 255 * (RAMP > 0.5)),
    "1.tif": (saved(Image.fromarray(RAMP > 0.5), "TIFF"), 255 * (RAMP > 0.5)),
    "1.gif": (saved(Image.fromarray(RAMP > 0.5), "GIF"), 255 * (RAMP > 0.5)),
    "la.png": (saved(grey("LA"), "PNG"), GREY),
    "rgba.png": (saved(Image.fromarray(BYTES).convert("RGBA"), "PNG"), BYTES),
    "palette.png": (saved(grey("P"), "PNG"), GREY),
    "grey.gif": (saved(grey("L"), "GIF"), GREY),
    "film.gif": (saved(grey("L"), "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]), GREY),
    "pages.tif": (saved(grey("L"), "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)]), GREY),
    "float.tif": (saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), GREY),
    "lab.tif": (saved(Image.new("LAB", (8, 6), (255, 128, 128)), "TIFF"), np.full(SIZE, 255)),
    "cmyk.tif": (saved(Image.fromarray(BYTES).convert("CMYK"), "TIFF"), BYTES),
    "grey.webp": (saved(grey("RGB"), "WEBP", lossless=True), GREY),
}


@pytest.mark.parametrize("name", EXACT)
def test_values_are_those_shown(name: str, tmp_path: Path) -> None:
    """By both readers; 16 bits are within half a step of 8."""
    data, shown = EXACT[name]
    (tmp_path / name).write_bytes(data)
    expected = torch.as_tensor(np.broadcast_to(shown if shown.ndim == 3 else shown[..., None], (*SIZE, 3)).copy())
    expected = expected.permute(2, 0, 1).float()
    found = read_picture(tmp_path / name, SIZE)
    assert found.dtype == torch.uint8 and found.shape == (3, *SIZE)
    assert (found - expected).abs().max() <= 1
    folder, _ = ImageFolder(tmp_path, 6)[0]
    assert torch.equal(folder, found[..., 1:7])
    x = load_picture(tmp_path / name, SIZE)
    centre, spread = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    torch.testing.assert_close(x, ((found.float() / 255 - centre) / spread)[None])
    torch.testing.assert_close(load_picture(tmp_path / name, SIZE, 1), x.mean(1, keepdim=True))


def white_is_zero(values: np.ndarray) -> bytes:
    """A TIFF whose photometric interpretation says so."""
    tag = struct.pack("<HHI", 262, 3, 1)
    before, found, after = saved(Image.fromarray(values), "TIFF").partition(tag + b"\1")
    assert found
    return before + tag + b"\0" + after


REFUSED = {
    "integers.tif": (saved(Image.fromarray(np.full(SIZE, 70000, np.int32)), "TIFF"), "8 or 16 bits"),
    "bright.tif": (saved(Image.fromarray(2 * RAMP.astype(np.float32)), "TIFF"), "must be from 0 to 1, got from 0 to 2"),
    "nan.tif": (saved(Image.fromarray(np.where(RAMP < 0.9, RAMP, np.nan).astype(np.float32)), "TIFF"), "from 0 to 1"),
    "white is 0.tif": (white_is_zero(np.full(SIZE, 9, np.uint16)), "mode I;16 where 0 is white"),
    "white is 0, float.tif": (white_is_zero(RAMP.astype(np.float32)), "mode F where 0 is white"),
    "text.png": (b"no picture", "cannot identify"),
    "empty.png": (b"", "cannot identify"),
    "cut.png": (EXACT["rgb.png"][0][:80], "OSError"),
    "bomb.png": (EXACT["rgb.png"][0][:16] + struct.pack(">II", 60000, 60000) + EXACT["rgb.png"][0][24:], "bomb.png"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    data, why = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    for read in (lambda: read_picture(tmp_path / name, SIZE), lambda: load_picture(tmp_path / name),
                 lambda: ImageFolder(tmp_path, 6)[0]):  # fmt: skip
        with pytest.raises(OSError, match=f"{name} cannot be read as a picture: .*") as caught:
            read()
        assert why in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_are_skipped(tmp_path: Path) -> None:
    """Whatever is wrong with a file, a run over its folder goes on."""
    rng = random.Random(0)
    files = [data for name, (data, _) in EXACT.items() if name.endswith((".png", ".tif", ".gif", ".webp"))]
    for i in range(300):
        data = bytearray(rng.choice(files))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / f"{i:03}.png").write_bytes(data[: rng.randint(20, len(data))] if i % 2 else data)
    for name, (data, _) in REFUSED.items():
        (tmp_path / name).write_bytes(data)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    result = robustness.measure(model, ImageFolder(tmp_path, 8), [robustness.Clean()])
    assert len(result.skipped) >= len(REFUSED) and result.images + len(result.skipped) == 300 + len(REFUSED)
    assert all(".png cannot be read" in r or ".tif cannot be read" in r for r in result.skipped.values())


def test_a_line_is_cut_before_it_is_scaled(tmp_path: Path) -> None:
    """196 bytes that would become 224 x 13440000 pixels."""
    for i, size in enumerate(((60000, 1), (1, 60000))):
        Image.new("L", size, 77).save(tmp_path / f"{i}.png")
        assert read_picture(tmp_path / f"{i}.png", (224, 224)).unique().tolist() == [77]


@pytest.mark.parametrize("size", [(6, 8), (5, 5), (12, 12), (3, 7), (1, 1), (40, 9)])
def test_cutting_first_changes_nothing(size: tuple[int, int]) -> None:
    """The same as scaling the whole picture and cutting its middle out."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (13, 29, 3), dtype=np.uint8))
    scale = max(size[0] / 13, size[1] / 29)
    high, wide = max(size[0], round(13 * scale)), max(size[1], round(29 * scale))
    top, left = (high - size[0]) // 2, (wide - size[1]) // 2
    whole = np.asarray(image.resize((wide, high), Image.Resampling.BILINEAR))[
        top : top + size[0], left : left + size[1]
    ]
    assert (middle(image, size).permute(1, 2, 0).int() - torch.as_tensor(whole.copy()).int()).abs().max() <= 1


def test_channels() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, the model takes 5"):
        load_picture("any.png", 8, 5)


# ---- folders -----------------------------------------------------------------------------------------


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        grey("L").save(root / name / "a.png")
    return root


def test_hidden_folders_and_files_are_no_classes(tmp_path: Path) -> None:
    root = folders(tmp_path, "cat", "dog", ".thumbnails")
    (root / "cat" / "._a.png").write_bytes(b"of a file manager")
    (root / "cat" / ".cache").mkdir()
    grey("L").save(root / "cat" / ".cache" / "b.png")
    data = ImageFolder(root, 6)
    assert data.classes == {"cat": 0, "dog": 1} and [label for _, label in data.items] == [0, 1]
    hidden = folders(tmp_path / ".data", "cat")  # where the whole set lies is no matter
    assert len(ImageFolder(hidden, 6)) == 1


def test_an_empty_folder_is_refused_where_it_would_shift_labels(tmp_path: Path) -> None:
    root = folders(tmp_path, "cat", "dog")
    (root / "ant").mkdir()
    with pytest.raises(ValueError, match=r"'ant'.* holds no images"):
        ImageFolder(root, 6)
    (root / "ant").rename(root / "0")
    with pytest.raises(ValueError, match=r"'0'.* holds no images"):
        ImageFolder(root, 6)
    for name, number in (("cat", "7"), ("dog", "012")):
        (root / name).rename(root / number)
    assert ImageFolder(root, 6).classes == {"0": 0, "012": 12, "7": 7}


@pytest.mark.parametrize("names", [("1", "01"), ("1", "2", "002"), ("1", "\u0661")])
def test_two_folders_of_one_number_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have the same number"):
        ImageFolder(folders(tmp_path, *names), 6)
