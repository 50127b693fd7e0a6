"""A picture of what the blur is for: one photograph, halved three times in two ways."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

import aablur

from .photos import photograph

PHOTOGRAPH = "brick"
HALVINGS = 3
DETAIL = (0.55, 0.3, 0.3)  # left, top and side of the detail, as parts of the picture
WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain stride": lambda x: x[..., ::2, ::2],
    "aablur.blur_pool2d": lambda x: aablur.blur_pool2d(x),
}


def _shrink(x: Tensor, halve: Callable[[Tensor], Tensor]) -> Tensor:
    """(1, 1, H, W) -> (H / 8, W / 8)."""
    for _ in range(HALVINGS):
        x = halve(x)
    return x[0, 0]


def _detail(picture: Tensor) -> Tensor:
    height, width = picture.shape
    left, top, side = DETAIL
    rows = slice(round(top * height), round((top + side) * height))
    return picture[rows, round(left * width) : round((left + side) * width)]


def _frame(axes: Axes, picture: Tensor) -> None:
    """The outline of the detail; pixel centres are whole numbers, so edges lie at halves."""
    left, top, side = (round(part * picture.shape[0]) for part in DETAIL)
    corner = (left - 0.5, top - 0.5)
    axes.add_patch(Rectangle(corner, side, side, fill=False, color="#e69f00", lw=2))


def draw_aliasing(path: Path) -> Path:
    """Original, both small pictures, their detail, and how they change as the camera moves."""
    photo = photograph(PHOTOGRAPH)[None, :1].contiguous()  # a grey picture: one channel
    moved, still = photo[..., 1:, 1:].contiguous(), photo[..., :-1, :-1].contiguous()
    low, high = (float(photo.quantile(q)) for q in (0.002, 0.998))
    figure, grid = plt.subplots(2, 4, figsize=(13, 7), layout="constrained")

    def show(axes: Axes, picture: Tensor, title: str, **options: Any) -> None:
        defaults: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high}
        axes.imshow(picture.numpy(), **(defaults | options))
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])

    whole = photo[0, 0]
    size = f"{whole.shape[1]} x {whole.shape[0]}"
    show(grid[0, 0], whole, f"photograph: {size}")
    _frame(grid[0, 0], whole)
    show(grid[1, 0], _detail(whole), "its framed detail")
    for line, (name, halve) in zip(grid, WAYS.items(), strict=True):
        small = _shrink(photo, halve)
        change = (_shrink(moved, halve) - _shrink(still, halve)).abs()
        size = f"{small.shape[1]} x {small.shape[0]}"
        show(line[1], small, f"{name}: {size}", interpolation="nearest")
        _frame(line[1], small)
        show(line[2], _detail(small), "its framed detail", interpolation="nearest")
        title = f"change when the camera moves 1 pixel\nmean {float(change.mean()):.4f}"
        show(line[3], change, title, cmap="magma", vmin=0.0, vmax=0.3, interpolation="nearest")
    scale = figure.colorbar(grid[0, 3].images[0], ax=grid[:, 3], location="right", shrink=0.6)
    scale.set_label("absolute difference (white is 1)", fontsize=9)
    figure.suptitle(
        f"Halved {HALVINGS} times: without a blur thin lines break, and a move of the camera "
        "by one pixel changes the result",
        fontsize=12,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
